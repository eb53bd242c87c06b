package blockdevtest

import (
	"bytes"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/keelblock/keelblock/blockdev"
)

func seed(t *testing.T) uint64 {
	t.Helper()
	if s := os.Getenv("BLOCKDEVTEST_SEED"); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatalf("BLOCKDEVTEST_SEED: %v", err)
		}
		return n
	}
	return uint64(time.Now().UnixNano())
}

// testModel applies random requests to the device and to a byte slice. Bytes that
// were trimmed may read as anything until they are written again.
func testModel(t *testing.T, d blockdev.Device) {
	s := seed(t)
	defer func() {
		if t.Failed() {
			t.Logf("repeat with BLOCKDEVTEST_SEED=%d", s)
		}
	}()
	rng := rand.New(rand.NewPCG(s, 0))
	trimmer, _ := d.(blockdev.Trimmer)
	zeroer, _ := d.(blockdev.Zeroer)
	size := d.Size()
	want, trimmed := make([]byte, size), make([]bool, size)
	for i := range 400 {
		off := rng.Int64N(size)
		n := min(size-off, 1+rng.Int64N(1<<uint(rng.IntN(18))))
		if rng.IntN(2) == 0 { // as most guests do
			off = off / 4096 * 4096
			n = min(size-off, (n+4095)/4096*4096)
		}
		switch op := rng.IntN(10); {
		case op < 5:
			fill(want[off:off+n], s+uint64(i))
			mustWrite(t, d, want[off:off+n], off)
			clear(trimmed[off : off+n])
		case op == 5 && zeroer != nil:
			if err := zeroer.WriteZeroes(off, n, rng.IntN(2) == 0); err != nil {
				t.Fatalf("WriteZeroes(%d, %d): %v", off, n, err)
			}
			clear(want[off : off+n])
			clear(trimmed[off : off+n])
		case op == 6 && trimmer != nil:
			if err := trimmer.Trim(off, n); err != nil {
				t.Fatalf("Trim(%d, %d): %v", off, n, err)
			}
			for j := off; j < off+n; j++ {
				trimmed[j] = true
			}
		case op == 7:
			if err := d.Flush(); err != nil {
				t.Fatalf("Flush: %v", err)
			}
		default:
			checkModel(t, d, off, want[off:off+n], trimmed[off:off+n])
		}
	}
	checkModel(t, d, 0, want, trimmed)
}

func checkModel(t *testing.T, d blockdev.Device, off int64, want []byte, trimmed []bool) {
	t.Helper()
	got := make([]byte, len(want))
	if n, err := d.ReadAt(got, off); n != len(got) || err != nil {
		t.Fatalf("ReadAt(%d bytes, %d) = %d, %v", len(got), off, n, err)
	}
	for i := range want {
		if got[i] != want[i] && !trimmed[i] {
			t.Fatalf("byte %d of the device is %#02x, want %#02x (read of %d+%d)", off+int64(i), got[i], want[i], off, len(want))
		}
	}
}

// testConcurrent has writers own interleaved slices of the device, whose borders
// lie inside sectors and grains, while a reader looks on.
func testConcurrent(t *testing.T, d blockdev.Device) {
	const writers, slice = 8, 4096 + 512
	size := d.Size()
	want := make([]byte, size)
	for i := int64(0); i*slice < size; i++ {
		fill(want[i*slice:min(size, (i+1)*slice)], uint64(i))
	}
	var wg sync.WaitGroup
	for w := range int64(writers) {
		wg.Go(func() {
			for i := w; i*slice < size; i += writers {
				off, end := i*slice, min(size, (i+1)*slice)
				if _, err := d.WriteAt(want[off:end], off); err != nil {
					t.Errorf("WriteAt(%d bytes, %d): %v", end-off, off, err)
				}
				got := make([]byte, end-off)
				if _, err := d.ReadAt(got, off); err != nil || !bytes.Equal(got, want[off:end]) {
					t.Errorf("slice at %d is not what its writer has just written (%v)", off, err)
				}
				if i%64 == 0 {
					if err := d.Flush(); err != nil {
						t.Errorf("Flush: %v", err)
					}
				}
			}
		})
	}
	wg.Wait()
	checkContent(t, d, 0, want)
}

func readConcurrently(t *testing.T, d blockdev.Device, want []byte) {
	if len(want) == 0 {
		t.Skip("the device is empty")
	}
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(w), 1))
			for range 50 {
				off := rng.Int64N(int64(len(want)))
				p := make([]byte, min(1+rng.Int64N(100_000), int64(len(want))-off))
				if _, err := d.ReadAt(p, off); err != nil || !bytes.Equal(p, want[off:off+int64(len(p))]) {
					t.Errorf("read of %d+%d is wrong (%v)", off, len(p), err)
				}
			}
		})
	}
	wg.Wait()
}
