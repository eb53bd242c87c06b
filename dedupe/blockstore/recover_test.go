package blockstore_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/blockstore"
	"github.com/keelblock/keelblock/dedupe/dedupetest"
)

// A half-written pack: whatever is behind its last good record is absent, and what
// was committed in it stays.
func TestHalfWrittenPack(t *testing.T) { eachDomain(t, testHalfWrittenPack) }

func testHalfWrittenPack(t *testing.T, crashOptions blockstore.Options) {
	t.Parallel()
	dir := newVault(t, crashOptions)
	s, err := blockstore.Open(dir, crashOptions)
	if err != nil {
		t.Fatal(err)
	}
	first := writePoint(t, s, "first", []uint64{1, 2, 3})
	packs := glob(t, dir, "packs/*.pack")
	copies := t.TempDir()
	sizes := make(map[string]int64)
	for _, p := range packs {
		st, err := os.Stat(p)
		if err != nil {
			t.Fatal(err)
		}
		sizes[p] = st.Size()
	}
	second := writePoint(t, s, "second", []uint64{4, 5, 6, 7, 8})
	copyTree(t, dir, copies) // as a kill leaves it
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	_ = second
	for _, p := range packs { // tear what the second commit wrote
		path := filepath.Join(copies, "packs", filepath.Base(p))
		if err := os.Truncate(path, sizes[p]+300); err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Write(make([]byte, 1<<20)); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	// The index believes more than the packs hold: those entries count as absent.
	s = openVault(t, copies, crashOptions)
	if err := checkPoint(s, first); err != nil {
		t.Errorf("committed before: %v", err)
	}
	if _, err := s.Get(context.Background(), dedupe.KindBlock, s.BlockDigest(testBlock(s, 8)), nil); !errors.Is(err, dedupe.ErrNotFound) && !errors.Is(err, dedupe.ErrCorrupt) {
		t.Errorf("get past the valid end: %v", err)
	}
	third := writePoint(t, s, "third", []uint64{4, 5, 6, 7, 8})
	if err := checkPoint(s, third); err != nil {
		t.Errorf("a point made of blocks that were lost: %v", err)
	}
}

// copyTree copies a vault while nothing is written to it; Badger's files are sparse.
func copyTree(t testing.TB, from, to string) {
	t.Helper()
	run(t, "cp", "-r", "--sparse=always", "--reflink=auto", from+"/.", to)
}

func run(t testing.TB, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v: %s", name, args, err, out)
	}
}

// Each recovery is harmless when it is interrupted and run again.
func TestRecoverTwice(t *testing.T) { eachDomain(t, testRecoverTwice) }

func testRecoverTwice(t *testing.T, crashOptions blockstore.Options) {
	t.Parallel()
	dir := newVault(t, crashOptions)
	s, err := blockstore.Open(dir, crashOptions)
	if err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(3, 3))
	points := []dedupe.Digest{writePoint(t, s, "one", seeds(r, 100, 1000)), writePoint(t, s, "two", seeds(r, 100, 1000))}
	b := dedupetest.Begin(t, s)
	if _, err := putPoint(context.Background(), s, b, "never", seeds(r, 400, 5000)); err != nil {
		t.Fatal(err)
	}
	crashed := t.TempDir()
	copyTree(t, dir, crashed)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	failed := errors.New("stopped here")
	for n := 1; ; n++ {
		again := t.TempDir()
		copyTree(t, crashed, again)
		calls, opened := 0, false
		s, err := blockstore.Open(again, crashOptions.WithHook(func(op, name string) error {
			if calls++; calls == n && !opened {
				return fmt.Errorf("%s %s: %w", op, name, failed)
			}
			return nil
		}))
		opened = true
		if err == nil { // recovery needs fewer than n calls
			if err := errors.Join(checkStore(s, points), s.Close()); err != nil {
				t.Error(err)
			}
			if n < 5 {
				t.Errorf("recovery makes only %d calls", n-1)
			}
			break
		}
		if !errors.Is(err, failed) {
			t.Fatalf("call %d failed: %v", n, err)
		}
		if err := reopen(again, crashOptions, points); err != nil {
			t.Errorf("after recovery stopped at call %d: %v", n, err)
		}
		if err := os.RemoveAll(again); err != nil {
			t.Fatal(err)
		}
	}
}

// Two vaults do not mix: packs of another vault, or under another's name, are left
// alone, and so are files that are no packs.
func TestForeignPack(t *testing.T) { eachDomain(t, testForeignPack) }

func testForeignPack(t *testing.T, crashOptions blockstore.Options) {
	t.Parallel()
	dir, points := writtenVault(t, crashOptions)
	other := newVault(t, crashOptions)
	s, err := blockstore.Open(other, crashOptions)
	if err != nil {
		t.Fatal(err)
	}
	foreign := writePoint(t, s, "foreign", []uint64{1 << 40, 1<<40 + 1})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	packs := glob(t, dir, "packs/*.pack")
	slices.Sort(packs)
	run(t, "cp", packs[0], filepath.Join(dir, "packs", strings.Repeat("ab", 16)+".pack"))
	run(t, "cp", packs[0], filepath.Join(dir, "packs", "notes.txt"))
	for _, p := range glob(t, other, "packs/*.pack") {
		run(t, "cp", p, filepath.Join(dir, "packs"))
	}
	files := len(glob(t, dir, "packs/*"))
	markUnclean(t, dir)
	for _, when := range []string{"after an unclean stop", "after a rebuild"} {
		s := openVault(t, dir, crashOptions)
		if err := checkStore(s, points); err != nil {
			t.Errorf("%s: %v", when, err)
		}
		if err := checkPoint(s, foreign); !errors.Is(err, dedupe.ErrNotFound) {
			t.Errorf("%s: the other vault's point: %v", when, err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if n := len(glob(t, dir, "packs/*")); n != files {
			t.Errorf("%s: %d files, were %d", when, n, files)
		}
		if err := blockstore.RebuildIndex(context.Background(), dir, crashOptions, nil); err != nil {
			t.Fatal(err)
		}
	}
}

// An open pack that is damaged below its committed end is never cut there after an
// unclean stop: what was committed behind the damage stays readable.
func TestDamagedOpenPack(t *testing.T) { eachDomain(t, testDamagedOpenPack) }

func testDamagedOpenPack(t *testing.T, crashOptions blockstore.Options) {
	t.Parallel()
	dir := newVault(t, crashOptions)
	s, err := blockstore.Open(dir, crashOptions)
	if err != nil {
		t.Fatal(err)
	}
	first := writePoint(t, s, "first", []uint64{1, 2, 3})
	second := writePoint(t, s, "second", []uint64{4, 5, 6})
	path, off, length, err := s.Locate(s.BlockDigest(testBlock(s, 2)))
	if err != nil {
		t.Fatal(err)
	}
	crashed := t.TempDir()
	copyTree(t, dir, crashed)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	flip(t, filepath.Join(crashed, "packs", filepath.Base(path)), off+length/2)
	s = openVault(t, crashed, crashOptions)
	if err := checkPoint(s, second); err != nil {
		t.Errorf("committed behind the damage: %v", err)
	}
	if err := checkPoint(s, first); !errors.Is(err, dedupe.ErrCorrupt) {
		t.Errorf("the damaged point: %v", err)
	}
	third := writePoint(t, s, "third", []uint64{1, 2, 3, 4, 5, 6})
	for _, id := range []dedupe.Digest{first, second, third} {
		if err := checkPoint(s, id); err != nil {
			t.Errorf("after the damaged block was put again: %v", err)
		}
	}
}
