package ntfs_test

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/keelblock/keelblock/blockdev/filesystem"
	"github.com/keelblock/keelblock/blockdev/filesystem/fstest"
	"github.com/keelblock/keelblock/blockdev/filesystem/ntfs"
)

var update = flag.Bool("update", false, "make the images of testdata anew (needs root and ntfs-3g)")

// ignored are what ntfs-3g, the judge, shows in another way: it gives directories a size
// of its own, and neither births nor holes.
const ignored = fstest.FieldBirth | fstest.FieldDirSize | fstest.FieldData | fstest.FieldBlocks

func open(r io.ReaderAt, size int64) (filesystem.FS, error) {
	fs, err := ntfs.Open(r, size)
	if err != nil {
		return nil, err
	}
	return fs, nil
}

// layout is one way to make an NTFS.
type layout struct {
	name string
	size int64
	mkfs []string
	full fstest.WindowsContent // in the full run
}

var layouts = []layout{
	{"default", 64 << 20, nil, fstest.WindowsContent{Entries: 20000, GrowSteps: 500, BigBytes: 300 << 20}},
	{"clusters of 512", 48 << 20, []string{"-c", "512"}, fstest.WindowsContent{Entries: 3000, GrowSteps: 500, BigBytes: 30 << 20}},
	{"clusters of 64 KiB", 256 << 20, []string{"-c", "65536"}, fstest.WindowsContent{Entries: 3000, GrowSteps: 100, BigBytes: 30 << 20}},
	{"compressed", 64 << 20, []string{"-C"}, fstest.WindowsContent{Entries: 3000, GrowSteps: 100, BigBytes: 30 << 20}},
}

// mount mounts an image by ntfs-3g; the end of the test unmounts it.
func mount(t *testing.T, image string, options ...string) (dir string, unmount func()) {
	t.Helper()
	fstest.RequireRoot(t)
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skip("ntfs-3g needs /dev/fuse")
	}
	dir = filepath.Join(t.TempDir(), "mnt")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	args := []string{"ntfs-3g", "-o", strings.Join(append(options, "nosuid,nodev,noexec,streams_interface=xattr"), ","), image, dir}
	fstest.Run(t, args...)
	done := false
	unmount = func() {
		if done {
			return
		}
		done = true
		if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			t.Errorf("umount %s: %v %s", dir, err, out)
		}
	}
	t.Cleanup(unmount)
	return dir, unmount
}

// fill adds to what FAT has what only NTFS has.
func fill(t *testing.T, dir string, c fstest.WindowsContent) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(fstest.FillWindows(dir, c))
	write := func(name string, p []byte) string {
		path := filepath.Join(dir, name)
		must(os.WriteFile(path, p, 0o666))
		return path
	}
	text := func(n int) []byte { return bytes.Repeat([]byte("some text, "), n/11+1)[:n] }
	for _, d := range []string{"links", "streams", "packed", "sparse"} {
		must(os.Mkdir(filepath.Join(dir, d), 0o777))
	}
	one := write("links/one", text(3000))
	for i := range 12 {
		must(os.Link(one, filepath.Join(dir, "links", fmt.Sprint("another name of the file ", i))))
	}
	for name, target := range map[string]string{"symlink": "one", "up": "../names/README.TXT", "long": strings.Repeat("t", 300), "Grüße": "ü/文"} {
		must(os.Symlink(target, filepath.Join(dir, "links", name)))
	}
	must(unix.Mknod(filepath.Join(dir, "links/fifo"), unix.S_IFIFO|0o666, 0))
	must(unix.Mknod(filepath.Join(dir, "links/socket"), unix.S_IFSOCK|0o666, 0))
	must(unix.Mknod(filepath.Join(dir, "links/null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	must(unix.Mknod(filepath.Join(dir, "links/disk"), unix.S_IFBLK|0o666, int(unix.Mkdev(8, 1))))
	for i, n := range []int{0, 10, 700, 5000, 60000} {
		must(unix.Setxattr(write(fmt.Sprint("streams/file", i), text(i*400)), fmt.Sprint("user.stream of ", n), text(n), 0))
	}
	many := write("streams/many", nil)
	for i := range 40 { // more than a record holds: an attribute list
		must(unix.Setxattr(many, fmt.Sprintf("user.number %02d", i), text(i*20), 0))
	}
	must(unix.Setxattr(filepath.Join(dir, "streams"), "user.of a directory", []byte("d"), 0))
	compress(t, filepath.Join(dir, "packed"))
	for _, n := range []int{0, 100, 4096, 65536, 65537, 200000, 1 << 20} {
		write(fmt.Sprint("packed/text-", n), text(n))
		write(fmt.Sprint("packed/noise-", n), noise(n))
	}
	mixed := append(append(text(150000), noise(100000)...), make([]byte, 300000)...)
	write("packed/mixed", append(mixed, text(70000)...))
	f, err := os.Create(filepath.Join(dir, "packed/sparse"))
	must(err)
	_, err = f.WriteAt(text(70000), 1<<20)
	must(err)
	must(f.Close())
	for i, offs := range [][]int64{{0}, {1 << 20}, {5000, 3 << 20, 9 << 20}} {
		f, err := os.Create(filepath.Join(dir, "sparse", fmt.Sprint(i)))
		must(err)
		for _, off := range offs {
			_, err := f.WriteAt(text(9000), off)
			must(err)
		}
		must(f.Truncate(12 << 20))
		must(f.Close())
	}
}

// noise is n bytes that cannot be compressed.
func noise(n int) []byte {
	p := make([]byte, n)
	x := uint64(88172645463325252)
	for i := range p {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		p[i] = byte(x >> 32)
	}
	return p
}

// compress marks a directory so that files made in it are compressed.
func compress(t *testing.T, dir string) {
	t.Helper()
	const attrCompressed = 0x800
	if err := unix.Setxattr(dir, "system.ntfs_attrib", binary.LittleEndian.AppendUint32(nil, attrCompressed), 0); err != nil {
		t.Fatal(err)
	}
}

// make makes and fills an image.
func (l layout) make(t *testing.T) string {
	t.Helper()
	size, content := l.size, fstest.WindowsContent{Entries: 700}
	if os.Getenv("KEELBLOCK_TEST_FS") == "full" {
		size, content = 2<<30, l.full
	}
	path := fstest.Image(t, size, append([]string{"mkntfs", "-F", "-q", "-L", "Stück"}, l.mkfs...)...)
	dir, unmount := mount(t, path, "compression")
	fill(t, dir, content)
	unmount()
	return path
}

// TestConformance: no difference to what ntfs-3g shows.
func TestConformance(t *testing.T) {
	for _, l := range layouts {
		t.Run(l.name, func(t *testing.T) {
			path := l.make(t)
			dir, _ := mount(t, path, "ro")
			f, size := fstest.Open(t, path)
			fs, err := ntfs.Open(f, size)
			if err != nil {
				t.Fatal(err)
			}
			info := fs.Info()
			if !info.State.Clean || info.Label != "Stück" || info.BlocksFree == 0 {
				t.Errorf("%+v", info)
			}
			fstest.Conform(t, dir, fs, fstest.Plan{Ignore: ignored})
		})
	}
}

// kept are the images of testdata, filled and judged by ntfs-3g.
var kept = []string{"ntfs-4k", "ntfs-512"}

func TestMakeImages(t *testing.T) {
	if !*update {
		t.Skip("only with -update")
	}
	for _, name := range kept {
		mkfs := []string{"mkntfs", "-F", "-q", "-L", "Stück"}
		if name == "ntfs-512" {
			mkfs = append(mkfs, "-c", "512")
		}
		path := fstest.Image(t, 24<<20, mkfs...)
		dir, unmount := mount(t, path, "compression")
		fill(t, dir, fstest.WindowsContent{})
		unmount()
		dir, unmount = mount(t, path, "ro")
		m, err := fstest.FromDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for path, e := range m { // Text has no place for a field of directories only
			if e.Attr.Type == filesystem.TypeDir {
				e.Attr.Size = 0
				m[path] = e
			}
		}
		unmount()
		image, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		writeGzip(t, name+".img.gz", image)
		writeGzip(t, name+".manifest.gz", []byte(m.Text(ignored)))
	}
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
