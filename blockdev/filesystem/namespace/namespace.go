package namespace

import (
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/keelblock/keelblock/blockdev/filesystem"
)

// An inode number of the namespace is the number of the mount, from 1, above 32 bits of the
// file system's own inode; 0 stands for the root of the mount. Larger inodes are numbered
// as they are met, above bigInode. All fit into what a FUSE mount leaves to a volume.
const (
	inodeBits = 32
	mountBits = 6
	bigInode  = filesystem.Inode(1) << (inodeBits + mountBits)
	maxMounts = 1<<mountBits - 1

	// maxLinks is how many symbolic links a path may lead through, as in the kernel.
	maxLinks = 40
)

// Errors of Mount and Bind.
var (
	// ErrTooMany: more mounts than a namespace has room for.
	ErrTooMany = fmt.Errorf("more than %d mounts", maxMounts)
	// ErrLinks: the path leads through too many symbolic links.
	ErrLinks = fmt.Errorf("more than %d symbolic links", maxLinks)
)

// Open opens a file system at its first use; it is called for each operation, and cheap once
// it is open.
type Open func() (filesystem.FS, error)

// Namespace is the tree of a guest.
type Namespace struct {
	mounts []*mount                    // by number; [0] is nil
	points map[filesystem.Inode]uint64 // what is mounted at a folder

	bigMu sync.Mutex
	bigs  map[big]filesystem.Inode
	order []big
}

var _ filesystem.FS = (*Namespace)(nil)

// mount is a file system, or a folder of it, at a place of the tree.
type mount struct {
	number uint64
	open   Open
	root   filesystem.Inode // 0: that of the file system
	at     filesystem.Inode // the folder that it covers; 0 for the first
}

// big is an inode of a mount whose number is too large.
type big struct {
	mount uint64
	ino   filesystem.Inode
}

// New makes a namespace of one file system. root is the folder of it that is the tree's
// root, 0 for its own root.
func New(open Open, root filesystem.Inode) *Namespace {
	n := &Namespace{mounts: make([]*mount, 1), points: make(map[filesystem.Inode]uint64), bigs: make(map[big]filesystem.Inode)}
	n.add(open, root, 0)
	return n
}

func (n *Namespace) add(open Open, root, at filesystem.Inode) *mount {
	m := &mount{number: uint64(len(n.mounts)), open: open, root: root, at: at}
	n.mounts = append(n.mounts, m)
	if at != 0 {
		n.points[at] = m.number
	}
	return m
}

// top is the inode of the mount's root in its file system.
func (m *mount) top(fs filesystem.FS) filesystem.Inode {
	if m.root != 0 {
		return m.root
	}
	return fs.Root()
}

func (m *mount) rootNumber() filesystem.Inode { return filesystem.Inode(m.number << inodeBits) }

// inode is the number in the namespace of an inode of the mount.
func (n *Namespace) inode(m *mount, fs filesystem.FS, ino filesystem.Inode) filesystem.Inode {
	switch {
	case ino == m.top(fs):
		return m.rootNumber()
	case ino < 1<<inodeBits:
		return m.rootNumber() | ino
	}
	n.bigMu.Lock()
	defer n.bigMu.Unlock()
	key := big{m.number, ino}
	number, ok := n.bigs[key]
	if !ok {
		number = bigInode | filesystem.Inode(len(n.order))
		n.bigs[key] = number
		n.order = append(n.order, key)
	}
	return number
}

// in finds the mount of an inode, opens its file system, and gives its inode there.
func (n *Namespace) in(number filesystem.Inode) (*mount, filesystem.FS, filesystem.Inode, error) {
	at, ino := uint64(number)>>inodeBits, number&(1<<inodeBits-1)
	if number >= bigInode {
		n.bigMu.Lock()
		i := number &^ bigInode
		known := i < filesystem.Inode(len(n.order))
		if known {
			at, ino = n.order[i].mount, n.order[i].ino
		}
		n.bigMu.Unlock()
		if !known {
			return nil, nil, 0, filesystem.ErrNotExist
		}
	}
	if at == 0 || at >= uint64(len(n.mounts)) {
		return nil, nil, 0, filesystem.ErrNotExist
	}
	m := n.mounts[at]
	fs, err := m.open()
	if err != nil {
		return nil, nil, 0, err
	}
	if ino == 0 {
		ino = m.top(fs)
	}
	return m, fs, ino, nil
}

// Volume is the file system of the root.
func (n *Namespace) Volume() (filesystem.FS, error) { return n.mounts[1].open() }

// over is what is mounted at an inode, else the inode.
func (n *Namespace) over(ino filesystem.Inode) filesystem.Inode {
	for range n.mounts {
		m, ok := n.points[ino]
		if !ok {
			break
		}
		ino = n.mounts[m].rootNumber()
	}
	return ino
}

// Mount shows a file system at a path; subvolume is the folder of it that is shown, as of
// btrfs, "" for its root. A file system that cannot be opened is mounted, and gives its
// error to who uses it.
func (n *Namespace) Mount(path string, open Open, subvolume func(filesystem.FS) (filesystem.Inode, error)) error {
	var root filesystem.Inode
	if subvolume != nil {
		fs, err := open()
		if err == nil {
			root, err = subvolume(fs)
		}
		if err != nil {
			open = func() (filesystem.FS, error) { return nil, err }
		}
	}
	at, err := n.folder(path)
	if err != nil {
		return err
	}
	n.add(open, root, at)
	return nil
}

// Bind shows a folder of the tree at a second path, with what is mounted below it when it is
// recursive.
func (n *Namespace) Bind(path, source string, recursive bool) error {
	from, err := n.folder(source)
	if err != nil {
		return err
	}
	at, err := n.folder(path)
	if err != nil {
		return err
	}
	m, _, ino, err := n.in(from)
	if err != nil {
		return err
	}
	copied := len(n.mounts)
	bound := n.add(m.open, ino, at)
	if recursive {
		return n.copyMounts(m, bound, copied)
	}
	return nil
}

// copyMounts mounts what is mounted in a mount in a copy of it, too; of mounts from last
// on, which are copies, nothing.
func (n *Namespace) copyMounts(from, to *mount, last int) error {
	for _, child := range n.mounts[1:last] {
		m, fs, ino, err := n.in(child.at)
		if child.at == 0 || err != nil || m != from {
			continue
		}
		if len(n.mounts) > maxMounts {
			return ErrTooMany
		}
		at := n.inode(to, fs, ino)
		if _, covered := n.points[at]; covered || at == to.rootNumber() {
			continue
		}
		if err := n.copyMounts(child, n.add(child.open, child.root, at), last); err != nil {
			return err
		}
	}
	return nil
}

// folder finds the folder of a path, which is there and has room for a mount.
func (n *Namespace) folder(path string) (filesystem.Inode, error) {
	if len(n.mounts) > maxMounts {
		return 0, ErrTooMany
	}
	ino, err := n.Walk(path)
	if err != nil {
		return 0, err
	}
	a, err := n.Getattr(ino)
	switch {
	case err != nil:
		return 0, fmt.Errorf("%s: %w", path, err)
	case a.Type != filesystem.TypeDir:
		return 0, fmt.Errorf("%s: %w", path, filesystem.ErrNotDir)
	}
	return ino, nil
}

// Walk follows a path from the root of the namespace, through symbolic links, and never
// leaves it.
func (n *Namespace) Walk(path string) (filesystem.Inode, error) {
	at := n.Root()
	names, links := split(path), 0
	for len(names) > 0 {
		name := names[0]
		names = names[1:]
		if name == ".." {
			up, err := n.Parent(at)
			if err != nil {
				return 0, fmt.Errorf("%s: %w", path, err)
			}
			at = up
			continue
		}
		next, err := n.Lookup(at, []byte(name))
		if errors.Is(err, filesystem.ErrNotExist) {
			return 0, fmt.Errorf("the guest has no %s: %w", path, err)
		}
		if err != nil {
			return 0, fmt.Errorf("%s: %w", path, err)
		}
		a, err := n.Getattr(next)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", path, err)
		}
		if a.Type != filesystem.TypeSymlink {
			at = next
			continue
		}
		if links++; links > maxLinks {
			return 0, fmt.Errorf("%s: %w", path, ErrLinks)
		}
		target, err := n.Readlink(next)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", path, err)
		}
		if strings.HasPrefix(string(target), "/") {
			at = n.Root()
		}
		names = append(split(string(target)), names...)
	}
	return at, nil
}
