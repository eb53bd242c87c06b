package snapshot_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/keelblock/keelblock/blockdev"
	"github.com/keelblock/keelblock/blockdev/cbt"
	"github.com/keelblock/keelblock/blockdev/faultdev"
	"github.com/keelblock/keelblock/blockdev/localdisk"
	"github.com/keelblock/keelblock/blockdev/snapshot"
)

const (
	mib   = 1 << 20
	grain = blockdev.GrainSize
)

// disks opens n disks of 4 MiB on one clock.
type disks struct {
	*testing.T
	clock  *cbt.Clock
	faults []*faultdev.Device
	ts     []*cbt.Tracker
	opts   []cbt.Options
}

func newDisks(t *testing.T, n int, change func(*cbt.Options)) *disks {
	t.Helper()
	return newDisksIn(t, t.TempDir(), n, 4*mib, change)
}

// newDisksIn opens n disks of a size on one clock.
func newDisksIn(t *testing.T, dir string, n int, size int64, change func(*cbt.Options)) *disks {
	t.Helper()
	maps, err := os.MkdirTemp("/dev/shm", "keelblock-snapshot-test-")
	if err != nil {
		t.Skipf("no tmpfs: %v", err)
	}
	t.Cleanup(func() { os.RemoveAll(maps) })
	ds := &disks{T: t, clock: cbt.NewClock()}
	for i := range n {
		name := "disk-" + strconv.Itoa(i)
		path := filepath.Join(dir, name)
		if err := localdisk.Create(path, size); err != nil {
			t.Fatal(err)
		}
		d, err := localdisk.Open(path, localdisk.Options{})
		if err != nil {
			t.Fatal(err)
		}
		fault := faultdev.New(d)
		o := cbt.Options{DiskID: name, MapPath: filepath.Join(maps, name), SavePath: path + ".map",
			Witness: func() (cbt.Witness, bool) { w, ok := d.Witness(); return cbt.Witness(w), ok }}
		if change != nil {
			change(&o)
		}
		tr, err := cbt.Open(fault, ds.clock, o)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { tr.Close() })
		ds.faults, ds.ts, ds.opts = append(ds.faults, fault), append(ds.ts, tr), append(ds.opts, o)
	}
	return ds
}

func (ds *disks) write(i int, off int64, n int, fill byte) {
	ds.Helper()
	if _, err := ds.ts[i].WriteAt(bytes.Repeat([]byte{fill}, n), off); err != nil {
		ds.Fatal(err)
	}
}

func (ds *disks) acquire(c *snapshot.Coordinator, which ...int) *snapshot.Slots {
	ds.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	s, err := c.Acquire(ctx, ds.pick(which...))
	if err != nil {
		ds.Fatal(err)
	}
	return s
}

func (ds *disks) pick(which ...int) (ts []*cbt.Tracker) {
	for _, i := range which {
		ts = append(ts, ds.ts[i])
	}
	return ts
}

func mustCut(t *testing.T, s *snapshot.Slots) *snapshot.Cut {
	t.Helper()
	c, err := s.Cut(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// read lays a snapshot over base.
func read(t *testing.T, s *snapshot.Snapshot, base []byte) []byte {
	t.Helper()
	err := s.Capture(context.Background(), cbt.Sink{Write: func(off int64, p []byte) error {
		copy(base[off:], p)
		return nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	return base
}

func TestSlotsAreTakenAllOrNone(t *testing.T) {
	ds := newDisks(t, 3, nil)
	c := snapshot.New(ds.clock)
	ab := ds.acquire(c, 1, 0)
	short, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if _, err := c.Acquire(short, ds.pick(1, 2)); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("acquire of a held disk: %v", err)
	}
	ds.acquire(c, 2).Release() // the failed request holds nothing
	got := make(chan string, 2)
	go func() { s, _ := c.Acquire(context.Background(), ds.pick(1, 2)); got <- "both"; s.Release() }()
	waitQueued(t, c, 1)
	// A later request for one of them queues behind, so the pair is not starved.
	go func() { s, _ := c.Acquire(context.Background(), ds.pick(2)); got <- "one"; s.Release() }()
	waitQueued(t, c, 2)
	ab.Release()
	ab.Release()
	if a, b := <-got, <-got; a != "both" || b != "one" {
		t.Errorf("served %s, then %s", a, b)
	}
	if _, err := c.Acquire(context.Background(), ds.pick(0, 0)); err == nil {
		t.Error("a disk was named twice")
	}
	if _, err := ab.Cut(context.Background()); !errors.Is(err, snapshot.ErrReleased) {
		t.Errorf("cut of released slots: %v", err)
	}
}

func waitQueued(t *testing.T, c *snapshot.Coordinator, n int) {
	t.Helper()
	for range 1000 {
		if c.Waiting() == n {
			return
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatalf("%d requests wait, want %d", c.Waiting(), n)
}

func TestCutOfTwoDisksCommits(t *testing.T) {
	ds := newDisks(t, 2, nil)
	s := ds.acquire(snapshot.New(ds.clock), 1, 0)
	defer s.Release()
	for i := range 2 {
		if err := ds.ts[i].SetBase(cbt.PointID{1}); err != nil {
			t.Fatal(err)
		}
		ds.write(i, grain, 3*grain, byte(i+1))
	}
	cut := mustCut(t, s)
	ds.write(0, grain, grain, 9)
	if cut.FrozenAt.IsZero() || cut.FreezeDuration <= 0 || len(cut.Disks) != 2 {
		t.Errorf("cut %+v", cut)
	}
	for k, i := range []int{1, 0} { // in the order of Acquire
		if n := cut.Disks[k].ChangedBytes(); n != 3*grain || cut.Disks[k].Size() != 4*mib {
			t.Errorf("%d bytes changed of %d", n, cut.Disks[k].Size())
		}
		want := make([]byte, 4*mib)
		copy(want[grain:], bytes.Repeat([]byte{byte(i + 1)}, 3*grain))
		if !bytes.Equal(read(t, cut.Disks[k], make([]byte, 4*mib)), want) {
			t.Errorf("snapshot of disk %d is wrong", i)
		}
	}
	if _, err := s.Cut(context.Background()); !errors.Is(err, snapshot.ErrOpenCut) {
		t.Errorf("second cut: %v", err)
	}
	if err := cut.Commit(); err == nil {
		t.Error("a cut was committed that was not prepared")
	}
	if err := cut.Prepare([]cbt.PointID{{2}}); err == nil {
		t.Error("one point for two disks")
	}
	if err := errors.Join(cut.Prepare([]cbt.PointID{{2}, {3}}), cut.Commit(), cut.Abort(), cut.Err()); err != nil {
		t.Fatal(err)
	}
	if base, _ := ds.ts[1].Bases(); base != (cbt.PointID{2}) {
		t.Errorf("base of disk 1 is %x", base[0])
	}
	if n := ds.ts[0].Stats().ChangedBytes; n != grain {
		t.Errorf("%d bytes are listed after the commit", n)
	}
	next := mustCut(t, s) // the same slots may cut again
	if next.Disks[1].ChangedBytes() != grain {
		t.Error("the next cut does not hold the write during the first")
	}
}

func TestTroubleOfOneDiskAbortsTheCutOfAll(t *testing.T) {
	eio := errors.New("EIO")
	for name, fail := range map[string]func(*faultdev.Device){
		"the old content cannot be read": func(d *faultdev.Device) { d.Inject(failing(faultdev.Read, eio)) },
	} {
		t.Run(name, func(t *testing.T) {
			ds := newDisks(t, 2, nil)
			s := ds.acquire(snapshot.New(ds.clock), 0, 1)
			defer s.Release()
			ds.write(0, 0, grain, 1)
			ds.write(1, 0, grain, 1)
			cut := mustCut(t, s)
			fail(ds.faults[1])
			ds.write(1, 0, grain, 2) // the guest does not notice
			ds.faults[1].Inject(nil)
			if err := cut.Err(); !errors.Is(err, snapshot.ErrAborted) || !errors.Is(err, eio) || !strings.Contains(err.Error(), "disk-1") {
				t.Errorf("cut error %v", err)
			}
			err := cut.Disks[0].Capture(context.Background(), cbt.Sink{Write: func(int64, []byte) error { return nil }})
			if !errors.Is(err, snapshot.ErrAborted) {
				t.Errorf("capture of the other disk: %v", err)
			}
			if err := cut.Prepare([]cbt.PointID{{1}, {1}}); !errors.Is(err, snapshot.ErrAborted) {
				t.Errorf("prepare: %v", err)
			}
			if err := cut.Abort(); err != nil {
				t.Fatal(err)
			}
			for i, tr := range ds.ts {
				if n := tr.Stats().ChangedBytes; n != grain {
					t.Errorf("disk %d lists %d bytes", i, n)
				}
			}
			cut = mustCut(t, s)
			if got := read(t, cut.Disks[1], make([]byte, 4*mib)); got[0] != 2 {
				t.Errorf("the next cut holds %d", got[0])
			}
		})
	}
}

func failing(op faultdev.Op, err error) func(faultdev.Request) faultdev.Fault {
	return func(r faultdev.Request) (f faultdev.Fault) {
		if r.Op == op {
			f.Err = err
		}
		return f
	}
}

func TestCutFailsBeforeItFreezesWhenTheSpillCannotBeMade(t *testing.T) {
	ds := newDisks(t, 1, func(o *cbt.Options) { o.SpillPath = filepath.Join(filepath.Dir(o.SavePath), "missing", "spill") })
	s := ds.acquire(snapshot.New(ds.clock), 0)
	defer s.Release()
	ds.write(0, 0, grain, 1)
	if _, err := s.Cut(context.Background()); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "disk-0") {
		t.Errorf("cut: %v", err)
	}
	if n := ds.ts[0].Stats(); n.Freezes != 0 || n.ChangedBytes != grain {
		t.Errorf("stats %+v", n)
	}
	full := newDisks(t, 1, func(o *cbt.Options) { o.SpillReserveBytes = 1 << 60 })
	s = full.acquire(snapshot.New(full.clock), 0)
	defer s.Release()
	if _, err := s.Cut(context.Background()); !errors.Is(err, cbt.ErrSpillFull) {
		t.Errorf("cut without room for a spill: %v", err)
	}
}

// TestDemand43FullReadBeforeTheFreeze: a disk in doubt is compared while it is
// written, and then trusted again; what is pending at the freeze is only what was
// written during the read.
func TestDemand43FullReadBeforeTheFreeze(t *testing.T) {
	ds := newDisks(t, 1, nil)
	tr := ds.ts[0]
	if err := tr.SetBase(cbt.PointID{1}); err != nil {
		t.Fatal(err)
	}
	tr.Distrust("a test")
	ds.write(0, 0, mib, 1)
	s := ds.acquire(snapshot.New(ds.clock), 0)
	if err := s.Baseline(context.Background()); err != nil {
		t.Fatal(err)
	}
	if n := tr.Stats().ChangedBytes; n != 0 {
		t.Errorf("%d bytes are listed after the baseline", n)
	}
	content := make([]byte, 4*mib)
	half := int64(2 * mib)
	if _, err := tr.ReadAt(content[:half], 0); err != nil {
		t.Fatal(err)
	}
	ds.write(0, 0, grain, 2)    // behind the reader
	ds.write(0, half, grain, 3) // before it
	if _, err := tr.ReadAt(content[half:], half); err != nil {
		t.Fatal(err)
	}
	cut := mustCut(t, s)
	if n := cut.Disks[0].ChangedBytes(); n != 2*grain {
		t.Errorf("%d bytes are pending, want two grains", n)
	}
	ds.write(0, 0, mib, 4)
	want := make([]byte, 4*mib)
	copy(want, bytes.Repeat([]byte{1}, mib))
	copy(want, bytes.Repeat([]byte{2}, grain))
	copy(want[half:], bytes.Repeat([]byte{3}, grain))
	if !bytes.Equal(read(t, cut.Disks[0], content), want) {
		t.Error("the content is not that of the cut")
	}
	if state, _ := tr.Tracking(); state != cbt.TrackingCompare {
		t.Errorf("before the commit: %v", state)
	}
	if err := errors.Join(cut.Prepare([]cbt.PointID{{2}}), cut.Commit()); err != nil {
		t.Fatal(err)
	}
	if state, reason := tr.Tracking(); state != cbt.TrackingEnabled {
		t.Errorf("after the commit: %v: %s", state, reason)
	}
	s.Release()
	if got := changed(tr); !slices.Equal(got, []blockdev.Extent{{Offset: 0, Length: mib}}) {
		t.Errorf("listed %v", got)
	}
}

func changed(tr *cbt.Tracker) (es []blockdev.Extent) {
	tr.Changed(func(e blockdev.Extent) bool { es = append(es, e); return true })
	return es
}

// TestFailedFlushDuringAFullReadKeepsItFromCommitting: a flush that fails after the baseline
// may have lost what was read as good.
func TestFailedFlushDuringAFullReadKeepsItFromCommitting(t *testing.T) {
	ds := newDisks(t, 1, nil)
	s := ds.acquire(snapshot.New(ds.clock), 0)
	defer s.Release()
	if err := s.Baseline(context.Background()); err != nil {
		t.Fatal(err)
	}
	eio := errors.New("EIO")
	ds.faults[0].Inject(failing(faultdev.Flush, eio))
	if err := ds.ts[0].Flush(); !errors.Is(err, eio) {
		t.Fatalf("flush: %v", err)
	}
	ds.faults[0].Inject(nil)
	if err := ds.ts[0].Flush(); !errors.Is(err, eio) {
		t.Errorf("the flush after a failed flush: %v", err)
	}
	// Nothing is published of a disk that may have lost what was written.
	cut := mustCut(t, s)
	if err := cut.Prepare([]cbt.PointID{{2}}); !errors.Is(err, eio) {
		t.Errorf("prepare after a failed flush: %v", err)
	}
	if err := cut.Abort(); err != nil {
		t.Fatal(err)
	}
	if state, reason := ds.ts[0].Tracking(); state == cbt.TrackingEnabled {
		t.Errorf("after the abort: %v: %s", state, reason)
	}
}

// A doubt of another kind does not keep a point from being made, and outlives it.
func TestDistrustDuringAFullReadOutlivesItsCommit(t *testing.T) {
	ds := newDisks(t, 1, nil)
	s := ds.acquire(snapshot.New(ds.clock), 0)
	defer s.Release()
	if err := s.Baseline(context.Background()); err != nil {
		t.Fatal(err)
	}
	ds.ts[0].Distrust("a test")
	cut := mustCut(t, s)
	if err := errors.Join(cut.Prepare([]cbt.PointID{{2}}), cut.Commit()); err != nil {
		t.Fatal(err)
	}
	if state, reason := ds.ts[0].Tracking(); state != cbt.TrackingCompare || !strings.Contains(reason, "a test") {
		t.Errorf("after the commit: %v: %s", state, reason)
	}
}

func TestReleaseAbortsAndTakesTheBaselineBack(t *testing.T) {
	ds := newDisks(t, 1, nil)
	c := snapshot.New(ds.clock)
	s := ds.acquire(c, 0)
	if err := s.Baseline(context.Background()); err != nil {
		t.Fatal(err)
	}
	ds.write(0, 0, grain, 1)
	cut := mustCut(t, s)
	s.Release()
	if err := cut.Prepare([]cbt.PointID{{1}}); err == nil {
		t.Error("a cut of released slots was prepared")
	}
	if n := ds.ts[0].Stats(); n.ChangedBytes != grain || n.Aborts != 1 {
		t.Errorf("stats %+v", n)
	}
	// A cut without a baseline of its own does not earn trust.
	s = ds.acquire(c, 0)
	defer s.Release()
	cut = mustCut(t, s)
	read(t, cut.Disks[0], make([]byte, 4*mib))
	if err := errors.Join(cut.Prepare([]cbt.PointID{{2}}), cut.Commit()); err != nil {
		t.Fatal(err)
	}
	if state, _ := ds.ts[0].Tracking(); state == cbt.TrackingEnabled {
		t.Error("a disk that was never read in full is trusted")
	}
}

func TestCloseWithAnOpenCut(t *testing.T) {
	ds := newDisks(t, 2, nil)
	s := ds.acquire(snapshot.New(ds.clock), 0, 1)
	defer s.Release()
	if err := ds.ts[0].SetBase(cbt.PointID{1}); err != nil {
		t.Fatal(err)
	}
	ds.write(0, 0, grain, 1)
	cut := mustCut(t, s)
	ds.write(0, mib, grain, 2)
	if err := errors.Join(ds.ts[0].Close(), ds.ts[0].Close()); err != nil {
		t.Fatal(err)
	}
	if err := cut.Err(); !errors.Is(err, blockdev.ErrClosed) {
		t.Errorf("cut error %v", err)
	}
	if n := cut.Disks[0].ChangedBytes(); n != 0 {
		t.Errorf("the snapshot of a closed disk lists %d bytes", n)
	}
	if err := cut.Abort(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Cut(context.Background()); !errors.Is(err, blockdev.ErrClosed) {
		t.Errorf("cut of a closed disk: %v", err)
	}
	d, err := localdisk.Open(strings.TrimSuffix(ds.opts[0].SavePath, ".map"), localdisk.Options{})
	if err != nil {
		t.Fatal(err)
	}
	o := ds.opts[0]
	o.Witness = func() (cbt.Witness, bool) { w, ok := d.Witness(); return cbt.Witness(w), ok }
	tr, err := cbt.Open(d, ds.clock, o)
	if err != nil {
		t.Fatal(err)
	}
	defer tr.Close()
	want := []blockdev.Extent{{Offset: 0, Length: grain}, {Offset: mib, Length: grain}}
	if got := changed(tr); !slices.Equal(got, want) {
		t.Errorf("listed %v, want %v", got, want)
	}
}
