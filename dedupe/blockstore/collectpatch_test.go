package blockstore_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/blockstore"
)

// increments makes points of one disk: each changes some of its blocks, hot ones or any, a
// little, so that most of what it stores are patches. It returns the points that are not
// purged, one in five, and the last one.
func increments(t testing.TB, s dedupe.Store, seed, kind uint64, points int) map[dedupe.Digest]bool {
	t.Helper()
	ctx := context.Background()
	r := rand.New(rand.NewPCG(seed, 21))
	disk := make([]uint64, 40)
	for i := range disk {
		disk[i] = uint64(i) + kind
	}
	want := make(map[dedupe.Digest]bool)
	var all []dedupe.Digest
	for n := range points {
		id, err := writeTree(ctx, s, fmt.Sprintf("increment %d", n), disk)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, id)
		for i := range disk {
			if r.IntN(2) == 0 {
				disk[i] += 1 << versionShift
			}
		}
	}
	for i, id := range all {
		if i == len(all)-1 || r.IntN(5) == 0 {
			want[id] = true
		} else if err := purge(ctx, s, id); err != nil {
			t.Fatal(err)
		}
	}
	return want
}

// accounts is what all entries of the index take, each record once and a patch by its
// share.
func accounts(s *blockstore.Store) (total int64, err error) {
	dump, err := s.DumpAccounts()
	for _, n := range dump {
		total += n
	}
	return total, err
}

// Whatever was purged of a history of increments: after a collection packs take at most
// 1.2 times what is live, which is the sum of the accounts of all entries, exactly; the
// points read back, also from an index made anew; and a second collection has nothing to do.
func TestCollectPatches(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		o    blockstore.Options
		kind uint64
	}{{"plain", patchOptions, hot}, {"encrypted", encrypted(patchOptions), hot}, {"mixed", patchOptions, 0}} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			for seed := range uint64(envInt(t, "SEEDS", 1)) {
				testCollectPatches(t, tt.o, seed, tt.kind)
			}
		})
	}
}

// The test above is of use: where bundles stay whole its history takes more.
func TestCollectPatchesMatters(t *testing.T) {
	t.Parallel()
	s := openVault(t, newVault(t, patchOptions), patchOptions.WithBug(bundlesWhole))
	increments(t, s, 0, hot, 60)
	if _, err := collectTrees(context.Background(), s, blockstore.CollectOptions{}, nil); err != nil {
		t.Fatal(err)
	}
	after, err := s.PackFileBytes()
	if err != nil {
		t.Fatal(err)
	}
	live, err := accounts(s)
	if err != nil {
		t.Fatal(err)
	}
	if float64(after) < 1.3*float64(live) {
		t.Errorf("%d bytes in packs for %d live ones with whole bundles", after, live)
	}
}

const bundlesWhole = "bundles stay whole"

func testCollectPatches(t *testing.T, o blockstore.Options, seed, kind uint64) {
	t.Helper()
	ctx := context.Background()
	dir := newVault(t, o)
	s, err := blockstore.Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	want := increments(t, s, seed, kind, 60)
	before, err := s.PackFileBytes()
	if err != nil {
		t.Fatal(err)
	}
	depths := s.PatchDepths()
	r, err := collectTrees(ctx, s, blockstore.CollectOptions{}, nil)
	if err != nil || len(r.Problems) > 0 {
		t.Fatalf("%v, %q", err, r.Problems)
	}
	after, err := s.PackFileBytes()
	if err != nil {
		t.Fatal(err)
	}
	live, err := accounts(s)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("seed %d: %d bytes, then %d of which %d live; blocks by depth %v, then %v; %+v", seed, before, after, live, depths, s.PatchDepths(), r)
	if float64(after) > 1.2*float64(live) {
		t.Errorf("seed %d: %d bytes in packs for %d live ones", seed, after, live)
	}
	if diff := before - after - r.FreedBytes; diff > 256<<10 || diff < -256<<10 {
		t.Errorf("seed %d: reported %d bytes freed, the files say %d", seed, r.FreedBytes, before-after)
	}
	check := func(when string) {
		t.Helper()
		if err := errors.Join(checkTrees(s, want), s.CheckIndex()); err != nil {
			t.Errorf("seed %d, %s: %v", seed, when, err)
		}
	}
	check("collected")
	again, err := collectTrees(ctx, s, blockstore.CollectOptions{DryRun: true}, nil)
	if err != nil || again.LiveBytes != live || again.DeadBlocks != 0 || again.FreedBytes > after/100 {
		t.Errorf("seed %d: a second collection, of %d live bytes: %+v, %v", seed, live, again, err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := blockstore.RebuildIndex(ctx, dir, o, nil); err != nil {
		t.Fatal(err)
	}
	if s, err = blockstore.Open(dir, o); err != nil {
		t.Fatal(err)
	}
	check("rebuilt")
	if _, err := collectTrees(ctx, s, blockstore.CollectOptions{}, nil); err != nil {
		t.Error(err)
	}
	check("rebuilt and collected")
	if live, err = accounts(s); err != nil {
		t.Fatal(err)
	}
	if after, err = s.PackFileBytes(); err != nil || float64(after) > 1.2*float64(live) {
		t.Errorf("seed %d, rebuilt: %d bytes in packs for %d live ones, %v", seed, after, live, err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// An error of any step of a collection that puts bundles together anew ends it or is
// reported, and harms nothing.
func TestCollectPatchFaults(t *testing.T) {
	t.Parallel()
	testCollectFaults(t, patchOptions, func(t testing.TB, s dedupe.Store) map[dedupe.Digest]bool { return increments(t, s, 4, hot, 16) })
}

// A patch that alone keeps its base is stored whole when that takes less, and its base
// goes; one of which several are over the base, or that is small beside it, stays.
func TestCollectStoresWhole(t *testing.T) {
	t.Parallel()
	s := openVault(t, newVault(t, patchOptions), patchOptions)
	ctx := context.Background()
	base, err := writeTree(ctx, s, "base", []uint64{1, 2, 3})
	if err != nil {
		t.Fatal(err)
	}
	last := map[uint64]uint64{} // of each block a version that is a patch of enough grains
	for block := uint64(1); block <= 3; block++ {
		for v := uint64(1); v < 6; v++ {
			seed := block + v<<versionShift
			if _, err := writeTree(ctx, s, fmt.Sprintf("block %d, version %d", block, v), []uint64{seed}); err != nil {
				t.Fatal(err)
			}
			if _, total, ok := s.PatchOf(blockSum(s, seed)); ok && total >= 3 {
				last[block] = seed
			}
		}
	}
	if len(last) == 0 {
		t.Fatal("no version of a block is a patch of three grains: the test is of no use")
	}
	keep := make(map[dedupe.Digest]bool)
	live, _, _, err := listed(ctx, s)
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range live {
		p, err := loadTree(ctx, s, id)
		if err != nil {
			t.Fatal(err)
		}
		if id != base && len(p.Seeds) == 1 && last[p.Seeds[0]%(1<<versionShift)] == p.Seeds[0] {
			keep[id] = true
		} else if err := purge(ctx, s, id); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := collectTrees(ctx, s, blockstore.CollectOptions{}, nil); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(checkTrees(s, keep), s.CheckIndex()); err != nil {
		t.Error(err)
	}
	for block, seed := range last {
		if _, _, ok := s.PatchOf(blockSum(s, seed)); ok {
			t.Errorf("block %d is still a patch", block)
		}
		if _, err := s.Get(ctx, dedupe.KindBlock, blockSum(s, block), nil); !errors.Is(err, dedupe.ErrNotFound) {
			t.Errorf("the base of block %d: %v", block, err)
		}
	}
}

// What a collection writes stands at every location before the packs that it was in go.
func TestCollectPatchesAtLocations(t *testing.T) {
	t.Parallel()
	dirs := []string{t.TempDir(), t.TempDir()}
	newVaultAt(t, patchOptions, dirs)
	o := patchOptions
	o.Locations = dirs[1:]
	s, err := blockstore.Open(dirs[0], o)
	if err != nil {
		t.Fatal(err)
	}
	want := increments(t, s, 7, hot, 30)
	if r, err := collectTrees(context.Background(), s, blockstore.CollectOptions{}, nil); err != nil || r.RewrittenPacks == 0 || len(r.Problems) > 0 {
		t.Errorf("%+v, %v", r, err)
	}
	if err := errors.Join(checkTrees(s, want), s.CheckIndex(), s.Close(), sameCopies(dirs)); err != nil {
		t.Error(err)
	}
	o = patchOptions // from the second location alone
	if err := os.RemoveAll(filepath.Join(dirs[0], "packs")); err != nil {
		t.Fatal(err)
	}
	o.Locations = dirs[1:]
	if s, err = blockstore.Open(dirs[0], o); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(checkTrees(s, want), s.Close()); err != nil {
		t.Error(err)
	}
}
