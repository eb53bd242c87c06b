package cbt

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/keelblock/keelblock/blockdev/localdisk"
)

// loopFS is an ext4 file system of the test's own, on a loop device.
type loopFS struct {
	t        *testing.T
	dir, dev string
	intents  string // "": no intent file
}

func newLoopFS(t *testing.T) *loopFS {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("a loop mount needs root")
	}
	for _, tool := range []string{"mkfs.ext4", "losetup", "mount", "umount"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is not installed", tool)
		}
	}
	img := filepath.Join(t.TempDir(), "fs.img")
	if err := errors.Join(os.WriteFile(img, nil, 0o600), os.Truncate(img, 64*mib)); err != nil {
		t.Fatal(err)
	}
	command(t, "mkfs.ext4", "-q", "-F", img)
	out, err := exec.Command("losetup", "-f", "--show", img).CombinedOutput()
	if err != nil {
		t.Skipf("no loop device: %v: %s", err, out)
	}
	f := &loopFS{t: t, dir: t.TempDir(), dev: strings.TrimSpace(string(out))}
	t.Cleanup(func() { command(t, "losetup", "-d", f.dev) })
	if out, err := exec.Command("mount", f.dev, f.dir).CombinedOutput(); err != nil {
		t.Skipf("cannot mount: %v: %s", err, out)
	}
	t.Cleanup(func() { command(t, "umount", f.dir) })
	return f
}

func command(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Errorf("%s %q: %v: %s", name, args, err, out)
	}
}

// cut stops the file system without writing its journal: what was not synced is lost.
func (f *loopFS) cut() {
	f.t.Helper()
	const ext4IocShutdown, noLogFlush = 0x8004587d, uint32(2) // fs/ext4/ext4.h
	d, err := os.Open(f.dir)
	if err != nil {
		f.t.Fatal(err)
	}
	defer d.Close()
	how := noLogFlush
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, d.Fd(), ext4IocShutdown, uintptr(unsafe.Pointer(&how))); e != 0 {
		f.t.Skipf("ext4 shutdown: %v", e)
	}
}

func (f *loopFS) remount() {
	f.t.Helper()
	command(f.t, "umount", f.dir)
	command(f.t, "mount", f.dev, f.dir)
}

func (f *loopFS) open(mapDir, boot string) (*localdisk.Disk, *Tracker) {
	f.t.Helper()
	d, err := localdisk.Open(filepath.Join(f.dir, "disk"), localdisk.Options{})
	if err != nil {
		f.t.Fatal(err)
	}
	t, err := Open(d, NewClock(), Options{
		DiskID: "cut", MapPath: filepath.Join(mapDir, "map"), SavePath: filepath.Join(f.dir, "saved"), BootID: boot,
		IntentPath: f.intents, SpillReserveBytes: mib,
		Witness: func() (Witness, bool) {
			w, ok := d.Witness()
			return Witness(w), ok
		},
	})
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { t.Close() }) // before the unmount; after the test's own, nothing
	return d, t
}

// newDisk makes a disk whose base is all zeros, with a clean stop behind it.
func (f *loopFS) newDisk(mapDir string) {
	f.t.Helper()
	if err := localdisk.Create(filepath.Join(f.dir, "disk"), 8*mib); err != nil {
		f.t.Fatal(err)
	}
	_, t := f.open(mapDir, "boot-1")
	if err := errors.Join(t.SetBase(PointID{1}), t.Close()); err != nil {
		f.t.Fatal(err)
	}
}

// With an intent file on the same file system: what was synced of it is there, what was
// not is the region of a write that never came to the disk.
func TestPowerCutOfAFileSystemNarrows(t *testing.T) {
	f, m := newLoopFS(t), shm(t)
	f.intents = filepath.Join(f.dir, "intent")
	if err := localdisk.Create(filepath.Join(f.dir, "disk"), 400*mib); err != nil {
		t.Fatal(err)
	}
	_, tr := f.open(m, "boot-1")
	if err := errors.Join(tr.SetBase(PointID{1}), tr.Close()); err != nil {
		t.Fatal(err)
	}
	d, tr := f.open(m, "boot-1")
	mustWrite(t, tr, 3*region, 4096, 1)
	if err := tr.Flush(); err != nil {
		t.Fatal(err)
	}
	mustWrite(t, tr, 20*region, 4096, 2)
	commitPoint(t, tr, PointID{2})
	commitPoint(t, tr, PointID{3}) // an idle interval: nothing is active
	mustWrite(t, tr, 9*region, 4096, 3)
	mustWrite(t, tr, 11*region, 4096, 4)
	f.cut()
	abandon(t, tr)
	d.Close()
	f.remount()
	d, tr = f.open(m, "boot-2")
	defer tr.Close()
	wantTracking(t, tr, TrackingCompare, "after a power cut 2 regions")
	wantRegions(t, "after a power cut", doubtful(tr), 9, 11)
	if base, _ := tr.Bases(); base != (PointID{3}) {
		t.Errorf("base %x", base[:2])
	}
	got := make([]byte, 2)
	if _, err := d.ReadAt(got[:1], 3*region); err != nil {
		t.Fatal(err)
	}
	if _, err := d.ReadAt(got[1:], 20*region); err != nil || got[0] != 1 || got[1] != 2 {
		t.Errorf("what was committed, and so not listed any more: %v, %v", got, err)
	}
}

func TestPowerCutMeansCompare(t *testing.T) {
	t.Run("while it is served", func(t *testing.T) {
		f, m := newLoopFS(t), shm(t)
		f.newDisk(m)
		d, tr := f.open(m, "boot-1")
		if state, reason := tr.Tracking(); state != TrackingEnabled {
			t.Fatalf("before the cut: %v: %s", state, reason)
		}
		mustWrite(t, tr, 0, 4096, 1)
		if err := tr.Flush(); err != nil {
			t.Fatal(err)
		}
		mustWrite(t, tr, mib, 4096, 2)
		f.cut()
		if err := tr.Flush(); err == nil {
			t.Error("a flush after the cut succeeded")
		}
		if state, reason := tr.Tracking(); state != TrackingCompare || !strings.Contains(reason, "flush") {
			t.Errorf("after the failed flush: %v: %s", state, reason)
		}
		if err := tr.Flush(); err == nil {
			t.Error("the flush after the failed flush succeeded")
		}
		abandon(t, tr)
		d.Close()
		f.remount()
		d, tr = f.open(m, "boot-2")
		defer tr.Close()
		if state, reason := tr.Tracking(); state != TrackingCompare || !strings.Contains(reason, "earlier boot") {
			t.Errorf("after the power cut: %v: %s", state, reason)
		}
		got := make([]byte, 4096)
		if _, err := d.ReadAt(got, 0); err != nil || !bytes.Equal(got, bytes.Repeat([]byte{1}, 4096)) {
			t.Errorf("flushed data after the cut: %d, %v", got[0], err)
		}
	})
	t.Run("right after the start", func(t *testing.T) {
		f, m := newLoopFS(t), shm(t)
		f.newDisk(m)
		d, tr := f.open(m, "boot-1")
		f.cut() // the clean flag is off by now, and durably so
		abandon(t, tr)
		d.Close()
		f.remount()
		_, tr = f.open(m, "boot-2")
		defer tr.Close()
		if state, reason := tr.Tracking(); state != TrackingCompare {
			t.Errorf("after the power cut: %v: %s", state, reason)
		}
	})
	t.Run("right after a clean stop", func(t *testing.T) {
		f, m := newLoopFS(t), shm(t)
		f.newDisk(m)
		_, tr := f.open(m, "boot-1")
		mustWrite(t, tr, mib, 4096, 2)
		if err := tr.Close(); err != nil {
			t.Fatal(err)
		}
		f.cut()
		f.remount()
		_, tr = f.open(m, "boot-2")
		defer tr.Close()
		if state, reason := tr.Tracking(); state != TrackingEnabled {
			t.Fatalf("after the power cut: %v: %s", state, reason)
		}
		if got := listed(tr); len(got) != 1 || got[0].Offset != mib {
			t.Errorf("listed %v", got)
		}
		got := make([]byte, 1)
		if _, err := tr.ReadAt(got, mib); err != nil || got[0] != 2 {
			t.Errorf("data of before the stop: %d, %v", got[0], err)
		}
	})
}
