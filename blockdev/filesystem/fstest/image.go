package fstest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Image makes a sparse file of sizeBytes and runs mkfs with its path as the last
// argument. It skips the test when the program is not installed.
func Image(t testing.TB, sizeBytes int64, mkfs ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(sizeBytes); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if len(mkfs) > 0 {
		Run(t, append(mkfs[:len(mkfs):len(mkfs)], path)...)
	}
	return path
}

// Run runs a program, fails the test when the program fails and skips it when it is
// not installed.
func Run(t testing.TB, args ...string) string {
	t.Helper()
	return run(t, "", args...)
}

// RunInput is Run with input.
func RunInput(t testing.TB, input string, args ...string) string {
	t.Helper()
	return run(t, input, args...)
}

func run(t testing.TB, input string, args ...string) string {
	t.Helper()
	path := LookTool(t, args[0])
	c := exec.Command(path, args[1:]...)
	c.Stdin = strings.NewReader(input)
	out, err := c.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// LookTool finds a program, in the system folders too, which may be missing from
// PATH, or skips the test.
func LookTool(t testing.TB, name string) string {
	t.Helper()
	if path, err := exec.LookPath(name); err == nil {
		return path
	}
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path
		}
	}
	t.Skipf("%s is not installed", name)
	return ""
}

// MountOptions say how Mount mounts.
type MountOptions struct {
	// Type is the kernel's name of the file system.
	Type string
	// ReadOnly mounts with noload: the kernel neither writes nor replays a journal.
	ReadOnly bool
	// Offset and Size select a partition; Size 0 is up to the end.
	Offset, Size int64
	// Data are options of the file system.
	Data string
}

// Mount mounts an image through a loop device below a temporary directory and
// returns that and a function that unmounts it; the end of the test does so too. It
// skips the test without root, loop devices or a kernel that knows the type.
func Mount(t testing.TB, image string, o MountOptions) (dir string, unmount func()) {
	t.Helper()
	dir, unmount, err := TryMount(t, image, o)
	if err != nil {
		t.Fatal(err)
	}
	return dir, unmount
}

// TryMount is Mount for an image that the kernel may refuse.
func TryMount(t testing.TB, image string, o MountOptions) (dir string, unmount func(), err error) {
	t.Helper()
	RequireRoot(t)
	known, err := os.ReadFile("/proc/filesystems")
	if err != nil || !strings.Contains(string(known), "\t"+o.Type+"\n") {
		t.Skipf("this kernel does not know %s", o.Type)
	}
	args := []string{"-f", "--show"}
	if o.ReadOnly {
		args = append(args, "-r")
	}
	if o.Offset != 0 || o.Size != 0 {
		args = append(args, "-o", strconv.FormatInt(o.Offset, 10), "--sizelimit", strconv.FormatInt(o.Size, 10))
	}
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		t.Skip("there are no loop devices here")
	}
	loop := strings.TrimSpace(Run(t, append(append([]string{"losetup"}, args...), image)...))
	mounted := false
	dir = filepath.Join(t.TempDir(), "mnt")
	done := false
	unmount = func() {
		if done {
			return
		}
		done = true
		if mounted {
			if err := unix.Unmount(dir, 0); err != nil {
				t.Errorf("unmount %s: %v", dir, err)
				if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
					t.Errorf("detach %s: %v", dir, err)
				}
			}
		}
		if out, err := exec.Command(LookTool(t, "losetup"), "-d", loop).CombinedOutput(); err != nil {
			t.Errorf("losetup -d %s: %v %s", loop, err, out)
		}
		waitDetached(t, loop, image)
	}
	t.Cleanup(unmount)
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	flags := uintptr(unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC)
	data := o.Data
	if o.ReadOnly {
		flags |= unix.MS_RDONLY
		if strings.HasPrefix(o.Type, "ext") && o.Type != "ext2" {
			data = strings.TrimPrefix(data+",noload", ",")
		}
	}
	if err := unix.Mount(loop, dir, o.Type, flags, data); err != nil {
		unmount()
		return "", nil, fmt.Errorf("mount %s as %s with %q: %w", image, o.Type, data, err)
	}
	mounted = true
	return dir, unmount, nil
}

// RequireRoot skips the test for other users.
func RequireRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
}

// waitDetached waits until a loop device has let go of its image. A mount namespace that
// somebody made meanwhile has a copy of the mount: until that goes, the file system is
// mounted still, and the image is not all of it.
func waitDetached(t testing.TB, loop, image string) {
	t.Helper()
	name := filepath.Join("/sys/block", filepath.Base(loop), "loop/backing_file")
	for range 6000 {
		backing, err := os.ReadFile(name)
		if err != nil || !strings.HasPrefix(string(backing), image) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("%s is still attached to %q a minute after it was unmounted: who has a mount namespace of before?", loop, image)
}

// SyncFS writes the file system that holds a path to its device, and no other one: a sync of
// all would wait for whatever else the machine does, and for ever for a mount that hangs.
func SyncFS(t testing.TB, path string) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		t.Fatalf("sync the file system of %q: %v", path, err)
	}
}
