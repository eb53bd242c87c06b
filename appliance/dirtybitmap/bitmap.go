package dirtybitmap

import (
	"context"
	"fmt"
	"sort"

	"github.com/keelblock/keelblock/appliance"
	"github.com/keelblock/keelblock/blockdev"
	"github.com/keelblock/keelblock/blockdev/nbd/server"
	"github.com/keelblock/keelblock/dedupe/recoverypoint"
)

// Dirty is the flag of a range that changed.
const Dirty = 1

// maxExtents bounds a Bitmap's list to 16 MiB. Longer lists become coarser.
const maxExtents = 1 << 20

// Since is the name of the context that tells what changed since a point.
func Since(p *recoverypoint.Point) string { return server.DirtyBitmapPrefix + "since-" + p.ID.String() }

// Named is the name of a cursor's context.
func Named(cursor string) string { return server.DirtyBitmapPrefix + cursor }

// Bitmap is a fixed list of changed ranges of a disk. It may be used by any number of
// connections at once.
type Bitmap struct {
	sizeBytes int64
	changed   []blockdev.Extent // ascending, merged
}

var _ server.Context = (*Bitmap)(nil)

// New makes a Bitmap of a disk of sizeBytes.
func New(set *recoverypoint.ChangeSet, sizeBytes int64) *Bitmap {
	return newBitmap(set, sizeBytes, maxExtents)
}

func newBitmap(set *recoverypoint.ChangeSet, sizeBytes int64, limit int) *Bitmap {
	b := &Bitmap{sizeBytes: sizeBytes}
	unit := int64(blockdev.GrainSize)
	set.Extents(sizeBytes, func(x blockdev.Extent) bool {
		b.add(x, unit)
		for len(b.changed) > limit {
			unit *= 2
			fine := b.changed
			b.changed = fine[:0] // never longer than what was read of fine
			for _, y := range fine {
				b.add(y, unit)
			}
		}
		return true
	})
	return b
}

// add appends x, widened to whole units, and merges it with the last range.
func (b *Bitmap) add(x blockdev.Extent, unit int64) {
	first := x.Offset / unit * unit
	end := min((x.End()+unit-1)/unit*unit, b.sizeBytes)
	if n := len(b.changed); n > 0 && first <= b.changed[n-1].End() {
		last := &b.changed[n-1]
		last.Length = max(end, last.End()) - last.Offset
		return
	}
	b.changed = append(b.changed, blockdev.Extent{Offset: first, Length: end - first})
}

// Status is server.Context.Status.
func (b *Bitmap) Status(off, n int64, yield func(blockdev.Extent, uint32) bool) error {
	end := off + n
	i := sort.Search(len(b.changed), func(i int) bool { return b.changed[i].End() > off })
	for ; off < end && i < len(b.changed) && b.changed[i].Offset < end; i++ {
		x := b.changed[i]
		if x.Offset > off && !yield(blockdev.Extent{Offset: off, Length: x.Offset - off}, 0) {
			return nil
		}
		off = max(off, x.Offset)
		stop := min(x.End(), end)
		if !yield(blockdev.Extent{Offset: off, Length: stop - off}, Dirty) {
			return nil
		}
		off = stop
	}
	if clean := min(end, b.sizeBytes); clean > off {
		if !yield(blockdev.Extent{Offset: off, Length: clean - off}, 0) {
			return nil
		}
		off = clean
	}
	if off < end { // the disk has grown since
		yield(blockdev.Extent{Offset: off, Length: end - off}, Dirty)
	}
	return nil
}

// Close is server.Context.Close. A Bitmap holds nothing.
func (b *Bitmap) Close() {}

// Fixed offers one Bitmap under one name.
type Fixed struct {
	Name   string // in full
	Bitmap *Bitmap
}

var _ server.ContextSource = Fixed{}

// Contexts is server.ContextSource.Contexts.
func (f Fixed) Contexts(context.Context) ([]string, error) { return []string{f.Name}, nil }

// OpenContext is server.ContextSource.OpenContext.
func (f Fixed) OpenContext(_ context.Context, name string) (server.Context, error) {
	if name != f.Name {
		return nil, NotOffered(name)
	}
	return f.Bitmap, nil
}

// NotOffered is the error for a name that a source does not have.
func NotOffered(name string) error {
	return &appliance.Error{Op: fmt.Sprintf("open metadata context %q", name), Kind: appliance.ErrNotFound, Text: "it is not offered"}
}
