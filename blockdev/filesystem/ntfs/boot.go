package ntfs

import (
	"encoding/binary"
	"fmt"
	"math/bits"

	"github.com/keelblock/keelblock/blockdev/filesystem"
)

const bootSize = 512

// Limits on the units of the format.
const (
	maxClusterSize = 2 << 20
	minRecordSize  = 512
	maxRecordSize  = 64 << 10
)

// boot is what the boot sector says.
type boot struct {
	clusterSize int64
	clusters    uint64
	sizeBytes   int64
	recordSize  int64 // of the MFT
	indexSize   int64 // of an index block
	mft, mirror uint64
	serial      uint64
}

func corruptf(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, filesystem.ErrCorrupt)...)
}

func unsupportedf(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, filesystem.ErrUnsupported)...)
}

func parseBoot(p []byte, size int64) (*boot, error) {
	le := binary.LittleEndian
	if string(p[3:11]) != "NTFS    " {
		return nil, fmt.Errorf("no boot sector of NTFS: %w", filesystem.ErrUnknown)
	}
	sector := int64(le.Uint16(p[11:]))
	perCluster := int64(p[13])
	if perCluster > 0x80 {
		perCluster = 1 << (256 - perCluster) // newer Windows, for clusters over 64 KiB
	}
	b := &boot{clusterSize: sector * perCluster, mft: le.Uint64(p[48:]), mirror: le.Uint64(p[56:]), serial: le.Uint64(p[72:])}
	sectors := le.Uint64(p[40:])
	switch {
	case sector < 256 || sector > 4096 || bits.OnesCount64(uint64(sector)) != 1:
		return nil, corruptf("boot sector: %d bytes a sector", sector)
	case bits.OnesCount64(uint64(perCluster)) != 1 || b.clusterSize < 512 || b.clusterSize > maxClusterSize:
		return nil, corruptf("boot sector: %d sectors a cluster", perCluster)
	case sectors == 0 || sectors > uint64(size/sector):
		return nil, corruptf("boot sector: %d sectors in a volume of %d bytes", sectors, size)
	}
	b.sizeBytes = int64(sectors) * sector
	b.clusters = uint64(b.sizeBytes / b.clusterSize)
	b.recordSize, b.indexSize = unit(p[64], b.clusterSize), unit(p[68], b.clusterSize)
	for _, n := range []int64{b.recordSize, b.indexSize} {
		if n < minRecordSize || n > maxRecordSize || bits.OnesCount64(uint64(n)) != 1 {
			return nil, corruptf("boot sector: records of %d bytes, index blocks of %d", b.recordSize, b.indexSize)
		}
	}
	if b.mft >= b.clusters || b.mirror >= b.clusters {
		return nil, corruptf("boot sector: MFT in cluster %d, its mirror in %d of %d", b.mft, b.mirror, b.clusters)
	}
	return b, nil
}

// unit is a size in clusters, or, when negative, its binary logarithm in bytes.
func unit(v byte, clusterSize int64) int64 {
	if n := int8(v); n < 0 {
		if n < -31 {
			return 0
		}
		return 1 << -n
	}
	return int64(v) * clusterSize
}
