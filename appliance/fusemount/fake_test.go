package fusemount_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"sort"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keelblock/keelblock/appliance/fusemount"
	"github.com/keelblock/keelblock/blockdev/filesystem"
)

// fakeFS is a guest's file system in memory, with files that misbehave.
type fakeFS struct {
	files map[filesystem.Inode]*fakeFile
	hang  chan struct{} // reading the file "hang" waits for it
}

type fakeFile struct {
	attr     filesystem.Attr
	content  []byte
	dataFrom int64 // the file is a hole before it
	target   string
	xattrs   map[string]string
	names    []string // of a directory
	children map[string]filesystem.Inode
	parent   filesystem.Inode
	bad      string // what happens at a read: "corrupt", "short", "panic", "hang"
}

var when = time.Date(2026, 11, 21, 19, 30, 0, 123456789, time.UTC)

func newFakeFS() *fakeFS {
	f := &fakeFS{files: make(map[filesystem.Inode]*fakeFile), hang: make(chan struct{})}
	f.files[2] = &fakeFile{attr: f.attr(2, filesystem.TypeDir, 0o755), children: make(map[string]filesystem.Inode), parent: 2}
	return f
}

func (f *fakeFS) attr(ino filesystem.Inode, typ filesystem.Type, perm uint16) filesystem.Attr {
	return filesystem.Attr{Inode: ino, Type: typ, Perm: perm, Nlink: 1, UID: 70000, GID: 4000000000,
		Atime: when, Mtime: when, Ctime: when, Birth: when, Generation: 1}
}

// add puts a file into a directory.
func (f *fakeFS) add(dir, ino filesystem.Inode, name string, typ filesystem.Type, perm uint16, content string) *fakeFile {
	n := f.files[ino]
	if n == nil {
		n = &fakeFile{attr: f.attr(ino, typ, perm), content: []byte(content), parent: dir}
		n.attr.Size, n.attr.Blocks = int64(len(content)), int64(len(content)+511)/512
		if typ == filesystem.TypeDir {
			n.children, n.attr.Nlink = make(map[string]filesystem.Inode), 2
		}
		f.files[ino] = n
	} else {
		n.attr.Nlink++
	}
	d := f.files[dir]
	d.names = append(d.names, name)
	d.children[name] = ino
	return n
}

func (f *fakeFS) file(ino filesystem.Inode) (*fakeFile, error) {
	if n := f.files[ino]; n != nil {
		return n, nil
	}
	return nil, filesystem.ErrNotExist
}

func (f *fakeFS) Info() filesystem.Info {
	return filesystem.Info{Format: "fake", State: filesystem.State{Clean: true}, BlockSize: 4096, Blocks: 100, BlocksFree: 40, Inodes: 10, InodesFree: 3, MaxNameLen: 255}
}
func (f *fakeFS) Root() filesystem.Inode { return 2 }
func (f *fakeFS) Lookup(dir filesystem.Inode, name []byte) (filesystem.Inode, error) {
	d, err := f.file(dir)
	if err != nil {
		return 0, err
	}
	if ino, ok := d.children[string(name)]; ok {
		return ino, nil
	}
	return 0, filesystem.ErrNotExist
}
func (f *fakeFS) ReadDir(dir filesystem.Inode, cookie uint64, yield func(filesystem.Dirent) bool) error {
	d, err := f.file(dir)
	if err != nil {
		return err
	}
	for i := int(cookie); i < len(d.names); i++ {
		ino := d.children[d.names[i]]
		if !yield(filesystem.Dirent{Name: []byte(d.names[i]), Inode: ino, Type: f.files[ino].attr.Type, Next: uint64(i + 1)}) {
			return nil
		}
	}
	return nil
}
func (f *fakeFS) Getattr(ino filesystem.Inode) (filesystem.Attr, error) {
	n, err := f.file(ino)
	if err != nil {
		return filesystem.Attr{}, err
	}
	return n.attr, nil
}
func (f *fakeFS) Parent(dir filesystem.Inode) (filesystem.Inode, error) {
	n, err := f.file(dir)
	if err != nil {
		return 0, err
	}
	return n.parent, nil
}
func (f *fakeFS) Readlink(ino filesystem.Inode) ([]byte, error) {
	return []byte(f.files[ino].target), nil
}
func (f *fakeFS) Xattrs(ino filesystem.Inode) ([]string, error) {
	var out []string
	for k := range f.files[ino].xattrs {
		out = append(out, k)
	}
	sort.Strings(out)
	return out, nil
}
func (f *fakeFS) Xattr(ino filesystem.Inode, name string) ([]byte, error) {
	if v, ok := f.files[ino].xattrs[name]; ok {
		return []byte(v), nil
	}
	return nil, filesystem.ErrNoXattr
}
func (f *fakeFS) ReadAt(ino filesystem.Inode, p []byte, off int64) (int, error) {
	n, err := f.file(ino)
	if err != nil {
		return 0, err
	}
	switch n.bad {
	case "corrupt":
		return 0, fmt.Errorf("extent tree: %w", filesystem.ErrCorrupt)
	case "short":
		return copy(p[:len(p)/2], n.content), nil
	case "panic":
		var none []byte
		_ = none[off]
	case "hang":
		<-f.hang
	}
	if off >= int64(len(n.content)) {
		return 0, io.EOF
	}
	c := copy(p, n.content[off:])
	if c < len(p) {
		return c, io.EOF
	}
	return c, nil
}
func (f *fakeFS) NextData(ino filesystem.Inode, off int64) (int64, error) {
	return max(off, f.files[ino].dataFrom), nil
}
func (f *fakeFS) NextHole(ino filesystem.Inode, off int64) (int64, error) {
	if off < f.files[ino].dataFrom {
		return off, nil
	}
	return f.files[ino].attr.Size, nil
}

var _ filesystem.FS = (*fakeFS)(nil)

// fakeVolume is a volume of the tree.
type fakeVolume struct {
	fs  filesystem.FS
	err error

	mu      sync.Mutex
	reports []string
}

func (v *fakeVolume) Open(context.Context) (filesystem.FS, error) { return v.fs, v.err }
func (v *fakeVolume) Report(what string, err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.reports = append(v.reports, what+": "+err.Error())
}
func (v *fakeVolume) reported() string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return strings.Join(v.reports, "\n")
}

// fakeDir is a directory of the tree whose entries can be replaced.
type fakeDir struct {
	mu      sync.Mutex
	entries []fusemount.Entry
	err     error
}

func (d *fakeDir) set(e ...fusemount.Entry) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.entries = e
}
func (d *fakeDir) Lookup(_ context.Context, name string) (fusemount.Entry, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, e := range d.entries {
		if e.Name == name {
			return e, d.err
		}
	}
	if d.err != nil {
		return fusemount.Entry{}, d.err
	}
	return fusemount.Entry{}, filesystem.ErrNotExist
}
func (d *fakeDir) List(context.Context) ([]fusemount.Entry, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.entries, d.err
}

type fakeText string

func (t fakeText) Text(context.Context) ([]byte, error) { return []byte(t), nil }

// fakeImage is a raw disk: a hole, then content.
type fakeImage struct {
	content  []byte
	dataFrom int64
}

func (i fakeImage) Size() int64 { return int64(len(i.content)) }
func (i fakeImage) ReadAt(_ context.Context, p []byte, off int64) error {
	copy(p, i.content[off:])
	return nil
}
func (i fakeImage) NextData(_ context.Context, off int64) (int64, error) {
	return max(off, i.dataFrom), nil
}
func (i fakeImage) NextHole(_ context.Context, off int64) (int64, error) {
	if off < i.dataFrom {
		return off, nil
	}
	return i.Size(), nil
}
func (i fakeImage) AllocatedBytes(context.Context) (int64, bool) { return i.Size() - i.dataFrom, true }

// start mounts a tree for the length of the test.
func start(t *testing.T, root fusemount.Directory, o fusemount.Options) string {
	t.Helper()
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skip("/dev/fuse is missing")
	}
	if os.Geteuid() != 0 {
		t.Skip("mounting here needs root")
	}
	dir := t.TempDir()
	m, err := fusemount.Start(dir, root, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := m.Unmount(ctx); err != nil {
			t.Error(err)
		}
		if _, mounted, _ := fusemount.Find(dir); mounted {
			t.Errorf("%s is still mounted", dir)
		}
	})
	return dir
}

func pattern(n int) []byte { return bytes.Repeat([]byte("keelblock "), n/10+1)[:n] }
