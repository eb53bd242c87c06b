package xfs

import (
	"encoding/binary"
	"fmt"
	"sort"

	"github.com/keelblock/keelblock/blockdev/filesystem/lru"
)

// runKind says what a run of blocks of a file is.
type runKind uint8

const (
	runHole      runKind = iota // no storage, reads as zeros
	runUnwritten                // storage that was never written, reads as zeros
	runData
)

// run is a range of logical blocks of a fork, and where it is on the volume, in
// blocks from its start, unless it is a hole.
type run struct {
	kind   runKind
	block  uint64
	blocks uint64 // how many, at least 1
}

const (
	// maxLogical is the number of logical blocks of a fork: BMBT_STARTOFF_BITLEN.
	maxLogical = 1 << 54
	extentSize = 16
	// maxMapDepth is over what any file needs: 2^54 blocks in nodes of 4 entries
	// would be deeper, but a node has at least 27 (512-byte blocks).
	maxMapDepth = 12
)

// extent is an unpacked record of a map (struct xfs_bmbt_rec).
type extent struct {
	first     uint64 // logical block
	block     uint64 // block number: allocation group and block in it
	blocks    uint64
	unwritten bool
}

func decodeExtent(p []byte) extent {
	hi, lo := binary.BigEndian.Uint64(p), binary.BigEndian.Uint64(p[8:])
	return extent{
		first:     hi >> 9 & (maxLogical - 1),
		block:     hi&0x1FF<<43 | lo>>21,
		blocks:    lo & (1<<21 - 1),
		unwritten: hi>>63 != 0,
	}
}

// mapBlock gives the run that begins at logical block b < maxLogical. It is as long
// as one extent, so the next run may be of the same kind. It reads at most as many
// blocks as the tree is deep.
func (f *FS) mapBlock(fk *fork, b uint64) (run, error) {
	var r run
	var err error
	switch {
	case fk.list != nil:
		r = mapList(fk.list, b)
	case fk.format == formatExtents:
		r, err = f.searchExtents(fk.raw, int(fk.extents), b, maxLogical)
	case fk.format == formatBtree:
		r, err = f.searchTree(fk, b)
	default:
		err = corruptf("data of format %d has no extents", fk.format)
	}
	if err != nil {
		return run{}, fmt.Errorf("inode %d: logical block %d: %w", fk.owner, b, err)
	}
	return r, nil
}

// searchExtents looks for b in n records, which have been checked.
func (f *FS) searchExtents(records []byte, n int, b, high uint64) (run, error) {
	at := func(i int) extent { return decodeExtent(records[i*extentSize:]) }
	after := sort.Search(n, func(i int) bool { return at(i).first > b })
	if after < n {
		high = min(high, at(after).first)
	}
	return f.runOf(b, high, after, at)
}

// runOf is the run of b, when after is the first record behind it and high where that
// begins.
func (f *FS) runOf(b, high uint64, after int, at func(int) extent) (run, error) {
	if after == 0 {
		return run{kind: runHole, blocks: high - b}, nil
	}
	e := at(after - 1)
	if b >= e.first+e.blocks {
		return run{kind: runHole, blocks: high - b}, nil
	}
	block, ok := f.super.linear(e.block, e.blocks)
	if !ok {
		return run{}, corruptf("extent of %d blocks at block %d", e.blocks, e.block)
	}
	r := run{kind: runData, block: block + b - e.first, blocks: e.first + e.blocks - b}
	if e.unwritten {
		r.kind = runUnwritten
	}
	return r, nil
}

// checkExtents: n records that are in order and lie inside the file system and
// [low, high).
func (f *FS) checkExtents(records []byte, n int, low, high uint64) error {
	next := low
	for i := range n {
		e := decodeExtent(records[i*extentSize:])
		switch _, ok := f.super.linear(e.block, e.blocks); {
		case !ok:
			return corruptf("extent of %d blocks at block %d", e.blocks, e.block)
		case e.first < next:
			return corruptf("extents are not in order")
		case e.blocks > high || e.first > high-e.blocks:
			return corruptf("an extent reaches behind its range")
		}
		next = e.first + e.blocks
	}
	return nil
}

// checkFork holds the root of a map against the inode.
func (f *FS) checkFork(fk *fork) error {
	switch fk.format {
	case formatDevice, formatLocal:
		if fk.attr && fk.format == formatDevice {
			return corruptf("attributes of format %d", fk.format)
		}
		if fk.extents != 0 {
			return corruptf("%d extents beside local data", fk.extents)
		}
		return nil
	case formatExtents:
		if fk.extents > uint64(len(fk.raw)/extentSize) {
			return corruptf("%d extents in an inode with room for %d", fk.extents, len(fk.raw)/extentSize)
		}
		return f.checkExtents(fk.raw, int(fk.extents), 0, maxLogical)
	case formatBtree:
		_, err := f.treeRoot(fk)
		return err
	}
	return corruptf("fork of format %d", fk.format)
}

// node is one node of a map of extents.
type node struct {
	level int
	n     int
	keys  []byte // or records, on level 0
	ptrs  []byte
}

func (n *node) key(i int) uint64 { return binary.BigEndian.Uint64(n.keys[8*i:]) }
func (n *node) ptr(i int) uint64 { return binary.BigEndian.Uint64(n.ptrs[8*i:]) }

// treeRoot is the root in the inode (struct xfs_bmdr_block).
func (f *FS) treeRoot(fk *fork) (*node, error) {
	if len(fk.raw) < 4+16 {
		return nil, corruptf("no room for the root of a map")
	}
	be := binary.BigEndian
	room := (len(fk.raw) - 4) / 16
	root := &node{level: int(be.Uint16(fk.raw)), n: int(be.Uint16(fk.raw[2:])), keys: fk.raw[4:], ptrs: fk.raw[4+8*room:]}
	if root.level == 0 || root.level > maxMapDepth || root.n == 0 || root.n > room {
		return nil, corruptf("root of a map has level %d and %d of %d entries", root.level, root.n, room)
	}
	return root, f.checkNode(root)
}

// checkNode: the keys of an inner node ascend.
func (f *FS) checkNode(n *node) error {
	for i := 1; i < n.n; i++ {
		if n.key(i) <= n.key(i-1) {
			return corruptf("keys of a map are not in order")
		}
	}
	return nil
}

// searchTree goes down the tree. Levels fall by one at each step, so it ends.
func (f *FS) searchTree(fk *fork, b uint64) (run, error) {
	n, err := f.treeRoot(fk)
	if err != nil {
		return run{}, err
	}
	low, high := uint64(0), uint64(maxLogical) // what this node may map
	for n.level > 0 {
		if n.key(0) < low || n.key(n.n-1) >= high {
			return run{}, corruptf("keys of a map lie outside their parent's range")
		}
		after := sort.Search(n.n, func(i int) bool { return n.key(i) > b })
		if after == 0 {
			return run{kind: runHole, blocks: n.key(0) - b}, nil
		}
		if after < n.n {
			high = n.key(after)
		}
		low = n.key(after - 1)
		if n, err = f.mapNode(fk, n.ptr(after-1), n.level-1); err != nil {
			return run{}, err
		}
	}
	if n.n > 0 {
		first, last := decodeExtent(n.keys), decodeExtent(n.keys[(n.n-1)*extentSize:])
		if first.first < low || last.first+last.blocks > high {
			return run{}, corruptf("extents lie outside their parent's range")
		}
	}
	return f.searchExtents(n.keys, n.n, b, high)
}

// mapNode is the node in a block, verified.
func (f *FS) mapNode(fk *fork, block uint64, level int) (*node, error) {
	at, ok := f.super.linear(block, 1)
	if !ok {
		return nil, corruptf("node of a map in block %d", block)
	}
	key := lru.Key{Class: classMap, A: fk.owner<<1 | b2u(fk.attr), B: at}
	p, ok := lru.Get[[]byte](f.cache, key)
	if !ok {
		var err error
		if p, err = f.readBlocks(at, 1); err != nil {
			return nil, err
		}
	}
	n, err := f.parseNode(fk, p, at, level, ok)
	if err != nil {
		return nil, fmt.Errorf("node of a map in block %d: %w", at, err)
	}
	if !ok {
		f.cache.Put(key, p, len(p))
	}
	return n, nil
}

func b2u(b bool) uint64 {
	if b {
		return 1
	}
	return 0
}

// parseNode verifies a node, unless verified already.
func (f *FS) parseNode(fk *fork, p []byte, at uint64, level int, verified bool) (*node, error) {
	be := binary.BigEndian
	magic, size := uint32(0x424D4150), 24 // "BMAP"
	if f.super.v5 {
		magic, size = 0x424D4133, headerBtree.size // "BMA3"
	}
	n := &node{level: int(be.Uint16(p[4:])), n: int(be.Uint16(p[6:])), keys: p[size:]}
	room := (len(p) - size) / 16
	n.ptrs = p[size+8*room:]
	if be.Uint32(p) != magic || n.level != level || n.n > room || (n.n == 0 && level > 0) {
		return nil, corruptf("magic %#x, level %d, not %d, %d of %d entries", be.Uint32(p), n.level, level, n.n, room)
	}
	if verified {
		return n, nil
	}
	if f.super.v5 {
		owner := fk.owner
		if fk.foreign {
			owner = be.Uint64(p[headerBtree.owner:])
		}
		if err := f.verify(p, headerBtree, at, owner, f.recovered(at, 1)); err != nil {
			return nil, err
		}
	}
	if level > 0 {
		return n, f.checkNode(n)
	}
	return n, f.checkExtents(n.keys, n.n, 0, maxLogical)
}
