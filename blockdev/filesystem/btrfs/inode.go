package btrfs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/keelblock/keelblock/blockdev/filesystem"
)

const (
	inodeSize  = 160 // struct btrfs_inode_item
	refSize    = 10  // struct btrfs_inode_ref, without the name
	extrefSize = 18  // struct btrfs_inode_extref, without the name

	// objectEmptyDir is BTRFS_EMPTY_SUBVOL_DIR_OBJECTID.
	objectEmptyDir = 2

	flagNoDataSum = 1 << 0
)

// inode is what is used of struct btrfs_inode_item. It must not be changed.
type inode struct {
	v      *subvolume
	number filesystem.Inode
	object uint64
	parent filesystem.Inode // of the directory of a subvolume that is no more
	mode   uint32
	nlink  uint32
	size   int64
	blocks uint64 // bytes
	flags  uint64
	raw    []byte
}

func (in *inode) kind() filesystem.Type { return filesystem.Type(in.mode >> 12 & 0xF) }

// lost: the directory of a subvolume that is no more.
func (in *inode) lost() bool { return in.parent != 0 }

func isNotExist(err error) bool { return errors.Is(err, filesystem.ErrNotExist) }

// notExistIsCorrupt is for what must be there.
func notExistIsCorrupt(err error) error {
	if isNotExist(err) {
		return corruptf("%s", err)
	}
	return err
}

// inode reads the inode that a user names.
func (f *FS) inode(n filesystem.Inode) (*inode, error) {
	code, object, lost, ok := decode(n)
	switch {
	case !ok || object == 0:
		return nil, fmt.Errorf("inode %d: %w", n, filesystem.ErrNotExist)
	case lost:
		return f.lostInode(n)
	}
	v, err := f.subvolume(code)
	if err != nil {
		return nil, fmt.Errorf("inode %d: %w", n, err)
	}
	data, ok, err := f.get(&v.tree, key{object, typeInode, 0})
	if err == nil && !ok {
		err = filesystem.ErrNotExist
	}
	if err != nil {
		return nil, fmt.Errorf("inode %d: %w", n, err)
	}
	in, err := parseInode(data)
	if err != nil {
		return nil, fmt.Errorf("inode %d: %w", n, err)
	}
	in.v, in.number, in.object = v, n, object
	return in, nil
}

func parseInode(p []byte) (*inode, error) {
	if len(p) < inodeSize {
		return nil, corruptf("inode item of %d bytes", len(p))
	}
	le := binary.LittleEndian
	in := &inode{
		mode:   le.Uint32(p[52:]),
		nlink:  le.Uint32(p[40:]),
		size:   int64(le.Uint64(p[16:])),
		blocks: le.Uint64(p[24:]),
		flags:  le.Uint64(p[64:]),
		raw:    p,
	}
	if in.size < 0 {
		return nil, corruptf("size %d", uint64(in.size))
	}
	switch in.kind() {
	case filesystem.TypeFifo, filesystem.TypeChar, filesystem.TypeDir, filesystem.TypeBlock,
		filesystem.TypeRegular, filesystem.TypeSymlink, filesystem.TypeSocket:
		return in, nil
	}
	return nil, corruptf("mode %#o", in.mode)
}

// dirInode is inode for a directory.
func (f *FS) dirInode(n filesystem.Inode) (*inode, error) {
	in, err := f.inode(n)
	if err != nil {
		return nil, err
	}
	if in.kind() != filesystem.TypeDir {
		return nil, fmt.Errorf("inode %d: %w", n, filesystem.ErrNotDir)
	}
	return in, nil
}

// Getattr is stat(2).
func (f *FS) Getattr(ino filesystem.Inode) (filesystem.Attr, error) {
	in, err := f.inode(ino)
	if err != nil {
		return filesystem.Attr{}, fmt.Errorf("getattr: %w", err)
	}
	le := binary.LittleEndian
	sector := uint64(f.super.sectorSize)
	a := filesystem.Attr{
		Inode:      ino,
		Type:       in.kind(),
		Perm:       uint16(in.mode & 0o7777),
		Nlink:      in.nlink,
		UID:        le.Uint32(in.raw[44:]),
		GID:        le.Uint32(in.raw[48:]),
		Size:       in.size,
		Blocks:     int64((in.blocks&(1<<62-1) + sector - 1) &^ (sector - 1) >> 9),
		Atime:      in.time(112),
		Ctime:      in.time(124),
		Mtime:      in.time(136),
		Birth:      in.time(148),
		Generation: uint32(le.Uint64(in.raw)),
	}
	if a.Type == filesystem.TypeDir {
		a.Nlink = 1
	}
	if a.Type == filesystem.TypeChar || a.Type == filesystem.TypeBlock {
		d := le.Uint32(in.raw[56:]) // the kernel's own dev_t
		a.RdevMajor, a.RdevMinor = d>>20, d&(1<<20-1)
	}
	return a, nil
}

func (in *inode) time(at int) time.Time {
	le := binary.LittleEndian
	return time.Unix(int64(le.Uint64(in.raw[at:])), int64(le.Uint32(in.raw[at+8:])))
}

// maxLink is PATH_MAX without the NUL.
const maxLink = 4095

// Readlink is the target of a symbolic link.
func (f *FS) Readlink(ino filesystem.Inode) ([]byte, error) {
	in, err := f.inode(ino)
	if err != nil {
		return nil, fmt.Errorf("readlink: %w", err)
	}
	if in.kind() != filesystem.TypeSymlink {
		return nil, fmt.Errorf("readlink: inode %d: %w", ino, filesystem.ErrInvalid)
	}
	if in.size == 0 || in.size > maxLink {
		return nil, fmt.Errorf("readlink: inode %d: %w", ino, corruptf("target of %d bytes", in.size))
	}
	target := make([]byte, in.size)
	if _, err := f.readFile(in, target, 0); err != nil {
		return nil, fmt.Errorf("readlink: %w", err)
	}
	for _, c := range target {
		if c == 0 {
			return nil, fmt.Errorf("readlink: inode %d: %w", ino, corruptf("target has a NUL byte"))
		}
	}
	return target, nil
}
