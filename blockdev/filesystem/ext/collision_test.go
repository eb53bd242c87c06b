package ext_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/keelblock/keelblock/blockdev/filesystem"
	"github.com/keelblock/keelblock/blockdev/filesystem/ext"
	"github.com/keelblock/keelblock/blockdev/filesystem/fstest"
)

// TestNamesWithTheSameHashAreFound: where a leaf was split between two names of the
// same hash, a search goes on in the next leaf. Names are long and blocks small, so
// that leaves hold three.
func TestNamesWithTheSameHashAreFound(t *testing.T) {
	path := fstest.Image(t, 64<<20, "mkfs.ext4", "-q", "-F", "-b", "1024", "-E", "hash_seed=01234567-89ab-cdef-0123-456789abcdef")
	f, size := fstest.Open(t, path)
	fs, err := ext.Open(f, size)
	if err != nil {
		t.Fatal(err)
	}
	byHash := make(map[uint32]string)
	var names []string
	prefix := strings.Repeat("n", 240)
	for i := 0; len(names) < 80 && i < 3_000_000; i++ {
		name := fmt.Sprintf("%s%08d", prefix, i)
		h := ext.HashForTest(fs, name)
		if other, ok := byHash[h]; ok {
			names = append(names, other, name)
		}
		byHash[h] = name
	}
	if len(names) < 80 {
		t.Fatalf("only %d names share their hash", len(names))
	}
	dir, unmount := fstest.Mount(t, path, fstest.MountOptions{Type: "ext4"})
	large := filepath.Join(dir, "large")
	if err := os.Mkdir(large, 0o755); err != nil {
		t.Fatal(err)
	}
	rand.New(rand.NewPCG(1, 1)).Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
	for _, name := range names {
		if err := os.WriteFile(filepath.Join(large, name), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	unmount()
	// A leaf that goes on where the one before ended has an odd hash.
	if dump := fstest.Run(t, "debugfs", "-R", "htree_dump /large", path); !regexp.MustCompile(`Hash 0x[0-9a-f]{7}[13579bdf], block`).MatchString(dump) {
		t.Fatalf("no leaf was split between two names of the same hash:\n%s", dump)
	}
	if fs, err = ext.Open(f, size); err != nil {
		t.Fatal(err)
	}
	ino := lookup(t, fs, "large")
	for _, name := range names {
		if _, err := fs.Lookup(ino, []byte(name)); err != nil {
			t.Error(err)
		}
	}
	if _, err := fs.Lookup(ino, []byte(prefix+"x")); !errors.Is(err, filesystem.ErrNotExist) {
		t.Errorf("missing name: %v", err)
	}
}
