package ingest_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/blockstore"
	"github.com/keelblock/keelblock/dedupe/hashtree"
	"github.com/keelblock/keelblock/dedupe/ingest"
	"github.com/keelblock/keelblock/dedupe/keyring"
	"github.com/keelblock/keelblock/dedupe/recoverypoint"
	"github.com/keelblock/keelblock/dedupe/verify"
)

// window is what a search goes by: so many bytes that are nowhere by chance.
const window = 16

// searched are windows of what must not stand in any file, and what each is of.
type searched map[[window]byte]string

func (s searched) add(what string, p []byte) {
	for off := 0; off+window <= len(p); off += max(1, (len(p)-window)/4) {
		s[[window]byte(p[off:])] = what
	}
}

// find looks for them at every byte of every file below a folder.
func (s searched) find(t *testing.T, dir string) (found []string, files int) {
	t.Helper()
	begins := make([]bool, 1<<24) // the first three bytes of a window: nearly no place needs the map
	first := func(p []byte) int { return int(p[0])<<16 | int(p[1])<<8 | int(p[2]) }
	for w := range s {
		begins[first(w[:])] = true
	}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		files++
		return eachData(path, func(at int64, p []byte) bool {
			for off := 0; off+window <= len(p); off++ {
				if !begins[first(p[off:])] {
					continue
				}
				if what, ok := s[[window]byte(p[off:])]; ok {
					found = append(found, fmt.Sprintf("%s stands at byte %d of %s", what, at+int64(off), path))
					return false
				}
			}
			return true
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	return found, files
}

// eachData yields what a file holds without its holes: the logs of an open index are of
// gigabytes, nearly all of them holes.
func eachData(path string, yield func(off int64, p []byte) bool) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close() // only read
	for end := int64(0); ; {
		start, err := unix.Seek(int(f.Fd()), end, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil
		}
		if err != nil {
			return err
		}
		if end, err = unix.Seek(int(f.Fd()), start, unix.SEEK_HOLE); err != nil {
			return err
		}
		p := make([]byte, end-start)
		if _, err := f.ReadAt(p, start); err != nil {
			return err
		}
		if !yield(start, p) {
			return nil
		}
	}
}

// textBlocks are readable and compress; no two are alike.
func textBlocks(rng *rand.Rand, p []byte) {
	words := []string{"password ", "salary ", "patient ", "contract ", "account ", "invoice ", "address "}
	for i := 0; i < len(p); {
		i += copy(p[i:], fmt.Appendf(nil, "%x %s", rng.Uint64(), words[rng.IntN(len(words))]))
	}
}

// TestDemand64: no content of a disk, no definition, and no word about a machine stands
// in any file of an encrypted vault, index included: while it is written, when it is
// closed, with a rebuilt index, and after an unclean stop. Nor do the digests by which
// content could be guessed. The same search finds all of it in a vault that is not
// encrypted, so it is one that can find.
func TestDemand64(t *testing.T) {
	for _, tt := range []struct {
		name string
		keys []*keyring.Keys
	}{
		{"encrypted", []*keyring.Keys{keyring.New(dedupe.DomainID{1})}},
		{"plain", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			o := blockstore.Options{Keys: tt.keys, PackBytes: blockstore.MinPackBytes}
			if err := blockstore.Create(dir, o); err != nil {
				t.Fatal(err)
			}
			secret := make(searched)
			testDemand64(t, dir, o, secret)
		})
	}
}

func testDemand64(t *testing.T, dir string, o blockstore.Options, secret searched) {
	rng := rand.New(rand.NewPCG(64, 64))
	s, err := blockstore.Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	x, err := recoverypoint.OpenIndex(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	disk := make([]byte, 6<<20)
	fill(rng, disk[:3<<20])
	textBlocks(rng, disk[3<<20:])
	var ids []dedupe.Digest
	base := hashtree.Root{}
	for i := range 3 {
		changes := []change{{data: disk}}
		if i > 0 { // a grain of each of some blocks, which become patches
			changes = nil
			for off := 5 * grain; off < len(disk); off += 300 << 10 {
				p := disk[off&^(grain-1):][:grain]
				textBlocks(rng, p)
				secret.add("a grain", p)
				changes = append(changes, change{off: int64(off &^ (grain - 1)), data: p})
			}
		}
		for off := 0; off < len(disk); off += s.BlockSize() {
			block := disk[off:][:s.BlockSize()]
			secret.add("a block", block)
			d := dedupe.Sum(block)
			secret.add("a block's digest", d[:])
		}
		root, stats, _ := run(t, s, base, int64(len(disk)), ingest.Options{}, changes...)
		if i > 0 && stats.StoredBytes > int64(len(changes))*16<<10 {
			t.Errorf("%d changed grains are stored in %d bytes: they are no patches", len(changes), stats.StoredBytes)
		}
		base = root
		m := manifest()
		m.Sequence = uint64(i + 1)
		definition := []byte("definition of the machine in words, <domain><name>payroll-database</name></domain>")
		m.MachineName, m.Reason, m.Note = "payroll-database-of-the-company", "pre-freeze script said: no such table salaries", fmt.Sprintf("before the merger with the other company, %d", i)
		m.Disks = []recoverypoint.Disk{{ID: recoverypoint.ID{7}, Name: "salaries-and-bonuses", Root: root, Tracking: recoverypoint.TrackingFull}}
		m.Excluded = []recoverypoint.ExcludedDisk{{ID: recoverypoint.ID{8}, Name: "scratch-of-the-lawyers", Reason: "it was left out by the lawyers"}}
		b, err := s.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if m.Definition, err = recoverypoint.PutContent(t.Context(), b, s.BlockSize(), definition); err != nil {
			t.Fatal(err)
		}
		ps, err := x.Publish(t.Context(), b, []*recoverypoint.Manifest{m}, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, ps[0].ID)
		for _, text := range []string{m.MachineName, m.Reason, m.Note, m.Disks[0].Name, m.Excluded[0].Name, m.Excluded[0].Reason, string(definition)} {
			secret.add(fmt.Sprintf("%q", text), []byte(text))
		}
	}
	event := recoverypoint.Event{At: time.Unix(1_800_000_000, 0), Actor: "alice-from-accounting", Text: "the auditors may not see it any more"}
	secret.add("an actor", []byte(event.Actor))
	secret.add("an event's text", []byte(event.Text))
	if _, err := x.Note(t.Context(), ids[0], recoverypoint.NoteDelete, event); err != nil {
		t.Fatal(err)
	}
	search := func(when string) {
		t.Helper()
		found, files := secret.find(t, dir)
		if files < 6 {
			t.Errorf("%s: only %d files were searched", when, files)
		}
		if o.Keys != nil && len(found) > 0 {
			t.Errorf("%s: %q", when, found)
		}
		if o.Keys == nil && len(found) == 0 {
			t.Errorf("%s: the search finds nothing in a vault that is not encrypted", when)
		}
	}
	search("open")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	search("closed")
	if err := os.Remove(filepath.Join(dir, "state")); err != nil { // as after an unclean stop
		t.Fatal(err)
	}
	if err := blockstore.RebuildIndex(t.Context(), dir, o, nil); err != nil {
		t.Fatal(err)
	}
	search("rebuilt")
	// And all of it is still there, for who has the key.
	if s, err = blockstore.Open(dir, o); err != nil {
		t.Fatal(err)
	}
	search("opened again")
	if x, err = recoverypoint.OpenIndex(t.Context(), s); err != nil || len(x.Problems()) > 0 {
		t.Fatalf("open the index of points: %v, %v", err, x.Problems())
	}
	p, _, err := x.Resolve("payroll-database-of-the-company@latest")
	if err != nil || p.ID != ids[2] || p.Manifest.Disks[0].Name != "salaries-and-bonuses" || x.Get(ids[0]) == nil || !x.Get(ids[0]).Deleted {
		t.Errorf("the newest point: %v", err)
	}
	if report, err := verify.Point(t.Context(), s, p.Manifest, nil); err != nil || !report.OK() {
		t.Errorf("verify: %+v, %v", report, err)
	}
	if got := readAll(t, s, p.Manifest.Disks[0].Root); !bytes.Equal(got, disk) {
		t.Error("the disk reads back as something else")
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if o.Keys == nil {
		return
	}
	o.Keys = nil
	if _, err := blockstore.Open(dir, o); !errors.Is(err, dedupe.ErrNoKey) {
		t.Errorf("open without the key: %v", err)
	}
}

// TestDemand66: a disk that the guest has encrypted itself, with a LUKS header and random
// bytes behind it, is opaque: it is stored, changed, read back and verified like any
// other, into an encrypted vault and into a plain one, and costs its own size.
func TestDemand66(t *testing.T) {
	for name, open := range stores {
		t.Run(name, func(t *testing.T) {
			s := open(t, 64<<10)
			rng := rand.New(rand.NewPCG(66, 66))
			disk := make([]byte, 16<<20)
			fill(rng, disk)
			copy(disk, "LUKS\xba\xbe\x00\x02")
			root, stats, _ := run(t, s, hashtree.Root{}, int64(len(disk)), ingest.Options{}, change{data: disk})
			if stored := stats.StoredBytes; stored > int64(len(disk))*102/100 {
				t.Errorf("%d bytes that nobody can compress are stored in %d", len(disk), stored)
			}
			fill(rng, disk[5<<20:5<<20+grain])
			next, stats, _ := run(t, s, root, int64(len(disk)), ingest.Options{}, change{off: 5 << 20, data: disk[5<<20 : 5<<20+grain]})
			if stats.ChangedBytes != grain || stats.NewBytes < grain || stats.NewBytes > 64<<10 { // as a patch, or whole
				t.Errorf("one grain changed: %+v", stats)
			}
			if !bytes.Equal(readAll(t, s, next), disk) {
				t.Error("the disk reads back as something else")
			}
			m := manifest()
			m.Disks = []recoverypoint.Disk{{ID: recoverypoint.ID{7}, Name: "luks", Root: next, Tracking: recoverypoint.TrackingEnabled}}
			if report, err := verify.Point(t.Context(), s, m, nil); err != nil || !report.OK() {
				t.Errorf("verify: %+v, %v", report, err)
			}
		})
	}
}
