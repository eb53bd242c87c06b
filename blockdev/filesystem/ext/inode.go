package ext

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/keelblock/keelblock/blockdev/filesystem"
	"github.com/keelblock/keelblock/blockdev/filesystem/lru"
)

// Inode flags, fs/ext4/ext4.h EXT4_*_FL.
const (
	flagEncrypt    = 0x800
	flagIndex      = 0x1000
	flagHugeFile   = 0x40000
	flagExtents    = 0x80000
	flagEAInode    = 0x200000
	flagInlineData = 0x10000000
)

const (
	goodOldInodeSize = 128
	inodeBlockOffset = 0x28
	inodeBlockSize   = 60
	// tableChunk is how much of an inode table is read at once, in bytes. The
	// inodes of one directory are mostly neighbours.
	tableChunk = 32 << 10
)

// inode is a verified inode.
type inode struct {
	num        uint32
	mode       uint16
	nlink      uint16
	uid, gid   uint32
	size       int64
	sectors    uint64 // i_blocks, in 512 bytes
	flags      uint32
	generation uint32
	extraSize  int    // i_extra_isize
	fileACL    uint64 // block of attributes, or 0
	seed       uint32 // of the crc32c of what belongs to this inode
	raw        []byte // all of it
	// ranges are runs of blocks that count before the map in raw.
	ranges []fcRange
}

func (in *inode) kind() filesystem.Type { return filesystem.Type(in.mode >> 12) }
func (in *inode) has(flag uint32) bool  { return in.flags&flag != 0 }
func (in *inode) block() []byte         { return in.raw[inodeBlockOffset:][:inodeBlockSize] }

// inode reads and verifies inode n. One that is not in use is ErrNotExist.
func (f *FS) inode(n uint32) (*inode, error) {
	if f.fast != nil && f.fast.inodes[n] != nil {
		if in := f.fast.inode(n); in != nil {
			return in, nil
		}
		return nil, fmt.Errorf("inode %d: deleted: %w", n, filesystem.ErrNotExist)
	}
	key := lru.Key{Class: classInode, A: uint64(n)}
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
	f.cache.Put(key, in, len(in.raw)+128)
	return in, nil
}

// fileInode is the inode that a user may name: the root or one that is not
// reserved (ext4_valid_inum).
func (f *FS) fileInode(n filesystem.Inode) (*inode, error) {
	if n != rootInode && (n < filesystem.Inode(f.super.firstInode) || n > filesystem.Inode(f.super.inodes)) {
		return nil, fmt.Errorf("inode %d: %w", n, filesystem.ErrNotExist)
	}
	in, err := f.inode(uint32(n))
	if err != nil {
		return nil, err
	}
	if in.has(flagEAInode) {
		return nil, fmt.Errorf("inode %d holds an attribute: %w", n, filesystem.ErrNotExist)
	}
	return in, nil
}

// dirInode is fileInode for a directory that can be read.
func (f *FS) dirInode(n filesystem.Inode) (*inode, error) {
	in, err := f.fileInode(n)
	if err != nil {
		return nil, err
	}
	if in.kind() != filesystem.TypeDir {
		return nil, fmt.Errorf("inode %d: %w", n, filesystem.ErrNotDir)
	}
	if in.has(flagEncrypt) {
		return nil, unsupportedf("inode %d: encrypted directory", n)
	}
	return in, nil
}

// rawInode is a copy of the bytes of inode n.
func (f *FS) rawInode(n uint32) ([]byte, error) {
	s := f.super
	if n == 0 || n > s.inodes {
		return nil, corruptf("inode %d of %d", n, s.inodes)
	}
	table, err := f.inodeTable((n - 1) / s.inodesPerGroup)
	if err != nil {
		return nil, fmt.Errorf("inode %d: %w", n, err)
	}
	tableBlocks := (uint64(s.inodesPerGroup)*uint64(s.inodeSize) + uint64(s.blockSize) - 1) >> s.blockBits
	at := uint64((n-1)%s.inodesPerGroup) * uint64(s.inodeSize)
	chunkBlocks := uint64(max(tableChunk>>s.blockBits, 1))
	first := at >> s.blockBits / chunkBlocks * chunkBlocks
	key := lru.Key{Class: classTable, A: table + first}
	chunk, ok := lru.Get[[]byte](f.cache, key)
	if !ok {
		if chunk, err = f.readBlocks(table+first, min(chunkBlocks, tableBlocks-first)); err != nil {
			return nil, fmt.Errorf("inode %d: %w", n, err)
		}
		f.cache.Put(key, chunk, len(chunk))
	}
	raw := make([]byte, s.inodeSize)
	copy(raw, chunk[at-first<<s.blockBits:])
	return raw, nil
}

// parseInode follows ext4_iget.
func (f *FS) parseInode(n uint32, raw []byte) (*inode, error) {
	le := binary.LittleEndian
	s := f.super
	in := &inode{
		num:        n,
		mode:       le.Uint16(raw[0x0:]),
		uid:        uint32(le.Uint16(raw[0x2:])) | uint32(le.Uint16(raw[0x78:]))<<16,
		gid:        uint32(le.Uint16(raw[0x18:])) | uint32(le.Uint16(raw[0x7A:]))<<16,
		nlink:      le.Uint16(raw[0x1A:]),
		flags:      le.Uint32(raw[0x20:]),
		generation: le.Uint32(raw[0x64:]),
		fileACL:    uint64(le.Uint32(raw[0x68:])),
		raw:        raw,
	}
	if s.inodeSize > goodOldInodeSize {
		in.extraSize = int(le.Uint16(raw[0x80:]))
		if in.extraSize%4 != 0 || in.extraSize > len(raw)-goodOldInodeSize {
			return nil, corruptf("extra size %d", in.extraSize)
		}
	}
	in.seed = crc32cUint32(crc32cUint32(s.seed, n), in.generation)
	if s.metadataCsum() && !in.checksumOK() {
		return nil, corruptf("checksum is wrong")
	}
	if in.nlink == 0 {
		return nil, fmt.Errorf("deleted: %w", filesystem.ErrNotExist)
	}
	if s.has(incompat64bit) {
		in.fileACL |= uint64(le.Uint16(raw[0x76:])) << 32
	}
	in.sectors = uint64(le.Uint32(raw[0x1C:]))
	if s.roCompat&roCompatHugeFile != 0 {
		in.sectors |= uint64(le.Uint16(raw[0x74:])) << 32
		if in.has(flagHugeFile) {
			in.sectors <<= s.blockBits - 9
		}
	}
	size := uint64(le.Uint32(raw[0x4:]))
	if in.kind() == filesystem.TypeRegular || s.has(incompatLargeDir) {
		size |= uint64(le.Uint32(raw[0x6C:])) << 32 // for others it is i_dir_acl
	}
	return in, f.checkInode(in, size)
}

func (f *FS) checkInode(in *inode, size uint64) error {
	s := f.super
	switch in.kind() {
	case filesystem.TypeRegular, filesystem.TypeDir, filesystem.TypeSymlink, filesystem.TypeChar,
		filesystem.TypeBlock, filesystem.TypeFifo, filesystem.TypeSocket:
	default:
		return corruptf("mode %#o", in.mode)
	}
	// Logical blocks have 32 bits.
	if limit := uint64(1<<32-1) << s.blockBits; size > limit {
		return corruptf("size %d is over the limit of %d", size, limit)
	}
	if in.kind() == filesystem.TypeDir && !in.has(flagInlineData) {
		if size&uint64(s.blockSize-1) != 0 || size>>s.blockBits > s.blocks || size == 0 {
			return corruptf("directory of %d bytes", size)
		}
	}
	if in.has(flagInlineData) && !s.has(incompatInlineData) {
		return corruptf("inline data without the feature")
	}
	if in.has(flagInlineData) && in.has(flagExtents) {
		return corruptf("inline data and extents")
	}
	if in.fileACL != 0 && !s.validRange(in.fileACL, 1) {
		return corruptf("attributes in block %d of %d", in.fileACL, s.blocks)
	}
	in.size = int64(size)
	return nil
}

// Where the two halves of an inode's checksum are.
const (
	inodeChecksumLow  = 0x7C
	inodeChecksumHigh = 0x82
)

// checksum follows ext4_inode_csum.
func (in *inode) checksum() uint32 {
	const lo, hi = inodeChecksumLow, inodeChecksumHigh
	raw := in.raw
	crc := crc32c(in.seed, raw[:lo])
	crc = crc32cZeros(crc, 2)
	crc = crc32c(crc, raw[lo+2:goodOldInodeSize])
	if len(raw) > goodOldInodeSize {
		rest := raw[goodOldInodeSize:]
		if in.fits(hi + 2) {
			crc = crc32c(crc, raw[goodOldInodeSize:hi])
			crc = crc32cZeros(crc, 2)
			rest = raw[hi+2:]
		}
		crc = crc32c(crc, rest)
	}
	if !in.fits(hi + 2) {
		crc &= 0xFFFF
	}
	return crc
}

func (in *inode) checksumOK() bool {
	le := binary.LittleEndian
	want := uint32(le.Uint16(in.raw[inodeChecksumLow:]))
	if len(in.raw) > goodOldInodeSize && in.fits(inodeChecksumHigh+2) {
		want |= uint32(le.Uint16(in.raw[inodeChecksumHigh:])) << 16
	}
	return in.checksum() == want
}

func (in *inode) setChecksum() {
	le, crc := binary.LittleEndian, in.checksum()
	le.PutUint16(in.raw[inodeChecksumLow:], uint16(crc))
	if len(in.raw) > goodOldInodeSize && in.fits(inodeChecksumHigh+2) {
		le.PutUint16(in.raw[inodeChecksumHigh:], uint16(crc>>16))
	}
}

// fits: the inode has the bytes up to end (EXT4_FITS_IN_INODE).
func (in *inode) fits(end int) bool { return end <= goodOldInodeSize+in.extraSize }

// Getattr is stat(2).
func (f *FS) Getattr(ino filesystem.Inode) (filesystem.Attr, error) {
	in, err := f.fileInode(ino)
	if err != nil {
		return filesystem.Attr{}, fmt.Errorf("getattr: %w", err)
	}
	a := filesystem.Attr{
		Inode:      ino,
		Type:       in.kind(),
		Perm:       in.mode & 0o7777,
		Nlink:      uint32(in.nlink),
		UID:        in.uid,
		GID:        in.gid,
		Size:       in.size,
		Blocks:     int64(in.sectors & (1<<62 - 1)),
		Ctime:      in.time(0xC, 0x84),
		Mtime:      in.time(0x10, 0x88),
		Atime:      in.time(0x8, 0x8C),
		Generation: in.generation,
	}
	if in.fits(0x94) {
		a.Birth = in.time(0x90, 0x94)
	}
	if in.has(flagInlineData) && a.Type == filesystem.TypeRegular {
		a.Blocks += (a.Size + 511) >> 9 // ext4_file_getattr: as if it were outside
	}
	if a.Type == filesystem.TypeChar || a.Type == filesystem.TypeBlock {
		a.RdevMajor, a.RdevMinor = in.device()
	}
	return a, nil
}

// time decodes a time in seconds at byte base and, where the inode has it, the
// field at extra: two bits that extend the seconds, 30 of nanoseconds
// (ext4_decode_extra_time).
func (in *inode) time(base, extra int) time.Time {
	sec := int64(int32(binary.LittleEndian.Uint32(in.raw[base:])))
	if !in.fits(extra + 4) {
		return time.Unix(sec, 0)
	}
	x := binary.LittleEndian.Uint32(in.raw[extra:])
	return time.Unix(sec+int64(x&3)<<32, int64(x>>2))
}

// device decodes i_block as old_decode_dev and new_decode_dev do.
func (in *inode) device() (major, minor uint32) {
	b := in.block()
	if d := binary.LittleEndian.Uint32(b); d != 0 {
		return d >> 8 & 0xFF, d & 0xFF
	}
	d := binary.LittleEndian.Uint32(b[4:])
	return d >> 8 & 0xFFF, d&0xFF | d>>12&0xFFF00
}
