package exfat

import (
	"encoding/binary"
	"fmt"

	"github.com/keelblock/keelblock/blockdev/filesystem"
)

// Places in the boot region.
const (
	minBootSize = 12 * 512 // of one boot region
	bootSectors = 12
)

// boot is what the boot sector says.
type boot struct {
	sectorSize  int64 // bytes
	clusterSize int64 // bytes
	sizeBytes   int64
	fatStart    int64 // bytes; of the active FAT
	heapStart   int64 // bytes
	clusters    uint32
	rootCluster uint32
	serial      uint32
	secondFAT   bool // the active FAT and bitmap are the second ones
	dirty       bool
	failure     bool
}

func corruptf(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, filesystem.ErrCorrupt)...)
}

func unsupportedf(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, filesystem.ErrUnsupported)...)
}

// checksum32 goes on with the checksum of the boot region and of the up-case table.
func checksum32(sum uint32, p []byte) uint32 {
	for _, b := range p {
		sum = sum<<31 | sum>>1
		sum += uint32(b)
	}
	return sum
}

// bootChecksum is that of the first 11 sectors without the bytes that change while the
// volume is used: flags and percentage.
func bootChecksum(p []byte) uint32 {
	sum := checksum32(0, p[:106])
	sum = checksum32(sum, p[108:112])
	return checksum32(sum, p[113:])
}

// sectorShift is the binary logarithm of the sector size in a boot sector.
func sectorShift(p []byte) (uint, error) {
	if string(p[3:11]) != "EXFAT   " {
		return 0, fmt.Errorf("no boot sector of exFAT: %w", filesystem.ErrUnknown)
	}
	if p[108] < 9 || p[108] > 12 {
		return 0, corruptf("boot sector: sectors of 2^%d bytes", p[108])
	}
	return uint(p[108]), nil
}

// parseBoot reads a boot region: 12 sectors.
func parseBoot(p []byte, size int64) (*boot, error) {
	shift, err := sectorShift(p)
	if err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	sums := p[11<<shift:]
	want := bootChecksum(p[:11<<shift])
	for i := 0; i < len(sums); i += 4 {
		if le.Uint32(sums[i:]) != want {
			return nil, corruptf("boot region: checksum is wrong")
		}
	}
	if revision := le.Uint16(p[104:]); revision>>8 != 1 {
		return nil, unsupportedf("exFAT revision %d.%02d", revision>>8, revision&0xFF)
	}
	if p[109] > 25-byte(shift) {
		return nil, corruptf("boot sector: clusters of 2^%d sectors", p[109])
	}
	flags := le.Uint16(p[106:])
	b := &boot{
		sectorSize: 1 << shift, clusterSize: 1 << (shift + uint(p[109])),
		clusters: le.Uint32(p[92:]), rootCluster: le.Uint32(p[96:]), serial: le.Uint32(p[100:]),
		secondFAT: flags&1 != 0, dirty: flags&2 != 0, failure: flags&4 != 0,
	}
	sectors := le.Uint64(p[72:])
	fatStart, fatLength, heap, fats := int64(le.Uint32(p[80:])), int64(le.Uint32(p[84:])), int64(le.Uint32(p[88:])), int64(p[110])
	switch {
	case sectors > uint64(size)>>shift:
		return nil, corruptf("boot sector: %d sectors in a volume of %d bytes", sectors, size)
	case fats != 1 && fats != 2, b.secondFAT && fats != 2:
		return nil, corruptf("boot sector: %d FATs", fats)
	case fatStart < 24 || fatLength<<shift < (int64(b.clusters)+2)*4 || heap < fatStart+fats*fatLength:
		return nil, corruptf("boot sector: FAT of %d sectors at %d, clusters at %d", fatLength, fatStart, heap)
	}
	b.sizeBytes = int64(sectors) << shift
	if b.secondFAT {
		fatStart += fatLength
	}
	b.fatStart, b.heapStart = fatStart<<shift, heap<<shift
	if b.clusters == 0 || b.heapStart > b.sizeBytes || int64(b.clusters) > (b.sizeBytes-b.heapStart)/b.clusterSize {
		return nil, corruptf("boot sector: %d clusters from sector %d in %d sectors", b.clusters, heap, sectors)
	}
	if !b.holds(b.rootCluster) {
		return nil, corruptf("boot sector: root directory in cluster %d of %d", b.rootCluster, b.clusters)
	}
	return b, nil
}

// holds: c is the number of a cluster.
func (b *boot) holds(c uint32) bool { return c >= firstCluster && c-firstCluster < b.clusters }

// at is where cluster c, which holds has accepted, begins in the volume.
func (b *boot) at(c uint32) int64 { return b.heapStart + int64(c-firstCluster)*b.clusterSize }
