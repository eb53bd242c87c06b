package fstest

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/keelblock/keelblock/blockdev/filesystem"
)

// Limits of every operation on any image (rule F2).
const (
	maxOperation = 2 * time.Second
	maxHeap      = 256 << 20
)

// walker calls everything that an FS has for everything that can be reached, and fails
// the test when a call takes too long. Errors are expected.
type walker struct {
	t       testing.TB
	fs      filesystem.FS
	left    int // calls that may still be made
	maxName int
	seen    map[filesystem.Inode]bool
	buffer  []byte
}

// Walk makes up to calls calls on a file system that may be damaged, each within its
// time: 2 s of this thread on the CPU, since on a busy machine a call may have to wait.
// Then it looks at the heap.
func Walk(t testing.TB, fs filesystem.FS, calls int) {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	w := &walker{t: t, fs: fs, left: calls, maxName: fs.Info().MaxNameLen, seen: make(map[filesystem.Inode]bool), buffer: make([]byte, 64<<10)}
	w.dir(fs.Root())
	for _, ino := range []filesystem.Inode{0, 1, 2, 3, 77, 1 << 20, 1 << 40, 1<<63 - 1, 1<<64 - 1} {
		w.dir(ino)
	}
	checkHeap(t)
}

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
			if len(d.Name) == 0 || len(d.Name) > w.maxName || strings.ContainsRune(string(d.Name), '/') {
				w.t.Fatalf("inode %d has the name %q", d.Inode, d.Name)
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
		w.call("ReadAt", ino, func() { w.fs.ReadAt(ino, w.buffer, off) })
		w.call("NextData", ino, func() { w.fs.NextData(ino, off) })
		w.call("NextHole", ino, func() { w.fs.NextHole(ino, off) })
	}
}

// checkHeap fails when more memory is in use than the limit. Garbage does not count.
func checkHeap(t testing.TB) {
	t.Helper()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	if m.HeapAlloc > maxHeap {
		runtime.GC()
		runtime.ReadMemStats(&m)
	}
	if m.HeapAlloc > maxHeap {
		t.Fatalf("heap of %d MiB", m.HeapAlloc>>20)
	}
}

// Opener is a reader's Open.
type Opener func(r io.ReaderAt, size int64) (filesystem.FS, error)

// Survive damages an image in variants ways and walks through what can still be opened:
// no panic, no call over its time. It requires that some can be.
func Survive(t *testing.T, s *Sparse, open Opener, variants int) {
	t.Helper()
	rnd := rand.New(rand.NewPCG(1, 2))
	opened := 0
	for range variants {
		c := s.Clone()
		c.Damage(rnd)
		if fs, err := open(c, c.Size()); err == nil {
			opened++
			Walk(t, fs, 4000)
		}
	}
	if opened < variants/4 {
		t.Errorf("only %d of %d variants could be opened", opened, variants)
	}
}

// Golden requires that a reader shows what a kept manifest says, whose lines were made
// with the same ignored fields.
func Golden(t *testing.T, fs filesystem.FS, path string, ignore Fields) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close() // it was only read
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	m, err := FromFS(fs)
	if err != nil {
		t.Fatal(err)
	}
	want, got := strings.Split(string(text), "\n"), strings.Split(m.Text(ignore), "\n")
	if len(got) != len(want) {
		t.Errorf("%d names, want %d", len(got)-1, len(want)-1)
	}
	for i := range min(len(got), len(want)) {
		if got[i] != want[i] {
			t.Fatalf("first difference:\n got %s\nwant %s", got[i], want[i])
		}
	}
}

// Cookies requires that the listing of every directory can be resumed behind every
// entry.
func Cookies(t *testing.T, fs filesystem.FS) {
	t.Helper()
	m, err := FromFS(fs)
	if err != nil {
		t.Fatal(err)
	}
	for path, e := range m {
		if e.Attr.Type == filesystem.TypeDir {
			if err := checkCookies(fs, e.Attr.Inode, 300); err != nil {
				t.Errorf("%q: %v", path, err)
			}
		}
	}
}

// Reads requires of n reads at random offsets of the largest files, by eight goroutines
// at once, the bytes that one sequential read gives, and of the seeks what they say from
// the start.
func Reads(t *testing.T, fs filesystem.FS, n int) {
	t.Helper()
	m, err := FromFS(fs)
	if err != nil {
		t.Fatal(err)
	}
	files := regularFiles(m)
	slices.SortFunc(files, func(a, b string) int { return int(m[b].Attr.Size - m[a].Attr.Size) })
	files = files[:min(len(files), 16)]
	whole := make(map[string][]byte)
	for _, path := range files {
		a := m[path].Attr
		if whole[path], err = io.ReadAll(io.NewSectionReader(readerAt{fs, a.Inode}, 0, a.Size)); err != nil {
			t.Fatalf("%q: %v", path, err)
		}
	}
	var wg sync.WaitGroup
	for i := range concurrentReaders {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(i), 7))
			for range n / concurrentReaders {
				path := files[rnd.IntN(len(files))]
				if err := checkRead(fs, m[path], whole[path], rnd); err != nil {
					t.Errorf("%q: %v", path, err)
					return
				}
			}
		})
	}
	wg.Wait()
}

// checkRead compares one read and the seeks at a random offset.
func checkRead(fs filesystem.FS, e Entry, want []byte, rnd *rand.Rand) error {
	off := randomOffset(rnd, e)
	p := make([]byte, 1+rnd.IntN(1<<rnd.IntN(19)))
	n, err := fs.ReadAt(e.Attr.Inode, p, off)
	rest := want[min(off, int64(len(want))):]
	full := min(len(p), len(rest))
	if n != full || !bytes.Equal(p[:n], rest[:full]) || (full < len(p)) != (err == io.EOF) || (err != nil && err != io.EOF) {
		return fmt.Errorf("ReadAt of %d at %d: %d bytes, %w", len(p), off, n, err)
	}
	return checkSeeks(fs, e, off)
}
