package recoverypoint

import (
	"context"
	"errors"
	"fmt"

	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/hashtree"
)

// Usage is what points take in the packs of a store, in bytes of records, headers
// included. A record that several points need is there once.
//
// What a pack has beyond the records that points need is not in it: its header and
// footer, pads, notes, publications, and what collection will free.
type Usage struct {
	// Live is the size of all records that points need, soft-deleted ones included.
	Live int64
	// Deleted is the part of Live that only soft-deleted points need.
	Deleted int64
	// Unique is the sum of the points' Unique, Shared what more than one point needs,
	// once. Their sum is Live.
	Unique, Shared int64
	// Machines in the order of their oldest points.
	Machines []MachineUsage
	// Exact is false when the store is too large to count within its memory, so that
	// each point's Unique is an estimate and nothing else but Machines is known; or when
	// something could not be read.
	Exact bool
}

// MachineUsage is what the points of a machine take together.
type MachineUsage struct {
	ID ID
	// Unique is what no other machine needs, Shared the rest of what this one needs.
	Unique, Shared int64
	// Points, oldest first, soft-deleted ones included.
	Points []PointUsage
}

// PointUsage is what one point takes.
type PointUsage struct {
	Point *Point
	// Unique is what no other point needs: what purging this one would let collection
	// free. Total is what a copy of this point alone would take; Shared is the
	// difference.
	Unique, Shared, Total int64
}

// Usage counts what all points take. It reads every node of the store once, and then for
// each point what differs from the machine's point before it.
func (x *Index) Usage(ctx context.Context) (*Usage, error) {
	x.counting.Lock()
	defer x.counting.Unlock()
	var list []*Point // those that are not deleted come first
	for _, deleted := range []bool{false, true} {
		for _, p := range x.all() {
			if !p.purged && p.Deleted == deleted {
				list = append(list, p)
			}
		}
	}
	t := &tally{x: x, nodes: hashtree.Cached(x.store, 1024), owners: map[uint64]owner{}, usage: &Usage{Exact: true}}
	err := t.count(ctx, list)
	if err != nil {
		return nil, fmt.Errorf("count what recovery points take: %w", err)
	}
	return t.usage, nil
}

// owner says which point, and which machine, needs a record: its number, or shared.
type owner struct {
	point, machine int32
	bytes          int32
}

// tally is one count.
type tally struct {
	x      *Index
	nodes  hashtree.Nodes
	owners map[uint64]owner // see owners for the key
	usage  *Usage
}

func (t *tally) count(ctx context.Context, list []*Point) error {
	machines := map[ID]int32{}
	for _, p := range t.x.all() {
		id := p.Manifest.MachineID
		if _, ok := machines[id]; !ok && !p.purged {
			machines[id] = int32(len(machines))
			t.usage.Machines = append(t.usage.Machines, MachineUsage{ID: id})
		}
		if !p.purged {
			m := &t.usage.Machines[machines[id]]
			m.Points = append(m.Points, PointUsage{Point: p})
		}
	}
	at := make(map[*Point]*PointUsage, len(list))
	for i := range t.usage.Machines {
		for j := range t.usage.Machines[i].Points {
			pu := &t.usage.Machines[i].Points[j]
			at[pu.Point] = pu
		}
	}
	for i, p := range list {
		err := t.claim(ctx, p, int32(i), machines[p.Manifest.MachineID])
		if errors.Is(err, errTooMany) {
			return t.estimate(ctx, list, at)
		}
		if err != nil {
			return err
		}
	}
	t.divide(list, at)
	for i := range t.usage.Machines {
		if err := t.totals(ctx, &t.usage.Machines[i]); err != nil {
			return err
		}
	}
	return nil
}

// claim marks all that a point needs as its own, or as shared.
func (t *tally) claim(ctx context.Context, p *Point, point, machine int32) error {
	mark := func(d dedupe.Digest, kind dedupe.Kind) (bool, error) {
		o, seen := t.owners[ownerKey(d)]
		if !seen {
			if len(t.owners) >= t.x.entries {
				return false, errTooMany
			}
			n := t.size(d, kind)
			t.owners[ownerKey(d)] = owner{point, machine, int32(n)}
			t.usage.Live += n
			if p.Deleted {
				t.usage.Deleted += n
			}
			return true, nil
		}
		was := o
		if o.point != point {
			o.point = shared
		}
		if o.machine != machine {
			o.machine = shared
		}
		t.owners[ownerKey(d)] = o
		return o != was, nil
	}
	if _, err := mark(p.ID, dedupe.KindManifest); err != nil {
		return err
	}
	return reachKinds(ctx, t.x.store, t.nodes, p.Manifest, mark, func(error) { t.usage.Exact = false })
}

// size of a record in its pack. One whose place is not known makes the count inexact.
func (t *tally) size(d dedupe.Digest, kind dedupe.Kind) int64 {
	var u Unique
	u.Exact = true
	u.add(t.x.store, d, kind)
	t.usage.Exact = t.usage.Exact && u.Exact
	return u.Bytes
}

// divide gives every record to its point and machine, or to what is shared.
func (t *tally) divide(list []*Point, at map[*Point]*PointUsage) {
	for _, o := range t.owners {
		n := int64(o.bytes)
		if o.point == shared {
			t.usage.Shared += n
		} else {
			t.usage.Unique += n
			at[list[o.point]].Unique += n
		}
		if o.machine != shared {
			t.usage.Machines[o.machine].Unique += n
		}
	}
}

// totals counts what each point of a machine takes alone, by what differs from the one
// before, and what all of them share with other machines.
func (t *tally) totals(ctx context.Context, m *MachineUsage) error {
	var before *Manifest
	c := &census{tally: t, places: map[uint64]int64{}, all: map[uint64]struct{}{}}
	for i := range m.Points {
		pu := &m.Points[i]
		if err := c.move(ctx, before, pu.Point.Manifest); err != nil {
			return err
		}
		pu.Total = c.total + t.size(pu.Point.ID, dedupe.KindManifest)
		pu.Shared = pu.Total - pu.Unique
		before = pu.Point.Manifest
	}
	m.Shared = c.sharedBytes
	return nil
}

// census is the set of records that one manifest needs, by how many places need each.
type census struct {
	tally       *tally
	places      map[uint64]int64
	total       int64
	all         map[uint64]struct{} // shared records that any manifest so far has needed
	sharedBytes int64
}

func (c *census) add(d dedupe.Digest, n int64) {
	key := ownerKey(d)
	was := c.places[key]
	o := c.tally.owners[key]
	switch now := was + n; {
	case now == 0:
		delete(c.places, key)
		c.total -= int64(o.bytes)
	default:
		c.places[key] = now
		if was == 0 {
			c.total += int64(o.bytes)
		}
	}
	if _, seen := c.all[key]; !seen && o.machine == shared {
		c.all[key] = struct{}{}
		c.sharedBytes += int64(o.bytes)
	}
}

// addBlock is add of a block and of what it is made of.
func (c *census) addBlock(d dedupe.Digest, n int64) error {
	c.add(d, n)
	return visitBases(c.tally.x.store, d, func(base dedupe.Digest) (bool, error) {
		c.add(base, n)
		return true, nil
	})
}

// move goes from the records of one manifest, nil for none, to those of the next.
func (c *census) move(ctx context.Context, from, to *Manifest) error {
	roots := map[ID][2]hashtree.Root{}
	for i, m := range []*Manifest{from, to} {
		if m == nil {
			continue
		}
		for j := range m.Disks {
			pair := roots[m.Disks[j].ID]
			pair[i] = m.Disks[j].Root
			roots[m.Disks[j].ID] = pair
		}
		for _, content := range m.Contents() {
			for _, d := range content.Blocks {
				if d.IsZero() {
					continue
				}
				if err := c.addBlock(d, int64(2*i-1)); err != nil {
					return err
				}
			}
		}
	}
	for _, pair := range roots {
		err := hashtree.DiffEntries(ctx, c.tally.nodes, pair[0], pair[1], func(e hashtree.Entry, inB bool) error {
			n := int64(-1)
			if inB {
				n = 1
			}
			if e.Level < 0 {
				return c.addBlock(e.Digest, n)
			}
			c.add(e.Digest, n)
			return nil
		})
		var ne *hashtree.NodeError
		if errors.As(err, &ne) {
			c.tally.usage.Exact = false
			continue
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// estimate is what is known of a store that is too large to count: each point's Unique.
func (t *tally) estimate(ctx context.Context, list []*Point, at map[*Point]*PointUsage) error {
	*t.usage = Usage{Machines: t.usage.Machines}
	bounds, err := t.x.bounds(ctx, t.nodes, list)
	if err != nil {
		return err
	}
	for p, pu := range at {
		pu.Unique = bounds[p.ID].Bytes
		pu.Total = pu.Unique
		t.usage.Unique += pu.Unique
	}
	return nil
}
