package disks

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/keelblock/keelblock/appliance"
	"github.com/keelblock/keelblock/appliance/statefile"
	"github.com/keelblock/keelblock/blockdev/cbt"
	"github.com/keelblock/keelblock/blockdev/localdisk"
)

// Spec of a new disk.
type Spec struct {
	Name string
	// SizeBytes is a multiple of 512 up to 2 PiB. 0 with a Backing: its size.
	SizeBytes int64
	// Backing is an existing file or block device. "": a new sparse file.
	Backing string
	// Role; "": Data.
	Role Role
}

// Create makes a disk, empty or over its backing, and serves it.
func (r *Registry) Create(s Spec) (*Disk, error) {
	if s.Backing != "" {
		return r.adopt(s)
	}
	u, err := r.Begin(s)
	if err != nil {
		return nil, err
	}
	d, err := u.Publish(Origin{}, cbt.PointID{})
	if err != nil {
		return nil, errors.Join(err, u.Discard())
	}
	return d, nil
}

// Unfinished is a disk that is being filled: a file that nobody sees yet. Either
// Publish or Discard ends it; a kill discards it.
type Unfinished struct {
	r     *Registry
	entry Entry
	dev   *localdisk.Disk
	ended bool
}

// Begin reserves the name and makes the file of a new disk.
func (r *Registry) Begin(s Spec) (_ *Unfinished, err error) {
	op := fmt.Sprintf("create disk %q", s.Name)
	e, err := r.admit(op, s)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			r.release(s.Name)
		}
	}()
	e.File = s.Name + ".raw"
	path := filepath.Join(r.o.Dir, e.File)
	if _, err := os.Lstat(path); err == nil {
		return nil, &appliance.Error{Op: op, Kind: appliance.ErrExists, Text: "file " + path + " is there and belongs to no disk",
			Hint: "move it away, or give it with --backing"}
	}
	if err := localdisk.Create(path+partialSuffix, e.SizeBytes); err != nil {
		return nil, fmt.Errorf("%s: %w", op, err)
	}
	dev, err := localdisk.Open(path+partialSuffix, localdisk.Options{ReserveBytes: r.o.ReserveBytes})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", op, err), localdisk.Remove(path+partialSuffix))
	}
	return &Unfinished{r: r, entry: e, dev: dev}, nil
}

// Device is the file to fill.
func (u *Unfinished) Device() *localdisk.Disk { return u.dev }

// Publish makes the content durable, enters the disk in the list and serves it.
// When origin names a point, the content must equal that disk of it, byte for
// byte, and base is the point's id: the next backup reads only what changed since.
func (u *Unfinished) Publish(origin Origin, base cbt.PointID) (*Disk, error) {
	r, op := u.r, fmt.Sprintf("create disk %q", u.entry.Name)
	if err := errors.Join(u.dev.Flush(), u.dev.Close()); err != nil {
		return nil, fmt.Errorf("%s: %w", op, err)
	}
	r.change.Lock()
	defer r.change.Unlock()
	u.entry.Origin = origin
	if err := r.save(u.entry, false); err != nil {
		return nil, fmt.Errorf("%s: %w", op, err)
	}
	u.ended = true // the list has it
	path := filepath.Join(r.o.Dir, u.entry.File)
	if err := errors.Join(os.Rename(path+partialSuffix, path), statefile.SyncDir(r.o.Dir)); err != nil {
		return nil, fmt.Errorf("%s: %w", op, err)
	}
	d := &Disk{entry: u.entry, path: path}
	d.reason = r.start(d)
	if d.reason == nil && d.tracker != nil && base != (cbt.PointID{}) {
		if err := d.tracker.SetBase(base); err != nil {
			r.o.Logger.Warn("restored disk begins without a base", "disk", u.entry.Name, "error", err)
		}
	}
	return d, r.enter(op, d)
}

// Discard removes the file and frees the name. After Publish it is harmless.
func (u *Unfinished) Discard() error {
	if u.ended {
		return nil
	}
	u.ended = true
	err := u.dev.Close()
	err = errors.Join(err, localdisk.Remove(filepath.Join(u.r.o.Dir, u.entry.File)+partialSuffix))
	u.r.release(u.entry.Name)
	return err
}

// adopt makes a disk over an existing file or block device.
func (r *Registry) adopt(s Spec) (*Disk, error) {
	op := fmt.Sprintf("create disk %q", s.Name)
	invalid := func(format string, args ...any) error {
		return &appliance.Error{Op: op, Kind: appliance.ErrInvalid, Text: fmt.Sprintf(format, args...)}
	}
	if !filepath.IsAbs(s.Backing) {
		return nil, invalid("backing %q is not an absolute path", s.Backing)
	}
	probe, err := localdisk.Open(s.Backing, localdisk.Options{})
	if err != nil {
		kind := appliance.ErrInvalid
		switch {
		case errors.Is(err, localdisk.ErrInUse):
			kind = appliance.ErrInUse
		case errors.Is(err, fs.ErrNotExist):
			kind = appliance.ErrNotFound
		}
		return nil, &appliance.Error{Op: op, Kind: kind, Text: "backing", Err: err,
			Hint: "it must be an existing file or block device that nobody else uses"}
	}
	size := probe.Size()
	if err := probe.Close(); err != nil {
		return nil, fmt.Errorf("%s: %w", op, err)
	}
	if s.SizeBytes != 0 && s.SizeBytes != size {
		return nil, invalid("backing %s has %d bytes, not %d", s.Backing, size, s.SizeBytes)
	}
	s.SizeBytes = size
	e, err := r.admit(op, s)
	if err != nil {
		return nil, err
	}
	e.Backing = s.Backing
	r.change.Lock()
	defer r.change.Unlock()
	d := &Disk{entry: e, path: e.Backing}
	if d.reason = r.start(d); d.reason != nil {
		r.release(s.Name)
		return nil, fmt.Errorf("%s: %w", op, d.reason)
	}
	if err := r.save(e, false); err != nil {
		r.release(s.Name)
		return nil, errors.Join(fmt.Errorf("%s: %w", op, err), d.close())
	}
	return d, r.enter(op, d)
}

// admit checks a specification and reserves its name until enter or release.
func (r *Registry) admit(op string, s Spec) (Entry, error) {
	if err := appliance.CheckName("disk", s.Name); err != nil {
		return Entry{}, err
	}
	if s.Role == "" {
		s.Role = Data
	}
	var text string
	switch {
	case s.Role != Data && s.Role != Temporary:
		text = fmt.Sprintf("role %q is neither data nor temporary", s.Role)
	default:
		text = badSize(s.SizeBytes)
	}
	if text != "" {
		return Entry{}, &appliance.Error{Op: op, Kind: appliance.ErrInvalid, Text: text}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.closed:
		return Entry{}, &appliance.Error{Op: op, Kind: appliance.ErrUnavailable, Text: "the daemon is stopping"}
	case r.disks[s.Name] != nil || r.pending[s.Name]:
		return Entry{}, &appliance.Error{Op: op, Kind: appliance.ErrExists, Text: "a disk of this name exists",
			Hint: "choose another name, or keelblock disk delete " + s.Name}
	case r.exports[s.Name]:
		return Entry{}, &appliance.Error{Op: op, Kind: appliance.ErrExists, Text: "an export of this name exists",
			Hint: "choose another name, or keelblock unexport " + s.Name}
	case len(r.disks)+len(r.pending) >= MaxDisks:
		return Entry{}, &appliance.Error{Op: op, Kind: appliance.ErrInUse, Text: fmt.Sprintf("there are %d disks already, the limit", MaxDisks)}
	}
	r.pending[s.Name] = true
	return Entry{ID: NewID(), Name: s.Name, SizeBytes: s.SizeBytes, Role: s.Role, CreatedAt: time.Now().UTC().Truncate(time.Second)}, nil
}

func (r *Registry) release(name string) {
	r.mu.Lock()
	delete(r.pending, name)
	r.mu.Unlock()
}

// enter exports d and puts it into the tables. The list has it already, so d stays
// even when it can not be served; that is then the error.
func (r *Registry) enter(op string, d *Disk) error {
	if d.reason == nil {
		d.reason = r.export(d)
	}
	r.mu.Lock()
	r.disks[d.entry.Name] = d
	delete(r.pending, d.entry.Name)
	r.mu.Unlock()
	if d.reason != nil {
		return fmt.Errorf("%s: it is made but offline: %w", op, d.reason)
	}
	return nil
}

// Delete removes a disk that nobody uses: no machine, no connection, no job. A
// given backing stays as it is. Recovery points are not touched.
func (r *Registry) Delete(ctx context.Context, name string) error {
	op := fmt.Sprintf("delete disk %q", name)
	r.change.Lock()
	defer r.change.Unlock()
	d, err := r.Get(name)
	if err != nil {
		return err
	}
	if err := r.checkUnused(op, d); err != nil {
		return err
	}
	if d.file != nil {
		if err := r.o.Server.Remove(ctx, name); err != nil {
			// Requests of a client that came at this very moment do not end: it stays.
			again := r.o.Server.Add(r.exportOf(d))
			return fmt.Errorf("%s: %w", op, errors.Join(err, again))
		}
		if err := d.close(); err != nil {
			r.o.Logger.Warn("closing a disk that is being deleted", "disk", name, "error", err)
		}
	}
	r.put(&Disk{entry: d.entry, path: d.path, reason: errors.New("it is being deleted")})
	deleted := d.path + deletedSuffix
	own := d.entry.File != ""
	if own {
		err = os.Rename(d.path, deleted)
	}
	if err == nil || errors.Is(err, os.ErrNotExist) {
		err = r.save(d.entry, true)
	}
	if err != nil { // it is still a disk
		if own {
			err = errors.Join(err, os.Rename(deleted, d.path))
		}
		r.put(r.open(d.entry))
		return fmt.Errorf("%s: %w", op, err)
	}
	r.mu.Lock()
	delete(r.disks, name)
	r.mu.Unlock()
	r.forget(d.entry)
	if own {
		if err := localdisk.Remove(deleted); err != nil {
			return fmt.Errorf("%s: %w", op, err)
		}
	}
	return nil
}

// put enters d in the table.
func (r *Registry) put(d *Disk) {
	r.mu.Lock()
	r.disks[d.entry.Name] = d
	r.mu.Unlock()
}

func (r *Registry) checkUnused(op string, d *Disk) error {
	r.mu.RLock()
	defer r.mu.RUnlock()
	name := d.entry.Name
	switch {
	case !r.ownersKnown:
		return &appliance.Error{Op: op, Kind: appliance.ErrUnavailable,
			Text: "the catalog is closed, so it is not known whether a machine has the disk", Hint: "see keelblock status"}
	case r.owners[name] != "":
		m := r.owners[name]
		return &appliance.Error{Op: op, Kind: appliance.ErrInUse, Text: fmt.Sprintf("machine %q has it", m),
			Hint: fmt.Sprintf("keelblock machine edit %s --remove-disk %s", m, name)}
	case r.attached[d.entry.ID] != nil:
		return &appliance.Error{Op: op, Kind: appliance.ErrInUse, Text: "it is attached to " + r.attached[d.entry.ID].Device,
			Hint: "keelblock disk detach " + name}
	case d.holds.Load() > 0:
		return &appliance.Error{Op: op, Kind: appliance.ErrInUse, Text: "a job uses it", Hint: "see keelblock job list"}
	}
	if n := r.o.Server.Connections(name); n > 0 {
		return &appliance.Error{Op: op, Kind: appliance.ErrInUse, Text: fmt.Sprintf("NBD connections open to it: %d", n),
			Hint: "disconnect the guest first"}
	}
	return nil
}
