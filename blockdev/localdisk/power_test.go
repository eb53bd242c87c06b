package localdisk_test

import (
	"errors"
	"os"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/keelblock/keelblock/blockdev/localdisk"
)

func freeBytes(t *testing.T, dir string) int64 {
	t.Helper()
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	return int64(st.Bavail) * st.Bsize
}

// shutdown stops the file system of dir as a power cut would: nothing in memory
// reaches the disk any more (EXT4_IOC_SHUTDOWN with EXT4_GOING_FLAGS_NOLOGFLUSH,
// fs/ext4/ext4.h). Only ever called on a file system that the test made.
func shutdown(t *testing.T, dir string) {
	t.Helper()
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const ext4IocShutdown = 0x8004587D // _IOR('X', 125, __u32)
	flags := uint32(2)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), ext4IocShutdown, uintptr(unsafe.Pointer(&flags))); errno != 0 {
		t.Skipf("the file system cannot be shut down: %v", errno)
	}
}

// A failed write-back is reported by the kernel once. The disk must not call later
// flushes a success.
func TestFailedFlushIsNeverFollowedByASuccess(t *testing.T) {
	dir, _ := mounted(t, 64<<20)
	d := open(t, create(t, dir, 1<<20), localdisk.Options{})
	if _, err := d.WriteAt(make([]byte, 4096), 0); err != nil {
		t.Fatal(err)
	}
	if err := d.Flush(); err != nil || d.FlushError() != nil {
		t.Fatalf("Flush of a healthy disk: %v, FlushError %v", err, d.FlushError())
	}
	if _, err := d.WriteAt(make([]byte, 8192), 4096); err != nil {
		t.Fatal(err)
	}
	shutdown(t, dir)
	first := d.Flush()
	if first == nil {
		t.Fatal("Flush after the power cut succeeded")
	}
	for range 3 {
		if err := d.Flush(); !errors.Is(err, first) {
			t.Errorf("later Flush: %v, want the first error %v", err, first)
		}
	}
	if !errors.Is(d.FlushError(), first) {
		t.Errorf("FlushError() = %v, want %v", d.FlushError(), first)
	}
	if err := d.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
}
