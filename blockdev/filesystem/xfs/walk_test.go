package xfs_test

import (
	"fmt"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/keelblock/keelblock/blockdev/filesystem"
	"github.com/keelblock/keelblock/blockdev/filesystem/xfs"
)

// Limits of every operation on any image.
const (
	maxOperation = 2 * time.Second
	maxHeap      = 256 << 20
)

// walker calls everything that an FS has for everything that can be reached, and
// fails the test when a call takes too long. Errors are expected.
type walker struct {
	t     testing.TB
	fs    *xfs.FS
	left  int // calls that may still be made
	seen  map[filesystem.Inode]bool
	reads []byte
}

func walk(t testing.TB, fs *xfs.FS, calls int) *walker {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	w := &walker{t: t, fs: fs, left: calls, seen: make(map[filesystem.Inode]bool), reads: make([]byte, 64<<10)}
	w.dir(fs.Root())
	return w
}

// call makes one call within the limits. Its time is that of this thread on the CPU:
// the images are in memory, and on a busy machine a call may have to wait for
// seconds (seen at a load of 20 on two cores).
func (w *walker) call(what string, ino filesystem.Inode, f func()) {
	if w.left <= 0 {
		return
	}
	w.left--
	start := threadTime(w.t)
	f()
	if d := threadTime(w.t) - start; d > maxOperation {
		w.t.Fatalf("%s of inode %d took %v", what, ino, d)
	}
}

// threadTime is the time that this thread has spent on the CPU.
func threadTime(t testing.TB) time.Duration {
	t.Helper()
	var r unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_THREAD, &r); err != nil {
		t.Fatal(err)
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

func (w *walker) dir(ino filesystem.Inode) {
	if w.seen[ino] || w.left <= 0 {
		return
	}
	w.seen[ino] = true
	w.file(ino)
	w.call("Parent", ino, func() { w.fs.Parent(ino) })
	var children []filesystem.Inode
	var names []string
	w.call("ReadDir", ino, func() {
		w.fs.ReadDir(ino, 0, func(d filesystem.Dirent) bool {
			if len(d.Name) == 0 || len(d.Name) > 255 {
				w.t.Fatalf("name of %d bytes", len(d.Name))
			}
			names = append(names, string(d.Name))
			children = append(children, d.Inode)
			return len(names) < 5000
		})
	})
	w.call("ReadDir", ino, func() { w.fs.ReadDir(ino, 77, func(filesystem.Dirent) bool { return true }) })
	w.call("ReadDir", ino, func() { w.fs.ReadDir(ino, 1<<63, func(filesystem.Dirent) bool { return true }) })
	for i, c := range children {
		w.call("Lookup", ino, func() { w.fs.Lookup(ino, []byte(names[i])) })
		w.dir(c)
	}
	w.call("Lookup", ino, func() { w.fs.Lookup(ino, []byte("no such name")) })
}

func (w *walker) file(ino filesystem.Inode) {
	var a filesystem.Attr
	w.call("Getattr", ino, func() { a, _ = w.fs.Getattr(ino) })
	w.call("Readlink", ino, func() { w.fs.Readlink(ino) })
	w.call("Xattrs", ino, func() {
		names, _ := w.fs.Xattrs(ino)
		for _, n := range names {
			w.call("Xattr", ino, func() { w.fs.Xattr(ino, n) })
		}
	})
	for _, off := range []int64{0, 1000, 12 << 10, a.Size / 2, a.Size - 5000, a.Size - 1, a.Size, 1 << 62} {
		w.call("ReadAt", ino, func() { w.fs.ReadAt(ino, w.reads, off) })
		w.call("NextData", ino, func() { w.fs.NextData(ino, off) })
		w.call("NextHole", ino, func() { w.fs.NextHole(ino, off) })
	}
}

// checkHeap fails when more memory is in use than the limit. Garbage, which may be
// that of other tests, does not count.
func checkHeap(t testing.TB) {
	t.Helper()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	if m.HeapAlloc > maxHeap {
		runtime.GC()
		runtime.ReadMemStats(&m)
	}
	if m.HeapAlloc > maxHeap {
		t.Fatalf("heap of %s", fmt.Sprint(m.HeapAlloc>>20, " MiB"))
	}
}
