package disks

import (
	"context"
	"errors"
	"fmt"

	"github.com/keelblock/keelblock/appliance"
	"github.com/keelblock/keelblock/blockdev"
	"github.com/keelblock/keelblock/blockdev/nbd/server"
)

// SetOwners tells which machine has which disk, as the catalog says at a start.
func (r *Registry) SetOwners(owners map[string]string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.owners, r.ownersKnown = owners, true
}

// Claim gives disks to a machine, all or none. A disk of another machine is
// ErrInUse; one that machine has already stays with it. The caller's operation names
// the machine, so the errors do not.
func (r *Registry) Claim(machine string, names ...string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, n := range names {
		if r.disks[n] == nil {
			return appliance.NotFound("", "disk", n)
		}
		if o := r.owners[n]; o != "" && o != machine {
			return &appliance.Error{Kind: appliance.ErrInUse, Text: fmt.Sprintf("disk %q belongs to machine %q", n, o),
				Hint: fmt.Sprintf("a disk belongs to one machine; keelblock machine edit %s --remove-disk %s", o, n)}
		}
	}
	for _, n := range names {
		r.owners[n] = machine
	}
	return nil
}

// Unclaim takes disks from machine; those it does not have are left alone.
func (r *Registry) Unclaim(machine string, names ...string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, n := range names {
		if r.owners[n] == machine {
			delete(r.owners, n)
		}
	}
}

// Owner is the machine that has the disk, or "".
func (r *Registry) Owner(name string) string {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.owners[name]
}

// Hold keeps disks from being deleted until release is called.
func (r *Registry) Hold(names ...string) (held []*Disk, release func(), err error) {
	r.change.Lock() // so that no Delete is past its check
	defer r.change.Unlock()
	for _, n := range names {
		d, err := r.Get(n)
		if err != nil {
			return nil, nil, err
		}
		held = append(held, d)
	}
	for _, d := range held {
		d.holds.Add(1)
	}
	return held, func() {
		for _, d := range held {
			d.holds.Add(-1)
		}
	}, nil
}

// AddExport puts a read-only device on nbd.sock under a name that no disk and no
// other export has, with metadata contexts or nil.
func (r *Registry) AddExport(name, description string, dev blockdev.Device, contexts server.ContextSource) error {
	op := fmt.Sprintf("export as %q", name)
	if err := appliance.CheckName("export", name); err != nil {
		return err
	}
	r.mu.Lock()
	var taken string
	switch {
	case r.disks[name] != nil || r.pending[name]:
		taken = "a disk"
	case r.exports[name]:
		taken = "an export"
	default:
		r.exports[name] = true
	}
	r.mu.Unlock()
	if taken != "" {
		return &appliance.Error{Op: op, Kind: appliance.ErrExists, Text: taken + " of this name exists", Hint: "choose another name with --as"}
	}
	if err := r.o.Server.Add(server.Export{Name: name, Description: description, Device: dev, ReadOnly: true, Contexts: contexts}); err != nil {
		r.mu.Lock()
		delete(r.exports, name)
		r.mu.Unlock()
		return fmt.Errorf("%s: %w", op, err)
	}
	return nil
}

// RemoveExport drains and removes an export that AddExport put there.
func (r *Registry) RemoveExport(ctx context.Context, name string) error {
	r.mu.RLock()
	known := r.exports[name]
	disk := r.disks[name] != nil
	r.mu.RUnlock()
	op := fmt.Sprintf("remove export %q", name)
	if disk {
		return &appliance.Error{Op: op, Kind: appliance.ErrInvalid, Text: "it is a disk, not an export of a point",
			Hint: "keelblock disk delete " + name + " deletes a disk"}
	}
	if !known {
		return &appliance.Error{Op: op, Kind: appliance.ErrNotFound, Text: "no such export"}
	}
	err := r.o.Server.Remove(ctx, name)
	if err != nil && errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("%s: %w", op, err)
	}
	r.mu.Lock()
	delete(r.exports, name)
	r.mu.Unlock()
	return err
}
