package disks

import (
	"context"
	"errors"
	"fmt"

	"github.com/keelblock/keelblock/appliance"
	"github.com/keelblock/keelblock/blockdev"
)

// A resize is durable step by step, so that a kill at any of them leaves a disk that the
// next start serves: the list says the old size and resizeTo; the tracker announces,
// resizes and settles (cbt.Tracker.Resize); the list says the new size. In between the
// file has one of the two sizes, and Open takes the one that it has.

// CheckResize says whether a disk could get a size: what it loses by shrinking must be
// meant.
func (r *Registry) CheckResize(name string, sizeBytes int64, shrink bool) error {
	d, err := r.Get(name)
	if err != nil {
		return err
	}
	return r.checkResize(fmt.Sprintf("resize disk %q", name), d, sizeBytes, shrink)
}

func (r *Registry) checkResize(op string, d *Disk, sizeBytes int64, shrink bool) error {
	if text := badSize(sizeBytes); text != "" {
		return &appliance.Error{Op: op, Kind: appliance.ErrInvalid, Text: text}
	}
	old := d.Entry().SizeBytes
	switch {
	case d.file == nil:
		return &appliance.Error{Op: op, Kind: appliance.ErrInUse, Text: fmt.Sprintf("it is offline: %v", d.reason)}
	case d.untracked != nil:
		return &appliance.Error{Op: op, Kind: appliance.ErrInUse, Text: "it is served untracked", Hint: "free space and start the daemon again"}
	case sizeBytes < old && !shrink:
		return &appliance.Error{Op: op, Kind: appliance.ErrInvalid,
			Text: fmt.Sprintf("it has %d bytes; the last %d of them would be lost", old, old-sizeBytes), Hint: "if that is meant, add --yes"}
	}
	return nil
}

// badSize says what is wrong with the size of a disk, or "".
func badSize(sizeBytes int64) string {
	switch {
	case sizeBytes <= 0:
		return fmt.Sprintf("size of %d bytes; a disk has at least %d", sizeBytes, blockdev.SectorSize)
	case sizeBytes%blockdev.SectorSize != 0:
		return fmt.Sprintf("size of %d bytes is not a multiple of %d", sizeBytes, blockdev.SectorSize)
	case sizeBytes > blockdev.MaxSize:
		return fmt.Sprintf("size of %d bytes is more than 2 PiB", sizeBytes)
	}
	return ""
}

// Resize gives a disk another size while it is served. The caller holds its slot.
// Connections that are open keep the size that they negotiated, and get errors past the
// end of a disk that shrank. An attached device of the host follows.
func (r *Registry) Resize(ctx context.Context, name string, sizeBytes int64, shrink bool) (*Disk, error) {
	op := fmt.Sprintf("resize disk %q", name)
	r.change.Lock()
	defer r.change.Unlock()
	d, err := r.Get(name)
	if err != nil {
		return nil, err
	}
	if err := r.checkResize(op, d, sizeBytes, shrink); err != nil {
		return nil, err
	}
	e := d.Entry()
	old := e.SizeBytes
	if sizeBytes == old && e.ResizeTo == 0 {
		return d, nil
	}
	if sizeBytes < old {
		if err := r.resizeDevice(op, d, sizeBytes); err != nil {
			return nil, err
		}
	}
	e.ResizeTo = sizeBytes
	if err := r.save(e, false); err != nil {
		return nil, fmt.Errorf("%s: %w", op, err)
	}
	if d.tracker != nil {
		err = d.tracker.Resize(ctx, sizeBytes)
	} else {
		err = d.file.Resize(sizeBytes)
	}
	// After an error the disk has one of the two sizes, and after a power cut perhaps the
	// other: the list goes on naming both.
	has := d.Device().Size()
	other := sizeBytes
	if has == sizeBytes {
		other = old
	}
	r.set(d, func(in *Entry) { in.SizeBytes, in.ResizeTo = has, other })
	if err == nil {
		e.SizeBytes, e.ResizeTo = has, 0
		if err = r.save(e, false); err == nil {
			r.set(d, func(in *Entry) { in.ResizeTo = 0 })
		}
	}
	if has > old {
		err = errors.Join(err, r.resizeDevice(op, d, has))
	}
	if err != nil {
		return nil, &appliance.Error{Op: op, Err: err, Hint: fmt.Sprintf("it has %d bytes now; run it again", has)}
	}
	r.o.Logger.Info("disk has another size", "disk", name, "from", old, "bytes", sizeBytes)
	return d, nil
}

// set changes what may change in the entry of a disk. Registry.change is held.
func (r *Registry) set(d *Disk, change func(*Entry)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	d.mu.Lock()
	defer d.mu.Unlock()
	change(&d.entry)
}

// settleSize takes the size that a resize which was cut short has left, or returns an
// error when the file has neither.
func (d *Disk) settleSize(has int64) error {
	if has != d.entry.SizeBytes && (d.entry.ResizeTo == 0 || has != d.entry.ResizeTo) {
		return fmt.Errorf("%s has %d bytes, the list of disks says %d", d.path, has, d.entry.SizeBytes)
	}
	d.entry.SizeBytes = has
	return nil
}

// settleSizes makes durable which sizes the disks have after resizes that were cut
// short. A failure is none of the start: the next one finds the same.
func (r *Registry) settleSizes() {
	for _, d := range r.List() {
		if d.entry.ResizeTo == 0 || d.file == nil {
			continue
		}
		d.entry.ResizeTo = 0
		r.o.Logger.Warn("a resize was cut short", "disk", d.entry.Name, "bytes", d.entry.SizeBytes)
		if err := r.save(d.entry, false); err != nil {
			r.o.Logger.Error("the list of disks is not written", "disk", d.entry.Name, "error", err)
		}
	}
}
