package xfs_test

import (
	"bytes"
	"compress/gzip"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/keelblock/keelblock/blockdev/filesystem/fstest"
	"github.com/keelblock/keelblock/blockdev/filesystem/xfs"
)

var update = flag.Bool("update", false, "make the images of testdata anew (needs root)")

// smallImages are kept in testdata, compressed, with the manifest that the kernel
// gave when they were made. They are read without root, and they are the seeds of
// the fuzz target.
//
// Those of version 4, which this kernel does not mount, are filled by mkfs.xfs and
// xfs_db. Their manifests were made by the reader; TestVersion4 says what must be in
// them.
var smallImages = []struct {
	name   string
	mkfs   []string
	format int
}{
	{"v5", []string{"-m", "reflink=1,rmapbt=1", "-i", "nrext64=0"}, 5},
	{"v5-1k", []string{"-b", "size=1024", "-n", "size=4096", "-m", "rmapbt=1", "-i", "nrext64=1"}, 5},
	{"v4", []string{"-m", "crc=0", "-b", "size=1024", "-i", "size=256", "-n", "ftype=0"}, 4},
	{"v4-ftype", []string{"-m", "crc=0", "-b", "size=512", "-n", "ftype=1,size=4096"}, 4},
}

const smallSize = 16 << 20

func TestMakeSmallImages(t *testing.T) {
	if !*update {
		t.Skip("only with -update")
	}
	for _, name := range []string{"TEST_DIR", "TEST_DEV", "QA_CHECK_FS"} {
		t.Setenv(name, "x") // mkfs.xfs makes less than 300 MB
	}
	for _, s := range smallImages {
		mkfs := append([]string{"mkfs.xfs", "-q", "-f"}, s.mkfs...)
		var path string
		if s.format == 4 {
			mkfs = append(mkfs, "-p", prototype(t))
			path = fstest.Image(t, smallSize, mkfs...)
			attributes(t, path)
		} else {
			path = fstest.Image(t, smallSize, mkfs...)
			dir, unmount := fstest.Mount(t, path, fstest.MountOptions{Type: "xfs"})
			fillSmall(t, dir)
			unmount()
		}
		writeGzip(t, s.name+".manifest.gz", []byte(judge(t, path, s.format)))
		image, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		writeGzip(t, s.name+".img.gz", image)
	}
}

// judge is the manifest of an image.
func judge(t *testing.T, path string, format int) string {
	t.Helper()
	var m fstest.Manifest
	var err error
	if format == 4 {
		f, size := fstest.Open(t, path)
		fs, openErr := xfs.Open(f, size)
		if openErr != nil {
			t.Fatal(openErr)
		}
		m, err = fstest.FromFS(fs)
	} else {
		dir, unmount := fstest.Mount(t, path, fstest.MountOptions{Type: "xfs", ReadOnly: true})
		m, err = fstest.FromDir(dir)
		unmount()
	}
	if err != nil {
		t.Fatal(err)
	}
	return m.Text(0)
}

func text(n int) []byte { return bytes.Repeat([]byte("some text "), n/10+1)[:n] }

// Names of the directories of an image, and how many entries they have: inside the
// inode, of one block, with one block of hashes, with a tree of them.
var smallDirs = map[string]int{"short": 3, "block": 20, "leaf": 150, "node": 700}

func entryName(i int) string { return fmt.Sprintf("%s-%03d", strings.Repeat("n\xe4m\xe9", 8), i) }

// fillSmall makes a little of everything.
func fillSmall(t *testing.T, dir string) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	write := func(name string, n int) string {
		path := filepath.Join(dir, name)
		must(os.WriteFile(path, text(n), 0o644))
		return path
	}
	for _, d := range []string{"deep/a/b/c", "xattrs"} {
		must(os.MkdirAll(filepath.Join(dir, d), 0o755))
	}
	write("one", 1)
	for d, n := range smallDirs {
		must(os.Mkdir(filepath.Join(dir, d), 0o755))
		for i := range n {
			must(os.Link(filepath.Join(dir, "one"), filepath.Join(dir, d, entryName(i))))
		}
	}
	write("deep/a/b/c/file", 3000)
	f, err := os.Create(filepath.Join(dir, "sparse"))
	must(err)
	for i := range 100 { // every other block: a tree of extents
		_, err := f.WriteAt(text(900), int64(i)*8192)
		must(err)
	}
	_, err = f.WriteAt(text(1500), 70<<20)
	must(err)
	must(unix.Fallocate(int(f.Fd()), 0, 2<<20, 20<<10))
	must(f.Close())
	for _, n := range []int{5, 150, 400, 1000} {
		must(os.Symlink(string(text(n)), filepath.Join(dir, fmt.Sprint("symlink", n))))
	}
	x := write("xattrs/file", 10)
	for i := range 3 {
		must(unix.Setxattr(x, fmt.Sprint("user.", i), text(i*10), 0))
	}
	must(unix.Setxattr(write("xattrs/block", 10), "user.block", text(700), 0))
	must(unix.Setxattr(write("xattrs/remote", 10), "user.remote", text(9000), 0))
	tree := write("xattrs/tree", 10)
	for i := range 60 {
		must(unix.Setxattr(tree, fmt.Sprintf("user.%03d", i), text(200), 0))
	}
	acl := []byte("\x02\x00\x00\x00\x01\x00\x06\x00\xff\xff\xff\xff\x02\x00\x07\x00\xe8\x03\x00\x00\x04\x00\x04\x00\xff\xff\xff\xff\x10\x00\x07\x00\xff\xff\xff\xff\x20\x00\x00\x00\xff\xff\xff\xff")
	must(unix.Setxattr(write("xattrs/acl", 10), "system.posix_acl_access", acl, 0))
	must(unix.Mknod(filepath.Join(dir, "null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	must(unix.Mknod(filepath.Join(dir, "disk"), unix.S_IFBLK|0o600, int(unix.Mkdev(259, 70000))))
	must(unix.Mknod(filepath.Join(dir, "fifo"), unix.S_IFIFO|0o600, 0))
	must(os.Chtimes(x, time.Unix(-5, 0), time.Date(2100, 1, 1, 0, 0, 0, 7, time.UTC)))
}

// prototype is a file for mkfs.xfs -p.
func prototype(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	var b strings.Builder
	source := func(n int) string {
		path := filepath.Join(dir, fmt.Sprint(n))
		if err := os.WriteFile(path, text(n), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	b.WriteString("/none\n0 0\nd--755 0 0\n")
	for _, d := range []string{"short", "block", "leaf", "node"} {
		fmt.Fprintf(&b, "%s d--750 7 70000\n", d)
		for i := range smallDirs[d] {
			fmt.Fprintf(&b, "%s ---644 0 0 %s\n", entryName(i), source(1+i%3))
		}
		b.WriteString("$\n")
	}
	fmt.Fprintf(&b, "file -u-644 1 2 %s\n", source(300000))
	for _, n := range []int{5, 100, 150, 400} {
		fmt.Fprintf(&b, "symlink%d l--777 0 0 %s\n", n, strings.Repeat("t", n))
	}
	b.WriteString("null c--666 0 0 1 3\ndisk b--600 0 0 259 70000\nfifo p--600 0 0\n")
	for _, n := range []string{"attr-short", "attr-block", "attr-remote", "attr-tree"} {
		fmt.Fprintf(&b, "%s ---644 0 0 %s\n", n, source(10))
	}
	b.WriteString("$\n")
	path := filepath.Join(dir, "prototype")
	if err := os.WriteFile(path, []byte(b.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// attributes sets some by xfs_db, which gives a value of a length all the letter v.
func attributes(t *testing.T, path string) {
	t.Helper()
	db := func(commands ...string) string {
		t.Helper()
		args := []string{"-x"}
		for _, c := range commands {
			args = append(args, "-c", c)
		}
		out, err := exec.Command(fstest.LookTool(t, "xfs_db"), append(args, path)...).CombinedOutput()
		if err != nil {
			t.Fatalf("xfs_db: %v %s", err, out)
		}
		return string(out)
	}
	for file, sets := range map[string][]string{
		"attr-short":  {"attr_set -u -v 12 small", "attr_set -r -v 3 trusty"},
		"attr-block":  {"attr_set -u -v 300 block", "attr_set -s -v 20 label"},
		"attr-remote": {"attr_set -u -v 1 first", "attr_set -u -v 5000 remote"},
	} {
		db(append([]string{"path /" + file}, sets...)...)
	}
	// Small ones first: xfs_db 6.1 crashes when the first attribute of a file does
	// not fit into the inode.
	commands := []string{"path /attr-tree", "attr_set -u -v 1 first"}
	for i := range 60 {
		commands = append(commands, fmt.Sprintf("attr_set -u -v 100 tree%03d", i))
	}
	db(commands...)
}

func writeGzip(t *testing.T, name string, p []byte) {
	t.Helper()
	var b bytes.Buffer
	w, err := gzip.NewWriterLevel(&b, gzip.BestCompression)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(p); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll("testdata", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join("testdata", name), b.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}

func readGzip(t testing.TB, name string) []byte {
	t.Helper()
	f, err := os.Open(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	p, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// smallImage is an image of testdata in memory.
func smallImage(t testing.TB, name string) []byte {
	t.Helper()
	return readGzip(t, name+".img.gz")
}

func open(p []byte) (*xfs.FS, error) { return xfs.Open(bytes.NewReader(p), int64(len(p))) }

// TestGolden reads the images of testdata and requires what the kernel showed when
// they were made.
func TestGolden(t *testing.T) {
	for _, s := range smallImages {
		fs, err := open(smallImage(t, s.name))
		if err != nil {
			t.Errorf("%s: %v", s.name, err)
			continue
		}
		m, err := fstest.FromFS(fs)
		if err != nil {
			t.Errorf("%s: %v", s.name, err)
			continue
		}
		want := strings.Split(string(readGzip(t, s.name+".manifest.gz")), "\n")
		got := strings.Split(m.Text(0), "\n")
		if len(got) != len(want) {
			t.Errorf("%s: %d names, want %d", s.name, len(got), len(want))
		}
		for i := range min(len(got), len(want)) {
			if got[i] != want[i] {
				t.Errorf("%s:\n got %s\nwant %s", s.name, got[i], want[i])
			}
		}
	}
}

// TestVersion4 requires of the images of version 4 what they were made from.
func TestVersion4(t *testing.T) {
	for _, s := range smallImages {
		if s.format != 4 {
			continue
		}
		fs, err := open(smallImage(t, s.name))
		if err != nil {
			t.Fatal(err)
		}
		m, err := fstest.FromFS(fs)
		if err != nil {
			t.Fatal(err)
		}
		if s := fs.Info().State; !s.Clean || s.Reason != "" {
			t.Errorf("what mkfs.xfs made is not clean: %+v", s)
		}
		names := 1 + len(smallDirs) + 1 + 4 + 3 + 4
		for d, n := range smallDirs {
			names += n
			for i := range n {
				path := d + "/" + entryName(i)
				if e, ok := m[path]; !ok || e.Attr.Size != int64(1+i%3) {
					t.Errorf("%s: %q: %+v", s.name, path, e.Attr)
				}
			}
			if a := m[d].Attr; a.Perm != 0o750 || a.UID != 7 || a.GID != 70000 {
				t.Errorf("%s: %s: %+v", s.name, d, a)
			}
		}
		if len(m) != names {
			t.Errorf("%s: %d names, want %d", s.name, len(m), names)
		}
		if p, err := fstest.File(fs, "file"); err != nil || !bytes.Equal(p, text(300000)) {
			t.Errorf("%s: file: %d bytes, %v", s.name, len(p), err)
		}
		for _, n := range []int{5, 100, 150, 400} {
			if got := m[fmt.Sprint("symlink", n)].Target; got != strings.Repeat("t", n) {
				t.Errorf("%s: symlink of %d bytes: %q", s.name, n, got)
			}
		}
		if a := m["disk"].Attr; a.RdevMajor != 259 || a.RdevMinor != 70000 {
			t.Errorf("%s: device %d:%d", s.name, a.RdevMajor, a.RdevMinor)
		}
		want := map[string]map[string]int{
			"attr-short": {"user.small": 12, "trusted.trusty": 3}, "attr-block": {"user.block": 300, "security.label": 20},
			"attr-remote": {"user.first": 1, "user.remote": 5000}, "attr-tree": {"user.first": 1},
		}
		for i := range 60 {
			want["attr-tree"][fmt.Sprintf("user.tree%03d", i)] = 100
		}
		for file, attrs := range want {
			if len(m[file].Xattrs) != len(attrs) {
				t.Errorf("%s: %s has %d attributes, want %d", s.name, file, len(m[file].Xattrs), len(attrs))
			}
			for name, n := range attrs {
				if got := m[file].Xattrs[name]; got != strings.Repeat("v", n) {
					t.Errorf("%s: %s: %s is %.20q of %d bytes", s.name, file, name, got, len(got))
				}
			}
		}
	}
}
