package xfs_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/keelblock/keelblock/blockdev/filesystem/fstest"
	"github.com/keelblock/keelblock/blockdev/filesystem/xfs"
)

// full: the sizes of the conformance plan instead of those of a short run. make
// test-fs sets it.
func full() bool { return os.Getenv("KEELBLOCK_TEST_FS") == "full" }

// layout is one way to make an XFS file system. Its least size is 300 MB.
type layout struct {
	name string
	size int64 // of the image in the full run
	mkfs []string
	row  bool // a row of the conformance plan: the short run has more content
	// incompat are features that this machine's mkfs does not know yet.
	incompat uint32
	// scattered: a directory is made whose blocks are in pieces.
	scattered bool
}

const (
	gib       = 1 << 30
	shortSize = 320 << 20
)

var layouts = []layout{
	{name: "xfs", row: true, size: 4 * gib, mkfs: []string{"-m", "bigtime=1,reflink=1,rmapbt=1", "-i", "sparse=1,nrext64=0"}},
	{name: "xfs 1k", row: true, scattered: true, size: 2 * gib, mkfs: []string{"-b", "size=1024", "-n", "size=8192", "-i", "nrext64=1", "-m", "rmapbt=1,bigtime=1"}},
	{name: "2k, no bigtime", size: 1 * gib, mkfs: []string{"-b", "size=2048", "-m", "bigtime=0,finobt=0,reflink=0", "-i", "sparse=0,nrext64=0", "-n", "size=4096"}},
	{name: "inodes of 2048 bytes, directory blocks of 64k", size: 1 * gib, mkfs: []string{"-i", "size=2048", "-n", "size=65536", "-d", "agcount=3"}},
	{name: "own metadata uuid, parent pointers, exchange", size: 1 * gib, mkfs: []string{"-m", "reflink=1"}, incompat: 0x40 | 0x80},
}

// make makes, fills and unmounts the image and returns its path.
func (l layout) make(t *testing.T) string {
	t.Helper()
	size, content := int64(shortSize), fstest.Content{}
	if !l.row {
		content = fstest.Content{Entries: 800, HalfEntries: 300, BigBytes: 2 << 20, StripedParts: 700, GrowSteps: 2}
	}
	if full() {
		size = l.size
		content = fstest.Content{Entries: 20000, HalfEntries: 3000, SparseBytes: 10 * gib, BigBytes: l.size / 4, GrowSteps: 400, StripedParts: 6000}
	}
	path := l.empty(t, size)
	dir, unmount := fstest.Mount(t, path, fstest.MountOptions{Type: "xfs"})
	fstest.Populate(t, dir, content)
	share(t, dir)
	if l.scattered {
		scatter(t, dir)
	}
	unmount()
	return path
}

// empty makes the image.
func (l layout) empty(t testing.TB, size int64) string {
	t.Helper()
	if l.incompat == 0 {
		return fstest.Image(t, size, append([]string{"mkfs.xfs", "-q", "-f"}, l.mkfs...)...)
	}
	path := fstest.Image(t, size, "mkfs.xfs", "-q", "-f", "-m", "reflink=1")
	fstest.Run(t, "xfs_admin", "-U", "generate", path)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	p := make([]byte, 512)
	if _, err := f.ReadAt(p, 0); err != nil {
		t.Fatal(err)
	}
	binary.BigEndian.PutUint32(p[216:], binary.BigEndian.Uint32(p[216:])|l.incompat)
	sealSuper(p)
	if _, err := f.WriteAt(p, 0); err != nil {
		t.Fatal(err)
	}
	return path
}

// sealSuper sets the checksum of a superblock of one sector.
func sealSuper(p []byte) {
	clear(p[224:228])
	binary.LittleEndian.PutUint32(p[224:], crc32.Checksum(p[:512], crc32.MakeTable(crc32.Castagnoli)))
}

// share makes a reflinked copy.
func share(t *testing.T, dir string) {
	t.Helper()
	if out, err := exec.Command("cp", "--reflink=auto", dir+"/files/big", dir+"/files/reflinked").CombinedOutput(); err != nil {
		t.Fatalf("cp: %v %s", err, out)
	}
}

// scatter makes a directory whose blocks are in pieces: it fills the file system and
// frees every second block of some.
func scatter(t *testing.T, dir string) {
	t.Helper()
	full := func(err error) bool {
		t.Helper()
		if err != nil && !errors.Is(err, unix.ENOSPC) {
			t.Fatal(err)
		}
		return err != nil
	}
	fill := func(name string, limit int64) (f *os.File, size int64) {
		f, err := os.Create(dir + "/" + name)
		full(err)
		for step := int64(16 << 20); step >= 64<<10 && size < limit; {
			if full(unix.Fallocate(int(f.Fd()), 0, size, step)) {
				step /= 2
			} else {
				size += step
			}
		}
		return f, size
	}
	const room = 8 << 20 // that freeing itself may need
	full(os.Mkdir(dir+"/scattered", 0o755))
	f, size := fill("filler", 1<<40)
	full(f.Truncate(size - room))
	full(f.Sync())
	var fs unix.Statfs_t
	full(unix.Fstatfs(int(f.Fd()), &fs))
	for off := int64(0); off < 2000*2*fs.Bsize; off += 2 * fs.Bsize {
		if full(unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, fs.Bsize)) {
			t.Logf("no room to free more, %d bytes into the file", off)
			break
		}
	}
	full(f.Close())
	fstest.SyncFS(t, dir)
	f, _ = fill("more", room)
	full(f.Close())
	for i := range 400 {
		if full(os.Link(dir+"/files/size-1", fmt.Sprintf("%s/scattered/%s%d", dir, strings.Repeat("piece", 20), i))) {
			t.Logf("no room for more than %d entries", i)
			break
		}
	}
}

// TestConformance: zero differences between the reader and the kernel's loop mount.
func TestConformance(t *testing.T) {
	for _, l := range layouts {
		t.Run(l.name, func(t *testing.T) {
			path := l.make(t)
			dir, _ := fstest.Mount(t, path, fstest.MountOptions{Type: "xfs", ReadOnly: true})
			f, size := fstest.Open(t, path)
			fs, err := xfs.Open(f, size)
			if err != nil {
				t.Fatal(err)
			}
			if s := fs.Info().State; !s.Clean {
				t.Errorf("an unmounted image is not clean: %s", s.Reason)
			}
			plan := fstest.Plan{Reads: 1000}
			if full() {
				plan.Reads = 10000
			}
			fstest.Conform(t, dir, fs, plan)
		})
	}
}
