package ext

import (
	"encoding/binary"
	"fmt"

	"github.com/keelblock/keelblock/blockdev/filesystem/lru"
)

// runKind says what a run of blocks of a file is.
type runKind uint8

const (
	runHole      runKind = iota // no storage, reads as zeros
	runUnwritten                // storage that was never written, reads as zeros
	runData
)

// run is a range of logical blocks of a file, and where it is for runData.
type run struct {
	kind   runKind
	block  uint64 // first block on the volume
	blocks uint64 // how many, at least 1
}

// maxLogical is the number of logical blocks of a file.
const maxLogical = 1 << 32

// mapBlock gives the run that begins at logical block b < maxLogical. It is as long
// as one node of the map tells, so the next run may be of the same kind. It reads
// at most as many blocks as the tree is deep.
func (f *FS) mapBlock(in *inode, b uint64) (run, error) {
	base := func() (run, error) {
		if in.has(flagExtents) {
			return f.mapExtent(in, b)
		}
		return f.mapIndirect(in, b)
	}
	r, err := run{}, error(nil)
	if in.ranges != nil {
		r, err = overRanges(in.ranges, b, base)
	} else {
		r, err = base()
	}
	if err != nil {
		return run{}, fmt.Errorf("inode %d: logical block %d: %w", in.num, b, err)
	}
	return r, nil
}

// Extents, fs/ext4/ext4_extents.h.
const (
	extentMagic    = 0xF30A
	extentSize     = 12 // of the header, an extent and an index entry
	extentMaxDepth = 5
	extentMaxLen   = 1 << 15 // a longer one is unwritten, and 1<<15 shorter
)

// mapExtent searches the extent tree.
func (f *FS) mapExtent(in *inode, b uint64) (run, error) {
	node := in.block()
	depth := int(binary.LittleEndian.Uint16(node[6:]))
	if depth > extentMaxDepth {
		return run{}, corruptf("extent tree is %d deep", depth)
	}
	if err := f.checkExtents(node, depth); err != nil {
		return run{}, err
	}
	low, high := uint64(0), uint64(maxLogical) // what this node may map
	for {
		n := int(binary.LittleEndian.Uint16(node[2:]))
		if n == 0 {
			return run{kind: runHole, blocks: high - b}, nil
		}
		key := func(i int) uint64 {
			return uint64(binary.LittleEndian.Uint32(node[extentSize*(i+1):]))
		}
		if key(0) < low || key(n-1) >= high {
			return run{}, corruptf("extents lie outside their parent's range")
		}
		if b < key(0) {
			return run{kind: runHole, blocks: key(0) - b}, nil
		}
		i := lastAtMost(n, b, key)
		if i+1 < n {
			high = key(i + 1)
		}
		entry := node[extentSize*(i+1):][:extentSize]
		if depth == 0 {
			return leafRun(entry, b, key(i), high)
		}
		low = key(i)
		child := uint64(binary.LittleEndian.Uint32(entry[4:])) | uint64(binary.LittleEndian.Uint16(entry[8:]))<<32
		depth--
		var err error
		if node, err = f.extentNode(in, child, depth); err != nil {
			return run{}, err
		}
	}
}

// lastAtMost is the greatest i < n with key(i) <= b; key(0) <= b.
func lastAtMost(n int, b uint64, key func(int) uint64) int {
	i, j := 0, n
	for j-i > 1 {
		if m := (i + j) / 2; key(m) <= b {
			i = m
		} else {
			j = m
		}
	}
	return i
}

// leafRun is the run of b in an extent that begins at first, or the hole behind it,
// which reaches to high.
func leafRun(entry []byte, b, first, high uint64) (run, error) {
	start, length, unwritten := decodeExtent(entry)
	if first+length > high {
		return run{}, corruptf("an extent reaches into the next")
	}
	if b >= first+length {
		return run{kind: runHole, blocks: high - b}, nil
	}
	r := run{kind: runData, block: start + b - first, blocks: first + length - b}
	if unwritten {
		r.kind = runUnwritten
	}
	return r, nil
}

func decodeExtent(entry []byte) (start, length uint64, unwritten bool) {
	le := binary.LittleEndian
	length = uint64(le.Uint16(entry[4:]))
	start = uint64(le.Uint16(entry[6:]))<<32 | uint64(le.Uint32(entry[8:]))
	if length > extentMaxLen {
		return start, length - extentMaxLen, true
	}
	return start, length, false
}

// extentNode is the node in block b, verified.
func (f *FS) extentNode(in *inode, b uint64, depth int) ([]byte, error) {
	key := lru.Key{Class: classExtent, A: uint64(in.num)<<8 | uint64(depth), B: b}
	if node, ok := lru.Get[[]byte](f.cache, key); ok {
		return node, nil
	}
	if !f.super.validRange(b, 1) {
		return nil, corruptf("extent node in block %d of %d", b, f.super.blocks)
	}
	node, err := f.readBlock(b)
	if err != nil {
		return nil, err
	}
	if err := f.checkExtents(node, depth); err != nil {
		return nil, fmt.Errorf("extent node in block %d: %w", b, err)
	}
	if f.super.metadataCsum() {
		tail := extentSize * (1 + int(binary.LittleEndian.Uint16(node[4:])))
		if tail+4 > len(node) || crc32c(in.seed, node[:tail]) != binary.LittleEndian.Uint32(node[tail:]) {
			return nil, corruptf("extent node in block %d: checksum is wrong", b)
		}
	}
	f.cache.Put(key, node, len(node))
	return node, nil
}

// checkExtents follows __ext4_ext_check: header, order of the entries, and that they
// point into the file system.
func (f *FS) checkExtents(node []byte, depth int) error {
	le := binary.LittleEndian
	n, limit := int(le.Uint16(node[2:])), int(le.Uint16(node[4:]))
	switch {
	case le.Uint16(node) != extentMagic:
		return corruptf("extent header has no magic")
	case int(le.Uint16(node[6:])) != depth:
		return corruptf("extent header says depth %d, not %d", le.Uint16(node[6:]), depth)
	case limit == 0 || limit > len(node)/extentSize-1 || n > limit:
		return corruptf("extent header has %d of %d entries", n, limit)
	case n == 0 && depth > 0:
		return corruptf("extent index is empty")
	}
	next := uint64(0) // the first logical block that may come
	for i := range n {
		entry := node[extentSize*(i+1):][:extentSize]
		key := uint64(le.Uint32(entry))
		if key < next {
			return corruptf("extents are not in order")
		}
		if depth > 0 {
			next = key + 1
			if child := uint64(le.Uint32(entry[4:])) | uint64(le.Uint16(entry[8:]))<<32; !f.super.validRange(child, 1) {
				return corruptf("extent index points to block %d of %d", child, f.super.blocks)
			}
			continue
		}
		start, length, _ := decodeExtent(entry)
		next = key + length
		if length == 0 || next > maxLogical || !f.super.validRange(start, length) {
			return corruptf("extent of %d blocks at block %d of %d", length, start, f.super.blocks)
		}
	}
	return nil
}
