package backup

import (
	"context"
	"math"
	"math/rand/v2"
	"path/filepath"
	"testing"

	"github.com/keelblock/keelblock/blockdev"
	"github.com/keelblock/keelblock/blockdev/cbt"
	"github.com/keelblock/keelblock/blockdev/localdisk"
	"github.com/keelblock/keelblock/dedupe/dedupetest"
	"github.com/keelblock/keelblock/dedupe/hashtree"
	"github.com/keelblock/keelblock/dedupe/ingest"
)

const testBlock = 64 << 10

// auditedDisk is a tracked disk that is in parts full, whose base is what it holds.
type auditedDisk struct {
	store *dedupetest.Memory
	clock *cbt.Clock
	file  *localdisk.Disk
	t     *cbt.Tracker
	base  hashtree.Root
}

func newAuditedDisk(t *testing.T, size int64) *auditedDisk {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, "disk.raw")
	if err := localdisk.Create(path, size); err != nil {
		t.Fatal(err)
	}
	a := &auditedDisk{store: dedupetest.NewMemory(testBlock), clock: cbt.NewClock()}
	var err error
	if a.file, err = localdisk.Open(path, localdisk.Options{}); err != nil {
		t.Fatal(err)
	}
	a.t, err = cbt.Open(a.file, a.clock, cbt.Options{DiskID: "audited", MapPath: filepath.Join(dir, "map"),
		SavePath: filepath.Join(dir, "saved"), IntentPath: filepath.Join(dir, "intent")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.t.Close() })
	p := make([]byte, testBlock)
	for off := int64(0); off < size; off += 3 * testBlock { // two of three blocks are holes
		for i := range p {
			p[i] = byte(rand.Uint32())
		}
		n := min(testBlock, size-off)
		if _, err := a.t.WriteAt(p[:n], off); err != nil {
			t.Fatal(err)
		}
	}
	batch := dedupetest.Begin(t, a.store)
	pass, err := ingest.NewPass(a.store, batch, hashtree.Root{}, size, ingest.Options{})
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	all := blockdev.Extent{Length: size}
	if err := readRange(ctx, a.t, all, pass, make([]byte, readChunk), func(int64) {}); err != nil {
		t.Fatal(err)
	}
	if a.base, _, err = pass.Finish(ctx); err != nil {
		t.Fatal(err)
	}
	dedupetest.Commit(t, batch, "point")
	if err := a.t.SetBase(cbt.PointID{1}); err != nil {
		t.Fatal(err)
	}
	return a
}

func (a *auditedDisk) auditor(reads int64) *auditor {
	au := &auditor{dev: a.t, nodes: hashtree.Cached(a.store, 64), base: a.base, digest: a.store.BlockDigest, seed: rand.Uint64()}
	au.sizes(1)
	if reads > 0 {
		au.reads, au.draws = reads, reads
	}
	return au
}

func (a *auditedDisk) run(t *testing.T, au *auditor) int64 {
	t.Helper()
	at, err := au.run(context.Background())
	if err != nil {
		t.Fatalf("seed %d: %v", au.seed, err)
	}
	return at
}

// foreign writes one byte of the file behind the tracker's back.
func (a *auditedDisk) foreign(t *testing.T, off int64) {
	t.Helper()
	b := make([]byte, 1)
	if _, err := a.file.ReadAt(b, off); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 0xff
	if _, err := a.file.WriteAt(b, off); err != nil {
		t.Fatal(err)
	}
}

// An audit of every block finds any foreign write, in data, in a hole, and in the last
// part of a block.
func TestAuditOfEveryBlockFindsAnyForeignWrite(t *testing.T) {
	const size = 40*testBlock + 5*512
	for _, off := range []int64{0, 3*testBlock + 4097, testBlock + 1, size - 1} {
		a := newAuditedDisk(t, size)
		if at := a.run(t, a.auditor(1<<30)); at >= 0 {
			t.Fatalf("a good disk differs at %d", at)
		}
		a.foreign(t, off)
		if at := a.run(t, a.auditor(1<<30)); at != off/testBlock*testBlock {
			t.Errorf("a foreign write at %d is found at %d", off, at)
		}
		if at := a.run(t, a.auditor(0)); at != off/testBlock*testBlock {
			t.Errorf("a foreign write at %d of a small disk is found at %d by the usual sample", off, at)
		}
		// The guest writes there: from now on it is the guest's change.
		if _, err := a.t.WriteAt([]byte{1}, off); err != nil {
			t.Fatal(err)
		}
		if at := a.run(t, a.auditor(1<<30)); at >= 0 {
			t.Errorf("a listed block is said to differ, at %d", at)
		}
	}
}

// A sample finds what it should, as often as it should.
func TestAuditFindsAsOftenAsComputed(t *testing.T) {
	const blocks, foreign, reads, rounds = 3 * 128, 12, 40, 150
	a := newAuditedDisk(t, blocks*testBlock)
	for i := range int64(foreign) {
		a.foreign(t, i*(blocks/foreign)*testBlock+77)
	}
	found := 0
	for range rounds {
		au := a.auditor(reads)
		if a.run(t, au) >= 0 {
			found++
		}
	}
	p := 1 - math.Pow(1-float64(foreign)/blocks, reads)
	mean, sigma := rounds*p, math.Sqrt(rounds*p*(1-p))
	t.Logf("found in %d of %d audits, computed %.0f ± %.1f", found, rounds, mean, sigma)
	if math.Abs(float64(found)-mean) > 6*sigma {
		t.Errorf("found in %d of %d audits, want %.0f ± %.1f", found, rounds, mean, 6*sigma)
	}
}

// A guest that writes all the time is never taken for a stranger.
func TestAuditUnderLoadRaisesNoFalseAlarm(t *testing.T) {
	const blocks = 48
	a := newAuditedDisk(t, blocks*testBlock)
	stop, done := make(chan struct{}), make(chan error)
	const writers = 3
	for w := range uint64(writers) {
		go func() {
			r := rand.New(rand.NewPCG(w, 1))
			p := make([]byte, 20000)
			for {
				select {
				case <-stop:
					done <- nil
					return
				default:
				}
				n := 1 + r.Int64N(int64(len(p)))
				off := r.Int64N(blocks*testBlock - n)
				for i := range p[:n] {
					p[i] = byte(r.Uint32())
				}
				var err error
				switch r.IntN(8) {
				case 0:
					err = a.t.Trim(off, n)
				case 1:
					err = a.t.WriteZeroes(off, n, true)
				default:
					_, err = a.t.WriteAt(p[:n], off)
				}
				if err != nil {
					done <- err
					return
				}
			}
		}()
	}
	for range 10 {
		// What the writers wrote so far becomes the base, and nothing is listed any more.
		a.rebase(t)
		for range 3 {
			if at := a.run(t, a.auditor(1<<30)); at >= 0 {
				t.Errorf("false alarm at %d", at)
			}
		}
	}
	close(stop)
	for range writers {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// rebase is a backup while the guest writes.
func (a *auditedDisk) rebase(t *testing.T) {
	t.Helper()
	ctx := context.Background()
	z, err := a.clock.Freeze([]*cbt.Tracker{a.t})
	if err != nil {
		t.Fatal(err)
	}
	f := z.Disks[0]
	batch := dedupetest.Begin(t, a.store)
	pass, err := ingest.NewPass(a.store, batch, a.base, a.t.Size(), ingest.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Drain(ctx); err != nil {
		t.Fatal(err)
	}
	err = f.Capture(ctx, cbt.Sink{Write: func(off int64, p []byte) error { return pass.Write(ctx, off, p) },
		Zero: func(off, n int64) error { return pass.Zero(ctx, off, n) }})
	if err == nil {
		a.base, _, err = pass.Finish(ctx)
	}
	if err == nil {
		err = f.Prepare(cbt.PointID{2})
	}
	if err != nil {
		t.Fatal(err)
	}
	dedupetest.Commit(t, batch, "another point")
	if err := f.Commit(); err != nil {
		t.Fatal(err)
	}
}
