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

// censusEntries bounds the memory of an exact count: some 24 bytes per distinct
// block and node, so 50 MiB, reached at 128 GiB of distinct 64 KiB blocks.
const censusEntries = 2 << 20

// locator is a store that knows what a record takes in its pack.
type locator interface {
	Locate(d dedupe.Digest) (pack string, off, length int64, err error)
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

// Unique counts what only this point needs. The first call after a change of the
// Index counts all points at once, in time linear in distinct nodes and blocks;
// later calls are answered from memory.
func (x *Index) Unique(ctx context.Context, id dedupe.Digest) (Unique, error) {
	x.counting.Lock()
	defer x.counting.Unlock()
	list := x.all()
	x.mu.RLock()
	u, ok := x.unique[id]
	p := x.points[id]
	x.mu.RUnlock()
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

// owners says which point reaches a digest: its number in the list, or shared. The
// key is the digest's first 8 bytes; two of 2^21 digests agree there with a
// probability of 1 in 10^7, and then a few KiB are counted as shared.
type owners map[uint64]int32

const shared = -1

func ownerKey(d dedupe.Digest) uint64 { return binary.LittleEndian.Uint64(d[:]) }

// census counts for every point. A subtree that two points share is gone through
// twice, once when its second point marks all of it as shared, and never again.
func (x *Index) census(ctx context.Context, list []*Point) (map[dedupe.Digest]Unique, error) {
	out := make(map[dedupe.Digest]Unique, len(list))
	nodes := hashtree.Cached(x.store, 1024)
	own := make(owners)
	exact := true
	for i, p := range list {
		err := reach(ctx, x.store, nodes, p.Manifest, func(d dedupe.Digest) (bool, error) {
			o, seen := own[ownerKey(d)]
			switch {
			case seen && (o == int32(i) || o == shared):
				return false, nil
			case seen:
				own[ownerKey(d)] = shared
			case len(own) >= x.entries:
				return false, errTooMany
			default:
				own[ownerKey(d)] = int32(i)
			}
			return true, nil
		}, func(error) { exact = false })
		if errors.Is(err, errTooMany) {
			return x.bounds(ctx, nodes, list)
		}
		if err != nil {
			return nil, err
		}
	}
	for i, p := range list {
		u := Unique{Exact: exact}
		u.add(x.store, p.ID, dedupe.KindManifest)
		err := reachKinds(ctx, x.store, nodes, p.Manifest, func(d dedupe.Digest, kind dedupe.Kind) (bool, error) {
			if own[ownerKey(d)] != int32(i) {
				return false, nil
			}
			own[ownerKey(d)] = shared // counted
			u.add(x.store, d, kind)
			return true, nil
		}, func(error) {})
		if err != nil {
			return nil, err
		}
		out[p.ID] = u
	}
	return out, nil
}

var errTooMany = errors.New("too many blocks to count")

// add counts one record.
func (u *Unique) add(s dedupe.Store, d dedupe.Digest, kind dedupe.Kind) {
	if l, ok := s.(locator); ok {
		if _, _, n, err := l.Locate(d); err == nil {
			u.Bytes += n
			return
		}
	}
	u.Exact = false
	switch kind {
	case dedupe.KindBlock:
		u.Bytes += int64(s.BlockSize())
	case dedupe.KindNode:
		u.Bytes += hashtree.NodeSize
	}
}

// reach calls visit for every node and block that the manifest needs, and goes below a
// node, or on to the base of a block, when visit says so. unreadable is told of nodes that are passed over.
func reach(ctx context.Context, s dedupe.Store, nodes hashtree.Nodes, m *Manifest, visit func(dedupe.Digest) (bool, error), unreadable func(error)) error {
	return reachKinds(ctx, s, nodes, m, func(d dedupe.Digest, _ dedupe.Kind) (bool, error) { return visit(d) }, unreadable)
}

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
	for _, p := range list {
		var u Unique
		u.add(x.store, p.ID, dedupe.KindManifest)
		for i := range p.Manifest.Disks {
			d := &p.Manifest.Disks[i]
			next := rootOf(after[p], d.ID)
			counted := make(map[uint64]bool) // a block that occurs twice; bounded, else counted twice
			var failed error
			err := hashtree.DiffBlocks(ctx, nodes, rootOf(before[p], d.ID), d.Root, func(index int64, _, own dedupe.Digest) bool {
				if own.IsZero() || counted[ownerKey(own)] {
					return true
				}
				var there dedupe.Digest
				if there, failed = hashtree.Lookup(ctx, nodes, next, index); there == own || failed != nil {
					return failed == nil
				}
				if len(counted) < x.entries {
					counted[ownerKey(own)] = true
				}
				u.add(x.store, own, dedupe.KindBlock)
				return true
			})
			if err := errors.Join(err, failed); err != nil {
				return nil, err
			}
		}
		u.Exact = false
		out[p.ID] = u
	}
	return out, nil
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
