package blockstore_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/blockstore"
	"github.com/keelblock/keelblock/dedupe/dedupetest"
)

// model is what a vault must hold, kept in maps.
type model struct {
	points []dedupe.Digest
	stored map[uint64]bool // blocks of committed points
}

// Random batches, commits, aborts, crashes, reopenings and rebuilds, against a map.
func TestModel(t *testing.T) { eachDomain(t, testModel) }

func testModel(t *testing.T, crashOptions blockstore.Options) {
	t.Parallel()
	seed := uint64(envInt(t, "SEED", time.Now().UnixNano()&0xffffff))
	steps := envInt(t, "STEPS", 60)
	t.Logf("SEED=%d STEPS=%d", seed, steps)
	r := rand.New(rand.NewPCG(seed, 4))
	dir := newVault(t, crashOptions)
	s, err := blockstore.Open(dir, crashOptions)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	m := model{stored: make(map[uint64]bool)}
	ctx := context.Background()
	for step := range steps {
		fatal := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatalf("SEED=%d step %d: %v", seed, step, err)
			}
		}
		switch r.IntN(12) {
		case 0: // a clean stop
			fatal(s.Close())
			s, err = blockstore.Open(dir, crashOptions)
			fatal(err)
		case 1: // a crash: what the files hold now goes on in another folder
			next := t.TempDir()
			copyTree(t, dir, next)
			fatal(s.Close())
			fatal(os.RemoveAll(dir))
			dir = next
			s, err = blockstore.Open(dir, crashOptions)
			fatal(err)
		case 2:
			fatal(s.Close())
			fatal(blockstore.RebuildIndex(ctx, dir, crashOptions, nil))
			s, err = blockstore.Open(dir, crashOptions)
			fatal(err)
		case 3:
			fatal(checkStore(s, m.points))
		case 4: // aborted
			b := dedupetest.Begin(t, s)
			_, err := putPoint(ctx, s, b, "aborted", seeds(r, r.IntN(150), 1500))
			fatal(errors.Join(err, b.Abort()))
		case 5: // in the midst of a batch, a crash
			b := dedupetest.Begin(t, s)
			_, err := putPoint(ctx, s, b, "crashed", seeds(r, r.IntN(300), 1500))
			fatal(err)
			next := t.TempDir()
			copyTree(t, dir, next)
			fatal(s.Close())
			fatal(os.RemoveAll(dir))
			dir = next
			s, err = blockstore.Open(dir, crashOptions)
			fatal(err)
		default:
			b := dedupetest.Begin(t, s)
			list := seeds(r, r.IntN(150), 1500)
			p, err := putPoint(ctx, s, b, fmt.Sprintf("step %d", step), list)
			fatal(err)
			id, err := commitPoint(ctx, b, p)
			fatal(err)
			m.points = append(m.points, id)
			for _, x := range list {
				m.stored[x] = true
			}
		}
		// What is committed is held, and held means that it reads back.
		b := dedupetest.Begin(t, s)
		for range 5 {
			x := uint64(r.IntN(1500))
			put, err := b.PutBlock(ctx, testBlock(s, x))
			fatal(err)
			if m.stored[x] && put.New {
				t.Fatalf("SEED=%d step %d: committed block %d is not held", seed, step, x)
			}
			wantSame(t, s, x)
		}
		fatal(b.Abort())
	}
	if err := checkStore(s, m.points); err != nil {
		t.Errorf("SEED=%d: %v", seed, err)
	}
}

func wantSame(t testing.TB, s dedupe.Store, seed uint64) {
	t.Helper()
	want := testBlock(s, seed)
	got, err := s.Get(context.Background(), dedupe.KindBlock, s.BlockDigest(want), nil)
	if err != nil || string(got) != string(want) {
		t.Fatalf("block %d of an open batch: %v", seed, err)
	}
}

// What a batch keeps in memory does not grow with what it stores.
func TestMemoryBound(t *testing.T) {
	t.Parallel()
	o := blockstore.Options{BlockSize: dedupe.MinBlockSize, PackBytes: blockstore.MinPackBytes, Compression: blockstore.CompressionNone}
	s := openVault(t, newVault(t, o), o)
	b := dedupetest.Begin(t, s)
	ctx := context.Background()
	// A pack of 2 MiB holds 126 such blocks: 40 packs, of which at most four are
	// being written or sealed.
	const blocks, limit = 5000, 4*128 + 64
	var wg sync.WaitGroup
	var mu sync.Mutex
	most := 0
	for g := range uint64(4) {
		wg.Go(func() {
			p := make([]byte, s.BlockSize())
			for i := range uint64(blocks / 4) {
				fillBlock(p, g<<32|i)
				if _, err := b.PutBlock(ctx, p); err != nil {
					t.Errorf("put: %v", err)
					return
				}
				if i%64 == 0 {
					n := s.PendingPlaces()
					mu.Lock()
					most = max(most, n)
					mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
	if most > limit {
		t.Errorf("%d places in memory of %d blocks, want at most %d", most, blocks, limit)
	}
	t.Logf("at most %d places in memory of %d blocks", most, blocks)
	dedupetest.Commit(t, b, "one")
	if n := s.PendingPlaces(); n != 0 {
		t.Errorf("%d places left after the commit", n)
	}
	if st := s.Stats(); st.Blocks != blocks || st.NewBlocks != blocks {
		t.Errorf("stats %+v, want %d blocks", st, blocks)
	}
}

// The epoch rises with every unclean stop, and only then.
func TestEpoch(t *testing.T) {
	t.Parallel()
	dir := newVault(t, crashOptions)
	for i, want := range []uint32{1, 1, 2, 3} {
		s, err := blockstore.Open(dir, crashOptions)
		if err != nil {
			t.Fatal(err)
		}
		if got := s.Epoch(); got != want {
			t.Errorf("open %d: epoch %d, want %d", i, got, want)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if i > 0 {
			markUnclean(t, dir)
		}
	}
}
