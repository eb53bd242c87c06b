package cbt

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/keelblock/keelblock/blockdev"
)

func mustResize(tb testing.TB, t *Tracker, size int64) {
	tb.Helper()
	if err := t.Resize(context.Background(), size); err != nil {
		tb.Fatal(err)
	}
	if t.Size() != size {
		tb.Fatalf("size %d after a resize to %d", t.Size(), size)
	}
}

func wantListed(tb testing.TB, t *Tracker, want ...blockdev.Extent) {
	tb.Helper()
	if got := listed(t); !slices.Equal(got, want) {
		tb.Errorf("listed %v, want %v", got, want)
	}
}

func readAll(tb testing.TB, t *Tracker, off, n int64) []byte {
	tb.Helper()
	p := make([]byte, n)
	if _, err := t.ReadAt(p, off); err != nil {
		tb.Fatal(err)
	}
	return p
}

// V17: what lies between the two sizes is a change, from the MiB in which the smaller
// one ends; what the disk gains reads as zeros.
func TestResizeListsWhatItChanges(t *testing.T) {
	d, _, o := intentDisk(t, 4)
	tr := mustOpen(t, d, NewClock(), o)
	mustWrite(t, tr, 5*mib+4096, 4096, 5)
	mustResize(t, tr, 6*region+1536)
	grown := blockdev.Extent{Offset: 4 * region, Length: 2*region + 1536}
	wantListed(t, tr, blockdev.Extent{Offset: 5*mib + 4096, Length: 4096}, grown)
	mustWrite(t, tr, 6*region+1024, 512, 6) // the very end
	if _, err := tr.WriteAt(make([]byte, 512), 6*region+1536); !errors.Is(err, blockdev.ErrOutOfRange) {
		t.Errorf("past the end: %v", err)
	}
	commitPoint(t, tr, PointID{2})
	wantListed(t, tr)
	const cut = 5*mib + 4096 + 512 // in the middle of a grain
	mustResize(t, tr, cut)
	wantListed(t, tr, blockdev.Extent{Offset: 5 * mib, Length: cut - 5*mib})
	for _, err := range []error{
		lastError(tr.WriteAt(make([]byte, 1024), cut-512)), lastError(tr.ReadAt(make([]byte, 1024), cut-512)),
		tr.Trim(cut, 512), tr.WriteZeroes(cut-512, 1024, true), tr.Trim(0, 2*region),
	} {
		if !errors.Is(err, blockdev.ErrOutOfRange) {
			t.Errorf("past the new end: %v", err)
		}
	}
	mustResize(t, tr, 2*region)
	wantListed(t, tr, blockdev.Extent{Offset: 5 * mib, Length: 2*region - 5*mib})
	want := append(bytes.Repeat([]byte{5}, 512), make([]byte, 8192)...)
	if got := readAll(t, tr, cut-512, int64(len(want))); !bytes.Equal(got, want) {
		t.Error("a disk that shrank and grew back shows what it had lost")
	}
	mustResize(t, tr, 2*region) // again: nothing
	if err := tr.Close(); err != nil {
		t.Fatal(err)
	}
	tr = mustOpen(t, d, NewClock(), o)
	wantTracking(t, tr, TrackingEnabled, "")
	wantListed(t, tr, blockdev.Extent{Offset: 5 * mib, Length: 2*region - 5*mib})
	// A snapshot of the disk as it is now.
	z := mustFreeze(t, tr.clock, tr)
	if n := z.Disks[0].Size(); n != 2*region {
		t.Errorf("the snapshot has %d bytes", n)
	}
	if err := tr.Resize(context.Background(), region); !errors.Is(err, ErrFrozen) {
		t.Errorf("resize of a frozen disk: %v", err)
	}
	if err := z.Disks[0].Abort(); err != nil {
		t.Fatal(err)
	}
	for _, n := range []int64{0, -512, 1000, blockdev.MaxSize + 512} {
		if err := tr.Resize(context.Background(), n); err == nil {
			t.Errorf("resized to %d bytes", n)
		}
	}
}

func lastError(_ int, err error) error { return err }

// A crash at each step leaves one of the two sizes, and all between them in doubt or
// listed.
func TestResizeSurvivesACrashAtAnyStep(t *testing.T) {
	for _, power := range []bool{false, true} {
		for _, sizes := range [][2]int64{{4 * region, 7*region + 512}, {7 * region, 3*region + 2560}} {
			for _, at := range []hook{hookResizeAnnounced, hookResizeDone, hookResizeSettled} {
				d, f, o := intentDisk(t, sizes[0]/region)
				o.hooks = func(h hook, _ *Tracker) {
					if h == at {
						panic(crash{})
					}
				}
				tr, err := Open(d, NewClock(), o)
				if err != nil {
					t.Fatal(err)
				}
				mustWrite(t, tr, 4096, 4096, 7)
				if survives(func() { tr.Resize(context.Background(), sizes[1]) }) {
					t.Fatalf("the machine did not stop at %d", at)
				}
				f.pending, o.hooks = unsynced{}, nil
				if power {
					o.BootID = "boot-2"
				}
				// What the disk gained may hold anything when the crash came early.
				if at == hookResizeDone && sizes[1] > sizes[0] {
					d.data.write([]byte("left by somebody"), sizes[0]+100)
				}
				tr = mustOpen(t, d, NewClock(), o)
				want := sizes[1]
				if at == hookResizeAnnounced {
					want = sizes[0]
				}
				if tr.Size() != want {
					t.Errorf("crash at %d (power %v): size %d, want %d", at, power, tr.Size(), want)
				}
				if !bytes.Equal(readAll(t, tr, tr.Size()-512, 512), make([]byte, 512)) || tr.Size() > sizes[0]+512 && !bytes.Equal(readAll(t, tr, sizes[0], 512), make([]byte, 512)) {
					t.Error("what the disk gained is not zeros")
				}
				from := min(sizes[0], sizes[1]) &^ (mib - 1)
				covered := func(off int64) bool {
					in := tr.Listed(off, 1)
					tr.Doubtful(func(e blockdev.Extent) bool { in = in || off >= e.Offset && off < e.End(); return true })
					return in
				}
				for _, off := range []int64{4096, from, tr.Size() - 1} {
					if between := off >= from && off < tr.Size(); (between || off == 4096) && !covered(off) {
						t.Errorf("crash at %d (power %v): %d is neither listed nor in doubt", at, power, off)
					}
				}
				if s, reason := tr.Tracking(); s == TrackingNone || power != (s == TrackingCompare) {
					t.Errorf("crash at %d (power %v): tracking %v: %s", at, power, s, reason)
				}
				if n := len(doubtful(tr)); int64(n) == tr.Size()>>regionShift+1 {
					t.Errorf("crash at %d (power %v): all %d regions are in doubt", at, power, n)
				}
				// And it goes on from here.
				mustResize(t, tr, 5*region)
				mustWrite(t, tr, 5*region-512, 512, 1)
				if err := tr.Close(); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
}

// A disk that grows past what one sector of the intent file speaks for, and back.
func TestResizeExtendsTheIntentFile(t *testing.T) {
	d, f, o := intentDisk(t, 4)
	tr := mustOpen(t, d, NewClock(), o)
	mustResize(t, tr, 5000*region)
	if err := tr.SetBase(PointID{2}); err != nil { // it is all zeros
		t.Fatal(err)
	}
	mustWrite(t, tr, 4900*region, 4096, 1)
	mustWrite(t, tr, 7*region, 4096, 1)
	wantRegions(t, "in the file", inFile(t, o), 7, 4900)
	abandon(t, tr)
	o.BootID, f.pending = "boot-2", unsynced{}
	tr = mustOpen(t, d, NewClock(), o)
	wantRegions(t, "after a power cut", doubtful(tr), 7, 4900)
	mustResize(t, tr, 8*region)
	wantRegions(t, "after it shrank", doubtful(tr), 7)
	mustWrite(t, tr, 3*region, 4096, 1)
	abandon(t, tr)
	o.BootID, f.pending = "boot-3", unsynced{}
	tr = mustOpen(t, d, NewClock(), o)
	wantRegions(t, "after another", doubtful(tr), 3, 7)
}

// A device that cannot: the old size stays, and nothing is forgotten.
func TestResizeThatFails(t *testing.T) {
	errNo := errors.New("no")
	d, _, o := intentDisk(t, 4)
	tr := mustOpen(t, d, NewClock(), o)
	d.faulty = func(op string) error {
		if op == "resize" {
			return errNo
		}
		return nil
	}
	for _, n := range []int64{2 * region, 6 * region} {
		if err := tr.Resize(context.Background(), n); !errors.Is(err, errNo) || tr.Size() != 4*region {
			t.Errorf("resize to %d: %v, size %d", n, err, tr.Size())
		}
		mustWrite(t, tr, 4*region-4096, 4096, 1)
	}
	wantListed(t, tr, blockdev.Extent{Offset: 2 * region, Length: 2 * region}) // its tail may be gone
	d.faulty = nil
	mustResize(t, tr, 6*region)
	if tr2, err := Open(newMemDisk(mib), NewClock(), options(t, newMemDisk(mib))); err != nil {
		t.Error(err)
	} else {
		if err := tr2.Resize(context.Background(), 2*mib); !errors.Is(err, blockdev.ErrNotSupported) {
			t.Errorf("a device that is no Resizer: %v", err)
		}
		tr2.Close()
	}
}

// Guests write while the disk grows and shrinks. No acknowledged write is unlisted, none
// passes the end, none fails inside of it.
func TestResizeUnderLoad(t *testing.T) {
	d, _, o := intentDisk(t, 4)
	o.openIntent, d.pending = nil, nil
	tr := mustOpen(t, d, NewClock(), o)
	point := sparse{}
	var wg sync.WaitGroup
	stop := make(chan struct{})
	const writers = 3
	for w := range int64(writers) {
		wg.Go(func() {
			for i := int64(0); ; i++ {
				select {
				case <-stop:
					return
				case <-time.After(50 * time.Microsecond):
				}
				off := (i*5 + w) % 8 * region / 2
				_, err := tr.WriteAt([]byte{byte(i) | 1}, off+i%64*4096)
				switch {
				case err != nil && !errors.Is(err, blockdev.ErrOutOfRange):
					t.Errorf("write: %v", err)
				case err != nil && off+i%64*4096 < 2*region:
					t.Errorf("write at %d of a disk that is never smaller than %d: %v", off, 2*region, err)
				}
			}
		})
	}
	for i := range byte(12) {
		mustResize(t, tr, []int64{2*region + 512, 4 * region, 3*region + 4096}[i%3])
		if i%4 != 3 {
			continue
		}
		z := mustFreeze(t, tr.clock, tr)
		f := z.Disks[0]
		point.truncate(f.Size())
		err := f.Capture(context.Background(), Sink{Write: func(off int64, p []byte) error {
			point.write(p, off)
			return nil
		}})
		if err := errors.Join(err, f.Prepare(PointID{3, i}), f.Commit()); err != nil {
			t.Fatal(err)
		}
		tr.stopWrites()
		now, es := cloneOf(d), listed(tr)
		tr.resumeWrites()
		if p := now.differ(point, es); p >= 0 {
			t.Errorf("page %d differs from the point and is not listed", p)
		}
	}
	close(stop)
	wg.Wait()
}

func cloneOf(d *platter) sparse {
	d.mu.Lock()
	defer d.mu.Unlock()
	return maps.Clone(d.data)
}
