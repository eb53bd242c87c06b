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
)

// Both flip one bit of a file.
var flip, flipBit = dedupetest.Flip, dedupetest.FlipBit

// writtenVault is a vault with three points, closed cleanly.
func writtenVault(t testing.TB, o blockstore.Options) (dir string, points []dedupe.Digest) {
	t.Helper()
	dir = newVault(t, o)
	s, err := blockstore.Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(1, 1))
	for i := range 3 {
		points = append(points, writePoint(t, s, fmt.Sprintf("point %d", i), seeds(r, 300, 1000)))
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return dir, points
}

// markUnclean makes a vault as a kill leaves it.
func markUnclean(t testing.TB, dir string) {
	t.Helper()
	flip(t, filepath.Join(dir, "state"), 10) // its checksum is wrong now: nobody knows
}

func glob(t testing.TB, dir, pattern string) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, pattern))
	if err != nil || len(names) == 0 {
		t.Fatalf("no %s in %s: %v", pattern, dir, err)
	}
	return names
}

// A block whose record is damaged is ErrCorrupt, naming digest and pack, and never
// other bytes; all other blocks read; put again, it is healed.
func TestDamagedBlock(t *testing.T) { eachDomain(t, testDamagedBlock) }

func testDamagedBlock(t *testing.T, crashOptions blockstore.Options) {
	crashOptions.WholeBlocks = true // one record for each block; see TestDamagedPatch
	t.Parallel()
	dir, points := writtenVault(t, crashOptions)
	ctx := context.Background()
	s := openVault(t, dir, crashOptions)
	seed := uint64(0)
	var block []byte
	var d dedupe.Digest
	for ; ; seed++ { // one that is in the vault
		block = testBlock(s, seed)
		d = s.BlockDigest(block)
		if _, err := s.Get(ctx, dedupe.KindBlock, d, nil); err == nil {
			break
		}
	}
	path, off, length, err := s.Locate(d)
	if err != nil {
		t.Fatal(err)
	}
	id := strings.TrimSuffix(filepath.Base(path), ".pack")
	for _, at := range []int64{0, 5, 60, 188, length / 2, length - 1} {
		flip(t, path, off+at)
		p, err := s.Get(ctx, dedupe.KindBlock, d, nil)
		if p != nil || !errors.Is(err, dedupe.ErrCorrupt) {
			t.Errorf("bit at %d of the record: %d bytes, %v", at, len(p), err)
		} else if !strings.Contains(err.Error(), d.String()) || !strings.Contains(err.Error(), id) {
			t.Errorf("error does not name block and pack: %v", err)
		}
		flip(t, path, off+at)
	}
	if n := s.Stats().CorruptBlocks; n != 6 {
		t.Errorf("%d corrupt blocks counted, want 6", n)
	}
	// After an unclean stop nothing is believed: put again, it is stored again.
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	flip(t, path, off+length/2)
	markUnclean(t, dir)
	s = openVault(t, dir, crashOptions)
	b := dedupetest.Begin(t, s)
	if put := dedupetest.PutBlock(t, b, block); !put.New {
		t.Error("a damaged record counts as held after an unclean stop")
	}
	intact := testBlock(s, seed+1)
	for !located(s, intact) {
		seed++
		intact = testBlock(s, seed+1)
	}
	if put := dedupetest.PutBlock(t, b, intact); put.New {
		t.Error("an intact record is stored again after an unclean stop")
	}
	dedupetest.Commit(t, b, `{"Name":"healed"}`)
	for _, id := range points {
		if err := checkPoint(s, id); err != nil {
			t.Errorf("after healing: %v", err)
		}
	}
}

func located(s *blockstore.Store, block []byte) bool {
	_, _, _, err := s.Locate(s.BlockDigest(block))
	return err == nil
}

// A pack that is gone, or shorter than the index believes, holds nothing: its blocks
// are ErrNotFound, and are stored again when put.
func TestMissingPack(t *testing.T) { eachDomain(t, testMissingPack) }

func testMissingPack(t *testing.T, crashOptions blockstore.Options) {
	crashOptions.WholeBlocks = true // and not ErrCorrupt, as without a base
	t.Parallel()
	for _, tt := range []struct {
		name   string
		damage func(path string, off int64) error
	}{
		{"gone", func(path string, _ int64) error { return os.Remove(path) }},
		{"cut", func(path string, off int64) error { return os.Truncate(path, off+100) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir, points := writtenVault(t, crashOptions)
			s := openVault(t, dir, crashOptions)
			var block []byte
			for seed := uint64(0); block == nil || !located(s, block); seed++ {
				block = testBlock(s, seed)
			}
			path, off, _, err := s.Locate(s.BlockDigest(block))
			if err != nil {
				t.Fatal(err)
			}
			if err := tt.damage(path, off); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Get(context.Background(), dedupe.KindBlock, s.BlockDigest(block), nil); !errors.Is(err, dedupe.ErrNotFound) {
				t.Errorf("get from a pack that is %s: %v", tt.name, err)
			}
			b := dedupetest.Begin(t, s)
			if put := dedupetest.PutBlock(t, b, block); !put.New {
				t.Error("a block that the pack does not hold counts as held")
			}
			dedupetest.Commit(t, b, "again")
			if _, err := s.Get(context.Background(), dedupe.KindBlock, s.BlockDigest(block), nil); err != nil {
				t.Errorf("get after it was put again: %v", err)
			}
			if err := checkPoint(s, points[0]); err == nil {
				t.Log("the first point had nothing else in that pack")
			}
		})
	}
}

// A flipped bit or a cut in any file of a vault is an error that names it, or does no
// harm: never other bytes, never a panic. A rebuilt index brings back what verifies.
func TestDamagedFiles(t *testing.T) { eachDomain(t, testDamagedFiles) }

func testDamagedFiles(t *testing.T, crashOptions blockstore.Options) {
	t.Parallel()
	type damage struct {
		name string
		pick func(dir string) string
		do   func(t *testing.T, path string)
	}
	size := func(t *testing.T, path string) int64 {
		st, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		return st.Size()
	}
	firstPack := func(dir string) string { return glob(t, dir, "packs/*.pack")[0] }
	sst := func(dir string) string { return glob(t, dir, "index/*.sst")[0] }
	manifest := func(dir string) string { return filepath.Join(dir, "index", "MANIFEST") }
	cases := []damage{
		{"pack header", firstPack, func(t *testing.T, p string) { flip(t, p, 20) }},
		{"pack footer", firstPack, func(t *testing.T, p string) { flip(t, p, size(t, p)-100) }},
		{"pack trailer", firstPack, func(t *testing.T, p string) { flip(t, p, size(t, p)-5) }},
		{"pack record", firstPack, func(t *testing.T, p string) { flip(t, p, 96+100) }},
		{"pack record and footer", firstPack, func(t *testing.T, p string) { flip(t, p, 96+300); flip(t, p, size(t, p)-100) }},
		{"pack cut in its footer", firstPack, func(t *testing.T, p string) { _ = os.Truncate(p, size(t, p)-50) }},
		{"sst bit", sst, func(t *testing.T, p string) { flip(t, p, 100) }},
		{"sst end", sst, func(t *testing.T, p string) { flip(t, p, size(t, p)-3) }},
		{"sst cut", sst, func(t *testing.T, p string) { _ = os.Truncate(p, size(t, p)/2) }},
		{"sst empty", sst, func(t *testing.T, p string) { _ = os.Truncate(p, 0) }},
		{"sst gone", sst, func(t *testing.T, p string) { _ = os.Remove(p) }},
		{"MANIFEST bit", manifest, func(t *testing.T, p string) { flip(t, p, 12) }},
		{"MANIFEST cut", manifest, func(t *testing.T, p string) { _ = os.Truncate(p, size(t, p)/2) }},
		{"MANIFEST gone", manifest, func(t *testing.T, p string) { _ = os.Remove(p) }},
		{"index gone", manifest, func(t *testing.T, p string) { _ = os.RemoveAll(filepath.Dir(p)) }},
		{"state", func(dir string) string { return filepath.Join(dir, "state") }, func(t *testing.T, p string) { flip(t, p, 12) }},
		{"state gone", func(dir string) string { return filepath.Join(dir, "state") }, func(t *testing.T, p string) { _ = os.Remove(p) }},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			dir, points := writtenVault(t, crashOptions)
			c.do(t, c.pick(dir))
			lost := 0 // points that do not read back before the rebuild
			s, err := blockstore.Open(dir, crashOptions)
			switch {
			case err != nil:
				lost = len(points)
				if !errors.Is(err, dedupe.ErrCorrupt) {
					t.Errorf("open: %v, want ErrCorrupt", err)
				}
			default:
				lost = countLost(t, s, points)
				if err := s.Close(); err != nil {
					t.Logf("close: %v", err)
				}
			}
			// A reader that may not write finds the same or more.
			o := crashOptions
			o.ReadOnly = true
			if s, err := blockstore.Open(dir, o); err != nil {
				t.Errorf("open read-only: %v", err)
			} else {
				if n := countLost(t, s, points); n > lost {
					t.Errorf("%d points lost read-only, %d otherwise", n, lost)
				}
				if err := s.Close(); err != nil {
					t.Errorf("close read-only: %v", err)
				}
			}
			if err := blockstore.RebuildIndex(context.Background(), dir, crashOptions, nil); err != nil {
				t.Fatalf("rebuild index: %v", err)
			}
			s = openVault(t, dir, crashOptions)
			after := countLost(t, s, points)
			t.Logf("%d of %d points lost before the rebuild, %d after", lost, len(points), after)
			if want := strings.HasPrefix(c.name, "pack record"); (after > 0) != want {
				t.Errorf("%d points lost after the rebuild", after)
			}
		})
	}
}

// countLost counts points that do not read back; all that fails must say why.
func countLost(t *testing.T, s dedupe.Store, points []dedupe.Digest) (lost int) {
	t.Helper()
	for _, id := range points {
		if err := checkPoint(s, id); err != nil {
			lost++
			if !errors.Is(err, dedupe.ErrCorrupt) && !errors.Is(err, dedupe.ErrNotFound) {
				t.Errorf("point %v: neither corrupt nor missing: %v", id, err)
			}
		}
	}
	return lost
}

// One damaged or missing superblock is written again from the other.
func TestSuperblockHasACopy(t *testing.T) {
	t.Parallel()
	dir, points := writtenVault(t, crashOptions)
	main, spare := filepath.Join(dir, "superblock"), filepath.Join(dir, "superblock.copy")
	want, err := os.ReadFile(main)
	if err != nil {
		t.Fatal(err)
	}
	for name, damage := range map[string]func() error{
		"damaged": func() error { flip(t, main, 30); return nil },
		"missing": func() error { return os.Remove(main) },
		"copy":    func() error { return os.Remove(spare) },
	} {
		if err := damage(); err != nil {
			t.Fatal(err)
		}
		s := openVault(t, dir, crashOptions)
		for _, id := range points {
			if err := checkPoint(s, id); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		for _, p := range []string{main, spare} {
			if got, err := os.ReadFile(p); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s: %s was not written again: %v", name, p, err)
			}
		}
	}
}

// A superblock that is damaged or of another version is refused when its copy is, too.
func TestDamagedSuperblock(t *testing.T) {
	t.Parallel()
	dir, _ := writtenVault(t, crashOptions)
	flip(t, filepath.Join(dir, "superblock"), 30)
	flip(t, filepath.Join(dir, "superblock.copy"), 30)
	for _, o := range []blockstore.Options{crashOptions, {ReadOnly: true}} {
		if _, err := blockstore.Open(dir, o); !errors.Is(err, dedupe.ErrCorrupt) {
			t.Errorf("open: %v", err)
		}
	}
	if err := blockstore.Create(dir, crashOptions); err == nil {
		t.Error("create over a vault succeeded")
	}
}

// A rebuilt index says exactly what the old one said.
func TestRebuildEqualsOld(t *testing.T) { eachDomain(t, testRebuildEqualsOld) }

func testRebuildEqualsOld(t *testing.T, crashOptions blockstore.Options) {
	t.Parallel()
	dir, points := writtenVault(t, crashOptions)
	dump := func() map[string]blockstore.IndexEntry {
		s := openVault(t, dir, crashOptions)
		d, err := s.DumpIndex()
		if err := errors.Join(err, s.Close()); err != nil {
			t.Fatal(err)
		}
		return d
	}
	old := dump()
	var done, total int64
	err := blockstore.RebuildIndex(context.Background(), dir, crashOptions, func(d, n int64) {
		if d < done || d > n {
			t.Errorf("progress %d of %d after %d", d, n, done)
		}
		done, total = d, n
	})
	if err != nil {
		t.Fatal(err)
	}
	if done != total || done == 0 {
		t.Errorf("progress ended at %d of %d", done, total)
	}
	rebuilt := dump()
	if len(old) != len(rebuilt) {
		t.Errorf("%d entries rebuilt, %d before", len(rebuilt), len(old))
	}
	for k, want := range old {
		if got := rebuilt[k]; got != want {
			t.Errorf("entry %x is %+v, was %+v", k, got, want)
		}
	}
	s := openVault(t, dir, crashOptions)
	if err := checkStore(s, points); err != nil {
		t.Error(err)
	}
	if n := s.LastSequence(); n != 3 {
		t.Errorf("last sequence %d, want 3", n)
	}
	st := s.Stats()
	if st.Blocks == 0 || st.Nodes == 0 || st.Packs == 0 || st.PackBytes == 0 {
		t.Errorf("stats after a rebuild: %+v", st)
	}
	writePoint(t, s, "after", []uint64{1, 2, 100_000})
	if err := checkStore(s, points); err != nil {
		t.Error(err)
	}
}

// A record that once failed to read back is not "held" any more, also in the run that
// wrote it: put again it is stored again, and what referred to it reads well.
func TestRecordThatDidNotVerifyIsStoredAgain(t *testing.T) {
	eachDomain(t, testRecordThatDidNotVerifyIsStoredAgain)
}

func testRecordThatDidNotVerifyIsStoredAgain(t *testing.T, crashOptions blockstore.Options) {
	t.Parallel()
	ctx := context.Background()
	dir := filepath.Join(t.TempDir(), "vault")
	if err := blockstore.Create(dir, crashOptions); err != nil {
		t.Fatal(err)
	}
	s := openVault(t, dir, crashOptions)
	block := testBlock(s, 1)
	d := s.BlockDigest(block)
	b := dedupetest.Begin(t, s)
	dedupetest.PutBlock(t, b, block)
	dedupetest.Commit(t, b, `{"Name":"first"}`)
	path, off, length, err := s.Locate(d)
	if err != nil {
		t.Fatal(err)
	}
	flip(t, path, off+length/2)
	if _, err := s.Get(ctx, dedupe.KindBlock, d, nil); !errors.Is(err, dedupe.ErrCorrupt) {
		t.Fatalf("get: %v, want ErrCorrupt", err)
	}
	b = dedupetest.Begin(t, s)
	if put := dedupetest.PutBlock(t, b, block); !put.New {
		t.Fatal("a record that did not verify counts as held")
	}
	dedupetest.Commit(t, b, `{"Name":"second"}`)
	if p, err := s.Get(ctx, dedupe.KindBlock, d, nil); err != nil || !bytes.Equal(p, block) {
		t.Fatalf("get after it was stored again: %v", err)
	}
	b = dedupetest.Begin(t, s)
	if put := dedupetest.PutBlock(t, b, block); put.New {
		t.Error("the good record is stored a third time")
	}
	dedupetest.Commit(t, b, `{"Name":"third"}`)
}

// A damaged note hides no other one, and is told.
func TestDamagedNoteHidesNoOther(t *testing.T) {
	dir := newVault(t, crashOptions)
	s, err := blockstore.Open(dir, crashOptions)
	if err != nil {
		t.Fatal(err)
	}
	r := rand.NewChaCha8([32]byte{7})
	var bodies [3][100]byte
	for i := range bodies {
		r.Read(bodies[i][:])
		b := dedupetest.Begin(t, s)
		if _, err := b.Commit(t.Context(), dedupe.Publication{Notes: []dedupe.Note{{Type: 1, Body: bodies[i][:]}}}); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	flipped := false
	for _, name := range glob(t, dir, "packs/*.pack") {
		content, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if at := bytes.Index(content, bodies[1][:]); at >= 0 {
			flip(t, name, int64(at))
			flipped = true
		}
	}
	if !flipped {
		t.Fatal("the note is in no pack")
	}
	if s, err = blockstore.Open(dir, crashOptions); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var got []string
	err = s.Notes(t.Context(), func(n dedupe.Note) bool { got = append(got, string(n.Body)); return true })
	if want := []string{string(bodies[0][:]), string(bodies[2][:])}; !slices.Equal(got, want) || !errors.Is(err, dedupe.ErrCorrupt) {
		t.Errorf("%d notes, want the first and the third; error %v, want ErrCorrupt", len(got), err)
	}
}

// A note whose pack is gone was published all the same. A rebuild of the index goes on to
// tell that it cannot be read: it may have been a hold.
func TestRebuildRemembersALostNote(t *testing.T) {
	dir := newVault(t, crashOptions)
	s, err := blockstore.Open(dir, crashOptions)
	if err != nil {
		t.Fatal(err)
	}
	r := rand.NewChaCha8([32]byte{8})
	notes := make([]dedupe.Note, 24)
	for i := range notes {
		notes[i] = dedupe.Note{Type: 1, Body: make([]byte, dedupe.MaxMetadataSize/4)} // several packs
		r.Read(notes[i].Body)
	}
	b := dedupetest.Begin(t, s)
	if _, err := b.Commit(t.Context(), dedupe.Publication{Notes: notes}); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for _, name := range glob(t, dir, "packs/*.pack") {
		content, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(content, notes[0].Body[:64]) {
			if err := os.Remove(name); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := blockstore.RebuildIndex(t.Context(), dir, crashOptions, nil); err != nil {
		t.Fatal(err)
	}
	s = openVault(t, dir, crashOptions)
	n := 0
	err = s.Notes(t.Context(), func(dedupe.Note) bool { n++; return true })
	if n == 0 || n >= len(notes) || !errors.Is(err, dedupe.ErrCorrupt) {
		t.Errorf("%d of %d notes, error %v, want fewer and ErrCorrupt", n, len(notes), err)
	}
}

// A kill while Badger opens leaves a log of no length, which it would not open: the vault
// opens all the same, with all its points.
func TestKillWhileTheIndexOpens(t *testing.T) {
	for _, name := range []string{"00009.mem", "000009.vlog"} {
		t.Run(name, func(t *testing.T) {
			dir, points := writtenVault(t, crashOptions)
			index := filepath.Dir(glob(t, dir, "*/MANIFEST")[0])
			if err := os.WriteFile(filepath.Join(index, name), nil, 0o600); err != nil {
				t.Fatal(err)
			}
			s, err := blockstore.Open(dir, crashOptions)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			for _, id := range points {
				if err := checkPoint(s, id); err != nil {
					t.Error(err)
				}
			}
		})
	}
}
