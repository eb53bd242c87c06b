package hashtree_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/keelblock/keelblock/blockdev"
	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/hashtree"
)

// TestHealLostNode: a damaged base node is no obstacle when the stream supplies all
// that was below it, and otherwise an error that says what to supply.
func TestHealLostNode(t *testing.T) {
	for level := range 3 {
		s := newNodeStore()
		c := content{}
		for i := range int64(dedupe.FanOut * dedupe.FanOut * 2) {
			if i%97 == 0 {
				c[i] = uint64(i + 1)
			}
		}
		size := int64(dedupe.FanOut*dedupe.FanOut*2+5) * testBlock
		a := write(t, s, c, size)
		var lost hashtree.Entry
		err := hashtree.Visit(t.Context(), hashtree.Direct(s), a, 200*testBlock, testBlock, func(e hashtree.Entry) (bool, error) {
			if e.Level == level {
				lost = e
			}
			return true, nil
		})
		if err != nil {
			t.Fatal(err)
		}
		delete(s.nodes, lost.Digest)

		w, _ := hashtree.NewWriter(hashtree.Direct(s), s, a, size, testBlock)
		if _, err := w.Set(t.Context(), 200, digestOf(7)); err != nil {
			t.Fatal(err)
		}
		_, err = w.Finish(t.Context())
		var ne *hashtree.NodeError
		if !errors.As(err, &ne) || !errors.Is(err, dedupe.ErrNotFound) || ne.Offset > 200*testBlock || ne.Offset+ne.Length <= 200*testBlock {
			t.Fatalf("level %d: %v", level, err)
		}

		w, _ = hashtree.NewWriter(hashtree.Direct(s), s, a, size, testBlock)
		first, end := lost.Offset/testBlock, (lost.Offset+lost.Length)/testBlock
		for i := first; i < end; i++ {
			if c[i] == 0 && i%dedupe.FanOut == 0 && i+dedupe.FanOut < end {
				// a hole, so far as the model has one
				n := int64(1)
				for c[i+n] == 0 && n < dedupe.FanOut {
					n++
				}
				if err := w.Zero(t.Context(), i, n, nil); err != nil {
					t.Fatal(err)
				}
				i += n - 1
				continue
			}
			if _, err := w.Set(t.Context(), i, digestOf(c[i])); err != nil {
				t.Fatal(err)
			}
		}
		r, err := w.Finish(t.Context())
		if err != nil {
			t.Fatalf("level %d: %v", level, err)
		}
		if r != a {
			t.Errorf("level %d: healed root %+v, was %+v", level, r, a)
		}
		read(t, s, r)
	}
}

// believingStore takes every node for held, as one would that lost some unnoticed.
type believingStore struct{ *nodeStore }

func (s believingStore) PutNode(_ context.Context, level int, children *[dedupe.FanOut]dedupe.Digest) (dedupe.Put, error) {
	return dedupe.Put{Digest: dedupe.NodeSum(level, children)}, nil
}

// TestRefuseHeldLostNode: no root is made over a node that is known to be lost.
func TestRefuseHeldLostNode(t *testing.T) {
	s := newNodeStore()
	size := int64(dedupe.FanOut) * testBlock
	a := write(t, s, content{5: 1}, size)
	delete(s.nodes, a.Top)
	w, err := hashtree.NewWriter(hashtree.Direct(s), believingStore{s}, a, size, testBlock)
	if err != nil {
		t.Fatal(err)
	}
	for i := range int64(dedupe.FanOut) {
		if _, err := w.Set(t.Context(), i, digestOf(content{5: 1}[i])); err != nil {
			t.Fatal(err)
		}
	}
	if r, err := w.Finish(t.Context()); !errors.Is(err, dedupe.ErrNotFound) {
		t.Errorf("root %+v, %v", r, err)
	}
}

// TestDamagedTree: wrong level, wrong content, children behind the end, a node that
// is missing: each is an error that names its place, never a wrong digest.
func TestDamagedTree(t *testing.T) {
	size := int64(3*dedupe.FanOut+5) * testBlock
	c := content{0: 1, 200: 2, 3*dedupe.FanOut + 4: 3}
	walk := func(s *nodeStore, r hashtree.Root) error {
		return hashtree.Walk(t.Context(), hashtree.Direct(s), r, 0, r.SizeBytes, func(int64, dedupe.Digest) bool { return true })
	}
	t.Run("node of another level", func(t *testing.T) {
		s := newNodeStore()
		leaf := [dedupe.FanOut]dedupe.Digest{digestOf(1)}
		put, _ := s.PutNode(t.Context(), 0, &leaf)
		r := hashtree.Root{SizeBytes: size, BlockSize: testBlock, Depth: 2, Top: put.Digest}
		if err := walk(s, r); !errors.Is(err, dedupe.ErrCorrupt) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("flipped bit", func(t *testing.T) {
		s := newNodeStore()
		r := write(t, s, c, size)
		s.nodes[r.Top][100] ^= 1
		err := walk(s, r)
		var ne *hashtree.NodeError
		if !errors.As(err, &ne) || !errors.Is(err, dedupe.ErrCorrupt) || ne.Offset != 0 || ne.Length != size {
			t.Errorf("got %v", err)
		}
	})
	t.Run("cut short", func(t *testing.T) {
		s := newNodeStore()
		r := write(t, s, c, size)
		s.nodes[r.Top] = s.nodes[r.Top][:100]
		if err := walk(s, r); !errors.Is(err, dedupe.ErrCorrupt) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("children behind the end", func(t *testing.T) {
		s := newNodeStore()
		r := write(t, s, c, size)
		r.SizeBytes -= testBlock
		if err := walk(s, r); !errors.Is(err, dedupe.ErrCorrupt) {
			t.Errorf("got %v", err)
		}
		// A tree like that must not come to life when the disk grows again.
		w, err := hashtree.NewWriter(hashtree.Direct(s), s, r, size, testBlock)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Set(t.Context(), 3*dedupe.FanOut, digestOf(9)); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Finish(t.Context()); !errors.Is(err, dedupe.ErrCorrupt) {
			t.Errorf("grown over a damaged base: %v", err)
		}
	})
	t.Run("missing", func(t *testing.T) {
		s := newNodeStore()
		r := write(t, s, c, size)
		delete(s.nodes, r.Top)
		if err := walk(s, r); !errors.Is(err, dedupe.ErrNotFound) {
			t.Errorf("got %v", err)
		}
		bad, good := 0, 0
		err := hashtree.Visit(t.Context(), hashtree.Direct(s), r, 0, size, func(e hashtree.Entry) (bool, error) {
			if e.Err != nil {
				bad++
			} else {
				good++
			}
			return true, nil
		})
		if err != nil || bad != 1 || good != 1 {
			t.Errorf("visit: %d bad, %d good, %v", bad, good, err)
		}
	})
}

// TestRootLimits: what a decoder must refuse.
func TestRootLimits(t *testing.T) {
	good := hashtree.Root{SizeBytes: 1 << 30, BlockSize: 64 << 10, Depth: 2, Top: digestOf(1)}
	if r, err := hashtree.ParseRoot(good.AppendTo(nil)); err != nil || r != good {
		t.Fatalf("%+v, %v", r, err)
	}
	for name, bad := range map[string]hashtree.Root{
		"size not of sectors": {SizeBytes: 513, BlockSize: 64 << 10, Depth: 1},
		"negative size":       {SizeBytes: -512, BlockSize: 64 << 10, Depth: 1},
		"size above limit":    {SizeBytes: blockdev.MaxSize + 512, BlockSize: 1 << 20, Depth: 6},
		"block size":          {SizeBytes: 512, BlockSize: 48 << 10, Depth: 1},
		"block size 0":        {SizeBytes: 512, Depth: 1},
		"depth 0":             {SizeBytes: 512, BlockSize: 64 << 10},
		"depth 7":             {SizeBytes: 512, BlockSize: 64 << 10, Depth: 7},
		"depth too small":     {SizeBytes: 1 << 30, BlockSize: 64 << 10, Depth: 1},
		"empty disk with top": {BlockSize: 64 << 10, Depth: 1, Top: digestOf(1)},
	} {
		if err := bad.Validate(); err == nil {
			t.Errorf("%s: accepted", name)
		}
		if _, err := hashtree.ParseRoot(bad.AppendTo(nil)); err == nil {
			t.Errorf("%s: decoded", name)
		}
	}
}

func FuzzRoot(f *testing.F) {
	f.Add(hashtree.Root{SizeBytes: 1 << 30, BlockSize: 64 << 10, Depth: 2, Top: digestOf(1)}.AppendTo(nil))
	f.Add(hashtree.Root{BlockSize: 16 << 10, Depth: 1}.AppendTo(nil))
	f.Add(make([]byte, hashtree.RootSize))
	f.Fuzz(func(t *testing.T, p []byte) {
		r, err := hashtree.ParseRoot(p)
		if err != nil {
			return
		}
		if got := r.AppendTo(nil); string(got) != string(p[:hashtree.RootSize]) {
			t.Fatalf("decoded %x encodes as %x", p[:hashtree.RootSize], got)
		}
		// Whatever the bytes say, a walk of a tree whose nodes are not there ends.
		err = hashtree.Walk(t.Context(), hashtree.Direct(newNodeStore()), r, 0, r.SizeBytes, func(int64, dedupe.Digest) bool { return true })
		if !r.Top.IsZero() && !errors.Is(err, dedupe.ErrNotFound) {
			t.Fatalf("walk: %v", err)
		}
	})
}

func FuzzNode(f *testing.F) {
	children := [dedupe.FanOut]dedupe.Digest{3: digestOf(1)}
	var p []byte
	for _, c := range children {
		p = append(p, c[:]...)
	}
	f.Add(p, 0)
	f.Add(p[:4000], 1)
	f.Add(make([]byte, hashtree.NodeSize), 5)
	f.Fuzz(func(t *testing.T, p []byte, level int) {
		var want dedupe.Digest
		if len(p) == hashtree.NodeSize && level >= 0 && level < dedupe.MaxDepth {
			var c [dedupe.FanOut]dedupe.Digest
			empty := true
			for i := range c {
				copy(c[i][:], p[i*dedupe.DigestSize:])
				empty = empty && c[i].IsZero()
			}
			if !empty {
				want = dedupe.NodeSum(level, &c)
			}
		}
		n, err := hashtree.ParseNode(level, want, p)
		if (err == nil) != !want.IsZero() {
			t.Fatalf("level %d, %d bytes: %v", level, len(p), err)
		}
		if err == nil && string(n[0][:]) != string(p[:32]) {
			t.Fatal("children differ")
		}
	})
}

// TestGolden: ids of version 1. Every vault and every site counts on them: they never
// change.
func TestGolden(t *testing.T) {
	s := newNodeStore()
	r := write(t, s, content{0: 1, 127: 2, 128: 3, 20000: 4}, 20001*testBlock-512)
	got := fmt.Sprintf("top %v\nroot %v\nbytes %x\nempty %v\n", r.Top, r.Digest(), r.AppendTo(nil),
		hashtree.Root{SizeBytes: 1 << 30, BlockSize: 64 << 10, Depth: 2}.Digest())
	path := "testdata/root-v1.txt"
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}
