package ext_test

import (
	"bytes"
	"compress/gzip"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/keelblock/keelblock/blockdev/filesystem/ext"
	"github.com/keelblock/keelblock/blockdev/filesystem/fstest"
)

var update = flag.Bool("update", false, "make the images of testdata anew (needs root)")

// smallImages are kept in testdata, compressed, with the manifest that the kernel
// gave when they were made. They are read without root, and they are the seeds of
// the fuzz target.
var smallImages = []struct {
	name, kernel string
	mkfs         []string
}{
	{"ext4-csum", "ext4", []string{"mkfs.ext4", "-O", "64bit,inline_data,ea_inode,large_dir,metadata_csum_seed,^has_journal"}},
	{"ext4-nocsum", "ext4", []string{"mkfs.ext4", "-O", "64bit,inline_data,ea_inode,^metadata_csum,^has_journal"}},
	{"ext4-bigalloc", "ext4", []string{"mkfs.ext4", "-O", "bigalloc,meta_bg,^metadata_csum,^resize_inode,^has_journal", "-C", "4096"}},
	{"ext3-uninit", "ext4", []string{"mkfs.ext3", "-O", "uninit_bg,extent", "-J", "size=1", "-g", "1024"}},
	{"ext2", "ext2", []string{"mkfs.ext2", "-I", "128"}},
}

func TestMakeSmallImages(t *testing.T) {
	if !*update {
		t.Skip("only with -update")
	}
	for _, s := range smallImages {
		size := int64(2 << 20)
		if s.name == "ext3-uninit" {
			size = 4 << 20
		}
		path := fstest.Image(t, size, append(s.mkfs, "-q", "-F", "-b", "1024", "-N", "256", "-m", "0")...)
		dir, unmount := fstest.Mount(t, path, fstest.MountOptions{Type: s.kernel})
		fillSmall(t, dir)
		unmount()
		dir, unmount = fstest.Mount(t, path, fstest.MountOptions{Type: s.kernel, ReadOnly: true})
		m, err := fstest.FromDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		unmount()
		image, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		writeGzip(t, s.name+".img.gz", image)
		writeGzip(t, s.name+".manifest.gz", []byte(m.Text(0)))
	}
}

// fillSmall makes a little of everything in 2 MiB.
func fillSmall(t *testing.T, dir string) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	may := func(err error) {
		if err != nil {
			t.Log(err)
		}
	}
	text := func(n int) []byte { return bytes.Repeat([]byte("some text "), n/10+1)[:n] }
	write := func(name string, n int) string {
		path := filepath.Join(dir, name)
		must(os.WriteFile(path, text(n), 0o644))
		return path
	}
	for _, d := range []string{"hashed", "inline", "deep/a/b/c", "xattrs"} {
		must(os.MkdirAll(filepath.Join(dir, d), 0o755))
	}
	write("hashed/one", 1)
	for i := range 120 {
		must(os.Link(filepath.Join(dir, "hashed/one"), filepath.Join(dir, "hashed", fmt.Sprintf("%s-%03d", strings.Repeat("n\xe4m\xe9", 12), i))))
	}
	for i := range 5 {
		write(fmt.Sprint("inline/f", i), i*40)
	}
	write("deep/a/b/c/file", 3000)
	f, err := os.Create(filepath.Join(dir, "sparse"))
	must(err)
	for i := range 100 { // every other block: extents two levels deep
		_, err := f.WriteAt(text(900), int64(i)*2048)
		must(err)
	}
	for _, off := range []int64{300 << 10, 70 << 20} {
		_, err := f.WriteAt(text(1500), off)
		must(err)
	}
	may(unix.Fallocate(int(f.Fd()), 0, 400<<10, 20<<10))
	must(f.Close())
	for _, n := range []int{5, 59, 60, 150, 1000} {
		must(os.Symlink(string(text(n)), filepath.Join(dir, fmt.Sprint("symlink", n))))
	}
	x := write("xattrs/file", 10)
	for i := range 3 {
		may(unix.Setxattr(x, fmt.Sprint("user.", i), text(i*30), 0))
	}
	may(unix.Setxattr(write("xattrs/block", 10), "user.block", text(700), 0))
	may(unix.Setxattr(write("xattrs/inode", 10), "user.inode", text(3000), 0))
	acl := []byte("\x02\x00\x00\x00\x01\x00\x06\x00\xff\xff\xff\xff\x02\x00\x07\x00\xe8\x03\x00\x00\x04\x00\x04\x00\xff\xff\xff\xff\x10\x00\x07\x00\xff\xff\xff\xff\x20\x00\x00\x00\xff\xff\xff\xff")
	may(unix.Setxattr(write("xattrs/acl", 10), "system.posix_acl_access", acl, 0))
	must(unix.Mknod(filepath.Join(dir, "null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	must(unix.Mknod(filepath.Join(dir, "disk"), unix.S_IFBLK|0o600, int(unix.Mkdev(259, 70000))))
	must(unix.Mknod(filepath.Join(dir, "fifo"), unix.S_IFIFO|0o600, 0))
	must(os.Chtimes(x, time.Unix(-5, 0), time.Date(2100, 1, 1, 0, 0, 0, 7, time.UTC)))
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

func open(p []byte) (*ext.FS, error) { return ext.Open(bytes.NewReader(p), int64(len(p))) }

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
