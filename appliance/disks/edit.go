package disks

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"unicode"
	"unicode/utf8"

	"github.com/keelblock/keelblock/appliance"
)

const (
	// MaxAllowed bounds the common names that a disk allows.
	MaxAllowed = 256
	// maxCommonName is ub-common-name of RFC 5280, in characters.
	maxCommonName = 64
)

// Change is what Edit does to a disk.
type Change struct {
	// Allow and Disallow are common names of client certificates, added and taken away.
	// They hold for connections that are made from then on.
	Allow, Disallow []string
	// Exclusive; nil: unchanged.
	Exclusive *bool
	// Role; "": unchanged.
	Role Role
}

// Edit changes who may use a disk, and its role, all or nothing. What the export itself
// has to change for, Exclusive and Role, needs a disk that nobody is connected to.
func (r *Registry) Edit(ctx context.Context, name string, c Change) (*Disk, error) {
	op := fmt.Sprintf("edit disk %q", name)
	r.change.Lock()
	defer r.change.Unlock()
	d, err := r.Get(name)
	if err != nil {
		return nil, err
	}
	e := d.Entry()
	if e.Allow, err = allowed(op, e.Allow, c); err != nil {
		return nil, err
	}
	if c.Exclusive != nil {
		e.Exclusive = *c.Exclusive
	}
	if c.Role != "" {
		e.Role = c.Role
	}
	switch old := d.Entry(); {
	case e.Role != Data && e.Role != Temporary:
		return nil, &appliance.Error{Op: op, Kind: appliance.ErrInvalid, Text: fmt.Sprintf("role %q is neither data nor temporary", e.Role)}
	case e.Role != old.Role || e.Exclusive != old.Exclusive:
		return r.reopen(ctx, op, d, e)
	}
	if err := r.save(e, false); err != nil {
		return nil, fmt.Errorf("%s: %w", op, err)
	}
	r.set(d, func(in *Entry) { in.Allow = e.Allow })
	return d, nil
}

// allowed is a list of common names after a change.
func allowed(op string, list []string, c Change) ([]string, error) {
	list = slices.Clone(list)
	for _, n := range c.Disallow {
		i := slices.Index(list, n)
		if i < 0 {
			return nil, &appliance.Error{Op: op, Kind: appliance.ErrNotFound, Text: fmt.Sprintf("it does not allow %q", n)}
		}
		list = slices.Delete(list, i, i+1)
	}
	for _, n := range c.Allow {
		bad := func(r rune) bool { return !unicode.IsPrint(r) }
		if n == "" || !utf8.ValidString(n) || utf8.RuneCountInString(n) > maxCommonName || slices.ContainsFunc([]rune(n), bad) {
			return nil, &appliance.Error{Op: op, Kind: appliance.ErrInvalid,
				Text: fmt.Sprintf("common name %q is empty, longer than %d characters or not printable", n, maxCommonName)}
		}
		if !slices.Contains(list, n) {
			list = append(list, n)
		}
	}
	if len(list) > MaxAllowed {
		return nil, &appliance.Error{Op: op, Kind: appliance.ErrInvalid, Text: fmt.Sprintf("%d common names; a disk allows at most %d", len(list), MaxAllowed)}
	}
	slices.Sort(list)
	return list, nil
}

// reopen serves d anew with another entry. A disk that changes its role forgets its map:
// while it is temporary nobody notes what is written, so that it is compared when it is a
// data disk again.
func (r *Registry) reopen(ctx context.Context, op string, d *Disk, e Entry) (*Disk, error) {
	name := e.Name
	device, _ := r.Device(d)
	switch n := r.o.Server.Connections(name); {
	case d.file == nil:
		return nil, &appliance.Error{Op: op, Kind: appliance.ErrInUse, Text: fmt.Sprintf("it is offline: %v", d.reason)}
	case d.holds.Load() > 0:
		return nil, &appliance.Error{Op: op, Kind: appliance.ErrInUse, Text: "a job uses it", Hint: "see keelblock job list"}
	case device != "":
		return nil, &appliance.Error{Op: op, Kind: appliance.ErrInUse, Text: "it is attached to " + device, Hint: "keelblock disk detach " + name}
	case n > 0:
		return nil, &appliance.Error{Op: op, Kind: appliance.ErrInUse, Text: fmt.Sprintf("NBD connections open to it: %d", n), Hint: "disconnect the guest first"}
	}
	if err := r.o.Server.Remove(ctx, name); err != nil {
		return nil, fmt.Errorf("%s: %w", op, errors.Join(err, r.o.Server.Add(r.exportOf(d))))
	}
	if err := d.close(); err != nil {
		r.o.Logger.Warn("closing a disk that is being edited", "disk", name, "error", err)
	}
	if err := r.save(e, false); err != nil {
		r.put(r.open(d.Entry()))
		return nil, fmt.Errorf("%s: %w", op, err)
	}
	if e.Role != d.entry.Role {
		r.forget(e)
	}
	d = r.open(e)
	r.put(d)
	if d.reason != nil {
		return nil, fmt.Errorf("%s: it is done, but the disk is offline: %w", op, d.reason)
	}
	return d, nil
}
