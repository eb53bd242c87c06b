package btrfs_test

import (
	"io"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/keelblock/keelblock/blockdev/filesystem"
	"github.com/keelblock/keelblock/blockdev/filesystem/btrfs"
	"github.com/keelblock/keelblock/blockdev/filesystem/fstest"
)

const (
	benchFile    = 512 << 20
	benchRead    = 128 << 10
	benchEntries = 20000
)

// benchImage has a file of 512 MiB and a directory of 20 000 files, mounted
// read-only.
func benchImage(b *testing.B) (image *os.File, dir string, fs *btrfs.FS) {
	b.Helper()
	path := fstest.Image(b, 2<<30, "mkfs.btrfs", "-q")
	dir, unmount := fstest.Mount(b, path, fstest.MountOptions{Type: "btrfs"})
	fstest.Populate(b, dir, fstest.Content{BigBytes: benchFile, Entries: benchEntries, GrowSteps: 1})
	unmount()
	dir, _ = fstest.Mount(b, path, fstest.MountOptions{Type: "btrfs", ReadOnly: true})
	image, size := fstest.Open(b, path)
	fs, err := btrfs.Open(image, size)
	if err != nil {
		b.Fatal(err)
	}
	return image, dir, fs
}

// forget drops the pages of a file from the page cache.
func forget(b *testing.B, f *os.File) {
	b.Helper()
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkSequentialRead reads a file of 512 MiB through the reader and through the
// kernel's loop mount of the same image. warm: the image is in the page cache (but
// the mounted file is not); cold: nothing is.
func BenchmarkSequentialRead(b *testing.B) {
	image, dir, fs := benchImage(b)
	mounted, err := os.Open(filepath.Join(dir, "files", "big"))
	if err != nil {
		b.Fatal(err)
	}
	defer mounted.Close()
	ino := lookup(b, fs, "files", "big")
	p := make([]byte, benchRead)
	read := func(b *testing.B, cold bool, readAt func(p []byte, off int64) (int, error)) {
		b.SetBytes(benchFile)
		for b.Loop() {
			b.StopTimer()
			forget(b, mounted)
			if cold {
				forget(b, image)
			}
			b.StartTimer()
			for off := int64(0); off < benchFile; off += benchRead {
				if n, err := readAt(p, off); n != len(p) || (err != nil && err != io.EOF) {
					b.Fatal(n, err)
				}
			}
		}
	}
	reader := func(p []byte, off int64) (int, error) { return fs.ReadAt(ino, p, off) }
	for _, cold := range []bool{false, true} {
		name := map[bool]string{false: "warm", true: "cold"}[cold]
		b.Run(name+"/loop mount", func(b *testing.B) { read(b, cold, mounted.ReadAt) })
		b.Run(name+"/reader", func(b *testing.B) { read(b, cold, reader) })
	}
}

// BenchmarkFind lists a directory of 20 000 files and takes the attributes of each,
// as find -ls does, with empty caches of the reader and warm ones of the kernel.
func BenchmarkFind(b *testing.B) {
	image, dir, _ := benchImage(b)
	b.Run("loop mount", func(b *testing.B) {
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
	for _, lookups := range []bool{false, true} {
		name := map[bool]string{false: "reader", true: "reader with lookups"}[lookups]
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				s, err := image.Stat()
				if err != nil {
					b.Fatal(err)
				}
				fs, err := btrfs.Open(image, s.Size())
				if err != nil {
					b.Fatal(err)
				}
				many := lookup(b, fs, "many")
				n := 0
				err = fs.ReadDir(many, 0, func(d filesystem.Dirent) bool {
					if lookups {
						if ino, err := fs.Lookup(many, d.Name); err != nil || ino != d.Inode {
							b.Fatal(ino, err)
						}
					}
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
}
