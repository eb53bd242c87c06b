package recoverypoint_test

import (
	"context"
	"maps"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/blockstore"
	"github.com/keelblock/keelblock/dedupe/hashtree"
	"github.com/keelblock/keelblock/dedupe/ingest"
	"github.com/keelblock/keelblock/dedupe/recoverypoint"
)

// reached is everything that a point reaches, by going through it, bases of blocks
// included: the slow and plain way to count what Unique counts.
func reached(t *testing.T, s *blockstore.Store, p *recoverypoint.Point) map[dedupe.Digest]bool {
	t.Helper()
	out := map[dedupe.Digest]bool{p.ID: true}
	for _, d := range p.Manifest.Disks {
		err := hashtree.Visit(t.Context(), hashtree.Direct(s), d.Root, 0, d.Root.SizeBytes, func(e hashtree.Entry) (bool, error) {
			out[e.Digest] = true
			return true, e.Err
		})
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range d.ChangeSet.Blocks {
			out[c] = true
		}
	}
	for _, c := range p.Manifest.Definition.Blocks {
		out[c] = true
	}
	for _, d := range slices.Collect(maps.Keys(out)) {
		for {
			base, ok, err := s.Base(d)
			if err != nil {
				t.Fatal(err)
			}
			if !ok {
				break
			}
			out[base], d = true, base
		}
	}
	return out
}

// checkUsage compares Usage with a plain count.
func checkUsage(t *testing.T, s *blockstore.Store, x *recoverypoint.Index, what string) {
	t.Helper()
	size := func(d dedupe.Digest) int64 {
		_, _, n, err := s.Locate(d)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	points, machines := map[dedupe.Digest]int{}, map[dedupe.Digest]map[recoverypoint.ID]bool{}
	var live, deleted int64
	kept := map[dedupe.Digest]bool{}
	for _, p := range x.List("", true) {
		for d := range reached(t, s, p) {
			points[d]++
			if machines[d] == nil {
				machines[d] = map[recoverypoint.ID]bool{}
			}
			machines[d][p.Manifest.MachineID] = true
			kept[d] = kept[d] || !p.Deleted
		}
	}
	for d := range points {
		live += size(d)
		if !kept[d] {
			deleted += size(d)
		}
	}
	u, err := x.Usage(t.Context())
	if err != nil || !u.Exact {
		t.Fatalf("%s: %+v, %v", what, u, err)
	}
	if u.Live != live || u.Deleted != deleted || u.Unique+u.Shared != live {
		t.Errorf("%s: live %d, deleted %d, unique %d + shared %d; want %d and %d", what, u.Live, u.Deleted, u.Unique, u.Shared, live, deleted)
	}
	n := 0
	for _, m := range u.Machines {
		var unique, sharedBytes int64
		needed := map[dedupe.Digest]bool{}
		for _, pu := range m.Points {
			n++
			var own, total int64
			for d := range reached(t, s, pu.Point) {
				total += size(d)
				if points[d] == 1 {
					own += size(d)
				}
				needed[d] = true
			}
			if pu.Unique != own || pu.Total != total || pu.Shared != total-own {
				t.Errorf("%s: point %v: %+v; want unique %d of %d", what, pu.Point.ID, pu, own, total)
			}
		}
		for d := range needed {
			if len(machines[d]) == 1 {
				unique += size(d)
			} else {
				sharedBytes += size(d)
			}
		}
		if m.Unique != unique || m.Shared != sharedBytes {
			t.Errorf("%s: machine %v: unique %d, shared %d; want %d and %d", what, m.ID, m.Unique, m.Shared, unique, sharedBytes)
		}
	}
	if n != len(x.List("", true)) {
		t.Errorf("%s: %d points are counted", what, n)
	}
	limited := openIndex(t, s)
	recoverypoint.LimitCensus(limited, 10)
	if u, err := limited.Usage(t.Context()); err != nil || u.Exact || len(u.Machines) == 0 {
		t.Errorf("%s, limited: %+v, %v", what, u, err)
	}
}

// isContent reports whether d is of the change sets or the definition.
func isContent(p *recoverypoint.Point, d dedupe.Digest) bool {
	all := p.Manifest.Definition.Blocks
	for _, disk := range p.Manifest.Disks {
		all = append(slices.Clip(all), disk.ChangeSet.Blocks...)
	}
	return slices.Contains(all, d)
}

// TestUnique compares with a plain count over all points: increments, a second
// machine with the same data elsewhere on its disk, a deleted and a purged point.
func TestUnique(t *testing.T) {
	dir := t.TempDir()
	if err := blockstore.Create(dir, blockstore.Options{BlockSize: 16 << 10}); err != nil {
		t.Fatal(err)
	}
	s, err := blockstore.Open(dir, blockstore.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	x := openIndex(t, s)
	disk := sparseDisk(12 << 20)
	var root hashtree.Root
	backup := func(machine byte, sequence uint64, base hashtree.Root, disk []byte, off, n int) (*recoverypoint.Point, hashtree.Root) {
		b := batchOf(t, s)
		p, err := ingest.NewPass(s, b, base, int64(len(disk)), ingest.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Write(t.Context(), int64(off), disk[off:off+n]); err != nil {
			t.Fatal(err)
		}
		root, _, err := p.Finish(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		m := point("web", machine, sequence, day.Add(time.Duration(sequence)*time.Hour), recoverypoint.Crash)
		m.Disks = []recoverypoint.Disk{{ID: id(machine), Name: "web0", Root: root, Tracking: recoverypoint.TrackingFull}}
		if m.Disks[0].ChangeSet, err = recoverypoint.EncodeChangeSet(t.Context(), b, s.BlockSize(), p.Changes()); err != nil {
			t.Fatal(err)
		}
		if m.Definition, err = recoverypoint.PutContent(t.Context(), b, s.BlockSize(), []byte("the same in all points")); err != nil {
			t.Fatal(err)
		}
		ps, err := x.Publish(t.Context(), b, []*recoverypoint.Manifest{m}, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		return ps[0], root
	}
	check := func(what string) {
		t.Helper()
		list := x.List("", true)
		count := make(map[dedupe.Digest]int)
		for _, p := range list {
			for d := range reached(t, s, p) {
				count[d]++
			}
		}
		for i, p := range list {
			want, nodes := int64(0), int64(0) // nodes and contents are not in the upper bound
			for d := range reached(t, s, p) {
				if count[d] == 1 {
					_, _, n, err := s.Locate(d)
					if err != nil {
						t.Fatal(err)
					}
					want += n
					if _, err := s.Get(t.Context(), dedupe.KindBlock, d, nil); err != nil || isContent(p, d) {
						nodes += n
					}
				}
			}
			limited := openIndex(t, s)
			recoverypoint.LimitCensus(limited, 10)
			if u, err := limited.Unique(t.Context(), p.ID); err != nil || u.Exact || u.Bytes < want-nodes {
				t.Errorf("%s: point %d, limited: %+v, %v; want %d or more", what, i, u, err, want-nodes)
			}
			u, err := x.Unique(t.Context(), p.ID)
			if err != nil || !u.Exact || u.Bytes != want {
				t.Errorf("%s: point %d: %+v, %v; want %d", what, i, u, err, want)
			}
		}
	}
	plain := check
	check = func(what string) {
		t.Helper()
		plain(what)
		checkUsage(t, s, x, what)
	}
	first, root := backup(1, 1, root, disk, 0, len(disk))
	check("one point")
	copy(disk[3<<20:], randomBytes(20, 1<<20))
	_, root = backup(1, 2, root, disk, 3<<20, 1<<20)
	copy(disk[3<<20:], randomBytes(21, 1<<19))
	third, _ := backup(1, 3, root, disk, 3<<20, 1<<20)
	check("three points")
	other := make([]byte, 6<<20)
	copy(other[2<<20:], disk[3<<20:5<<20])
	backup(2, 1, hashtree.Root{}, other, 0, len(other))
	check("another machine with the same data elsewhere")
	if _, err := x.Delete(t.Context(), third.ID, day); err != nil {
		t.Fatal(err)
	}
	check("one deleted")
	if _, err := x.Purge(t.Context(), first.ID, day); err != nil {
		t.Fatal(err)
	}
	check("one purged")
}

// nodeCounter counts the nodes that are read.
type nodeCounter struct {
	*blockstore.Store
	nodes atomic.Int64
}

func (s *nodeCounter) Get(ctx context.Context, kind dedupe.Kind, d dedupe.Digest, buf []byte) ([]byte, error) {
	if kind == dedupe.KindNode {
		s.nodes.Add(1)
	}
	return s.Store.Get(ctx, kind, d, buf)
}

// In a store that is too large for an exact count a new point costs its own changes and those
// of the point before, and so does the first point of a machine: not all points, nor a disk.
func TestUniqueOfLargeStoreCostsChanges(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := blockstore.Create(dir, blockstore.Options{BlockSize: 16 << 10}); err != nil {
		t.Fatal(err)
	}
	own, err := blockstore.Open(dir, blockstore.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	s := &nodeCounter{Store: own}
	x := openIndex(t, s)
	recoverypoint.LimitCensus(x, 10)
	disk := randomBytes(30, 64<<20) // 32 leaves
	var root hashtree.Root
	var bounds []int64
	for sequence := range 6 {
		off, n := 0, len(disk)
		if sequence > 0 {
			off, n = 1<<20, 64<<10
			copy(disk[off:], randomBytes(uint64(30+sequence), n))
		}
		b := batchOf(t, s)
		p, err := ingest.NewPass(s, b, root, int64(len(disk)), ingest.Options{})
		if err == nil {
			err = p.Write(t.Context(), int64(off), disk[off:off+n])
		}
		if err == nil {
			root, _, err = p.Finish(t.Context())
		}
		if err != nil {
			t.Fatal(err)
		}
		m := point("web", 1, uint64(sequence+1), day.Add(time.Duration(sequence)*time.Hour), recoverypoint.Crash)
		m.Disks = []recoverypoint.Disk{{ID: id(1), Name: "web0", Root: root, Tracking: recoverypoint.TrackingFull}}
		points, err := x.Publish(t.Context(), b, []*recoverypoint.Manifest{m}, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		s.nodes.Store(0)
		u, err := x.Unique(t.Context(), points[0].ID)
		if err != nil || u.Exact {
			t.Fatalf("point %d: %+v, %v", sequence, u, err)
		}
		bounds = append(bounds, u.Bytes)
		if got := s.nodes.Load(); sequence > 0 && got > 12 {
			t.Errorf("point %d: %d nodes are read", sequence, got)
		}
	}
	for i, p := range x.List("", false) {
		u, err := x.Unique(t.Context(), p.ID)
		if most := int64(80 << 10); err != nil || u.Bytes > most || u.Bytes < 64<<10 && i > 0 {
			t.Errorf("point %d: %+v, %v; 64 KiB are its own", i, u, err)
		}
	}
	if bounds[0] < 64<<20 {
		t.Errorf("a point alone: %d bytes", bounds[0])
	}
}
