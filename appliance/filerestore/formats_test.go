package filerestore_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keelblock/keelblock/appliance/filerestore"
)

// What a reader of blockdev/filesystem can open, a point shows.
func TestPointShowsOtherFileSystems(t *testing.T) {
	s := &source{}
	s.add("aaaa", "web", frozen, "t", map[string]*memory{"data": {p: fatImage(t)}, "cold": {p: xfsImage(t)}, "old": {p: btrfsImage(t)}})
	tree := filerestore.New(s, filerestore.Options{})
	if got, err := readFile(t, walk(t, tree, "web", "latest", "volumes", "data-0").Volume, "A long name.txt"); err != nil || got != "content of a file" {
		t.Errorf("FAT: %q, %v", got, err)
	}
	if got, err := readFile(t, walk(t, tree, "web", "latest", "volumes", "cold-0").Volume, "file"); err != nil || got != "content of a file" {
		t.Errorf("XFS: %q, %v", got, err)
	}
	if got, err := readFile(t, walk(t, tree, "web", "latest", "volumes", "old-0").Volume, "file"); err != nil || got != "content of a file" {
		t.Errorf("btrfs: %q, %v", got, err)
	}
	text := status(t, tree, "web", "latest")
	for _, want := range []string{"volumes/data-0: ", "volumes/cold-0: xfs", "volumes/old-0: btrfs", "no problems so far"} {
		if !strings.Contains(text, want) {
			t.Errorf("STATUS lacks %q:\n%s", want, text)
		}
	}
}

// made runs commands in a folder that holds the file "file", each with the image's path
// added where it says IMAGE, and returns the image.
func made(t *testing.T, bytes int64, commands ...string) []byte {
	t.Helper()
	t.Setenv("PATH", os.Getenv("PATH")+":/usr/sbin:/sbin")
	dir := t.TempDir()
	image := filepath.Join(dir, "image")
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte("content of a file"), 0o644); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(image)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(bytes); err != nil {
		t.Fatal(err)
	}
	f.Close()
	for _, c := range commands {
		args := strings.Split(strings.ReplaceAll(c, "IMAGE", image), "|")
		if _, err := exec.LookPath(args[0]); err != nil {
			t.Skipf("%s is not installed; make deps installs it", args[0])
		}
		cmd := exec.Command(args[0], args[1:]...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", c, err, out)
		}
	}
	p, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func fatImage(t *testing.T) []byte {
	return made(t, 8<<20, "mkfs.vfat|IMAGE", "mcopy|-i|IMAGE|file|::A long name.txt")
}

// xfsImage is filled by mkfs.xfs itself, from a prototype.
func xfsImage(t *testing.T) []byte {
	return made(t, 300<<20, "sh|-c|printf '/\\n0 0\\nd--755 0 0\\nfile ---644 0 0 file\\n$\\n' > proto", "mkfs.xfs|-q|-p|proto|IMAGE")
}

func btrfsImage(t *testing.T) []byte {
	return made(t, 128<<20, "sh|-c|mkdir content && cp file content/", "mkfs.btrfs|-q|-r|content|IMAGE")
}
