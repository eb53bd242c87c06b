package dirtybitmap

import (
	"math/rand/v2"
	"testing"

	"github.com/keelblock/keelblock/blockdev"
	"github.com/keelblock/keelblock/dedupe/recoverypoint"
)

// status reads a range and checks that the answer is consecutive and alternates.
func status(t *testing.T, b *Bitmap, off, n int64) (out []blockdev.Extent, flags []uint32) {
	t.Helper()
	at := off
	err := b.Status(off, n, func(x blockdev.Extent, f uint32) bool {
		if x.Offset != at || x.Length <= 0 || len(flags) > 0 && flags[len(flags)-1] == f && at != b.sizeBytes {
			t.Fatalf("status of %d+%d: extent %v with %d after %v", off, n, x, f, out)
		}
		at = x.End()
		out, flags = append(out, x), append(flags, f)
		return true
	})
	if err != nil || at != off+n {
		t.Fatalf("status of %d+%d ends at %d: %v", off, n, at, err)
	}
	return out, flags
}

// Every range of a random bitmap is told as it is; a coarse one lists more, never less.
func TestStatusTellsEveryRange(t *testing.T) {
	const size = 300*blockdev.GrainSize + 512
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 5))
		set := recoverypoint.NewChangeSet()
		for range rng.IntN(80) {
			set.Add(blockdev.Extent{Offset: rng.Int64N(size), Length: 1 + rng.Int64N(3*blockdev.GrainSize)})
		}
		for _, limit := range []int{maxExtents, 5, 1} {
			b := newBitmap(set, size, limit)
			if len(b.changed) > limit {
				t.Fatalf("%d extents, limit %d", len(b.changed), limit)
			}
			for range 200 {
				off := rng.Int64N(size)
				n := 1 + rng.Int64N(size-off)
				extents, flags := status(t, b, off, n)
				for i, x := range extents {
					for at := x.Offset; at < x.End(); at++ {
						dirty := set.Contains(at)
						if dirty && flags[i] != Dirty || !dirty && flags[i] == Dirty && limit == maxExtents {
							t.Fatalf("limit %d: byte %d has flags %d and changed is %v", limit, at, flags[i], dirty)
						}
						at += 511 - at%512
					}
				}
			}
		}
	}
}

// A disk that has grown since the bitmap was made: what it does not know counts as
// changed.
func TestWhatIsNotKnownIsChanged(t *testing.T) {
	set := recoverypoint.NewChangeSet()
	set.Add(blockdev.Extent{Offset: 4096, Length: 4096})
	b := New(set, 16384)
	x, f := status(t, b, 0, 65536)
	if len(x) != 4 || f[3] != Dirty || x[3].Offset != 16384 || x[3].Length != 65536-16384 {
		t.Errorf("status: %v %v", x, f)
	}
	if x, f = status(t, b, 20000, 100); len(x) != 1 || f[0] != Dirty {
		t.Errorf("behind the end: %v %v", x, f)
	}
	n := 0
	_ = b.Status(0, 16384, func(blockdev.Extent, uint32) bool { n++; return false })
	if n != 1 {
		t.Errorf("yield was called %d times after it returned false", n)
	}
}
