package btrfs

import (
	"fmt"
	"io"

	"github.com/keelblock/keelblock/blockdev/filesystem"
)

// maxSteps bounds how many extents NextData, NextHole and Map look at. Where more
// would be needed they say "data", which is always allowed: a caller then reads
// zeros, or asks again further on.
const maxSteps = 1 << 17

// regular is inode for a regular file.
func (f *FS) regular(n filesystem.Inode) (*inode, error) {
	in, err := f.inode(n)
	if err != nil {
		return nil, err
	}
	switch in.kind() {
	case filesystem.TypeRegular:
		return in, nil
	case filesystem.TypeDir:
		return nil, fmt.Errorf("inode %d: %w", n, filesystem.ErrIsDir)
	}
	return nil, fmt.Errorf("inode %d: %w", n, filesystem.ErrInvalid)
}

// ReadAt reads a regular file.
func (f *FS) ReadAt(ino filesystem.Inode, p []byte, off int64) (int, error) {
	in, err := f.regular(ino)
	if err != nil {
		return 0, fmt.Errorf("read: %w", err)
	}
	if off < 0 {
		return 0, fmt.Errorf("read inode %d at %d: %w", ino, off, filesystem.ErrInvalid)
	}
	n, err := f.readFile(in, p, off)
	if err != nil && err != io.EOF {
		return n, fmt.Errorf("read: %w", err)
	}
	return n, err
}

// readFile reads the contents of in into p.
func (f *FS) readFile(in *inode, p []byte, off int64) (int, error) {
	if off >= in.size {
		if len(p) == 0 {
			return 0, nil
		}
		return 0, io.EOF
	}
	var atEnd error
	if int64(len(p)) > in.size-off {
		p, atEnd = p[:in.size-off], io.EOF
	}
	n := 0
	err := f.extents(in, uint64(off), func(e *extent) (bool, error) {
		at := uint64(off) + uint64(n)
		if e.start > at {
			gap := int(min(e.start-at, uint64(len(p)-n)))
			clear(p[n : n+gap])
			n, at = n+gap, at+uint64(gap)
		}
		if n == len(p) {
			return false, nil
		}
		part := p[n:]
		part = part[:min(uint64(len(part)), e.end()-at)]
		done, err := f.readExtent(in, e, at-e.start, part)
		n += done
		return n < len(p), err
	})
	if err != nil {
		return n, err
	}
	clear(p[n:])
	return len(p), atEnd
}

// readExtent reads p from an offset in an extent and tells how much of it is good.
func (f *FS) readExtent(in *inode, e *extent, off uint64, p []byte) (int, error) {
	sums := in.flags&flagNoDataSum == 0
	switch {
	case !e.data():
		clear(p)
		return len(p), nil
	case e.kind == extentInline || e.compression != 0:
		whole, err := f.whole(e, sums)
		if err != nil {
			return 0, fmt.Errorf("extent at %d: %w", e.start, err)
		}
		n := 0
		if from := e.within + off; from < uint64(len(whole)) {
			n = copy(p, whole[from:])
		}
		clear(p[n:])
		return len(p), nil
	}
	n, err := f.readData(e.disk+e.within+off, p, sums)
	if err != nil {
		return n, fmt.Errorf("extent at %d: %w", e.start, err)
	}
	return n, nil
}

// NextData is SEEK_DATA. Preallocated extents are holes, as the kernel shows them
// when nothing of them is in its page cache.
func (f *FS) NextData(ino filesystem.Inode, off int64) (int64, error) {
	in, err := f.regular(ino)
	if err != nil {
		return 0, fmt.Errorf("seek data: %w", err)
	}
	if off < 0 || off >= in.size {
		return 0, fmt.Errorf("seek data: inode %d at %d: %w", ino, off, filesystem.ErrNoData)
	}
	found, steps := int64(-1), 0
	err = f.extents(in, uint64(off), func(e *extent) (bool, error) {
		if steps++; e.data() || steps > maxSteps {
			found = max(off, int64(e.start))
		}
		return found < 0, nil
	})
	if err == nil && (found < 0 || found >= in.size) {
		err = fmt.Errorf("inode %d at %d: %w", ino, off, filesystem.ErrNoData)
	}
	if err != nil {
		return 0, fmt.Errorf("seek data: %w", err)
	}
	return found, nil
}

// NextHole is SEEK_HOLE.
func (f *FS) NextHole(ino filesystem.Inode, off int64) (int64, error) {
	in, err := f.regular(ino)
	if err != nil {
		return 0, fmt.Errorf("seek hole: %w", err)
	}
	if off < 0 || off >= in.size {
		return 0, fmt.Errorf("seek hole: inode %d at %d: %w", ino, off, filesystem.ErrNoData)
	}
	at, steps := uint64(off), 0
	err = f.extents(in, at, func(e *extent) (bool, error) {
		if steps++; steps > maxSteps {
			at = uint64(in.size)
		}
		if e.start > at || !e.data() {
			return false, nil
		}
		at = max(at, e.end())
		return at < uint64(in.size), nil
	})
	if err != nil {
		return 0, fmt.Errorf("seek hole: %w", err)
	}
	return min(int64(at), in.size), nil
}
