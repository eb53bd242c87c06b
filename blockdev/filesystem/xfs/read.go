package xfs

import (
	"fmt"
	"io"

	"github.com/keelblock/keelblock/blockdev/filesystem"
)

// maxSteps bounds how many runs NextData and NextHole look at. Where more would be
// needed they say "data", which is always allowed: a caller then reads zeros, or
// asks again further on.
const maxSteps = 1 << 16

// regular is fileInode for a regular file that can be read.
func (f *FS) regular(n filesystem.Inode) (*inode, error) {
	in, err := f.fileInode(n)
	if err != nil {
		return nil, err
	}
	switch in.kind() {
	case filesystem.TypeRegular:
	case filesystem.TypeDir:
		return nil, fmt.Errorf("inode %d: %w", n, filesystem.ErrIsDir)
	default:
		return nil, fmt.Errorf("inode %d: %w", n, filesystem.ErrInvalid)
	}
	if in.realtime() {
		return nil, unsupportedf("inode %d: file on the realtime device, which is another disk", n)
	}
	return in, nil
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

// readFile reads the contents of in straight into p.
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
	bits := f.super.blockBits
	n := 0
	for n < len(p) {
		at := off + int64(n)
		r, err := f.mapBlock(&in.data, uint64(at)>>bits)
		if err != nil {
			return n, err
		}
		within := uint64(at) & (1<<bits - 1)
		part := p[n:]
		if have := r.blocks<<bits - within; r.blocks < maxLogical>>bits && uint64(len(part)) > have {
			part = part[:have]
		}
		if r.kind == runData {
			if err := f.readFull(part, int64(r.block<<bits+within)); err != nil {
				return n, fmt.Errorf("inode %d: read block %d: %w", in.num, r.block, err)
			}
		} else {
			clear(part)
		}
		n += len(part)
	}
	return n, atEnd
}

// NextData is SEEK_DATA. Unwritten extents are holes, as the kernel shows them when
// nothing of them is in its page cache.
func (f *FS) NextData(ino filesystem.Inode, off int64) (int64, error) {
	return f.seek("seek data", ino, off, true)
}

// NextHole is SEEK_HOLE.
func (f *FS) NextHole(ino filesystem.Inode, off int64) (int64, error) {
	return f.seek("seek hole", ino, off, false)
}

func (f *FS) seek(op string, ino filesystem.Inode, off int64, wantData bool) (int64, error) {
	in, err := f.regular(ino)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", op, err)
	}
	if off < 0 || off >= in.size {
		return 0, fmt.Errorf("%s: inode %d at %d: %w", op, ino, off, filesystem.ErrNoData)
	}
	bits := f.super.blockBits
	at := off
	for range maxSteps {
		b := uint64(at) >> bits
		r, err := f.mapBlock(&in.data, b)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", op, err)
		}
		if (r.kind == runData) == wantData {
			return at, nil
		}
		if b += r.blocks; b >= (uint64(in.size)+1<<bits-1)>>bits {
			if wantData {
				return 0, fmt.Errorf("%s: inode %d at %d: %w", op, ino, off, filesystem.ErrNoData)
			}
			return in.size, nil
		}
		at = int64(b << bits)
	}
	if wantData {
		return at, nil
	}
	return in.size, nil
}
