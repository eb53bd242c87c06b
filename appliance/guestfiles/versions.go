package guestfiles

import (
	"context"
	"crypto/sha256"
	"errors"

	"github.com/keelblock/keelblock/blockdev/filesystem"
)

// Version is what a path is in one point.
type Version struct {
	Point Point
	// Found is nil when the file is not there (Err is nil then), or cannot be read.
	Found *Found
	// Digest is the SHA-256 of a regular file's contents, as sha256sum shows it, or of
	// a link's target.
	Digest []byte
	// Kind is how it differs from the point before, the older one: 0 for not at all.
	Kind Kind
	What []string
	Err  error
}

// VersionSource opens points one after the other.
type VersionSource interface {
	// Open gives the tree of one point, and what ends its use.
	Open(ctx context.Context, p Point) (*Tree, func(), error)
	// Changes are those of the disks from one point to the other, nil when they are
	// not known.
	Changes(ctx context.Context, from, to Point) Changes
}

// Versions follows a path through the points of a machine, which come newest first, and
// yields what it finds in each, newest first. Two points are open at a time. A file is
// read once for each different content: where [Compare] can prove that nothing changed,
// the digest of the newer point stands for the older one, too.
func Versions(ctx context.Context, source VersionSource, points []Point, path string, follow bool, yield func(Version) error) error {
	var newer *opened
	defer func() { newer.close() }()
	for _, p := range points {
		older := open(ctx, source, p, path, follow)
		if newer != nil {
			if err := newer.finish(ctx, source, older, yield); err != nil {
				older.close()
				return err
			}
			newer.close()
		}
		newer = older
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	if newer == nil {
		return nil
	}
	return newer.finish(ctx, source, nil, yield)
}

// opened is a version whose point is open.
type opened struct {
	Version
	end func()
}

func (o *opened) close() {
	if o != nil && o.end != nil {
		o.end()
		o.end = nil
	}
}

func open(ctx context.Context, source VersionSource, p Point, path string, follow bool) *opened {
	o := &opened{Version: Version{Point: p}}
	tree, end, err := source.Open(ctx, p)
	if err != nil {
		o.Err = err
		return o
	}
	o.end = end
	found, err := tree.Find(ctx, p, path, follow)
	switch {
	case err == nil:
		o.Found = &found
	case !errors.Is(err, filesystem.ErrNotExist):
		o.Err = err
	}
	return o
}

// finish compares a version with the older one, nil for the oldest, and yields it.
func (o *opened) finish(ctx context.Context, source VersionSource, older *opened, yield func(Version) error) error {
	if o.Found != nil && o.Digest == nil {
		if o.Digest, o.Err = digest(ctx, o.Found.Node); o.Err != nil && ctx.Err() != nil {
			return ctx.Err()
		}
	}
	switch {
	case o.Err != nil || older != nil && older.Err != nil:
	case older == nil || older.Found == nil:
		if o.Found != nil {
			o.Kind = Added
		}
	case o.Found == nil:
		o.Kind = Removed
	default:
		if err := o.differ(ctx, source, older); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			o.Err = err
		}
	}
	return yield(o.Version)
}

func (o *opened) differ(ctx context.Context, source VersionSource, older *opened) error {
	was, is := older.Found.Node, o.Found.Node
	if was.attr.Type != is.attr.Type {
		o.Kind, o.What = OtherType, []string{"type"}
		return nil
	}
	c := &comparer{o: CompareOptions{Changes: source.Changes(ctx, older.Point, o.Point), Contents: true}}
	if c.untouched(was, is) {
		older.Digest = o.Digest
		return nil
	}
	change, err := c.compare(ctx, was, is)
	if err != nil {
		return err
	}
	o.Kind, o.What = change.Kind, change.What
	if o.Kind != Modified {
		older.Digest = o.Digest
	}
	return nil
}

// digest is the SHA-256 of what a node holds; nil for what has no contents.
func digest(ctx context.Context, n *Node) ([]byte, error) {
	h := sha256.New()
	switch n.attr.Type {
	case filesystem.TypeSymlink:
		target, err := n.Readlink(ctx)
		if err != nil {
			return nil, err
		}
		h.Write(target)
	case filesystem.TypeRegular:
		in, err := n.dataFrom(ctx)
		if err != nil {
			return nil, err
		}
		data, err := n.allData(ctx, in)
		if err != nil {
			return nil, err
		}
		var zeros [64 << 10]byte
		done := int64(0)
		hole := func(to int64) error {
			for ; done < to && ctx.Err() == nil; done += min(to-done, int64(len(zeros))) {
				h.Write(zeros[:min(to-done, int64(len(zeros)))])
			}
			return ctx.Err()
		}
		if err := n.stream(ctx, data, func(p []byte, off int64) error {
			if err := hole(off); err != nil {
				return err
			}
			h.Write(p)
			done = off + int64(len(p))
			return nil
		}); err != nil {
			return nil, err
		}
		if err := hole(n.attr.Size); err != nil {
			return nil, err
		}
	default:
		return nil, nil
	}
	return h.Sum(nil), nil
}
