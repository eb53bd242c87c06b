package ntfs_test

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/keelblock/keelblock/blockdev/filesystem"
	"github.com/keelblock/keelblock/blockdev/filesystem/fstest"
	"github.com/keelblock/keelblock/blockdev/filesystem/ntfs"
)

const (
	benchFile    = 256 << 20
	benchRead    = 128 << 10
	benchEntries = 20000
)

// BenchmarkAgainstNTFS3G reads a file of 256 MiB and lists 20 000 files with their
// attributes, through the reader and through ntfs-3g's mount of the same image: this
// kernel has no NTFS. The image is in the page cache.
func BenchmarkAgainstNTFS3G(b *testing.B) {
	fstest.RequireRoot(b)
	path := fstest.Image(b, 1<<30, "mkntfs", "-F", "-q")
	dir := filepath.Join(b.TempDir(), "mnt")
	if err := os.Mkdir(dir, 0o700); err != nil {
		b.Fatal(err)
	}
	fstest.Run(b, "ntfs-3g", "-o", "big_writes", path, dir)
	b.Cleanup(func() {
		if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			b.Errorf("umount: %v %s", err, out)
		}
	})
	if err := fstest.FillWindows(dir, fstest.WindowsContent{Entries: benchEntries, BigBytes: benchFile}); err != nil {
		b.Fatal(err)
	}
	fstest.SyncFS(b, path)
	image, size := fstest.Open(b, path)
	fs, err := ntfs.Open(image, size)
	if err != nil {
		b.Fatal(err)
	}
	mounted, err := os.Open(filepath.Join(dir, "files/big"))
	if err != nil {
		b.Fatal(err)
	}
	defer mounted.Close()
	ino := lookup(b, fs, "files/big")
	p := make([]byte, benchRead)
	read := func(b *testing.B, readAt func(p []byte, off int64) (int, error)) {
		b.SetBytes(benchFile)
		for b.Loop() {
			if err := unix.Fadvise(int(mounted.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
				b.Fatal(err)
			}
			for off := int64(0); off < benchFile; off += benchRead {
				if n, err := readAt(p, off); n != len(p) || (err != nil && err != io.EOF) {
					b.Fatal(n, err)
				}
			}
		}
	}
	b.Run("read/ntfs-3g", func(b *testing.B) { read(b, mounted.ReadAt) })
	b.Run("read/reader", func(b *testing.B) {
		read(b, func(p []byte, off int64) (int, error) { return fs.ReadAt(ino, p, off) })
	})
	b.Run("find/ntfs-3g", func(b *testing.B) {
		for b.Loop() {
			d, err := os.Open(filepath.Join(dir, "many"))
			if err != nil {
				b.Fatal(err)
			}
			infos, err := d.Readdir(-1)
			d.Close()
			if err != nil || len(infos) != benchEntries {
				b.Fatal(len(infos), err)
			}
		}
	})
	b.Run("find/reader", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			fs, err := ntfs.Open(image, size)
			if err != nil {
				b.Fatal(err)
			}
			n := 0
			err = fs.ReadDir(lookup(b, fs, "many"), 0, func(d filesystem.Dirent) bool {
				if _, err := fs.Getattr(d.Inode); err != nil {
					b.Fatal(err)
				}
				n++
				return true
			})
			if err != nil || n != benchEntries {
				b.Fatal(n, err)
			}
		}
	})
}
