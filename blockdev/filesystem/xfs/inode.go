package xfs

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/keelblock/keelblock/blockdev/filesystem"
	"github.com/keelblock/keelblock/blockdev/filesystem/lru"
)

// Formats of a fork (enum xfs_dinode_fmt).
const (
	formatDevice  = 0
	formatLocal   = 1
	formatExtents = 2
	formatBtree   = 3
)

const (
	inodeMagic = 0x494E // "IN"

	// inodeCoreV2 and inodeCoreV3 are where the forks begin.
	inodeCoreV2 = 100
	inodeCoreV3 = 176
	inodeCRC    = 100

	inodeFlagRealtime = 1 << 0 // di_flags

	flags2Bigtime  = 1 << 3
	flags2Nrext64  = 1 << 4
	flags2Metadata = 1 << 5

	// inodeChunk is how much is read around an inode, in bytes: 64 inodes of 512.
	inodeChunk = 32 << 10
)

// inode is a verified inode.
type inode struct {
	num     uint64
	mode    uint16
	version uint8
	nlink   uint32
	flags   uint16
	flags2  uint64
	size    int64
	blocks  uint64
	data    fork
	attr    fork // format formatExtents without extents when there is none
	raw     []byte
}

func (in *inode) kind() filesystem.Type { return filesystem.Type(in.mode >> 12) }

// realtime: the data stands on another device, which a volume does not have.
func (in *inode) realtime() bool {
	return in.kind() == filesystem.TypeRegular && in.flags&inodeFlagRealtime != 0
}

// fork is the data or the attributes of an inode.
type fork struct {
	owner   uint64 // inode
	attr    bool
	format  uint8
	raw     []byte // the literal area
	extents uint64 // how many, as the inode says
	// foreign: the blocks of the map may carry another owner (see recovery).
	foreign bool
	// list replaces what raw says, when the log changed the map (see intent.go).
	list []mapping
}

// inode reads and verifies inode n. One that is not in use is ErrNotExist.
func (f *FS) inode(n uint64) (*inode, error) {
	key := lru.Key{Class: classInode, A: n}
	if in, ok := lru.Get[*inode](f.cache, key); ok {
		return in, nil
	}
	raw, err := f.rawInode(n)
	if err != nil {
		return nil, err
	}
	in, err := f.parseInode(n, raw)
	if err != nil {
		return nil, fmt.Errorf("inode %d: %w", n, err)
	}
	f.cache.Put(key, in, len(in.raw)+256)
	return in, nil
}

// rawInode is a copy of the bytes of inode n. It reads its neighbours too: those of
// one directory mostly stand together. What of them is no inode does no harm, since
// each is verified when it is used.
func (f *FS) rawInode(n uint64) ([]byte, error) {
	s := f.super
	block, offset, ok := s.inodePlace(n)
	if !ok {
		return nil, fmt.Errorf("inode %d: %w", n, filesystem.ErrNotExist)
	}
	chunkBlocks := uint64(max(inodeChunk>>s.blockBits, 1))
	group := block / uint64(s.agBlocks) * uint64(s.agBlocks)
	first := group + (block-group)/chunkBlocks*chunkBlocks
	key := lru.Key{Class: classChunk, A: first}
	chunk, ok := lru.Get[[]byte](f.cache, key)
	if !ok {
		var err error
		if chunk, err = f.readBlocks(first, min(chunkBlocks, s.blocks-first)); err != nil {
			return nil, fmt.Errorf("inode %d: %w", n, err)
		}
		f.cache.Put(key, chunk, len(chunk))
	}
	at := int(block-first)<<s.blockBits + offset
	raw := make([]byte, s.inodeSize)
	copy(raw, chunk[at:])
	return raw, nil
}

// parseInode follows xfs_dinode_verify.
func (f *FS) parseInode(n uint64, raw []byte) (*inode, error) {
	be := binary.BigEndian
	if be.Uint16(raw) != inodeMagic {
		return nil, corruptf("there is no inode")
	}
	in := &inode{
		num: n, mode: be.Uint16(raw[2:]), version: raw[4],
		nlink: be.Uint32(raw[16:]), flags: be.Uint16(raw[90:]),
		blocks: be.Uint64(raw[64:]), raw: raw,
	}
	size := be.Uint64(raw[56:])
	if err := f.checkInodeSelf(in); err != nil {
		return nil, err
	}
	if in.mode == 0 {
		return nil, fmt.Errorf("not in use: %w", filesystem.ErrNotExist)
	}
	if in.version == 1 {
		in.nlink = uint32(be.Uint16(raw[6:]))
	}
	if size>>63 != 0 {
		return nil, corruptf("size %d", size)
	}
	in.size = int64(size)
	if in.flags2&flags2Metadata != 0 {
		return nil, fmt.Errorf("is internal to the file system: %w", filesystem.ErrNotExist)
	}
	if why := f.replayed.refused[n]; why != "" {
		return nil, unsupportedf("%s when the guest stopped; the guest has to finish it", why)
	}
	return in, f.parseForks(in)
}

func (f *FS) checkInodeSelf(in *inode) error {
	be := binary.BigEndian
	if (in.version == 3) != f.super.v5 || in.version == 0 || in.version > 3 {
		return corruptf("inode of version %d", in.version)
	}
	if in.version < 3 {
		return nil
	}
	in.flags2 = be.Uint64(in.raw[120:])
	switch {
	case !crcOK(in.raw, inodeCRC):
		return corruptf("checksum is wrong")
	case be.Uint64(in.raw[152:]) != in.num:
		return corruptf("inode says that it is %d", be.Uint64(in.raw[152:]))
	case [16]byte(in.raw[160:176]) != f.super.metaUUID:
		return corruptf("inode belongs to another file system")
	}
	return nil
}

// parseForks cuts the rest of the inode into data and attributes.
func (f *FS) parseForks(in *inode) error {
	be := binary.BigEndian
	core := inodeCoreV2
	if in.version == 3 {
		core = inodeCoreV3
	}
	literal := in.raw[core:]
	split := len(literal)
	if off := int(in.raw[82]) << 3; off != 0 {
		if off >= len(literal) {
			return corruptf("attributes begin at %d of %d", off, len(literal))
		}
		split = off
	}
	in.data = fork{owner: in.num, format: in.raw[5], raw: literal[:split:split], extents: uint64(be.Uint32(in.raw[76:]))}
	in.attr = fork{owner: in.num, attr: true, format: in.raw[83], raw: literal[split:], extents: uint64(be.Uint16(in.raw[80:]))}
	if in.flags2&flags2Nrext64 != 0 {
		in.data.extents, in.attr.extents = be.Uint64(in.raw[24:]), uint64(be.Uint32(in.raw[76:]))
	}
	if split == len(literal) {
		if in.attr.extents != 0 {
			return corruptf("%d extents of attributes without room for them", in.attr.extents)
		}
		in.attr.format = formatExtents
	}
	if err := f.checkDataFormat(in); err != nil {
		return err
	}
	if !in.realtime() {
		if err := f.checkFork(&in.data); err != nil {
			return err
		}
	}
	if err := f.checkFork(&in.attr); err != nil {
		return err
	}
	if f.replayed.foreign[in.num] {
		in.data.foreign, in.attr.foreign = true, true
	}
	return f.remap(in)
}

// checkDataFormat: each type of file has its formats, and a size that fits them.
func (f *FS) checkDataFormat(in *inode) error {
	format := in.data.format
	ok := false
	switch in.kind() {
	case filesystem.TypeRegular:
		ok = format == formatExtents || format == formatBtree
	case filesystem.TypeSymlink:
		ok = (format == formatLocal || format == formatExtents) && in.size > 0 && in.size <= maxSymlink
	case filesystem.TypeDir:
		ok = format == formatLocal || ((format == formatExtents || format == formatBtree) && in.size <= leafSpace)
	case filesystem.TypeChar, filesystem.TypeBlock, filesystem.TypeFifo, filesystem.TypeSocket:
		ok = format == formatDevice && len(in.data.raw) >= 4
	default:
		return corruptf("mode %#o", in.mode)
	}
	if !ok {
		return corruptf("mode %#o with data of format %d and size %d", in.mode, format, in.size)
	}
	if format == formatLocal && in.size > int64(len(in.data.raw)) {
		return corruptf("%d bytes in an inode with room for %d", in.size, len(in.data.raw))
	}
	return nil
}

// fileInode is the inode that a user may name.
func (f *FS) fileInode(n filesystem.Inode) (*inode, error) { return f.inode(uint64(n)) }

// dirInode is fileInode for a directory.
func (f *FS) dirInode(n filesystem.Inode) (*inode, error) {
	in, err := f.fileInode(n)
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
	in, err := f.fileInode(ino)
	if err != nil {
		return filesystem.Attr{}, fmt.Errorf("getattr: %w", err)
	}
	be := binary.BigEndian
	a := filesystem.Attr{
		Inode:      ino,
		Type:       in.kind(),
		Perm:       in.mode & 0o7777,
		Nlink:      in.nlink,
		UID:        be.Uint32(in.raw[8:]),
		GID:        be.Uint32(in.raw[12:]),
		Size:       in.size,
		Blocks:     int64(in.blocks << (f.super.blockBits - 9) & (1<<62 - 1)),
		Atime:      in.time(32),
		Mtime:      in.time(40),
		Ctime:      in.time(48),
		Generation: be.Uint32(in.raw[92:]),
	}
	if in.version == 3 {
		a.Birth = in.time(144)
	}
	if a.Type == filesystem.TypeChar || a.Type == filesystem.TypeBlock {
		// sysv_major and sysv_minor, of the major the 9 bits that
		// xfs_to_linux_dev_t lets through.
		d := be.Uint32(in.data.raw)
		a.RdevMajor, a.RdevMinor = d>>18&0x1FF, d&0x3FFFF
	}
	return a, nil
}

// time decodes seconds and nanoseconds, or with bigtime the nanoseconds since the
// smallest 32-bit time, 1901-12-13 (xfs_inode_from_disk_ts).
func (in *inode) time(at int) time.Time {
	be := binary.BigEndian
	if in.flags2&flags2Bigtime != 0 {
		const second = 1e9
		v := be.Uint64(in.raw[at:])
		return time.Unix(int64(v/second)-1<<31, int64(v%second))
	}
	return time.Unix(int64(int32(be.Uint32(in.raw[at:]))), int64(int32(be.Uint32(in.raw[at+4:]))))
}
