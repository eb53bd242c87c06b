package localdisk

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/keelblock/keelblock/blockdev"
)

// Resize implements blockdev.Resizer.
//
// The tail of a file that shrinks is punched first, in steps, so that the call that
// cuts the file, during which every request waits, finds nothing to free.
//
// A block device is resized by whoever made it; newSize must be what it has by now.
// What it gained holds anything, so it is zeroed before the new size is seen.
//
// A disk of several files is blockdev.ErrNotSupported.
func (d *Disk) Resize(newSize int64) error {
	err := checkSize(newSize)
	switch {
	case err != nil:
	case d.readOnly:
		err = blockdev.ErrReadOnly
	case d.parts != nil:
		err = fmt.Errorf("%w: it is a folder of several files", blockdev.ErrNotSupported)
	case d.isBlock:
		err = d.resizeBlock(newSize)
	default:
		err = d.resizeFile(newSize)
	}
	if err != nil {
		return fmt.Errorf("resize disk %q from %d to %d bytes: %w", d.path, d.Size(), newSize, err)
	}
	return nil
}

func (d *Disk) resizeFile(newSize int64) error {
	if old := d.Size(); newSize < old {
		if err := d.Trim(newSize, old-newSize); err != nil {
			return err
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return blockdev.ErrClosed
	}
	if d.Size() == newSize {
		return nil
	}
	if err := retry(func() error { return unix.Ftruncate(d.fd, newSize) }); err != nil {
		return noSpace(err)
	}
	d.size.Store(newSize)
	d.spare.Store(0)
	// Not fdatasync: the size is all that this is about.
	if err := retry(func() error { return unix.Fsync(d.fd) }); err != nil {
		err = fmt.Errorf("make the new size durable: %w", err)
		d.flushErr.CompareAndSwap(nil, &err)
		return err
	}
	return nil
}

func (d *Disk) resizeBlock(newSize int64) error {
	if err := d.enter(); err != nil {
		return err
	}
	has, err := blockDeviceSize(d.fd)
	d.leave()
	if err != nil {
		return err
	}
	old := d.Size()
	switch {
	case has != newSize:
		return fmt.Errorf("the block device has %d bytes: resize it first, or give that size", has)
	case newSize > old:
		if err := d.zeroGain(old, newSize); err != nil {
			return err
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return blockdev.ErrClosed
	}
	d.size.Store(newSize)
	return nil
}

// zeroGain zeroes [old, newSize) of a block device, which no request reaches yet.
func (d *Disk) zeroGain(old, newSize int64) error {
	for at := old; at < newSize; {
		step := min(newSize-at, stepBytes-at%stepBytes)
		if err := d.enter(); err != nil {
			return err
		}
		from, to := d.inner(at, step)
		err := error(nil)
		if from < to {
			err = errors.Join(d.zeroByWriting(at, from), d.zeroStep(from, to-from, true), d.zeroByWriting(to, at+step))
		} else {
			err = d.zeroByWriting(at, at+step)
		}
		d.leave()
		if err != nil {
			return err
		}
		at += step
	}
	return d.Flush()
}

// retry calls do again as long as a signal interrupts it.
func retry(do func() error) error {
	for {
		if err := do(); err != unix.EINTR {
			return err
		}
	}
}
