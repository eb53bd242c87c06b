package localdisk_test

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/keelblock/keelblock/blockdev"
	"github.com/keelblock/keelblock/blockdev/blockdevtest"
	"github.com/keelblock/keelblock/blockdev/localdisk"
)

func waitTick() { time.Sleep(time.Millisecond) }

// run runs a tool and returns the first line of its output; the test is skipped
// when the tool is not there or may not do its work here.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Skipf("%s is not installed", name)
	}
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Skipf("%s %s: %v: %s", name, strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	line, _, _ := strings.Cut(string(out), "\n")
	return line
}

// loopDevice makes a block device of the size over a file, until the test ends.
func loopDevice(t *testing.T, size int64) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("loop devices need root")
	}
	backing := filepath.Join(t.TempDir(), "backing")
	if err := localdisk.Create(backing, size); err != nil {
		t.Fatal(err)
	}
	dev := run(t, "losetup", "-f", "--show", backing)
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "-d", dev).CombinedOutput(); err != nil {
			t.Errorf("losetup -d %s: %v: %s", dev, err, out)
		}
	})
	return dev
}

// mounted makes a file system of the size, mounted until the test ends.
func mounted(t *testing.T, size int64) (dir, dev string) {
	t.Helper()
	dev = loopDevice(t, size)
	run(t, "mkfs.ext4", "-q", "-m", "0", dev)
	dir = filepath.Join(t.TempDir(), "mnt")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	run(t, "mount", dev, dir)
	t.Cleanup(func() {
		if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			t.Errorf("umount %s: %v: %s", dir, err, out)
		}
	})
	return dir, dev
}

func TestConformanceOnBlockDevice(t *testing.T) {
	loopDevice(t, 512) // skips here when there are none
	blockdevtest.Run(t, func(t *testing.T, size int64) blockdev.Device {
		if size == 0 {
			t.Skip("a block device of 0 bytes cannot be made")
		}
		d := open(t, loopDevice(t, size), localdisk.Options{})
		if _, ok := d.Witness(); ok {
			t.Error("a block device gave a witness")
		}
		if n, err := d.AllocatedBytes(); n != size || err != nil {
			t.Errorf("AllocatedBytes = %d, %v; want the size", n, err)
		}
		return d
	})
}

func TestMountedBlockDeviceIsRefused(t *testing.T) {
	_, dev := mounted(t, 64<<20)
	if d, err := localdisk.Open(dev, localdisk.Options{}); !errors.Is(err, localdisk.ErrInUse) {
		if err == nil {
			d.Close()
		}
		t.Errorf("Open of a mounted block device: %v, want ErrInUse", err)
	}
}

func TestFullFileSystem(t *testing.T) {
	dir, _ := mounted(t, 64<<20)
	path := create(t, dir, 256<<20)
	d := open(t, path, localdisk.Options{})
	piece := bytes.Repeat([]byte{3}, 1<<20)
	var full int64 = -1
	for off := int64(0); off < d.Size(); off += int64(len(piece)) {
		if _, err := d.WriteAt(piece, off); err != nil {
			if !errors.Is(err, blockdev.ErrNoSpace) {
				t.Fatalf("write on a full file system: %v, want ErrNoSpace", err)
			}
			full = off
			break
		}
	}
	if full <= 0 {
		t.Fatalf("the file system was full at %d", full)
	}
	got := make([]byte, full)
	if _, err := d.ReadAt(got, 0); err != nil || !bytes.Equal(got, bytes.Repeat([]byte{3}, int(full))) {
		t.Errorf("what was written before is not there any more (%v)", err)
	}
	if _, err := d.WriteAt(bytes.Repeat([]byte{4}, 4096), 8192); err != nil {
		t.Errorf("overwrite on a full file system: %v", err)
	}
	if err := d.Flush(); err != nil {
		t.Errorf("Flush on a full file system: %v", err)
	}
	if err := d.Trim(1<<20, 4<<20); err != nil {
		t.Errorf("Trim on a full file system: %v", err)
	}
	if err := d.Flush(); err != nil { // the journal gives blocks back at its commit
		t.Errorf("Flush: %v", err)
	}
	if _, err := d.WriteAt(piece, 100<<20); err != nil {
		t.Errorf("write after a trim made room: %v", err)
	}
}

func TestReserveIsKeptFree(t *testing.T) {
	const reserve = 16 << 20
	dir, _ := mounted(t, 64<<20)
	d := open(t, create(t, dir, 256<<20), localdisk.Options{ReserveBytes: reserve})
	if err := d.WriteZeroes(200<<20, 1<<20, false); err != nil {
		t.Fatal(err)
	}
	piece := bytes.Repeat([]byte{3}, 256<<10)
	off := int64(0)
	for ; off < 200<<20; off += int64(len(piece)) {
		if _, err := d.WriteAt(piece, off); err != nil {
			if !errors.Is(err, blockdev.ErrNoSpace) {
				t.Fatalf("write: %v, want ErrNoSpace", err)
			}
			break
		}
	}
	if err := d.Flush(); err != nil {
		t.Fatal(err)
	}
	if free := freeBytes(t, dir); free < reserve-4<<20 {
		t.Errorf("%d bytes are free, want about the reserve of %d", free, reserve)
	}
	if off < 16<<20 {
		t.Errorf("only %d bytes could be written", off)
	}
	if _, err := d.WriteAt(piece, off-int64(len(piece))); err != nil {
		t.Errorf("overwrite below the reserve: %v", err)
	}
	if _, err := d.WriteAt(piece, 200<<20); err != nil {
		t.Errorf("write to allocated zeros below the reserve: %v", err)
	}
	if err := d.WriteZeroes(150<<20, 1<<20, false); !errors.Is(err, blockdev.ErrNoSpace) {
		t.Errorf("allocating zeros below the reserve: %v, want ErrNoSpace", err)
	}
	if err := d.WriteZeroes(150<<20, 1<<20, true); err != nil {
		t.Errorf("zeros by a hole below the reserve: %v", err)
	}
}
