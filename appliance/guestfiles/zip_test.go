package guestfiles_test

import (
	"archive/zip"
	"bytes"
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keelblock/keelblock/appliance/guestfiles"
	"github.com/keelblock/keelblock/blockdev"
)

// TestZipIsWhatUnzipUnpacks unpacks an archive with Python's zipfile, another's
// implementation, and requires the files.
func TestZipIsWhatUnzipUnpacks(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/a/small", "text")
	write(t, dir+"/a/empty", "")
	write(t, dir+"/a/bad\xff", "not UTF-8")
	write(t, dir+"/a/é", "UTF-8")
	write(t, dir+`/a/..\evil`, "left out")
	large := strings.Repeat("0123456789abcdef", 40_000)
	write(t, dir+"/a/large", large)
	sparse, err := os.Create(dir + "/a/sparse")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sparse.WriteAt([]byte("end"), 3<<20); err != nil {
		t.Fatal(err)
	}
	if err := sparse.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("small", dir+"/a/link"); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir+"/a/small", 0o751|os.ModeSetuid); err != nil {
		t.Fatal(err)
	}
	image := makeImage(t, dir, "cd a", "mknod pipe p", "cd /", "sif a/small uid 70000", "sif a/small mtime 20200102030405")
	var s images
	p := s.add(t, "aaaa", image)
	tree := s.tree(t)
	var out bytes.Buffer
	bad := failures{}
	if err := guestfiles.Zip(context.Background(), &out, find(t, tree, p, "/a"), "a", guestfiles.ArchiveOptions{Failed: bad.add}); err != nil {
		t.Fatal(err)
	}
	if len(bad) != 2 || !strings.Contains(bad["volumes/web0-0/a/pipe"], "use tar") || !strings.Contains(bad[`volumes/web0-0/a/..\evil`], "backslash") {
		t.Errorf("left out: %v", bad)
	}
	r, err := zip.NewReader(bytes.NewReader(out.Bytes()), int64(out.Len()))
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"a/": "", "a/small": "text", "a/empty": "", "a/bad\xff": "not UTF-8", "a/é": "UTF-8", "a/large": large,
		"a/sparse": strings.Repeat("\x00", 3<<20) + "end", "a/link": "small"}
	for _, f := range r.File {
		body, err := f.Open()
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(body)
		if content, known := want[f.Name]; err != nil || !known || string(got) != content {
			t.Errorf("%q: %d bytes, %v", f.Name, len(got), err)
		}
		delete(want, f.Name)
		switch f.Name {
		case "a/small":
			if f.Mode() != 0o751|os.ModeSetuid || !bytes.Contains(f.Extra, []byte{0x75, 0x78, 11, 0, 1, 4, 0x70, 0x11, 1, 0, 4}) || f.Modified.Unix() != 1577934245 {
				t.Errorf("small: %v %x %v", f.Mode(), f.Extra, f.Modified)
			}
		case "a/link":
			if f.Mode().Type() != os.ModeSymlink {
				t.Errorf("link: %v", f.Mode())
			}
		}
	}
	if len(want) != 0 {
		t.Errorf("missing: %d of the names", len(want))
	}
	if _, err := exec.LookPath("python3"); err != nil {
		return // the Go library has judged it
	}
	path := filepath.Join(t.TempDir(), "a.zip")
	if err := os.WriteFile(path, out.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, "python3", "-c", "import sys, zipfile\nz = zipfile.ZipFile(sys.argv[1])\nassert z.testzip() is None\nassert z.read('a/large') == b'0123456789abcdef' * 40000\nassert len(z.infolist()) == 8", path)
}

// A file whose data cannot be read is not made whole by a directory at the end.
func TestZipOfADamagedFileIsNotWhole(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/large", strings.Repeat("0123456789abcdef", 40_000))
	image := makeImage(t, dir)
	at := bytes.Index([]byte(content(t, image)), []byte("0123456789abcdef"))
	var s images
	p := s.add(t, "aaaa", image)
	s.bad = map[string]blockdev.Extent{"aaaa": {Offset: int64(at) + 400_000, Length: 1}}
	var out bytes.Buffer
	err := guestfiles.Zip(context.Background(), &out, find(t, s.tree(t), p, "/large"), "large", guestfiles.ArchiveOptions{})
	if err == nil || !strings.Contains(err.Error(), "is not whole") {
		t.Errorf("%v", err)
	}
	if _, err := zip.NewReader(bytes.NewReader(out.Bytes()), int64(out.Len())); err == nil {
		t.Error("the archive seems whole")
	}
}
