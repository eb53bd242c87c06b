package blockstore_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/keelblock/keelblock/blockdev/looptest"
	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/dedupetest"
)

// failing is a hook that fails every call below a folder while it is set.
type failing struct {
	mu    sync.Mutex
	under map[string]error
	calls atomic.Int64
}

func (f *failing) set(dir string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.under == nil {
		f.under = make(map[string]error)
	}
	f.under[dir] = err
}

func (f *failing) hook(_, name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for dir, err := range f.under {
		if err != nil && strings.HasPrefix(name, dir) {
			f.calls.Add(1)
			return err
		}
	}
	return nil
}

// A location that fails is out, durably, and writes go on with the rest; two of three
// may fail, the last one not. A repair makes all copies equal again.
func TestLocationFails(t *testing.T) {
	t.Parallel()
	for _, fault := range []error{unix.EIO, unix.ENOSPC, unix.EROFS} {
		t.Run(fault.Error(), func(t *testing.T) {
			t.Parallel()
			dirs := folders(t, t.TempDir(), 3)
			var f failing
			o := crashOptions.WithHook(f.hook)
			newVaultAt(t, o, dirs)
			s := mustOpen(t, dirs[0], o)
			r := rand.New(rand.NewPCG(1, 1))
			points := []dedupe.Digest{writePoint(t, s, "whole", seeds(r, 300, 5000))}
			// In the midst of a batch, with a pack half written.
			b := dedupetest.Begin(t, s)
			if _, err := putPoint(t.Context(), s, b, "half", seeds(r, 50, 5000)); err != nil {
				t.Fatal(err)
			}
			f.set(dirs[1], fault)
			p, err := putPoint(t.Context(), s, b, "one lost", seeds(r, 300, 5000))
			if err != nil {
				t.Fatalf("put with one location lost: %v", err)
			}
			id, err := commitPoint(t.Context(), b, p)
			if err != nil {
				t.Fatalf("commit with one location lost: %v", err)
			}
			points = append(points, id)
			wantStates(t, s, "in out in")
			if st := s.Locations()[1]; st.Reason == "" || st.LastCommit != 1 || st.Since.IsZero() {
				t.Errorf("the location that is out: %+v, want a reason and the last commit 1", st)
			}
			f.set(dirs[2], fault)
			points = append(points, writePoint(t, s, "two lost", seeds(r, 300, 5000)))
			wantStates(t, s, "in out out")
			if err := checkStore(s, points); err != nil {
				t.Error(err)
			}
			f.set(filepath.Join(dirs[0], "packs"), fault)
			if _, err := tryPoint(s, "all lost", seeds(r, 50, 1<<40)); !errors.Is(err, fault) {
				t.Errorf("commit with all locations lost: %v, want %v", err, fault)
			}
			f.set(filepath.Join(dirs[0], "packs"), nil)
			wantStates(t, s, "in out out")
			_ = s.Close() // after a failed commit it may be unclean
			// The faults have gone, but what is out stays out until it is repaired.
			f.set(dirs[1], nil)
			f.set(dirs[2], nil)
			s = mustOpen(t, dirs[0], o)
			wantStates(t, s, "in out out")
			points = append(points, writePoint(t, s, "after", seeds(r, 300, 5000)))
			repair(t, s)
			wantStates(t, s, "in in in")
			points = append(points, writePoint(t, s, "repaired", seeds(r, 300, 5000)))
			// The packs of the first location, beside the index, may fail as well.
			f.set(filepath.Join(dirs[0], "packs"), fault)
			points = append(points, writePoint(t, s, "without the first", seeds(r, 300, 5000)))
			wantStates(t, s, "out in in")
			f.set(filepath.Join(dirs[0], "packs"), nil)
			_ = s.Close()
			s = mustOpen(t, dirs[0], o)
			wantStates(t, s, "out in in")
			if err := checkStore(s, points); err != nil {
				t.Error(err)
			}
			repair(t, s)
			wantStates(t, s, "in in in")
			if err := checkStore(s, points); err != nil {
				t.Error(err)
			}
			mustClose(t, s)
			if err := sameCopies(dirs); err != nil {
				t.Error(err)
			}
			for _, dir := range dirs {
				if err := fromOneLocation(dir, points); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// A location that fails in the midst of its repair is out again, and the next repair
// completes it; ingest goes on all the time.
func TestRepairIsInterrupted(t *testing.T) {
	t.Parallel()
	dirs := folders(t, t.TempDir(), 2)
	var f failing
	var left atomic.Int64
	left.Store(1 << 40)
	o := crashOptions.WithHook(func(op, name string) error {
		if strings.HasPrefix(name, dirs[1]) && left.Add(-1) < 0 {
			return unix.EIO
		}
		return f.hook(op, name)
	})
	newVaultAt(t, o, dirs)
	s := mustOpen(t, dirs[0], o)
	r := rand.New(rand.NewPCG(2, 2))
	f.set(dirs[1], unix.EIO)
	var points []dedupe.Digest
	for i := range 4 {
		points = append(points, writePoint(t, s, fmt.Sprint(i), seeds(r, 300, 5000)))
	}
	wantStates(t, s, "in out")
	f.set(dirs[1], nil)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() { // ingest meanwhile
		for i := range 60 {
			select {
			case <-stop:
				return
			default:
			}
			id, err := tryPoint(s, fmt.Sprintf("meanwhile %d", i), seeds(rand.New(rand.NewPCG(3, uint64(i))), 60, 1<<30))
			if err != nil {
				t.Errorf("ingest during a repair: %v", err)
				return
			}
			points = append(points, id)
		}
	})
	// Each round a larger number of calls goes well, until all do.
	for n := int64(3); ; n += n/2 + 1 {
		left.Store(n)
		_, err := s.RepairLocations(t.Context(), nil)
		left.Store(1 << 40)
		got := states(s)
		if err == nil && got == "in in" {
			t.Logf("repaired with %d calls", n)
			break
		}
		if got != "in out" {
			t.Fatalf("a repair that failed with %v leaves %q", err, got)
		}
		if n > 1<<20 {
			t.Fatalf("the repair does not end: %v", err)
		}
	}
	close(stop)
	wg.Wait()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	f.set(dirs[1], unix.EIO)
	points = append(points, writePoint(t, s, "out again", seeds(r, 50, 1<<30)))
	f.set(dirs[1], nil)
	if _, err := s.RepairLocations(ctx, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("a repair that was canceled: %v", err)
	}
	wantStates(t, s, "in out")
	repair(t, s)
	if err := checkStore(s, points); err != nil {
		t.Error(err)
	}
	mustClose(t, s)
	if err := sameCopies(dirs); err != nil {
		t.Error(err)
	}
}

// A pack that is removed at one location while it is written takes that out, and comes
// back by a repair.
func TestOpenPackIsRemoved(t *testing.T) {
	t.Parallel()
	dirs := folders(t, t.TempDir(), 2)
	newVaultAt(t, crashOptions, dirs)
	s := mustOpen(t, dirs[0], crashOptions)
	points := []dedupe.Digest{writePoint(t, s, "one", []uint64{1, 2, 3})}
	for round, commit := range []bool{true, false} {
		for _, name := range glob(t, dirs[1], "packs/*.pack") {
			if err := os.Remove(name); err != nil {
				t.Fatal(err)
			}
		}
		if commit {
			points = append(points, writePoint(t, s, "two", []uint64{4, 5}))
		} else if _, err := s.CheckLocations(); err != nil {
			t.Fatal(err)
		}
		wantStates(t, s, "in out")
		repair(t, s)
		wantStates(t, s, "in in")
		if err := errors.Join(checkStore(s, points), sameCopies(dirs)); err != nil {
			t.Errorf("round %d: %v", round, err)
		}
	}
	mustClose(t, s)
	if err := sameCopies(dirs); err != nil {
		t.Error(err)
	}
}

// A location that is full is out, with that reason; with space it is repaired.
func TestFullLocation(t *testing.T) {
	t.Parallel()
	fs := looptest.New(t, "ext4", 400<<20)
	dirs := []string{filepath.Join(t.TempDir(), "first"), filepath.Join(fs.Dir, "second")}
	newVaultAt(t, crashOptions, dirs)
	s := mustOpen(t, dirs[0], crashOptions)
	r := rand.New(rand.NewPCG(1, 1))
	points := []dedupe.Digest{writePoint(t, s, "one", seeds(r, 200, 1<<30))}
	filler := filepath.Join(fs.Dir, "filler")
	fill(t, filler)
	for i := range 3 {
		points = append(points, writePoint(t, s, fmt.Sprint(i), seeds(r, 200, 1<<30)))
	}
	wantStates(t, s, "in out")
	if st := s.Locations()[1]; !strings.HasPrefix(st.Reason, "full: ") {
		t.Errorf("reason %q, want that it is full", st.Reason)
	}
	if repairable, err := s.CheckLocations(); repairable || err != nil {
		t.Errorf("a full location is to be repaired: %v", err)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	if repairable, err := s.CheckLocations(); !repairable || err != nil {
		t.Errorf("a location with space is not to be repaired: %+v, %v", s.Locations(), err)
	}
	repair(t, s)
	wantStates(t, s, "in in")
	if err := checkStore(s, points); err != nil {
		t.Error(err)
	}
	mustClose(t, s)
	if err := sameCopies(dirs); err != nil {
		t.Error(err)
	}
}
