package blockstore_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keelblock/keelblock/blockdev/looptest"
	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/blockstore"
)

// A write is acknowledged when all locations hold it, and whatever a kill or a power cut
// at any system call leaves behind: after the next start all copies are equal, byte by
// byte, and every committed point is whole. From any location alone the index can be
// built, and shows all of them.
func TestDemand77CopiesAreEqualAfterAnyStop(t *testing.T) {
	t.Parallel()
	fs := looptest.New(t, "ext4", 800<<20)
	var dirs []string
	var c *said
	crashLoop(t, 6, func(r *rand.Rand, n int64) (int, error) {
		if n%4 == 0 {
			fs.Format()
			dirs, c = folders(t, fs.Dir, 2+int(n/4)%2), newSaid()
			newVaultAt(t, crashOptions, dirs)
		}
		w := worker{Job: "write", Dirs: dirs, Seed: r.Uint64N(1 << 32), Cut: 1 + r.Int64N(2500)}
		var opened func(kill func())
		if n%3 == 2 {
			w.Cut, opened = 0, after(upTo(r, 500*time.Millisecond))
		}
		points := c.live(t, w, opened)
		fs.Remount()
		s, err := blockstore.Open(dirs[0], crashOptions)
		if err != nil {
			return 0, err
		}
		got := states(s)
		if err := errors.Join(checkStore(s, c.committed()), s.Close()); err != nil {
			return 0, err
		}
		if strings.Contains(got, "out") {
			return 0, fmt.Errorf("after a stop of all locations: %s", got)
		}
		if err := sameCopies(dirs); err != nil {
			return 0, err
		}
		return points, fromOneLocation(dirs[r.IntN(len(dirs))], c.committed())
	})
}

// fromOneLocation checks that a location by itself has every point.
func fromOneLocation(dir string, want []dedupe.Digest) error {
	return oneLocation(dir, crashOptions, func(s *blockstore.Store) error { return checkStore(s, want) })
}

// oneLocation opens a vault with one of its locations alone, without changing anything,
// and checks it.
func oneLocation(dir string, o blockstore.Options, check func(s *blockstore.Store) error) error {
	o.ReadOnly, o.Locations = true, []string{}
	s, err := blockstore.Open(dir, o)
	if err == nil {
		err = errors.Join(check(s), s.Close())
	}
	if err != nil {
		return fmt.Errorf("%s alone: %w", dir, err)
	}
	return nil
}

// The power of one location's file system is cut in the midst of an ingest that goes on
// with the other; back again, with what its disk kept, it is repaired.
func TestPowerCutOfOneLocation(t *testing.T) {
	t.Parallel()
	crashLoop(t, 3, func(r *rand.Rand, n int64) (int, error) {
		fs := looptest.New(t, "ext4", 256<<20)
		defer fs.Close()
		dirs := []string{filepath.Join(t.TempDir(), "first"), filepath.Join(fs.Dir, "second")}
		cut, calls, once := 1+r.Int64N(400), atomic.Int64{}, sync.Once{}
		calls.Store(-1 << 40)
		o := crashOptions.WithHook(func(string, string) error {
			if calls.Add(1) >= cut {
				once.Do(fs.CutPower)
			}
			return nil
		})
		newVaultAt(t, o, dirs)
		s, err := blockstore.Open(dirs[0], o)
		if err != nil {
			return 0, err
		}
		calls.Store(0)
		var points []dedupe.Digest
		for i := 0; calls.Load() < cut+100; i++ {
			id, err := tryPoint(s, fmt.Sprint(i), seeds(r, 1+r.IntN(200), 1<<30))
			if err != nil {
				return 0, errors.Join(fmt.Errorf("commit %d: %w", i, err), s.Close())
			}
			points = append(points, id)
		}
		if got := states(s); got != "in out" {
			return 0, errors.Join(fmt.Errorf("locations are %s", got), s.Close())
		}
		if err := errors.Join(checkStore(s, points), s.Close()); err != nil {
			return 0, err
		}
		fs.Remount()
		if s, err = blockstore.Open(dirs[0], crashOptions); err != nil {
			return 0, err
		}
		if got := states(s); got != "in out" {
			return 0, errors.Join(fmt.Errorf("after it came back locations are %s", got), s.Close())
		}
		_, err = s.RepairLocations(t.Context(), nil)
		if got := states(s); err == nil && got != "in in" {
			err = fmt.Errorf("after its repair locations are %s", got)
		}
		if err := errors.Join(err, checkStore(s, points), s.Close(), sameCopies(dirs)); err != nil {
			return 0, err
		}
		return len(points), fromOneLocation(dirs[1], points)
	})
}

// A kill while a collection removes packs, at one location and not yet at the other:
// after the next start, or with an index made anew, both have the same ones.
func TestCopiesAreEqualAfterAKilledCollection(t *testing.T) {
	t.Parallel()
	root, killed := t.TempDir(), filepath.Join(t.TempDir(), "killed")
	dirs := folders(t, root, 2)
	newVaultAt(t, crashOptions, dirs)
	o := crashOptions.WithHook(func(op, name string) error {
		if _, err := os.Stat(killed); op == "remove" && strings.HasPrefix(name, dirs[0]) && err != nil {
			copyTree(t, root, killed)
		}
		return nil
	})
	s := openVault(t, dirs[0], o)
	want := history(t, s, 12)
	if _, err := collectTrees(t.Context(), s, blockstore.CollectOptions{}, nil); err != nil {
		t.Fatal(err)
	}
	for _, rebuild := range []bool{false, true} {
		dirs := folders(t, filepath.Join(t.TempDir(), "again"), 2)
		copyTree(t, killed, filepath.Dir(dirs[0]))
		if err := sameCopies(dirs); err == nil {
			t.Fatal("the kill came when all packs were removed, or none")
		}
		o := crashOptions
		o.Locations = dirs[1:]
		if rebuild {
			if err := blockstore.RebuildIndex(t.Context(), dirs[0], o, nil); err != nil {
				t.Fatal(err)
			}
		}
		s := mustOpen(t, dirs[0], o)
		wantStates(t, s, "in in")
		if err := checkTrees(s, want); err != nil {
			t.Errorf("rebuilt %v: %v", rebuild, err)
		}
		mustClose(t, s)
		if err := sameCopies(dirs); err != nil {
			t.Errorf("rebuilt %v: %v", rebuild, err)
		}
	}
}
