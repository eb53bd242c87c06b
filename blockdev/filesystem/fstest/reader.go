package fstest

import (
	"errors"
	"fmt"

	"github.com/keelblock/keelblock/blockdev/filesystem"
)

// maxTreeDepth ends a walk through an image in which a directory contains itself.
const maxTreeDepth = 1000

// FromFS makes the manifest of what a reader shows. It also requires that the reader
// agrees with itself: Lookup finds what ReadDir lists, Parent leads back, and the
// type in a directory is that of the file.
func FromFS(fs filesystem.FS) (Manifest, error) {
	m := make(Manifest)
	var walk func(path string, ino, parent filesystem.Inode, depth int) error
	walk = func(path string, ino, parent filesystem.Inode, depth int) error {
		e, err := readerEntry(fs, ino)
		if err != nil {
			return fmt.Errorf("%q: %w", path, err)
		}
		m[path] = e
		if e.Attr.Type != filesystem.TypeDir {
			return nil
		}
		if depth > maxTreeDepth {
			return fmt.Errorf("%q: tree is deeper than %d", path, maxTreeDepth)
		}
		up, err := fs.Parent(ino)
		if err != nil || up != parent {
			return fmt.Errorf("%q: Parent is %d, want %d: %w", path, up, parent, err)
		}
		children, err := list(fs, ino)
		if err != nil {
			return fmt.Errorf("%q: %w", path, err)
		}
		for _, c := range children {
			child := c.name
			if path != "" {
				child = path + "/" + child
			}
			if _, twice := m[child]; twice {
				return fmt.Errorf("%q is listed twice", child)
			}
			if found, err := fs.Lookup(ino, []byte(c.name)); err != nil || found != c.inode {
				return fmt.Errorf("%q: Lookup gives %d, ReadDir %d: %w", child, found, c.inode, err)
			}
			if err := walk(child, c.inode, ino, depth+1); err != nil {
				return err
			}
			if t := m[child].Attr.Type; c.kind != 0 && c.kind != t {
				return fmt.Errorf("%q: ReadDir says type %d, Getattr %d", child, c.kind, t)
			}
		}
		return nil
	}
	if err := walk("", fs.Root(), fs.Root(), 0); err != nil {
		return nil, fmt.Errorf("manifest of a reader: %w", err)
	}
	return m, nil
}

type child struct {
	name  string
	inode filesystem.Inode
	kind  filesystem.Type
	next  uint64
}

func list(fs filesystem.FS, dir filesystem.Inode) ([]child, error) {
	return listFrom(fs, dir, 0)
}

func listFrom(fs filesystem.FS, dir filesystem.Inode, cookie uint64) ([]child, error) {
	var out []child
	err := fs.ReadDir(dir, cookie, func(d filesystem.Dirent) bool {
		out = append(out, child{string(d.Name), d.Inode, d.Type, d.Next})
		return true
	})
	return out, err
}

func readerEntry(fs filesystem.FS, ino filesystem.Inode) (Entry, error) {
	var e Entry
	var err error
	if e.Attr, err = fs.Getattr(ino); err != nil {
		return e, err
	}
	names, err := fs.Xattrs(ino)
	if err != nil {
		return e, err
	}
	for _, name := range names {
		value, err := fs.Xattr(ino, name)
		if err != nil {
			return e, err
		}
		if e.Xattrs == nil {
			e.Xattrs = make(map[string]string)
		}
		e.Xattrs[name] = string(value)
	}
	switch e.Attr.Type {
	case filesystem.TypeSymlink:
		target, err := fs.Readlink(ino)
		if err != nil {
			return e, err
		}
		e.Target = string(target)
	case filesystem.TypeRegular:
		seekData := func(off int64) (int64, error) { return fs.NextData(ino, off) }
		seekHole := func(off int64) (int64, error) { return fs.NextHole(ino, off) }
		noData := func(err error) bool { return errors.Is(err, filesystem.ErrNoData) }
		if e.Data, err = dataExtents(e.Attr.Size, seekData, seekHole, noData); err != nil {
			return e, err
		}
		readAt := func(p []byte, off int64) (int, error) { return fs.ReadAt(ino, p, off) }
		if e.Digest, err = digest(e.Attr.Size, e.Data, readAt); err != nil {
			return e, err
		}
	}
	return e, nil
}
