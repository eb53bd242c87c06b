package localdisk_test

import (
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/keelblock/keelblock/blockdev/localdisk"
)

// Where a disk says that it zeroes without writing, zeroes take no space (a hole), or
// as much as before (a mark), however often they are written.
func TestZeroesFastIsTrue(t *testing.T) {
	const size = 64 << 20
	path := filepath.Join(t.TempDir(), "disk.raw")
	if err := localdisk.Create(path, size); err != nil {
		t.Fatal(err)
	}
	d, err := localdisk.Open(path, localdisk.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		t.Fatal(err)
	}
	switch st.Type {
	case unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, unix.BTRFS_SUPER_MAGIC, unix.TMPFS_MAGIC:
		if !d.ZeroesFast(true) {
			t.Errorf("a file system of type %#x cannot punch holes", st.Type)
		}
		if fast, tmpfs := d.ZeroesFast(false), st.Type == unix.TMPFS_MAGIC; fast == tmpfs {
			t.Errorf("zeroes without a hole on a file system of type %#x: fast %v", st.Type, fast)
		}
	default:
		if d.ZeroesFast(true) || d.ZeroesFast(false) {
			t.Errorf("an unknown file system of type %#x is said to zero fast", st.Type)
		}
	}
	if d.ZeroesFast(true) {
		if err := d.WriteZeroes(0, size, true); err != nil {
			t.Fatal(err)
		}
		if n, err := d.AllocatedBytes(); err != nil || n > 1<<20 {
			t.Errorf("a sparse disk has %d bytes after zeroes (%v)", n, err)
		}
	}
	if d.ZeroesFast(false) {
		if err := d.WriteZeroes(0, size, false); err != nil {
			t.Fatal(err)
		}
		if n, err := d.AllocatedBytes(); err != nil || n < size {
			t.Errorf("a disk has %d bytes after zeroes without a hole (%v)", n, err)
		}
	}
	ro := filepath.Join(t.TempDir(), "ro.raw")
	if err := localdisk.Create(ro, size); err != nil {
		t.Fatal(err)
	}
	r, err := localdisk.Open(ro, localdisk.Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if r.ZeroesFast(true) {
		t.Error("a read-only disk zeroes fast")
	}
}
