package ext_test

import (
	"errors"
	"fmt"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/keelblock/keelblock/blockdev/filesystem"
	"github.com/keelblock/keelblock/blockdev/filesystem/ext"
	"github.com/keelblock/keelblock/blockdev/filesystem/fstest"
)

// TestBlockSizesThatTheKernelCannotMount: mke2fs copies a directory into images with
// blocks larger than a page, e2fsck gives their directories hash trees, and the
// directory on the host is the judge.
func TestBlockSizesThatTheKernelCannotMount(t *testing.T) {
	fstest.RequireRoot(t) // for owners and device nodes
	source := t.TempDir()
	var fs unix.Statfs_t
	if err := unix.Statfs(source, &fs); err != nil {
		t.Fatal(err)
	}
	if int64(fs.Type) == unix.TMPFS_MAGIC {
		t.Skip("TMPDIR is on tmpfs, which takes extended attributes larger than an image can hold")
	}
	fstest.Populate(t, source, fstest.Content{Entries: 2000, HalfEntries: 400, SparseBytes: 64 << 20, GrowSteps: 1, StripedParts: 400})
	want, err := fstest.FromDir(source)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		block   int
		options string
	}{
		{8192, "metadata_csum"}, {16384, "^metadata_csum,^extent,^64bit"}, {65536, "metadata_csum,ea_inode"}, {65536, "^metadata_csum"},
	} {
		t.Run(fmt.Sprint(c.block, " ", c.options), func(t *testing.T) {
			path := fstest.Image(t, 300<<20, "mke2fs", "-q", "-F", "-t", "ext4", "-b", fmt.Sprint(c.block), "-O", c.options, "-N", "8000", "-d", source)
			// Status 1: errors corrected, here the missing hash trees.
			out, err := exec.Command(fstest.LookTool(t, "e2fsck"), "-f", "-y", "-D", path).CombinedOutput()
			var exit *exec.ExitError
			if err != nil && (!errors.As(err, &exit) || exit.ExitCode() > 1) {
				t.Fatalf("e2fsck: %v\n%s", err, out)
			}
			f, size := fstest.Open(t, path)
			fs, err := ext.Open(f, size)
			if err != nil {
				t.Fatal(err)
			}
			got, err := fstest.FromFS(fs)
			if err != nil {
				t.Fatal(err)
			}
			delete(got, "lost+found")
			// mke2fs does not copy these; blocks of another size have other holes.
			ignore := fstest.FieldInode | fstest.FieldBlocks | fstest.FieldData | fstest.FieldAtime | fstest.FieldCtime |
				fstest.FieldBirth | fstest.FieldDirSize
			root := got[""]
			root.Attr.Nlink-- // lost+found
			got[""] = root
			for path, e := range got { // mke2fs copies the low 32 bits of the seconds
				e.Attr.Mtime = want[path].Attr.Mtime
				got[path] = e
			}
			diffs := fstest.Diff(want, got, ignore)
			for i, d := range diffs {
				if i == 20 {
					t.Errorf("... and %d more", len(diffs)-i)
					break
				}
				t.Error(d)
			}
			if _, err := fs.Lookup(lookup(t, fs, "many"), []byte("none")); !errors.Is(err, filesystem.ErrNotExist) {
				t.Errorf("missing name: %v", err)
			}
		})
	}
}
