package xfs

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/bits"
	"sort"

	"github.com/keelblock/keelblock/blockdev/filesystem"
	"github.com/keelblock/keelblock/blockdev/filesystem/lru"
)

// Blocks of hashes. In version 5 the magic differs in the first byte and the header
// is longer.
const (
	magicDANode   = 0xFEBE
	magicDANode3  = 0x3EBE
	magicDirLeaf1 = 0xD2F1 // the only one of its directory
	magicDirLeaf3 = 0x3DF1
	magicDirLeafN = 0xD2FF // below a node
	magicDirLeafM = 0x3DFF
	magicAttr     = 0xFBEE
	magicAttr3    = 0x3BEE

	// maxDADepth is XFS_DA_NODE_MAXDEPTH.
	maxDADepth = 5
	// maxSameHash bounds the entries with one hash that Lookup compares, maxLeaves
	// the blocks in a row that it looks at for them.
	maxSameHash = 1 << 16
	maxLeaves   = 1 << 10
)

// Lookup finds name in the directory dir by its hash.
func (f *FS) Lookup(dir filesystem.Inode, name []byte) (filesystem.Inode, error) {
	in, err := f.dirInode(dir)
	if err != nil {
		return 0, fmt.Errorf("lookup: %w", err)
	}
	if len(name) == 0 || len(name) > maxNameLen {
		return 0, fmt.Errorf("lookup: name of %d bytes: %w", len(name), filesystem.ErrNotExist)
	}
	found := uint64(0)
	switch {
	case isDot(name):
		return dir, nil
	case isDotDot(name):
		return f.Parent(dir)
	case in.data.format == formatLocal:
		err = f.eachShort(in, func(e *dirent) bool {
			if bytes.Equal(e.name, name) {
				found = e.inode
			}
			return found == 0
		})
	default:
		found, err = f.lookupHash(in, name)
	}
	if err == nil && found == 0 {
		err = fmt.Errorf("%q: %w", name, filesystem.ErrNotExist)
	}
	if err != nil {
		return 0, fmt.Errorf("lookup: directory %d: %w", dir, err)
	}
	return filesystem.Inode(found), nil
}

// hashName is xfs_da_hashname, and in case-insensitive file systems
// xfs_ascii_ci_hashname.
func (f *FS) hashName(name []byte) uint32 {
	if f.super.asciiCI {
		var h uint32
		for _, c := range name {
			h = uint32(lower(c)) ^ bits.RotateLeft32(h, 7)
		}
		return h
	}
	var h uint32
	for ; len(name) >= 4; name = name[4:] {
		h = uint32(name[0])<<21 ^ uint32(name[1])<<14 ^ uint32(name[2])<<7 ^ uint32(name[3]) ^ bits.RotateLeft32(h, 28)
	}
	switch len(name) {
	case 3:
		return uint32(name[0])<<14 ^ uint32(name[1])<<7 ^ uint32(name[2]) ^ bits.RotateLeft32(h, 21)
	case 2:
		return uint32(name[0])<<7 ^ uint32(name[1]) ^ bits.RotateLeft32(h, 14)
	case 1:
		return uint32(name[0]) ^ bits.RotateLeft32(h, 7)
	}
	return h
}

// lower is xfs_ascii_ci_xfrm: Latin-1 without what is no letter.
func lower(c byte) byte {
	if c >= 'A' && c <= 'Z' || c >= 0xC0 && c <= 0xD6 || c >= 0xD8 && c <= 0xDE {
		return c + 0x20
	}
	return c
}

// hashes is a sorted array of pairs: hash and where the entry is, in 8 bytes.
type hashes []byte

func (h hashes) len() int           { return len(h) / 8 }
func (h hashes) hash(i int) uint32  { return binary.BigEndian.Uint32(h[8*i:]) }
func (h hashes) where(i int) uint32 { return binary.BigEndian.Uint32(h[8*i+4:]) }
func (h hashes) first(hash uint32) int {
	return sort.Search(h.len(), func(i int) bool { return h.hash(i) >= hash })
}

// lookupHash searches a directory of blocks.
func (f *FS) lookupHash(in *inode, name []byte) (uint64, error) {
	first, err := f.dataBlock(in, 0)
	if err != nil {
		return 0, err
	}
	hash := f.hashName(name)
	if magic := binary.BigEndian.Uint32(first); magic == magicBlock2 || magic == magicBlock3 {
		_, end, err := f.dataArea(first)
		if err != nil {
			return 0, err
		}
		found, _, err := f.compare(in, hashes(first[end:len(first)-8]), hash, name)
		return found, err
	}
	per := uint64(1) << f.super.dirBlockBits
	leaf, err := f.descend(&in.data, leafSpace>>f.super.blockBits, per, hash)
	for range maxLeaves {
		if err != nil {
			return 0, err
		}
		if leaf.magic != magicDirLeaf1 && leaf.magic != magicDirLeafN {
			return 0, corruptf("hashes of a directory in a block of magic %#x", leaf.magic)
		}
		found, more, err := f.compare(in, leaf.entries, hash, name)
		if found != 0 || err != nil || !more || leaf.next == 0 {
			return found, err
		}
		last := leaf.entries.len()
		next, err := f.daBlock(&in.data, uint64(leaf.next), per)
		if err != nil {
			return 0, err
		}
		if next.entries.len() > 0 && last > 0 && next.entries.hash(0) < leaf.entries.hash(last-1) {
			return 0, corruptf("blocks of hashes are not in order")
		}
		leaf = next
	}
	return 0, corruptf("too many blocks of hashes in a row")
}

// compare looks at the entries with this hash. more: the next block may have some.
func (f *FS) compare(in *inode, h hashes, hash uint32, name []byte) (found uint64, more bool, err error) {
	i := h.first(hash)
	for n := 0; i < h.len() && h.hash(i) == hash; i++ {
		if n++; n > maxSameHash {
			return 0, false, corruptf("over %d entries of one hash", maxSameHash)
		}
		if h.where(i) == 0 {
			continue // removed
		}
		e, err := f.entryAt(in, h.where(i))
		if err != nil {
			return 0, false, err
		}
		if bytes.Equal(e.name, name) {
			return e.inode, false, f.checkDirent(&e)
		}
	}
	return 0, i == h.len(), nil
}

// entryAt is the entry at a position in the space of entries, in units of 8 bytes.
func (f *FS) entryAt(in *inode, where uint32) (dirent, error) {
	position := uint64(where) << 3
	bits := f.super.blockBits + f.super.dirBlockBits
	p, err := f.dataBlock(in, position>>bits)
	if err != nil {
		return dirent{}, err
	}
	start, end, err := f.dataArea(p)
	if err != nil {
		return dirent{}, err
	}
	at := int(position & (1<<bits - 1))
	if at < start || at >= end {
		return dirent{}, corruptf("hash points to byte %d of a directory block", at)
	}
	e, err := f.parseDirent(p[:end], at)
	if err == nil && e.name == nil {
		err = corruptf("hash points to a free area of a directory block")
	}
	return e, err
}

// da is a block of hashes: a node or a leaf of a directory or of attributes.
type da struct {
	magic   uint16 // of version 4
	next    uint32 // logical block of the sibling behind, or 0
	level   int    // of a node
	entries hashes // of attributes: none, see attr.go
	block   []byte
}

// descend goes from the root at logical block b to the first leaf that may hold hash.
func (f *FS) descend(fk *fork, b, per uint64, hash uint32) (*da, error) {
	d, err := f.daBlock(fk, b, per)
	if err != nil || d.magic != magicDANode {
		return d, err
	}
	if d.level > maxDADepth {
		return nil, corruptf("hash tree is %d deep", d.level)
	}
	for d.magic == magicDANode {
		i := d.entries.first(hash)
		if i == d.entries.len() {
			// Behind the last hash: the last leaf, where a search finds nothing.
			if i--; i < 0 {
				return nil, corruptf("node of a hash tree is empty")
			}
		}
		level := d.level
		if d, err = f.daBlock(fk, uint64(d.entries.where(i)), per); err != nil {
			return nil, err
		}
		if (d.magic == magicDANode) != (level > 1) || (d.magic == magicDANode && d.level != level-1) {
			return nil, corruptf("hash tree has level %d below level %d", d.level, level)
		}
	}
	return d, nil
}

// daBlock is the block of hashes at logical block b, of per blocks, verified.
func (f *FS) daBlock(fk *fork, b, per uint64) (*da, error) {
	key := lru.Key{Class: classDA, A: fk.owner<<1 | b2u(fk.attr), B: b}
	if d, ok := lru.Get[*da](f.cache, key); ok {
		return d, nil
	}
	p, first, believed, err := f.gather(fk, b, per)
	if err != nil {
		return nil, err
	}
	d, err := f.parseDA(fk, p, first, believed)
	if err != nil {
		return nil, fmt.Errorf("inode %d: logical block %d: %w", fk.owner, b, err)
	}
	f.cache.Put(key, d, len(p)+96)
	return d, nil
}

// parseDA verifies a block of hashes (xfs_da3_node_read, xfs_dir3_leaf_read).
func (f *FS) parseDA(fk *fork, p []byte, at uint64, believed bool) (*da, error) {
	be := binary.BigEndian
	d := &da{magic: be.Uint16(p[8:]), next: be.Uint32(p), block: p}
	counts, size := 12, 16
	if f.super.v5 {
		counts, size = 56, headerDA.size
		if err := f.verify(p, headerDA, at, fk.owner, believed); err != nil {
			return nil, err
		}
		magics := map[uint16]uint16{magicDANode3: magicDANode, magicDirLeaf3: magicDirLeaf1, magicDirLeafM: magicDirLeafN, magicAttr3: magicAttr}
		old, ok := magics[d.magic]
		if !ok {
			return nil, corruptf("block of hashes with magic %#x", d.magic)
		}
		d.magic = old
	}
	n := int(be.Uint16(p[counts:]))
	switch d.magic {
	case magicDANode:
		d.level = int(be.Uint16(p[counts+2:]))
		if d.level == 0 || n == 0 {
			return nil, corruptf("node of a hash tree on level %d with %d entries", d.level, n)
		}
	case magicDirLeaf1, magicDirLeafN:
		if d.magic == magicDirLeaf1 {
			d.next = 0
		}
	case magicAttr:
		return d, nil
	default:
		return nil, corruptf("block of hashes with magic %#x", d.magic)
	}
	if n > (len(p)-size)/8 {
		return nil, corruptf("block of hashes with %d entries", n)
	}
	d.entries = hashes(p[size:][: 8*n : 8*n])
	for i := 1; i < n; i++ {
		if d.entries.hash(i) < d.entries.hash(i-1) {
			return nil, corruptf("hashes are not in order")
		}
	}
	return d, nil
}
