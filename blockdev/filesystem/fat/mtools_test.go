package fat_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/keelblock/keelblock/blockdev/filesystem/fat"
	"github.com/keelblock/keelblock/blockdev/filesystem/fstest"
)

// TestMtoolsImages reads what mtools wrote: a second opinion beside the kernel's, for
// sizes of clusters that the kept images lack.
func TestMtoolsImages(t *testing.T) {
	big := bytes.Repeat([]byte("0123456789abcde\n"), 40000)
	for _, mkfs := range [][]string{
		{"-F", "12", "-s", "1"}, {"-F", "12", "-s", "64"}, {"-F", "16", "-s", "1"}, {"-F", "16", "-s", "4", "-f", "1"},
		{"-F", "32", "-s", "1", "-S", "512"}, {"-F", "16", "-S", "2048", "-s", "1"},
	} {
		t.Run(fmt.Sprint(mkfs), func(t *testing.T) {
			size := int64(36 << 20)
			switch {
			case mkfs[1] == "12" && mkfs[3] == "1":
				size = 2 << 20
			case mkfs[1] == "16" && mkfs[3] == "1":
				size = 8 << 20
			}
			path := fstest.Image(t, size, append([]string{"mkfs.vfat"}, mkfs...)...)
			source := filepath.Join(t.TempDir(), "a long name for a file.text")
			if err := os.WriteFile(source, big, 0o644); err != nil {
				t.Fatal(err)
			}
			fstest.Run(t, "mmd", "-i", path, "::/Sub Folder")
			fstest.Run(t, "mcopy", "-i", path, source, "::/Sub Folder/")
			f, n := fstest.Open(t, path)
			fs, err := fat.Open(f, n)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := fstest.File(fs, "Sub Folder", "a long name for a file.text"); err != nil || !bytes.Equal(got, big) {
				t.Errorf("%d bytes, %v", len(got), err)
			}
			if s := fs.Info().State; !s.Clean {
				t.Errorf("%+v", s)
			}
		})
	}
}
