package localdisk

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/keelblock/keelblock/blockdev"
)

// segmentBytes is the size of the files of a segmented disk, the last excepted. ext4
// ends files at 16 TiB with blocks of 4 KiB and just below 4 TiB with blocks of
// 1 KiB (Documentation/filesystems/ext4 of Linux).
const segmentBytes = 2 << 40

// segmentName is the name of the i-th file in the folder of a segmented disk.
func segmentName(i int) string { return fmt.Sprintf("%06d.seg", i) }

// createSegments makes path a folder of sparse files that are the disk one after the
// other. Files and names are durable when it returns; after an error nothing is left.
func createSegments(path string, size, segment int64) (err error) {
	if err := os.Mkdir(path, 0o700); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(path))
		}
	}()
	for i := 0; size > 0; i++ {
		n := min(size, segment)
		if err := createFile(filepath.Join(path, segmentName(i)), n); err != nil {
			return err
		}
		size -= n
	}
	return errors.Join(syncDir(path), syncDir(filepath.Dir(path)))
}

// openSegments opens a folder that createSegments made. All files but the last have
// one size; a folder with a gap, or with anything else in it, is refused.
func openSegments(path string, o Options) (_ *Disk, err error) {
	names, err := os.ReadDir(path)
	if err != nil {
		return nil, errors.Unwrap(err)
	}
	d := &Disk{path: path, fd: -1, readOnly: o.ReadOnly}
	defer func() {
		if err != nil {
			err = errors.Join(err, closeAll(d.parts))
		}
	}()
	for i, n := range names {
		if n.Name() != segmentName(i) {
			return nil, fmt.Errorf("folder of a segmented disk has %q where %q was expected", n.Name(), segmentName(i))
		}
	}
	for i, n := range names {
		part, err := open(filepath.Join(path, n.Name()), o)
		if err != nil {
			return nil, fmt.Errorf("segment %d: %w", i, err)
		}
		d.parts = append(d.parts, part)
		if i == 0 {
			d.segment = part.Size()
		}
		n := part.Size()
		if last := i == len(names)-1; n > d.segment || n < d.segment && !last || n == 0 {
			return nil, fmt.Errorf("segment %d of %d has %d bytes, the first has %d", i, len(names), n, d.segment)
		}
		d.size.Add(n)
	}
	if len(d.parts) == 0 {
		return nil, errors.New("an empty folder is no disk")
	}
	return d, checkSize(d.Size())
}

func closeAll(parts []*Disk) error {
	var errs []error
	for _, p := range parts {
		errs = append(errs, p.Close())
	}
	return errors.Join(errs...)
}

// across calls do for each segment that [off, off+n) meets, in order, with the range
// inside of that segment and the number of bytes before it, and adds up what do did.
func (d *Disk) across(off, n int64, do func(part *Disk, off, n, before int64) (int, error)) (int, error) {
	done := int64(0)
	for done < n {
		i, at := (off+done)/d.segment, (off+done)%d.segment
		part := d.parts[i]
		k, err := do(part, at, min(n-done, part.Size()-at), done)
		if err != nil {
			return int(done) + k, err
		}
		done += min(n-done, part.Size()-at)
	}
	return int(done), nil
}

// acrossRange is across for a request that either succeeds or not.
func (d *Disk) acrossRange(op string, off, n int64, do func(part *Disk, off, n int64) error) error {
	if err := blockdev.CheckRange(off, n, d.Size()); err != nil {
		return d.fail(op, off, n, err)
	}
	_, err := d.across(off, n, func(part *Disk, off, n, _ int64) (int, error) { return 0, do(part, off, n) })
	return err
}

// acrossBytes is across for a request with data.
func (d *Disk) acrossBytes(op string, p []byte, off int64, do func(part *Disk, p []byte, off int64) (int, error)) (int, error) {
	if err := blockdev.CheckRange(off, int64(len(p)), d.Size()); err != nil {
		return 0, d.fail(op, off, int64(len(p)), err)
	}
	return d.across(off, int64(len(p)), func(part *Disk, off, n, before int64) (int, error) {
		return do(part, p[before:before+n], off)
	})
}

// segmentExtents is Extents of a segmented disk.
func (d *Disk) segmentExtents(off, n int64, yield func(blockdev.Extent, blockdev.ExtentStatus) bool) error {
	stopped := false
	return d.acrossRange("list extents of", off, n, func(part *Disk, off, n int64) error {
		if stopped {
			return nil
		}
		base := d.offsetOf(part)
		return part.Extents(off, n, func(e blockdev.Extent, s blockdev.ExtentStatus) bool {
			e.Offset += base
			stopped = !yield(e, s)
			return !stopped
		})
	})
}

func (d *Disk) offsetOf(part *Disk) int64 {
	for i, p := range d.parts {
		if p == part {
			return int64(i) * d.segment
		}
	}
	return 0
}

// flushSegments makes all segments durable, also when one fails.
func (d *Disk) flushSegments() error {
	var errs []error
	for _, p := range d.parts {
		errs = append(errs, p.Flush())
	}
	return errors.Join(errs...)
}

// segmentWitness is the sum over the segments: it changes when one of them does.
func (d *Disk) segmentWitness() (w Witness, ok bool) {
	for _, p := range d.parts {
		v, ok := p.Witness()
		if !ok {
			return Witness{}, false
		}
		w.Inode += v.Inode
		w.Size += v.Size
		w.MtimeNanos += v.MtimeNanos // wraps, and is only compared
		w.CtimeNanos += v.CtimeNanos
	}
	return w, true
}

// createFile makes one sparse file, durable but for its name.
func createFile(path string, size int64) (err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(path)
		}
	}()
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		return err
	}
	return f.Sync()
}

// tooLarge reports whether a file system refused a file only for its size.
func tooLarge(err error) bool { return errors.Is(err, unix.EFBIG) }
