package cbt

import (
	"context"
	"errors"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/keelblock/keelblock/blockdev"
	"github.com/keelblock/keelblock/blockdev/localdisk"
)

// pipedDisk is a memDisk that takes writes out of a pipe.
type pipedDisk struct{ *memDisk }

func (d pipedDisk) WritePipeNowait(pipe, n int, off int64) (int, error) {
	p := make([]byte, n)
	taken, err := unix.Read(pipe, p)
	if err != nil {
		return 0, err
	}
	if _, err := d.WriteAt(p[:taken], off); err != nil {
		return taken, err
	}
	return taken, nil
}

// pipeWith is a pipe that holds n bytes of fill, and a count of those that are left.
func pipeWith(t *testing.T, n int, fill byte) (fd int, left func() int) {
	t.Helper()
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fds[0]); unix.Close(fds[1]) })
	p := make([]byte, n)
	for i := range p {
		p[i] = fill
	}
	if k, err := unix.Write(fds[1], p); k != n || err != nil {
		t.Fatalf("write %d bytes to a pipe: %d, %v", n, k, err)
	}
	return fds[0], func() int {
		t.Helper()
		k, err := unix.IoctlGetInt(fds[0], unix.TIOCINQ)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
}

// TestPipeWritesAreListed: a write out of a pipe sets its bits before the disk below
// sees it, and keeps them when that fails (V2).
func TestPipeWritesAreListed(t *testing.T) {
	d := pipedDisk{newMemDisk(8 * mib)}
	tr := mustOpen(t, d, NewClock(), options(t, d.memDisk))
	broken := errors.New("broken")
	d.fault = func(op string, off, n int64) error {
		if op != "write" {
			return nil
		}
		if es := listed(tr); len(es) == 0 || es[len(es)-1].End() < off+n {
			t.Errorf("the disk is written at %d+%d while %v is listed", off, n, es)
		}
		if off == 2*mib {
			return broken
		}
		return nil
	}
	for _, tt := range []struct {
		off  int64
		want error
	}{{mib, nil}, {2 * mib, broken}} {
		fd, left := pipeWith(t, 10_000, 7)
		if n, err := tr.WritePipeNowait(fd, 10_000, tt.off); n != 10_000 || !errors.Is(err, tt.want) || left() != 0 {
			t.Errorf("write at %d: %d, %v, %d bytes left", tt.off, n, err, left())
		}
	}
	want := []blockdev.Extent{{Offset: mib, Length: 12288}, {Offset: 2 * mib, Length: 12288}}
	if got := listed(tr); len(got) != 2 || got[0] != want[0] || got[1] != want[1] {
		t.Errorf("listed: %v, want %v", got, want)
	}
}

// TestPipeWritesThatHaveToWaitTakeNothing: what must become durable or be preserved
// first, and what passes a stripe, leaves the pipe and the disk as they were.
func TestPipeWritesThatHaveToWaitTakeNothing(t *testing.T) {
	d := pipedDisk{newMemDisk(64 * mib)}
	o := options(t, d.memDisk)
	o.IntentPath = filepath.Join(t.TempDir(), "intent")
	clock := NewClock()
	tr := mustOpen(t, d, clock, o)
	if err := tr.SetBase(PointID{1}); err != nil { // else the first write makes a gibibyte active
		t.Fatal(err)
	}
	refused := func(what string, off int64, want error) {
		t.Helper()
		before := append([]byte(nil), d.data[max(off, 0):min(off+8192, 64*mib)]...)
		fd, left := pipeWith(t, 8192, 9)
		if n, err := tr.WritePipeNowait(fd, 8192, off); n != 0 || !errors.Is(err, want) || left() != 8192 {
			t.Errorf("%s: %d, %v, %d bytes left", what, n, err, left())
		}
		if string(before) != string(d.data[max(off, 0):min(off+8192, 64*mib)]) {
			t.Errorf("%s: the disk has changed", what)
		}
	}
	done := func(what string, off int64) {
		t.Helper()
		fd, left := pipeWith(t, 8192, 9)
		if n, err := tr.WritePipeNowait(fd, 8192, off); n != 8192 || err != nil || left() != 0 || d.data[off] != 9 {
			t.Errorf("%s: %d, %v, %d bytes left, the disk holds %d", what, n, err, left(), d.data[off])
		}
	}
	refused("a region that the intent map does not hold", 20*mib, blockdev.ErrWouldBlock)
	mustWrite(t, tr, 20*mib, 8192, 1)
	done("the same region, active", 20*mib+8192)
	refused("across two stripes", 20*mib+256<<10-4096, blockdev.ErrWouldBlock)
	refused("behind the end", 64*mib-4096, blockdev.ErrOutOfRange)

	mustWrite(t, tr, 20*mib, 8192, 1) // which the snapshot holds
	z, err := clock.Freeze([]*Tracker{tr})
	if err != nil {
		t.Fatal(err)
	}
	if err := z.Disks[0].Drain(context.Background()); err != nil {
		t.Fatal(err)
	}
	refused("a grain that is pending", 20*mib, blockdev.ErrWouldBlock)
	mustWrite(t, tr, 20*mib, 8192, 2) // preserves it
	done("the same grain, preserved", 20*mib)
	if err := z.Disks[0].Abort(); err != nil {
		t.Fatal(err)
	}
	if err := tr.Close(); err != nil {
		t.Fatal(err)
	}
	fd, left := pipeWith(t, 8192, 9)
	if n, err := tr.WritePipeNowait(fd, 8192, 20*mib); n != 0 || err == nil || left() != 8192 {
		t.Errorf("a closed tracker: %d, %v, %d bytes left", n, err, left())
	}
}

// TestPipeWritesNeedTheDiskBelow: a disk that takes no pipe makes a tracker that takes
// none; a file does.
func TestPipeWritesNeedTheDiskBelow(t *testing.T) {
	d := newMemDisk(mib)
	tr := mustOpen(t, d, NewClock(), options(t, d))
	fd, left := pipeWith(t, 4096, 9)
	if n, err := tr.WritePipeNowait(fd, 4096, 0); n != 0 || !errors.Is(err, blockdev.ErrNotSupported) || left() != 4096 {
		t.Errorf("%d, %v, %d bytes left", n, err, left())
	}
	var file *localdisk.Disk
	file, tr = onFile(t, mib, NewClock())
	if n, err := tr.WritePipeNowait(fd, 4096, 8192); n != 4096 || err != nil {
		t.Fatalf("on a file: %d, %v", n, err)
	}
	got := make([]byte, 4096)
	if _, err := file.ReadAt(got, 8192); err != nil || got[0] != 9 || got[4095] != 9 {
		t.Errorf("the file holds %d, %v", got[0], err)
	}
}
