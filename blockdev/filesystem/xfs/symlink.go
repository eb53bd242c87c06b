package xfs

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/keelblock/keelblock/blockdev/filesystem"
)

const (
	// maxSymlink is XFS_SYMLINK_MAXLEN.
	maxSymlink   = 1024
	symlinkMagic = 0x58534C4D // "XSLM"
)

// Readlink is the target of a symbolic link.
func (f *FS) Readlink(ino filesystem.Inode) ([]byte, error) {
	in, err := f.fileInode(ino)
	if err != nil {
		return nil, fmt.Errorf("readlink: %w", err)
	}
	if in.kind() != filesystem.TypeSymlink {
		return nil, fmt.Errorf("readlink: inode %d: %w", ino, filesystem.ErrInvalid)
	}
	target := bytes.Clone(in.data.raw[:min(int(in.size), len(in.data.raw))])
	if in.data.format != formatLocal {
		if target, err = f.remoteLink(in); err != nil {
			return nil, fmt.Errorf("readlink: inode %d: %w", ino, err)
		}
	}
	if bytes.IndexByte(target, 0) >= 0 {
		return nil, fmt.Errorf("readlink: inode %d: %w", ino, corruptf("target has a NUL byte"))
	}
	return target, nil
}

// remoteLink reads a target outside the inode. In version 5 each extent has a
// header (xfs_symlink_remote_read).
func (f *FS) remoteLink(in *inode) ([]byte, error) {
	be := binary.BigEndian
	bits := f.super.blockBits
	target := make([]byte, 0, in.size)
	for b := uint64(0); len(target) < int(in.size); {
		r, err := f.mapBlock(&in.data, b)
		if err != nil {
			return nil, err
		}
		if r.kind != runData || r.blocks<<bits > 16<<bits {
			return nil, corruptf("target has a hole or %d blocks", r.blocks)
		}
		p, err := f.readBlocks(r.block, r.blocks)
		if err != nil {
			return nil, err
		}
		want := int(in.size) - len(target)
		if f.super.v5 {
			if err := f.verify(p, headerRemote, r.block, in.num, f.recovered(r.block, r.blocks)); err != nil {
				return nil, fmt.Errorf("target in block %d: %w", r.block, err)
			}
			want = min(want, len(p)-headerRemote.size)
			if be.Uint32(p) != symlinkMagic || int(be.Uint32(p[4:])) != len(target) || int(be.Uint32(p[8:])) < want {
				return nil, corruptf("target in block %d: magic %#x, %d bytes at %d", r.block, be.Uint32(p), be.Uint32(p[8:]), be.Uint32(p[4:]))
			}
			p = p[headerRemote.size:]
		}
		target = append(target, p[:min(want, len(p))]...)
		b += r.blocks
	}
	return target, nil
}
