package btrfs

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/keelblock/keelblock/blockdev/filesystem"
)

const (
	dirItemSize = 30 // struct btrfs_dir_item, without name and data
	// firstIndex is the first position of an entry, behind "." and "..".
	firstIndex = 2
	// fileTypeMask leaves out BTRFS_FT_ENCRYPTED.
	fileTypeMask = 0x7F
)

// dirTypes are the types in entries (BTRFS_FT_*).
var dirTypes = [...]filesystem.Type{
	1: filesystem.TypeRegular, 2: filesystem.TypeDir, 3: filesystem.TypeChar, 4: filesystem.TypeBlock,
	5: filesystem.TypeFifo, 6: filesystem.TypeSocket, 7: filesystem.TypeSymlink,
}

// entry is a struct btrfs_dir_item: of a directory, or an attribute.
type entry struct {
	location key
	kind     uint8
	name     []byte
	data     []byte
	raw      []byte
}

// parseEntry reads the entry at the front of p.
func parseEntry(p []byte) (entry, error) {
	le := binary.LittleEndian
	if len(p) < dirItemSize {
		return entry{}, corruptf("entry of %d bytes", len(p))
	}
	dataLen, nameLen := int(le.Uint16(p[25:])), int(le.Uint16(p[27:]))
	size := dirItemSize + nameLen + dataLen
	if nameLen == 0 || nameLen > maxNameLen || size > len(p) {
		return entry{}, corruptf("entry with a name of %d and %d bytes in %d", nameLen, dataLen, len(p))
	}
	return entry{
		location: parseKey(p),
		kind:     p[29],
		name:     p[dirItemSize:][:nameLen],
		data:     p[dirItemSize+nameLen:][:dataLen:dataLen],
		raw:      p[:size:size],
	}, nil
}

// eachEntry yields the entries of an item, whose names share a hash.
func eachEntry(p []byte, yield func(e entry) error) error {
	for len(p) > 0 {
		e, err := parseEntry(p)
		if err != nil {
			return err
		}
		if err := yield(e); err != nil {
			return err
		}
		p = p[len(e.raw):]
	}
	return nil
}

// findEntry is the entry of this name in an item.
func findEntry(p, name []byte) (found entry, ok bool, err error) {
	err = eachEntry(p, func(e entry) error {
		if !ok && bytes.Equal(e.name, name) {
			found, ok = e, true
		}
		return nil
	})
	return found, ok, err
}

// checkEntry: a name that a directory can have, of something that can be in it.
func checkEntry(e *entry) error {
	if bytes.ContainsAny(e.name, "/\x00") || string(e.name) == "." || string(e.name) == ".." {
		return corruptf("entry has the name %q", e.name)
	}
	switch e.location.kind {
	case typeInode, typeRoot:
		return nil
	}
	return corruptf("entry %q leads to an item of type %d", e.name, e.location.kind)
}

// target is the inode to which an entry of a directory leads.
func (f *FS) target(in *inode, e *entry) (filesystem.Inode, error) {
	if err := checkEntry(e); err != nil {
		return 0, err
	}
	if e.location.kind == typeRoot {
		return f.cross(in, e)
	}
	return encode(in.v.code, e.location.object)
}

// Lookup finds name in the directory dir by its hash.
func (f *FS) Lookup(dir filesystem.Inode, name []byte) (filesystem.Inode, error) {
	in, err := f.dirInode(dir)
	if err != nil {
		return 0, fmt.Errorf("lookup: %w", err)
	}
	switch {
	case len(name) == 0 || len(name) > maxNameLen:
		return 0, fmt.Errorf("lookup: name of %d bytes: %w", len(name), filesystem.ErrNotExist)
	case string(name) == ".":
		return dir, nil
	case string(name) == "..":
		return f.Parent(dir)
	}
	n, err := f.lookup(in, name)
	if err != nil {
		return 0, fmt.Errorf("lookup: directory %d: %w", dir, err)
	}
	return n, nil
}

func (f *FS) lookup(in *inode, name []byte) (filesystem.Inode, error) {
	if !in.lost() {
		data, ok, err := f.get(&in.v.tree, key{in.object, typeDirItem, nameHash(name)})
		if err != nil {
			return 0, err
		}
		if ok {
			e, ok, err := findEntry(data, name)
			if err != nil {
				return 0, err
			}
			if ok {
				return f.target(in, &e)
			}
		}
	}
	if in.number == f.Root() && f.mounted != treeFS && string(name) == topLevelName {
		return encode(treeFS, objectRootDir)
	}
	return 0, fmt.Errorf("%q: %w", name, filesystem.ErrNotExist)
}

// ReadDir yields entries in the order in which they were made. A cookie is the
// position of the entry behind which to go on.
func (f *FS) ReadDir(dir filesystem.Inode, cookie uint64, yield func(filesystem.Dirent) bool) error {
	in, err := f.dirInode(dir)
	if err != nil {
		return fmt.Errorf("list: %w", err)
	}
	if in.lost() || cookie == m64 {
		return nil
	}
	err = f.scan(&in.v.tree, key{in.object, typeDirIndex, cookie + 1}, func(it item) (bool, error) {
		if it.key.object != in.object || it.key.kind != typeDirIndex {
			return false, nil
		}
		e, err := parseEntry(it.data)
		if err != nil {
			return false, err
		}
		if it.key.offset < firstIndex {
			return false, corruptf("entry at position %d", it.key.offset)
		}
		n, err := f.target(in, &e)
		if err != nil {
			return false, err
		}
		d := filesystem.Dirent{Name: e.name, Inode: n, Next: it.key.offset}
		if k := int(e.kind & fileTypeMask); k < len(dirTypes) {
			d.Type = dirTypes[k]
		}
		return yield(d), nil
	})
	if err != nil {
		return fmt.Errorf("list directory %d: %w", dir, err)
	}
	return nil
}
