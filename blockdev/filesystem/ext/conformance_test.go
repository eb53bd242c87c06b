package ext_test

import (
	"os"
	"testing"

	"github.com/keelblock/keelblock/blockdev/filesystem/ext"
	"github.com/keelblock/keelblock/blockdev/filesystem/fstest"
)

// full: the sizes of the conformance plan instead of those of a short run. make
// test-fs sets it.
func full() bool { return os.Getenv("KEELBLOCK_TEST_FS") == "full" }

// layout is one way to make an ext file system.
type layout struct {
	name   string
	size   int64 // of the image in the full run; the short run has a tenth
	short  int64 // when not 0, the size in the short run
	mkfs   []string
	tune   []string // run with the image's path behind
	kernel string   // the type to mount as; ext4
	row    bool     // a row of the conformance plan: the short run has more content
}

const gib = 1 << 30

var layouts = []layout{
	{name: "ext4", row: true, size: 4 * gib, mkfs: []string{"mkfs.ext4"}},
	{name: "ext4 inline", row: true, size: 2 * gib, mkfs: []string{"mkfs.ext4", "-O", "inline_data,ea_inode,large_dir,metadata_csum_seed", "-I", "512"}, tune: []string{"tune2fs", "-U", "random"}},
	{name: "ext4 inline 1k", size: 1 * gib, mkfs: []string{"mkfs.ext4", "-O", "inline_data,64bit", "-b", "1024", "-I", "256"}},
	{name: "ext4 bigalloc", row: true, size: 2 * gib, mkfs: []string{"mkfs.ext4", "-O", "bigalloc", "-C", "65536"}, short: 1 * gib},
	{name: "ext4 bigalloc 1k", size: 2 * gib, mkfs: []string{"mkfs.ext4", "-O", "bigalloc,meta_bg,^resize_inode", "-b", "1024", "-C", "8192"}},
	{name: "ext4 1k", row: true, size: 2 * gib, mkfs: []string{"mkfs.ext4", "-b", "1024", "-O", "meta_bg,^resize_inode"}},
	{name: "ext4 without checksums", size: 1 * gib, mkfs: []string{"mkfs.ext4", "-O", "^metadata_csum,^64bit"}},
	{name: "ext4 uninit_bg", size: 1 * gib, mkfs: []string{"mkfs.ext4", "-O", "uninit_bg,^metadata_csum,64bit", "-b", "2048"}},
	// 17 groups: the last one has a copy of the superblock and begins a meta group.
	{name: "ext4 sparse_super2", size: 136 << 20, short: 136 << 20, mkfs: []string{"mkfs.ext4", "-O", "sparse_super2,meta_bg,^resize_inode,orphan_file", "-b", "1024"}},
	{name: "ext4 without sparse_super", size: 1 * gib, short: 300 << 20, mkfs: []string{"mkfs.ext4", "-O", "^sparse_super,meta_bg,^resize_inode,^64bit,^flex_bg", "-b", "1024"}},
	{name: "ext4 without filetype and index", size: 1 * gib, mkfs: []string{"mkfs.ext4", "-O", "^filetype,^dir_index,^has_journal"}},
	{name: "ext4 without flex_bg", size: 1 * gib, mkfs: []string{"mkfs.ext4", "-O", "^flex_bg,^extent,^64bit,^huge_file,fast_commit", "-b", "4096", "-N", "80000"}},
	{name: "ext4 tea", size: 1 * gib, mkfs: []string{"mkfs.ext4", "-b", "1024", "-I", "1024"}, tune: []string{"tune2fs", "-E", "hash_alg=tea"}},
	{name: "ext4 legacy hash", size: 1 * gib, mkfs: []string{"mkfs.ext4", "-b", "1024"}, tune: []string{"tune2fs", "-E", "hash_alg=legacy"}},
	{name: "ext4 unsigned hash", size: 1 * gib, mkfs: []string{"mkfs.ext4", "-b", "1024"}, tune: []string{"debugfs", "-w", "-R", "set_super_value flags 2"}},
	{name: "ext4 unsigned tea", size: 1 * gib, mkfs: []string{"mkfs.ext4", "-b", "1024"}, tune: []string{"sh", "-c", "tune2fs -E hash_alg=tea \"$0\" && debugfs -w -R 'set_super_value flags 2' \"$0\""}},
	{name: "ext4 unsigned legacy", size: 1 * gib, mkfs: []string{"mkfs.ext4", "-b", "1024"}, tune: []string{"sh", "-c", "tune2fs -E hash_alg=legacy \"$0\" && debugfs -w -R 'set_super_value flags 2' \"$0\""}},
	{name: "ext4 encrypt verity", size: 1 * gib, mkfs: []string{"mkfs.ext4", "-O", "encrypt,verity,stable_inodes,mmp"}},
	{name: "ext3", row: true, size: 2 * gib, mkfs: []string{"mkfs.ext3", "-I", "128"}, kernel: "ext3"},
	{name: "ext2", row: true, size: 2 * gib, mkfs: []string{"mkfs.ext2", "-b", "1024"}, kernel: "ext2"},
	{name: "ext2 rev 0", size: 1 * gib, mkfs: []string{"mkfs.ext2", "-r", "0", "-b", "1024"}, kernel: "ext2"},
}

// make makes, fills and unmounts the image and returns its path.
func (l layout) make(t *testing.T) string {
	t.Helper()
	size, content := l.size/10&^(1<<20-1), fstest.Content{}
	if l.short != 0 {
		size = l.short
	}
	if !l.row {
		content = fstest.Content{Entries: 800, HalfEntries: 300, BigBytes: 2 << 20, StripedParts: 700, GrowSteps: 2}
	}
	if full() {
		size = l.size
		content = fstest.Content{Entries: 20000, HalfEntries: 3000, SparseBytes: 10 * gib, BigBytes: l.size / 4, GrowSteps: 400, StripedParts: 6000}
	}
	path := fstest.Image(t, size, append(l.mkfs[:len(l.mkfs):len(l.mkfs)], "-q", "-F")...)
	if l.tune != nil {
		fstest.Run(t, append(l.tune[:len(l.tune):len(l.tune)], path)...)
	}
	dir, unmount := fstest.Mount(t, path, fstest.MountOptions{Type: l.kernelType()})
	fstest.Populate(t, dir, content)
	unmount()
	return path
}

func (l layout) kernelType() string {
	if l.kernel != "" {
		return l.kernel
	}
	return "ext4"
}

// TestConformance: zero differences between the reader and the kernel's loop mount.
func TestConformance(t *testing.T) {
	for _, l := range layouts {
		t.Run(l.name, func(t *testing.T) {
			path := l.make(t)
			dir, _ := fstest.Mount(t, path, fstest.MountOptions{Type: l.kernelType(), ReadOnly: true})
			f, size := fstest.Open(t, path)
			fs, err := ext.Open(f, size)
			if err != nil {
				t.Fatal(err)
			}
			if s := fs.Info().State; !s.Clean {
				t.Errorf("an unmounted image is not clean: %s", s.Reason)
			}
			if err := ext.CheckGroupsForTest(fs); err != nil {
				t.Error(err)
			}
			plan := fstest.Plan{Reads: 1000}
			if full() {
				plan.Reads = 10000
			}
			fstest.Conform(t, dir, fs, plan)
		})
	}
}
