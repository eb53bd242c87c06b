package verify_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/blockstore"
	"github.com/keelblock/keelblock/dedupe/dedupetest"
	"github.com/keelblock/keelblock/dedupe/hashtree"
	"github.com/keelblock/keelblock/dedupe/ingest"
	"github.com/keelblock/keelblock/dedupe/recoverypoint"
	"github.com/keelblock/keelblock/dedupe/verify"
)

// machine is a point of two disks of size bytes with data every step bytes, a
// definition and a change set.
func machine(t *testing.T, s dedupe.Store, size, step int64) *recoverypoint.Manifest {
	t.Helper()
	b, err := s.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer b.Abort()
	rng := rand.New(rand.NewPCG(1, 2))
	m := &recoverypoint.Manifest{MachineID: recoverypoint.ID{1}, MachineName: "web", CutID: recoverypoint.ID{2}, CutMachines: []recoverypoint.ID{{1}},
		Generation: recoverypoint.Generation{Number: 1, ID: recoverypoint.ID{3}}, Sequence: 1, FrozenAt: time.Unix(1e9, 0),
		Consistency: recoverypoint.Crash, Tracking: recoverypoint.TrackingFull}
	for i, name := range []string{"web0", "web1"} {
		p, err := ingest.NewPass(s, b, hashtree.Root{}, size, ingest.Options{})
		if err != nil {
			t.Fatal(err)
		}
		for off := int64(0); off < size; off += step {
			data := make([]byte, min(int64(s.BlockSize()), size-off))
			for j := range data {
				data[j] = byte(rng.Uint32())
			}
			if err := p.Write(t.Context(), off, data); err != nil {
				t.Fatal(err)
			}
		}
		root, _, err := p.Finish(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		set, err := recoverypoint.EncodeChangeSet(t.Context(), b, s.BlockSize(), p.Changes())
		if err != nil {
			t.Fatal(err)
		}
		m.Disks = append(m.Disks, recoverypoint.Disk{ID: recoverypoint.ID{byte(i + 1)}, Name: name, Root: root, Tracking: recoverypoint.TrackingFull, ChangeSet: set})
	}
	if m.Definition, err = recoverypoint.PutContent(t.Context(), b, s.BlockSize(), []byte("<domain/>")); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Commit(t.Context(), dedupe.Publication{}); err != nil {
		t.Fatal(err)
	}
	return m
}

func lookup(t *testing.T, s dedupe.Store, r hashtree.Root, off int64) dedupe.Digest {
	t.Helper()
	d, err := hashtree.Lookup(t.Context(), hashtree.Direct(s), r, off/int64(r.BlockSize))
	if err != nil || d.IsZero() {
		t.Fatal(d, err)
	}
	return d
}

func TestGood(t *testing.T) {
	s := dedupetest.NewMemory(16 << 10)
	const size, step = 40<<20 + 512, 64 << 10
	m := machine(t, s, size, step)
	var told []int64
	r, err := verify.Point(t.Context(), s, m, func(done int64) { told = append(told, done) })
	if err != nil || !r.OK() || r.Err() != nil {
		t.Fatalf("%+v, %v", r, err)
	}
	perDisk := int64(size/step + 1)
	if want := 2*perDisk + 3; r.Blocks != want {
		t.Errorf("%d blocks, want %d", r.Blocks, want)
	}
	if want := 2 * int64(21+1); r.Nodes != want { // 2561 blocks: 21 leaves, one top
		t.Errorf("%d nodes, want %d", r.Nodes, want)
	}
	if len(told) < 2 || told[len(told)-1] != r.Bytes {
		t.Errorf("progress %v of %d", told, r.Bytes)
	}
}

// TestAllBad: every bad block and node of all disks is named, with what it loses; the
// rest is still read.
func TestAllBad(t *testing.T) {
	s := dedupetest.NewMemory(16 << 10)
	const size, step = 40 << 20, 64 << 10
	m := machine(t, s, size, step)
	whole, err := verify.Point(t.Context(), s, m, nil)
	if err != nil {
		t.Fatal(err)
	}
	type bad struct {
		disk, part     string
		kind           dedupe.Kind
		offset, length int64
	}
	want := []bad{{"", "definition", dedupe.KindBlock, 0, 9}}
	s.Corrupt(dedupe.KindBlock, m.Definition.Blocks[0])
	for _, off := range []int64{0, 5 * step, 100 * step} {
		s.Corrupt(dedupe.KindBlock, lookup(t, s, m.Disks[0].Root, off))
		want = append(want, bad{"web0", "data", dedupe.KindBlock, off, 16 << 10})
	}
	want = append(want, bad{"web0", "change set", dedupe.KindBlock, 0, m.Disks[0].ChangeSet.Length})
	s.Remove(dedupe.KindBlock, m.Disks[0].ChangeSet.Blocks[0]) // both disks have the same one
	const leaf = 128 * 16 << 10
	if err := hashtree.Visit(t.Context(), hashtree.Direct(s), m.Disks[1].Root, 7*leaf, 1, func(e hashtree.Entry) (bool, error) {
		if e.Level == 0 {
			s.Remove(dedupe.KindNode, e.Digest)
		}
		return e.Level > 0, nil
	}); err != nil {
		t.Fatal(err)
	}
	want = append(want, bad{"web1", "data", dedupe.KindNode, 7 * leaf, leaf})
	s.Remove(dedupe.KindBlock, lookup(t, s, m.Disks[1].Root, 300*step))
	want = append(want, bad{"web1", "data", dedupe.KindBlock, 300 * step, 16 << 10},
		bad{"web1", "change set", dedupe.KindBlock, 0, m.Disks[1].ChangeSet.Length})

	r, err := verify.Point(t.Context(), s, m, nil)
	if err != nil || r.OK() || !errors.Is(r.Err(), dedupe.ErrCorrupt) {
		t.Fatalf("%+v, %v", r, err)
	}
	if int(r.BadCount) != len(want) || len(r.Bad) != len(want) {
		t.Fatalf("%d bad: %v", r.BadCount, r.Bad)
	}
	for i, b := range r.Bad {
		if got := (bad{b.Disk, b.Part, b.Kind, b.Offset, b.Length}); got != want[i] {
			t.Errorf("bad %d: %+v, want %+v", i, got, want[i])
		}
		if !strings.Contains(b.String(), b.Digest.String()) || b.Err == nil {
			t.Errorf("bad %d reads as %s", i, b)
		}
	}
	lostBlocks := int64(leaf / step) // below the lost node
	if got, want := r.Blocks, whole.Blocks-lostBlocks-7; got != want {
		t.Errorf("%d blocks are good, want %d", got, want)
	}
	if got, want := r.Nodes, whole.Nodes-1; got != want {
		t.Errorf("%d nodes are good, want %d", got, want)
	}
}

// TestPack: over packs on a disk the report names the pack of a block whose bit flipped.
func TestPack(t *testing.T) {
	dir := t.TempDir()
	if err := blockstore.Create(dir, blockstore.Options{}); err != nil {
		t.Fatal(err)
	}
	s, err := blockstore.Open(dir, blockstore.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	m := machine(t, s, 20<<20, 1<<20)
	bad := lookup(t, s, m.Disks[0].Root, 3<<20)
	pack, off, length, err := s.Locate(bad)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(pack, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var one [1]byte
	if _, err := f.ReadAt(one[:], off+length-100); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte{one[0] ^ 4}, off+length-100); err != nil {
		t.Fatal(err)
	}
	r, err := verify.Point(t.Context(), s, m, nil)
	if err != nil || len(r.Bad) != 1 || r.Bad[0].Digest != bad || r.Bad[0].Pack != pack || r.Bad[0].Offset != 3<<20 {
		t.Fatalf("%+v, %v", r, err)
	}
}

// TestCanceled: verification that was stopped is an error, not a good report.
func TestCanceled(t *testing.T) {
	s := dedupetest.NewMemory(16 << 10)
	m := machine(t, s, 20<<20, 64<<10)
	ctx, cancel := context.WithCancel(t.Context())
	_, err := verify.Point(ctx, s, m, func(int64) { cancel() })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := verify.Point(t.Context(), s, m, nil); !errors.Is(err, dedupe.ErrClosed) {
		t.Errorf("closed store: %v", err)
	}
}
