package ext_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keelblock/keelblock/blockdev/filesystem"
	"github.com/keelblock/keelblock/blockdev/filesystem/ext"
	"github.com/keelblock/keelblock/blockdev/filesystem/fstest"
)

// TestThreeLevelsOfHashTree: with large_dir a hash tree has a third level, which
// small blocks and long names reach with 50 000 entries.
func TestThreeLevelsOfHashTree(t *testing.T) {
	if !full() {
		t.Skip("only in the full run (KEELBLOCK_TEST_FS=full, make test-fs)")
	}
	const entries = 50000
	path := fstest.Image(t, 256<<20, "mkfs.ext4", "-q", "-F", "-b", "1024", "-O", "large_dir")
	dir, unmount := fstest.Mount(t, path, fstest.MountOptions{Type: "ext4"})
	large := filepath.Join(dir, "large")
	if err := os.Mkdir(large, 0o755); err != nil {
		t.Fatal(err)
	}
	name := func(i int) string { return fmt.Sprintf("%s%08d", strings.Repeat("n", 247), i) }
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for i := range entries {
		if err := os.Link(filepath.Join(dir, "file"), filepath.Join(large, name(i))); err != nil {
			t.Fatal(err)
		}
	}
	unmount()
	dump := fstest.Run(t, "debugfs", "-R", "htree_dump /large", path)
	if !strings.Contains(dump, "Indirect levels: 2") {
		t.Fatalf("the tree is not three levels deep:\n%.500s", dump)
	}
	dir, _ = fstest.Mount(t, path, fstest.MountOptions{Type: "ext4", ReadOnly: true})
	f, size := fstest.Open(t, path)
	fs, err := ext.Open(f, size)
	if err != nil {
		t.Fatal(err)
	}
	fstest.Conform(t, dir, fs, fstest.Plan{})
	ino := lookup(t, fs, "large")
	for _, i := range []int{entries, entries + 1, 99999999} {
		if _, err := fs.Lookup(ino, []byte(name(i))); !errors.Is(err, filesystem.ErrNotExist) {
			t.Errorf("missing name %d: %v", i, err)
		}
	}
}
