package btrfs_test

import (
	"encoding/binary"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/keelblock/keelblock/blockdev/filesystem"
	"github.com/keelblock/keelblock/blockdev/filesystem/btrfs"
	"github.com/keelblock/keelblock/blockdev/filesystem/fstest"
)

// full: the sizes of the conformance plan instead of those of a short run. make
// test-fs sets it.
func full() bool { return os.Getenv("KEELBLOCK_TEST_FS") == "full" }

const (
	gib       = 1 << 30
	shortSize = 256 << 20
)

// layout is one way to make and mount a btrfs file system.
type layout struct {
	name string
	size int64 // of the image in the full run
	mkfs []string
	data string // mount options
	row  bool   // a row of the conformance plan: the short run has more content
	// other: the default subvolume is not the top level.
	other bool
}

var layouts = []layout{
	{name: "defaults", row: true, size: 4 * gib},
	{name: "xxhash, no-holes, zstd", size: 2 * gib, mkfs: []string{"--csum", "xxhash", "-O", "no-holes"}, data: "compress-force=zstd:3"},
	{name: "nodes of 4k, lzo", size: 2 * gib, mkfs: []string{"-n", "4096"}, data: "compress-force=lzo"},
	{name: "mixed, zlib", size: 1 * gib, mkfs: []string{"-M"}, data: "compress-force=zlib"},
	{name: "other default, sha256, holes, DUP data", size: 1 * gib, other: true,
		mkfs: []string{"--csum", "sha256", "-d", "dup", "-O", "^no-holes"}},
	{name: "blake2b, no data checksums", size: 1 * gib, mkfs: []string{"--csum", "blake2", "-n", "65536"}, data: "nodatasum,max_inline=4095"},
}

// make makes, fills and unmounts the image and returns its path.
func (l layout) make(t *testing.T) string {
	t.Helper()
	size, content := int64(shortSize), fstest.Content{Entries: 1200, HalfEntries: 400, StripedParts: 800}
	if !l.row {
		content = fstest.Content{Entries: 300, HalfEntries: 100, BigBytes: 2 << 20, StripedParts: 300, GrowSteps: 1}
	}
	if full() {
		size = l.size
		content = fstest.Content{Entries: 20000, HalfEntries: 3000, SparseBytes: 10 * gib, BigBytes: l.size / 4, GrowSteps: 400, StripedParts: 6000}
	}
	path := fstest.Image(t, size, append([]string{"mkfs.btrfs", "-q"}, l.mkfs...)...)
	dir, unmount := fstest.Mount(t, path, fstest.MountOptions{Type: "btrfs", Data: l.data})
	if l.other {
		fstest.Run(t, "btrfs", "subvolume", "create", dir+"/@")
		fstest.Run(t, "btrfs", "subvolume", "create", dir+"/@home")
		writeFile(t, dir+"/@home/file", 5000)
		writeFile(t, dir+"/outside", 50)
		fstest.Run(t, "btrfs", "subvolume", "set-default", dir+"/@")
		unmount()
		dir, unmount = fstest.Mount(t, path, fstest.MountOptions{Type: "btrfs", Data: l.data})
	}
	fstest.Populate(t, dir, content)
	fstest.Run(t, "cp", "--reflink=always", dir+"/files/big", dir+"/files/reflinked")
	compressible(t, dir)
	many(t, dir)
	subvolumes(t, dir)
	unmount()
	return path
}

func writeFile(t *testing.T, path string, n int) {
	t.Helper()
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(i * i / 7)
	}
	if err := os.WriteFile(path, p, 0o644); err != nil {
		t.Fatal(err)
	}
}

// compressible makes files that compress: inline, of several extents, overwritten in
// the middle of an extent, ending anywhere.
func compressible(t *testing.T, dir string) {
	t.Helper()
	if err := os.Mkdir(dir+"/compressible", 0o755); err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{100, 2000, 4000, 5000, 131072, 131073, 1 << 20, 1<<20 + 777} {
		path := fmt.Sprintf("%s/compressible/%d", dir, n)
		p := make([]byte, n)
		for i := range p {
			p[i] = byte(i>>9) ^ byte(i%13)
		}
		if err := os.WriteFile(path, p, 0o644); err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Sync(); err != nil {
			t.Fatal(err)
		}
		for off := 50000; off < n; off += 100000 {
			if _, err := f.WriteAt([]byte("something else"), int64(off)); err != nil {
				t.Fatal(err)
			}
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// many makes so many links to one file in one directory that some have the other form
// of reference.
func many(t *testing.T, dir string) {
	t.Helper()
	if err := os.Mkdir(dir+"/references", 0o755); err != nil {
		t.Fatal(err)
	}
	writeFile(t, dir+"/references/one", 10)
	for i := range 300 {
		if err := os.Link(dir+"/references/one", fmt.Sprintf("%s/references/%0100d", dir, i)); err != nil {
			t.Fatal(err)
		}
	}
}

// subvolumes makes some, snapshots, changes behind them, and such as are no more.
func subvolumes(t *testing.T, dir string) {
	t.Helper()
	sub := func(args ...string) {
		t.Helper()
		for i := range args {
			if i > 0 && args[i] != "-r" {
				args[i] = filepath.Join(dir, args[i])
			}
		}
		fstest.Run(t, append([]string{"btrfs", "subvolume"}, args...)...)
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	sub("create", "sub")
	must(os.Mkdir(dir+"/sub/inner", 0o750))
	must(os.Chown(dir+"/sub/inner", 7, 8))
	sub("create", "sub/inner/nested")
	sub("create", "sub/inner/gone")
	for i := range 90 {
		writeFile(t, fmt.Sprintf("%s/sub/file%d", dir, i), i*150)
	}
	writeFile(t, dir+"/sub/inner/nested/file", 100000)
	sub("snapshot", "-r", "sub", "read-only")
	sub("snapshot", "sub", "written")
	sub("delete", "sub/inner/gone")
	for i := 0; i < 90; i += 3 {
		must(os.Remove(fmt.Sprintf("%s/sub/file%d", dir, i)))
		writeFile(t, fmt.Sprintf("%s/written/file%d", dir, i), 20000)
		must(os.Rename(fmt.Sprintf("%s/written/file%d", dir, i+1), fmt.Sprintf("%s/written/inner/renamed%d", dir, i)))
	}
	sub("create", "sub/moved")
	must(os.Rename(dir+"/sub/moved", dir+"/written/moved here"))
	writeFile(t, dir+"/written/moved here/file", 10)
}

// Numbers of the kernel.
const (
	inodeSubvolume = 256
	inodeEmpty     = 2
	ioctlInoLookup = 0xD0009412 // _IOWR(0x94, 18, struct btrfs_ioctl_ino_lookup_args)
)

// subvolumeID is the id of the subvolume in which dir is.
func subvolumeID(dir string) (uint64, error) {
	f, err := os.Open(dir)
	if err != nil {
		return 0, err
	}
	defer f.Close() // it was only read
	var args [4096]byte
	binary.LittleEndian.PutUint64(args[8:], inodeSubvolume)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), ioctlInoLookup, uintptr(unsafe.Pointer(&args))); errno != 0 {
		return 0, fmt.Errorf("subvolume of %s: %w", dir, errno)
	}
	return binary.LittleEndian.Uint64(args[:]), nil
}

// manifest is what the kernel shows, subvolumes too, with inode numbers as the reader
// has them. Of the empty directory of a subvolume that is no more, number and times
// are those of the reader: the kernel takes the time at which it is looked for.
func manifest(dir string, code uint64, got fstest.Manifest) (fstest.Manifest, error) {
	m, err := fstest.FromDir(dir)
	if err != nil {
		return nil, err
	}
	for _, path := range slices.Sorted(maps.Keys(m)) {
		e := m[path]
		e.Attr.Inode |= filesystem.Inode(code << 28)
		m[path] = e
		kernel := e.Attr.Inode & (1<<28 - 1)
		if e.Attr.Type != filesystem.TypeDir || path == "" || kernel > inodeSubvolume {
			continue
		}
		if kernel == inodeEmpty {
			g := got[path].Attr
			e.Attr.Inode, e.Attr.Mtime, e.Attr.Ctime, e.Attr.Birth, e.Attr.Atime = g.Inode, g.Mtime, g.Ctime, g.Birth, g.Atime
			m[path] = e
			continue
		}
		id, err := subvolumeID(filepath.Join(dir, path))
		if err != nil {
			return nil, err
		}
		below := make(fstest.Manifest) // what is below the subvolume
		for p, e := range got {
			if len(p) > len(path) && p[:len(path)+1] == path+"/" {
				below[p[len(path)+1:]] = e
			}
		}
		inside, err := manifest(filepath.Join(dir, path), id, below)
		if err != nil {
			return nil, err
		}
		for p, e := range inside {
			m[filepath.Join(path, p)] = e
		}
	}
	return m, nil
}

// topLevel is a reader's view of the top-level subvolume.
type topLevel struct {
	*btrfs.FS
	root filesystem.Inode
}

func (t topLevel) Root() filesystem.Inode { return t.root }

func (t topLevel) Parent(dir filesystem.Inode) (filesystem.Inode, error) {
	if dir == t.root {
		return dir, nil
	}
	return t.FS.Parent(dir)
}

// TestConformance: zero differences between the reader and the kernel's loop mount.
func TestConformance(t *testing.T) {
	for _, l := range layouts {
		t.Run(l.name, func(t *testing.T) {
			path := l.make(t)
			dir, unmount := fstest.Mount(t, path, fstest.MountOptions{Type: "btrfs", ReadOnly: true})
			f, size := fstest.Open(t, path)
			fs, err := btrfs.Open(f, size)
			if err != nil {
				t.Fatal(err)
			}
			if s := fs.Info().State; !s.Clean {
				t.Errorf("an unmounted image is not clean: %s", s.Reason)
			}
			plan := fstest.Plan{Reads: 400}
			if full() {
				plan.Reads = 10000
			}
			plan.Manifest = func(dir string, got fstest.Manifest) (fstest.Manifest, error) { return manifest(dir, 0, got) }
			fstest.Conform(t, dir, fs, plan)
			if !l.other {
				return
			}
			unmount()
			dir, _ = fstest.Mount(t, path, fstest.MountOptions{Type: "btrfs", ReadOnly: true, Data: "subvolid=5"})
			top := topLevel{fs, lookup(t, fs, ".btrfs")}
			fstest.Conform(t, dir, withoutNested{top}, fstest.Plan{Reads: 100, Manifest: func(dir string, _ fstest.Manifest) (fstest.Manifest, error) {
				m, err := fstest.FromDir(dir)
				if err != nil {
					return nil, err
				}
				delete(m, "@")
				for p, e := range m {
					e.Attr.Inode |= 5 << 28
					m[p] = e
				}
				home, err := fstest.FromDir(dir + "/@home")
				if err != nil {
					return nil, err
				}
				id, err := subvolumeID(dir + "/@home")
				if err != nil {
					return nil, err
				}
				for p, e := range home {
					e.Attr.Inode |= filesystem.Inode(id << 28)
					m[filepath.Join("@home", p)] = e
				}
				return m, nil
			}})
		})
	}
}

// withoutNested hides "@", which was compared as the default subvolume.
type withoutNested struct{ topLevel }

func (w withoutNested) ReadDir(dir filesystem.Inode, cookie uint64, yield func(filesystem.Dirent) bool) error {
	return w.topLevel.ReadDir(dir, cookie, func(d filesystem.Dirent) bool {
		return (dir == w.root && string(d.Name) == "@") || yield(d)
	})
}

func lookup(t testing.TB, fs filesystem.FS, path ...string) filesystem.Inode {
	t.Helper()
	ino := fs.Root()
	for _, name := range path {
		var err error
		if ino, err = fs.Lookup(ino, []byte(name)); err != nil {
			t.Fatal(err)
		}
	}
	return ino
}
