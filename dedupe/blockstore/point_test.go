package blockstore_test

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/dedupetest"
	"github.com/keelblock/keelblock/dedupe/pack"
)

// testPoint is a manifest of these tests: it lists all that it reaches.
type testPoint struct {
	Name   string
	Seeds  []uint64 // of its blocks
	Blocks []dedupe.Digest
	Nodes  []dedupe.Digest
}

// putPoint puts blocks of seeds and a small tree over them.
func putPoint(ctx context.Context, s dedupe.Store, b dedupe.Batch, name string, seeds []uint64) (*testPoint, error) {
	p := &testPoint{Name: name, Seeds: seeds}
	var children [dedupe.FanOut]dedupe.Digest
	flush := func(level int) error {
		put, err := b.PutNode(ctx, level, &children)
		if err != nil {
			return err
		}
		p.Nodes = append(p.Nodes, put.Digest)
		clear(children[:])
		return nil
	}
	patches := b.(dedupe.PatchBatch).Patches()
	for i, seed := range seeds {
		put, err := putVersion(ctx, s, b, patches, seed)
		if err != nil {
			return nil, err
		}
		p.Blocks = append(p.Blocks, put.Digest)
		children[i%16] = put.Digest
		if i%16 == 15 {
			if err := flush(0); err != nil {
				return nil, err
			}
		}
	}
	for i, d := range p.Nodes {
		children[i%dedupe.FanOut] = d
	}
	if len(p.Blocks) > 0 {
		children[dedupe.FanOut-1] = p.Blocks[0]
		if err := flush(1); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// commitPoint commits one point with a note about it.
func commitPoint(ctx context.Context, b dedupe.Batch, p *testPoint) (dedupe.Digest, error) {
	m, err := json.Marshal(p)
	if err != nil {
		return dedupe.Digest{}, err
	}
	ids, err := b.Commit(ctx, dedupe.Publication{Manifests: [][]byte{m}, Notes: []dedupe.Note{{Type: 1, Subject: dedupe.Sum(m), Body: []byte(p.Name)}}})
	if err != nil {
		return dedupe.Digest{}, err
	}
	return ids[0], nil
}

// Blocks of these tests come in four versions: seed 4n is a whole block, and each of the
// next three has one more grain changed than the one before.
const versions = 4

// fillBlock fills p with the block of a seed.
func fillBlock(p []byte, seed uint64) {
	dedupetest.FillBlock(p, seed/versions)
	for v := uint64(1); v <= seed%versions; v++ {
		r := rand.New(rand.NewPCG(seed/versions, v))
		at := r.IntN(len(p)/pack.GrainSize) * pack.GrainSize
		for i := range pack.GrainSize {
			p[at+i] = byte(r.Uint64())
		}
	}
}

func testBlock(s dedupe.Store, seed uint64) []byte {
	p := make([]byte, s.BlockSize())
	fillBlock(p, seed)
	return p
}

// putVersion puts the block of a seed, with the version before it as its base.
func putVersion(ctx context.Context, s dedupe.Store, b dedupe.Batch, patches dedupe.Patches, seed uint64) (dedupe.Put, error) {
	if seed%versions == 0 {
		return b.PutBlock(ctx, testBlock(s, seed))
	}
	was := testBlock(s, seed-1)
	return dedupetest.PutOver(ctx, s, patches, testBlock(s, seed), was)
}

// writePoint is one batch from begin to commit.
func writePoint(t testing.TB, s dedupe.Store, name string, seeds []uint64) dedupe.Digest {
	t.Helper()
	ctx := context.Background()
	b := dedupetest.Begin(t, s)
	p, err := putPoint(ctx, s, b, name, seeds)
	if err != nil {
		t.Fatalf("put %s: %v", name, err)
	}
	id, err := commitPoint(ctx, b, p)
	if err != nil {
		t.Fatalf("commit %s: %v", name, err)
	}
	return id
}

// checkPoint reads a point and all below it.
func checkPoint(s dedupe.Store, id dedupe.Digest) error {
	ctx := context.Background()
	m, err := s.Get(ctx, dedupe.KindManifest, id, nil)
	if err != nil {
		return err
	}
	var p testPoint
	if err := json.Unmarshal(m, &p); err != nil {
		return fmt.Errorf("manifest %v: %w", id, err)
	}
	want := make([]byte, s.BlockSize())
	var got []byte
	for i, d := range p.Blocks {
		if got, err = s.Get(ctx, dedupe.KindBlock, d, got); err != nil {
			return fmt.Errorf("point %s, block %d: %w", p.Name, i, err)
		}
		fillBlock(want, p.Seeds[i])
		if string(got) != string(want) {
			return fmt.Errorf("point %s, block %d: other bytes", p.Name, i)
		}
	}
	for i, d := range p.Nodes {
		if _, err := s.Get(ctx, dedupe.KindNode, d, nil); err != nil {
			return fmt.Errorf("point %s, node %d: %w", p.Name, i, err)
		}
	}
	return nil
}

// checkStore checks every published point, that all of want are among them, and that
// each has its note, in a gapless sequence.
func checkStore(s dedupe.Store, want []dedupe.Digest) error {
	ctx := context.Background()
	have := make(map[dedupe.Digest]bool)
	if err := s.Manifests(ctx, func(d dedupe.Digest) bool { have[d] = true; return true }); err != nil {
		return err
	}
	for _, id := range want {
		if !have[id] {
			return fmt.Errorf("committed point %v is gone", id)
		}
	}
	for id := range have {
		if err := checkPoint(s, id); err != nil {
			return err
		}
	}
	last := uint64(0)
	var gap error
	err := s.Notes(ctx, func(n dedupe.Note) bool {
		if last++; n.Sequence != last {
			gap = fmt.Errorf("note %d where %d should be", n.Sequence, last)
			return false
		}
		delete(have, n.Subject)
		return true
	})
	if err != nil || gap != nil {
		return fmt.Errorf("notes: %w", cmpErr(err, gap))
	}
	if len(have) > 0 {
		return fmt.Errorf("%d points without their note", len(have))
	}
	return nil
}

func cmpErr(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// seeds are n block seeds out of a universe, so that points share blocks and some are
// versions of one another.
func seeds(r *rand.Rand, n, universe int) []uint64 {
	list := make([]uint64, n)
	for i := range list {
		list[i] = uint64(r.IntN(universe))
		if i > 0 && list[i-1]%versions < versions-1 && r.IntN(2) == 0 {
			list[i] = list[i-1] + 1 // its next version
		}
	}
	return list
}
