package recoverypoint

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/hashtree"
)

// Unique is what only one point needs: what purging it would let collection free.
type Unique struct {
	// Bytes in packs of the blocks, nodes and manifest that no other point of the
	// Index reaches, soft-deleted ones included since they still pin theirs.
	Bytes int64
	// Exact is false when Bytes is an estimate: the store is too large to count
	// within censusEntries, so the point was compared with its neighbours only,
	// which counts too many blocks and no nodes; or something could not be read or
	// has no known stored length.
	Exact bool
}

// censusEntries bounds the memory of an exact count, which is kept for the next one: some
// 24 bytes per distinct block and node, so 50 MiB, reached at 128 GiB of distinct 64 KiB
// blocks.
const censusEntries = 2 << 20

// measurer is a store that knows what a record takes in its pack, and whether it keeps a
// block as what differs from another one.
type measurer interface {
	Measure(kind dedupe.Kind, d dedupe.Digest) (length int64, patch bool, err error)
}

// patcher is a store that keeps some blocks as what differs from another block, their
// base: whatever needs such a block needs the base too.
type patcher interface {
	Base(d dedupe.Digest) (base dedupe.Digest, ok bool, err error)
}

// visitBases calls visit for the block that a block is made of, if it is, and goes on
// with that one's own base when visit says so.
func visitBases(s dedupe.Store, d dedupe.Digest, visit func(dedupe.Digest) (bool, error)) error {
	ps, ok := s.(patcher)
	for deeper := ok; deeper; {
		base, ok, err := ps.Base(d)
		if !ok || err != nil {
			return err
		}
		if deeper, err = visit(base); err != nil {
			return err
		}
		d = base
	}
	return nil
}

// UniqueBytes is Unique(ctx, id).Bytes.
func (x *Index) UniqueBytes(ctx context.Context, id dedupe.Digest) (int64, error) {
	u, err := x.Unique(ctx, id)
	return u.Bytes, err
}

// Unique counts what only this point needs. The first call counts all points at once, in
// time linear in distinct nodes and blocks; after points were published only what they
// do not share with those before is gone through. A purge or a collection makes it begin
// anew.
func (x *Index) Unique(ctx context.Context, id dedupe.Digest) (Unique, error) {
	x.counting.Lock()
	defer x.counting.Unlock()
	list := x.all()
	x.mu.Lock()
	u, ok := x.unique[id]
	p := x.points[id]
	if x.collected {
		x.counted, x.bounded, x.collected = nil, nil, false
	}
	x.mu.Unlock()
	if ok {
		return u, nil
	}
	if p == nil || p.purged {
		return Unique{}, fmt.Errorf("recovery point %v: %w", id, ErrNotFound)
	}
	live := make([]*Point, 0, len(list))
	for _, p := range list {
		if !p.purged {
			live = append(live, p)
		}
	}
	count, err := x.census(ctx, live)
	if err != nil {
		return Unique{}, fmt.Errorf("count unique bytes: %w", err)
	}
	x.mu.Lock()
	if len(x.ordered) > 0 && &x.ordered[0] == &list[0] { // nothing changed meanwhile
		x.unique = count
	}
	x.mu.Unlock()
	return count[id], nil
}

// owners says of a digest which point reaches it. The key is the digest's first 8 bytes;
// two of 2^21 digests agree there with a probability of 1 in 10^7, and then a few KiB are
// counted as shared.
type owners map[uint64]owned

// owned is one record: the number of the only point that reaches it, or shared, and what
// it takes.
type owned struct {
	point int32
	bytes uint32 // with isPatch
}

const (
	shared = -1
	// isPatch: the block is kept as what differs from another one, which its owners need
	// as well. Records are smaller than this.
	isPatch = 1 << 31
)

func ownerKey(d dedupe.Digest) uint64 { return binary.LittleEndian.Uint64(d[:]) }

// count is an exact count of some points, to which others can be added.
type count struct {
	own     owners
	numbers map[dedupe.Digest]int32
	bytes   []int64 // by number: what only that point needs
	exact   bool
	tooMany bool // for an exact count; nothing else is known
}

// within reports whether the count is of nothing but these points.
func (c *count) within(list []*Point) bool {
	if c.tooMany {
		return true
	}
	n := 0
	for _, p := range list {
		if _, ok := c.numbers[p.ID]; ok {
			n++
		}
	}
	return n == len(c.numbers)
}

// census counts for every point. It goes on from the count before, if that is of these
// points only. A subtree that two points share is gone through twice, once when its second
// point marks all of it as shared, and never again. counting is held.
func (x *Index) census(ctx context.Context, list []*Point) (map[dedupe.Digest]Unique, error) {
	c := x.counted
	if c == nil || !c.within(list) {
		c = &count{own: make(owners), numbers: make(map[dedupe.Digest]int32), exact: true}
	}
	x.counted = nil // a part of a point may be in it
	nodes := hashtree.Cached(x.store, 1024)
	for _, p := range list {
		if c.tooMany {
			break
		}
		if _, ok := c.numbers[p.ID]; ok {
			continue
		}
		err := c.add(ctx, x, nodes, p)
		if errors.Is(err, errTooMany) {
			c = &count{tooMany: true}
		} else if err != nil {
			return nil, err
		}
	}
	if c.tooMany || c.exact {
		x.counted = c
	}
	if c.tooMany {
		return x.bounds(ctx, nodes, list)
	}
	out := make(map[dedupe.Digest]Unique, len(list))
	for _, p := range list {
		u := Unique{Bytes: c.bytes[c.numbers[p.ID]], Exact: c.exact}
		u.add(x.store, p.ID, dedupe.KindManifest)
		out[p.ID] = u
	}
	return out, nil
}

// add counts one more point.
func (c *count) add(ctx context.Context, x *Index, nodes hashtree.Nodes, p *Point) error {
	number := int32(len(c.bytes))
	c.bytes = append(c.bytes, 0)
	c.numbers[p.ID] = number
	visit := func(d dedupe.Digest, kind dedupe.Kind) (bool, error) {
		key := ownerKey(d)
		o, seen := c.own[key]
		switch {
		case seen && (o.point == number || o.point == shared):
			return false, nil
		case seen:
			c.bytes[o.point] -= int64(o.bytes &^ isPatch)
			o.point = shared
		case len(c.own) >= x.entries:
			return false, errTooMany
		default:
			u := Unique{Exact: true}
			patch := u.add(x.store, d, kind)
			c.exact = c.exact && u.Exact
			c.bytes[number] += u.Bytes
			o = owned{number, uint32(u.Bytes)}
			if patch {
				o.bytes |= isPatch
			}
		}
		c.own[key] = o
		return kind == dedupe.KindNode || o.bytes&isPatch != 0, nil
	}
	return reachKinds(ctx, x.store, nodes, p.Manifest, visit, func(error) { c.exact = false })
}

var errTooMany = errors.New("too many blocks to count")

// add counts one record, and reports whether it may be a patch.
func (u *Unique) add(s dedupe.Store, d dedupe.Digest, kind dedupe.Kind) (patch bool) {
	if m, ok := s.(measurer); ok {
		if n, patch, err := m.Measure(kind, d); err == nil {
			u.Bytes += n
			return patch
		}
	}
	u.Exact = false
	switch kind {
	case dedupe.KindBlock:
		u.Bytes += int64(s.BlockSize())
	case dedupe.KindNode:
		u.Bytes += hashtree.NodeSize
	}
	return kind == dedupe.KindBlock
}

// reachKinds calls visit for every node and block that the manifest needs, and goes below a
// node, or on to the base of a block, when visit says so. unreadable is told of nodes that are passed over.
func reachKinds(ctx context.Context, s dedupe.Store, nodes hashtree.Nodes, m *Manifest, visit func(dedupe.Digest, dedupe.Kind) (bool, error), unreadable func(error)) error {
	block := func(d dedupe.Digest) (bool, error) {
		deeper, err := visit(d, dedupe.KindBlock)
		if !deeper || err != nil {
			return false, err
		}
		return false, visitBases(s, d, func(base dedupe.Digest) (bool, error) { return visit(base, dedupe.KindBlock) })
	}
	for i := range m.Disks {
		r := m.Disks[i].Root
		err := hashtree.Visit(ctx, nodes, r, 0, r.SizeBytes, func(e hashtree.Entry) (bool, error) {
			if e.Err != nil {
				unreadable(e.Err)
				return false, ctx.Err()
			}
			if e.Level < 0 {
				return block(e.Digest)
			}
			return visit(e.Digest, dedupe.KindNode)
		})
		if err != nil {
			return err
		}
	}
	for _, c := range m.Contents() {
		for _, d := range c.Blocks {
			if d.IsZero() {
				continue
			}
			if _, err := block(d); err != nil {
				return err
			}
		}
	}
	return nil
}

// bounds counts for each point the blocks that differ, in their place, from both the
// point before and the point after it of the same machine. A block of it that
// another place or machine has as well is counted though it is shared, so this is
// an upper bound of its blocks; nodes, some 6 % of that or less, are left out, and so is
// what its blocks are made of.
//
// It takes time linear in what differs between neighbours, for the first point of a machine
// too; only one that has no neighbour is gone through as a whole. A bound is kept as long as
// its point has the same neighbours, so a new point costs two of them, whatever the store
// holds: it is asked for after every backup. counting is held.
func (x *Index) bounds(ctx context.Context, nodes hashtree.Nodes, list []*Point) (map[dedupe.Digest]Unique, error) {
	out := make(map[dedupe.Digest]Unique, len(list))
	before := make(map[*Point]*Point, len(list))
	after := make(map[*Point]*Point, len(list))
	last := make(map[ID]*Point)
	for _, p := range list {
		if q := last[p.Manifest.MachineID]; q != nil {
			before[p], after[q] = q, p
		}
		last[p.Manifest.MachineID] = p
	}
	kept := make(map[dedupe.Digest]bound, len(list))
	for _, p := range list {
		b := bound{before: idOf(before[p]), after: idOf(after[p])}
		if old, ok := x.bounded[p.ID]; ok && old.before == b.before && old.after == b.after {
			b = old
		} else {
			var err error
			if b.Unique, err = x.bound(ctx, nodes, before[p], p, after[p]); err != nil {
				return nil, err
			}
		}
		kept[p.ID], out[p.ID] = b, b.Unique
	}
	x.bounded = kept
	return out, nil
}

// bound is an upper bound of what only a point needs, and what it was compared with.
type bound struct {
	Unique
	before, after dedupe.Digest // ids of its neighbours; zero: none
}

func idOf(p *Point) dedupe.Digest {
	if p == nil {
		return dedupe.Digest{}
	}
	return p.ID
}

// bound compares a point with its neighbours, of which either may be nil.
func (x *Index) bound(ctx context.Context, nodes hashtree.Nodes, before, p, after *Point) (u Unique, err error) {
	u.add(x.store, p.ID, dedupe.KindManifest)
	for i := range p.Manifest.Disks {
		d := &p.Manifest.Disks[i]
		near, other := rootOf(before, d.ID), rootOf(after, d.ID)
		if near.IsZero() { // what differs from the other one is less than all
			near, other = other, near
		}
		counted := make(map[uint64]bool) // a block that occurs twice; bounded, else counted twice
		var failed error
		err := hashtree.DiffBlocks(ctx, nodes, near, d.Root, func(index int64, _, own dedupe.Digest) bool {
			if own.IsZero() || counted[ownerKey(own)] {
				return true
			}
			var there dedupe.Digest
			if there, failed = hashtree.Lookup(ctx, nodes, other, index); there == own || failed != nil {
				return failed == nil
			}
			if len(counted) < x.entries {
				counted[ownerKey(own)] = true
			}
			u.add(x.store, own, dedupe.KindBlock)
			return true
		})
		if err := errors.Join(err, failed); err != nil {
			return u, err
		}
	}
	u.Exact = false
	return u, nil
}

// rootOf is the tree of the same disk in a neighbour, or the zero Root.
func rootOf(p *Point, disk ID) hashtree.Root {
	if p != nil {
		for i := range p.Manifest.Disks {
			if p.Manifest.Disks[i].ID == disk {
				return p.Manifest.Disks[i].Root
			}
		}
	}
	return hashtree.Root{}
}
