package namespace

import "github.com/keelblock/keelblock/blockdev/filesystem"

// This file is the namespace as a file system.

// Info describes the root's file system.
func (n *Namespace) Info() filesystem.Info {
	fs, err := n.mounts[1].open()
	if err != nil {
		return filesystem.Info{State: filesystem.State{Reason: err.Error()}}
	}
	return fs.Info()
}

// Root is the root of the tree, with what is mounted over it.
func (n *Namespace) Root() filesystem.Inode { return n.over(n.mounts[1].rootNumber()) }

// Lookup finds a name, or what is mounted there.
func (n *Namespace) Lookup(dir filesystem.Inode, name []byte) (filesystem.Inode, error) {
	m, fs, ino, err := n.in(dir)
	if err != nil {
		return 0, err
	}
	if ino, err = fs.Lookup(ino, name); err != nil {
		return 0, err
	}
	return n.over(n.inode(m, fs, ino)), nil
}

// ReadDir lists a folder; the entry of a mount point has the inode of what is mounted.
func (n *Namespace) ReadDir(dir filesystem.Inode, cookie uint64, yield func(filesystem.Dirent) bool) error {
	m, fs, ino, err := n.in(dir)
	if err != nil {
		return err
	}
	return fs.ReadDir(ino, cookie, func(d filesystem.Dirent) bool {
		d.Inode = n.over(n.inode(m, fs, d.Inode))
		return yield(d)
	})
}

// Getattr is stat(2).
func (n *Namespace) Getattr(number filesystem.Inode) (filesystem.Attr, error) {
	_, fs, ino, err := n.in(number)
	if err != nil {
		return filesystem.Attr{}, err
	}
	a, err := fs.Getattr(ino)
	a.Inode = number
	return a, err
}

// Parent is what ".." means: of the root of a mount, the folder above the mount point.
func (n *Namespace) Parent(dir filesystem.Inode) (filesystem.Inode, error) {
	m, fs, ino, err := n.in(dir)
	if err != nil {
		return 0, err
	}
	if ino != m.top(fs) {
		up, err := fs.Parent(ino)
		if err != nil {
			return 0, err
		}
		return n.inode(m, fs, up), nil
	}
	if m.at == 0 {
		return dir, nil
	}
	up, err := n.Parent(m.at)
	if up == m.at { // mounted over the root of the tree
		return dir, err
	}
	return up, err
}

// Readlink is the target of a symbolic link.
func (n *Namespace) Readlink(number filesystem.Inode) ([]byte, error) {
	_, fs, ino, err := n.in(number)
	if err != nil {
		return nil, err
	}
	return fs.Readlink(ino)
}

// Xattrs lists extended attributes.
func (n *Namespace) Xattrs(number filesystem.Inode) ([]string, error) {
	_, fs, ino, err := n.in(number)
	if err != nil {
		return nil, err
	}
	return fs.Xattrs(ino)
}

// Xattr is the value of an extended attribute.
func (n *Namespace) Xattr(number filesystem.Inode, name string) ([]byte, error) {
	_, fs, ino, err := n.in(number)
	if err != nil {
		return nil, err
	}
	return fs.Xattr(ino, name)
}

// ReadAt reads a file.
func (n *Namespace) ReadAt(number filesystem.Inode, p []byte, off int64) (int, error) {
	_, fs, ino, err := n.in(number)
	if err != nil {
		return 0, err
	}
	return fs.ReadAt(ino, p, off)
}

// NextData is lseek(2) with SEEK_DATA.
func (n *Namespace) NextData(number filesystem.Inode, off int64) (int64, error) {
	_, fs, ino, err := n.in(number)
	if err != nil {
		return 0, err
	}
	return fs.NextData(ino, off)
}

// NextHole is lseek(2) with SEEK_HOLE.
func (n *Namespace) NextHole(number filesystem.Inode, off int64) (int64, error) {
	_, fs, ino, err := n.in(number)
	if err != nil {
		return 0, err
	}
	return fs.NextHole(ino, off)
}
