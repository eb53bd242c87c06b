package ext_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/keelblock/keelblock/blockdev/filesystem"
	"github.com/keelblock/keelblock/blockdev/filesystem/ext"
	"github.com/keelblock/keelblock/blockdev/filesystem/fstest"
)

// state copies an image as it is now and tells its state.
func state(t *testing.T, path string) filesystem.State {
	t.Helper()
	copied := filepath.Join(t.TempDir(), "copy")
	fstest.Run(t, "cp", "--sparse=always", path, copied)
	f, size := fstest.Open(t, copied)
	fs, err := ext.Open(f, size)
	if err != nil {
		t.Fatal(err)
	}
	return fs.Info().State
}

// TestStateTellsWhetherTheJournalWasReplayed copies the image of a mounted file
// system, as a crash-consistent recovery point does.
func TestStateTellsWhetherTheJournalWasReplayed(t *testing.T) {
	for _, options := range [][]string{{"mkfs.ext4"}, {"mkfs.ext4", "-O", "fast_commit"}, {"mkfs.ext3"}} {
		path := fstest.Image(t, 64<<20, append(options, "-q", "-F")...)
		if s := state(t, path); !s.Clean {
			t.Errorf("%q fresh: %+v", options, s)
		}
		dir, unmount := fstest.Mount(t, path, fstest.MountOptions{Type: "ext4"})
		for i := range 20 {
			f, err := os.Create(filepath.Join(dir, fmt.Sprint("file", i)))
			if err != nil {
				t.Fatal(err)
			}
			if err := f.Sync(); err != nil {
				t.Fatal(err)
			}
			f.Close()
		}
		s := state(t, path)
		if !s.Clean || !strings.HasPrefix(s.Reason, "its journal was replayed in memory (") {
			t.Errorf("%q mounted and written: %+v", options, s)
		}
		freeze(t, dir, func() {
			if s := state(t, path); s != (filesystem.State{Clean: true}) {
				t.Errorf("%q frozen: %+v", options, s)
			}
		})
		unmount()
		if s := state(t, path); !s.Clean {
			t.Errorf("%q unmounted: %+v", options, s)
		}
	}
}

// freeze freezes the file system at dir, which this test mounted, while f runs.
func freeze(t *testing.T, dir string, f func()) {
	t.Helper()
	const fifreeze, fithaw = 0xC0045877, 0xC0045878 // include/uapi/linux/fs.h
	d, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := unix.IoctlSetInt(int(d.Fd()), fifreeze, 0); err != nil {
		t.Fatalf("freeze: %v", err)
	}
	defer func() {
		if err := unix.IoctlSetInt(int(d.Fd()), fithaw, 0); err != nil {
			t.Errorf("thaw: %v", err)
		}
	}()
	f()
}

func TestStateWithoutJournal(t *testing.T) {
	path := fstest.Image(t, 16<<20, "mkfs.ext2", "-q", "-F")
	_, unmount := fstest.Mount(t, path, fstest.MountOptions{Type: "ext2"})
	if s := state(t, path); s.Clean || !strings.Contains(s.Reason, "was not unmounted") {
		t.Errorf("mounted: %+v", s)
	}
	unmount()
	if s := state(t, path); !s.Clean {
		t.Errorf("unmounted: %+v", s)
	}
}

func TestStateTellsRecordedErrors(t *testing.T) {
	fs := debugfs(t, "ext4-csum", "set_super_value state 3")
	if s := fs.Info().State; s.Clean || !strings.Contains(s.Reason, "recorded errors") {
		t.Errorf("%+v", s)
	}
}

// TestInfo compares what a user sees of the volume with what mkfs was told and
// statfs(2) shows.
func TestInfo(t *testing.T) {
	const uuid = "01234567-89ab-cdef-0123-456789abcdef"
	for _, c := range []struct{ mkfs, format string }{{"mkfs.ext4", "ext4"}, {"mkfs.ext3", "ext3"}, {"mkfs.ext2", "ext2"}} {
		path := fstest.Image(t, 64<<20, c.mkfs, "-q", "-F", "-L", "a label", "-U", uuid)
		dir, _ := fstest.Mount(t, path, fstest.MountOptions{Type: "ext4", ReadOnly: true})
		var s unix.Statfs_t
		if err := unix.Statfs(dir, &s); err != nil {
			t.Fatal(err)
		}
		f, size := fstest.Open(t, path)
		fs, err := ext.Open(f, size)
		if err != nil {
			t.Fatal(err)
		}
		got := fs.Info()
		want := filesystem.Info{
			Format: c.format, Label: "a label", UUID: uuid, State: filesystem.State{Clean: true},
			BlockSize: s.Bsize, Blocks: got.Blocks, BlocksFree: s.Bfree, Inodes: s.Files, InodesFree: s.Ffree,
			MaxNameLen: int(s.Namelen), SizeBytes: 64 << 20,
		}
		if got != want {
			t.Errorf("%s: %+v, want %+v", c.format, got, want)
		}
		if got.Blocks < s.Blocks || got.Blocks > 64<<20/uint64(s.Bsize) {
			t.Errorf("%s: %d blocks, statfs has %d", c.format, got.Blocks, s.Blocks)
		}
	}
}

// TestReplayShowsTheNewestState: what was written home before, and what is only in the
// journal.
func TestReplayShowsTheNewestState(t *testing.T) {
	path := fstest.Image(t, 64<<20, "mkfs.ext4", "-q", "-F")
	dir, unmount := fstest.Mount(t, path, fstest.MountOptions{Type: "ext4"})
	write := func(name string) {
		t.Helper()
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteString("content of " + name); err != nil {
			t.Fatal(err)
		}
		if err := f.Sync(); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 50 {
		write(fmt.Sprint("old", i))
	}
	freeze(t, dir, func() {}) // writes everything home
	for i := range 50 {
		write(fmt.Sprint("new", i))
	}
	copied := filepath.Join(t.TempDir(), "copy")
	fstest.Run(t, "cp", "--sparse=always", path, copied)
	unmount()
	f, size := fstest.Open(t, copied)
	fs, err := ext.Open(f, size)
	if err != nil {
		t.Fatal(err)
	}
	if s := fs.Info().State; !s.Clean || !strings.Contains(s.Reason, "replayed") {
		t.Errorf("%+v", s)
	}
	for i := range 50 {
		for _, name := range []string{fmt.Sprint("old", i), fmt.Sprint("new", i)} {
			if got, err := fstest.File(fs, name); err != nil || string(got) != "content of "+name {
				t.Errorf("%s: %q, %v", name, got, err)
			}
		}
	}
	walk(t, fs, 20000)
}
