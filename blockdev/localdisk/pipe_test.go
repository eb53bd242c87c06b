package localdisk_test

import (
	"bytes"
	"errors"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/keelblock/keelblock/blockdev"
	"github.com/keelblock/keelblock/blockdev/localdisk"
)

// pipeOf is a pipe that holds p. It fails the test unless left of its bytes are there
// when check is called.
func pipeOf(t *testing.T, p []byte) (fd int, check func(left int)) {
	t.Helper()
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fds[0]); unix.Close(fds[1]) })
	if n, err := unix.Write(fds[1], p); n != len(p) || err != nil {
		t.Fatalf("write %d bytes to a pipe: %d, %v", len(p), n, err)
	}
	return fds[0], func(left int) {
		t.Helper()
		if n, err := unix.IoctlGetInt(fds[0], unix.TIOCINQ); err != nil || n != left {
			t.Errorf("%d bytes are left in the pipe, want %d (%v)", n, left, err)
		}
	}
}

func TestWriteFromPipe(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk.raw")
	if err := localdisk.Create(path, 1<<20); err != nil {
		t.Fatal(err)
	}
	d, err := localdisk.Open(path, localdisk.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	want := make([]byte, 1<<20)
	for i, off := range []int64{0, 4096, 5000, 1<<20 - 30_000} {
		p := bytes.Repeat([]byte{byte(i + 1)}, 30_000)
		fd, check := pipeOf(t, p)
		if n, err := d.WritePipeNowait(fd, 20_000, off); n != 20_000 || err != nil {
			t.Fatalf("write of 20000 at %d: %d, %v", off, n, err)
		}
		check(10_000)
		copy(want[off:], p[:20_000])
	}
	got := make([]byte, len(want))
	if _, err := d.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the disk does not hold what was in the pipes (%v)", err)
	}
	fd, check := pipeOf(t, make([]byte, 1000))
	for _, off := range []int64{-1, 1<<20 - 999, 1 << 40} {
		if n, err := d.WritePipeNowait(fd, 1000, off); n != 0 || !errors.Is(err, blockdev.ErrOutOfRange) {
			t.Errorf("write of 1000 at %d: %d, %v", off, n, err)
		}
	}
	check(1000)
}

// What cannot be done leaves the pipe as it was.
func TestRefusedWriteFromPipe(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk.raw")
	if err := localdisk.Create(path, 1<<20); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		o    localdisk.Options
		want error
	}{
		{"read-only", localdisk.Options{ReadOnly: true}, blockdev.ErrReadOnly},
		{"no room on the file system", localdisk.Options{ReserveBytes: 1 << 60}, blockdev.ErrNoSpace},
	} {
		d, err := localdisk.Open(path, tt.o)
		if err != nil {
			t.Fatal(err)
		}
		fd, check := pipeOf(t, make([]byte, 8192))
		if n, err := d.WritePipeNowait(fd, 8192, 0); n != 0 || !errors.Is(err, tt.want) {
			t.Errorf("%s: %d, %v", tt.name, n, err)
		}
		check(8192)
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		if n, err := d.WritePipeNowait(fd, 8192, 0); n != 0 || err == nil {
			t.Errorf("%s, closed: %d, %v", tt.name, n, err)
		}
		check(8192)
	}
}

func TestSegmentedDiskTakesNoPipe(t *testing.T) {
	d := open(t, segmented(t, 7<<10, 2<<10), localdisk.Options{})
	fd, check := pipeOf(t, make([]byte, 1024))
	if n, err := d.WritePipeNowait(fd, 1024, 0); n != 0 || !errors.Is(err, blockdev.ErrNotSupported) {
		t.Errorf("%d, %v", n, err)
	}
	check(1024)
}
