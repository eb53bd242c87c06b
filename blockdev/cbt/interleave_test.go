package cbt

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keelblock/keelblock/blockdev"
)

// gate holds the first goroutine that reaches a hook of a disk until it is opened.
type gate struct {
	h       hook
	t       *Tracker
	armed   atomic.Bool
	arrived chan struct{}
	open    chan struct{}
	once    sync.Once
}

// release lets the held goroutine go on; the end of the test does it too.
func (c *gate) release() { c.once.Do(func() { close(c.open) }) }

// gates are the hooks of a test.
type gates struct{ current atomic.Pointer[gate] }

func (g *gates) hook(h hook, t *Tracker) {
	if c := g.current.Load(); c != nil && c.h == h && c.t == t && c.armed.CompareAndSwap(true, false) {
		close(c.arrived)
		<-c.open
	}
}

// hold arms a gate at h and runs fn, which is to reach it, in a goroutine.
func (g *gates) hold(tb testing.TB, t *Tracker, h hook, fn func()) (c *gate, done chan struct{}) {
	tb.Helper()
	c = &gate{h: h, t: t, arrived: make(chan struct{}), open: make(chan struct{})}
	c.armed.Store(true)
	g.current.Store(c)
	tb.Cleanup(c.release)
	done = background(fn)
	wait(tb, c.arrived, "the gate")
	return c, done
}

func background(fn func()) chan struct{} {
	done := make(chan struct{})
	go func() {
		defer close(done)
		fn()
	}()
	return done
}

func wait(tb testing.TB, c <-chan struct{}, what string) {
	tb.Helper()
	select {
	case <-c:
	case <-time.After(20 * time.Second):
		tb.Fatalf("%s did not come", what)
	}
}

// waits fails the test if c is closed within a moment.
func waits(tb testing.TB, c <-chan struct{}, what string) {
	tb.Helper()
	select {
	case <-c:
		tb.Errorf("%s did not wait", what)
	case <-time.After(30 * time.Millisecond):
	}
}

// rig is a disk of 2 MiB with two dirty grains, 0 and 256 (another stripe), of fill 1.
type rig struct {
	d     *memDisk
	c     *Clock
	t     *Tracker
	gates gates
}

func newRig(t *testing.T) *rig {
	r := &rig{d: newMemDisk(2 * mib), c: NewClock()}
	o := options(t, r.d)
	o.hooks = r.gates.hook
	r.t = mustOpen(t, r.d, r.c, o)
	mustWrite(t, r.t, 0, 4096, 1)
	mustWrite(t, r.t, mib, 4096, 1)
	return r
}

func (r *rig) freeze(tb testing.TB) *Freeze {
	z, err := r.c.Freeze([]*Tracker{r.t})
	if err != nil {
		tb.Fatal(err)
	}
	return z
}

// expect captures and checks the first byte of grains 0 and 256.
func (r *rig) expect(t *testing.T, f *Frozen, grain0, grain256 byte) {
	t.Helper()
	got := capture(t, f, make([]byte, 2*mib))
	want := make([]byte, 2*mib)
	copy(want, bytes.Repeat([]byte{grain0}, 4096))
	copy(want[mib:], bytes.Repeat([]byte{grain256}, 4096))
	if !bytes.Equal(got, want) {
		t.Errorf("captured %d and %d, want %d and %d", got[0], got[mib], grain0, grain256)
	}
}

func TestWriteThatLoadedTheOldEpochAndStalled(t *testing.T) {
	r := newRig(t)
	g, w1 := r.gates.hold(t, r.t, hookEpochLoaded, func() { r.t.WriteAt(bytes.Repeat([]byte{2}, 4096), 0) })
	z := r.freeze(t)
	if err := z.Disks[0].Drain(context.Background()); err != nil { // W1 is not registered
		t.Fatal(err)
	}
	// W1 holds nothing yet, so W2 does not wait for it. W1 looks a second time and goes
	// over to the new epoch.
	w2 := background(func() { r.t.WriteAt(bytes.Repeat([]byte{3}, 4096), 0) })
	wait(t, w2, "the second write")
	g.release()
	wait(t, w1, "the first write")
	r.expect(t, z.Disks[0], 1, 1)
	if r.d.data[0] != 2 {
		t.Errorf("the disk holds %d, want 2", r.d.data[0])
	}
	if got := listed(r.t); len(got) != 2 {
		t.Errorf("listed %v", got)
	}
}

func TestWriteThatRegisteredAndStalledBeforeItsSecondLook(t *testing.T) {
	r := newRig(t)
	g, w1 := r.gates.hold(t, r.t, hookRegistered, func() { r.t.WriteAt(bytes.Repeat([]byte{2}, 4096), 0) })
	z := r.freeze(t)
	drained := background(func() {
		if err := z.Disks[0].Drain(context.Background()); err != nil {
			t.Error(err)
		}
	})
	waits(t, drained, "the drain")
	w2 := background(func() { r.t.WriteAt(bytes.Repeat([]byte{3}, 4096), mib) })
	wait(t, w2, "a write of another stripe during the transition")
	g.release()
	wait(t, w1, "the write")
	wait(t, drained, "the drain")
	r.expect(t, z.Disks[0], 1, 1)
}

func TestOldWriteIsInTheSnapshotAndTheDrainWaitsForIt(t *testing.T) {
	r := newRig(t)
	g, w1 := r.gates.hold(t, r.t, hookBitsSet, func() { r.t.WriteAt(bytes.Repeat([]byte{2}, 4096), 4096) })
	z := r.freeze(t)
	drained := background(func() {
		if err := z.Disks[0].Drain(context.Background()); err != nil {
			t.Error(err)
		}
	})
	waits(t, drained, "the drain")
	w2 := background(func() { r.t.WriteAt(bytes.Repeat([]byte{3}, 4096), 4096) })
	waits(t, w2, "the younger write of the same stripe")
	g.release()
	wait(t, w1, "the write")
	wait(t, drained, "the drain")
	wait(t, w2, "the younger write")
	got := capture(t, z.Disks[0], make([]byte, 2*mib))
	if got[0] != 1 || got[4096] != 2 || got[8191] != 2 {
		t.Errorf("captured %d %d, want 1 2", got[0], got[4096])
	}
	if r.d.data[4096] != 3 {
		t.Errorf("the disk holds %d, want 3", r.d.data[4096])
	}
}

func TestCaptureWaitsForAGrainThatIsClaimedAndNotYetCopied(t *testing.T) {
	r := newRig(t)
	z := mustFreeze(t, r.c, r.t)
	g, w1 := r.gates.hold(t, r.t, hookClaimed, func() { r.t.WriteAt(bytes.Repeat([]byte{2}, 4096), 0) })
	captured := background(func() { r.expect(t, z.Disks[0], 1, 1) })
	waits(t, captured, "the capture")
	g.release()
	wait(t, w1, "the write")
	wait(t, captured, "the capture")
	if s := r.t.Stats(); s.Copies != 1 {
		t.Errorf("%d copies, want 1", s.Copies)
	}
}

func TestWriteOvertakesTheCaptureBetweenReadAndClaim(t *testing.T) {
	r := newRig(t)
	z := mustFreeze(t, r.c, r.t)
	g, captured := r.gates.hold(t, r.t, hookCaptureRead, func() { r.expect(t, z.Disks[0], 1, 1) })
	mustWrite(t, r.t, 0, 4096, 2)
	mustWrite(t, r.t, 0, 4096, 3) // claimed already: no second copy
	g.release()
	wait(t, captured, "the capture")
	if s := r.t.Stats(); s.Copies != 1 {
		t.Errorf("%d copies, want 1", s.Copies)
	}
	mustWrite(t, r.t, mib, 4096, 4) // the capture has claimed it: no copy
	if s := r.t.Stats(); s.Copies != 1 {
		t.Errorf("%d copies, want 1", s.Copies)
	}
}

func TestAbortWaitsForTheOldWriteBeforeItMerges(t *testing.T) {
	r := newRig(t)
	g, w1 := r.gates.hold(t, r.t, hookRegistered, func() { r.t.WriteAt(bytes.Repeat([]byte{2}, 4096), 8192) })
	z := r.freeze(t)
	aborted := background(func() {
		if err := z.Disks[0].Abort(); err != nil {
			t.Error(err)
		}
	})
	waits(t, aborted, "the abort")
	g.release()
	wait(t, w1, "the write")
	wait(t, aborted, "the abort")
	want := []blockdev.Extent{{Offset: 0, Length: 4096}, {Offset: 8192, Length: 4096}, {Offset: mib, Length: 4096}}
	if got := listed(r.t); !slices.Equal(got, want) {
		t.Errorf("listed %v, want %v", got, want)
	}
}

func TestAbortWaitsForTheWriteThatIsPreserving(t *testing.T) {
	r := newRig(t)
	z := mustFreeze(t, r.c, r.t)
	g, w1 := r.gates.hold(t, r.t, hookClaimed, func() { r.t.WriteAt(bytes.Repeat([]byte{2}, 4096), 0) })
	captured := background(func() {
		err := z.Disks[0].Capture(context.Background(), Sink{Write: func(int64, []byte) error { return nil }})
		if !errors.Is(err, ErrAborted) {
			t.Errorf("capture: %v, want ErrAborted", err)
		}
	})
	waits(t, captured, "the capture")
	aborted := background(func() {
		if err := z.Disks[0].Abort(); err != nil {
			t.Error(err)
		}
	})
	wait(t, captured, "the capture")
	waits(t, aborted, "the abort")
	g.release()
	wait(t, w1, "the write")
	wait(t, aborted, "the abort")
	z = mustFreeze(t, r.c, r.t) // what was preserved for the first does not count for the second
	mustWrite(t, r.t, 0, 4096, 9)
	r.expect(t, z.Disks[0], 2, 1)
}

func TestWriteBetweenTheWordAndTheEpochIsBeforeTheCut(t *testing.T) {
	r := newRig(t)
	var z *Freeze
	g, frozen := r.gates.hold(t, r.t, hookWordsStored, func() { z = r.freeze(t) })
	mustWrite(t, r.t, 0, 4096, 2)
	g.release()
	wait(t, frozen, "the freeze")
	if err := z.Disks[0].Drain(context.Background()); err != nil {
		t.Fatal(err)
	}
	mustWrite(t, r.t, 0, 4096, 3)
	r.expect(t, z.Disks[0], 2, 1)
}

func TestCommitWhileAWriteHoldsAnOldWord(t *testing.T) {
	r := newRig(t)
	z := mustFreeze(t, r.c, r.t)
	r.expect(t, z.Disks[0], 1, 1)
	g, w1 := r.gates.hold(t, r.t, hookBitsSet, func() { r.t.WriteAt(bytes.Repeat([]byte{2}, 4096), 0) })
	if err := errors.Join(z.Disks[0].Prepare(PointID{1}), z.Disks[0].Commit()); err != nil {
		t.Fatal(err)
	}
	next := r.freeze(t)
	drained := background(func() {
		if err := next.Disks[0].Drain(context.Background()); err != nil {
			t.Error(err)
		}
	})
	waits(t, drained, "the next drain")
	g.release()
	wait(t, w1, "the write")
	wait(t, drained, "the next drain")
	got := capture(t, next.Disks[0], make([]byte, 2*mib))
	if got[0] != 2 || got[mib] != 0 {
		t.Errorf("captured %d and %d, want 2 and nothing", got[0], got[mib])
	}
}

func TestDrainEndsWithItsContext(t *testing.T) {
	r := newRig(t)
	g, w1 := r.gates.hold(t, r.t, hookBitsSet, func() { r.t.WriteAt([]byte{2}, 0) })
	z := r.freeze(t)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	if err := z.Disks[0].Drain(ctx); !errors.Is(err, ErrAborted) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("drain: %v", err)
	}
	g.release()
	wait(t, w1, "the write")
	if err := z.Disks[0].Abort(); err != nil {
		t.Fatal(err)
	}
	if got := listed(r.t); len(got) != 2 {
		t.Errorf("listed %v", got)
	}
}
