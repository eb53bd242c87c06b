package ext

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/keelblock/keelblock/blockdev/filesystem"
)

// The hash tree of a directory, Documentation/filesystems/ext4/directory.rst. Block 0
// is the root: the entries "." and "..", the second of which seems to fill the
// block, and behind them struct dx_root_info. Other nodes seem to be one unused
// entry. Both go on with limit, count and pairs (hash, block), the first of which
// has no hash.
const (
	rootInfo      = 24
	rootOffset    = 32
	nodeOffset    = 8
	hashEntrySize = 8
	hashBlockMask = 0x0FFFFFFF
)

// Lookup finds name in dir: by the hash tree where the directory has one, otherwise
// by reading it from the start.
func (f *FS) Lookup(dir filesystem.Inode, name []byte) (filesystem.Inode, error) {
	in, err := f.dirInode(dir)
	if err != nil {
		return 0, fmt.Errorf("lookup: %w", err)
	}
	n, err := f.lookup(in, name)
	if err != nil {
		return 0, fmt.Errorf("lookup %q in directory %d: %w", name, dir, err)
	}
	return filesystem.Inode(n), nil
}

func (f *FS) lookup(in *inode, name []byte) (uint32, error) {
	switch {
	case len(name) == 0 || len(name) > maxNameLen:
		return 0, filesystem.ErrNotExist
	case isDot(name):
		return in.num, nil
	case isDotDot(name):
		return f.parent(in)
	}
	if d := f.fast.dir(in.num); d != nil {
		if n, changed := d.entries[string(name)]; n != 0 {
			return f.validTarget(n)
		} else if changed || d.fresh {
			return 0, filesystem.ErrNotExist
		}
	}
	if in.has(flagInlineData) {
		return f.lookupInline(in, name)
	}
	if f.hashed(in) {
		n, err := f.lookupHashed(in, name)
		if !errors.Is(err, errNoHash) {
			return n, err
		}
	}
	return f.lookupLinear(in, name)
}

// lookupLinear reads the directory in a circle from where the last search in it
// ended (as ext4's i_dir_start_lookup): looking up all names in their order is then
// linear and not quadratic.
func (f *FS) lookupLinear(in *inode, name []byte) (uint32, error) {
	blocks := uint64(in.size) >> f.super.blockBits
	hint := &f.hints[in.num%uint32(len(f.hints))]
	start := uint64(0)
	if h := hint.Load(); uint32(h>>32) == in.num && h&(1<<32-1) < blocks {
		start = h & (1<<32 - 1)
	}
	for i := range blocks {
		b := (start + i) % blocks
		n, err := f.lookupBlock(in, b, name)
		if err != nil {
			return 0, err
		}
		if n != 0 {
			hint.Store(uint64(in.num)<<32 | b)
			return n, nil
		}
	}
	return 0, filesystem.ErrNotExist
}

// lookupBlock looks into one leaf; 0 when the name is not there.
func (f *FS) lookupBlock(in *inode, b uint64, name []byte) (uint32, error) {
	p, err := f.dirBlock(in, b)
	if err != nil {
		return 0, err
	}
	n, err := f.lookupDirents(p, name)
	if err != nil {
		return 0, fmt.Errorf("logical block %d: %w", b, err)
	}
	return n, nil
}

func (f *FS) lookupDirents(p, name []byte) (uint32, error) {
	for at := 0; at < len(p); {
		e, err := f.parseDirent(p, at)
		if err != nil {
			return 0, err
		}
		if e.inode != 0 && bytes.Equal(e.name, name) {
			if err := checkName(e); err != nil {
				return 0, err
			}
			return f.validTarget(e.inode)
		}
		at = e.next
	}
	return 0, nil
}

// errNoHash: the hash of this directory cannot be computed; it is read instead.
var errNoHash = errors.New("hash is not known")

// treeSearch is one search in a hash tree.
type treeSearch struct {
	f     *FS
	in    *inode
	name  []byte
	hash  uint32
	steps uint64 // blocks that may still be read
}

// maxTreeSteps bounds a search on a large hostile directory. In a good tree no block
// is read twice, and more than a few only when many names have the same hash.
const maxTreeSteps = 1 << 16

func (f *FS) lookupHashed(in *inode, name []byte) (uint32, error) {
	root, err := f.dirBlock(in, 0)
	if err != nil {
		return 0, err
	}
	info := root[rootInfo:]
	version, length, levels := info[4], info[5], int(info[6])
	maxLevels := 1
	if f.super.has(incompatLargeDir) {
		maxLevels = 2
	}
	if length != 8 || levels > maxLevels || binary.LittleEndian.Uint32(info) != 0 {
		return 0, corruptf("hash tree root: length %d, %d levels", length, levels)
	}
	hash, ok := f.dirHash(version, name, in)
	if !ok {
		return 0, errNoHash
	}
	t := treeSearch{f: f, in: in, name: name, hash: hash, steps: min(uint64(in.size)>>f.super.blockBits, maxTreeSteps)}
	n, err := t.node(root, rootOffset, levels)
	if err == nil && n == 0 {
		err = filesystem.ErrNotExist
	}
	return n, err
}

// node searches below one node. Names whose hash is the same may go on in the next
// leaf, whose own hash then has the lowest bit set.
func (t *treeSearch) node(p []byte, offset, levels int) (uint32, error) {
	le := binary.LittleEndian
	limit, count := int(le.Uint16(p[offset:])), int(le.Uint16(p[offset+2:]))
	if count == 0 || count > limit || offset+limit*hashEntrySize > len(p) {
		return 0, corruptf("hash tree node has %d of %d entries", count, limit)
	}
	key := func(i int) uint64 {
		if i == 0 {
			return 0
		}
		return uint64(le.Uint32(p[offset+i*hashEntrySize:]))
	}
	for i := lastAtMost(count, uint64(t.hash), key); i < count; i++ {
		if i > 0 && key(i) > uint64(t.hash) && uint32(key(i))&^1 != t.hash {
			break
		}
		if t.steps == 0 {
			return 0, corruptf("hash tree goes in a circle")
		}
		t.steps--
		block := uint64(le.Uint32(p[offset+i*hashEntrySize+4:]) & hashBlockMask)
		n, err := t.child(block, levels)
		if n != 0 || err != nil {
			return n, err
		}
	}
	return 0, nil
}

func (t *treeSearch) child(block uint64, levels int) (uint32, error) {
	if block == 0 {
		return 0, corruptf("hash tree points to its root")
	}
	if levels == 0 {
		return t.f.lookupBlock(t.in, block, t.name)
	}
	p, err := t.f.dirBlock(t.in, block)
	if err != nil {
		return 0, err
	}
	if !t.f.isNode(p) {
		return 0, corruptf("hash tree node in logical block %d is none", block)
	}
	return t.node(p, nodeOffset, levels-1)
}
