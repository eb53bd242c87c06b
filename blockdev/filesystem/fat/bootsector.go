package fat

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/bits"

	"github.com/keelblock/keelblock/blockdev/filesystem"
)

// bootSize is how much of the boot sector is looked at.
const bootSize = 512

// Limits on the number of clusters (fs/fat/fat.h MAX_FAT12, MAX_FAT16, MAX_FAT32):
// the type of a volume follows from it.
const (
	maxFAT12 = 0xFF4
	maxFAT16 = 0xFFF4
	maxFAT32 = 0x0FFFFFF6
)

// firstCluster is the number of the first cluster of the data.
const firstCluster = 2

const entrySize = 32

// boot is what the boot sector says.
type boot struct {
	bits        int   // 12, 16, 32: of an entry of the FAT
	sectorSize  int64 // bytes
	clusterSize int64 // bytes
	sizeBytes   int64 // of the file system
	fatStart    int64 // bytes; of the FAT that counts
	fatSize     int64 // bytes, of one FAT
	otherFAT    int64 // bytes; of a copy to compare with; 0: there is none
	rootStart   int64 // bytes; FAT12 and FAT16
	rootEntries int   // FAT12 and FAT16
	rootCluster uint32
	dataStart   int64  // bytes
	clusters    uint32 // valid numbers are 2 .. clusters+1
	infoSector  int64  // bytes; FAT32; 0: none
	dirty       bool
	serial      uint32
	label       string // of the boot sector
}

func corruptf(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, filesystem.ErrCorrupt)...)
}

// Probe tells whether p, the first 512 bytes of a volume of size bytes, can be the boot
// sector of a FAT file system, whatever its text fields say.
func Probe(p []byte, size int64) bool {
	if len(p) < bootSize || p[510] != 0x55 || p[511] != 0xAA || (p[0] != 0xEB && p[0] != 0xE9) {
		return false
	}
	_, err := parseBoot(p, size)
	return err == nil
}

// parseBoot reads the BIOS parameter block, with the checks of fat_read_bpb and
// fat_fill_super (fs/fat/inode.c).
func parseBoot(p []byte, size int64) (*boot, error) {
	le := binary.LittleEndian
	sector, perCluster := int64(le.Uint16(p[11:])), int64(p[13])
	reserved, fats := int64(le.Uint16(p[14:])), int64(p[16])
	sectors := int64(le.Uint16(p[19:]))
	if sectors == 0 {
		sectors = int64(le.Uint32(p[32:]))
	}
	media := p[21]
	b := &boot{sectorSize: sector, clusterSize: sector * perCluster, sizeBytes: sectors * sector, rootEntries: int(le.Uint16(p[17:]))}
	switch {
	case sector < 512 || sector > 4096 || bits.OnesCount64(uint64(sector)) != 1:
		return nil, corruptf("boot sector: %d bytes a sector", sector)
	case bits.OnesCount64(uint64(perCluster)) != 1:
		return nil, corruptf("boot sector: %d sectors a cluster", perCluster)
	case reserved == 0 || fats == 0:
		return nil, corruptf("boot sector: %d reserved sectors, %d FATs", reserved, fats)
	case media != 0xF0 && media < 0xF8:
		return nil, corruptf("boot sector: media type %#x", media)
	case b.sizeBytes > size:
		return nil, corruptf("boot sector: file system of %d bytes in a volume of %d", b.sizeBytes, size)
	}
	fatSectors := int64(le.Uint16(p[22:]))
	extended := p[36:] // drive number, flags, signature, serial, label
	if fatSectors == 0 {
		b.bits = 32
		fatSectors, extended = int64(le.Uint32(p[36:])), p[64:]
	}
	b.fatStart, b.fatSize = reserved*sector, fatSectors*sector
	b.rootStart = b.fatStart + fats*b.fatSize
	rootBytes := int64(b.rootEntries) * entrySize
	b.dataStart = b.rootStart + (rootBytes+sector-1)/sector*sector
	if fatSectors == 0 || b.dataStart > b.sizeBytes-b.clusterSize {
		return nil, corruptf("boot sector: FATs of %d sectors leave no room for data in %d", fatSectors, sectors)
	}
	clusters := (b.sizeBytes - b.dataStart) / b.clusterSize
	if b.bits == 0 {
		b.bits = 16
		if clusters <= maxFAT12 {
			b.bits = 12
		}
	}
	clusters = min(clusters, b.fatSize*8/int64(b.bits)-firstCluster)
	if clusters < 1 || clusters > map[int]int64{12: maxFAT12, 16: maxFAT16, 32: maxFAT32}[b.bits] {
		return nil, corruptf("boot sector: %d clusters in FAT%d", clusters, b.bits)
	}
	b.clusters = uint32(clusters)
	if fats > 1 {
		b.otherFAT = b.fatStart + b.fatSize
	}
	if b.bits == 32 {
		if err := b.parse32(p, fats); err != nil {
			return nil, err
		}
	} else if b.rootEntries == 0 {
		return nil, corruptf("boot sector: FAT%d without entries in the root directory", b.bits)
	}
	b.dirty = extended[1]&1 != 0
	if extended[2] == 0x29 || extended[2] == 0x28 {
		b.serial = le.Uint32(extended[3:])
	}
	if extended[2] == 0x29 {
		b.label = string(bytes.TrimRight(extended[7:18], " \x00"))
	}
	if b.label == "NO NAME" {
		b.label = ""
	}
	return b, nil
}

// parse32 reads what only FAT32 has.
func (b *boot) parse32(p []byte, fats int64) error {
	le := binary.LittleEndian
	if v := le.Uint16(p[42:]); v != 0 {
		return fmt.Errorf("boot sector: FAT32 of version %d.%d: %w", v>>8, v&0xFF, filesystem.ErrUnsupported)
	}
	b.rootCluster = le.Uint32(p[44:])
	if !b.holds(b.rootCluster) {
		return corruptf("boot sector: root directory in cluster %d of %d", b.rootCluster, b.clusters)
	}
	// Bit 7: the FATs are not mirrored, and only the one in the low bits counts.
	if flags := le.Uint16(p[40:]); flags&0x80 != 0 {
		active := int64(flags & 0xF)
		if active >= fats {
			return corruptf("boot sector: FAT %d of %d is the active one", active, fats)
		}
		b.fatStart, b.otherFAT = b.fatStart+active*b.fatSize, 0
	}
	if info := int64(le.Uint16(p[48:])) * b.sectorSize; info > 0 && info < b.fatStart {
		b.infoSector = info
	}
	return nil
}

// holds: c is the number of a cluster.
func (b *boot) holds(c uint32) bool { return c >= firstCluster && c-firstCluster < b.clusters }

// at is where cluster c, which holds has accepted, begins in the volume.
func (b *boot) at(c uint32) int64 { return b.dataStart + int64(c-firstCluster)*b.clusterSize }
