package guestfiles

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/keelblock/keelblock/blockdev"
	"github.com/keelblock/keelblock/blockdev/filesystem"
)

// Kind is how a name differs between two points.
type Kind byte

// The kinds, by the letters under which they are shown.
const (
	Added      Kind = '+'
	Removed    Kind = '-'
	Modified   Kind = 'M' // other contents, and maybe other attributes
	Attributes Kind = 'U' // other attributes only
	OtherType  Kind = 'T'
)

// Change is one name that differs. Path is that below the compared nodes, "" for
// themselves.
type Change struct {
	Path string
	Kind Kind
	// What differs: size, content, target, device, mode, owner, time, attributes.
	What     []string
	Old, New *Node // nil where the name is not
}

// CompareOptions of a comparison.
type CompareOptions struct {
	// Changes of the disks from the old point to the new one; nil: not known.
	Changes Changes
	// Contents: where it cannot be proved that contents are equal they are read, even
	// when inode number, size and times are equal.
	Contents bool
	// Failed is told of what could not be compared, by its path below the nodes.
	Failed func(path string, err error)
}

// Compare tells how a node differs between two points, with all that is below it, in the
// order of the names.
//
// Types, modes, owners, times of modification, sizes, device numbers, targets of links
// and extended attributes are compared; times of access and of change are not, nor how
// many names a file has. Extended attributes are read only when the times of change
// (ctime) or the inodes differ. Contents are
//
//   - different when the sizes are,
//   - equal where a file lies on the same blocks of a disk in both points and Changes
//     has none of them, which is exact; only the other ranges are read (readers that
//     are a [filesystem.Mapper], volumes that are one range of a disk),
//   - else equal when inode, generation, size, mtime and ctime are, save with Contents,
//   - else read and compared.
func Compare(ctx context.Context, old, new Found, o CompareOptions, yield func(Change) error) error {
	c := &comparer{o: o, yield: yield, visits: [2]Visits{NewVisits(), NewVisits()}}
	return c.node(ctx, "", old.Node, new.Node, 0)
}

type comparer struct {
	o      CompareOptions
	yield  func(Change) error
	visits [2]Visits
}

func (c *comparer) fail(ctx context.Context, path string, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if c.o.Failed != nil {
		c.o.Failed(path, err)
	}
	return nil
}

// untouched says that no block of the volume has changed, so that nothing in it has.
func (c *comparer) untouched(a, b *Node) bool {
	diskA, atA, okA := a.place()
	diskB, atB, okB := b.place()
	return okA && okB && diskA == diskB && atA == atB && a.ino == b.ino && c.o.Changes.untouched(diskA, atA)
}

func (c *comparer) node(ctx context.Context, path string, a, b *Node, depth int) error {
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case c.untouched(a, b):
		return nil
	case a.attr.Type != b.attr.Type:
		if err := c.yield(Change{Path: path, Kind: OtherType, What: []string{"type"}, Old: a, New: b}); err != nil {
			return err
		}
		if err := c.all(ctx, path, a, Removed, false); err != nil {
			return err
		}
		return c.all(ctx, path, b, Added, false)
	}
	change, err := c.compare(ctx, a, b)
	if err != nil {
		if err := c.fail(ctx, path, err); err != nil {
			return err
		}
	} else if change.Kind != 0 {
		change.Path = path
		if err := c.yield(change); err != nil {
			return err
		}
	}
	if !a.IsDir() {
		return nil
	}
	return c.folder(ctx, path, a, b, depth)
}

// folder compares what two folders hold.
func (c *comparer) folder(ctx context.Context, path string, a, b *Node, depth int) error {
	err := errors.Join(c.visits[0].Enter(a), c.visits[1].Enter(b))
	if err == nil && depth >= maxDepth {
		err = errDepth
	}
	if err != nil {
		return c.fail(ctx, path, err)
	}
	type listing struct {
		list []Child
		err  error
	}
	other := make(chan listing, 1)
	go func() {
		list, err := b.sorted(ctx)
		other <- listing{list, err}
	}()
	was, err := a.sorted(ctx)
	is := <-other
	if err = errors.Join(err, is.err); err != nil {
		return c.fail(ctx, path, err)
	}
	for i, j := 0, 0; i < len(was) || j < len(is.list); {
		order := 1
		switch {
		case j == len(is.list):
			order = -1
		case i < len(was):
			order = bytes.Compare(was[i].Name, is.list[j].Name)
		}
		if err := c.children(ctx, path, order, at(was, i), at(is.list, j), depth); err != nil {
			return err
		}
		if order <= 0 {
			i++
		}
		if order >= 0 {
			j++
		}
	}
	return nil
}

func at(list []Child, i int) Child {
	if i < len(list) {
		return list[i]
	}
	return Child{}
}

// children compares two entries, of which one may be missing: order is that of the names.
func (c *comparer) children(ctx context.Context, path string, order int, a, b Child, depth int) error {
	one, kind := a, Removed
	if order > 0 {
		one, kind = b, Added
	}
	below := join(path, string(one.Name))
	if err := one.Err; err != nil {
		return c.fail(ctx, below, err)
	}
	if order != 0 {
		return c.all(ctx, below, one.Node, kind, true)
	}
	if b.Err != nil {
		return c.fail(ctx, below, b.Err)
	}
	return c.node(ctx, below, a.Node, b.Node, depth+1)
}

// all tells of a node that is in one point only, and of all below it; itself or not.
func (c *comparer) all(ctx context.Context, path string, n *Node, kind Kind, itself bool) error {
	return Walk(ctx, Found{n, path}, true, func(f Found, err error) error {
		if err != nil {
			return c.fail(ctx, f.Path, err)
		}
		if f.Node == n && !itself {
			return nil
		}
		change := Change{Path: f.Path, Kind: kind, Old: f.Node}
		if kind == Added {
			change.Old, change.New = nil, f.Node
		}
		return c.yield(change)
	})
}

// sorted is what a folder holds, by name.
func (n *Node) sorted(ctx context.Context) ([]Child, error) {
	var all []Child
	err := n.List(ctx, true, func(list []Child) bool {
		all = append(all, list...)
		return true
	})
	slices.SortFunc(all, func(a, b Child) int { return bytes.Compare(a.Name, b.Name) })
	return all, err
}

// compare compares two nodes of one type, without what is below them.
func (c *comparer) compare(ctx context.Context, a, b *Node) (Change, error) {
	change := Change{Old: a, New: b}
	x, y := a.attr, b.attr
	note := func(kind Kind, what string, differs bool) {
		if differs {
			change.What = append(change.What, what)
			if change.Kind != Modified {
				change.Kind = kind
			}
		}
	}
	unchanged := a.vol != nil && b.vol != nil && a.ino == b.ino && x.Generation == y.Generation && x.Ctime.Equal(y.Ctime) && !x.Ctime.IsZero() && x.Mtime.Equal(y.Mtime)
	switch x.Type {
	case filesystem.TypeRegular:
		note(Modified, "size", x.Size != y.Size)
		if x.Size == y.Size {
			same, err := c.sameData(ctx, a, b, unchanged)
			if err != nil {
				return Change{}, err
			}
			note(Modified, "content", !same)
		}
	case filesystem.TypeChar, filesystem.TypeBlock:
		note(Modified, "device", x.RdevMajor != y.RdevMajor || x.RdevMinor != y.RdevMinor)
	}
	if a.vol == nil || b.vol == nil { // the tree's own have no attributes of a guest
		return change, nil
	}
	note(Attributes, "mode", x.Perm != y.Perm)
	note(Attributes, "owner", x.UID != y.UID || x.GID != y.GID)
	note(Attributes, "time", !x.Mtime.Equal(y.Mtime))
	if unchanged {
		return change, nil
	}
	in, err := a.small(ctx)
	if err != nil {
		return Change{}, err
	}
	now, err := b.small(ctx)
	if err != nil {
		return Change{}, err
	}
	note(Modified, "target", !bytes.Equal(in.target, now.target))
	note(Attributes, "attributes", !sameXattrs(in.xattrs, now.xattrs))
	return change, nil
}

// small is load without data.
func (n *Node) small(ctx context.Context) (contents, error) {
	return inVolume(ctx, n.vol, func(fs filesystem.FS) (c contents, err error) {
		if n.attr.Type == filesystem.TypeSymlink {
			if c.target, err = fs.Readlink(n.ino); err != nil {
				return c, err
			}
		}
		c.xattrs, err = loadXattrs(fs, n.ino)
		return c, err
	})
}

func sameXattrs(a, b []xattr) bool {
	byName := func(x, y xattr) int { return strings.Compare(x.name, y.name) }
	slices.SortFunc(a, byName)
	slices.SortFunc(b, byName)
	return slices.EqualFunc(a, b, func(x, y xattr) bool { return x.name == y.name && bytes.Equal(x.value, y.value) })
}

// sameData compares the contents of two files of one size. unchanged says that all that
// the inode tells is the same.
func (c *comparer) sameData(ctx context.Context, a, b *Node, unchanged bool) (bool, error) {
	if ranges, known, err := c.suspects(ctx, a, b); err != nil || known {
		if err != nil {
			return false, err
		}
		return equalRanges(ctx, a, b, ranges)
	}
	if unchanged && !c.o.Contents {
		return true, nil
	}
	data, err := unionData(ctx, a, b)
	if err != nil {
		return false, err
	}
	return equalRanges(ctx, a, b, data)
}

// suspects are the ranges that may differ, by where the files lie.
func (c *comparer) suspects(ctx context.Context, a, b *Node) ([]blockdev.Extent, bool, error) {
	diskA, _, okA := a.place()
	diskB, _, okB := b.place()
	if _, known := c.o.Changes[diskA]; !known || !okA || !okB || diskA != diskB {
		return nil, false, nil
	}
	was, ok, err := a.pieces(ctx)
	if err != nil || !ok {
		return nil, false, err
	}
	is, ok, err := b.pieces(ctx)
	if err != nil || !ok {
		return nil, false, err
	}
	return differing(was, is, diskA, c.o.Changes, a.attr.Size), true, nil
}

// unionData are the ranges in which one of two files has data.
func unionData(ctx context.Context, a, b *Node) ([]blockdev.Extent, error) {
	var all []blockdev.Extent
	for _, n := range []*Node{a, b} {
		in, err := n.dataFrom(ctx)
		if err != nil {
			return nil, err
		}
		data, err := n.allData(ctx, in)
		if err != nil {
			return nil, err
		}
		all = append(all, data...)
	}
	slices.SortFunc(all, func(x, y blockdev.Extent) int { return int(min(max(x.Offset-y.Offset, -1), 1)) })
	var out []blockdev.Extent
	for _, e := range all {
		if n := len(out); n > 0 && e.Offset <= out[n-1].End() {
			out[n-1].Length = max(out[n-1].End(), e.End()) - out[n-1].Offset
			continue
		}
		out = append(out, e)
	}
	return out, nil
}

// dataFrom lists the first ranges of data.
func (n *Node) dataFrom(ctx context.Context) (contents, error) {
	if n.vol == nil {
		return n.loadOurs(ctx)
	}
	return n.moreData(ctx, 0)
}

var errDiffers = errors.New("differs")

// equalRanges reads ranges of both files until they differ.
func equalRanges(ctx context.Context, a, b *Node, ranges []blockdev.Extent) (bool, error) {
	if len(ranges) == 0 {
		return true, nil
	}
	err := a.stream(ctx, ranges, func(p []byte, off int64) error {
		q := make([]byte, len(p))
		if err := b.readAt(ctx, q, off); err != nil {
			return err
		}
		if !bytes.Equal(p, q) {
			return errDiffers
		}
		return nil
	})
	if errors.Is(err, errDiffers) {
		return false, nil
	}
	return err == nil, err
}
