package btrfs

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/bits"
	"strings"

	"github.com/keelblock/keelblock/blockdev/filesystem"
)

const (
	superMagic = "_BHRfS_M"
	superSize  = 4096
	// superChunks is where the array of system chunks stands, superChunksMax its room.
	superChunks    = 0x32b
	superChunksMax = 2048
	labelMax       = 256

	minSector = 4 << 10
	maxNode   = 64 << 10 // BTRFS_MAX_METADATA_BLOCKSIZE
	maxLevel  = 7        // BTRFS_MAX_LEVEL - 1
)

// superPlaces are where the superblock and its copies stand, as far as the volume
// reaches (btrfs_sb_offset).
var superPlaces = []int64{64 << 10, 64 << 20, 256 << 30}

// Incompatible features (include/uapi/linux/btrfs.h) that are read. Mixed groups,
// large nodes, skinny metadata, simple quota and the like need nothing from a reader.
const (
	incompatNoHoles      = 1 << 9
	incompatMetadataUUID = 1 << 10

	incompatKnown = 1<<0 | 1<<1 | 1<<2 | 1<<3 | 1<<4 | 1<<5 | 1<<6 | 1<<8 |
		incompatNoHoles | incompatMetadataUUID | 1<<11 | 1<<16
)

// incompatNames are those that are refused, by bit.
var incompatNames = map[int]string{
	7: "raid56", 12: "zoned", 13: "extent-tree-v2", 14: "raid-stripe-tree", 17: "remap-tree",
}

// Flags of the superblock that make a volume unreadable, and their meaning.
var superFlags = map[int]string{
	33: "an image of metadata only (btrfs-image)",
	34: "an image of metadata only (btrfs-image)",
	35: "its uuid is being changed; finish it by btrfstune in the guest",
	36: "its uuid is being changed; finish it by btrfstune in the guest",
	38: "it is being converted to the block-group-tree; finish it by btrfstune in the guest",
	39: "its checksums are being changed; finish it by btrfstune in the guest",
	40: "its checksums are being changed; finish it by btrfstune in the guest",
}

// superblock is what is used of struct btrfs_super_block.
type superblock struct {
	place        int64 // where it was read
	fsid         [16]byte
	metadataUUID [16]byte // what nodes bear
	generation   uint64
	root         ref
	chunkRoot    ref
	logRoot      ref // of address 0: no log
	totalBytes   uint64
	usedBytes    uint64
	rootDir      uint64 // in the root tree, of the default subvolume's name
	devices      uint64
	sectorSize   int
	nodeSize     int
	incompat     uint64
	sums         checksum
	deviceID     uint64
	deviceUUID   [16]byte
	deviceBytes  uint64
	label        string
	sysChunks    []byte
}

func corruptf(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, filesystem.ErrCorrupt)...)
}

func unsupportedf(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, filesystem.ErrUnsupported)...)
}

// readSuperblock finds the newest of the valid superblocks of one file system. The
// one at 64 KiB is the first to be believed, and among those of one generation the
// only one that knows of a log: fsync writes no other.
func (f *FS) readSuperblock(size int64) error {
	var first error
	for i, at := range superPlaces {
		if at+superSize > size {
			break
		}
		p := make([]byte, superSize)
		err := f.readFull(p, at)
		if err != nil && i == 0 {
			return fmt.Errorf("read superblock: %w", err)
		}
		var s *superblock
		if err == nil {
			s, err = parseSuperblock(p, at, size)
		}
		switch {
		case err != nil && i == 0:
			first = err
		case err == nil && (f.super == nil || (s.fsid == f.super.fsid && s.generation > f.super.generation)):
			f.super = s
		}
	}
	switch {
	case f.super != nil && first == nil:
		return nil
	case f.super == nil && first == nil:
		return fmt.Errorf("no superblock: %w", filesystem.ErrUnknown)
	case f.super == nil || !isCorrupt(first):
		return first
	}
	f.superDamaged = first
	return nil
}

// parseSuperblock takes the bytes at place of a volume of size bytes.
func parseSuperblock(p []byte, place, size int64) (*superblock, error) {
	if string(p[0x40:0x48]) != superMagic {
		return nil, fmt.Errorf("no superblock: %w", filesystem.ErrUnknown)
	}
	le := binary.LittleEndian
	s := &superblock{
		place:      place,
		fsid:       [16]byte(p[0x20:]),
		generation: le.Uint64(p[0x48:]),
		totalBytes: le.Uint64(p[0x70:]),
		usedBytes:  le.Uint64(p[0x78:]),
		rootDir:    le.Uint64(p[0x80:]),
		devices:    le.Uint64(p[0x88:]),
		incompat:   le.Uint64(p[0xbc:]),
		sums:       checksum(le.Uint16(p[0xc4:])),
		deviceID:   le.Uint64(p[0xc9:]),
		deviceUUID: [16]byte(p[0xc9+66:]),
	}
	if s.sums.size() == 0 {
		return nil, unsupportedf("checksum type %d", s.sums)
	}
	if !s.sums.headerOK(p) {
		return nil, corruptf("superblock at %d: checksum does not match", place)
	}
	if at := le.Uint64(p[0x30:]); at != uint64(place) {
		return nil, corruptf("superblock at %d says that it is that at %d", place, at)
	}
	s.deviceBytes = le.Uint64(p[0xc9+8:])
	s.root = ref{le.Uint64(p[0x50:]), s.generation, p[0xc6]}
	s.chunkRoot = ref{le.Uint64(p[0x58:]), le.Uint64(p[0xa4:]), p[0xc7]}
	s.logRoot = ref{le.Uint64(p[0x60:]), s.generation + 1, p[0xc8]}
	s.metadataUUID = s.fsid
	if s.incompat&incompatMetadataUUID != 0 {
		s.metadataUUID = [16]byte(p[0x23b:])
	}
	label, _, _ := bytes.Cut(p[0x12b:][:labelMax], []byte{0})
	s.label = string(label)
	if n := le.Uint32(p[0xa0:]); n > superChunksMax {
		return nil, corruptf("%d bytes of system chunks", n)
	} else {
		s.sysChunks = p[superChunks:][:n]
	}
	if err := s.checkFeatures(le.Uint64(p[0x38:])); err != nil {
		return nil, err
	}
	return s, s.checkGeometry(le.Uint32(p[0x90:]), le.Uint32(p[0x94:]), size)
}

// checkFeatures refuses by name what is not known.
func (s *superblock) checkFeatures(flags uint64) error {
	var names []string
	for bit := range 64 {
		if s.incompat&^uint64(incompatKnown)>>bit&1 == 0 {
			continue
		}
		name, ok := incompatNames[bit]
		if !ok {
			name = fmt.Sprintf("incompat bit %d", bit)
		}
		names = append(names, name)
	}
	if names != nil {
		return unsupportedf("feature %s", strings.Join(names, ", "))
	}
	for bit := range 64 {
		if why := superFlags[bit]; why != "" && flags>>bit&1 != 0 {
			return unsupportedf("%s", why)
		}
	}
	return nil
}

// checkGeometry holds the sizes against each other and against the volume.
func (s *superblock) checkGeometry(sector, node uint32, size int64) error {
	power := func(n, low, high uint32) bool { return bits.OnesCount32(n) == 1 && n >= low && n <= high }
	if !power(sector, minSector, maxNode) || !power(node, sector, maxNode) {
		return corruptf("sectors of %d and nodes of %d bytes", sector, node)
	}
	s.sectorSize, s.nodeSize = int(sector), int(node)
	if s.deviceBytes > uint64(size) {
		return corruptf("a device of %d bytes, but the volume has %d", s.deviceBytes, size)
	}
	if s.devices == 0 || s.totalBytes == 0 || s.totalBytes > 1<<62 {
		return corruptf("%d devices of %d bytes", s.devices, s.totalBytes)
	}
	return nil
}

func uuidString(u [16]byte) string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[0:4], u[4:6], u[6:8], u[8:10], u[10:])
}
