package localdisk_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"sync"
	"testing"

	"github.com/keelblock/keelblock/blockdev"
	"github.com/keelblock/keelblock/blockdev/localdisk"
)

func TestResize(t *testing.T) {
	path := create(t, t.TempDir(), 1<<20)
	d := open(t, path, localdisk.Options{})
	full := bytes.Repeat([]byte{7}, 1<<20)
	if _, err := d.WriteAt(full, 0); err != nil {
		t.Fatal(err)
	}
	if err := d.Resize(300<<10 + 512); err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Stat(path); err != nil || fi.Size() != d.Size() || d.Size() != 300<<10+512 {
		t.Fatalf("after shrinking: Size %d, %v, %v", d.Size(), fi.Size(), err)
	}
	for _, err := range []error{
		lastOf(d.ReadAt(make([]byte, 512), 300<<10+512)), lastOf(d.WriteAt(full[:1024], 300<<10)),
		d.Trim(500<<10, 512), d.WriteZeroes(300<<10, 1024, true),
	} {
		if !errors.Is(err, blockdev.ErrOutOfRange) {
			t.Errorf("past the new end: %v", err)
		}
	}
	if err := d.Resize(2 << 20); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 2<<20)
	if _, err := d.ReadAt(got, 0); err != nil {
		t.Fatal(err)
	}
	want := append(full[:300<<10+512:300<<10+512], make([]byte, 2<<20-300<<10-512)...)
	if !bytes.Equal(got, want) {
		t.Error("a disk that shrank and grew does not read as its beginning and zeros")
	}
	for _, n := range []int64{-512, 100, blockdev.MaxSize + 512} {
		if err := d.Resize(n); err == nil {
			t.Errorf("resized to %d bytes", n)
		}
	}
	if d.Size() != 2<<20 {
		t.Errorf("size %d after refused resizes", d.Size())
	}
}

func lastOf(_ int, err error) error { return err }

func TestResizeThatCannotBe(t *testing.T) {
	seg := open(t, segmented(t, 8<<10, 2<<10), localdisk.Options{})
	if err := seg.Resize(4 << 10); !errors.Is(err, blockdev.ErrNotSupported) || seg.Size() != 8<<10 {
		t.Errorf("a disk of several files: %v", err)
	}
	path := create(t, t.TempDir(), 8<<10)
	ro := open(t, path, localdisk.Options{ReadOnly: true})
	if err := ro.Resize(4 << 10); !errors.Is(err, blockdev.ErrReadOnly) {
		t.Errorf("a read-only disk: %v", err)
	}
	d := open(t, create(t, t.TempDir(), 8<<10), localdisk.Options{})
	d.Close()
	if err := d.Resize(4 << 10); !errors.Is(err, blockdev.ErrClosed) {
		t.Errorf("a closed disk: %v", err)
	}
}

// A write that checked the old end must not make the file longer again.
func TestResizeAgainstWrites(t *testing.T) {
	path := create(t, t.TempDir(), 1<<20)
	d := open(t, path, localdisk.Options{})
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for range 4 {
		wg.Go(func() {
			p := make([]byte, 4096)
			for {
				select {
				case <-stop:
					return
				default:
				}
				for _, off := range []int64{0, 1<<20 - 4096} {
					_, err := d.WriteAt(p, off)
					_, errR := d.ReadAt(p, off)
					for _, err := range []error{err, errR} {
						if err != nil && !errors.Is(err, blockdev.ErrOutOfRange) {
							t.Errorf("request at %d: %v", off, err)
							return
						}
						if errors.Is(err, io.ErrUnexpectedEOF) {
							t.Errorf("read past the end of the file: %v", err)
						}
					}
				}
			}
		})
	}
	for i := range 200 {
		n := int64(1 << 20)
		if i%2 == 0 {
			n = 64 << 10
		}
		if err := d.Resize(n); err != nil {
			t.Fatal(err)
		}
		if fi, err := os.Stat(path); err != nil || fi.Size() != n {
			t.Fatalf("file of %d bytes after Resize(%d), %v", fi.Size(), n, err)
		}
	}
	close(stop)
	wg.Wait()
}

func TestGrownBlockDeviceIsZeroed(t *testing.T) {
	dev := loopDevice(t, 1<<20)
	backing := run(t, "losetup", "-n", "-O", "BACK-FILE", dev)
	d := open(t, dev, localdisk.Options{})
	if err := d.Resize(2 << 20); err == nil {
		t.Fatal("a block device of 1 MiB was resized to 2 MiB")
	}
	f, err := os.OpenFile(backing, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(bytes.Repeat([]byte{9}, 1<<20), 1<<20); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("losetup", "-c", dev).CombinedOutput(); err != nil {
		t.Skipf("losetup -c: %v: %s", err, out)
	}
	if d.Size() != 1<<20 {
		t.Fatalf("size %d before Resize", d.Size())
	}
	if err := d.Resize(2 << 20); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 1<<20)
	if _, err := d.ReadAt(got, 1<<20); err != nil || !bytes.Equal(got, make([]byte, 1<<20)) {
		t.Errorf("what the block device gained is not zeros (%d, %v)", got[0], err)
	}
}
