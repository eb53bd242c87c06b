package dedupetest

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/keelblock/keelblock/dedupe"
)

// Run checks a Store against the contract. open makes an empty one; Run closes it.
func Run(t *testing.T, open func(t *testing.T) dedupe.Store) {
	tests := []struct {
		name string
		fn   func(t *testing.T, s dedupe.Store)
	}{
		{"empty", testEmpty},
		{"what was committed reads back", testRoundTrip},
		{"content kinds do not mix", testKinds},
		{"a block is stored once", testHeld},
		{"many goroutines storing one block store it once", testOnce},
		{"an aborted batch publishes nothing", testAbort},
		{"the uncommitted is readable, and is no point", testPending},
		{"batches beside each other", testBatches},
		{"notes ascend without reuse", testNotes},
		{"a publication is all or nothing", testPublication},
		{"bad arguments", testArguments},
		{"a done batch takes nothing", testDone},
		{"a cancelled context stores nothing", testContext},
		{"close", testClose},
		{"nodes", testNodes},
		{"listing ends when told", testStop},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := open(t)
			t.Cleanup(func() {
				if err := s.Close(); err != nil {
					t.Errorf("close: %v", err)
				}
			})
			tt.fn(t, s)
		})
	}
}

// Block is a block whose content follows from seed: half of it compressible.
func Block(s dedupe.Store, seed uint64) []byte {
	p := make([]byte, s.BlockSize())
	FillBlock(p, seed)
	return p
}

// FillBlock fills p as Block does.
func FillBlock(p []byte, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 0x6b65656c))
	half := len(p) / 2
	for i := 0; i+8 <= half; i += 8 {
		binary.LittleEndian.PutUint64(p[i:], r.Uint64())
	}
	for i := half; i < len(p); i++ {
		p[i] = byte(seed) | 1
	}
}

// Begin begins a batch that is aborted when the test ends.
func Begin(t testing.TB, s dedupe.Store) dedupe.Batch {
	t.Helper()
	b, err := s.Begin(context.Background())
	if err != nil {
		t.Fatalf("begin: %v", err)
	}
	t.Cleanup(func() {
		if err := b.Abort(); err != nil {
			t.Errorf("abort: %v", err)
		}
	})
	return b
}

// PutBlock puts a block that must be taken.
func PutBlock(t testing.TB, b dedupe.Batch, p []byte) dedupe.Put {
	t.Helper()
	put, err := b.PutBlock(context.Background(), p)
	if err != nil {
		t.Fatalf("put block: %v", err)
	}
	if want := dedupe.Sum(p); put.Digest != want {
		t.Fatalf("put block: digest %v, want %v", put.Digest, want)
	}
	if put.New != (put.StoredBytes > 0) {
		t.Fatalf("put block: new %v with %d stored bytes", put.New, put.StoredBytes)
	}
	return put
}

// Commit commits manifests given as strings, which must succeed.
func Commit(t testing.TB, b dedupe.Batch, manifests ...string) []dedupe.Digest {
	t.Helper()
	var p dedupe.Publication
	for _, m := range manifests {
		p.Manifests = append(p.Manifests, []byte(m))
	}
	ids, err := b.Commit(context.Background(), p)
	if err != nil {
		t.Fatalf("commit: %v", err)
	}
	if len(ids) != len(manifests) {
		t.Fatalf("commit: %d ids of %d manifests", len(ids), len(manifests))
	}
	for i, m := range manifests {
		if ids[i] != dedupe.Sum([]byte(m)) {
			t.Fatalf("commit: id %d is %v, not the manifest's digest", i, ids[i])
		}
	}
	return ids
}

func manifests(t testing.TB, s dedupe.Store) map[dedupe.Digest]int {
	t.Helper()
	got := make(map[dedupe.Digest]int)
	if err := s.Manifests(context.Background(), func(d dedupe.Digest) bool { got[d]++; return true }); err != nil {
		t.Fatalf("manifests: %v", err)
	}
	return got
}

func notes(t testing.TB, s dedupe.Store) []dedupe.Note {
	t.Helper()
	var got []dedupe.Note
	if err := s.Notes(context.Background(), func(n dedupe.Note) bool { got = append(got, n); return true }); err != nil {
		t.Fatalf("notes: %v", err)
	}
	return got
}

func wantErr(t testing.TB, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: error %v, want %v", what, err, want)
	}
}

func wantBlock(t testing.TB, s dedupe.Store, seed uint64) {
	t.Helper()
	want := Block(s, seed)
	got, err := s.Get(context.Background(), dedupe.KindBlock, dedupe.Sum(want), nil)
	if err != nil {
		t.Errorf("get block %d: %v", seed, err)
	} else if string(got) != string(want) {
		t.Errorf("get block %d: other bytes than were put", seed)
	}
}

func testEmpty(t *testing.T, s dedupe.Store) {
	if n := s.BlockSize(); n < dedupe.MinBlockSize || n > dedupe.MaxBlockSize || n&(n-1) != 0 {
		t.Errorf("block size %d", n)
	}
	if s.Domain() == (dedupe.DomainID{}) {
		t.Error("the key domain is zero")
	}
	if m := manifests(t, s); len(m) != 0 {
		t.Errorf("%d manifests in an empty store", len(m))
	}
	if n := notes(t, s); len(n) != 0 {
		t.Errorf("%d notes in an empty store", len(n))
	}
	for kind := dedupe.KindBlock; kind <= dedupe.KindNote; kind++ {
		_, err := s.Get(context.Background(), kind, dedupe.Sum([]byte("x")), nil)
		wantErr(t, fmt.Sprintf("get of kind %d", kind), err, dedupe.ErrNotFound)
	}
	_, err := s.Get(context.Background(), dedupe.KindBlock, dedupe.Digest{}, nil)
	wantErr(t, "get of the zero digest", err, dedupe.ErrNotFound)
}

func testRoundTrip(t *testing.T, s dedupe.Store) {
	b := Begin(t, s)
	for seed := range uint64(50) {
		if put := PutBlock(t, b, Block(s, seed)); !put.New {
			t.Fatalf("block %d is held by an empty store", seed)
		}
	}
	ids := Commit(t, b, "first", "second")
	for seed := range uint64(50) {
		wantBlock(t, s, seed)
	}
	for i, want := range []string{"first", "second"} {
		got, err := s.Get(context.Background(), dedupe.KindManifest, ids[i], nil)
		if err != nil || string(got) != want {
			t.Errorf("get manifest %q: %q, %v", want, got, err)
		}
	}
	if got := manifests(t, s); len(got) != 2 || got[ids[0]] != 1 || got[ids[1]] != 1 {
		t.Errorf("manifests: %v, want %v once each", got, ids)
	}
	// A buffer with the capacity is used, a small one is not written past its end.
	want := Block(s, 7)
	buf := make([]byte, 1, 2*s.BlockSize())
	got, err := s.Get(context.Background(), dedupe.KindBlock, dedupe.Sum(want), buf)
	if err != nil || &got[0] != &buf[0] || string(got) != string(want) {
		t.Errorf("get with a large buffer did not use it: %v", err)
	}
	small := make([]byte, 16)
	got, err = s.Get(context.Background(), dedupe.KindBlock, dedupe.Sum(want), small[:0:8])
	if err != nil || string(got) != string(want) || string(small) != string(make([]byte, 16)) {
		t.Errorf("get with a small buffer: %v", err)
	}
}

func testKinds(t *testing.T, s dedupe.Store) {
	b := Begin(t, s)
	block := Block(s, 1)
	PutBlock(t, b, block)
	var children [dedupe.FanOut]dedupe.Digest
	children[3] = dedupe.Sum(block)
	node, err := b.PutNode(context.Background(), 0, &children)
	if err != nil {
		t.Fatalf("put node: %v", err)
	}
	ids := Commit(t, b, "manifest")
	have := map[dedupe.Kind]dedupe.Digest{dedupe.KindBlock: dedupe.Sum(block), dedupe.KindNode: node.Digest, dedupe.KindManifest: ids[0]}
	for stored, d := range have {
		for kind := dedupe.KindBlock; kind <= dedupe.KindManifest; kind++ {
			_, err := s.Get(context.Background(), kind, d, nil)
			if kind == stored && err != nil {
				t.Errorf("get kind %d: %v", kind, err)
			}
			if kind != stored {
				wantErr(t, fmt.Sprintf("get kind %d where kind %d is", kind, stored), err, dedupe.ErrNotFound)
			}
		}
	}
}

func testHeld(t *testing.T, s dedupe.Store) {
	b := Begin(t, s)
	if !PutBlock(t, b, Block(s, 1)).New {
		t.Error("first put is held")
	}
	if PutBlock(t, b, Block(s, 1)).New {
		t.Error("second put of the same batch is new")
	}
	Commit(t, b, "one")
	b = Begin(t, s)
	if PutBlock(t, b, Block(s, 1)).New {
		t.Error("put after a commit is new")
	}
	if !PutBlock(t, b, Block(s, 2)).New {
		t.Error("put of another block is held")
	}
	Commit(t, b, "two")
	wantBlock(t, s, 1)
	wantBlock(t, s, 2)
}

func testOnce(t *testing.T, s dedupe.Store) {
	b := Begin(t, s)
	const goroutines, blocks = 8, 20
	var wg sync.WaitGroup
	var mu sync.Mutex
	stored := make(map[dedupe.Digest]int)
	for g := range goroutines {
		wg.Go(func() {
			for i := range uint64(blocks) {
				put, err := b.PutBlock(context.Background(), Block(s, (i+uint64(g))%blocks))
				if err != nil {
					t.Errorf("put: %v", err)
					return
				}
				mu.Lock()
				if put.New {
					stored[put.Digest]++
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	Commit(t, b, "one")
	if len(stored) != blocks {
		t.Errorf("%d blocks stored, want %d", len(stored), blocks)
	}
	for d, n := range stored {
		if n != 1 {
			t.Errorf("block %v stored %d times", d, n)
		}
	}
	for i := range uint64(blocks) {
		wantBlock(t, s, i)
	}
}

func testAbort(t *testing.T, s dedupe.Store) {
	b := Begin(t, s)
	PutBlock(t, b, Block(s, 1))
	if err := b.Abort(); err != nil {
		t.Fatalf("abort: %v", err)
	}
	if err := b.Abort(); err != nil {
		t.Errorf("second abort: %v", err)
	}
	if m := manifests(t, s); len(m) != 0 {
		t.Errorf("%d manifests after an abort", len(m))
	}
	// Whether the block is still there is the store's business; put again, it is.
	b = Begin(t, s)
	PutBlock(t, b, Block(s, 1))
	Commit(t, b, "one")
	wantBlock(t, s, 1)
}

func testPending(t *testing.T, s dedupe.Store) {
	b := Begin(t, s)
	PutBlock(t, b, Block(s, 1))
	wantBlock(t, s, 1)
	var children [dedupe.FanOut]dedupe.Digest
	children[0] = dedupe.Sum(Block(s, 1))
	put, err := b.PutNode(context.Background(), 0, &children)
	if err != nil {
		t.Fatalf("put node: %v", err)
	}
	if _, err := s.Get(context.Background(), dedupe.KindNode, put.Digest, nil); err != nil {
		t.Errorf("get node of an open batch: %v", err)
	}
	if m := manifests(t, s); len(m) != 0 {
		t.Errorf("%d manifests before a commit", len(m))
	}
	_, err = s.Get(context.Background(), dedupe.KindManifest, dedupe.Sum([]byte("one")), nil)
	wantErr(t, "get of a manifest before its commit", err, dedupe.ErrNotFound)
}

func testBatches(t *testing.T, s dedupe.Store) {
	var wg sync.WaitGroup
	for g := range uint64(4) {
		wg.Go(func() {
			for round := range uint64(3) {
				b, err := s.Begin(context.Background())
				if err != nil {
					t.Errorf("begin: %v", err)
					return
				}
				for i := range uint64(10) { // the same blocks in all, and some of its own
					for _, seed := range []uint64{i, 1000*g + 100*round + 50 + i} {
						if _, err := b.PutBlock(context.Background(), Block(s, seed)); err != nil {
							t.Errorf("put: %v", err)
						}
					}
				}
				if g == 3 {
					if err := b.Abort(); err != nil {
						t.Errorf("abort: %v", err)
					}
					continue
				}
				m := fmt.Sprintf("batch %d round %d", g, round)
				if _, err := b.Commit(context.Background(), dedupe.Publication{Manifests: [][]byte{[]byte(m)}, Notes: []dedupe.Note{{Type: 7, Body: []byte(m)}}}); err != nil {
					t.Errorf("commit: %v", err)
				}
			}
		})
	}
	wg.Wait()
	if m := manifests(t, s); len(m) != 9 {
		t.Errorf("%d manifests, want 9", len(m))
	}
	for i, n := range notes(t, s) {
		if n.Sequence != uint64(i+1) {
			t.Errorf("note %d has sequence %d", i, n.Sequence)
		}
	}
	for g := range uint64(3) {
		for round := range uint64(3) {
			for i := range uint64(10) {
				wantBlock(t, s, i)
				wantBlock(t, s, 1000*g+100*round+50+i)
			}
		}
	}
}

func testNotes(t *testing.T, s dedupe.Store) {
	var want []dedupe.Note
	for i := range uint64(3) {
		b := Begin(t, s)
		p := dedupe.Publication{Manifests: [][]byte{fmt.Appendf(nil, "m%d", i)}}
		for j := range i + 1 {
			n := dedupe.Note{Type: uint16(10 + j), Subject: dedupe.Sum(p.Manifests[0]), Body: fmt.Appendf(nil, "note %d of %d", j, i)}
			p.Notes = append(p.Notes, n)
			n.Sequence = uint64(len(want) + 1)
			want = append(want, n)
		}
		if _, err := b.Commit(context.Background(), p); err != nil {
			t.Fatalf("commit: %v", err)
		}
	}
	b := Begin(t, s) // notes alone, one with an empty body
	if _, err := b.Commit(context.Background(), dedupe.Publication{Notes: []dedupe.Note{{Sequence: 99, Type: 1}}}); err != nil {
		t.Fatalf("commit of a note: %v", err)
	}
	want = append(want, dedupe.Note{Sequence: 7, Type: 1})
	got := notes(t, s)
	if len(got) != len(want) {
		t.Fatalf("%d notes, want %d", len(got), len(want))
	}
	for i := range want {
		if g, w := got[i], want[i]; g.Sequence != w.Sequence || g.Type != w.Type || g.Subject != w.Subject || string(g.Body) != string(w.Body) {
			t.Errorf("note %d is %+v, want %+v", i, g, w)
		}
	}
}

func testPublication(t *testing.T, s dedupe.Store) {
	b := Begin(t, s)
	PutBlock(t, b, Block(s, 1))
	p := dedupe.Publication{Manifests: [][]byte{[]byte("good"), make([]byte, dedupe.MaxMetadataSize+1)}}
	if _, err := b.Commit(context.Background(), p); err == nil {
		t.Error("a manifest beyond the limit was taken")
	}
	_, err := b.PutBlock(context.Background(), Block(s, 2))
	wantErr(t, "put after a failed commit", err, dedupe.ErrClosed)
	b = Begin(t, s)
	p = dedupe.Publication{Manifests: [][]byte{[]byte("good")}, Notes: []dedupe.Note{{Body: make([]byte, dedupe.MaxMetadataSize+1)}}}
	if _, err := b.Commit(context.Background(), p); err == nil {
		t.Error("a note beyond the limit was taken")
	}
	if m := manifests(t, s); len(m) != 0 {
		t.Errorf("%d manifests after failed commits", len(m))
	}
	b = Begin(t, s)
	largest := make([]byte, dedupe.MaxMetadataSize)
	largest[0] = 1
	ids, err := b.Commit(context.Background(), dedupe.Publication{Manifests: [][]byte{largest}, Notes: []dedupe.Note{{Body: largest}}})
	if err != nil {
		t.Fatalf("commit at the limit: %v", err)
	}
	if got, err := s.Get(context.Background(), dedupe.KindManifest, ids[0], nil); err != nil || string(got) != string(largest) {
		t.Errorf("get of the largest manifest: %v", err)
	}
	if n := notes(t, s); len(n) != 1 || string(n[0].Body) != string(largest) {
		t.Errorf("the largest note is not what was committed")
	}
}

func testArguments(t *testing.T, s dedupe.Store) {
	b := Begin(t, s)
	ctx := context.Background()
	for _, n := range []int{0, 1, s.BlockSize() - 1, s.BlockSize() + 1} {
		if _, err := b.PutBlock(ctx, make([]byte, n)); err == nil {
			t.Errorf("a block of %d bytes was taken", n)
		}
	}
	var children [dedupe.FanOut]dedupe.Digest
	children[0] = dedupe.Sum([]byte("x"))
	for _, level := range []int{-1, dedupe.MaxDepth} {
		if _, err := b.PutNode(ctx, level, &children); err == nil {
			t.Errorf("a node of level %d was taken", level)
		}
	}
	if _, err := b.Commit(ctx, dedupe.Publication{}); err != nil {
		t.Errorf("commit of nothing: %v", err)
	}
}

func testDone(t *testing.T, s dedupe.Store) {
	ctx := context.Background()
	b := Begin(t, s)
	Commit(t, b, "one")
	_, err := b.PutBlock(ctx, Block(s, 1))
	wantErr(t, "put after commit", err, dedupe.ErrClosed)
	_, err = b.Commit(ctx, dedupe.Publication{Manifests: [][]byte{[]byte("two")}})
	wantErr(t, "second commit", err, dedupe.ErrClosed)
	if err := b.Abort(); err != nil {
		t.Errorf("abort after commit: %v", err)
	}
	if m := manifests(t, s); len(m) != 1 {
		t.Errorf("%d manifests, want 1", len(m))
	}
}

func testContext(t *testing.T, s dedupe.Store) {
	ctx, cancel := context.WithCancel(context.Background())
	b := Begin(t, s)
	PutBlock(t, b, Block(s, 1))
	cancel()
	_, err := s.Begin(ctx)
	wantErr(t, "begin", err, context.Canceled)
	_, err = b.PutBlock(ctx, Block(s, 2))
	wantErr(t, "put", err, context.Canceled)
	_, err = s.Get(ctx, dedupe.KindBlock, dedupe.Sum(Block(s, 1)), nil)
	wantErr(t, "get", err, context.Canceled)
	_, err = b.Commit(ctx, dedupe.Publication{Manifests: [][]byte{[]byte("one")}})
	wantErr(t, "commit", err, context.Canceled)
	if m := manifests(t, s); len(m) != 0 {
		t.Errorf("%d manifests after a cancelled commit", len(m))
	}
}

func testClose(t *testing.T, s dedupe.Store) {
	ctx := context.Background()
	b := Begin(t, s)
	PutBlock(t, b, Block(s, 1))
	for range 2 {
		if err := s.Close(); err != nil {
			t.Fatalf("close: %v", err)
		}
	}
	_, err := b.PutBlock(ctx, Block(s, 2))
	wantErr(t, "put", err, dedupe.ErrClosed)
	_, err = b.Commit(ctx, dedupe.Publication{Manifests: [][]byte{[]byte("one")}})
	wantErr(t, "commit", err, dedupe.ErrClosed)
	_, err = s.Begin(ctx)
	wantErr(t, "begin", err, dedupe.ErrClosed)
	_, err = s.Get(ctx, dedupe.KindBlock, dedupe.Sum(Block(s, 1)), nil)
	wantErr(t, "get", err, dedupe.ErrClosed)
	wantErr(t, "manifests", s.Manifests(ctx, func(dedupe.Digest) bool { return true }), dedupe.ErrClosed)
	wantErr(t, "notes", s.Notes(ctx, func(dedupe.Note) bool { return true }), dedupe.ErrClosed)
	if err := b.Abort(); err != nil {
		t.Errorf("abort: %v", err)
	}
}

func testNodes(t *testing.T, s dedupe.Store) {
	ctx := context.Background()
	b := Begin(t, s)
	var children [dedupe.FanOut]dedupe.Digest
	for i := 0; i < dedupe.FanOut; i += 3 {
		children[i] = PutBlock(t, b, Block(s, uint64(i))).Digest
	}
	digests := make(map[dedupe.Digest]bool)
	for level := range dedupe.MaxDepth {
		put, err := b.PutNode(ctx, level, &children)
		if err != nil {
			t.Fatalf("put node of level %d: %v", level, err)
		}
		if want := dedupe.NodeSum(level, &children); put.Digest != want || !put.New {
			t.Errorf("put node of level %d: %+v, want digest %v, new", level, put, want)
		}
		if again, err := b.PutNode(ctx, level, &children); err != nil || again.New {
			t.Errorf("second put of the node: %+v, %v", again, err)
		}
		digests[put.Digest] = true
	}
	if len(digests) != dedupe.MaxDepth {
		t.Errorf("%d digests of the same children at %d levels", len(digests), dedupe.MaxDepth)
	}
	Commit(t, b, "one")
	for d := range digests {
		got, err := s.Get(ctx, dedupe.KindNode, d, nil)
		if err != nil {
			t.Errorf("get node: %v", err)
			continue
		}
		if len(got) != dedupe.FanOut*dedupe.DigestSize {
			t.Fatalf("node of %d bytes", len(got))
		}
		for i := range children {
			if dedupe.Digest(got[i*dedupe.DigestSize:][:dedupe.DigestSize]) != children[i] {
				t.Fatalf("child %d is not what was put", i)
			}
		}
	}
}

func testStop(t *testing.T, s dedupe.Store) {
	b := Begin(t, s)
	if _, err := b.Commit(context.Background(), dedupe.Publication{Manifests: [][]byte{[]byte("a"), []byte("b")},
		Notes: []dedupe.Note{{Type: 1}, {Type: 2}}}); err != nil {
		t.Fatalf("commit: %v", err)
	}
	n := 0
	if err := s.Manifests(context.Background(), func(dedupe.Digest) bool { n++; return false }); err != nil || n != 1 {
		t.Errorf("manifests went on %d times after false: %v", n, err)
	}
	n = 0
	if err := s.Notes(context.Background(), func(dedupe.Note) bool { n++; return false }); err != nil || n != 1 {
		t.Errorf("notes went on %d times after false: %v", n, err)
	}
}
