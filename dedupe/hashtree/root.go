package hashtree

import (
	"encoding/binary"
	"fmt"
	"math/bits"

	"github.com/keelblock/keelblock/blockdev"
	"github.com/keelblock/keelblock/dedupe"
)

// fanOutBits is log2 of dedupe.FanOut.
const fanOutBits = 7

// RootSize is the length of an encoded Root in bytes.
const RootSize = 48

// Root describes the whole content of one disk at one instant. The zero Root
// stands for "nothing known" and is treated as a disk of size 0.
type Root struct {
	// SizeBytes of the disk: 0 .. blockdev.MaxSize, a multiple of SectorSize.
	SizeBytes int64
	// BlockSize in bytes: a power of two, dedupe.MinBlockSize .. MaxBlockSize.
	BlockSize int
	// Depth is the number of node levels, 1 .. dedupe.MaxDepth; the level of the
	// top node is Depth-1.
	Depth int
	// Top is the digest of the top node; zero when the whole disk is a hole.
	Top dedupe.Digest
}

// DepthFor is the smallest depth whose tree covers sizeBytes.
func DepthFor(sizeBytes int64, blockSize int) int {
	depth := 1
	for depth < dedupe.MaxDepth && blockCount(sizeBytes, blockSize) > blocksBelow(depth) {
		depth++
	}
	return depth
}

// blocksBelow is the number of blocks that a child of a node of the given level
// covers: FanOut^level. A tree of depth d covers blocksBelow(d) blocks.
func blocksBelow(level int) int64 { return 1 << (fanOutBits * level) }

// blockCount is the number of blocks of a disk, the last, partial one included.
func blockCount(sizeBytes int64, blockSize int) int64 {
	return (sizeBytes + int64(blockSize) - 1) / int64(blockSize)
}

// IsZero reports whether r is the zero Root: nothing is known.
func (r Root) IsZero() bool { return r == Root{} }

// Blocks is the number of blocks of the disk; the last one may be partial.
func (r Root) Blocks() int64 {
	if r.BlockSize == 0 {
		return 0
	}
	return blockCount(r.SizeBytes, r.BlockSize)
}

// Validate checks every field against the limits of the format. The zero Root is
// not valid.
func (r Root) Validate() error {
	switch {
	case r.BlockSize < dedupe.MinBlockSize || r.BlockSize > dedupe.MaxBlockSize || bits.OnesCount(uint(r.BlockSize)) != 1:
		return fmt.Errorf("root: block size %d is not a power of two in %d .. %d", r.BlockSize, dedupe.MinBlockSize, dedupe.MaxBlockSize)
	case r.SizeBytes < 0 || r.SizeBytes > blockdev.MaxSize || r.SizeBytes%blockdev.SectorSize != 0:
		return fmt.Errorf("root: size %d is not a multiple of %d in 0 .. %d", r.SizeBytes, blockdev.SectorSize, blockdev.MaxSize)
	case r.Depth < 1 || r.Depth > dedupe.MaxDepth:
		return fmt.Errorf("root: depth %d is not in 1 .. %d", r.Depth, dedupe.MaxDepth)
	case r.Blocks() > blocksBelow(r.Depth):
		return fmt.Errorf("root: depth %d does not cover %d bytes in blocks of %d", r.Depth, r.SizeBytes, r.BlockSize)
	case r.SizeBytes == 0 && !r.Top.IsZero():
		return fmt.Errorf("root: a disk of size 0 has a top node")
	}
	return nil
}

// AppendTo appends the RootSize bytes of r, see FORMAT.md.
func (r Root) AppendTo(b []byte) []byte {
	b = binary.LittleEndian.AppendUint64(b, uint64(r.SizeBytes))
	b = binary.LittleEndian.AppendUint32(b, uint32(r.BlockSize))
	b = append(b, byte(r.Depth), 0, 0, 0)
	return append(b, r.Top[:]...)
}

// ParseRoot decodes and validates the first RootSize bytes of p.
func ParseRoot(p []byte) (Root, error) {
	if len(p) < RootSize {
		return Root{}, fmt.Errorf("root: %d bytes, want %d", len(p), RootSize)
	}
	if p[13]|p[14]|p[15] != 0 {
		return Root{}, fmt.Errorf("root: reserved bytes are not zero: %w", dedupe.ErrUnknownFormat)
	}
	size, blockSize := binary.LittleEndian.Uint64(p), binary.LittleEndian.Uint32(p[8:])
	if size > uint64(blockdev.MaxSize) || blockSize > dedupe.MaxBlockSize {
		return Root{}, fmt.Errorf("root: size %d or block size %d is out of range", size, blockSize)
	}
	r := Root{SizeBytes: int64(size), BlockSize: int(blockSize), Depth: int(p[12])}
	copy(r.Top[:], p[16:RootSize])
	return r, r.Validate()
}

// Digest is the one value to compare: two disks whose root digests are equal have
// the same size and the same content. The converse holds within one block size,
// since the Writer always chooses the smallest depth.
func (r Root) Digest() dedupe.Digest {
	return dedupe.Sum(r.AppendTo(append(make([]byte, 0, RootSize+4), "root"...)))
}
