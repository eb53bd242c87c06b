package guestfiles_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/keelblock/keelblock/appliance/fusemount"
	"github.com/keelblock/keelblock/appliance/guestfiles"
	"github.com/keelblock/keelblock/blockdev/filesystem"
)

// hostile is a reader that gives what no sound image holds. Inode 1 is the root.
type hostile struct {
	filesystem.FS
	names []string // of the root; a file each
	loop  bool     // the root holds itself
	read  func() error
}

func (h *hostile) Root() filesystem.Inode { return 1 }
func (h *hostile) Getattr(i filesystem.Inode) (filesystem.Attr, error) {
	a := filesystem.Attr{Inode: i, Type: filesystem.TypeRegular, Perm: 0o644, Nlink: 1, Size: 10}
	if i == 1 {
		a.Type = filesystem.TypeDir
	}
	return a, nil
}
func (h *hostile) ReadDir(_ filesystem.Inode, cookie uint64, yield func(filesystem.Dirent) bool) error {
	for i := int(cookie); i < len(h.names); i++ {
		if !yield(filesystem.Dirent{Name: []byte(h.names[i]), Inode: filesystem.Inode(i + 2), Next: uint64(i + 1)}) {
			return nil
		}
	}
	if h.loop && int(cookie) <= len(h.names) {
		yield(filesystem.Dirent{Name: []byte("self"), Inode: 1, Next: uint64(len(h.names) + 1)})
	}
	return nil
}
func (h *hostile) Xattrs(filesystem.Inode) ([]string, error)                 { return nil, nil }
func (h *hostile) NextData(filesystem.Inode, int64) (int64, error)           { return 0, h.read() }
func (h *hostile) NextHole(filesystem.Inode, int64) (int64, error)           { return 10, nil }
func (h *hostile) ReadAt(_ filesystem.Inode, p []byte, _ int64) (int, error) { return len(p), nil }

// Open and Report make it a volume; Lookup and List a tree with a machine, a point and
// its volume.
func (h *hostile) Open(context.Context) (filesystem.FS, error) { return h, nil }
func (h *hostile) Report(string, error)                        {}

type folder []fusemount.Entry

func (f folder) List(context.Context) ([]fusemount.Entry, error) { return f, nil }
func (f folder) Lookup(_ context.Context, name string) (fusemount.Entry, error) {
	for _, e := range f {
		if e.Name == name {
			return e, nil
		}
	}
	return fusemount.Entry{}, filesystem.ErrNotExist
}

func (h *hostile) root(t *testing.T, deadline time.Duration) guestfiles.Found {
	t.Helper()
	if h.read == nil {
		h.read = func() error { return nil }
	}
	volumes := folder{{Name: "d-0", ID: "v", Volume: h}}
	points := folder{{Name: "web", Directory: folder{{Name: "p", Directory: folder{{Name: "volumes", Directory: volumes}}}}}}
	tree := guestfiles.New(points, guestfiles.Options{Deadline: deadline})
	return find(t, tree, guestfiles.Point{Machine: "web", ID: "p"}, "d-0")
}

// TestNamesThatAreNoneAreNotUsed copies and archives files named to leave their folder.
func TestNamesThatAreNoneAreNotUsed(t *testing.T) {
	h := &hostile{names: []string{"..", ".", "", "/etc/cron.d/x", "../x", "a\x00b", strings.Repeat("n", 300), "good"}, loop: true}
	outer := t.TempDir()
	dest := outer + "/dest"
	if err := os.Mkdir(dest, 0o700); err != nil {
		t.Fatal(err)
	}
	stats, bad := copyTo(t, dest, guestfiles.CopyOptions{}, map[string]guestfiles.Found{"root": h.root(t, 0)})
	if stats.Files != 1 || len(bad) != 8 || bad["volumes/d-0/self"] == "" {
		t.Errorf("%d files are copied, failures %v", stats.Files, bad)
	}
	for dir, want := range map[string]int{outer: 1, dest: 1, dest + "/root": 1} {
		if list, err := os.ReadDir(dir); err != nil || len(list) != want {
			t.Errorf("%s has %v (%v)", dir, list, err)
		}
	}
	for _, name := range []string{"..", "a/b", ""} {
		if _, bad := copyTo(t, dest, guestfiles.CopyOptions{}, map[string]guestfiles.Found{name: h.root(t, 0)}); len(bad) != 1 {
			t.Errorf("target name %q: %v", name, bad)
		}
	}
	var b bytes.Buffer
	left := failures{}
	err := guestfiles.Archive(context.Background(), &b, h.root(t, 0), "root", guestfiles.ArchiveOptions{Failed: left.add})
	if err != nil || len(left) != 8 || strings.Contains(b.String(), "cron") {
		t.Errorf("archive: %v, left out %v", err, left)
	}
}

// TestAReaderThatPanicsOrHangsEndsItsVolumeOnly gives errors in time.
func TestAReaderThatPanicsOrHangsEndsItsVolumeOnly(t *testing.T) {
	h := &hostile{names: []string{"a", "b"}, read: func() error { panic("index out of range") }}
	_, bad := copyTo(t, t.TempDir(), guestfiles.CopyOptions{}, map[string]guestfiles.Found{"root": h.root(t, 0)})
	if !strings.Contains(bad["volumes/d-0/a"], "was stopped") {
		t.Errorf("after a panic: %v", bad)
	}
	release := make(chan struct{})
	h = &hostile{names: []string{"a", "b"}, read: func() error { <-release; return errors.New("late") }}
	_, bad = copyTo(t, t.TempDir(), guestfiles.CopyOptions{}, map[string]guestfiles.Found{"root": h.root(t, 2*time.Second)})
	close(release)
	if len(bad) != 2 || !strings.Contains(bad["volumes/d-0/a"]+bad["volumes/d-0/b"], "in time") {
		t.Errorf("after a hang: %v", bad)
	}
}
