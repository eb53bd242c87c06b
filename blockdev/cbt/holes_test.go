package cbt

import (
	"bytes"
	"context"
	"sync/atomic"
	"testing"

	"github.com/keelblock/keelblock/blockdev"
)

// A guest that trims lists what it trimmed. The capture tells those zeros without
// reading them, and takes from the spill what was overwritten after the cut.
func TestCaptureTellsHolesWithoutReadingThem(t *testing.T) {
	d, c := newMemDisk(4*mib+512), NewClock()
	for i := range d.data {
		d.data[i] = byte(i>>12) | 1
	}
	tr := mustOpen(t, d, c, options(t, d))
	if err := tr.Trim(mib+512, 2*mib); err != nil { // from within a grain to within a grain
		t.Fatal(err)
	}
	if err := tr.WriteZeroes(4*mib-4096*8, 4096*8+512, true); err != nil { // to the odd end
		t.Fatal(err)
	}
	if _, err := tr.WriteAt([]byte("content"), 100); err != nil {
		t.Fatal(err)
	}
	atCut := bytes.Clone(d.data)
	z := mustFreeze(t, c, tr)
	f := z.Disks[0]
	for _, off := range []int64{2 * mib, 2*mib + 4096*5, 4 * mib} { // inside both holes
		if _, err := tr.WriteAt([]byte("later"), off); err != nil {
			t.Fatal(err)
		}
	}
	var read atomic.Int64
	d.fault = func(op string, _, n int64) error {
		if op == "read" {
			read.Add(n)
		}
		return nil
	}
	got, next := bytes.Clone(atCut), int64(0)
	covered := int64(0)
	step := func(off, n int64) {
		if off < next {
			t.Errorf("%d bytes at %d come after %d", n, off, next)
		}
		next = off + n
		covered += n
	}
	err := f.Capture(context.Background(), Sink{
		Write: func(off int64, p []byte) error {
			step(off, int64(len(p)))
			copy(got[off:], p)
			return nil
		},
		Zero: func(off, n int64) error {
			step(off, n)
			clear(got[off : off+n])
			return nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, atCut) {
		t.Error("the capture is not the disk at the cut")
	}
	if want := f.ChangedBytes(); covered != want {
		t.Errorf("%d bytes were handed on, %d changed", covered, want)
	}
	// Read are the grain of the write, those at both edges of the trim, and the three
	// that hold data now; the last of them is 512 bytes long.
	if n := read.Load(); n != 5*blockdev.GrainSize+512 {
		t.Errorf("%d bytes were read", n)
	}
	if err := f.Abort(); err != nil {
		t.Fatal(err)
	}
}
