package hashtree_test

import (
	"context"
	"encoding/binary"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/keelblock/keelblock/blockdev"
	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/hashtree"
)

var update = flag.Bool("update", false, "rewrite the golden file")

// nodeStore is nodes in memory, and counts.
type nodeStore struct {
	mu    sync.Mutex
	nodes map[dedupe.Digest][]byte
	gets  atomic.Int64
	puts  atomic.Int64
}

func newNodeStore() *nodeStore { return &nodeStore{nodes: make(map[dedupe.Digest][]byte)} }

func (s *nodeStore) Get(_ context.Context, kind dedupe.Kind, d dedupe.Digest, buf []byte) ([]byte, error) {
	s.gets.Add(1)
	s.mu.Lock()
	defer s.mu.Unlock()
	p, ok := s.nodes[d]
	if !ok || kind != dedupe.KindNode {
		return nil, dedupe.ErrNotFound
	}
	return append(buf[:0], p...), nil
}

func (s *nodeStore) PutNode(_ context.Context, level int, children *[dedupe.FanOut]dedupe.Digest) (dedupe.Put, error) {
	s.puts.Add(1)
	d := dedupe.NodeSum(level, children)
	var p []byte
	for _, c := range children {
		p = append(p, c[:]...)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	_, held := s.nodes[d]
	s.nodes[d] = p
	return dedupe.Put{Digest: d, New: !held, StoredBytes: int64(len(p))}, nil
}

// content is the model of a disk: the value of each block, 0 is a hole.
type content map[int64]uint64

func digestOf(v uint64) dedupe.Digest {
	if v == 0 {
		return dedupe.Digest{}
	}
	return dedupe.Sum(binary.LittleEndian.AppendUint64(nil, v))
}

const testBlock = dedupe.MinBlockSize

// write makes the tree of c from nothing.
func write(t testing.TB, s *nodeStore, c content, size int64) hashtree.Root {
	t.Helper()
	return change(t, s, hashtree.Root{}, c, size)
}

// change sets the blocks of c over base.
func change(t testing.TB, s *nodeStore, base hashtree.Root, c content, size int64) hashtree.Root {
	t.Helper()
	w, err := hashtree.NewWriter(hashtree.Direct(s), s, base, size, testBlock)
	if err != nil {
		t.Fatal(err)
	}
	var at []int64
	for i := range c {
		at = append(at, i)
	}
	slices.Sort(at)
	for _, i := range at {
		if _, err := w.Set(t.Context(), i, digestOf(c[i])); err != nil {
			t.Fatal(err)
		}
	}
	r, err := w.Finish(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Validate(); err != nil {
		t.Fatal(err)
	}
	return r
}

// read is the content of a tree by Walk, checked against Lookup and Runs.
func read(t testing.TB, s *nodeStore, r hashtree.Root) map[int64]dedupe.Digest {
	t.Helper()
	got := make(map[int64]dedupe.Digest)
	last := int64(-1)
	err := hashtree.Walk(t.Context(), hashtree.Direct(s), r, 0, r.SizeBytes, func(i int64, d dedupe.Digest) bool {
		if i <= last {
			t.Fatalf("walk: block %d after %d", i, last)
		}
		last = i
		got[i] = d
		return true
	})
	if err != nil {
		t.Fatal(err)
	}
	at := int64(0)
	err = hashtree.Runs(t.Context(), hashtree.Direct(s), r, 0, r.SizeBytes, func(e blockdev.Extent, data bool) bool {
		if e.Offset != at || e.Length <= 0 {
			t.Fatalf("runs: %v after %d", e, at)
		}
		at = e.End()
		_, want := got[e.Offset/testBlock]
		if data != want {
			t.Fatalf("runs: %v data=%v, walk says %v", e, data, want)
		}
		return true
	})
	if err != nil || at != r.SizeBytes {
		t.Fatalf("runs end at %d of %d: %v", at, r.SizeBytes, err)
	}
	return got
}

func wantContent(c content, size int64) map[int64]dedupe.Digest {
	want := make(map[int64]dedupe.Digest)
	for i, v := range c {
		if v != 0 && i*testBlock < size {
			want[i] = digestOf(v)
		}
	}
	return want
}

// TestModel changes trees of every depth at random and compares them with a map:
// sets, holes of any size, growth and shrinking across depths. A tree must not
// depend on how it was reached, and Diff must say exactly what differs.
func TestModel(t *testing.T) {
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 1))
	t.Logf("seed %d", seed)
	capacity := int64(dedupe.FanOut) * testBlock
	for depth := 1; depth <= 5; depth++ {
		t.Run(fmt.Sprintf("depth %d", depth), func(t *testing.T) {
			s := newNodeStore()
			model := content{}
			var root hashtree.Root
			size := min(capacity, blockdev.MaxSize) - blockdev.SectorSize*rng.Int64N(20)
			for range 30 {
				before := root
				old := content{}
				for i, v := range model {
					old[i] = v
				}
				if !before.IsZero() {
					switch rng.IntN(6) {
					case 0: // to another depth
						size = blockdev.SectorSize * (1 + rng.Int64N(capacity/blockdev.SectorSize))
					case 1:
						size = blockdev.SectorSize * (1 + rng.Int64N(min(size/8, capacity)/blockdev.SectorSize+1))
					}
				}
				for i := range model {
					if i*testBlock >= size {
						delete(model, i)
					}
				}
				w, err := hashtree.NewWriter(hashtree.Direct(s), s, before, size, testBlock)
				if err != nil {
					t.Fatal(err)
				}
				blocks := (size + testBlock - 1) / testBlock
				for at := rng.Int64N(blocks); at < blocks; {
					if rng.IntN(3) == 0 {
						n := min(1+rng.Int64N(1<<rng.IntN(36)), blocks-at)
						var dropped []int64
						err := w.Zero(t.Context(), at, n, func(e hashtree.Entry) { dropped = append(dropped, e.Offset) })
						if err != nil {
							t.Fatal(err)
						}
						had := false
						for i := range model {
							if i >= at && i < at+n {
								had = had || model[i] != 0
								delete(model, i)
							}
						}
						// What a shrunk base had behind the end may be dropped along.
						if had && len(dropped) == 0 || !had && len(dropped) > 0 && before.SizeBytes <= size {
							t.Fatalf("zero %d+%d: had data %v, dropped %v", at, n, had, dropped)
						}
						at += n
					} else {
						v := uint64(rng.IntN(4))
						was := model[at]
						changed, err := w.Set(t.Context(), at, digestOf(v))
						if err != nil {
							t.Fatal(err)
						}
						if changed != (was != v) {
							t.Fatalf("set block %d from %d to %d: changed %v", at, was, v, changed)
						}
						model[at] = v
						at++
					}
					if rng.IntN(4) == 0 {
						at += rng.Int64N(1 << rng.IntN(38))
					}
				}
				root, err = w.Finish(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				if d := cmp.Diff(wantContent(model, size), read(t, s, root)); d != "" {
					t.Fatalf("tree (-model +tree):\n%s", d)
				}
				if fresh := write(t, s, model, size); fresh != root {
					t.Fatalf("the tree depends on its history: %+v, from nothing %+v", root, fresh)
				}
				want := map[int64]bool{}
				for i := range old {
					want[i] = old[i] != model[i]
				}
				for i := range model {
					want[i] = old[i] != model[i]
				}
				checkDiff(t, s, before, root, want)
				checkDiff(t, s, root, before, want)
				for range 20 {
					i := rng.Int64N(blocks)
					d, err := hashtree.Lookup(t.Context(), hashtree.Direct(s), root, i)
					if err != nil || d != digestOf(model[i]) {
						t.Fatalf("lookup %d: %v, %v", i, d, err)
					}
				}
			}
		})
		capacity *= dedupe.FanOut
	}
}

func checkDiff(t *testing.T, s *nodeStore, a, b hashtree.Root, want map[int64]bool) {
	t.Helper()
	got, last := map[int64]bool{}, int64(-1)
	err := hashtree.Diff(t.Context(), s, a, b, func(e blockdev.Extent) bool {
		if e.Offset <= last || e.Length <= 0 || e.End() > max(a.SizeBytes, b.SizeBytes) {
			t.Fatalf("diff: %v after %d", e, last)
		}
		last = e.End()
		for i := e.Offset / testBlock; i*testBlock < e.End(); i++ {
			got[i] = true
		}
		return true
	})
	if err != nil {
		t.Fatal(err)
	}
	for i, differs := range want {
		if !differs {
			delete(want, i)
		}
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Fatalf("diff (-model +trees):\n%s", d)
	}
}

// TestN2 shows that equal disks are told from their roots alone, and that finding
// one changed block of a disk of 2 PiB takes one path of nodes on each side.
func TestN2(t *testing.T) {
	s := newNodeStore()
	size := int64(32 << 40)
	base := content{}
	rng := rand.New(rand.NewPCG(2, 2))
	for range 20000 {
		base[rng.Int64N(size/testBlock)] = rng.Uint64()
	}
	a := write(t, s, base, size)
	if b := write(t, s, base, size); a.Digest() != b.Digest() {
		t.Fatalf("the same disk has the roots %v and %v", a.Digest(), b.Digest())
	}
	for _, changed := range []int{1, 10, 100} {
		c := content{}
		for len(c) < changed {
			c[rng.Int64N(size/testBlock)] = rng.Uint64()
		}
		b := change(t, s, a, c, size)
		if a.Digest() == b.Digest() {
			t.Fatal("different disks have the same root")
		}
		s.gets.Store(0)
		found := 0
		err := hashtree.Diff(t.Context(), s, a, b, func(e blockdev.Extent) bool { found += int(e.Length / testBlock); return true })
		if err != nil || found != changed {
			t.Fatalf("%d changed, found %d: %v", changed, found, err)
		}
		if reads, most := s.gets.Load(), int64(2*changed*a.Depth); reads > most {
			t.Errorf("%d changed blocks among %d: %d nodes read, want at most %d", changed, size/testBlock, reads, most)
		} else {
			t.Logf("%d changed blocks among %d: %d nodes read", changed, size/testBlock, reads)
		}
		s.gets.Store(0)
		if err := hashtree.Diff(t.Context(), s, a, a, func(blockdev.Extent) bool { return true }); err != nil || s.gets.Load() != 0 {
			t.Errorf("equal roots: %d nodes read, %v", s.gets.Load(), err)
		}
	}
}

// TestWriterCost holds the Writer to its promise: only paths to changes are read and
// written, and a hole of any size costs one path.
func TestWriterCost(t *testing.T) {
	s := newNodeStore()
	size := int64(1 << 40)
	base := content{}
	for i := range int64(50000) {
		base[i*7] = uint64(i + 1)
	}
	a := write(t, s, base, size)
	s.gets.Store(0)
	s.puts.Store(0)
	change(t, s, a, content{31337: 5}, size)
	if s.gets.Load() > int64(a.Depth) || s.puts.Load() > int64(a.Depth) {
		t.Errorf("one block: %d nodes read and %d written in a tree of depth %d", s.gets.Load(), s.puts.Load(), a.Depth)
	}
	s.gets.Store(0)
	s.puts.Store(0)
	w, err := hashtree.NewWriter(hashtree.Direct(s), s, a, size, testBlock)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Zero(t.Context(), 1000, a.Blocks()-2000, nil); err != nil {
		t.Fatal(err)
	}
	r, err := w.Finish(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if most := int64(2 * a.Depth); s.gets.Load() > most || s.puts.Load() > most {
		t.Errorf("zero most of the disk: %d nodes read and %d written", s.gets.Load(), s.puts.Load())
	}
	if got := len(read(t, s, r)); got != 143 {
		t.Errorf("%d blocks are left, want 143", got)
	}
	s.gets.Store(0)
	if r := change(t, s, a, nil, size); r != a || s.gets.Load() != 0 {
		t.Errorf("no change: root %+v, %d nodes read", r, s.gets.Load())
	}
}
