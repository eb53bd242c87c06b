package ext_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/keelblock/keelblock/blockdev/filesystem"
	"github.com/keelblock/keelblock/blockdev/filesystem/ext"
	"github.com/keelblock/keelblock/blockdev/filesystem/fstest"
)

// TestHostileStructuresAreSurvived builds what no mkfs makes. The images have no
// checksums, so that nothing stops the reader early.
func TestHostileStructuresAreSurvived(t *testing.T) {
	for _, c := range []struct {
		name, image, commands string
		check                 func(t *testing.T, fs *ext.FS)
	}{
		{
			// Block 2036 is the file's indirect block: all levels of the map are it.
			"indirect map that contains itself", "ext2",
			"set_inode_field /sparse block[DIND] 2036\nset_inode_field /sparse block[TIND] 2036\n" +
				"set_inode_field /sparse size 17000000000\n",
			func(t *testing.T, fs *ext.FS) {
				a, err := fs.Getattr(lookup(t, fs, "sparse"))
				if err != nil || a.Size != 17000000000 {
					t.Errorf("the image was not changed: %+v, %v", a, err)
				}
			},
		},
		{
			"empty file of the greatest size", "ext2",
			"set_inode_field /inline/f3 block[0] 0\nset_inode_field /inline/f3 size 17247252480\n",
			func(t *testing.T, fs *ext.FS) {
				ino := lookup(t, fs, "inline", "f3")
				if _, err := fs.NextData(ino, 0); !errors.Is(err, filesystem.ErrNoData) {
					t.Errorf("NextData: %v", err)
				}
			},
		},
		{
			"size over the limit", "ext4-nocsum", "set_inode_field /sparse size 9223372036854775807\n",
			func(t *testing.T, fs *ext.FS) {
				if _, err := fs.Getattr(lookup(t, fs, "sparse")); !errors.Is(err, filesystem.ErrCorrupt) {
					t.Errorf("Getattr: %v", err)
				}
			},
		},
		{
			"directory larger than the volume", "ext4-nocsum", "set_inode_field /hashed size 4000000000\n",
			func(t *testing.T, fs *ext.FS) {
				if _, err := fs.Lookup(lookup(t, fs, "hashed"), []byte("one")); !errors.Is(err, filesystem.ErrCorrupt) {
					t.Errorf("Lookup: %v", err)
				}
			},
		},
		{
			"directory with holes", "ext2", "set_inode_field /hashed size 200704\n",
			func(t *testing.T, fs *ext.FS) {
				err := fs.ReadDir(lookup(t, fs, "hashed"), 0, func(filesystem.Dirent) bool { return true })
				if !errors.Is(err, filesystem.ErrCorrupt) {
					t.Errorf("ReadDir: %v", err)
				}
			},
		},
		{"directory that contains itself", "ext2", "ln /deep/a /deep/a/b/c/again\nln /deep /hashed/deep\n", nil},
		{"file that is its own attributes", "ext4-nocsum", "set_inode_field /sparse file_acl 2038\nset_inode_field /null file_acl 1\n", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "image")
			if err := os.WriteFile(path, smallImage(t, c.image), 0o600); err != nil {
				t.Fatal(err)
			}
			fstest.RunInput(t, c.commands, "debugfs", "-w", "-f", "-", path)
			f, size := fstest.Open(t, path)
			fs, err := ext.Open(f, size)
			if err != nil {
				t.Fatal(err)
			}
			start := time.Now()
			walk(t, fs, 20000)
			t.Logf("walked in %v", time.Since(start))
			if c.check != nil {
				c.check(t, fs)
			}
			checkHeap(t)
		})
	}
}
