package filerestore_test

import (
	"context"
	"encoding/binary"
	"errors"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keelblock/keelblock/appliance/filerestore"
	"github.com/keelblock/keelblock/appliance/fusemount"
	"github.com/keelblock/keelblock/blockdev"
)

// source is a daemon with points in memory.
type source struct {
	mu     sync.Mutex
	points []filerestore.Point
	disks  map[string]*memory // by "point/disk"
	opened int
	open   int
	err    error
}

func (s *source) Points(context.Context) ([]filerestore.Point, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]filerestore.Point(nil), s.points...), s.err
}

func (s *source) Open(_ context.Context, point, disk string) (filerestore.Reader, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return nil, s.err
	}
	s.opened++
	s.open++
	return &reader{memory: s.disks[point+"/"+disk], source: s}, nil
}

func (s *source) counts() (opened, open int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.opened, s.open
}

// memory is the content of a disk.
type memory struct {
	p       []byte
	extents []blockdev.Extent // of data; nil: all is data
	bad     blockdev.Extent   // reads that touch it fail
}

// reader is a connection to a disk, which can break.
type reader struct {
	*memory
	source *source
	mu     sync.Mutex
	closed bool
	broken bool
}

var errBroken = errors.New("connection lost")

func (r *reader) ReadAt(p []byte, off int64) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.closed:
		return 0, blockdev.ErrClosed
	case r.broken:
		return 0, errBroken
	case off < r.bad.End() && r.bad.Offset < off+int64(len(p)):
		return 0, blockdev.ErrCorrupt
	}
	return copy(p, r.p[off:]), nil
}
func (r *reader) WriteAt([]byte, int64) (int, error) { return 0, blockdev.ErrReadOnly }
func (r *reader) Size() int64                        { return int64(len(r.p)) }
func (r *reader) Flush() error                       { return nil }
func (r *reader) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.closed {
		r.closed = true
		r.source.mu.Lock()
		r.source.open--
		r.source.mu.Unlock()
	}
	return nil
}
func (r *reader) Extents(off, n int64, yield func(blockdev.Extent, blockdev.ExtentStatus) bool) error {
	at := off
	for _, e := range r.extents {
		if e.Offset > at && !yield(blockdev.Extent{Offset: at, Length: e.Offset - at}, blockdev.ExtentStatus{Hole: true, Zero: true}) {
			return nil
		}
		if !yield(e, blockdev.ExtentStatus{}) {
			return nil
		}
		at = e.End()
	}
	if r.extents == nil {
		yield(blockdev.Extent{Offset: off, Length: n}, blockdev.ExtentStatus{})
	} else if at < off+n {
		yield(blockdev.Extent{Offset: at, Length: off + n - at}, blockdev.ExtentStatus{Hole: true, Zero: true})
	}
	return nil
}

var frozen = time.Date(2026, 11, 21, 19, 30, 0, 250e6, time.UTC)

// add makes a point of one disk.
func (s *source) add(id, machine string, at time.Time, name string, disks map[string]*memory) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := filerestore.Point{ID: id, Machine: machine, FrozenAt: at, Name: name, Consistency: "crash"}
	if s.disks == nil {
		s.disks = make(map[string]*memory)
	}
	for _, d := range slices.Sorted(maps.Keys(disks)) {
		p.Disks = append(p.Disks, filerestore.Disk{Name: d, SizeBytes: int64(len(disks[d].p))})
		s.disks[id+"/"+d] = disks[d]
	}
	s.points = append(s.points, p)
}

// extImage makes an ext4 with one file, and lets debugfs change it.
func extImage(t *testing.T, commands ...string) []byte {
	t.Helper()
	for _, tool := range []string{"mke2fs", "debugfs"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is not installed", tool)
		}
	}
	dir := t.TempDir()
	path := filepath.Join(dir, "image")
	tree := filepath.Join(dir, "tree")
	run := func(args ...string) {
		t.Helper()
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	if err := os.Mkdir(tree, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(tree+"/file", []byte(strings.Repeat("content ", 20000)), 0o644); err != nil {
		t.Fatal(err)
	}
	run("mke2fs", "-q", "-t", "ext4", "-b", "4096", "-L", "root", "-d", tree, path, "16M")
	if len(commands) > 0 {
		script := filepath.Join(dir, "commands")
		if err := os.WriteFile(script, []byte(strings.Join(commands, "\n")+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		run("debugfs", "-w", "-f", script, path)
	}
	p, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// partitioned puts volumes into the primary partitions of an MBR.
func partitioned(volumes ...[]byte) []byte {
	disk := make([]byte, 1<<20)
	disk[510], disk[511] = 0x55, 0xAA
	for i, v := range volumes {
		e := disk[446+16*i:]
		e[4] = 0x83
		binary.LittleEndian.PutUint32(e[8:], uint32(len(disk)/512))
		binary.LittleEndian.PutUint32(e[12:], uint32(len(v)/512))
		disk = append(disk, v...)
	}
	return disk
}

func names(list []fusemount.Entry) string {
	var out []string
	for _, e := range list {
		out = append(out, e.Name)
	}
	return strings.Join(out, " ")
}

// walk looks a path up.
func walk(t *testing.T, dir fusemount.Directory, path ...string) fusemount.Entry {
	t.Helper()
	var e fusemount.Entry
	for i, name := range path {
		var err error
		if e, err = dir.Lookup(context.Background(), name); err != nil {
			t.Fatalf("look up %s: %v", strings.Join(path[:i+1], "/"), err)
		}
		dir = e.Directory
	}
	return e
}

func list(t *testing.T, dir fusemount.Directory) string {
	t.Helper()
	l, err := dir.List(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return names(l)
}

func status(t *testing.T, tree *filerestore.Tree, path ...string) string {
	t.Helper()
	text, err := walk(t, tree, append(path, "STATUS")...).Text.Text(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func readFile(t *testing.T, v fusemount.Volume, name string) (string, error) {
	t.Helper()
	fs, err := v.Open(context.Background())
	if err != nil {
		return "", err
	}
	ino, err := fs.Lookup(fs.Root(), []byte(name))
	if err != nil {
		return "", err
	}
	a, err := fs.Getattr(ino)
	if err != nil {
		return "", err
	}
	p := make([]byte, a.Size)
	n, err := fs.ReadAt(ino, p, 0)
	return string(p[:n]), err
}
