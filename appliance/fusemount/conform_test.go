package fusemount_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keelblock/keelblock/appliance/fusemount"
	"github.com/keelblock/keelblock/blockdev/filesystem/ext"
	"github.com/keelblock/keelblock/blockdev/filesystem/fstest"
)

// TestMountShowsWhatTheKernelShows mounts the same image through a loop device and
// through FUSE, and requires that there is no difference.
func TestMountShowsWhatTheKernelShows(t *testing.T) {
	images := []struct {
		name, kind string
		mkfs       []string
	}{{"ext4", "ext4", []string{"mkfs.ext4", "-q", "-F"}}}
	if os.Getenv("KEELBLOCK_TEST_LARGE") != "" {
		images = append(images,
			struct {
				name, kind string
				mkfs       []string
			}{"ext2 1k", "ext2", []string{"mkfs.ext2", "-q", "-F", "-b", "1024"}},
			struct {
				name, kind string
				mkfs       []string
			}{"ext3", "ext3", []string{"mkfs.ext3", "-q", "-F", "-I", "128"}})
	}
	for _, im := range images {
		t.Run(im.name, func(t *testing.T) { conform(t, im.kind, im.mkfs) })
	}
}

func conform(t *testing.T, kind string, mkfs []string) {
	path := fstest.Image(t, 256<<20, mkfs...)
	dir, unmount := fstest.Mount(t, path, fstest.MountOptions{Type: kind})
	fstest.Populate(t, dir, fstest.Content{Entries: 1000})
	unmount()
	kernel, _ := fstest.Mount(t, path, fstest.MountOptions{Type: kind, ReadOnly: true})
	want, err := fstest.FromDir(kernel)
	if err != nil {
		t.Fatal(err)
	}
	f, size := fstest.Open(t, path)
	fs, err := ext.Open(f, size)
	if err != nil {
		t.Fatal(err)
	}
	vol := &fakeVolume{fs: fs}
	root := &fakeDir{}
	root.set(fusemount.Entry{Name: "v", Volume: vol})
	mnt := filepath.Join(start(t, root, fusemount.Options{AllowOther: true}), "v")
	for range 2 { // the second time from the kernel's caches
		got, err := fstest.FromDir(mnt)
		if err != nil {
			t.Fatal(err)
		}
		for i, d := range fstest.Diff(want, got, fstest.FieldInode) {
			if i == 20 {
				t.Fatal("and more")
			}
			t.Error(d)
		}
	}
	if r := vol.reported(); r != "" {
		t.Errorf("reported: %s", r)
	}
	copyBack(t, mnt, want)
}

// copyBack copies the tree with cp -a, as a user does, and compares the copy, save
// what a copy cannot have.
func copyBack(t *testing.T, mnt string, want fstest.Manifest) {
	dst := filepath.Join(t.TempDir(), "copy")
	if out, err := exec.Command("cp", "-a", mnt, dst).CombinedOutput(); err != nil {
		t.Fatalf("cp -a: %v\n%s", err, lastLines(string(out)))
	}
	got, err := fstest.FromDir(dst)
	if err != nil {
		t.Fatal(err)
	}
	ignore := fstest.FieldInode | fstest.FieldBlocks | fstest.FieldData | fstest.FieldAtime | fstest.FieldCtime | fstest.FieldBirth | fstest.FieldDirSize
	for i, d := range fstest.Diff(want, got, ignore) {
		if i == 20 {
			t.Fatal("and more")
		}
		t.Errorf("cp -a: %s", d)
	}
}

func lastLines(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(lines[max(0, len(lines)-5):], "\n")
}
