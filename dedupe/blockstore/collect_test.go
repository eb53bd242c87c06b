package blockstore_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/blockstore"
	"github.com/keelblock/keelblock/dedupe/dedupetest"
)

// writeTree is one batch with a tree point, from begin to commit.
func writeTree(ctx context.Context, s dedupe.Store, name string, seeds []uint64) (dedupe.Digest, error) {
	b, err := s.Begin(ctx)
	if err != nil {
		return dedupe.Digest{}, err
	}
	o := &openTree{batch: b, point: treePoint{Name: name}}
	if err := o.put(ctx, s, seeds); err != nil {
		return dedupe.Digest{}, errors.Join(err, b.Abort())
	}
	id, err := o.commit(ctx)
	if err != nil {
		return id, errors.Join(err, b.Abort())
	}
	return id, nil
}

// blockSum is the digest of the block of a seed.
func blockSum(s dedupe.Store, seed uint64) dedupe.Digest {
	p := make([]byte, s.BlockSize())
	fillVersion(p, seed)
	return s.BlockDigest(p)
}

// history makes points of which two in three are purged, half of each new.
func history(t testing.TB, s dedupe.Store, points int) map[dedupe.Digest]bool {
	t.Helper()
	ctx := context.Background()
	want := make(map[dedupe.Digest]bool)
	for i := range points {
		list := make([]uint64, 160)
		for j := range list {
			list[j] = uint64(i*80 + j)
		}
		id, err := writeTree(ctx, s, fmt.Sprintf("point %d", i), list)
		if err != nil {
			t.Fatal(err)
		}
		if i%3 == 0 {
			want[id] = true
		} else if err := purge(ctx, s, id); err != nil {
			t.Fatal(err)
		}
	}
	return want
}

// After a collection packs take at most 1.2 times what is live, the points read back, a
// second collection finds nothing to do, and a rebuilt index says the same.
func TestCollectFrees(t *testing.T) {
	t.Parallel()
	dir := newVault(t, crashOptions)
	s, err := blockstore.Open(dir, crashOptions)
	if err != nil {
		t.Fatal(err)
	}
	want := history(t, s, 30)
	ctx := context.Background()
	dry, err := collectTrees(ctx, s, blockstore.CollectOptions{DryRun: true}, nil)
	if err != nil {
		t.Fatal(err)
	}
	before, err := s.PackFileBytes()
	if err != nil {
		t.Fatal(err)
	}
	r, err := collectTrees(ctx, s, blockstore.CollectOptions{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	after, err := s.PackFileBytes()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d bytes, then %d of which %d live; %+v", before, after, r.LiveBytes, r)
	if float64(after) > 1.2*float64(r.LiveBytes) {
		t.Errorf("%d bytes in packs for %d live ones", after, r.LiveBytes)
	}
	if diff := before - after - r.FreedBytes; diff > 256<<10 || diff < -256<<10 {
		t.Errorf("reported %d bytes freed, the files say %d", r.FreedBytes, before-after)
	}
	if diff := dry.FreedBytes - r.FreedBytes; diff > 256<<10 || diff < -256<<10 || dry.DeadBlocks != r.DeadBlocks {
		t.Errorf("the dry run said %d bytes and %d blocks, it was %d and %d", dry.FreedBytes, dry.DeadBlocks, r.FreedBytes, r.DeadBlocks)
	}
	if err := errors.Join(checkTrees(s, want), s.CheckIndex()); err != nil {
		t.Error(err)
	}
	again, err := collectTrees(ctx, s, blockstore.CollectOptions{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if again.DroppedPacks != 0 || again.DeadBlocks != 0 || again.DeadPoints != 0 {
		t.Errorf("a second collection: %+v", again)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := blockstore.RebuildIndex(ctx, dir, crashOptions, nil); err != nil {
		t.Fatal(err)
	}
	s = openVault(t, dir, crashOptions)
	if err := errors.Join(checkTrees(s, want), s.CheckIndex()); err != nil {
		t.Errorf("rebuilt: %v", err)
	}
	if _, err := collectTrees(ctx, s, blockstore.CollectOptions{IndexOnly: true}, nil); err != nil {
		t.Error(err)
	}
	if got := s.Stats(); got.Blocks != r.LiveBlocks || got.Nodes != r.LiveNodes {
		t.Errorf("rebuilt and pruned: %d blocks and %d nodes, want %d and %d", got.Blocks, got.Nodes, r.LiveBlocks, r.LiveNodes)
	}
}

// Batches and readers go on while the vault is collected again and again.
func TestCollectConcurrent(t *testing.T) {
	t.Parallel()
	s := openVault(t, newVault(t, crashOptions), crashOptions)
	ctx := context.Background()
	var mu sync.Mutex
	want := history(t, s, 6)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for w := range uint64(3) {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(w, 77))
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				list := make([]uint64, 30+r.IntN(60))
				at := r.Uint64N(500)
				for j := range list {
					list[j] = (at + uint64(j)) % 500
				}
				id, err := writeTree(ctx, s, fmt.Sprintf("writer %d, point %d", w, i), list)
				if err != nil {
					t.Errorf("write beside a collection: %v", err)
					return
				}
				if r.IntN(3) > 0 {
					if err := purge(ctx, s, id); err != nil {
						t.Errorf("purge beside a collection: %v", err)
						return
					}
					continue
				}
				mu.Lock()
				want[id] = true
				mu.Unlock()
			}
		})
	}
	wg.Go(func() { // a reader of points that stay
		fixed := make(map[dedupe.Digest]bool)
		mu.Lock()
		for id := range want {
			fixed[id] = true
		}
		mu.Unlock()
		for {
			select {
			case <-stop:
				return
			default:
			}
			for id := range fixed {
				if err := readTree(ctx, s, id); err != nil {
					t.Errorf("read beside a collection: %v", err)
					return
				}
			}
		}
	})
	var freed int64
	for range 8 {
		r, err := collectTrees(ctx, s, blockstore.CollectOptions{}, nil)
		if err != nil {
			t.Errorf("collect: %v", err)
			break
		}
		freed += r.FreedBytes
	}
	close(stop)
	wg.Wait()
	if freed == 0 {
		t.Error("nothing was freed")
	}
	if err := errors.Join(checkTrees(s, want), s.CheckIndex()); err != nil {
		t.Error(err)
	}
	if n := s.Stats().CorruptBlocks; n != 0 {
		t.Errorf("%d reads of moved records count as damage", n)
	}
}

// readTree reads the blocks of one point.
func readTree(ctx context.Context, s *blockstore.Store, id dedupe.Digest) error {
	p, err := loadTree(ctx, s, id)
	if err != nil {
		return err
	}
	bufs, digests, errs := make([][]byte, len(p.Seeds)), make([]dedupe.Digest, len(p.Seeds)), make([]error, len(p.Seeds))
	for i, seed := range p.Seeds {
		bufs[i] = make([]byte, s.BlockSize())
		digests[i] = blockSum(s, seed)
	}
	s.GetBlocks(ctx, digests, bufs, errs)
	return errors.Join(errs...)
}

// An error of any step of a collection, a full disk or a failing one, ends it or is
// reported; every point reads back, then and after the next start, and the next
// collection finishes.
func TestCollectFaults(t *testing.T) {
	t.Parallel()
	testCollectFaults(t, crashOptions, func(t testing.TB, s dedupe.Store) map[dedupe.Digest]bool { return history(t, s, 12) })
}

func testCollectFaults(t *testing.T, o blockstore.Options, history func(testing.TB, dedupe.Store) map[dedupe.Digest]bool) {
	for _, fault := range []error{unix.ENOSPC, unix.EIO} {
		t.Run(fault.Error(), func(t *testing.T) {
			t.Parallel()
			origin := filepath.Join(memoryDir(t), "vault")
			if err := blockstore.Create(origin, o); err != nil {
				t.Fatal(err)
			}
			s, err := blockstore.Open(origin, o)
			if err != nil {
				t.Fatal(err)
			}
			want := history(t, s)
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			failed := 0
			for n := int64(1); n < 200; n++ {
				dir := filepath.Join(memoryDir(t), "vault")
				copyTree(t, origin, dir)
				calls, err := collectWithFault(dir, o, want, n, fault)
				if err != nil {
					t.Fatalf("call %d: %v", n, err)
				}
				if err := os.RemoveAll(dir); err != nil {
					t.Fatal(err)
				}
				if calls < n {
					break
				}
				failed++
				n += n / 8 // later ones are much the same
			}
			if failed < 10 {
				t.Errorf("only %d calls of a collection failed", failed)
			}
			t.Logf("%d calls failed", failed)
		})
	}
}

// collectWithFault collects a vault whose n-th system call fails, and checks it. It
// returns the number of calls.
func collectWithFault(dir string, o blockstore.Options, want map[dedupe.Digest]bool, n int64, fault error) (int64, error) {
	var at, calls atomic.Int64
	s, err := blockstore.Open(dir, o.WithHook(func(string, string) error {
		if calls.Add(1) == at.Load() {
			return fault
		}
		return nil
	}))
	if err != nil {
		return 0, err
	}
	ctx := context.Background()
	calls.Store(0)
	at.Store(n)
	r, cerr := collectTrees(ctx, s, blockstore.CollectOptions{}, nil)
	at.Store(0)
	made := calls.Load()
	if cerr != nil && !errors.Is(cerr, fault) && !errors.Is(cerr, dedupe.ErrNoSpace) {
		return made, fmt.Errorf("collect: %w", cerr)
	}
	if made >= n && cerr == nil && len(r.Problems) == 0 {
		return made, errors.New("the error was not reported")
	}
	if err := errors.Join(checkTrees(s, want), s.CheckIndex()); err != nil {
		return made, fmt.Errorf("after the error: %w", err)
	}
	if err := s.Close(); err != nil {
		return made, err
	}
	if s, err = blockstore.Open(dir, o); err != nil {
		return made, err
	}
	_, err = collectTrees(ctx, s, blockstore.CollectOptions{}, nil)
	err = errors.Join(err, checkTrees(s, want), s.CheckIndex())
	return made, errors.Join(err, s.Close())
}

// liveTree is one of the trees that the vault lists.
func liveTree(t *testing.T, s *blockstore.Store) treePoint {
	t.Helper()
	live, _, _, err := listed(context.Background(), s)
	if err != nil {
		t.Fatal(err)
	}
	p, err := loadTree(context.Background(), s, live[0])
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// A live record that does not verify is never dropped: its pack stays, and is reported.
func TestCollectKeepsDamage(t *testing.T) {
	t.Parallel()
	dir := newVault(t, crashOptions)
	s := openVault(t, dir, crashOptions)
	want := history(t, s, 9)
	ctx := context.Background()
	p := liveTree(t, s)
	bad := blockSum(s, p.Seeds[80])
	path, off, length, err := s.Locate(bad)
	if err != nil {
		t.Fatal(err)
	}
	flip(t, path, off+length-1)
	r, err := collectTrees(ctx, s, blockstore.CollectOptions{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Problems) != 1 {
		t.Errorf("problems %q, want one", r.Problems)
	}
	if _, err := os.Stat(path); err != nil {
		t.Errorf("the pack with the damaged record: %v", err)
	}
	if _, err := s.Get(ctx, dedupe.KindBlock, bad, nil); !errors.Is(err, dedupe.ErrCorrupt) {
		t.Errorf("the damaged block: %v", err)
	}
	flip(t, path, off+length-1) // healed: nothing was lost
	if err := checkTrees(s, want); err != nil {
		t.Error(err)
	}
}

// A tree that cannot be read ends a collection before anything is swept.
func TestCollectStopsAtDamagedNode(t *testing.T) {
	t.Parallel()
	dir := newVault(t, crashOptions)
	s := openVault(t, dir, crashOptions)
	want := history(t, s, 6)
	ctx := context.Background()
	p := liveTree(t, s)
	path, off, length, err := s.Locate(p.Top)
	if err != nil {
		t.Fatal(err)
	}
	before := s.Stats()
	flip(t, path, off+length-1)
	if _, err := collectTrees(ctx, s, blockstore.CollectOptions{}, nil); !errors.Is(err, dedupe.ErrCorrupt) {
		t.Errorf("collect: %v, want ErrCorrupt", err)
	}
	flip(t, path, off+length-1)
	if after := s.Stats(); after.Blocks != before.Blocks || after.Nodes != before.Nodes {
		t.Errorf("%d blocks and %d nodes before, %d and %d after", before.Blocks, before.Nodes, after.Blocks, after.Nodes)
	}
	if err := checkTrees(s, want); err != nil {
		t.Error(err)
	}
}

// One collection at a time; packs younger than MinAge are left alone.
func TestCollectOptions(t *testing.T) {
	t.Parallel()
	s := openVault(t, newVault(t, crashOptions), crashOptions)
	ctx := context.Background()
	history(t, s, 6)
	c, err := s.BeginCollection(ctx, blockstore.CollectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.BeginCollection(ctx, blockstore.CollectOptions{}); !errors.Is(err, blockstore.ErrCollecting) {
		t.Errorf("a second collection: %v", err)
	}
	c.End()
	r, err := collectTrees(ctx, s, blockstore.CollectOptions{MinAge: 1 << 60}, nil)
	if err != nil || r.FreedBytes != 0 || r.DeadBlocks != 0 {
		t.Errorf("of young packs: %+v, %v", r, err)
	}
}

const notesAlone = "notes without manifests"

// A purged point whose manifest stands in a pack that an open batch goes on with stays,
// and so does the note that purges it; without the note it would be back.
func TestCollectKeepsPurgeNote(t *testing.T) {
	t.Parallel()
	for _, bug := range []string{"", notesAlone} {
		o := crashOptions
		if bug != "" {
			o = o.WithBug(bug)
		}
		s := openVault(t, newVault(t, crashOptions), o)
		ctx := context.Background()
		id, err := writeTree(ctx, s, "purged", []uint64{1, 2, 3})
		if err != nil {
			t.Fatal(err)
		}
		b := dedupetest.Begin(t, s)
		children := [dedupe.FanOut]dedupe.Digest{dedupetest.PutBlock(t, b, dedupetest.Block(s, 9)).Digest}
		if _, err := b.PutNode(ctx, 0, &children); err != nil { // from here on the pack is the batch's
			t.Fatal(err)
		}
		if err := purge(ctx, s, id); err != nil {
			t.Fatal(err)
		}
		if _, err := collectTrees(ctx, s, blockstore.CollectOptions{}, nil); err != nil {
			t.Fatal(err)
		}
		// Nothing dead is in a metadata pack that may go, so a second note is needed.
		if err := purge(ctx, s, id); err != nil {
			t.Fatal(err)
		}
		other, err := writeTree(ctx, s, "other", []uint64{4, 5, 6})
		if err == nil {
			err = purge(ctx, s, other)
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, err := collectTrees(ctx, s, blockstore.CollectOptions{}, nil); err != nil {
			t.Fatal(err)
		}
		if err := checkTrees(s, nil); (err != nil) != (bug != "") {
			t.Errorf("bug %q: %v", bug, err)
		}
		if err := b.Abort(); err != nil {
			t.Error(err)
		}
	}
}

// Two batches store the same block. The first one enters it into the index when its pack is
// full, the second one replaces that, and nothing reaches what it wrote: it is the
// first one's record all the same.
func TestBlockThatAnotherBatchStores(t *testing.T) {
	t.Parallel()
	for _, bug := range []bool{false, true} {
		t.Run(fmt.Sprint("with the mistake: ", bug), func(t *testing.T) {
			o := crashOptions
			if bug {
				o = o.WithoutStoredInWindow()
			}
			s := openVault(t, newVault(t, o), o)
			const shared = 1
			slow, quick := dedupetest.Begin(t, s), dedupetest.Begin(t, s)
			dedupetest.PutBlock(t, slow, dedupetest.Block(s, shared))
			dedupetest.PutBlock(t, quick, dedupetest.Block(s, shared))
			d := s.BlockDigest(dedupetest.Block(s, shared))
			for i := uint64(100); !s.Indexed(d); i++ {
				if i == 10000 {
					t.Fatal("no pack became full")
				}
				dedupetest.PutBlock(t, slow, dedupetest.Block(s, i))
			}
			dedupetest.Commit(t, quick, "a point that is purged at once")

			c, err := s.BeginCollection(t.Context(), blockstore.CollectOptions{})
			if err != nil {
				t.Fatal(err)
			}
			defer c.End()
			c.StartPass(0)
			if err := errors.Join(c.SweepNodes(t.Context()), c.SweepBlocks(t.Context()), c.SweepPacks(t.Context(), blockstore.Dead{})); err != nil {
				t.Fatal(err)
			}
			dedupetest.Commit(t, slow, "a point that comes after the collection")
			_, err = s.Get(t.Context(), dedupe.KindBlock, d, nil)
			if lost := err != nil; lost != bug {
				t.Errorf("the block of the second point: lost %v, %v", lost, err)
			}
		})
	}
}
