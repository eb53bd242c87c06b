package xfs

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/bits"
	"strings"

	"github.com/keelblock/keelblock/blockdev/filesystem"
)

const (
	superMagic = "XFSB"
	// superSize is the part of the superblock that is looked at (struct xfs_dsb
	// without what the feature metadir adds).
	superSize = 264
	superCRC  = 224
	// maxSectorSize is XFS_MAX_SECTORSIZE.
	maxSectorSize = 32 << 10
)

// Versions and features of version 4, sb_versionnum (fs/xfs/libxfs/xfs_format.h).
const (
	versionNumber = 0x000F
	versionLogV2  = 0x0400
	versionExtFlg = 0x1000
	versionDirV2  = 0x2000
	versionASCII  = 0x4000
	versionMore   = 0x8000
	versionShared = 0x0200

	features2Ftype = 0x200
	// features2Known are lazysbcount, attr2, projid32, crc and ftype.
	features2Known = 0x2 | 0x8 | 0x80 | 0x100 | features2Ftype
)

// Incompatible features of version 5.
const (
	incompatFtype       = 1 << 0
	incompatSparse      = 1 << 1
	incompatMetaUUID    = 1 << 2
	incompatBigtime     = 1 << 3
	incompatNeedsRepair = 1 << 4
	incompatNrext64     = 1 << 5
	incompatExchange    = 1 << 6
	incompatParent      = 1 << 7

	incompatKnown = incompatFtype | incompatSparse | incompatMetaUUID | incompatBigtime |
		incompatNrext64 | incompatExchange | incompatParent
)

// incompatNames are those that are refused, by bit.
var incompatNames = map[int]string{
	4: "needsrepair (xfs_repair has begun or an upgrade has not ended; run xfs_repair in the guest)",
	8: "metadir", 9: "zoned", 10: "zone_gaps",
}

// superblock is what is used of struct xfs_dsb.
type superblock struct {
	blockSize  int64
	blockBits  uint
	sectorSize int
	blocks     uint64
	rtBlocks   uint64
	uuid       [16]byte // what users see
	metaUUID   [16]byte // what metadata carries
	label      string
	root       uint64

	agBlocks, agCount uint32
	agBits            uint // of a block number inside an allocation group
	inodeSize         int
	inodePerBlockBits uint
	dirBlockBits      uint // log2 of the blocks in a directory block
	v5                bool
	features2         uint32
	incompat          uint32
	asciiCI           bool
	inProgress        bool
	inodes            uint64 // allocated
	inodesFree        uint64
	blocksFree        uint64

	logStart      uint64 // block number, 0 for a log on another device
	logBlocks     uint32
	logV2         bool
	logStripeUnit uint32
}

func corruptf(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, filesystem.ErrCorrupt)...)
}

func unsupportedf(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, filesystem.ErrUnsupported)...)
}

// parseSuperblock takes the first maxSectorSize bytes of a volume of size bytes.
// believed: the bytes come out of the log, so that their checksum is an old one.
func parseSuperblock(p []byte, size int64, believed bool) (*superblock, error) {
	if len(p) < superSize || string(p[:4]) != superMagic {
		return nil, fmt.Errorf("no superblock: %w", filesystem.ErrUnknown)
	}
	be := binary.BigEndian
	version := be.Uint16(p[100:])
	s := &superblock{
		blockSize: int64(be.Uint32(p[4:])), blocks: be.Uint64(p[8:]), rtBlocks: be.Uint64(p[16:]),
		logStart: be.Uint64(p[48:]), root: be.Uint64(p[56:]),
		agBlocks: be.Uint32(p[84:]), agCount: be.Uint32(p[88:]), logBlocks: be.Uint32(p[96:]),
		sectorSize: int(be.Uint16(p[102:])), inodeSize: int(be.Uint16(p[104:])),
		label:     string(bytes.TrimRight(p[108:120], "\x00")),
		blockBits: uint(p[120]), inodePerBlockBits: uint(p[123]), agBits: uint(p[124]),
		inProgress: p[126] != 0,
		inodes:     be.Uint64(p[128:]), inodesFree: be.Uint64(p[136:]), blocksFree: be.Uint64(p[144:]),
		dirBlockBits: uint(p[192]), logStripeUnit: be.Uint32(p[196:]),
		logV2: version&versionLogV2 != 0,
	}
	copy(s.uuid[:], p[32:])
	s.metaUUID = s.uuid
	switch version & versionNumber {
	case 5:
		s.v5 = true
	case 4:
	case 0:
		return nil, fmt.Errorf("superblock has no version: %w", filesystem.ErrUnknown)
	default:
		return nil, unsupportedf("XFS version %d", version&versionNumber)
	}
	if s.sectorSize < 512 || s.sectorSize > maxSectorSize || bits.OnesCount(uint(s.sectorSize)) != 1 || s.sectorSize > len(p) {
		return nil, corruptf("superblock: sectors of %d bytes", s.sectorSize)
	}
	if s.v5 && !believed && !crcOK(p[:s.sectorSize], superCRC) {
		return nil, corruptf("superblock: checksum is wrong")
	}
	if err := s.parseFeatures(p, version); err != nil {
		return nil, err
	}
	return s, s.check(size, uint(p[122]))
}

// parseFeatures refuses what is not known.
func (s *superblock) parseFeatures(p []byte, version uint16) error {
	be := binary.BigEndian
	if version&versionMore != 0 {
		s.features2 = be.Uint32(p[200:])
	}
	s.asciiCI = version&versionASCII != 0
	if version&versionDirV2 == 0 || version&versionExtFlg == 0 {
		return unsupportedf("XFS with directories of version 1 or without unwritten extents")
	}
	if s.v5 {
		s.incompat = be.Uint32(p[216:])
		if names := unknownFeatures(s.incompat); names != "" {
			return unsupportedf("XFS feature %s", names)
		}
		if s.incompat&incompatMetaUUID != 0 {
			copy(s.metaUUID[:], p[248:])
		}
		return nil
	}
	if version&versionShared != 0 {
		return unsupportedf("XFS feature shared_vn")
	}
	if unknown := s.features2 &^ features2Known; unknown != 0 {
		return unsupportedf("XFS features2 %#x", unknown)
	}
	return nil
}

func unknownFeatures(incompat uint32) string {
	var names []string
	for rest := incompat &^ incompatKnown; rest != 0; rest &= rest - 1 {
		bit := bits.TrailingZeros32(rest)
		name := incompatNames[bit]
		if name == "" {
			name = fmt.Sprintf("incompat bit %d", bit)
		}
		names = append(names, name)
	}
	return strings.Join(names, ", ")
}

// check holds the geometry against itself and the volume
// (xfs_validate_sb_common).
func (s *superblock) check(size int64, inodeBits uint) error {
	switch {
	case s.inProgress:
		return corruptf("superblock: mkfs.xfs has not ended")
	case s.blockBits < 9 || s.blockBits > 16 || s.blockSize != 1<<s.blockBits:
		return corruptf("superblock: blocks of %d bytes", s.blockSize)
	case inodeBits < 8 || inodeBits > 11 || s.inodeSize != 1<<inodeBits || inodeBits > s.blockBits ||
		s.inodePerBlockBits != s.blockBits-inodeBits || (s.v5 && inodeBits < 9):
		return corruptf("superblock: inodes of %d bytes in blocks of %d", s.inodeSize, s.blockSize)
	case s.dirBlockBits+s.blockBits > 16:
		return corruptf("superblock: directory blocks of 2^%d bytes", s.dirBlockBits+s.blockBits)
	case s.agCount == 0 || s.agBlocks < 64 || s.agBits > 31 || s.agBits != uint(bits.Len32(s.agBlocks-1)):
		return corruptf("superblock: %d allocation groups of %d blocks", s.agCount, s.agBlocks)
	case s.blocks > uint64(s.agCount)*uint64(s.agBlocks) || s.blocks <= uint64(s.agCount-1)*uint64(s.agBlocks):
		return corruptf("superblock: %d blocks in %d allocation groups of %d", s.blocks, s.agCount, s.agBlocks)
	case s.blocks > uint64(size)>>s.blockBits:
		return corruptf("superblock: file system of %d blocks on a volume of %d bytes", s.blocks, size)
	}
	if _, _, ok := s.inodePlace(s.root); !ok {
		return corruptf("superblock: root inode %d", s.root)
	}
	if s.logStart != 0 {
		if _, ok := s.linear(s.logStart, uint64(s.logBlocks)); !ok {
			return corruptf("superblock: log of %d blocks at block %d", s.logBlocks, s.logStart)
		}
	}
	return nil
}

// linear turns a block number (allocation group and block in it) into one from the
// start of the volume, for n blocks, which must lie inside one group.
func (s *superblock) linear(block, n uint64) (uint64, bool) {
	ag, in := block>>s.agBits, block&(1<<s.agBits-1)
	if n == 0 || ag >= uint64(s.agCount) || in >= uint64(s.agBlocks) || n > uint64(s.agBlocks)-in {
		return 0, false
	}
	at := ag*uint64(s.agBlocks) + in
	return at, at+n <= s.blocks
}

// inodePlace is the block, from the start of the volume, and the byte in it where an
// inode stands.
func (s *superblock) inodePlace(ino uint64) (block uint64, offset int, ok bool) {
	if ino == 0 {
		return 0, 0, false
	}
	block, ok = s.linear(ino>>s.inodePerBlockBits, 1)
	return block, int(ino&(1<<s.inodePerBlockBits-1)) * s.inodeSize, ok
}

// ftype: directory entries have the type of the file.
func (s *superblock) ftype() bool {
	return s.v5 && s.incompat&incompatFtype != 0 || !s.v5 && s.features2&features2Ftype != 0
}

func (s *superblock) dirBlockSize() int { return 1 << (s.blockBits + s.dirBlockBits) }

func uuidString(u [16]byte) string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[0:4], u[4:6], u[6:8], u[8:10], u[10:])
}
