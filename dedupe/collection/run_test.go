package collection_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/blockstore"
	"github.com/keelblock/keelblock/dedupe/collection"
	"github.com/keelblock/keelblock/dedupe/dedupetest"
	"github.com/keelblock/keelblock/dedupe/hashtree"
	"github.com/keelblock/keelblock/dedupe/ingest"
	"github.com/keelblock/keelblock/dedupe/recoverypoint"
	"github.com/keelblock/keelblock/dedupe/verify"
)

var options = blockstore.Options{PackBytes: blockstore.MinPackBytes}

// machine is a machine with one disk that is backed up again and again.
type machine struct {
	s    *blockstore.Store
	x    *recoverypoint.Index
	dir  string
	root hashtree.Root
	last dedupe.Digest
	n    uint64
}

func newMachine(t testing.TB) *machine {
	t.Helper()
	m := &machine{dir: filepath.Join(t.TempDir(), "vault")}
	o := options
	o.BlockSize = dedupe.MinBlockSize
	if err := blockstore.Create(m.dir, o); err != nil {
		t.Fatal(err)
	}
	m.open(t)
	t.Cleanup(func() {
		if err := m.s.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

func (m *machine) open(t testing.TB) {
	t.Helper()
	var err error
	if m.s, err = blockstore.Open(m.dir, options); err != nil {
		t.Fatal(err)
	}
	if m.x, err = recoverypoint.OpenIndex(context.Background(), m.s); err != nil {
		t.Fatal(err)
	}
	if p := m.x.Problems(); len(p) != 0 {
		t.Fatalf("problems of the points: %v", p)
	}
}

// backup makes a point of which the given part of the disk is new. before, unless nil,
// is called when all of it was put and nothing is committed.
func (m *machine) backup(t testing.TB, changed int64, before func()) *recoverypoint.Point {
	t.Helper()
	data := make([]byte, changed)
	rng := rand.New(rand.NewPCG(m.n+1, 5))
	for i := range data {
		data[i] = byte(rng.Uint32())
	}
	return m.backupOf(t, []int64{0}, data, before)
}

// backupOf makes a point in which data stands at each of the offsets.
func (m *machine) backupOf(t testing.TB, offsets []int64, data []byte, before func()) *recoverypoint.Point {
	t.Helper()
	const size = 8 << 20
	ctx := context.Background()
	b, err := m.s.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Abort()
	p, err := ingest.NewPass(m.s, b, m.root, size, ingest.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Abort()
	m.n++
	for _, off := range offsets {
		if err := p.Write(ctx, off, data); err != nil {
			t.Fatal(err)
		}
	}
	root, _, err := p.Finish(ctx)
	if err != nil {
		t.Fatal(err)
	}
	set, err := recoverypoint.EncodeChangeSet(ctx, b, m.s.BlockSize(), p.Changes())
	if err != nil {
		t.Fatal(err)
	}
	definition, err := recoverypoint.PutContent(ctx, b, m.s.BlockSize(), fmt.Appendf(nil, "<domain>%d</domain>", m.n))
	if err != nil {
		t.Fatal(err)
	}
	if before != nil {
		before()
	}
	points, err := m.x.Publish(ctx, b, []*recoverypoint.Manifest{{
		MachineID: recoverypoint.ID{1}, MachineName: "web", CutID: recoverypoint.ID{2, byte(m.n)}, CutMachines: []recoverypoint.ID{{1}},
		Generation: recoverypoint.Generation{Number: 1, ID: recoverypoint.ID{3}}, Sequence: m.n, Parent: m.last,
		FrozenAt: time.Unix(1e9+int64(m.n), 0), Consistency: recoverypoint.Crash, Tracking: recoverypoint.TrackingFull, Definition: definition,
		Disks: []recoverypoint.Disk{{ID: recoverypoint.ID{4}, Name: "web0", Root: root, Tracking: recoverypoint.TrackingFull, ChangeSet: set}},
	}}, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	m.root, m.last = root, points[0].ID
	return points[0]
}

// check verifies every point to the last block.
func (m *machine) check(t testing.TB, want int) {
	t.Helper()
	list := m.x.List("", true)
	if len(list) != want {
		t.Errorf("%d points, want %d", len(list), want)
	}
	for _, p := range list {
		r, err := verify.Point(context.Background(), m.s, p.Manifest, nil)
		if err = errors.Join(err, r.Err()); err != nil {
			t.Errorf("point %d: %v", p.Manifest.Sequence, err)
		}
	}
}

func (m *machine) collect(t testing.TB, o collection.Options) collection.Report {
	t.Helper()
	r, err := collection.Run(context.Background(), m.s, m.x, o)
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Problems) > 0 {
		t.Errorf("problems: %q", r.Problems)
	}
	return r
}

func (m *machine) purge(t testing.TB, ids ...dedupe.Digest) {
	t.Helper()
	for _, id := range ids {
		if _, err := m.x.Purge(context.Background(), id, time.Unix(2e9, 0)); err != nil {
			t.Fatal(err)
		}
	}
}

func (m *machine) packFiles(t testing.TB) (total int64) {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(m.dir, "packs", "*.pack"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		st, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		total += st.Size()
	}
	return total
}

// What purged points had comes back; what the others have stays, whole; disk is at most
// 1.2 times what is live; a rebuilt index shows the same points.
func TestDemand46ExpiredBytesReturn(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	var points []*recoverypoint.Point
	for range 12 {
		points = append(points, m.backup(t, 2<<20, nil))
	}
	before := m.packFiles(t)
	for i, p := range points[:10] {
		if i%4 != 0 {
			m.purge(t, p.ID)
		}
	}
	dry := m.collect(t, collection.Options{DryRun: true})
	if got := m.packFiles(t); got > before+1<<20 {
		t.Errorf("a dry run wrote: %d bytes in packs, %d before", got, before)
	}
	if len(dry.Freeing) != 5 || dry.FreedBytes == 0 {
		t.Errorf("the dry run lists %d points and %d bytes", len(dry.Freeing), dry.FreedBytes)
	}
	// Soft-deleted points keep what they have.
	if _, err := m.x.Delete(context.Background(), points[0].ID, time.Unix(2e9, 0)); err != nil {
		t.Fatal(err)
	}
	r := m.collect(t, collection.Options{})
	after := m.packFiles(t)
	t.Logf("%d bytes, then %d for %d live", before, after, r.LiveBytes)
	if float64(after) > 1.2*float64(r.LiveBytes) {
		t.Errorf("%d bytes in packs for %d live ones", after, r.LiveBytes)
	}
	if before-after < 8<<20 {
		t.Errorf("only %d bytes came back", before-after)
	}
	m.check(t, 5)
	for _, reopen := range []func() error{
		func() error { return nil },
		func() error { return blockstore.RebuildIndex(context.Background(), m.dir, options, nil) },
	} {
		if err := errors.Join(m.s.Close(), reopen()); err != nil {
			t.Fatal(err)
		}
		m.open(t)
		m.check(t, 5)
		if p := m.x.Get(points[0].ID); p == nil || !p.Deleted {
			t.Error("the soft-deleted point is not one any more")
		}
		if m.x.Get(points[1].ID) != nil {
			t.Error("a purged point is back")
		}
	}
	if _, err := m.x.Undelete(context.Background(), points[0].ID, time.Unix(2e9, 0)); err != nil {
		t.Error(err)
	}
	m.backup(t, 1<<20, nil)
	m.check(t, 6)
}

// Patches keep what they lie over, however deep, and what was only a base of purged
// ones goes with them.
func TestPatches(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	points := []*recoverypoint.Point{m.backup(t, 2<<20, nil)}
	for n := range 9 {
		var offsets []int64
		for off := int64(n%4) * 4096; off < 2<<20; off += 3 * 16 << 10 { // one grain of every third block
			offsets = append(offsets, off)
		}
		page := make([]byte, 4096)
		rng := rand.New(rand.NewPCG(uint64(n), 6))
		for i := range page {
			page[i] = byte(rng.Uint32())
		}
		points = append(points, m.backupOf(t, offsets, page, nil))
	}
	for i, p := range points[:9] {
		if i%2 == 0 {
			m.purge(t, p.ID)
		}
	}
	m.collect(t, collection.Options{})
	m.check(t, 5)
	for _, p := range points[:9] {
		if m.x.Get(p.ID) != nil {
			m.purge(t, p.ID)
		}
	}
	r := m.collect(t, collection.Options{})
	m.check(t, 1)
	if r.DeadBlocks == 0 {
		t.Error("no block was dead")
	}
	if err := errors.Join(m.s.Close(), blockstore.RebuildIndex(context.Background(), m.dir, options, nil)); err != nil {
		t.Fatal(err)
	}
	m.open(t)
	m.check(t, 1)
	m.collect(t, collection.Options{IndexOnly: true})
	m.check(t, 1)
	t.Logf("%+v", r)
}

// A purged point that somebody has pinned is kept; the newest of a machine leaves its
// sequence.
func TestPinnedAndNewest(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	var points []*recoverypoint.Point
	for range 4 {
		points = append(points, m.backup(t, 2<<20, nil))
	}
	m.purge(t, points[0].ID, points[3].ID)
	m.collect(t, collection.Options{Pinned: func() []dedupe.Digest { return []dedupe.Digest{points[0].ID} }})
	r, err := verify.Point(context.Background(), m.s, points[0].Manifest, nil)
	if err = errors.Join(err, r.Err()); err != nil {
		t.Errorf("the pinned point: %v", err)
	}
	m.collect(t, collection.Options{})
	if r, err := verify.Point(context.Background(), m.s, points[0].Manifest, nil); err != nil || r.OK() {
		t.Errorf("the point is still there when nobody pins it: %v", err)
	}
	if err := m.s.Close(); err != nil {
		t.Fatal(err)
	}
	m.open(t)
	if n := m.x.NextSequence(recoverypoint.ID{1}, recoverypoint.ID{3}); n != 5 {
		t.Errorf("the next sequence is %d, want 5", n)
	}
	m.check(t, 2)
}

// A backup that has put everything and committed nothing while the vault is collected
// twice, and its points purged, is whole.
func TestOpenBackup(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	first := m.backup(t, 2<<20, nil)
	m.n-- // the same content again
	pinned := func() []dedupe.Digest { return []dedupe.Digest{first.ID} }
	root := m.root
	m.root = hashtree.Root{}
	seq := m.n
	p := m.backup(t, 2<<20, func() {
		m.n = seq + 2
		m.collect(t, collection.Options{})
		m.purge(t, first.ID)
		m.collect(t, collection.Options{Pinned: pinned})
		m.collect(t, collection.Options{})
	})
	if p.Manifest.Disks[0].Root.Top != root.Top {
		t.Error("the second backup is not of the same content")
	}
	m.check(t, 1)
	m.collect(t, collection.Options{})
	m.check(t, 1)
}

// A point whose tree cannot be read stops the collection before it frees anything.
func TestUnreadable(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	p := m.backup(t, 2<<20, nil)
	dead := m.backup(t, 2<<20, nil)
	m.backup(t, 2<<20, nil)
	m.purge(t, dead.ID)
	path, off, n, err := m.s.Locate(p.Manifest.Disks[0].Root.Top)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte{1, 2, 3, 4}, off+n-4); err != nil {
		t.Fatal(err)
	}
	before := m.s.Stats().Blocks
	if _, err := collection.Run(context.Background(), m.s, m.x, collection.Options{}); !errors.Is(err, collection.ErrUnreadable) {
		t.Errorf("collect: %v", err)
	}
	if got := m.s.Stats().Blocks; got != before {
		t.Errorf("%d blocks, %d before", got, before)
	}
	m.purge(t, p.ID) // the way out
	if r := m.collect(t, collection.Options{}); r.FreedBytes == 0 {
		t.Error("nothing was freed once the damaged point was purged")
	}
	m.check(t, 1)
}

// A manifest that cannot be read stops the collection, with its point named, until the
// point is purged or can be read again.
func TestUnreadableManifest(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	p := m.backup(t, 2<<20, nil)
	dead := m.backup(t, 2<<20, nil)
	m.backup(t, 2<<20, nil)
	m.purge(t, dead.ID)
	path, off, n, err := m.s.Locate(p.ID)
	if err != nil {
		t.Fatal(err)
	}
	flip := func() { t.Helper(); dedupetest.Flip(t, path, off+n-4) }
	flip()
	if err := m.s.Close(); err != nil {
		t.Fatal(err)
	}
	if m.s, err = blockstore.Open(m.dir, options); err != nil {
		t.Fatal(err)
	}
	if m.x, err = recoverypoint.OpenIndex(context.Background(), m.s); err != nil || len(m.x.Problems()) != 1 {
		t.Fatalf("%v, %v", m.x.Problems(), err)
	}
	before := m.s.Stats()
	_, err = collection.Run(context.Background(), m.s, m.x, collection.Options{})
	var unreadable *collection.UnreadableError
	if !errors.As(err, &unreadable) || unreadable.Point != p.ID || !errors.Is(err, collection.ErrUnreadable) {
		t.Errorf("collect: %v", err)
	}
	if got := m.s.Stats(); got.Blocks != before.Blocks || got.PackBytes != before.PackBytes {
		t.Errorf("%+v, before %+v", got, before)
	}
	flip() // another copy brought it back
	if r := m.collect(t, collection.Options{DryRun: true}); r.Points != 2 {
		t.Errorf("%d points, want 2", r.Points)
	}
	flip()
	m.purge(t, p.ID)
	if r := m.collect(t, collection.Options{}); r.FreedBytes < 3<<20 || r.DeadPoints != 2 {
		t.Errorf("once the point was purged: %+v", r)
	}
	if len(m.x.Problems()) != 0 {
		t.Errorf("problems %v", m.x.Problems())
	}
	m.check(t, 1)
}

// BenchmarkRun collects a vault of which half is dead.
func BenchmarkRun(b *testing.B) {
	for b.Loop() {
		b.StopTimer()
		m := newMachine(b)
		var points []*recoverypoint.Point
		for range 24 {
			points = append(points, m.backup(b, 4<<20, nil))
		}
		for i, p := range points[:20] {
			if i%2 == 0 {
				m.purge(b, p.ID)
			}
		}
		b.SetBytes(m.packFiles(b))
		b.StartTimer()
		r := m.collect(b, collection.Options{})
		b.StopTimer()
		b.ReportMetric(float64(r.CopiedBytes), "copied-bytes")
		b.ReportMetric(float64(m.packFiles(b))/float64(r.LiveBytes), "disk/live")
		b.StartTimer()
	}
}
