package blockstore_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"testing"
	"time"

	"github.com/keelblock/keelblock/blockdev/looptest"
	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/blockstore"
)

// reopen opens a vault after a crash, checks all of it and closes it.
func reopen(dir string, o blockstore.Options, want []dedupe.Digest) error {
	s, err := blockstore.Open(dir, o)
	if err != nil {
		return err
	}
	return errors.Join(checkStore(s, want), s.Close())
}

// checkRebuilt checks that an index made from the packs says what the old one says.
func checkRebuilt(dir string, o blockstore.Options) error {
	dump := func() (map[string]blockstore.IndexEntry, error) {
		s, err := blockstore.Open(dir, o)
		if err != nil {
			return nil, err
		}
		d, err := s.DumpIndex()
		return d, errors.Join(err, s.Close())
	}
	old, err := dump()
	if err != nil {
		return err
	}
	if err := blockstore.RebuildIndex(context.Background(), dir, o, nil); err != nil {
		return err
	}
	rebuilt, err := dump()
	if err != nil {
		return err
	}
	for k := range old {
		if _, ok := rebuilt[k]; !ok {
			return fmt.Errorf("key %x is not in the rebuilt index", k)
		}
	}
	for k := range rebuilt {
		if _, ok := old[k]; !ok {
			return fmt.Errorf("key %x is only in the rebuilt index", k)
		}
	}
	return nil
}

// loopVault is a vault on a file system of its own.
type loopVault struct {
	*said
	fs  *looptest.FS
	dir string
	o   blockstore.Options
}

func newLoopVault(t testing.TB, o blockstore.Options) *loopVault {
	t.Helper()
	fs := looptest.New(t, "ext4", 400<<20)
	v := &loopVault{fs: fs, dir: filepath.Join(fs.Dir, "vault"), o: o}
	v.create(t)
	return v
}

func (v *loopVault) create(t testing.TB) {
	t.Helper()
	v.said = newSaid()
	if err := blockstore.Create(v.dir, v.o); err != nil {
		t.Fatalf("create: %v", err)
	}
}

// life is one of a worker's that ends in a power cut, and the start after it.
func (v *loopVault) life(t testing.TB, w worker) (points int) {
	t.Helper()
	w.Dirs, w.Keys = []string{v.dir}, v.o.Keys != nil
	points = v.live(t, w, nil)
	v.fs.Remount()
	return points
}

// Every committed point, and all below it, survives a power cut at any system call.
func TestPowerCut(t *testing.T) { eachDomain(t, testPowerCut) }

func testPowerCut(t *testing.T, crashOptions blockstore.Options) {
	t.Parallel()
	v := newLoopVault(t, crashOptions)
	crashLoop(t, 6, func(r *rand.Rand, n int64) (int, error) {
		if n%10 == 9 { // before the file system is full of aborted batches
			v.fs.Format()
			v.create(t)
		}
		points := v.life(t, worker{Job: "write", Seed: r.Uint64N(1 << 32), Cut: 1 + r.Int64N(1500)})
		if err := reopen(v.dir, crashOptions, v.committed()); err != nil {
			return 0, err
		}
		if n%5 == 4 {
			if err := checkRebuilt(v.dir, crashOptions); err != nil {
				return 0, fmt.Errorf("rebuild index: %w", err)
			}
			return points, reopen(v.dir, crashOptions, v.committed())
		}
		return points, nil
	})
}

// Every committed point survives a kill at any moment.
func TestKill(t *testing.T) { eachDomain(t, testKill) }

func testKill(t *testing.T, crashOptions blockstore.Options) {
	t.Parallel()
	dir, c := newVault(t, crashOptions), newSaid()
	crashLoop(t, 5, func(r *rand.Rand, n int64) (int, error) {
		if n%10 == 9 {
			dir, c = newVault(t, crashOptions), newSaid()
		}
		w := worker{Job: "write", Dirs: []string{dir}, Keys: crashOptions.Keys != nil, Seed: r.Uint64N(1 << 32)}
		points := c.live(t, w, after(upTo(r, 500*time.Millisecond)))
		if n%3 == 2 { // and by a reader that may not change anything
			o := crashOptions
			o.ReadOnly = true
			if err := reopen(dir, o, c.committed()); err != nil {
				return 0, fmt.Errorf("read-only after a kill: %w", err)
			}
		}
		return points, reopen(dir, crashOptions, c.committed())
	})
}

// round is what both loops of a collection check after each crash.
func (c *said) round(dir string, o blockstore.Options, n int64) error {
	if err := c.check(dir, o, n%2 == 1); err != nil || n%3 != 2 {
		return err
	}
	return c.checkRebuilt(dir, o)
}

// Every point that is not purged survives a power cut at any system call of a
// collection, whole, and no purged one comes back.
func TestCollectPowerCut(t *testing.T) {
	t.Parallel()
	v := newLoopVault(t, crashOptions)
	crashLoop(t, 6, func(r *rand.Rand, n int64) (int, error) {
		if n%20 == 19 {
			v.fs.Format()
			v.create(t)
		}
		points := v.life(t, worker{Job: "collect", Seed: r.Uint64N(1 << 32), Cut: 1 + r.Int64N(120), CutIn: "collecting"})
		return points, v.round(v.dir, v.o, n)
	})
}

// The same with a kill at any moment.
func TestCollectKill(t *testing.T) {
	t.Parallel()
	dir, c := newVault(t, crashOptions), newSaid()
	crashLoop(t, 4, func(r *rand.Rand, n int64) (int, error) {
		if n%20 == 19 {
			dir, c = newVault(t, crashOptions), newSaid()
		}
		w := worker{Job: "collect", Dirs: []string{dir}, Seed: r.Uint64N(1 << 32)}
		points := c.live(t, w, after(upTo(r, 2*time.Second)))
		return points, c.round(dir, crashOptions, n)
	})
}
