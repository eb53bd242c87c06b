package ext

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/bits"
	"strings"

	"github.com/keelblock/keelblock/blockdev/filesystem"
)

const (
	superOffset = 1024
	superSize   = 1024
	superMagic  = 0xEF53

	stateValid = 1 // cleanly unmounted; kept while mounted with a journal
	stateError = 2

	flagUnsignedHash = 2 // s_flags
	flagSignedHash   = 1
)

// Features, fs/ext4/ext4.h EXT4_FEATURE_*.
const (
	compatHasJournal = 0x4
	compatDirIndex   = 0x20
	compatSparse2    = 0x200

	incompatFiletype   = 0x2
	incompatRecover    = 0x4
	incompatJournalDev = 0x8
	incompatMetaBG     = 0x10
	incompatExtents    = 0x40
	incompat64bit      = 0x80
	incompatMMP        = 0x100
	incompatFlexBG     = 0x200
	incompatEAInode    = 0x400
	incompatCsumSeed   = 0x2000
	incompatLargeDir   = 0x4000
	incompatInlineData = 0x8000
	incompatEncrypt    = 0x10000
	incompatCasefold   = 0x20000

	roCompatSparseSuper  = 0x1
	roCompatLargeFile    = 0x2
	roCompatBtreeDir     = 0x4
	roCompatHugeFile     = 0x8
	roCompatGDTCsum      = 0x10
	roCompatBigalloc     = 0x200
	roCompatMetadataCsum = 0x400
)

// incompatKnown are the features without which a file system may not be read.
const incompatKnown = incompatFiletype | incompatRecover | incompatMetaBG | incompatExtents |
	incompat64bit | incompatMMP | incompatFlexBG | incompatEAInode | incompatCsumSeed |
	incompatLargeDir | incompatInlineData | incompatEncrypt | incompatCasefold

// incompatNames are the names that e2fsprogs gives to what is not known here.
var incompatNames = map[int]string{0: "compression", 3: "journal_dev", 12: "dirdata"}

// superblock is what is needed of it; all counts are checked.
type superblock struct {
	inodes         uint32
	blocks         uint64
	freeBlocks     uint64
	freeInodes     uint32
	overhead       uint64 // blocks
	firstData      uint32
	blockSize      int64
	blockBits      uint
	clusterRatio   uint64
	blocksPerGroup uint32
	inodesPerGroup uint32
	groups         uint32
	state          uint16
	firstInode     uint32
	inodeSize      int64
	compat         uint32
	incompat       uint32
	roCompat       uint32
	uuid           [16]byte
	label          string
	journalInode   uint32
	journalUUID    [16]byte // of a journal on another device
	hashSeed       [4]uint32
	descSize       int64
	firstMetaBG    uint32
	flags          uint32
	backupGroups   [2]uint32
	errorCount     uint32
	seed           uint32 // of all crc32c but the superblock's
}

func (s *superblock) has(incompat uint32) bool { return s.incompat&incompat != 0 }
func (s *superblock) metadataCsum() bool       { return s.roCompat&roCompatMetadataCsum != 0 }

// validRange: the blocks [b, b+n) may hold data or metadata of a file
// (ext4_inode_block_valid without its system zones).
func (s *superblock) validRange(b, n uint64) bool {
	return b > uint64(s.firstData) && b < s.blocks && n <= s.blocks-b
}

func corruptf(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, filesystem.ErrCorrupt)...)
}

func unsupportedf(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, filesystem.ErrUnsupported)...)
}

// parseSuperblock reads and checks the superblock p of a volume of size bytes. What
// is not an ext superblock at all is ErrUnknown.
func parseSuperblock(p []byte, size int64) (*superblock, error) {
	le := binary.LittleEndian
	if le.Uint16(p[0x38:]) != superMagic {
		return nil, fmt.Errorf("no ext superblock: %w", filesystem.ErrUnknown)
	}
	s := &superblock{
		inodes:         le.Uint32(p[0x0:]),
		blocks:         uint64(le.Uint32(p[0x4:])),
		freeBlocks:     uint64(le.Uint32(p[0xC:])),
		freeInodes:     le.Uint32(p[0x10:]),
		firstData:      le.Uint32(p[0x14:]),
		blocksPerGroup: le.Uint32(p[0x20:]),
		inodesPerGroup: le.Uint32(p[0x28:]),
		state:          le.Uint16(p[0x3A:]),
		firstInode:     11,
		inodeSize:      128,
		flags:          le.Uint32(p[0x160:]),
		journalInode:   le.Uint32(p[0xE0:]),
		errorCount:     le.Uint32(p[0x194:]),
		firstMetaBG:    le.Uint32(p[0x104:]),
		backupGroups:   [2]uint32{le.Uint32(p[0x24C:]), le.Uint32(p[0x250:])},
		label:          cString(p[0x78:0x88]),
		descSize:       32,
	}
	copy(s.uuid[:], p[0x68:])
	copy(s.journalUUID[:], p[0xD0:])
	for i := range s.hashSeed {
		s.hashSeed[i] = le.Uint32(p[0xEC+4*i:])
	}
	if rev := le.Uint32(p[0x4C:]); rev > 1 {
		return nil, unsupportedf("revision %d", rev)
	} else if rev == 1 {
		s.firstInode = le.Uint32(p[0x54:])
		s.inodeSize = int64(le.Uint16(p[0x58:]))
		s.compat = le.Uint32(p[0x5C:])
		s.incompat = le.Uint32(p[0x60:])
		s.roCompat = le.Uint32(p[0x64:])
	}
	if err := s.checkFeatures(p); err != nil {
		return nil, err
	}
	if s.has(incompat64bit) {
		s.blocks |= uint64(le.Uint32(p[0x150:])) << 32
		s.freeBlocks |= uint64(le.Uint32(p[0x158:])) << 32
		s.descSize = int64(le.Uint16(p[0xFE:]))
	}
	if err := s.checkGeometry(le.Uint32(p[0x18:]), le.Uint32(p[0x1C:]), size); err != nil {
		return nil, err
	}
	s.overhead = uint64(le.Uint32(p[0x248:])) * s.clusterRatio
	s.freeBlocks *= s.clusterRatio
	return s, nil
}

// checkFeatures refuses what is not known and a superblock whose checksum is wrong,
// and sets the seed of the other checksums.
func (s *superblock) checkFeatures(p []byte) error {
	le := binary.LittleEndian
	if s.metadataCsum() {
		if p[0x175] != 1 {
			return unsupportedf("checksum type %d", p[0x175])
		}
		if crc32c(^uint32(0), p[:0x3FC]) != le.Uint32(p[0x3FC:]) {
			return corruptf("superblock: checksum is wrong")
		}
	}
	if s.has(incompatJournalDev) {
		return unsupportedf("this is the journal of another file system (feature journal_dev)")
	}
	if unknown := s.incompat &^ incompatKnown; unknown != 0 {
		var names []string
		for ; unknown != 0; unknown &= unknown - 1 {
			bit := bits.TrailingZeros32(unknown)
			name, ok := incompatNames[bit]
			if !ok {
				name = fmt.Sprintf("incompat bit %d", bit)
			}
			names = append(names, name)
		}
		return unsupportedf("feature %s", strings.Join(names, ", "))
	}
	s.seed = crc32c(^uint32(0), s.uuid[:])
	if s.has(incompatCsumSeed) {
		s.seed = le.Uint32(p[0x270:])
	}
	return nil
}

// checkGeometry follows ext4_check_geometry and its callers.
func (s *superblock) checkGeometry(logBlock, logCluster uint32, size int64) error {
	if logBlock > 6 {
		return corruptf("superblock: block size 2^%d KiB", logBlock)
	}
	s.blockBits = 10 + uint(logBlock)
	s.blockSize = 1 << s.blockBits
	bs := s.blockSize
	s.clusterRatio = 1
	if s.roCompat&roCompatBigalloc != 0 {
		if logCluster < logBlock || logCluster > 20 {
			return corruptf("superblock: cluster size 2^%d KiB", logCluster)
		}
		s.clusterRatio = 1 << (logCluster - logBlock)
	}
	switch {
	case s.inodeSize < 128 || s.inodeSize > bs || s.inodeSize&(s.inodeSize-1) != 0:
		return corruptf("superblock: inode size %d", s.inodeSize)
	case s.descSize < 32 || s.descSize > bs || s.descSize&(s.descSize-1) != 0,
		s.has(incompat64bit) && s.descSize < 64:
		return corruptf("superblock: group descriptor size %d", s.descSize)
	case s.blocksPerGroup == 0 || uint64(s.blocksPerGroup) > uint64(bs)*8*s.clusterRatio:
		return corruptf("superblock: %d blocks per group", s.blocksPerGroup)
	case s.inodesPerGroup == 0 || int64(s.inodesPerGroup) > bs*8:
		return corruptf("superblock: %d inodes per group", s.inodesPerGroup)
	case s.firstData > 1 || uint64(s.firstData) >= s.blocks:
		return corruptf("superblock: first data block %d of %d", s.firstData, s.blocks)
	case s.firstInode < 11 || s.firstInode > s.inodes:
		return corruptf("superblock: first inode %d of %d", s.firstInode, s.inodes)
	case s.blocks > uint64(size)>>s.blockBits:
		return corruptf("superblock: %d blocks of %d bytes do not fit into the volume of %d bytes: it is cut short", s.blocks, bs, size)
	}
	groups := (s.blocks - uint64(s.firstData) + uint64(s.blocksPerGroup) - 1) / uint64(s.blocksPerGroup)
	if groups > 1<<32-1 || groups*uint64(s.inodesPerGroup) != uint64(s.inodes) {
		return corruptf("superblock: %d inodes in %d groups of %d", s.inodes, groups, s.inodesPerGroup)
	}
	s.groups = uint32(groups)
	return nil
}

// format is the name that blkid and users give it: ext4 as soon as one of its own
// features is there.
func (s *superblock) format() string {
	const incompat3 = incompatFiletype | incompatRecover | incompatMetaBG
	const roCompat3 = roCompatSparseSuper | roCompatLargeFile | roCompatBtreeDir
	switch {
	case s.incompat&^incompat3 != 0 || s.roCompat&^roCompat3 != 0:
		return "ext4"
	case s.compat&compatHasJournal != 0:
		return "ext3"
	}
	return "ext2"
}

func cString(p []byte) string {
	if i := bytes.IndexByte(p, 0); i >= 0 {
		p = p[:i]
	}
	return string(p)
}

func uuidString(u [16]byte) string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[0:4], u[4:6], u[6:8], u[8:10], u[10:16])
}
