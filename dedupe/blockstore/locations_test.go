package blockstore_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/keelblock/keelblock/blockdev/looptest"
	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/blockstore"
	"github.com/keelblock/keelblock/dedupe/dedupetest"
	"github.com/keelblock/keelblock/dedupe/packdir"
)

// folders are n new folders for the locations of a vault below parent.
func folders(t testing.TB, parent string, n int) []string {
	t.Helper()
	list := make([]string, n)
	for i := range list {
		list[i] = filepath.Join(parent, fmt.Sprintf("location%d", i+1))
	}
	return list
}

// newVaultAt makes a vault with its copies in the folders given.
func newVaultAt(t testing.TB, o blockstore.Options, dirs []string) {
	t.Helper()
	o.Locations = dirs[1:]
	if err := blockstore.Create(dirs[0], o); err != nil {
		t.Fatalf("create: %v", err)
	}
}

// sameCopies returns an error unless every location has the same packs, byte by byte,
// and at least one.
func sameCopies(dirs []string) error {
	names := func(dir string) ([]string, error) {
		entries, err := os.ReadDir(filepath.Join(dir, "packs"))
		var list []string
		for _, e := range entries {
			list = append(list, e.Name())
		}
		return list, err
	}
	want, err := names(dirs[0])
	if err != nil {
		return err
	}
	for _, dir := range dirs[1:] {
		got, err := names(dir)
		if err != nil {
			return err
		}
		if !slices.Equal(got, want) {
			return fmt.Errorf("%s has packs %q, %s has %q", dir, got, dirs[0], want)
		}
		for _, name := range want {
			a, err := os.ReadFile(filepath.Join(dirs[0], "packs", name))
			if err != nil {
				return err
			}
			b, err := os.ReadFile(filepath.Join(dir, "packs", name))
			if err != nil {
				return err
			}
			if !bytes.Equal(a, b) {
				return fmt.Errorf("%s differs between %s (%d bytes) and %s (%d bytes)", name, dirs[0], len(a), dir, len(b))
			}
		}
	}
	return nil
}

// states are the states of all locations in one string: "in in out".
func states(s *blockstore.Store) string {
	var list []string
	for _, st := range s.Locations() {
		list = append(list, st.State)
	}
	return strings.Join(list, " ")
}

func wantStates(t testing.TB, s *blockstore.Store, want string) {
	t.Helper()
	if got := states(s); got != want {
		t.Fatalf("locations are %q, want %q: %+v", got, want, s.Locations())
	}
}

func repair(t testing.TB, s *blockstore.Store) {
	t.Helper()
	if _, err := s.RepairLocations(context.Background(), nil); err != nil {
		t.Fatalf("repair: %v", err)
	}
}

// mustClose closes a store.
func mustClose(t testing.TB, s *blockstore.Store) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatalf("close: %v", err)
	}
}

// mustOpen opens a vault; the caller closes it.
func mustOpen(t testing.TB, dir string, o blockstore.Options) *blockstore.Store {
	t.Helper()
	s, err := blockstore.Open(dir, o)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	return s
}

func TestConformanceOverLocations(t *testing.T) {
	t.Parallel()
	for n := 2; n <= packdir.MaxLocations; n++ {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			t.Parallel()
			dedupetest.Run(t, func(t *testing.T) dedupe.Store {
				dirs := folders(t, t.TempDir(), n)
				newVaultAt(t, crashOptions, dirs)
				s := openVault(t, dirs[0], crashOptions)
				t.Cleanup(func() { // before the store is closed
					wantStates(t, s, strings.TrimSpace(strings.Repeat("in ", n)))
				})
				return s
			})
		})
	}
}

// A write is acknowledged when all locations hold it, and whatever a kill or a power cut
// at any system call leaves behind: after the next start all copies are equal, byte by
// byte, and every committed point is whole. From any location alone the index can be
// built, and shows all of them.
func TestDemand77CopiesAreEqualAfterAnyStop(t *testing.T) {
	t.Parallel()
	l := newLoopFS(t, 800<<20)
	var dirs []string
	var committed []dedupe.Digest
	fresh := func(n int) {
		committed = nil
		for _, dir := range dirs {
			if err := os.RemoveAll(dir); err != nil {
				t.Fatal(err)
			}
		}
		dirs = folders(t, l.dir, n)
		newVaultAt(t, crashOptions, dirs)
	}
	crashLoop(t, 6, func(r *rand.Rand, n int64) (int, error) {
		if n%4 == 0 {
			fresh(2 + int(n/4)%2)
		}
		cut := 1 + r.Int64N(2500)
		var stop func(kill func())
		if n%3 == 2 { // a kill
			wait := time.Duration(r.Int64N(int64(500 * time.Millisecond)))
			cut, stop = 0, func(kill func()) { time.Sleep(wait); kill() }
		}
		run := runCrashWriter(t, dirs[0], false, r.Uint64N(1<<32), cut, stop)
		committed = append(committed, run.committed...)
		l.umount(t)
		l.mount(t)
		s, err := blockstore.Open(dirs[0], crashOptions)
		if err != nil {
			return 0, err
		}
		got := states(s)
		if err := errors.Join(checkStore(s, committed), s.Close()); err != nil {
			return 0, err
		}
		if strings.Contains(got, "out") {
			return 0, fmt.Errorf("after a stop of all locations: %s", got)
		}
		if err := sameCopies(dirs); err != nil {
			return 0, err
		}
		return len(run.committed), fromOneLocation(dirs[r.IntN(len(dirs))], committed)
	})
}

// fromOneLocation checks that a location by itself has every point. It changes nothing.
func fromOneLocation(dir string, want []dedupe.Digest) error {
	o := crashOptions
	o.ReadOnly, o.Locations = true, []string{}
	s, err := blockstore.Open(dir, o)
	if err != nil {
		return fmt.Errorf("%s alone: %w", dir, err)
	}
	if err := errors.Join(checkStore(s, want), s.Close()); err != nil {
		return fmt.Errorf("%s alone: %w", dir, err)
	}
	return nil
}

// One copy of a pack is damaged, cut, or removed, at any location: everything reads, and
// the copy returns by itself.
func TestDemand37ACopyReturns(t *testing.T) {
	t.Parallel()
	damages := map[string]func(t *testing.T, path string){
		"removed": func(t *testing.T, path string) {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		},
		"cut": func(t *testing.T, path string) {
			if err := os.Truncate(path, 5000); err != nil {
				t.Fatal(err)
			}
		},
		"a bit of a record": func(t *testing.T, path string) { flip(t, path, 96+192+50) },
		"the header":        func(t *testing.T, path string) { flip(t, path, 20) },
		"the footer": func(t *testing.T, path string) {
			st, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			flip(t, path, st.Size()-100)
		},
	}
	for name, damage := range damages {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for at := range 3 {
				dirs := folders(t, t.TempDir(), 3)
				newVaultAt(t, crashOptions, dirs)
				s := mustOpen(t, dirs[0], crashOptions)
				r := rand.New(rand.NewPCG(1, uint64(at)))
				points := []dedupe.Digest{writePoint(t, s, "one", seeds(r, 300, 1000)), writePoint(t, s, "two", seeds(r, 300, 1000))}
				mustClose(t, s)
				for _, path := range glob(t, dirs[at], "packs/*.pack") {
					damage(t, path)
				}
				s = mustOpen(t, dirs[0], crashOptions)
				if err := checkStore(s, points); err != nil {
					t.Errorf("location %d: %v", at+1, err)
				}
				if n := s.Stats().CorruptBlocks; n != 0 {
					t.Errorf("location %d: %d reads count as corrupt", at+1, n)
				}
				// Readers do not look at the other copies, at footers or at headers.
				rep, err := s.VerifyCopies(t.Context(), nil)
				if err != nil || len(rep.Lost)+len(rep.Problems) != 0 || rep.Packs == 0 {
					t.Errorf("location %d: verify copies: %+v, %v", at+1, rep, err)
				}
				if err := sameCopies(dirs); err != nil {
					t.Errorf("location %d: %v", at+1, err)
				}
				if rep, err := s.VerifyCopies(t.Context(), nil); err != nil || rep.Replaced != 0 {
					t.Errorf("location %d: a second verification replaced %d copies, %v", at+1, rep.Replaced, err)
				}
				wantStates(t, s, "in in in")
				mustClose(t, s)
			}
		})
	}
}

// A copy that a read finds missing or damaged is written again by that read.
func TestReadRepairs(t *testing.T) {
	t.Parallel()
	dirs := folders(t, t.TempDir(), 2)
	newVaultAt(t, crashOptions, dirs)
	s := mustOpen(t, dirs[0], crashOptions)
	points := []dedupe.Digest{writePoint(t, s, "one", seeds(rand.New(rand.NewPCG(1, 1)), 300, 1000))}
	mustClose(t, s)
	packs := glob(t, dirs[0], "packs/*.pack")
	for _, path := range packs {
		flip(t, path, 96+192+50)
	}
	s = mustOpen(t, dirs[0], crashOptions)
	if err := checkStore(s, points); err != nil {
		t.Fatal(err)
	}
	if n := s.Stats().RepairedBlocks; n != int64(len(packs)) {
		t.Errorf("%d repaired blocks, want one of each of %d packs", n, len(packs))
	}
	if err := sameCopies(dirs); err != nil {
		t.Errorf("after reading: %v", err)
	}
	mustClose(t, s)
	for _, path := range packs {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	s = mustOpen(t, dirs[0], crashOptions)
	if err := checkStore(s, points); err != nil {
		t.Fatal(err)
	}
	if err := sameCopies(dirs); err != nil {
		t.Errorf("after reading without the first copies: %v", err)
	}
	mustClose(t, s)
}

// GetBlocks reads other copies too.
func TestGetBlocksOfADamagedCopy(t *testing.T) {
	t.Parallel()
	dirs := folders(t, t.TempDir(), 2)
	newVaultAt(t, crashOptions, dirs)
	s := openVault(t, dirs[0], crashOptions)
	var digests []dedupe.Digest
	b := dedupetest.Begin(t, s)
	for i := range uint64(40) {
		digests = append(digests, dedupetest.PutBlock(t, b, dedupetest.Block(s, i)).Digest)
	}
	dedupetest.Commit(t, b, "one")
	path, off, _, err := s.Locate(digests[7])
	if err != nil {
		t.Fatal(err)
	}
	flip(t, path, off+300)
	bufs, errs := make([][]byte, len(digests)), make([]error, len(digests))
	for i := range bufs {
		bufs[i] = make([]byte, s.BlockSize())
	}
	s.GetBlocks(t.Context(), digests, bufs, errs)
	for i := range digests {
		if errs[i] != nil || !bytes.Equal(bufs[i], dedupetest.Block(s, uint64(i))) {
			t.Errorf("block %d: %v", i, errs[i])
		}
	}
	if n := s.Stats().RepairedBlocks; n != 1 {
		t.Errorf("%d repaired blocks, want 1", n)
	}
}

// Both copies of a pack are damaged, in different places: together they are whole. In
// the same place, the record is lost, named, and nothing else.
func TestBothCopiesDamaged(t *testing.T) {
	t.Parallel()
	dirs := folders(t, t.TempDir(), 2)
	newVaultAt(t, crashOptions, dirs)
	s := mustOpen(t, dirs[0], crashOptions)
	b := dedupetest.Begin(t, s)
	var digests []dedupe.Digest
	for i := range uint64(20) {
		digests = append(digests, dedupetest.PutBlock(t, b, dedupetest.Block(s, i)).Digest)
	}
	dedupetest.Commit(t, b, "one")
	place := func(i int) (paths [2]string, off int64) {
		path, off, length, err := s.Locate(digests[i])
		if err != nil {
			t.Fatal(err)
		}
		for k, dir := range dirs {
			paths[k] = filepath.Join(dir, "packs", filepath.Base(path))
		}
		return paths, off + length/2
	}
	first, firstOff := place(3)
	second, secondOff := place(11)
	mustClose(t, s)
	flip(t, first[0], firstOff)
	flip(t, second[1], secondOff)
	flip(t, first[0], 30)  // and a header,
	flip(t, second[1], 60) // at two places
	s = mustOpen(t, dirs[0], crashOptions)
	rep, err := s.VerifyCopies(t.Context(), nil)
	if err != nil || len(rep.Lost) != 0 || rep.Replaced != 2 {
		t.Fatalf("verify copies: %+v, %v", rep, err)
	}
	if err := sameCopies(dirs); err != nil {
		t.Fatal(err)
	}
	flip(t, first[0], firstOff)
	flip(t, first[1], firstOff)
	rep, err = s.VerifyCopies(t.Context(), nil)
	if err != nil || len(rep.Lost) != 1 || rep.Lost[0].Digest != digests[3] {
		t.Errorf("verify copies: %+v, %v, want the loss of %v", rep, err, digests[3])
	}
	for i, d := range digests {
		_, err := s.Get(t.Context(), dedupe.KindBlock, d, nil)
		if lost := i == 3; lost != errors.Is(err, dedupe.ErrCorrupt) || !lost && err != nil {
			t.Errorf("block %d: %v", i, err)
		}
	}
	mustClose(t, s)
}

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

// A folder of another vault is refused by name, and never written.
func TestWrongVaultsFolder(t *testing.T) {
	t.Parallel()
	mine, other := folders(t, t.TempDir(), 2), folders(t, t.TempDir(), 2)
	for _, dirs := range [][]string{mine, other} {
		newVaultAt(t, crashOptions, dirs)
		s := mustOpen(t, dirs[0], crashOptions)
		writePoint(t, s, dirs[0], []uint64{1, 2, 3})
		mustClose(t, s)
	}
	before := glob(t, other[1], "packs/*.pack")
	o := crashOptions
	o.Locations = []string{other[1]}
	s := mustOpen(t, mine[0], o)
	wantStates(t, s, "in out")
	reason := s.Locations()[1].Reason
	if !strings.Contains(reason, other[1]) || !strings.Contains(reason, fmt.Sprintf("%x", s.Vault())) {
		t.Errorf("reason %q does not name the folder and the vault", reason)
	}
	writePoint(t, s, "more", []uint64{4, 5})
	if _, err := s.RepairLocations(t.Context(), nil); err == nil || !strings.Contains(err.Error(), "belongs to vault") {
		t.Errorf("repair: %v", err)
	}
	mustClose(t, s)
	if after := glob(t, other[1], "packs/*.pack"); !slices.Equal(before, after) {
		t.Errorf("another vault's folder was changed: %q, then %q", before, after)
	}
	if err := blockstore.Create(filepath.Join(t.TempDir(), "third"), o); err == nil {
		t.Error("a location of a vault was taken for a new one")
	}
	for _, dirs := range [][]string{mine, other} { // and both are whole
		o := crashOptions
		o.Locations = dirs[1:]
		s := mustOpen(t, dirs[0], o)
		repair(t, s)
		wantStates(t, s, "in in")
		mustClose(t, s)
		if err := sameCopies(dirs); err != nil {
			t.Error(err)
		}
	}
}

// A new folder becomes a location of an old vault that had one; a lost first location
// is replaced by another one, whose index is built from its packs.
func TestLocationsComeAndGo(t *testing.T) {
	t.Parallel()
	dirs := folders(t, t.TempDir(), 3)
	newVaultAt(t, crashOptions, dirs[:1])
	s := mustOpen(t, dirs[0], crashOptions)
	r := rand.New(rand.NewPCG(1, 1))
	points := []dedupe.Digest{writePoint(t, s, "alone", seeds(r, 300, 1000))}
	mustClose(t, s)
	if _, err := os.Stat(filepath.Join(dirs[0], "location")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a vault of one location has a list of locations: %v", err)
	}
	o := crashOptions
	o.Locations = dirs[1:]
	s = mustOpen(t, dirs[0], o)
	wantStates(t, s, "in out out") // the folders are not there
	if repairable, err := s.CheckLocations(); repairable || err != nil {
		t.Errorf("folders that are missing can be repaired: %v", err)
	}
	for _, dir := range dirs[1:] {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if repairable, err := s.CheckLocations(); !repairable || err != nil {
		t.Errorf("empty folders cannot be repaired: %v", err)
	}
	repair(t, s)
	wantStates(t, s, "in in in")
	points = append(points, writePoint(t, s, "three", seeds(r, 300, 1000)))
	mustClose(t, s)
	// The list knows them now.
	s = mustOpen(t, dirs[0], crashOptions)
	wantStates(t, s, "in in in")
	mustClose(t, s)
	if _, err := blockstore.Open(dirs[1], crashOptions); err == nil || !strings.Contains(err.Error(), dirs[0]) {
		t.Errorf("open of a second location: %v, want the name of the first", err)
	}
	lost := dirs[0] + ".lost"
	if err := os.Rename(dirs[0], lost); err != nil {
		t.Fatal(err)
	}
	o.Locations = []string{dirs[2]}
	if err := blockstore.RebuildIndex(t.Context(), dirs[1], o, nil); err != nil {
		t.Fatalf("rebuild from the second location: %v", err)
	}
	s = mustOpen(t, dirs[1], o)
	if err := checkStore(s, points); err != nil {
		t.Error(err)
	}
	wantStates(t, s, "in in") // the third one has all that the second has
	points = append(points, writePoint(t, s, "without the first", seeds(r, 300, 1000)))
	mustClose(t, s)
	// The former first one comes back: it is refused as the first, and taken as another.
	o.Locations = []string{dirs[1]}
	if _, err := blockstore.Open(lost, o); err == nil || !strings.Contains(err.Error(), dirs[1]) {
		t.Errorf("open of the former first location: %v, want the name of the present one", err)
	}
	o.Locations = []string{dirs[2], lost}
	s = mustOpen(t, dirs[1], o)
	wantStates(t, s, "in in out")
	repair(t, s)
	wantStates(t, s, "in in in")
	if err := checkStore(s, points); err != nil {
		t.Error(err)
	}
	mustClose(t, s)
	if err := sameCopies([]string{dirs[1], dirs[2], lost}); err != nil {
		t.Error(err)
	}
}

// A location whose folder is gone is noticed without a write; when it comes back as an
// empty folder it is filled.
func TestLocationVanishes(t *testing.T) {
	t.Parallel()
	dirs := folders(t, t.TempDir(), 2)
	newVaultAt(t, crashOptions, dirs)
	s := openVault(t, dirs[0], crashOptions)
	points := []dedupe.Digest{writePoint(t, s, "one", seeds(rand.New(rand.NewPCG(1, 1)), 300, 1000))}
	if err := os.Rename(dirs[1], dirs[1]+".away"); err != nil {
		t.Fatal(err)
	}
	if repairable, err := s.CheckLocations(); repairable || err != nil {
		t.Errorf("a folder that is gone can be repaired: %v", err)
	}
	wantStates(t, s, "in out")
	points = append(points, writePoint(t, s, "two", seeds(rand.New(rand.NewPCG(1, 2)), 300, 1000)))
	if err := os.Mkdir(dirs[1], 0o700); err != nil {
		t.Fatal(err)
	}
	if repairable, err := s.CheckLocations(); !repairable || err != nil {
		t.Errorf("an empty folder cannot be repaired: %v", err)
	}
	repair(t, s)
	wantStates(t, s, "in in")
	if err := checkStore(s, points); err != nil {
		t.Error(err)
	}
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
