package ingest_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"runtime"
	"testing"

	"github.com/keelblock/keelblock/blockdev"
	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/hashtree"
	"github.com/keelblock/keelblock/dedupe/ingest"
	"github.com/keelblock/keelblock/dedupe/recoverypoint"
	"github.com/keelblock/keelblock/dedupe/verify"
)

// TestDemand43: when the list of changes is lost, comparing the whole disk gives the
// same root, stores the same blocks and names the same changed grains; only more is
// read.
func TestDemand43(t *testing.T) {
	rng := rand.New(rand.NewPCG(43, 43))
	disk := make([]byte, 24<<20+512)
	fill(rng, disk[:16<<20])
	tracked, compared := newMemStore(64<<10), newMemStore(64<<10)
	base, _, _ := run(t, tracked, hashtree.Root{}, int64(len(disk)), ingest.Options{}, change{data: disk})
	run(t, compared, hashtree.Root{}, int64(len(disk)), ingest.Options{}, change{data: disk})

	var changes []change
	for off := int64(0); off < int64(len(disk))-1<<20; off += 1<<20 + grain*rng.Int64N(50) {
		n := grain * (1 + rng.Int64N(20))
		fill(rng, disk[off:off+n])
		changes = append(changes, change{off: off, data: disk[off : off+n]})
	}
	a, as, aset := run(t, tracked, base, int64(len(disk)), ingest.Options{}, changes...)
	b, bs, bset := run(t, compared, base, int64(len(disk)), ingest.Options{Trim: true}, change{data: disk})
	if a != b {
		t.Errorf("roots: %v with the list, %v without", a.Digest(), b.Digest())
	}
	if as.NewBytes != bs.NewBytes || as.StoredBytes != bs.StoredBytes || as.ChangedBytes != bs.ChangedBytes {
		t.Errorf("figures: %+v with the list, %+v without", as, bs)
	}
	if as.ReadBytes != as.ChangedBytes || bs.ReadBytes != int64(len(disk)) {
		t.Errorf("read %d bytes with the list (changed %d), %d without", as.ReadBytes, as.ChangedBytes, bs.ReadBytes)
	}
	list := func(c *recoverypoint.ChangeSet) (out []blockdev.Extent) {
		c.Extents(int64(len(disk)), func(e blockdev.Extent) bool { out = append(out, e); return true })
		return out
	}
	if got, want := fmt.Sprint(list(bset)), fmt.Sprint(list(aset)); got != want {
		t.Errorf("changed grains: %s\nwith the list %s", got, want)
	}
}

// TestDemand42: what is read and stored follows the changes, not the disk.
func TestDemand42(t *testing.T) {
	rng := rand.New(rand.NewPCG(42, 42))
	disk := make([]byte, 64<<20)
	fill(rng, disk)
	s := newMemStore(64 << 10)
	base, _, _ := run(t, s, hashtree.Root{}, int64(len(disk)), ingest.Options{}, change{data: disk})
	var changes []change
	dirty := int64(0)
	for off := int64(0); off < int64(len(disk)); off += 4 << 20 {
		fill(rng, disk[off:off+grain])
		changes = append(changes, change{off: off, data: disk[off : off+grain]})
		dirty += grain
	}
	s.blockGets.Store(0)
	next, stats, _ := run(t, s, base, int64(len(disk)), ingest.Options{}, changes...)
	n := int64(len(changes))
	if stats.ReadBytes != dirty || stats.ChangedBytes != dirty || stats.NewBytes != n*64<<10 {
		t.Errorf("%d grains changed: %+v", n, stats)
	}
	if got := s.blockGets.Load(); got != n {
		t.Errorf("%d blocks of the base read for %d changed ones", got, n)
	}
	if !bytes.Equal(readAll(t, s, next), disk) {
		t.Error("the disk reads back as something else")
	}
}

// TestDemand50: 32 sparse disks of 32 TiB, a few MiB written on each, are stored, read
// back and verified; time and memory follow the data.
func TestDemand50(t *testing.T) {
	for name, open := range stores {
		t.Run(name, func(t *testing.T) {
			s := open(t, 64<<10)
			before := heapBytes()
			testDemand50(t, s)
			if m, ok := s.(*memStore); ok { // holds what was stored, and nothing but that may grow
				if grown, most := heapBytes()-before, m.Stats().NewBytes*5/4+48<<20; grown > most {
					t.Errorf("32 disks of 32 TiB cost %d MiB of memory, want at most %d", grown>>20, most>>20)
				}
			}
		})
	}
}

// heapBytes is the memory in use.
func heapBytes() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

func testDemand50(t *testing.T, s dedupe.Store) {
	const size = int64(32 << 40)
	rng := rand.New(rand.NewPCG(50, 50))
	m := manifest()
	cache := recoverypoint.NewCache(8 << 20)
	type written struct {
		off  int64
		data []byte
	}
	disks := make([][]written, 32)
	for i := range disks {
		var changes []change
		at := int64(0)
		for len(disks[i]) < 8 {
			at += rng.Int64N(size/9/grain) * grain
			data := make([]byte, 256<<10+grain*rng.IntN(64))
			fill(rng, data)
			if hole := at - endOf(changes); hole > 0 { // as a full read of a sparse disk gives it
				changes = append(changes, change{off: endOf(changes), zero: hole})
			}
			changes = append(changes, change{off: at, data: data})
			disks[i] = append(disks[i], written{at, data})
			at += int64(len(data))
		}
		changes = append(changes, change{off: at, zero: size - at})
		root, stats, set := run(t, s, hashtree.Root{}, size, ingest.Options{}, changes...)
		if stats.ReadBytes != stats.ChangedBytes || set.Bytes() != stats.ReadBytes {
			t.Errorf("disk %d: %+v, change set of %d bytes", i, stats, set.Bytes())
		}
		m.Disks = append(m.Disks, recoverypoint.Disk{ID: recoverypoint.ID{byte(i + 1)}, Name: fmt.Sprintf("disk%d", i),
			Root: root, Tracking: recoverypoint.TrackingFull})
	}
	encoded, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if m, err = recoverypoint.Decode(encoded); err != nil {
		t.Fatal(err)
	}
	for i := range disks {
		d, err := recoverypoint.OpenDisk(t.Context(), s, cache, m, fmt.Sprintf("disk%d", i))
		if err != nil || d.Size() != size {
			t.Fatalf("disk %d: %d bytes, %v", i, d.Size(), err)
		}
		for _, w := range disks[i] {
			p := make([]byte, len(w.data)+2*grain)
			if _, err := d.ReadAt(p[:len(w.data)], w.off); err != nil || !bytes.Equal(p[:len(w.data)], w.data) {
				t.Fatalf("disk %d at %d: %v", i, w.off, err)
			}
		}
		data := int64(0)
		err = d.Extents(0, size, func(e blockdev.Extent, st blockdev.ExtentStatus) bool {
			if !st.Hole {
				data += e.Length
			}
			return true
		})
		if err != nil || data < 2<<20 || data > 6<<20 {
			t.Errorf("disk %d: %d bytes of data, %v", i, data, err)
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
	}
	report, err := verify.Point(t.Context(), s, m, nil)
	if err != nil || !report.OK() || report.Blocks < 32*8*4 {
		t.Errorf("verify: %+v, %v", report, err)
	}
}

func endOf(changes []change) int64 {
	if len(changes) == 0 {
		return 0
	}
	c := changes[len(changes)-1]
	return c.off + int64(len(c.data)) + c.zero
}
