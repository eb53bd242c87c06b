package btrfs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sort"

	"github.com/keelblock/keelblock/blockdev/filesystem"
	"github.com/keelblock/keelblock/blockdev/filesystem/lru"
)

const (
	nodeHeader = 101 // struct btrfs_header
	itemHeader = 25  // struct btrfs_item
	ptrSize    = 33  // struct btrfs_key_ptr
)

// ref points to a node and says what it must be.
type ref struct {
	logical, generation uint64
	level               uint8
}

// node is a block of a tree, verified by itself.
type node struct {
	p          []byte
	generation uint64
	owner      uint64
	level      uint8
	n          int // items or pointers
}

func (n *node) key(i int) key {
	if n.level == 0 {
		return parseKey(n.p[nodeHeader+i*itemHeader:])
	}
	return parseKey(n.p[nodeHeader+i*ptrSize:])
}

// item is item i of a leaf.
func (n *node) item(i int) item {
	h := n.p[nodeHeader+i*itemHeader:]
	at, size := binary.LittleEndian.Uint32(h[17:]), binary.LittleEndian.Uint32(h[21:])
	return item{parseKey(h), n.p[nodeHeader+int(at):][:size:size]}
}

// child is pointer i of an inner node.
func (n *node) child(i int) ref {
	p := n.p[nodeHeader+i*ptrSize+keySize:]
	return ref{binary.LittleEndian.Uint64(p), binary.LittleEndian.Uint64(p[8:]), n.level - 1}
}

// search is the first slot whose key is not below k.
func (n *node) search(k key) int {
	return sort.Search(n.n, func(i int) bool { return n.key(i).compare(k) >= 0 })
}

func isCorrupt(err error) bool { return errors.Is(err, filesystem.ErrCorrupt) }

// node reads the node at r of the tree t, of which a copy that is damaged or old is
// replaced by another one.
func (f *FS) node(t *tree, r ref) (*node, error) {
	k := lru.Key{Class: classNode, A: r.logical}
	if n, ok := lru.Get[*node](f.cache, k); ok {
		return n, t.check(n, r)
	}
	places, err := f.locate(r.logical, uint64(f.super.nodeSize))
	if err != nil {
		return nil, err
	}
	var first error
	for _, at := range places {
		p := make([]byte, f.super.nodeSize)
		err := f.readFull(p, at)
		if err != nil {
			err = fmt.Errorf("read node at %d: %w", at, err)
		}
		var n *node
		if err == nil {
			n, err = f.parseNode(p, r.logical)
		}
		if err == nil {
			err = t.check(n, r)
		}
		if err == nil {
			f.cache.Put(k, n, len(p)+100)
			return n, nil
		}
		if first == nil {
			first = err
		}
	}
	return nil, first
}

// check holds a node against the pointer to it and the tree in which it is met
// (btrfs_verify_level_key, btrfs_check_eb_owner).
func (t *tree) check(n *node, r ref) error {
	if n.level != r.level || n.generation != r.generation {
		return corruptf("node %d has level %d and generation %d, want %d and %d", r.logical, n.level, n.generation, r.level, r.generation)
	}
	ok := n.owner == t.id
	if isSubvolume(t.id) { // snapshots share nodes
		ok = isSubvolume(n.owner) || n.owner == treeReloc
	}
	if !ok {
		return corruptf("node %d of tree %d belongs to tree %d", r.logical, int64(t.id), int64(n.owner))
	}
	return nil
}

// parseNode verifies all that a node says by itself.
func (f *FS) parseNode(p []byte, logical uint64) (*node, error) {
	le := binary.LittleEndian
	if !f.super.sums.headerOK(p) {
		return nil, corruptf("node %d: checksum does not match", logical)
	}
	if at := le.Uint64(p[48:]); at != logical {
		return nil, corruptf("node %d says that it is %d", logical, at)
	}
	if [16]byte(p[32:]) != f.super.metadataUUID {
		return nil, corruptf("node %d belongs to another file system", logical)
	}
	n := &node{p: p, generation: le.Uint64(p[80:]), owner: le.Uint64(p[88:]), level: p[100]}
	count, unit := le.Uint32(p[96:]), ptrSize
	if n.level == 0 {
		unit = itemHeader
	}
	if n.level > maxLevel || count > uint32((len(p)-nodeHeader)/unit) || (count == 0 && n.level > 0) {
		return nil, corruptf("node %d of level %d has %d items", logical, n.level, count)
	}
	n.n = int(count)
	return n, n.checkItems(logical)
}

// checkItems: keys rise, and items lie in the leaf, behind each other from its end on.
func (n *node) checkItems(logical uint64) error {
	le := binary.LittleEndian
	room := uint32(len(n.p) - nodeHeader)
	for i := range n.n {
		if i > 0 && n.key(i-1).compare(n.key(i)) >= 0 {
			return corruptf("node %d: keys %d and %d are not in order", logical, i-1, i)
		}
		if n.level > 0 {
			if n.child(i).logical%minSector != 0 {
				return corruptf("node %d: pointer %d is not aligned", logical, i)
			}
			continue
		}
		h := n.p[nodeHeader+i*itemHeader:]
		at, size := le.Uint32(h[17:]), le.Uint32(h[21:])
		if at > room || size > room || at+size != room || at < uint32(n.n*itemHeader) {
			return corruptf("node %d: item %d has %d bytes at %d", logical, i, size, at)
		}
		room = at
	}
	return nil
}
