package blockstore_test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/dedupetest"
)

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
