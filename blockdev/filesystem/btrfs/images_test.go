package btrfs_test

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

	"github.com/keelblock/keelblock/blockdev/filesystem"
	"github.com/keelblock/keelblock/blockdev/filesystem/btrfs"
	"github.com/keelblock/keelblock/blockdev/filesystem/fstest"
)

var update = flag.Bool("update", false, "make the images of testdata anew (needs root)")

// smallImages are kept in testdata, compressed, with the manifest that the kernel
// gave when they were made. They are read without root, and they are the seeds of the
// fuzz target.
var smallImages = []struct {
	name string
	mkfs []string
	data string
	// dirty: copied while it was mounted; the manifest is what the kernel showed after
	// it had replayed the log.
	dirty bool
}{
	{"mixed", []string{"-M", "--csum", "crc32c"}, "compress-force=zstd", false},
	{"dup", []string{"-n", "4096", "-d", "dup", "-m", "dup", "-O", "^no-holes", "--csum", "xxhash"}, "compress-force=lzo", false},
	{"dirty", []string{"-M", "--csum", "crc32c"}, "compress-force=zlib,commit=300", true},
}

// smallSize is for mixed images; others have what mkfs.btrfs wants at least.
const smallSize = 20 << 20

func TestMakeSmallImages(t *testing.T) {
	if !*update {
		t.Skip("only with -update")
	}
	outer, _ := fstest.Mount(t, fstest.Image(t, 4*gib, "mkfs.xfs", "-q", "-f", "-m", "reflink=1"), fstest.MountOptions{Type: "xfs"})
	for _, s := range smallImages {
		path := filepath.Join(outer, s.name)
		size := int64(smallSize)
		if s.mkfs[0] != "-M" {
			size = 232 << 20
		}
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(path, size); err != nil {
			t.Fatal(err)
		}
		fstest.Run(t, append(append([]string{"mkfs.btrfs", "-q", "-L", "label of " + s.name}, s.mkfs...), path)...)
		dir, unmount := fstest.Mount(t, path, fstest.MountOptions{Type: "btrfs", Data: s.data})
		fillSmall(t, dir)
		if s.dirty {
			fstest.Run(t, "sync", "-f", dir)
			changeSynced(t, dir)
			fstest.Run(t, "cp", "--reflink=always", path, path+"-copy")
			path += "-copy"
		}
		unmount()
		image, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		f, size := fstest.Open(t, path)
		fs, err := btrfs.Open(f, size)
		if err != nil {
			t.Fatal(err)
		}
		got, err := fstest.FromFS(fs)
		if err != nil {
			t.Fatal(err)
		}
		mounted := time.Now().Add(-10 * time.Millisecond)
		dir, unmount = fstest.Mount(t, path, fstest.MountOptions{Type: "btrfs", ReadOnly: !s.dirty})
		want, err := manifest(dir, 0, got)
		if err != nil {
			t.Fatal(err)
		}
		unmount()
		withoutMountTimes(want, got, mounted)
		writeGzip(t, s.name+".img.gz", image)
		writeGzip(t, s.name+".manifest.gz", []byte(want.Text(fstest.FieldAtime)))
	}
}

func text(n int) []byte { return bytes.Repeat([]byte("some text "), n/10+1)[:n] }

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
	for _, d := range []string{"deep/a/b/c", "xattrs", "links"} {
		must(os.MkdirAll(filepath.Join(dir, d), 0o755))
	}
	write("one", 1)
	for i := range 200 {
		must(os.Link(filepath.Join(dir, "one"), filepath.Join(dir, "links", fmt.Sprintf("%s-%03d", strings.Repeat("n\xe4m\xe9", 8), i))))
	}
	for _, n := range []int{0, 100, 3000, 5000, 70000, 300000} {
		write(fmt.Sprint("deep/a/b/c/", n), n)
	}
	f, err := os.Create(filepath.Join(dir, "sparse"))
	must(err)
	for i := range 30 {
		_, err := f.WriteAt(text(900), int64(i)*12288)
		must(err)
	}
	must(unix.Fallocate(int(f.Fd()), 0, 2<<20, 20<<10))
	must(f.Close())
	for _, n := range []int{5, 150, 1000} {
		must(os.Symlink(string(text(n)), filepath.Join(dir, fmt.Sprint("symlink", n))))
	}
	x := write("xattrs/file", 10)
	for i := range 20 {
		must(unix.Setxattr(x, fmt.Sprint("user.", i), text(i*10), 0))
	}
	acl := []byte("\x02\x00\x00\x00\x01\x00\x06\x00\xff\xff\xff\xff\x02\x00\x07\x00\xe8\x03\x00\x00\x04\x00\x04\x00\xff\xff\xff\xff\x10\x00\x07\x00\xff\xff\xff\xff\x20\x00\x00\x00\xff\xff\xff\xff")
	must(unix.Setxattr(write("xattrs/acl", 10), "system.posix_acl_access", acl, 0))
	must(unix.Mknod(filepath.Join(dir, "null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	must(unix.Mknod(filepath.Join(dir, "disk"), unix.S_IFBLK|0o600, int(unix.Mkdev(259, 70000))))
	must(unix.Mknod(filepath.Join(dir, "fifo"), unix.S_IFIFO|0o600, 0))
	for _, s := range []string{"sub", "sub/nested"} {
		fstest.Run(t, "btrfs", "subvolume", "create", filepath.Join(dir, s))
		write(s+"/file", 20000)
	}
	fstest.Run(t, "btrfs", "subvolume", "snapshot", filepath.Join(dir, "sub"), filepath.Join(dir, "snapshot"))
	write("sub/file", 30)
	must(os.Chtimes(x, time.Unix(-5, 0), time.Date(2100, 1, 1, 0, 0, 0, 7, time.UTC)))
}

// changeSynced makes changes that are in the log only.
func changeSynced(t *testing.T, dir string) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	sync := func(path string) {
		t.Helper()
		f, err := os.Open(filepath.Join(dir, path))
		must(err)
		must(f.Sync())
		must(f.Close())
	}
	at := func(path string) string { return filepath.Join(dir, path) }
	must(os.WriteFile(at("deep/a/new"), text(9000), 0o600))
	sync("deep/a/new")
	must(os.WriteFile(at("deep/a/b/c/3000"), text(40000), 0o600))
	must(unix.Setxattr(at("deep/a/b/c/3000"), "user.new", []byte("value"), 0))
	sync("deep/a/b/c/3000")
	must(os.Truncate(at("deep/a/b/c/300000"), 150000))
	sync("deep/a/b/c/300000")
	must(unix.Removexattr(at("xattrs/file"), "user.7"))
	sync("xattrs/file")
	must(os.Rename(at("deep/a/b/c/5000"), at("deep/a/renamed")))
	sync("deep/a/renamed")
	must(os.Link(at("deep/a/b/c/100"), at("deep/a/linked")))
	sync("deep/a/b/c/100")
	for i := range 10 {
		must(os.WriteFile(at(fmt.Sprint("xattrs/made", i)), text(i*700), 0o600))
	}
	sync("xattrs")
	must(os.WriteFile(at("sub/logged"), text(100000), 0o600))
	sync("sub/logged")
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

// smallImage is an image of testdata in memory.
func smallImage(t testing.TB, name string) *fstest.Sparse {
	t.Helper()
	return fstest.LoadSparse(t, filepath.Join("testdata", name+".img.gz"))
}

func open(r io.ReaderAt, size int64) (filesystem.FS, error) {
	fs, err := btrfs.Open(r, size)
	if err != nil {
		return nil, err // no typed nil
	}
	return fs, nil
}

// TestGolden reads the images of testdata and requires what the kernel showed when
// they were made.
func TestGolden(t *testing.T) {
	for _, s := range smallImages {
		image := smallImage(t, s.name)
		fs, err := btrfs.Open(image, image.Size())
		if err != nil {
			t.Errorf("%s: %v", s.name, err)
			continue
		}
		state := fs.Info().State
		if !state.Clean || s.dirty != strings.Contains(state.Reason, "replayed") {
			t.Errorf("%s: %+v", s.name, state)
		}
		if got, want := fs.Info().Label, "label of "+s.name; got != want {
			t.Errorf("label %q, want %q", got, want)
		}
		fstest.Golden(t, fs, filepath.Join("testdata", s.name+".manifest.gz"), fstest.FieldAtime)
		fstest.Cookies(t, fs)
		fstest.Reads(t, fs, 800)
	}
}
