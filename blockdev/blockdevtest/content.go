package blockdevtest

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/keelblock/keelblock/blockdev"
)

// fill writes bytes to p that are never zero and depend on seed and position.
func fill(p []byte, seed uint64) {
	x := seed*0x9E3779B97F4A7C15 + 1
	var w [8]byte
	for i := range p {
		if i%8 == 0 {
			x ^= x << 13
			x ^= x >> 7
			x ^= x << 17
			binary.LittleEndian.PutUint64(w[:], x)
		}
		p[i] = w[i%8] | 1
	}
}

func mustWrite(t *testing.T, d blockdev.Device, p []byte, off int64) {
	t.Helper()
	if n, err := d.WriteAt(p, off); n != len(p) || err != nil {
		t.Fatalf("WriteAt(%d bytes, %d) = %d, %v", len(p), off, n, err)
	}
}

// checkContent fails the test with the first differing offset unless d holds want
// at off.
func checkContent(t *testing.T, d blockdev.Device, off int64, want []byte) {
	t.Helper()
	got := bytes.Repeat([]byte{0xA5}, len(want))
	n, err := d.ReadAt(got, off)
	if n != len(want) || err != nil {
		t.Fatalf("ReadAt(%d bytes, %d) = %d, %v", len(want), off, n, err)
	}
	if bytes.Equal(got, want) {
		return
	}
	for i := range want {
		if got[i] != want[i] {
			t.Fatalf("byte %d of the device is %#02x, want %#02x (read of %d+%d)", off+int64(i), got[i], want[i], off, len(want))
		}
	}
}

// ranges are requests of all kinds of alignment inside a device of the size.
func ranges(size int64) []blockdev.Extent {
	var list []blockdev.Extent
	for _, off := range []int64{0, 1, 511, 512, 513, 4095, 4096, 4097, 65536 - 7, 262144 - 1, 262144, size / 2, size - 1, size - 512, size - 4096} {
		for _, n := range []int64{0, 1, 2, 511, 512, 513, 4096, 4097, 65536, 65537, 262144 + 5, size} {
			if off >= 0 && n <= size-off {
				list = append(list, blockdev.Extent{Offset: off, Length: n})
			}
		}
	}
	return list
}
