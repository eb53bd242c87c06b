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
	"testing"

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

// packNames are the names of the packs at a location.
func packNames(dir string) (list []string, err error) {
	entries, err := os.ReadDir(filepath.Join(dir, "packs"))
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list, err
}

// sameNames returns an error unless every location has packs of the same names.
func sameNames(dirs []string) error {
	want, err := packNames(dirs[0])
	if err != nil {
		return err
	}
	for _, dir := range dirs[1:] {
		got, err := packNames(dir)
		if err != nil {
			return err
		}
		if !slices.Equal(got, want) {
			return fmt.Errorf("%s has packs %q, %s has %q", dir, got, dirs[0], want)
		}
	}
	return nil
}

// sameCopies returns an error unless every location has the same packs, byte by byte.
func sameCopies(dirs []string) error {
	if err := sameNames(dirs); err != nil {
		return err
	}
	names, err := packNames(dirs[0])
	if err != nil {
		return err
	}
	for _, dir := range dirs[1:] {
		for _, name := range names {
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
