package looptest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// shutdown is EXT4_IOC_SHUTDOWN of linux/fs/ext4/ext4.h and XFS_IOC_GOINGDOWN of
	// linux/fs/xfs/libxfs/xfs_fs.h, one number. noLogFlush is flag 2 of both: the log is
	// not written.
	shutdown   = 0x8004587d
	noLogFlush = 2
	// busyFor is how long an unmount may find its file system busy: a test beside
	// this one may just start a process, which holds our files until it runs its program,
	// or have one in a mount namespace of its own, which holds our mount until it ends.
	busyFor = time.Minute
)

// FS is a mounted file system. Its methods fail the test on an error, and are for one
// goroutine.
type FS struct {
	// Dir is where it is mounted. The path is short, as sockets may lie below it.
	Dir string
	// Device is the loop device, "/dev/loop3".
	Device string

	tb      testing.TB
	kind    string
	mounted bool
}

// New makes an empty file system of a kind ("ext4", "xfs") and size (xfs wants 300 MiB)
// and mounts it until the test ends. Without root, the tools or a loop device the test
// is skipped, with the reason.
func New(tb testing.TB, kind string, sizeBytes int64) *FS {
	tb.Helper()
	image := filepath.Join(folder(tb), "image")
	f, err := os.Create(image)
	if err != nil {
		tb.Fatal(err)
	}
	if err := errors.Join(f.Truncate(sizeBytes), f.Close()); err != nil {
		tb.Fatal(err)
	}
	need(tb, "mkfs."+kind)
	if out, err := exec.Command("mkfs."+kind, "-q", image).CombinedOutput(); err != nil {
		tb.Fatalf("mkfs.%s: %v: %s", kind, err, out)
	}
	fs, err := Image(tb, kind, image)
	if err != nil {
		tb.Fatal(err)
	}
	return fs
}

// Image mounts a file that holds a file system of a kind, or held one: the error is that
// of the mount.
func Image(tb testing.TB, kind, path string) (*FS, error) {
	tb.Helper()
	if os.Geteuid() != 0 {
		tb.Skip("a loop mount needs root")
	}
	need(tb, "losetup", "mount", "umount")
	f := &FS{Dir: filepath.Join(folder(tb), "m"), tb: tb, kind: kind}
	if err := os.Mkdir(f.Dir, 0o755); err != nil {
		tb.Fatal(err)
	}
	out, err := exec.Command("losetup", "-f", "--show", path).CombinedOutput()
	if err != nil {
		tb.Skipf("no loop device: %v: %s", err, out)
	}
	f.Device = strings.TrimSpace(string(out))
	tb.Cleanup(f.Close)
	if out, err := exec.Command("mount", "-t", kind, f.Device, f.Dir).CombinedOutput(); err != nil {
		f.Close()
		return nil, fmt.Errorf("mount %s: %w: %s", f.Device, err, out)
	}
	f.mounted = true
	return f, nil
}

// Close unmounts before the test ends. A second call is harmless.
func (f *FS) Close() {
	f.tb.Helper()
	if f.Device == "" {
		return
	}
	if f.mounted {
		f.unmount()
	}
	f.run("losetup", "-d", f.Device)
	f.Device, f.mounted = "", false
}

// CutPower ends the file system as a power cut does: what was not synced is gone, and
// every call fails until Remount.
func (f *FS) CutPower() {
	f.tb.Helper()
	if err := CutPower(f.Dir); err != nil {
		f.tb.Skipf("this kernel cannot cut the power of %s: %v", f.kind, err)
	}
}

// CutPower is FS.CutPower for the process under test, which only knows a folder of the
// file system. It is for folders of an FS alone.
func CutPower(dir string) error {
	d, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return fmt.Errorf("cut the power of %s: %w", dir, err)
	}
	defer unix.Close(d)
	if err := unix.IoctlSetPointerInt(d, shutdown, noLogFlush); err != nil {
		return fmt.Errorf("cut the power of %s: %w", dir, err)
	}
	return nil
}

// Remount is what the reboot does. Nobody has files of the file system open.
func (f *FS) Remount() {
	f.tb.Helper()
	f.release()
	f.run("mount", "-t", f.kind, f.Device, f.Dir)
}

// Format empties the file system.
func (f *FS) Format() {
	f.tb.Helper()
	f.release()
	force := "-F"
	if f.kind == "xfs" {
		force = "-f"
	}
	f.run("mkfs."+f.kind, "-q", force, f.Device)
	f.run("mount", "-t", f.kind, f.Device, f.Dir)
}

// release unmounts and waits until the kernel has let go of the file system.
func (f *FS) release() {
	f.tb.Helper()
	f.unmount()
	// A process that copied the mount namespace, as sandboxes do, keeps the old mount a
	// little longer; a mount meanwhile would find it, still without power.
	name := filepath.Join("/sys/fs", f.kind, filepath.Base(f.Device))
	for began := time.Now(); ; time.Sleep(5 * time.Millisecond) {
		if _, err := os.Stat(name); errors.Is(err, os.ErrNotExist) {
			break
		}
		if time.Since(began) > busyFor {
			f.tb.Fatalf("%s is still mounted somewhere", f.Device)
		}
	}
}

// Check unmounts, has fsck judge the file system without repairing it, and mounts it
// again.
func (f *FS) Check() error {
	f.tb.Helper()
	f.unmount()
	defer f.run("mount", "-t", f.kind, f.Device, f.Dir)
	return Check(f.tb, f.kind, f.Device)
}

// Check has fsck judge an unmounted file system, without repairing it.
func Check(tb testing.TB, kind, device string) error {
	tb.Helper()
	command := []string{"e2fsck", "-f", "-n", device}
	if kind == "xfs" {
		command = []string{"xfs_repair", "-n", device}
	}
	need(tb, command[0])
	if out, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", command[0], err, out)
	}
	return nil
}

func (f *FS) unmount() {
	f.tb.Helper()
	for began := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		out, err := exec.Command("umount", f.Dir).CombinedOutput()
		if err == nil {
			return
		}
		if time.Since(began) > busyFor {
			f.tb.Errorf("umount %s: %v: %s", f.Dir, err, out)
			return
		}
	}
}

func (f *FS) run(name string, args ...string) {
	f.tb.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		f.tb.Errorf("%s %q: %v: %s", name, args, err, out)
	}
}

// folder is a short path that goes with the test.
func folder(tb testing.TB) string {
	tb.Helper()
	dir, err := os.MkdirTemp("", "kbloop")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// need skips the test unless the commands are installed.
func need(tb testing.TB, commands ...string) {
	tb.Helper()
	for _, c := range commands {
		if _, err := exec.LookPath(c); err != nil {
			tb.Skipf("%s is not installed", c)
		}
	}
}
