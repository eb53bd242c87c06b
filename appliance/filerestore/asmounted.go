package filerestore

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/keelblock/keelblock/blockdev/filesystem"
	"github.com/keelblock/keelblock/blockdev/filesystem/namespace"
)

// AsMounted is the name of the tree as the guest saw it.
const AsMounted = "as-mounted"

// maxSubvolumes bounds how many folders at the top of a volume with subvolumes are looked
// at for the root of a guest.
const maxSubvolumes = 256

// guestTree is the tree of one guest: its root volume, and what its fstab mounts below it.
type guestTree struct {
	point *pointVolumes
	name  string // of the entry
	ns    *namespace.Namespace
	notes []string // for STATUS: what is mounted where, and what is not
}

// Open gives the tree. Its file systems are opened as they are used.
func (g *guestTree) Open(context.Context) (filesystem.FS, error) { return g.ns, nil }

// Report keeps a problem for STATUS.
func (g *guestTree) Report(what string, err error) {
	g.point.problems.add(fmt.Sprintf("%s: %s: %v", g.name, what, err))
}

// guestTrees are the trees of a point, found at the first use.
func (p *pointVolumes) guestTrees(ctx context.Context, point Point) []*guestTree {
	p.treesMu.Lock()
	defer p.treesMu.Unlock()
	found := p.find(point)
	if p.treesOf == found && p.trees != nil {
		return p.trees
	}
	trees := []*guestTree{}
	if err := safely(func() error { trees = p.lookForTrees(ctx, found); return nil }); err != nil {
		p.problems.add(fmt.Sprintf("%s: %v", AsMounted, err))
	}
	p.trees, p.treesOf = trees, found
	return trees
}

// candidate is a folder that may be the root of a guest.
type candidate struct {
	vol       *vol
	subvolume string           // "": the volume's root
	root      filesystem.Inode // 0: the volume's root
	ns        *namespace.Namespace
	names     *deviceNames
	lines     []namespace.Line
	bad       []string
	sure      bool // its fstab says that it is the root
}

// lookForTrees finds the roots of guests: volumes with an fstab. Where its line for "/"
// names another volume this is a copy of a root, and none itself.
func (p *pointVolumes) lookForTrees(ctx context.Context, found *foundVolumes) []*guestTree {
	names := newDeviceNames(ctx, found.vols)
	var all, sure []*candidate
	for _, v := range found.vols {
		if _, ok := names.infos[v]; !ok {
			continue
		}
		for _, c := range v.candidates(ctx) {
			if !c.look(names) {
				continue
			}
			all = append(all, c)
			if c.sure {
				sure = append(sure, c)
			}
		}
	}
	if len(sure) > 0 {
		all = sure
	}
	out := []*guestTree{}
	for _, c := range all {
		g := &guestTree{point: p, name: AsMounted, ns: c.ns}
		if len(all) > 1 {
			g.name += "-" + c.vol.name
			if c.subvolume != "" {
				g.name += "-" + c.subvolume
			}
		}
		g.mount(ctx, c)
		out = append(out, g)
	}
	return out
}

// candidates are the root of a volume and, where parts of it are mounted, the folders at its
// top.
func (v *vol) candidates(ctx context.Context) []*candidate {
	open := v.opener(ctx)
	out := []*candidate{{vol: v, ns: namespace.New(open, 0)}}
	fs, err := open()
	s, ok := fs.(filesystem.Subvolumes)
	if err != nil || !ok {
		return out
	}
	_ = fs.ReadDir(s.TopLevel(), 0, func(d filesystem.Dirent) bool { // as far as it can be read
		if (d.Type == filesystem.TypeDir || d.Type == 0) && d.Inode != fs.Root() && printable(d.Name) {
			out = append(out, &candidate{vol: v, subvolume: string(d.Name), root: d.Inode, ns: namespace.New(open, d.Inode)})
		}
		return len(out) < maxSubvolumes
	})
	return out
}

// printable says whether a name can stand in one of ours.
func printable(name []byte) bool {
	for _, c := range name {
		if c <= ' ' || c >= 0x7f || c == '/' {
			return false
		}
	}
	return len(name) > 0 && len(name) < 128
}

// opener opens the volume for who outlives the first use.
func (v *vol) opener(ctx context.Context) namespace.Open {
	ctx = context.WithoutCancel(ctx)
	return func() (filesystem.FS, error) { return v.Open(ctx) }
}

// look reads the tables of a candidate, and says whether it may be a root.
func (c *candidate) look(names *deviceNames) bool {
	table, err := readGuestFile(c.ns, "/etc/fstab")
	switch {
	case err != nil && c.root == 0:
		c.bad = append(c.bad, err.Error())
		c.names = names
		return true
	case table == nil:
		return false
	}
	crypttab, err := readGuestFile(c.ns, "/etc/crypttab")
	c.names = names.with(parseCrypttab(crypttab))
	c.lines, c.bad = namespace.Parse(table)
	if err != nil {
		c.bad = append(c.bad, err.Error())
	}
	for _, l := range c.lines {
		if namespace.Clean(l.File) != "/" || l.Bind() || !l.Mounted() {
			continue
		}
		v, err := c.names.find(l.Spec)
		if err != nil {
			break // the guest's kernel may have been told otherwise which one it is
		}
		c.sure = v == c.vol && c.isPart(l)
		return c.sure
	}
	return c.root == 0
}

// isPart says whether a line mounts the candidate's part of its volume.
func (c *candidate) isPart(l namespace.Line) bool {
	fs, err := c.ns.Volume()
	if err != nil {
		return false
	}
	ino, err := part(fs, l)
	root := c.root
	if root == 0 {
		root = fs.Root()
	}
	return err == nil && ino == root
}

var errParts = errors.New("its reader knows no subvolumes")

// part is the root of the part of a file system that a line mounts.
func part(fs filesystem.FS, l namespace.Line) (filesystem.Inode, error) {
	name, named := l.Option("subvol")
	number, numbered := l.Option("subvolid")
	if !named && !numbered {
		return fs.Root(), nil
	}
	s, ok := fs.(filesystem.Subvolumes)
	if !ok {
		return 0, errParts
	}
	if !named {
		id, err := strconv.ParseUint(number, 0, 64)
		if err != nil {
			return 0, fmt.Errorf("subvolid=%s is no number", number)
		}
		return s.Subvolume(id)
	}
	at := s.TopLevel()
	for n := range strings.SplitSeq(strings.Trim(namespace.Clean(name), "/"), "/") {
		if n == "" {
			break
		}
		var err error
		if at, err = fs.Lookup(at, []byte(n)); err != nil {
			return 0, fmt.Errorf("subvolume %s: %w", name, err)
		}
	}
	return at, nil
}

// mount mounts what the fstab says, and keeps notes for STATUS.
func (g *guestTree) mount(ctx context.Context, c *candidate) {
	note := func(format string, args ...any) { g.notes = append(g.notes, fmt.Sprintf(format, args...)) }
	text := "volumes/" + c.vol.name
	if c.subvolume != "" {
		text += ", subvolume " + c.subvolume
	}
	note("%q: %s", "/", text)
	for _, b := range c.bad {
		note("/etc/fstab: %s", b)
	}
	var lines []namespace.Line
	for _, l := range c.lines {
		if l.Mounted() && (namespace.Clean(l.File) != "/" || l.Bind()) {
			lines = append(lines, l)
		}
	}
	for _, l := range namespace.Order(lines) {
		what, err := g.mountLine(ctx, c, l)
		if err != nil {
			note("%q: NOT MOUNTED: line %d of /etc/fstab, %q: %v", l.File, l.Number, l.Spec, err)
			continue
		}
		note("%q: %s", l.File, what)
	}
}

func (g *guestTree) mountLine(ctx context.Context, c *candidate, l namespace.Line) (what string, err error) {
	if l.Bind() {
		return fmt.Sprintf("the folder %q", l.Spec), g.ns.Bind(l.File, l.Spec, l.Has("rbind"))
	}
	v, err := c.names.find(l.Spec)
	if err != nil {
		return "", err
	}
	var root func(filesystem.FS) (filesystem.Inode, error)
	what = "volumes/" + v.name
	if l.Selects() {
		root = func(fs filesystem.FS) (filesystem.Inode, error) { return part(fs, l) }
		what += ", subvolume"
	}
	return what, g.ns.Mount(l.File, v.opener(ctx), root)
}
