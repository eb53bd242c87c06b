package guestfiles_test

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keelblock/keelblock/appliance/filerestore"
	"github.com/keelblock/keelblock/appliance/guestfiles"
	"github.com/keelblock/keelblock/blockdev"
)

// images is a daemon whose points have one disk each, an image file.
type images struct {
	points []filerestore.Point
	paths  map[string]string // by point
	bad    map[string]blockdev.Extent
	read   atomic.Int64 // bytes
}

func (s *images) Points(context.Context) ([]filerestore.Point, error) { return s.points, nil }

func (s *images) Open(_ context.Context, point, _ string) (filerestore.Reader, error) {
	f, err := os.Open(s.paths[point])
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	return &imageReader{f, info.Size(), s, s.bad[point]}, err
}

type imageReader struct {
	*os.File
	size int64
	s    *images
	bad  blockdev.Extent
}

func (r *imageReader) ReadAt(p []byte, off int64) (int, error) {
	if off < r.bad.End() && r.bad.Offset < off+int64(len(p)) {
		return 0, blockdev.ErrCorrupt
	}
	r.s.read.Add(int64(len(p)))
	return r.File.ReadAt(p, off)
}
func (r *imageReader) WriteAt([]byte, int64) (int, error) { return 0, blockdev.ErrReadOnly }
func (r *imageReader) Size() int64                        { return r.size }
func (r *imageReader) Flush() error                       { return nil }
func (r *imageReader) Extents(off, n int64, yield func(blockdev.Extent, blockdev.ExtentStatus) bool) error {
	yield(blockdev.Extent{Offset: off, Length: n}, blockdev.ExtentStatus{})
	return nil
}

// add makes a point of an image, younger than those before.
func (s *images) add(t testing.TB, id, path string) guestfiles.Point {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if s.paths == nil {
		s.paths = make(map[string]string)
	}
	s.paths[id] = path
	s.points = append(s.points, filerestore.Point{ID: id, Machine: "web", FrozenAt: time.Date(2026, 11, 21, 19, len(s.points), 0, 0, time.UTC),
		Disks: []filerestore.Disk{{Name: "web0", SizeBytes: info.Size()}}})
	return guestfiles.Point{Machine: "web", ID: id}
}

// tree reads the points; the end of the test closes them.
func (s *images) tree(t testing.TB) *guestfiles.Tree {
	t.Helper()
	points := filerestore.New(s, filerestore.Options{CacheBytes: 4 << 20})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		points.Run(ctx)
	}()
	t.Cleanup(func() { cancel(); <-done })
	return guestfiles.New(points, guestfiles.Options{})
}

// changes are the ranges of 64 KiB in which two images differ, as the trees of points
// tell.
func (s *images) changes(t testing.TB, a, b string) guestfiles.Changes {
	t.Helper()
	was, err := os.ReadFile(s.paths[a])
	if err != nil {
		t.Fatal(err)
	}
	is, err := os.ReadFile(s.paths[b])
	if err != nil {
		t.Fatal(err)
	}
	const block = 64 << 10
	out := guestfiles.Changes{"web0": nil}
	for at := 0; at < len(was); at += block {
		end := min(at+block, len(was))
		if !bytes.Equal(was[at:end], is[at:end]) {
			out["web0"] = append(out["web0"], blockdev.Extent{Offset: int64(at), Length: int64(end - at)})
		}
	}
	return out
}

// run runs a program.
func run(t testing.TB, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath(args[0]); err != nil {
		t.Skipf("%s is not installed", args[0])
	}
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// makeImage makes an ext4 of a folder, and lets debugfs change it.
func makeImage(t testing.TB, tree string, commands ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image")
	run(t, "mke2fs", "-q", "-t", "ext4", "-b", "4096", "-d", tree, path, "32M")
	debugfs(t, path, commands...)
	return path
}

func debugfs(t testing.TB, image string, commands ...string) {
	t.Helper()
	if len(commands) == 0 {
		return
	}
	script := filepath.Join(t.TempDir(), "commands")
	if err := os.WriteFile(script, []byte(strings.Join(commands, "\n")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, "debugfs", "-w", "-f", script, image)
}

// write makes a file with its folders.
func write(t testing.TB, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func copyFile(t testing.TB, from string) string {
	t.Helper()
	p, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	to := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(to, p, 0o600); err != nil {
		t.Fatal(err)
	}
	return to
}

func find(t testing.TB, tree *guestfiles.Tree, p guestfiles.Point, path string) guestfiles.Found {
	t.Helper()
	f, err := tree.Find(context.Background(), p, path, false)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// failures collects what a copy reports.
type failures map[string]string

func (f failures) add(path string, err error) { f[path] = err.Error() }

func copyTo(t testing.TB, dest string, o guestfiles.CopyOptions, nodes map[string]guestfiles.Found) (guestfiles.CopyStats, failures) {
	t.Helper()
	bad := failures{}
	o.Failed = bad.add
	stats, err := guestfiles.Copy(context.Background(), dest, nodes, o)
	if err != nil {
		t.Fatal(err)
	}
	return stats, bad
}

func content(t testing.TB, path string) string {
	t.Helper()
	p, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(p)
}
