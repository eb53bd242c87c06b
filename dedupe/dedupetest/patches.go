package dedupetest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/keelblock/keelblock/dedupe"
)

// testPatches: what a Batch keeps as patches is what was put, held and readable from then
// on, over any number of versions; and a base that is no help makes no difference.
func testPatches(t *testing.T, s dedupe.Store) {
	b := Begin(t, s)
	pb, ok := b.(dedupe.PatchBatch)
	if !ok {
		t.Skip("its batches make no patches")
	}
	ctx := context.Background()
	const blocks, rounds = 12, 10
	var versions [blocks][][]byte
	for i := range versions {
		versions[i] = [][]byte{Block(s, uint64(i))}
		PutBlock(t, b, versions[i][0])
	}
	for round := range rounds {
		p := pb.Patches()
		var wg sync.WaitGroup
		for i := range versions {
			was := versions[i][round]
			next := append([]byte(nil), was...)
			for j := range 1 + (round+i)%5 {
				next[(round*7+i*3+j*5)*4096%len(next)] += byte(round + 1)
			}
			versions[i] = append(versions[i], next)
			wg.Go(func() { putPatch(t, s, p, next, was, round == i) })
		}
		wg.Wait()
		if round%3 != 2 {
			continue
		}
		n, err := p.Flush(ctx)
		if err != nil || n <= 0 {
			t.Errorf("flush: %d bytes, %v", n, err)
		}
		Commit(t, b, fmt.Sprintf("round %d", round))
		b = Begin(t, s)
		pb = b.(dedupe.PatchBatch)
	}
	check := func(when string) {
		t.Helper()
		for i := range versions {
			for v, want := range versions[i] {
				got, err := s.Get(ctx, dedupe.KindBlock, s.BlockDigest(want), nil)
				if err != nil || string(got) != string(want) {
					t.Errorf("%s: version %d of block %d: %v", when, v, i, err)
				}
			}
		}
	}
	check("before the last commit")
	Commit(t, b, "patches")
	check("after it")
	b = Begin(t, s)
	for i := range versions {
		for v, want := range versions[i] {
			if PutBlock(t, b, want).New {
				t.Errorf("version %d of block %d is not held", v, i)
			}
		}
	}
}

// testLay finds out which block some grains make of another one, and which do not differ.
func testLay(t testing.TB, s dedupe.Store, g dedupe.GrainPatches, next, was []byte) {
	e := EditBetween(s.BlockDigest(was), was, next)
	edits := []dedupe.Edit{e, {Base: s.BlockDigest(was), Content: next}, {Base: dedupe.Digest{1}, Content: next}}
	g.Lay(context.Background(), edits)
	differ := edits[0].Differ()
	if !edits[0].Laid() || edits[0].Digest() != s.BlockDigest(next) || !differ.Within(&e.Given) || differ.Count() == 0 {
		t.Errorf("laid %v, want %v, of the grains %v those in %v differ: %v", edits[0].Digest(), s.BlockDigest(next), e.Given, differ, edits[0].Err)
	}
	if !edits[1].Laid() || edits[1].Digest() != s.BlockDigest(was) || edits[1].Differ() != (dedupe.Grains{}) {
		t.Errorf("laid no grain over %v: %v, %v", s.BlockDigest(was), edits[1].Digest(), edits[1].Err)
	}
	if edits[2].Laid() || !errors.Is(edits[2].Err, dedupe.ErrNotFound) {
		t.Errorf("laid grains over a block that is not there: %v", edits[2].Err)
	}
}

// putPatch puts one version of a block over another, and then again.
func putPatch(t testing.TB, s dedupe.Store, p dedupe.Patches, next, was []byte, unreadable bool) {
	ctx := context.Background()
	if g, ok := p.(dedupe.GrainPatches); ok {
		testLay(t, s, g, next, was)
	}
	asked := 0
	put, err := p.PutPatch(ctx, next, s.BlockDigest(was), func() ([]byte, error) {
		if asked++; unreadable {
			return nil, fmt.Errorf("test: %w", dedupe.ErrCorrupt)
		}
		return was, nil
	})
	if err != nil || !put.New || put.Digest != s.BlockDigest(next) || put.RawBytes <= 0 || put.RawBytes > int64(len(next)) || asked > 1 {
		t.Errorf("put patch: %+v, %v, asked %d times for the base", put, err, asked)
	}
	put, err = p.PutPatch(ctx, next, s.BlockDigest(was), func() ([]byte, error) {
		t.Error("the base of a block that is held is asked for")
		return was, nil
	})
	if err != nil || put.New || put.RawBytes != 0 || put.StoredBytes != 0 {
		t.Errorf("put patch again: %+v, %v", put, err)
	}
}
