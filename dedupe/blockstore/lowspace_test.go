package blockstore_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/keelblock/keelblock/blockdev/looptest"
	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/blockstore"
)

// Below the reserve nothing new is stored, but points are still purged and their space is
// freed, also when no metadata pack is open, as after a start.
func TestPurgeBelowTheReserve(t *testing.T) {
	t.Parallel()
	dir := newVault(t, crashOptions)
	s := mustOpen(t, dir, crashOptions)
	want := history(t, s, 4)
	mustClose(t, s)
	low := crashOptions
	low.ReserveBytes = 1 << 60 // whatever is free, it is less
	s = openVault(t, dir, low)
	if _, err := tryPoint(s, "new", []uint64{1 << 40}); !errors.Is(err, dedupe.ErrNoSpace) {
		t.Errorf("a new point below the reserve: %v", err)
	}
	before, err := s.PackFileBytes()
	if err != nil {
		t.Fatal(err)
	}
	gone := purgeOne(t, s, want)
	if _, err := tryPoint(s, "new", []uint64{1 << 40}); !errors.Is(err, dedupe.ErrNoSpace) {
		t.Errorf("a new point after a note: %v", err)
	}
	if _, err := collectTrees(t.Context(), s, blockstore.CollectOptions{}, nil); err != nil {
		t.Fatal(err)
	}
	after, err := s.PackFileBytes()
	if err != nil || after >= before {
		t.Errorf("%d bytes in packs, %d before: %v", after, before, err)
	}
	if _, err := s.Get(t.Context(), dedupe.KindManifest, gone, nil); !errors.Is(err, dedupe.ErrNotFound) {
		t.Errorf("the purged point: %v", err)
	}
	if err := errors.Join(checkTrees(s, want), s.CheckIndex()); err != nil {
		t.Error(err)
	}
}

// purgeOne purges a point of want.
func purgeOne(t testing.TB, s dedupe.Store, want map[dedupe.Digest]bool) dedupe.Digest {
	t.Helper()
	var ids []dedupe.Digest
	for id := range want {
		ids = append(ids, id)
	}
	slices.SortFunc(ids, func(a, b dedupe.Digest) int { return slices.Compare(a[:], b[:]) })
	if err := purge(t.Context(), s, ids[0]); err != nil {
		t.Fatal(err)
	}
	delete(want, ids[0])
	return ids[0]
}

// On a file system without a free byte the Store's user gives up what it kept for this
// time, a point is purged, a collection frees its space, and storing goes on: without a
// restart. Without something to give up the error says what is missing, and nothing is lost.
func TestFullDiskIsFreed(t *testing.T) {
	t.Parallel()
	fs := looptest.New(t, "ext4", 300<<20)
	dir, ballast := filepath.Join(fs.Dir, "vault"), filepath.Join(fs.Dir, "ballast")
	const ballastBytes = 40 << 20
	keep := func() {
		if err := os.WriteFile(ballast, make([]byte, ballastBytes), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	o := crashOptions
	asked := int64(0)
	o.Relieve = func(bytes int64) {
		asked = max(asked, bytes)
		if err := os.Remove(ballast); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Error(err)
		}
	}
	if err := blockstore.Create(dir, o); err != nil {
		t.Fatal(err)
	}
	s := openVault(t, dir, o)
	want := history(t, s, 7)
	for i := range 3 {
		keep()
		filler := filepath.Join(fs.Dir, fmt.Sprint("filler", i))
		if i == 1 {
			purgeOne(t, s, want)
		}
		fill(t, filler)
		if _, err := tryPoint(s, "new", []uint64{1 << 40}); !errors.Is(err, dedupe.ErrNoSpace) {
			t.Fatalf("a new point on a full disk: %v", err)
		}
		if _, err := os.Stat(ballast); err != nil {
			t.Fatalf("what is kept for deletions was given up for a new point: %v", err)
		}
		switch i {
		case 0: // a purge, and then a collection
			purgeOne(t, s, want)
		case 1: // a collection alone, of what was purged before
		case 2: // nothing is left to give up
			if err := os.Remove(ballast); err != nil {
				t.Fatal(err)
			}
			fill(t, filler+"b")
			if err := purge(t.Context(), s, purgeable(want)); !errors.Is(err, dedupe.ErrNoSpace) {
				t.Fatalf("a purge without a byte: %v", err)
			}
			if _, err := collectTrees(t.Context(), s, blockstore.CollectOptions{}, nil); err != nil && !errors.Is(err, dedupe.ErrNoSpace) {
				t.Fatalf("a collection without a byte: %v", err)
			}
			if err := checkTrees(s, want); err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(os.Remove(filler), os.Remove(filler+"b")); err != nil {
				t.Fatal(err)
			}
			purgeOne(t, s, want)
		}
		r, err := collectTrees(t.Context(), s, blockstore.CollectOptions{Freeing: true}, nil)
		if err != nil || r.NoSpace {
			t.Fatalf("round %d: collection: %v, %v", i, err, r.Problems)
		}
		if i < 2 && asked == 0 {
			t.Errorf("round %d: nobody asked for room", i)
		}
		asked = 0
		if err := os.Remove(filler); err != nil && i < 2 {
			t.Fatal(err)
		}
		id, err := writeTree(t.Context(), s, fmt.Sprint("after round ", i), []uint64{uint64(i) << 30})
		if err != nil {
			t.Fatalf("round %d: with space: %v", i, err)
		}
		want[id] = true
		if err := errors.Join(checkTrees(s, want), s.CheckIndex()); err != nil {
			t.Errorf("round %d: %v", i, err)
		}
	}
}

// purgeable is any point of want.
func purgeable(want map[dedupe.Digest]bool) (id dedupe.Digest) {
	for id = range want {
		break
	}
	return id
}

// From any call of a commit on every system call fails, as on a disk that stays full. What
// was committed before is there, and as soon as calls succeed again the same Store goes on:
// also when the commit's fate was not known meanwhile. What failed does not come back later.
func TestFullForAWhile(t *testing.T) {
	t.Parallel()
	for _, fault := range []error{unix.ENOSPC, unix.EIO} {
		for _, what := range []string{"point", "note"} {
			t.Run(fmt.Sprint(what, " ", fault), func(t *testing.T) {
				t.Parallel()
				var from, calls atomic.Int64
				o := crashOptions.WithHook(func(string, string) error {
					if n := calls.Add(1); from.Load() > 0 && n >= from.Load() {
						return fault
					}
					return nil
				})
				dir := newVault(t, crashOptions)
				s := openVault(t, dir, o)
				r := rand.New(rand.NewPCG(8, 8))
				var points []dedupe.Digest
				put := func(n int64) {
					id, err := tryPoint(s, fmt.Sprint("before ", n), seeds(r, 20, 1<<30))
					if err != nil {
						t.Fatalf("from call %d on: with room again: %v", n, err)
					}
					points = append(points, id)
				}
				failed, notes := 0, uint64(0)
				for n := int64(1); ; n++ {
					put(n)
					notes = s.LastSequence()
					calls.Store(0)
					from.Store(n)
					var err error
					if what == "note" {
						err = purge(t.Context(), s, points[0])
					} else {
						_, err = tryPoint(s, fmt.Sprint("fails ", n), seeds(r, 20, 1<<30))
					}
					if err == nil {
						from.Store(0)
						break
					}
					failed++
					if !errors.Is(err, fault) || fault == unix.ENOSPC && !errors.Is(err, dedupe.ErrNoSpace) {
						t.Errorf("from call %d on: %v", n, err)
					}
					if _, err := tryPoint(s, "full", seeds(r, 5, 1<<30)); !errors.Is(err, fault) {
						t.Errorf("from call %d on: another one: %v", n, err)
					}
					for _, id := range points {
						if err := checkPoint(s, id); err != nil {
							t.Errorf("from call %d on: %v", n, err)
						}
					}
					from.Store(0)
					if got := s.LastSequence(); got != notes {
						t.Errorf("from call %d on: note %d is published, the last was %d", n, got, notes)
					}
				}
				if least := map[string]int{"point": 8, "note": 4}[what]; failed < least {
					t.Errorf("only %d calls failed", failed)
				}
				mustClose(t, s)
				for _, after := range []func() error{
					func() error { return nil },
					func() error { markUnclean(t, dir); return nil },
					func() error { return blockstore.RebuildIndex(t.Context(), dir, crashOptions, nil) },
				} {
					if err := after(); err != nil {
						t.Fatal(err)
					}
					s := mustOpen(t, dir, crashOptions)
					n := 0
					if err := s.Manifests(t.Context(), func(dedupe.Digest) bool { n++; return true }); err != nil {
						t.Fatal(err)
					}
					for _, id := range points {
						if err := checkPoint(s, id); err != nil {
							t.Error(err)
						}
					}
					// The last one, before no call failed, came through.
					if want := len(points) + map[string]int{"point": 1}[what]; n != want {
						t.Errorf("%d points, want %d", n, want)
					}
					mustClose(t, s)
				}
			})
		}
	}
}
