package btrfs

import (
	"crypto/sha256"
	"encoding/binary"
	"hash/crc32"

	"github.com/cespare/xxhash/v2"
	"golang.org/x/crypto/blake2b"
)

// checksum is the algorithm of all checksums of a volume, super_block.csum_type.
type checksum uint16

const (
	checksumCRC32C checksum = iota
	checksumXXHash64
	checksumSHA256
	checksumBLAKE2b
)

// checksumField is how much room a header has for a checksum, in bytes.
const checksumField = 32

// size is the length of a checksum in bytes, 0 for an unknown algorithm.
func (c checksum) size() int {
	switch c {
	case checksumCRC32C:
		return 4
	case checksumXXHash64:
		return 8
	case checksumSHA256, checksumBLAKE2b:
		return 32
	}
	return 0
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// sum gives the checksum of p in the first size bytes.
func (c checksum) sum(p []byte) (out [checksumField]byte) {
	switch c {
	case checksumCRC32C:
		binary.LittleEndian.PutUint32(out[:], crc32.Checksum(p, castagnoli))
	case checksumXXHash64:
		binary.LittleEndian.PutUint64(out[:], xxhash.Sum64(p))
	case checksumSHA256:
		out = sha256.Sum256(p)
	case checksumBLAKE2b:
		out = blake2b.Sum256(p)
	}
	return out
}

// headerOK: the checksum at the front of a superblock or node is that of what is
// behind its field.
func (c checksum) headerOK(p []byte) bool {
	sum := c.sum(p[checksumField:])
	return string(sum[:c.size()]) == string(p[:c.size()])
}

// nameHash is btrfs_name_hash: CRC32c from ~1 on, without the inversions.
func nameHash(name []byte) uint64 { return uint64(rawCRC(^uint32(1), name)) }

// extrefHash is btrfs_extref_hash.
func extrefHash(parent uint64, name []byte) uint64 { return uint64(rawCRC(uint32(parent), name)) }

// rawCRC continues a CRC32c as the kernel's crc32c() does, which inverts neither what
// it takes nor what it gives.
func rawCRC(seed uint32, p []byte) uint32 { return ^crc32.Update(^seed, castagnoli, p) }
