package fstest

import (
	"archive/zip"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// VMCases lists the cases of a set of images that Debian's kernel made and judged in a
// guest: those below testdata/vm of the package under test, or below
// $KEELBLOCK_TEST_FS_VM/SET, where `make test-fs-vm` has just made them.
func VMCases(t testing.TB, set string) []string {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(vmFolder(set), "*.zip"))
	if err != nil {
		t.Fatal(err)
	}
	if len(paths) == 0 {
		t.Fatalf("no images in %s; make test-fs-vm makes them", vmFolder(set))
	}
	for i, p := range paths {
		paths[i] = strings.TrimSuffix(filepath.Base(p), ".zip")
	}
	slices.Sort(paths)
	return paths
}

func vmFolder(set string) string {
	if dir := os.Getenv("KEELBLOCK_TEST_FS_VM"); dir != "" {
		return filepath.Join(dir, set)
	}
	return filepath.Join("testdata", "vm")
}

// VMCase reads the files of a case: disk images, and what the guest's kernel showed of
// them (tools/vmlab/images/SET.sh).
func VMCase(t testing.TB, set, name string) map[string][]byte {
	t.Helper()
	path := filepath.Join(vmFolder(set), name+".zip")
	z, err := zip.OpenReader(path)
	if err != nil {
		t.Fatalf("open %s: %v; make test-fs-vm makes it", path, err)
	}
	defer z.Close()
	files := make(map[string][]byte)
	for _, f := range z.File {
		r, err := f.Open()
		if err != nil {
			t.Fatal(err)
		}
		p, err := io.ReadAll(r)
		if err != nil {
			t.Fatalf("%s in %s: %v", f.Name, path, err)
		}
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		files[f.Name] = p
	}
	return files
}
