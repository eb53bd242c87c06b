package blockdevtest

import (
	"bytes"
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/keelblock/keelblock/blockdev"
)

func testTrim(t *testing.T, d blockdev.Device) {
	tr, ok := d.(blockdev.Trimmer)
	if !ok {
		t.Skip("the device is no Trimmer")
	}
	want := make([]byte, d.Size())
	for _, r := range ranges(d.Size()) {
		fill(want, uint64(r.Offset))
		mustWrite(t, d, want, 0)
		if err := tr.Trim(r.Offset, r.Length); err != nil {
			t.Fatalf("Trim(%d, %d): %v", r.Offset, r.Length, err)
		}
		checkContent(t, d, 0, want[:r.Offset])
		checkContent(t, d, r.End(), want[r.End():])
	}
}

func testZeroes(t *testing.T, d blockdev.Device) {
	z, ok := d.(blockdev.Zeroer)
	if !ok {
		t.Skip("the device is no Zeroer")
	}
	want := make([]byte, d.Size())
	for i, r := range ranges(d.Size()) {
		fill(want, uint64(i))
		mustWrite(t, d, want, 0)
		if err := z.WriteZeroes(r.Offset, r.Length, i%2 == 0); err != nil {
			t.Fatalf("WriteZeroes(%d, %d): %v", r.Offset, r.Length, err)
		}
		clear(want[r.Offset:r.End()])
		checkContent(t, d, 0, want)
	}
}

func testExtents(t *testing.T, d blockdev.Device) {
	want := make([]byte, d.Size())
	for _, r := range []blockdev.Extent{{Offset: 0, Length: 512}, {Offset: 100_000, Length: 70_000}, {Offset: 1 << 20, Length: 4096}, {Offset: d.Size() - 1, Length: 1}} {
		fill(want[r.Offset:r.End()], 5)
		mustWrite(t, d, want[r.Offset:r.End()], r.Offset)
	}
	checkExtents(t, d, want)
	if z, ok := d.(blockdev.Zeroer); ok {
		for i, mayPunch := range []bool{true, false} {
			off := int64(110_000 + i*20_000)
			if err := z.WriteZeroes(off, 15_000, mayPunch); err != nil {
				t.Fatal(err)
			}
			clear(want[off : off+15_000])
		}
		checkExtents(t, d, want)
	}
}

// checkExtents asks for the extents of many ranges of a device that holds want.
func checkExtents(t *testing.T, d blockdev.Device, want []byte) {
	t.Helper()
	l, ok := d.(blockdev.ExtentLister)
	if !ok {
		t.Skip("the device is no ExtentLister")
	}
	for _, r := range append(ranges(d.Size()), blockdev.Extent{Length: d.Size()}) {
		next := r.Offset
		err := l.Extents(r.Offset, r.Length, func(e blockdev.Extent, s blockdev.ExtentStatus) bool {
			if e.Offset != next || e.Length <= 0 || e.End() > r.End() {
				t.Errorf("extents of %d+%d: got %d+%d, but the next begins at %d", r.Offset, r.Length, e.Offset, e.Length, next)
				return false
			}
			if part := want[e.Offset:e.End()]; s.Zero && len(bytes.Trim(part, "\x00")) > 0 {
				t.Errorf("extent %d+%d is called zero but holds data", e.Offset, e.Length)
			}
			if s.Hole && !s.Zero {
				t.Errorf("extent %d+%d is called a hole that does not read as zeros", e.Offset, e.Length)
			}
			next = e.End()
			return true
		})
		if err != nil {
			t.Fatalf("Extents(%d, %d): %v", r.Offset, r.Length, err)
		}
		if next != r.End() && !t.Failed() {
			t.Errorf("extents of %d+%d end at %d", r.Offset, r.Length, next)
		}
	}
	calls := 0
	if err := l.Extents(0, d.Size(), func(blockdev.Extent, blockdev.ExtentStatus) bool { calls++; return false }); err != nil {
		t.Errorf("Extents that are stopped: %v", err)
	}
	if calls > 1 {
		t.Errorf("Extents called yield %d times after it had returned false", calls-1)
	}
	for _, off := range outside(d.Size(), 8192) {
		err := l.Extents(off, 8192, func(blockdev.Extent, blockdev.ExtentStatus) bool { return true })
		if !errors.Is(err, blockdev.ErrOutOfRange) {
			t.Errorf("Extents(%d, 8192): %v, want ErrOutOfRange", off, err)
		}
	}
}

func testNowait(t *testing.T, d blockdev.Device) {
	nr, ok := d.(blockdev.NowaitReader)
	if !ok {
		t.Skip("the device is no NowaitReader")
	}
	want := make([]byte, d.Size())
	fill(want, 11)
	mustWrite(t, d, want, 0)
	for _, r := range ranges(d.Size()) {
		got := make([]byte, r.Length)
		n, err := nr.ReadAtNowait(got, r.Offset)
		if errors.Is(err, blockdev.ErrWouldBlock) {
			continue
		}
		if err != nil || n != len(got) {
			t.Fatalf("ReadAtNowait(%d bytes, %d) = %d, %v", len(got), r.Offset, n, err)
		}
		if !bytes.Equal(got, want[r.Offset:r.End()]) {
			t.Fatalf("ReadAtNowait(%d bytes, %d) is not what was written", len(got), r.Offset)
		}
	}
	for _, off := range outside(d.Size(), 8192) {
		if _, err := nr.ReadAtNowait(make([]byte, 8192), off); !errors.Is(err, blockdev.ErrOutOfRange) {
			t.Errorf("ReadAtNowait(8192 bytes, %d): %v, want ErrOutOfRange", off, err)
		}
	}
}

func testFileBacked(t *testing.T, d blockdev.Device) {
	fb, ok := d.(blockdev.FileBacked)
	if !ok {
		t.Skip("the device is not FileBacked")
	}
	want := make([]byte, d.Size())
	fill(want, 13)
	mustWrite(t, d, want, 0)
	got := make([]byte, d.Size())
	err := fb.ReadFD(func(fd int) error {
		n, err := unix.Pread(fd, got, 0)
		if err == nil && n != len(got) {
			t.Errorf("pread of the file: %d bytes, want %d", n, len(got))
		}
		return err
	})
	if errors.Is(err, blockdev.ErrNotSupported) {
		t.Skipf("no single file is behind this device: %v", err)
	}
	if err != nil {
		t.Fatalf("ReadFD: %v", err)
	}
	if !bytes.Equal(got, want) {
		t.Error("the file does not hold what was written to the device")
	}
	stop := errors.New("stop")
	if err := fb.ReadFD(func(int) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("ReadFD returned %v, want the error of its function", err)
	}
}
