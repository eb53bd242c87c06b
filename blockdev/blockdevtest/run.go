package blockdevtest

import (
	"bytes"
	"errors"
	"math"
	"testing"

	"github.com/keelblock/keelblock/blockdev"
)

// Run tests the Devices that open makes. Each call of open makes a new Device of
// sizeBytes (a multiple of blockdev.SectorSize, 0 and sizes that are no multiple
// of a grain included, at most 8 MiB) that can be written and reads as zeros.
func Run(t *testing.T, open func(t *testing.T, sizeBytes int64) blockdev.Device) {
	run := func(name string, size int64, test func(t *testing.T, d blockdev.Device)) {
		t.Run(name, func(t *testing.T) {
			d := open(t, size)
			defer closeDevice(t, d)
			if d.Size() != size {
				t.Fatalf("Size() = %d, want %d", d.Size(), size)
			}
			test(t, d)
		})
	}
	const size = 1<<20 + 3*blockdev.SectorSize
	run("an empty device has no bytes but answers", 0, testEmpty)
	run("a new device reads as zeros", size, testNew)
	run("a write is read back at any alignment", size, testRoundTrip)
	run("a range past the end is refused and changes nothing", size, testOutOfRange)
	run("buffers stay the caller's", size, testBuffers)
	run("large requests", 8<<20, testLarge)
	run("random requests equal a byte slice", size, testModel)
	run("writers beside each other", 4<<20, testConcurrent)
	run("flush", size, testFlush)
	run("trim drops only its range", size, testTrim)
	run("zeroes at any alignment", size, testZeroes)
	run("extents cover the range and hide no data", 2<<20, testExtents)
	run("a nowait read is a read or refuses", size, testNowait)
	run("the file of a file-backed device holds its bytes", size, testFileBacked)
	t.Run("after close all is refused", func(t *testing.T) {
		testClosed(t, open(t, size))
	})
}

// RunReadOnly tests a Device that cannot be written. open makes it and says what
// it must hold.
func RunReadOnly(t *testing.T, open func(t *testing.T) (d blockdev.Device, want []byte)) {
	d, want := open(t)
	defer closeDevice(t, d)
	if d.Size() != int64(len(want)) {
		t.Fatalf("Size() = %d, want %d", d.Size(), len(want))
	}
	t.Run("it reads as it should", func(t *testing.T) {
		checkContent(t, d, 0, want)
		for _, r := range ranges(int64(len(want))) {
			checkContent(t, d, r.Offset, want[r.Offset:r.End()])
		}
	})
	t.Run("a write is refused and changes nothing", func(t *testing.T) {
		if len(want) == 0 {
			t.Skip("the device is empty")
		}
		if _, err := d.WriteAt([]byte{^want[0]}, 0); !errors.Is(err, blockdev.ErrReadOnly) {
			t.Errorf("WriteAt: %v, want ErrReadOnly", err)
		}
		if z, ok := d.(blockdev.Zeroer); ok {
			if err := z.WriteZeroes(0, 1, true); !errors.Is(err, blockdev.ErrReadOnly) {
				t.Errorf("WriteZeroes: %v, want ErrReadOnly", err)
			}
		}
		if tr, ok := d.(blockdev.Trimmer); ok {
			if err := tr.Trim(0, 1); !errors.Is(err, blockdev.ErrReadOnly) {
				t.Errorf("Trim: %v, want ErrReadOnly", err)
			}
		}
		checkContent(t, d, 0, want)
	})
	t.Run("a range past the end is refused", func(t *testing.T) { checkReadRange(t, d) })
	t.Run("extents cover the range and hide no data", func(t *testing.T) { checkExtents(t, d, want) })
	t.Run("readers beside each other", func(t *testing.T) { readConcurrently(t, d, want) })
}

func closeDevice(t *testing.T, d blockdev.Device) {
	t.Helper()
	if err := d.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	if err := d.Close(); err != nil {
		t.Errorf("second Close: %v, want nil", err)
	}
}

func testEmpty(t *testing.T, d blockdev.Device) {
	if n, err := d.ReadAt(nil, 0); n != 0 || err != nil {
		t.Errorf("ReadAt(nil, 0) = %d, %v", n, err)
	}
	if _, err := d.ReadAt(make([]byte, 1), 0); !errors.Is(err, blockdev.ErrOutOfRange) {
		t.Errorf("ReadAt(1 byte, 0): %v, want ErrOutOfRange", err)
	}
	if _, err := d.WriteAt(make([]byte, 1), 0); !errors.Is(err, blockdev.ErrOutOfRange) {
		t.Errorf("WriteAt(1 byte, 0): %v, want ErrOutOfRange", err)
	}
	if err := d.Flush(); err != nil {
		t.Errorf("Flush: %v", err)
	}
}

func testNew(t *testing.T, d blockdev.Device) {
	checkContent(t, d, 0, make([]byte, d.Size()))
}

func testRoundTrip(t *testing.T, d blockdev.Device) {
	want := make([]byte, d.Size())
	for i, r := range ranges(d.Size()) {
		fill(want[r.Offset:r.End()], uint64(i))
		mustWrite(t, d, want[r.Offset:r.End()], r.Offset)
		checkContent(t, d, r.Offset, want[r.Offset:r.End()])
	}
	checkContent(t, d, 0, want)
}

func testOutOfRange(t *testing.T, d blockdev.Device) {
	want := make([]byte, d.Size())
	fill(want, 1)
	mustWrite(t, d, want, 0)
	checkReadRange(t, d)
	junk := bytes.Repeat([]byte{0xEE}, 8192)
	for _, off := range outside(d.Size(), int64(len(junk))) {
		if n, err := d.WriteAt(junk, off); n != 0 || !errors.Is(err, blockdev.ErrOutOfRange) {
			t.Errorf("WriteAt(%d bytes, %d) = %d, %v; want 0, ErrOutOfRange", len(junk), off, n, err)
		}
		if z, ok := d.(blockdev.Zeroer); ok {
			if err := z.WriteZeroes(off, int64(len(junk)), true); !errors.Is(err, blockdev.ErrOutOfRange) {
				t.Errorf("WriteZeroes(%d, %d): %v, want ErrOutOfRange", off, len(junk), err)
			}
		}
		if tr, ok := d.(blockdev.Trimmer); ok {
			if err := tr.Trim(off, int64(len(junk))); !errors.Is(err, blockdev.ErrOutOfRange) {
				t.Errorf("Trim(%d, %d): %v, want ErrOutOfRange", off, len(junk), err)
			}
		}
	}
	checkContent(t, d, 0, want)
}

func checkReadRange(t *testing.T, d blockdev.Device) {
	t.Helper()
	p := bytes.Repeat([]byte{0x5A}, 8192)
	for _, off := range outside(d.Size(), int64(len(p))) {
		if n, err := d.ReadAt(p, off); n != 0 || !errors.Is(err, blockdev.ErrOutOfRange) {
			t.Errorf("ReadAt(%d bytes, %d) = %d, %v; want 0, ErrOutOfRange", len(p), off, n, err)
		}
	}
	if n, err := d.ReadAt(nil, d.Size()); n != 0 || err != nil {
		t.Errorf("ReadAt(nil, Size()) = %d, %v; want 0, nil", n, err)
	}
}

// outside are offsets at which n bytes pass the end of a device, or begin before
// its beginning.
func outside(size, n int64) []int64 {
	return []int64{size - n + 1, size - 1, size, size + 1, -1, -n, 1 << 62, math.MaxInt64, math.MaxInt64 - n + 1, math.MinInt64}
}

func testBuffers(t *testing.T, d blockdev.Device) {
	want := make([]byte, 10_000)
	fill(want, 7)
	p := bytes.Clone(want)
	mustWrite(t, d, p, 777)
	if !bytes.Equal(p, want) {
		t.Error("WriteAt changed its argument")
	}
	clear(p) // a device that kept p would now hold zeros
	checkContent(t, d, 777, want)
	got := make([]byte, len(want))
	if _, err := d.ReadAt(got, 777); err != nil {
		t.Fatal(err)
	}
	mustWrite(t, d, make([]byte, len(want)), 777)
	if !bytes.Equal(got, want) {
		t.Error("a later write changed the buffer of an earlier read")
	}
}

func testLarge(t *testing.T, d blockdev.Device) {
	want := make([]byte, d.Size())
	fill(want, 3)
	mustWrite(t, d, want, 0)
	checkContent(t, d, 0, want)
	fill(want[4095:], 4)
	mustWrite(t, d, want[4095:], 4095)
	checkContent(t, d, 0, want)
}

func testFlush(t *testing.T, d blockdev.Device) {
	want := make([]byte, 4096)
	fill(want, 9)
	mustWrite(t, d, want, 512)
	for range 3 {
		if err := d.Flush(); err != nil {
			t.Fatalf("Flush: %v", err)
		}
	}
	checkContent(t, d, 512, want)
}

func testClosed(t *testing.T, d blockdev.Device) {
	closeDevice(t, d)
	p := make([]byte, 512)
	if _, err := d.ReadAt(p, 0); !errors.Is(err, blockdev.ErrClosed) {
		t.Errorf("ReadAt: %v, want ErrClosed", err)
	}
	if _, err := d.WriteAt(p, 0); !errors.Is(err, blockdev.ErrClosed) {
		t.Errorf("WriteAt: %v, want ErrClosed", err)
	}
	if err := d.Flush(); !errors.Is(err, blockdev.ErrClosed) {
		t.Errorf("Flush: %v, want ErrClosed", err)
	}
}
