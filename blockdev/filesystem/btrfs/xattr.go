package btrfs

import (
	"bytes"
	"fmt"

	"github.com/keelblock/keelblock/blockdev/filesystem"
)

// maxXattrItems bounds how many items of attributes of one inode are listed. The
// kernel lists at most 64 KiB of names.
const maxXattrItems = 1 << 15

// Xattrs lists the names of the extended attributes. They stand with their prefixes
// and in the form in which the kernel shows them, ACLs too.
func (f *FS) Xattrs(ino filesystem.Inode) ([]string, error) {
	in, err := f.inode(ino)
	if err != nil {
		return nil, fmt.Errorf("list attributes: %w", err)
	}
	if in.lost() {
		return nil, nil
	}
	var names []string
	items := 0
	err = f.scan(&in.v.tree, key{in.object, typeXattr, 0}, func(it item) (bool, error) {
		if it.key.object != in.object || it.key.kind != typeXattr {
			return false, nil
		}
		if items++; items > maxXattrItems {
			return false, corruptf("over %d attributes", maxXattrItems)
		}
		return true, eachEntry(it.data, func(e entry) error {
			if bytes.IndexByte(e.name, 0) >= 0 {
				return corruptf("attribute with a NUL byte in its name")
			}
			names = append(names, string(e.name))
			return nil
		})
	})
	if err != nil {
		return nil, fmt.Errorf("list attributes: inode %d: %w", ino, err)
	}
	return names, nil
}

// Xattr is the value of one extended attribute, in a slice of the caller's own.
func (f *FS) Xattr(ino filesystem.Inode, name string) ([]byte, error) {
	in, err := f.inode(ino)
	if err != nil {
		return nil, fmt.Errorf("attribute %q: %w", name, err)
	}
	if !in.lost() {
		data, ok, err := f.get(&in.v.tree, key{in.object, typeXattr, nameHash([]byte(name))})
		if err == nil && ok {
			var e entry
			if e, ok, err = findEntry(data, []byte(name)); err == nil && ok {
				return append([]byte{}, e.data...), nil
			}
		}
		if err != nil {
			return nil, fmt.Errorf("attribute %q: inode %d: %w", name, ino, err)
		}
	}
	return nil, fmt.Errorf("attribute %q: inode %d: %w", name, ino, filesystem.ErrNoXattr)
}
