package cbt

import (
	"bytes"
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/keelblock/keelblock/blockdev"
)

const mib = 1 << 20

func TestWriteListsEveryGrainItTouches(t *testing.T) {
	d := newMemDisk(8*mib + 512)
	tr := mustOpen(t, d, NewClock(), options(t, d))
	mustWrite(t, tr, 4095, 2, 1)                  // two grains
	mustWrite(t, tr, 3*mib, 2*mib, 2)             // many
	mustWrite(t, tr, 8*mib, 512, 3)               // the last, partial one
	if err := tr.Trim(6*mib+100, 1); err != nil { // one byte of one grain
		t.Fatal(err)
	}
	if err := tr.WriteZeroes(7*mib, 4097, true); err != nil {
		t.Fatal(err)
	}
	want := []blockdev.Extent{{Offset: 0, Length: 8192}, {Offset: 3 * mib, Length: 2 * mib}, {Offset: 6 * mib, Length: 4096},
		{Offset: 7 * mib, Length: 8192}, {Offset: 8 * mib, Length: 512}}
	if got := listed(tr); !slices.Equal(got, want) {
		t.Errorf("listed %v, want %v", got, want)
	}
	for _, off := range []int64{-1, 8*mib + 512} {
		if _, err := tr.WriteAt([]byte{1}, off); !errors.Is(err, blockdev.ErrOutOfRange) {
			t.Errorf("write at %d: %v, want ErrOutOfRange", off, err)
		}
	}
}

func TestBitsAreSetBeforeTheDataCall(t *testing.T) {
	d := newMemDisk(mib)
	tr := mustOpen(t, d, NewClock(), options(t, d))
	eio := errors.New("EIO")
	d.fault = func(op string, off, n int64) error {
		if op == "write" {
			if got := listed(tr); len(got) != 1 || got[0].Offset != 4096 {
				t.Errorf("at the data call %v is listed", got)
			}
			return eio
		}
		return nil
	}
	if _, err := tr.WriteAt(make([]byte, 4096), 4096); !errors.Is(err, eio) {
		t.Fatalf("write: %v, want EIO", err)
	}
	if got := listed(tr); len(got) != 1 {
		t.Errorf("after the failed write %v is listed", got)
	}
}

// capture returns what a snapshot delivers, laid over base.
func capture(tb testing.TB, f *Frozen, base []byte) []byte {
	tb.Helper()
	out := bytes.Clone(base)
	next := int64(0)
	err := f.Capture(context.Background(), Sink{Write: func(off int64, p []byte) error {
		if off < next || len(p) > maxChunk || len(p) == 0 {
			tb.Errorf("capture gave %d bytes at %d after %d", len(p), off, next)
		}
		next = off + int64(len(p))
		copy(out[off:], p)
		return nil
	}, Zero: func(off, n int64) error {
		if off < next || n <= 0 {
			tb.Errorf("capture gave %d zeros at %d after %d", n, off, next)
		}
		next = off + n
		clear(out[off:next])
		return nil
	}})
	if err != nil {
		tb.Fatal(err)
	}
	return out
}

func mustFreeze(tb testing.TB, c *Clock, ts ...*Tracker) *Freeze {
	tb.Helper()
	z, err := c.Freeze(ts)
	if err != nil {
		tb.Fatal(err)
	}
	for _, f := range z.Disks {
		if err := f.Drain(context.Background()); err != nil {
			tb.Fatal(err)
		}
	}
	return z
}

func TestSnapshotIsTheDiskAtTheCut(t *testing.T) {
	d, c := newMemDisk(4*mib), NewClock()
	tr := mustOpen(t, d, c, options(t, d))
	mustWrite(t, tr, 0, 2*mib, 1)
	at := bytes.Clone(d.data)
	z := mustFreeze(t, c, tr)
	mustWrite(t, tr, 100, 5000, 2) // partly over two pending grains
	mustWrite(t, tr, 3*mib, 4096, 2)
	if err := tr.WriteZeroes(mib-5000, 10000, true); err != nil {
		t.Fatal(err)
	}
	if err := tr.Trim(mib+mib/2, mib); err != nil {
		t.Fatal(err)
	}
	f := z.Disks[0]
	if got := capture(t, f, make([]byte, 4*mib)); !bytes.Equal(got, at) {
		t.Error("captured content is not the content at the cut")
	}
	if s := tr.Stats(); s.Copies == 0 || s.SpillBytes != int64(s.CopiedBytes) {
		t.Errorf("stats: %+v", s)
	}
	if err := errors.Join(f.Prepare(PointID{1}), f.Commit(), f.Abort()); err != nil {
		t.Fatal(err)
	}
	if base, cand := tr.Bases(); base != (PointID{1}) || !cand.IsZero() || z.Err() != nil {
		t.Errorf("base %x candidate %x err %v", base[0], cand[0], z.Err())
	}
	want := []blockdev.Extent{{Offset: 0, Length: 8192}, {Offset: mib - 8192, Length: 12288 + 4096}, {Offset: mib + mib/2, Length: mib},
		{Offset: 3 * mib, Length: 4096}}
	if got := listed(tr); !slices.Equal(got, want) {
		t.Errorf("after the commit %v is listed, want %v", got, want)
	}
	if s := tr.Stats(); s.SpillBytes != 0 {
		t.Errorf("spill holds %d bytes after the commit", s.SpillBytes)
	}
}

func TestAbortListsTheChangesAgain(t *testing.T) {
	d, c := newMemDisk(4*mib), NewClock()
	tr := mustOpen(t, d, c, options(t, d))
	mustWrite(t, tr, 0, mib, 1)
	z := mustFreeze(t, c, tr)
	mustWrite(t, tr, 2*mib, 4096, 2)
	capture(t, z.Disks[0], d.data) // claims everything; V11: still merged back
	if err := z.Disks[0].Abort(); err != nil {
		t.Fatal(err)
	}
	want := []blockdev.Extent{{Offset: 0, Length: mib}, {Offset: 2 * mib, Length: 4096}}
	if got := listed(tr); !slices.Equal(got, want) {
		t.Errorf("listed %v, want %v", got, want)
	}
	at := bytes.Clone(d.data)
	z = mustFreeze(t, c, tr)
	mustWrite(t, tr, 0, 4*mib, 9)
	if got := capture(t, z.Disks[0], make([]byte, 4*mib)); !bytes.Equal(got, at) {
		t.Error("the next snapshot is not the content at its cut")
	}
}

func TestSpillFullAbortsTheSnapshotAndNotTheWrite(t *testing.T) {
	d, c := newMemDisk(4*mib), NewClock()
	o := options(t, d)
	o.SpillBytes = 3 * 4096
	tr := mustOpen(t, d, c, o)
	mustWrite(t, tr, 0, mib, 1)
	z := mustFreeze(t, c, tr)
	mustWrite(t, tr, 0, 3*4096, 2)
	if z.Err() != nil {
		t.Fatalf("aborted too early: %v", z.Err())
	}
	mustWrite(t, tr, 8*4096, 8192, 3)
	if !errors.Is(z.Err(), ErrSpillFull) || !errors.Is(z.Err(), ErrAborted) {
		t.Errorf("freeze error %v, want ErrSpillFull", z.Err())
	}
	err := z.Disks[0].Capture(context.Background(), Sink{Write: func(int64, []byte) error { return nil }})
	if !errors.Is(err, ErrAborted) {
		t.Errorf("capture: %v, want ErrAborted", err)
	}
	if err := z.Disks[0].Prepare(PointID{1}); !errors.Is(err, ErrAborted) {
		t.Errorf("prepare: %v, want ErrAborted", err)
	}
	if err := z.Disks[0].Abort(); err != nil {
		t.Fatal(err)
	}
	if got := listed(tr); !slices.Equal(got, []blockdev.Extent{{Offset: 0, Length: mib}}) {
		t.Errorf("listed %v", got)
	}
}

// A client that trims to get zeros gets them beside a snapshot too. A spill that is half
// full takes no more for that; the snapshot lives on, and its grains stay.
func TestTrimBesideASnapshot(t *testing.T) {
	d, c := newMemDisk(4*mib), NewClock()
	o := options(t, d)
	o.SpillBytes = 8 * 4096
	tr := mustOpen(t, d, c, o)
	mustWrite(t, tr, 0, mib, 1)
	at := bytes.Clone(d.data)
	z := mustFreeze(t, c, tr)
	trim := func(off, n int64) {
		t.Helper()
		if err := tr.Trim(off, n); err != nil {
			t.Fatal(err)
		}
	}
	want := bytes.Clone(at)
	trim(1000, 3*4096) // touches four grains
	clear(want[1000 : 1000+3*4096])
	trim(16*4096-10, 4096) // of two, for which there is no room, and nothing is between them
	trim(mib-4096, 3*4096) // one is pending, two are not
	clear(want[mib : mib+2*4096])
	if !bytes.Equal(d.data, want) {
		t.Error("the disk is not what the trims leave")
	}
	if s := tr.Stats(); s.CopiedBytes != 4*4096 {
		t.Errorf("%d bytes were copied, want four grains", s.CopiedBytes)
	}
	if got := capture(t, z.Disks[0], make([]byte, 4*mib)); !bytes.Equal(got, at) || z.Err() != nil {
		t.Errorf("the snapshot is not the content at its cut: %v", z.Err())
	}
	trim(16*4096, 4096) // captured: nothing holds it
	clear(want[16*4096 : 17*4096])
	if !bytes.Equal(d.data, want) {
		t.Error("the disk is not what the last trim leaves")
	}
	if err := z.Disks[0].Abort(); err != nil {
		t.Fatal(err)
	}
}

func TestCleanStopKeepsTheMap(t *testing.T) {
	d := newMemDisk(300 * mib)
	o := options(t, d)
	tr := mustOpen(t, d, NewClock(), o)
	if err := tr.SetBase(PointID{7}); err != nil {
		t.Fatal(err)
	}
	mustWrite(t, tr, 5*4096, 4096, 1)
	mustWrite(t, tr, 299*mib, mib, 1)
	want := listed(tr)
	if err := errors.Join(tr.Close(), tr.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(o.MapPath); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the map file after a clean stop: %v", err)
	}
	if _, err := tr.WriteAt([]byte{1}, 0); !errors.Is(err, blockdev.ErrClosed) {
		t.Errorf("write after Close: %v", err)
	}
	tr = mustOpen(t, d, NewClock(), o)
	if state, reason := tr.Tracking(); state != TrackingEnabled {
		t.Errorf("tracking %v: %s", state, reason)
	}
	if base, _ := tr.Bases(); base != (PointID{7}) || !slices.Equal(listed(tr), want) {
		t.Errorf("base %x, listed %v, want %v", base[0], listed(tr), want)
	}
	// A kill right after the start: the map file of the new run is good.
	mustWrite(t, tr, mib, 1, 1)
	want = listed(tr)
	abandon(t, tr)
	tr = mustOpen(t, d, NewClock(), o)
	if state, reason := tr.Tracking(); state != TrackingEnabled || !slices.Equal(listed(tr), want) {
		t.Errorf("after a kill: tracking %v: %s, listed %v, want %v", state, reason, listed(tr), want)
	}
}

func TestKillKeepsLiveAndFrozen(t *testing.T) {
	d, c := newMemDisk(300*mib), NewClock()
	o := options(t, d)
	tr := mustOpen(t, d, c, o)
	if err := tr.SetBase(PointID{7}); err != nil {
		t.Fatal(err)
	}
	mustWrite(t, tr, 200*mib, 4096, 1)
	z := mustFreeze(t, c, tr)
	mustWrite(t, tr, mib, 4096, 1)
	capture(t, z.Disks[0], d.data)
	if err := z.Disks[0].Prepare(PointID{8}); err != nil {
		t.Fatal(err)
	}
	want := listed(tr)
	abandon(t, tr)
	tr = mustOpen(t, d, NewClock(), o)
	if state, reason := tr.Tracking(); state != TrackingEnabled || !slices.Equal(listed(tr), want) || len(want) != 2 {
		t.Errorf("tracking %v: %s, listed %v, want %v", state, reason, listed(tr), want)
	}
	if base, cand := tr.Bases(); base != (PointID{7}) || cand != (PointID{8}) {
		t.Errorf("base %x candidate %x", base[0], cand[0])
	}
	if err := tr.AcceptBase(PointID{9}); err == nil {
		t.Error("a stranger was accepted as base")
	}
	if err := tr.AcceptBase(PointID{8}); err != nil {
		t.Fatal(err)
	}
	if base, cand := tr.Bases(); base != (PointID{8}) || !cand.IsZero() {
		t.Errorf("base %x candidate %x", base[0], cand[0])
	}
}

func TestDoubtMeansCompare(t *testing.T) {
	for _, tc := range []struct {
		name  string
		clean bool
		spoil func(t *testing.T, d *memDisk, o *Options)
		want  string
	}{
		{"boot id", false, func(t *testing.T, d *memDisk, o *Options) { o.BootID = "another" }, "earlier boot"},
		{"map gone", false, func(t *testing.T, d *memDisk, o *Options) { os.Remove(o.MapPath) }, "the map is gone"},
		{"map damaged", false, func(t *testing.T, d *memDisk, o *Options) { flip(t, o.MapPath, 40); flip(t, o.MapPath, headerSlot+40) }, "damaged"},
		{"map short", false, func(t *testing.T, d *memDisk, o *Options) { os.Truncate(o.MapPath, 8192) }, "damaged"},
		{"map off tmpfs", false, func(t *testing.T, d *memDisk, o *Options) { move(t, o) }, "not on tmpfs"},
		{"saved map gone", false, func(t *testing.T, d *memDisk, o *Options) { os.Remove(o.SavePath) }, "missing"},
		{"size", false, func(t *testing.T, d *memDisk, o *Options) { d.data = append(d.data, make([]byte, 4096)...) }, "size changed"},
		{"serial", false, func(t *testing.T, d *memDisk, o *Options) { reserialize(t, o.SavePath) }, "map serial"},
		{"clean, header damaged", true, func(t *testing.T, d *memDisk, o *Options) { flip(t, o.SavePath, 40) }, "damaged"},
		{"clean, body damaged", true, func(t *testing.T, d *memDisk, o *Options) { flip(t, o.SavePath, headerBytes+100) }, "checksum"},
		{"clean, body short", true, func(t *testing.T, d *memDisk, o *Options) { os.Truncate(o.SavePath, headerBytes+100) }, "damaged"},
		{"clean, written by somebody else", true, func(t *testing.T, d *memDisk, o *Options) { d.data[9] ^= 1 }, "changed while"},
		{"clean, no witness", true, func(t *testing.T, d *memDisk, o *Options) { o.Witness = nil }, "nothing shows"},
		{"clean, size", true, func(t *testing.T, d *memDisk, o *Options) { d.data = d.data[:mib] }, "size changed"},
		{"clean, other disk", true, func(t *testing.T, d *memDisk, o *Options) { o.DiskID = "other" }, "that of disk"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := newMemDisk(2 * mib)
			o := options(t, d)
			tr := mustOpen(t, d, NewClock(), o)
			if err := tr.SetBase(PointID{7}); err != nil {
				t.Fatal(err)
			}
			mustWrite(t, tr, 0, 4096, 1)
			if tc.clean {
				if err := tr.Close(); err != nil {
					t.Fatal(err)
				}
			} else {
				abandon(t, tr)
			}
			tc.spoil(t, d, &o)
			tr = mustOpen(t, d, NewClock(), o)
			state, reason := tr.Tracking()
			if state != TrackingCompare || !strings.Contains(reason, tc.want) {
				t.Fatalf("tracking %v: %q, want compare and %q", state, reason, tc.want)
			}
			// The doubt outlives a kill and a clean stop.
			abandon(t, tr)
			tr = mustOpen(t, d, NewClock(), o)
			if state, _ := tr.Tracking(); state != TrackingCompare {
				t.Errorf("after a kill: %v", state)
			}
			if err := tr.Close(); err != nil {
				t.Fatal(err)
			}
			tr = mustOpen(t, d, NewClock(), o)
			if state, _ := tr.Tracking(); state != TrackingCompare {
				t.Errorf("after a clean stop: %v", state)
			}
		})
	}
}

func flip(t *testing.T, path string, at int) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[at] ^= 0x10
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func move(t *testing.T, o *Options) {
	t.Helper()
	b, err := os.ReadFile(o.MapPath)
	if err != nil {
		t.Fatal(err)
	}
	o.MapPath = o.SavePath + ".map"
	if err := os.WriteFile(o.MapPath, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func reserialize(t *testing.T, path string) {
	t.Helper()
	f, h, err := openSaved(path)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	h.serial++
	if err := writeSaved(path, h, nil); err != nil {
		t.Fatal(err)
	}
}
