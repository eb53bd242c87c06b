package dedupetest

import (
	"context"
	"fmt"
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
		{"several blocks at once read as one by one", testBlocksGetter},
		{"content kinds do not mix", testKinds},
		{"a block is stored once", testHeld},
		{"many goroutines storing one block store it once", testOnce},
		{"patches read back as the blocks that they are", testPatches},
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
		block := Block(s, seed)
		put := PutBlock(t, b, block)
		if put.Digest != s.BlockDigest(block) || isUnkeyed(put.Digest, block) == s.Encrypted() {
			t.Errorf("block %d of a store with encryption %v: put as %v, digest %v", seed, s.Encrypted(), put.Digest, s.BlockDigest(block))
		}
		if !put.New {
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
	got, err := s.Get(context.Background(), dedupe.KindBlock, s.BlockDigest(want), buf)
	if err != nil || &got[0] != &buf[0] || string(got) != string(want) {
		t.Errorf("get with a large buffer did not use it: %v", err)
	}
	small := make([]byte, 16)
	got, err = s.Get(context.Background(), dedupe.KindBlock, s.BlockDigest(want), small[:0:8])
	if err != nil || string(got) != string(want) || string(small) != string(make([]byte, 16)) {
		t.Errorf("get with a small buffer: %v", err)
	}
}

// testBlocksGetter: a Store that reads several blocks at once returns what Get does.
func testBlocksGetter(t *testing.T, s dedupe.Store) {
	many, ok := s.(dedupe.BlocksGetter)
	if !ok {
		t.Skip("it is no BlocksGetter")
	}
	b := Begin(t, s)
	for seed := range uint64(20) {
		PutBlock(t, b, Block(s, seed))
	}
	for n := range 21 { // also while the batch is open
		digests, bufs, errs := make([]dedupe.Digest, n), make([][]byte, n), make([]error, n)
		for i := range n {
			digests[i], bufs[i] = s.BlockDigest(Block(s, uint64(i))), make([]byte, s.BlockSize())
			errs[i] = dedupe.ErrClosed // to be overwritten
		}
		absent := n / 2
		if n > 0 {
			digests[absent] = dedupe.Sum([]byte("absent"))
		}
		many.GetBlocks(context.Background(), digests, bufs, errs)
		for i := range n {
			if i == absent {
				wantErr(t, fmt.Sprintf("get block %d of %d, which is absent", i, n), errs[i], dedupe.ErrNotFound)
			} else if errs[i] != nil || string(bufs[i]) != string(Block(s, uint64(i))) {
				t.Errorf("get block %d of %d: %v", i, n, errs[i])
			}
		}
		if n == 10 {
			Commit(t, b, "blocks")
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	errs := make([]error, 1)
	many.GetBlocks(ctx, []dedupe.Digest{s.BlockDigest(Block(s, 1))}, [][]byte{make([]byte, s.BlockSize())}, errs)
	wantErr(t, "get blocks after the end", errs[0], context.Canceled)
}

func testKinds(t *testing.T, s dedupe.Store) {
	b := Begin(t, s)
	block := Block(s, 1)
	PutBlock(t, b, block)
	var children [dedupe.FanOut]dedupe.Digest
	children[3] = s.BlockDigest(block)
	node, err := b.PutNode(context.Background(), 0, &children)
	if err != nil {
		t.Fatalf("put node: %v", err)
	}
	ids := Commit(t, b, "manifest")
	have := map[dedupe.Kind]dedupe.Digest{dedupe.KindBlock: s.BlockDigest(block), dedupe.KindNode: node.Digest, dedupe.KindManifest: ids[0]}
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
	children[0] = s.BlockDigest(Block(s, 1))
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

// isUnkeyed reports whether anybody can make a block's digest from its content.
func isUnkeyed(d dedupe.Digest, block []byte) bool {
	return d == dedupe.WholeDigests(nil).Block(block) || d == dedupe.GrainDigests(nil).Block(block)
}
