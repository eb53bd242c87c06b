package ext

import (
	"encoding/binary"
	"fmt"

	"github.com/keelblock/keelblock/blockdev/filesystem"
)

// Inline data, fs/ext4/inline.c: the first 60 bytes stand in i_block, the rest is
// the value of the attribute "system.data", which is always inside the inode.

// inlineRest is the value of that attribute, or nothing.
func (f *FS) inlineRest(in *inode) ([]byte, error) {
	entries, err := f.bodyXattrs(in)
	if err != nil {
		return nil, err
	}
	for _, x := range entries {
		if x.index == xattrSystem && x.suffix == "data" {
			if x.valueInode != 0 {
				return nil, corruptf("inline data in another inode")
			}
			return x.value, nil
		}
	}
	return nil, nil
}

// readInline fills p from off. What lies between the data and the end of the file
// reads as zeros, as in ext4_read_inline_folio: a file that was made longer by
// truncate stays as it is until something is written.
func (f *FS) readInline(in *inode, p []byte, off int64) error {
	rest, err := f.inlineRest(in)
	if err != nil {
		return fmt.Errorf("inode %d: %w", in.num, err)
	}
	n := 0
	if off < inodeBlockSize {
		n = copy(p, in.block()[off:])
	}
	if at := off + int64(n) - inodeBlockSize; n < len(p) && at < int64(len(rest)) {
		n += copy(p[n:], rest[at:])
	}
	clear(p[n:])
	return nil
}

// An inline directory has no "." and "..": i_block begins with the parent's number,
// then come entries, up to the end of i_block; further entries fill the attribute.
const inlineDirStart = 4

// inlineDirAreas are the two areas of entries. Positions, and so cookies, count the
// second from inodeBlockSize.
func (f *FS) inlineDirAreas(in *inode) ([2][]byte, error) {
	rest, err := f.inlineRest(in)
	return [2][]byte{in.block()[inlineDirStart:], rest}, err
}

func (f *FS) readInlineDir(in *inode, cookie uint64, yield func(filesystem.Dirent) bool) error {
	areas, err := f.inlineDirAreas(in)
	if err != nil {
		return err
	}
	for i, base := range []uint64{inlineDirStart, inodeBlockSize} {
		if more, err := f.yieldDirents(areas[i], base, cookie, yield); err != nil || !more {
			return err
		}
	}
	return nil
}

func (f *FS) lookupInline(in *inode, name []byte) (uint32, error) {
	areas, err := f.inlineDirAreas(in)
	if err != nil {
		return 0, err
	}
	for _, area := range areas {
		if n, err := f.lookupDirents(area, name); n != 0 || err != nil {
			return n, err
		}
	}
	return 0, filesystem.ErrNotExist
}

// Readlink is the target of a symbolic link: in i_block when it is shorter than
// that, inline, or in a block.
func (f *FS) Readlink(ino filesystem.Inode) ([]byte, error) {
	in, err := f.fileInode(ino)
	if err != nil {
		return nil, fmt.Errorf("readlink: %w", err)
	}
	target, err := f.readlink(in)
	if err != nil {
		return nil, fmt.Errorf("readlink: inode %d: %w", ino, err)
	}
	return target, nil
}

func (f *FS) readlink(in *inode) ([]byte, error) {
	switch {
	case in.kind() != filesystem.TypeSymlink:
		return nil, filesystem.ErrInvalid
	case in.has(flagEncrypt):
		return nil, unsupportedf("encrypted symbolic link")
	case in.size == 0 || in.size > f.super.blockSize:
		return nil, corruptf("symbolic link of %d bytes", in.size)
	}
	target := make([]byte, in.size)
	if f.fastSymlink(in) {
		copy(target, in.block())
	} else if n, err := f.readFile(in, target, 0); err != nil || n < len(target) {
		return nil, err
	}
	for _, b := range target {
		if b == 0 {
			return nil, corruptf("symbolic link with a NUL byte")
		}
	}
	return target, nil
}

// fastSymlink: the target stands in i_block (ext4_inode_is_fast_symlink). A short
// link that has blocks is not fast: old kernels wrote such.
func (f *FS) fastSymlink(in *inode) bool {
	if in.has(flagInlineData) || in.size >= inodeBlockSize {
		return false
	}
	if f.super.has(incompatEAInode) {
		return true // its blocks may be those of attributes
	}
	sectors := in.sectors
	if in.fileACL != 0 {
		sectors -= min(sectors, f.super.clusterRatio<<(f.super.blockBits-9))
	}
	return sectors == 0 || (in.has(flagExtents) && binary.LittleEndian.Uint16(in.block()) != extentMagic)
}
