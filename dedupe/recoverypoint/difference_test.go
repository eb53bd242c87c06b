package recoverypoint_test

import (
	"bytes"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/keelblock/keelblock/blockdev"
	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/dedupetest"
	"github.com/keelblock/keelblock/dedupe/hashtree"
	"github.com/keelblock/keelblock/dedupe/ingest"
	"github.com/keelblock/keelblock/dedupe/recoverypoint"
)

// line is a disk whose history is published point by point.
type line struct {
	t     *testing.T
	store dedupe.Store
	index *recoverypoint.Index
	seq   uint64
	// points and what the disk was at each.
	points []*recoverypoint.Point
	disks  [][]byte
}

// publish makes a point of a disk: relative to the point base (-1: none), of which
// the grains of changed were captured.
func (l *line) publish(disk []byte, diskID byte, base int, changed []blockdev.Extent, keep bool) {
	l.t.Helper()
	var root hashtree.Root
	d := recoverypoint.Disk{ID: id(diskID), Name: "web0", Tracking: recoverypoint.TrackingFull}
	if base >= 0 {
		b := l.points[base]
		d.Base, d.Tracking, root = b.ID, recoverypoint.TrackingEnabled, b.Manifest.Disks[0].Root
	} else {
		changed = []blockdev.Extent{{Length: int64(len(disk))}}
	}
	batch := batchOf(l.t, l.store)
	pass, err := ingest.NewPass(l.store, batch, root, int64(len(disk)), ingest.Options{Workers: 1})
	if err != nil {
		l.t.Fatal(err)
	}
	listed := recoverypoint.NewChangeSet()
	for _, x := range changed {
		listed.Add(x)
	}
	listed.Extents(int64(len(disk)), func(x blockdev.Extent) bool {
		if err := pass.Write(l.t.Context(), x.Offset, disk[x.Offset:x.End()]); err != nil {
			l.t.Fatal(err)
		}
		return true
	})
	if d.Root, _, err = pass.Finish(l.t.Context()); err != nil {
		l.t.Fatal(err)
	}
	set := pass.Changes()
	d.ChangedBytes = set.Bytes()
	if keep && base >= 0 {
		if d.ChangeSet, err = recoverypoint.EncodeChangeSet(l.t.Context(), batch, l.store.BlockSize(), set); err != nil {
			l.t.Fatal(err)
		}
	}
	l.seq++
	m := point("web", 1, l.seq, day.Add(time.Duration(l.seq)*time.Second), recoverypoint.Crash)
	m.Disks = []recoverypoint.Disk{d}
	ps, err := l.index.Publish(l.t.Context(), batch, []*recoverypoint.Manifest{m}, nil, nil)
	if err != nil {
		l.t.Fatal(err)
	}
	l.points, l.disks = append(l.points, ps[0]), append(l.disks, bytes.Clone(disk))
}

// difference checks that everything that differs is listed, nothing outside of the
// blocks that differ is, and returns the number of grains listed.
func (l *line) difference(from, to int) int64 {
	l.t.Helper()
	a, b := l.points[from], l.points[to]
	set, err := l.index.Difference(l.t.Context(), a, &a.Manifest.Disks[0], b, &b.Manifest.Disks[0])
	if err != nil {
		l.t.Fatal(err)
	}
	size := max(len(l.disks[from]), len(l.disks[to]))
	x, y := make([]byte, size), make([]byte, size)
	copy(x, l.disks[from])
	copy(y, l.disks[to])
	block := l.store.BlockSize()
	for off := 0; off < size; off += blockdev.GrainSize {
		end := min(off+blockdev.GrainSize, size)
		blockEnd := min(off/block*block+block, size)
		switch listed := set.Contains(int64(off)); {
		case !listed && !bytes.Equal(x[off:end], y[off:end]):
			l.t.Fatalf("points %d and %d differ at %d, which is not listed", from, to, off)
		case listed && bytes.Equal(x[off/block*block:blockEnd], y[off/block*block:blockEnd]):
			l.t.Fatalf("points %d and %d are the same in the block of %d, which is listed", from, to, off)
		}
	}
	return set.Bytes() / blockdev.GrainSize
}

// One grain changed in each of several points: the difference of any two is exact to the
// grain, in either order of time, as long as the sets between are kept.
func TestDifferenceIsExactWhereSetsAreKept(t *testing.T) {
	s := dedupetest.NewMemory(64 << 10)
	l := &line{t: t, store: s, index: openIndex(t, s)}
	disk := randomBytes(9, 2<<20)
	l.publish(disk, 9, -1, nil, true)
	write := func(grain int) []blockdev.Extent {
		copy(disk[grain*blockdev.GrainSize:], randomBytes(uint64(grain+100), blockdev.GrainSize))
		return []blockdev.Extent{{Offset: int64(grain) * blockdev.GrainSize, Length: blockdev.GrainSize}}
	}
	for i := range 4 {
		l.publish(disk, 9, i, write(3+20*i), true)
	}
	for from := range 5 {
		for to := range 5 {
			if got, want := l.difference(from, to), int64(max(from-to, to-from)); got != want {
				t.Errorf("points %d and %d: %d grains are listed, want %d", from, to, got, want)
			}
		}
	}
	// A disk restored from point 2 goes on under another id: the two histories meet there.
	copy(disk, l.disks[2])
	l.publish(disk, 10, 2, write(300), true)
	if got := l.difference(2, 5); got != 1 {
		t.Errorf("the restored disk: %d grains since where it came from, want 1", got)
	}
	// Without a set between, whole blocks of that step.
	copy(disk, l.disks[4])
	l.publish(disk, 9, 4, write(400), false)
	l.publish(disk, 9, 6, write(490), true)
	if got := l.difference(4, 7); got != 16+1 {
		t.Errorf("one step without a set: %d grains, want a block and a grain", got)
	}
	// A grain that was changed back is no difference, and reads nothing.
	l.publish(l.disks[6], 9, 7, []blockdev.Extent{{Offset: 490 * blockdev.GrainSize, Length: blockdev.GrainSize}}, true)
	if got := l.difference(6, 8); got != 0 {
		t.Errorf("a change that was undone: %d grains", got)
	}
	// A base that was purged: trees alone.
	if _, err := l.index.Purge(t.Context(), l.points[1].ID, day); err != nil {
		t.Fatal(err)
	}
	if got := l.difference(0, 2); got != 32 {
		t.Errorf("over a purged point: %d grains, want two blocks", got)
	}
}

// Random histories with growing, shrinking and restored disks, lost sets, and points
// that were read in full: never too little.
func TestDifferenceNeverListsTooLittle(t *testing.T) {
	for seed := range uint64(12) {
		rng := rand.New(rand.NewPCG(seed, 77))
		s := dedupetest.NewMemory(64 << 10)
		l := &line{t: t, store: s, index: openIndex(t, s)}
		disk := randomBytes(seed, 1<<20+512)
		l.publish(disk, 9, -1, nil, true)
		for i := range 12 {
			var changed []blockdev.Extent
			if rng.IntN(4) == 0 {
				old := len(disk)
				size := 512 * (1 + rng.IntN(4096))
				disk = append(make([]byte, 0, size), disk[:min(old, size)]...)
				disk = disk[:size] // what a disk grows by reads as zeros
				changed = append(changed, blockdev.Extent{Offset: int64(min(old, size)), Length: int64(max(old, size) - min(old, size))})
			}
			for range rng.IntN(6) {
				off := rng.IntN(len(disk))
				n := 1 + rng.IntN(min(20000, len(disk)-off))
				copy(disk[off:off+n], randomBytes(rng.Uint64(), n+8))
				if rng.IntN(3) == 0 {
					clear(disk[off : off+n])
				}
				changed = append(changed, blockdev.Extent{Offset: int64(off), Length: int64(n)})
			}
			base := i
			if rng.IntN(8) == 0 {
				base = -1
			}
			l.publish(disk, 9, base, changed, rng.IntN(5) != 0)
		}
		for from := range l.points {
			for to := range l.points {
				l.difference(from, to)
			}
		}
	}
}
