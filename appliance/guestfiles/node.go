package guestfiles

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/keelblock/keelblock/appliance/fusemount"
	"github.com/keelblock/keelblock/blockdev"
	"github.com/keelblock/keelblock/blockdev/filesystem"
)

const (
	// listBatch is how many entries of a directory one operation reads.
	listBatch = 512
	// smallFile is the size in bytes up to which a file is read at once with its
	// attributes.
	smallFile = 128 << 10
	// maxData is how many ranges of data one operation lists.
	maxData = 8192
)

// Node is a file or folder below a point: of a guest, or of the tree.
type Node struct {
	tree *Tree
	attr filesystem.Attr

	vol *volume // nil for one of the tree's
	ino filesystem.Inode

	entry fusemount.Entry // of the tree; the volume's for its root
}

// Attr are the attributes, as stat(2) has them.
func (n *Node) Attr() filesystem.Attr { return n.attr }

// IsDir says whether the node is a folder.
func (n *Node) IsDir() bool { return n.attr.Type == filesystem.TypeDir }

// key is the identity of a guest's file: equal keys are one file with several names.
type key struct {
	vol *volume
	ino filesystem.Inode
}

func (n *Node) key() key { return key{n.vol, n.ino} }

// ours makes the node of an entry of the tree. A volume is opened.
func (t *Tree) ours(ctx context.Context, e fusemount.Entry) (*Node, error) {
	n := &Node{tree: t, entry: e, attr: filesystem.Attr{Nlink: 1, Atime: e.Time, Mtime: e.Time, Ctime: e.Time}}
	switch {
	case e.Volume != nil:
		n.vol = t.volume(e)
		return n, n.openRoot(ctx)
	case e.Directory != nil:
		n.attr.Type, n.attr.Perm = filesystem.TypeDir, 0o555
	case e.Image != nil:
		n.attr.Type, n.attr.Perm, n.attr.Size = filesystem.TypeRegular, 0o400, e.Image.Size()
	default:
		n.attr.Type, n.attr.Perm = filesystem.TypeRegular, 0o444
		text, err := e.Text.Text(ctx)
		if err != nil {
			return nil, err
		}
		n.attr.Size = int64(len(text))
		n.entry.Text = fixedText(text) // it may change; its size was told
	}
	return n, nil
}

type fixedText []byte

// Text is the content.
func (f fixedText) Text(context.Context) ([]byte, error) { return f, nil }

func (n *Node) openRoot(ctx context.Context) error {
	a, err := inVolume(ctx, n.vol, func(fs filesystem.FS) (filesystem.Attr, error) { return fs.Getattr(fs.Root()) })
	if err != nil {
		return err
	}
	n.ino, n.attr = a.Inode, a
	return nil
}

// Child is an entry of a folder. Err says why a node could not be made of it.
type Child struct {
	Name []byte
	Node *Node
	Err  error
}

var errName = fmt.Errorf("this is no name of a file: %w", filesystem.ErrCorrupt)

// validName says whether name can stand in a folder of ours.
func validName(name []byte) bool {
	return len(name) > 0 && len(name) <= 255 && bytes.IndexByte(name, '/') < 0 && bytes.IndexByte(name, 0) < 0 &&
		!bytes.Equal(name, []byte(".")) && !bytes.Equal(name, []byte(".."))
}

// List yields the entries of a folder in batches, in the order of the file system,
// until yield returns false. An entry without attributes has the type that the folder
// tells, which may be 0.
func (n *Node) List(ctx context.Context, attributes bool, yield func([]Child) bool) error {
	if n.vol == nil {
		return n.listOurs(ctx, yield)
	}
	for cookie, more := uint64(0), true; more; {
		type batch struct {
			list []Child
			next uint64
		}
		from := cookie
		b, err := inVolume(ctx, n.vol, func(fs filesystem.FS) (batch, error) {
			b := batch{next: from}
			err := fs.ReadDir(n.ino, from, func(d filesystem.Dirent) bool {
				b.list = append(b.list, n.child(fs, d, attributes))
				b.next = d.Next
				return len(b.list) < listBatch
			})
			return b, err
		})
		if err != nil {
			return err
		}
		more = len(b.list) == listBatch && b.next != cookie
		cookie = b.next
		if len(b.list) > 0 && !yield(b.list) {
			return nil
		}
	}
	return nil
}

func (n *Node) child(fs filesystem.FS, d filesystem.Dirent, attributes bool) Child {
	c := Child{Name: bytes.Clone(d.Name)}
	if !validName(d.Name) {
		c.Err = errName
		return c
	}
	a := filesystem.Attr{Inode: d.Inode, Type: d.Type}
	if attributes || d.Type == 0 {
		if a, c.Err = fs.Getattr(d.Inode); c.Err != nil {
			return c
		}
	}
	c.Node = &Node{tree: n.tree, vol: n.vol, ino: d.Inode, attr: a}
	return c
}

func (n *Node) listOurs(ctx context.Context, yield func([]Child) bool) error {
	if n.entry.Directory == nil {
		return filesystem.ErrNotDir
	}
	entries, err := n.entry.Directory.List(ctx)
	if err != nil {
		return err
	}
	var list []Child
	for _, e := range entries {
		c := Child{Name: []byte(e.Name)}
		c.Node, c.Err = n.tree.ours(ctx, e)
		list = append(list, c)
	}
	yield(list)
	return nil
}

// lookup finds a name in the folder.
func (n *Node) lookup(ctx context.Context, name string) (*Node, error) {
	if n.vol == nil {
		if n.entry.Directory == nil {
			return nil, filesystem.ErrNotDir
		}
		e, err := n.entry.Directory.Lookup(ctx, name)
		if err != nil {
			return nil, err
		}
		return n.tree.ours(ctx, e)
	}
	return n.at(ctx, func(fs filesystem.FS) (filesystem.Inode, error) { return fs.Lookup(n.ino, []byte(name)) })
}

// parent is the folder above a guest's folder; the root's is itself.
func (n *Node) parent(ctx context.Context) (*Node, error) {
	return n.at(ctx, func(fs filesystem.FS) (filesystem.Inode, error) {
		if n.ino == fs.Root() {
			return n.ino, nil
		}
		return fs.Parent(n.ino)
	})
}

// root is the root of the volume that the node is in.
func (n *Node) root(ctx context.Context) (*Node, error) {
	return n.at(ctx, func(fs filesystem.FS) (filesystem.Inode, error) { return fs.Root(), nil })
}

func (n *Node) at(ctx context.Context, find func(fs filesystem.FS) (filesystem.Inode, error)) (*Node, error) {
	return inVolume(ctx, n.vol, func(fs filesystem.FS) (*Node, error) {
		ino, err := find(fs)
		if err != nil {
			return nil, err
		}
		a, err := fs.Getattr(ino)
		if errors.Is(err, filesystem.ErrNotExist) {
			err = fmt.Errorf("inode %d, which a directory names, does not exist: %w", ino, filesystem.ErrCorrupt)
		}
		return &Node{tree: n.tree, vol: n.vol, ino: ino, attr: a}, err
	})
}

// Readlink is the target of a symbolic link, as bytes.
func (n *Node) Readlink(ctx context.Context) ([]byte, error) {
	if n.vol == nil {
		return nil, filesystem.ErrInvalid
	}
	return inVolume(ctx, n.vol, func(fs filesystem.FS) ([]byte, error) { return fs.Readlink(n.ino) })
}

type xattr struct {
	name  string
	value []byte
}

// contents is what one operation reads of a file beside its attributes.
type contents struct {
	xattrs []xattr
	target []byte            // of a symbolic link
	data   []blockdev.Extent // of a regular file, up to end
	end    int64             // as far as data was listed
	small  []byte            // all of a small file with data
}

// load reads what a copy needs, of a small file with its data.
func (n *Node) load(ctx context.Context) (contents, error) {
	if n.vol == nil {
		return n.loadOurs(ctx)
	}
	return inVolume(ctx, n.vol, func(fs filesystem.FS) (c contents, err error) {
		if c.xattrs, err = loadXattrs(fs, n.ino); err != nil {
			return c, err
		}
		switch n.attr.Type {
		case filesystem.TypeSymlink:
			c.target, err = fs.Readlink(n.ino)
		case filesystem.TypeRegular:
			if err = n.listData(fs, &c, 0); err == nil && n.attr.Size <= smallFile && len(c.data) > 0 {
				c.small = make([]byte, n.attr.Size)
				err = readFull(c.small, func() (int, error) { return fs.ReadAt(n.ino, c.small, 0) })
			}
		}
		return c, err
	})
}

func loadXattrs(fs filesystem.FS, ino filesystem.Inode) ([]xattr, error) {
	names, err := fs.Xattrs(ino)
	if err != nil {
		return nil, fmt.Errorf("list extended attributes: %w", err)
	}
	var out []xattr
	for _, name := range names {
		value, err := fs.Xattr(ino, name)
		if err != nil {
			return nil, fmt.Errorf("extended attribute %q: %w", name, err)
		}
		out = append(out, xattr{name, value})
	}
	return out, nil
}

// listData lists ranges of data from an offset on, at most maxData of them.
func (n *Node) listData(fs filesystem.FS, c *contents, from int64) error {
	size := n.attr.Size
	for c.end = from; c.end < size && len(c.data) < maxData; {
		start, err := fs.NextData(n.ino, c.end)
		if errors.Is(err, filesystem.ErrNoData) {
			c.end = size
			break
		}
		if err != nil {
			return err
		}
		end, err := fs.NextHole(n.ino, start)
		if err != nil {
			return err
		}
		end = min(end, size)
		if start < c.end || end <= start {
			return fmt.Errorf("the holes of the file contradict each other: %w", filesystem.ErrCorrupt)
		}
		c.data = append(c.data, blockdev.Extent{Offset: start, Length: end - start})
		c.end = end
	}
	return nil
}

// moreData lists the ranges of data behind those that load listed.
func (n *Node) moreData(ctx context.Context, from int64) (contents, error) {
	return inVolume(ctx, n.vol, func(fs filesystem.FS) (c contents, err error) { return c, n.listData(fs, &c, from) })
}

func (n *Node) loadOurs(ctx context.Context) (c contents, err error) {
	c.end = n.attr.Size
	switch {
	case n.entry.Text != nil:
		c.small, err = n.entry.Text.Text(ctx)
		c.data = []blockdev.Extent{{Length: n.attr.Size}}
	case n.entry.Image != nil:
		for off := int64(0); off < n.attr.Size; {
			start, err := n.entry.Image.NextData(ctx, off)
			if errors.Is(err, filesystem.ErrNoData) {
				break
			}
			if err != nil {
				return c, err
			}
			if off, err = n.entry.Image.NextHole(ctx, start); err != nil {
				return c, err
			}
			c.data = append(c.data, blockdev.Extent{Offset: start, Length: off - start})
		}
	}
	return c, err
}

// readAt fills p, which lies inside the file. After an error for which lost is true p
// must not be used again.
func (n *Node) readAt(ctx context.Context, p []byte, off int64) error {
	if n.vol == nil {
		if n.entry.Image != nil {
			return n.entry.Image.ReadAt(ctx, p, off)
		}
		text, err := n.entry.Text.Text(ctx)
		copy(p, text[min(off, int64(len(text))):])
		return err
	}
	_, err := inVolume(ctx, n.vol, func(fs filesystem.FS) (struct{}, error) {
		return struct{}{}, readFull(p, func() (int, error) { return fs.ReadAt(n.ino, p, off) })
	})
	return err
}

// readFull requires that read filled p.
func readFull(p []byte, read func() (int, error)) error {
	n, err := read()
	if n == len(p) && (err == nil || errors.Is(err, io.EOF)) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = fmt.Errorf("%d of %d bytes: %w", n, len(p), io.ErrUnexpectedEOF)
	}
	return err
}

// defaultDeadline of one operation on a guest's file system.
const defaultDeadline = 30 * time.Second
