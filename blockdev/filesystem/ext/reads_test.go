package ext_test

import (
	"io"
	"sync/atomic"
	"testing"

	"github.com/keelblock/keelblock/blockdev/filesystem"
	"github.com/keelblock/keelblock/blockdev/filesystem/ext"
	"github.com/keelblock/keelblock/blockdev/filesystem/fstest"
)

// counter counts the reads of the image: each may be a round trip to a vault.
type counter struct {
	r            io.ReaderAt
	calls, bytes atomic.Int64
}

func (c *counter) ReadAt(p []byte, off int64) (int, error) {
	c.calls.Add(1)
	c.bytes.Add(int64(len(p)))
	return c.r.ReadAt(p, off)
}

// TestFirstListOfALargeVolumeReadsLittle: opening a volume of 1 TiB and listing its
// root with attributes takes a handful of reads, whatever the volume's size.
func TestFirstListOfALargeVolumeReadsLittle(t *testing.T) {
	path := fstest.Image(t, 1<<40, "mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=1,lazy_journal_init=1")
	f, size := fstest.Open(t, path)
	c := &counter{r: f}
	fs, err := ext.Open(c, size)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	err = fs.ReadDir(fs.Root(), 0, func(d filesystem.Dirent) bool {
		if _, err := fs.Getattr(d.Inode); err != nil {
			t.Error(err)
		}
		n++
		return true
	})
	if err != nil || n != 1 {
		t.Fatalf("%d entries, %v", n, err)
	}
	if calls, bytes := c.calls.Load(), c.bytes.Load(); calls > 6 || bytes > 128<<10 {
		t.Errorf("%d reads of %d bytes", calls, bytes)
	}
}

// TestMetadataIsCached: a second look at the same directory reads nothing.
func TestMetadataIsCached(t *testing.T) {
	p := smallImage(t, "ext4-csum")
	c := &counter{r: sliceReader(p)}
	fs, err := ext.Open(c, int64(len(p)))
	if err != nil {
		t.Fatal(err)
	}
	look := func() {
		dir := lookup(t, fs, "hashed")
		err := fs.ReadDir(dir, 0, func(d filesystem.Dirent) bool {
			if ino, err := fs.Lookup(dir, d.Name); err != nil || ino != d.Inode {
				t.Errorf("%q: %d, %v", d.Name, ino, err)
			}
			if _, err := fs.Getattr(d.Inode); err != nil {
				t.Error(err)
			}
			return true
		})
		if err != nil {
			t.Error(err)
		}
	}
	look()
	before := c.calls.Load()
	look()
	if n := c.calls.Load() - before; n != 0 {
		t.Errorf("%d reads the second time", n)
	}
}

type sliceReader []byte

func (s sliceReader) ReadAt(p []byte, off int64) (int, error) {
	if off >= int64(len(s)) {
		return 0, io.EOF
	}
	n := copy(p, s[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}
