package btrfs

import (
	"encoding/binary"
	"fmt"

	"github.com/keelblock/keelblock/blockdev/filesystem"
	"github.com/keelblock/keelblock/blockdev/filesystem/lru"
)

const (
	rootItemSize  = 239 // of the first version; what is behind is not used
	rootRefSize   = 18  // without the name
	objectRootDir = firstFree

	// topLevelName leads from the root directory to the top-level subvolume when that
	// is not what is shown. It is found, but not listed, as ZFS does with .zfs: a copy
	// of the whole tree would otherwise have everything twice.
	topLevelName = ".btrfs"
)

// An inode number tells subvolume and object in it. The mounted subvolume, code 0, has
// the kernel's own numbers; code 5 is the top-level subvolume, others are their ids.
// What fits is kept below 2^39, as mounts like it:
//
//	bits 0-27 object, 28-38 code
//	bits 0-39 object, 40-62 code, bit 63 set
//
// Object bit 39 of the latter says that the rest is the id of a subvolume that is no
// more; its empty directory is shown.
const (
	smallObjectBits = 28
	smallCodeBits   = 11
	largeObjectBits = 40
	largeCodeBits   = 23
	largeBit        = uint64(1) << 63
	lostBit         = uint64(1) << (largeObjectBits - 1)
)

// encode gives the inode number of an object.
func encode(code, object uint64) (filesystem.Inode, error) {
	if code < 1<<smallCodeBits && object < 1<<smallObjectBits {
		return filesystem.Inode(code<<smallObjectBits | object), nil
	}
	return encodeLarge(code, object)
}

func encodeLarge(code, object uint64) (filesystem.Inode, error) {
	if code >= 1<<largeCodeBits || object >= lostBit {
		return 0, unsupportedf("inode %d of subvolume %d: numbers from 2^39 and 2^23 up", object, code)
	}
	return filesystem.Inode(largeBit | code<<largeObjectBits | object), nil
}

// encodeLost gives the inode number of the empty directory of a subvolume.
func encodeLost(code, id uint64) (filesystem.Inode, error) {
	n, err := encodeLarge(code, id)
	return n | filesystem.Inode(lostBit), err
}

// decode is the inverse of encode and encodeLost.
func decode(n filesystem.Inode) (code, object uint64, lost, ok bool) {
	v := uint64(n)
	if v&largeBit == 0 {
		return v >> smallObjectBits, v & (1<<smallObjectBits - 1), false, v < 1<<(smallObjectBits+smallCodeBits)
	}
	v &^= largeBit
	code, object = v>>largeObjectBits, v&(1<<largeObjectBits-1)
	lost = object&lostBit != 0
	object &^= lostBit
	small := code < 1<<smallCodeBits && object < 1<<smallObjectBits
	return code, object, lost, lost || !small
}

// subvolume is a tree of files.
type subvolume struct {
	tree
	code uint64 // of its inode numbers
	top  uint64 // object of its root directory
}

// subvolume opens the one with a code.
func (f *FS) subvolume(code uint64) (*subvolume, error) {
	k := lru.Key{Class: classSubvolume, A: code}
	if s, ok := lru.Get[*subvolume](f.cache, k); ok {
		return s, nil
	}
	id := code
	if code == 0 {
		id = f.mounted
	}
	if !isSubvolume(id) {
		return nil, fmt.Errorf("subvolume %d: %w", id, filesystem.ErrNotExist)
	}
	data, err := f.rootItem(id)
	if err != nil {
		return nil, fmt.Errorf("subvolume %d: %w", id, err)
	}
	le := binary.LittleEndian
	if le.Uint32(data[216:]) == 0 { // references: it is being deleted
		return nil, fmt.Errorf("subvolume %d: %w", id, filesystem.ErrNotExist)
	}
	s := &subvolume{tree: tree{id: id, root: parseRootItem(data), changes: f.changed[id]}, code: code, top: le.Uint64(data[168:])}
	f.cache.Put(k, s, 100)
	return s, nil
}

// rootItem is the newest struct btrfs_root_item of a tree.
func (f *FS) rootItem(id uint64) ([]byte, error) {
	it, ok, err := f.floor(f.rootTree, key{id, typeRoot, m64})
	if err != nil {
		return nil, err
	}
	if !ok || it.key.object != id || it.key.kind != typeRoot {
		return nil, fmt.Errorf("no root item: %w", filesystem.ErrNotExist)
	}
	if len(it.data) < rootItemSize {
		return nil, corruptf("root item of %d bytes", len(it.data))
	}
	return it.data, nil
}

func parseRootItem(p []byte) ref {
	le := binary.LittleEndian
	return ref{le.Uint64(p[176:]), le.Uint64(p[160:]), p[238]}
}

// readTree opens a tree that is no subvolume.
func (f *FS) readTree(id uint64) (*tree, error) {
	data, err := f.rootItem(id)
	if err != nil {
		return nil, notExistIsCorrupt(err)
	}
	return &tree{id: id, root: parseRootItem(data)}, nil
}

// defaultSubvolume is what a mount without options shows: the subvolume that the root
// tree's directory calls "default", or the top level (get_default_subvol_objectid).
func (f *FS) defaultSubvolume() (uint64, error) {
	name := []byte("default")
	data, ok, err := f.get(f.rootTree, key{f.super.rootDir, typeDirItem, nameHash(name)})
	if err != nil || !ok {
		return treeFS, err
	}
	e, ok, err := findEntry(data, name)
	if err != nil || !ok {
		return treeFS, err
	}
	if !isSubvolume(e.location.object) {
		return 0, corruptf("id %d", e.location.object)
	}
	return e.location.object, nil
}

// rootRef is where a subvolume stands in another one.
type rootRef struct {
	dir  uint64
	name []byte
}

// parseRootRef reads struct btrfs_root_ref.
func parseRootRef(p []byte) (rootRef, error) {
	if len(p) < rootRefSize || len(p) != rootRefSize+int(binary.LittleEndian.Uint16(p[16:])) {
		return rootRef{}, corruptf("reference of a subvolume of %d bytes", len(p))
	}
	return rootRef{binary.LittleEndian.Uint64(p), p[rootRefSize:]}, nil
}

// cross gives the inode of what an entry of dir calls a subvolume: its root, or an
// empty directory when it was deleted, or when dir is in a snapshot of the subvolume
// in which it stands (fixup_tree_root_location).
func (f *FS) cross(in *inode, e *entry) (filesystem.Inode, error) {
	id := e.location.object
	data, ok, err := f.get(f.rootTree, key{in.v.id, typeRootRef, id})
	if err != nil {
		return 0, err
	}
	if ok {
		r, err := parseRootRef(data)
		if err != nil {
			return 0, err
		}
		ok = r.dir == in.object && string(r.name) == string(e.name)
	}
	if ok && isSubvolume(id) {
		s, err := f.subvolume(id)
		if err == nil {
			return encode(s.code, s.top)
		}
		if !isNotExist(err) {
			return 0, err
		}
	}
	return f.loseDir(in, id)
}

// maxLost bounds how many are remembered.
const maxLost = 1 << 16

// loseDir gives the inode of a subvolume that is no more, and remembers whose owner it
// shows: the directory's.
func (f *FS) loseDir(in *inode, id uint64) (filesystem.Inode, error) {
	n, err := encodeLost(in.v.code, id)
	if err != nil {
		return 0, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.lost == nil {
		f.lost = make(map[filesystem.Inode]filesystem.Inode)
	}
	if _, ok := f.lost[n]; !ok && len(f.lost) >= maxLost {
		return 0, unsupportedf("over %d directories of deleted subvolumes", maxLost)
	}
	f.lost[n] = in.number
	return n, nil
}

// lostInode makes the inode of a subvolume that is no more, as the kernel does
// (new_simple_dir), with the times of the directory where the kernel takes the time at
// which it was looked for.
func (f *FS) lostInode(n filesystem.Inode) (*inode, error) {
	f.mu.Lock()
	parent, ok := f.lost[n]
	f.mu.Unlock()
	if !ok {
		return nil, fmt.Errorf("inode %d: %w", n, filesystem.ErrNotExist)
	}
	dir, err := f.inode(parent)
	if err != nil {
		return nil, err
	}
	in := *dir
	in.number, in.object, in.parent = n, objectEmptyDir, parent
	in.mode, in.size, in.nlink, in.blocks = 0o40755, 0, 1, 0
	return &in, nil
}

// Parent is the directory that ".." of dir names.
func (f *FS) Parent(dir filesystem.Inode) (filesystem.Inode, error) {
	in, err := f.dirInode(dir)
	if err != nil {
		return 0, fmt.Errorf("parent: %w", err)
	}
	n, err := f.parentOf(in)
	if err != nil {
		return 0, fmt.Errorf("parent: inode %d: %w", dir, err)
	}
	return n, nil
}

func (f *FS) parentOf(in *inode) (filesystem.Inode, error) {
	switch {
	case in.parent != 0:
		return in.parent, nil
	case in.object == in.v.top && (in.v.code == 0 || in.v.id == treeFS):
		return f.Root(), nil
	case in.object == in.v.top:
		return f.aboveSubvolume(in.v)
	}
	it, ok, err := f.first(in, typeInodeRef)
	if err != nil {
		return 0, err
	}
	if ok {
		return encode(in.v.code, it.key.offset)
	}
	it, ok, err = f.first(in, typeInodeExtref)
	if err != nil {
		return 0, err
	}
	if !ok || len(it.data) < extrefSize {
		return 0, corruptf("directory without a reference to its parent")
	}
	return encode(in.v.code, binary.LittleEndian.Uint64(it.data))
}

// aboveSubvolume is the directory in which a subvolume stands.
func (f *FS) aboveSubvolume(s *subvolume) (filesystem.Inode, error) {
	var parent uint64
	var r rootRef
	err := f.scan(f.rootTree, key{s.id, typeRootBackref, 0}, func(it item) (bool, error) {
		if it.key.object != s.id || it.key.kind != typeRootBackref {
			return false, nil
		}
		parent = it.key.offset
		var err error
		r, err = parseRootRef(it.data)
		return false, err
	})
	if err != nil {
		return 0, err
	}
	if !isSubvolume(parent) {
		return 0, corruptf("subvolume %d stands in no other", s.id)
	}
	if parent == f.mounted {
		parent = 0
	}
	return encode(parent, r.dir)
}

// first is the first item of a type of an inode.
func (f *FS) first(in *inode, kind uint8) (it item, ok bool, err error) {
	err = f.scan(&in.v.tree, key{in.object, kind, 0}, func(i item) (bool, error) {
		it, ok = i, i.key.object == in.object && i.key.kind == kind
		return false, nil
	})
	return it, ok, err
}
