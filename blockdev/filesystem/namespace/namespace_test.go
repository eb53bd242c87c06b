package namespace_test

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/keelblock/keelblock/blockdev/filesystem"
	"github.com/keelblock/keelblock/blockdev/filesystem/ext"
	"github.com/keelblock/keelblock/blockdev/filesystem/fstest"
	"github.com/keelblock/keelblock/blockdev/filesystem/namespace"
)

// image makes an ext4 of files: a name that ends in a slash is a folder, a content that
// begins with "-> " is a symbolic link.
func image(t *testing.T, files map[string]string) string {
	t.Helper()
	tree := t.TempDir()
	for name, content := range files {
		path := filepath.Join(tree, name)
		if strings.HasSuffix(name, "/") {
			if err := os.MkdirAll(path, 0o755); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if target, link := strings.CutPrefix(content, "-> "); link {
			err = os.Symlink(target, path)
		} else {
			err = os.WriteFile(path, []byte(content), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return fstest.Image(t, 8<<20, "mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-d", tree)
}

func open(t *testing.T, image string) namespace.Open {
	t.Helper()
	f, size := fstest.Open(t, image)
	fs, err := ext.Open(f, size)
	if err != nil {
		t.Fatal(err)
	}
	return func() (filesystem.FS, error) { return fs, nil }
}

// listing is each path of a tree with its type, size or target, and the content.
func listing(t *testing.T, fs filesystem.FS) []string {
	t.Helper()
	var out []string
	var walk func(dir filesystem.Inode, path string)
	walk = func(dir filesystem.Inode, path string) {
		err := fs.ReadDir(dir, 0, func(d filesystem.Dirent) bool {
			name := path + "/" + string(d.Name)
			ino, err := fs.Lookup(dir, d.Name)
			if err != nil || ino != d.Inode {
				t.Errorf("%s: inode %d is listed, %d is found (%v)", name, d.Inode, ino, err)
				return true
			}
			a, err := fs.Getattr(ino)
			if err != nil || a.Inode != ino {
				t.Errorf("%s: %+v, %v", name, a, err)
				return true
			}
			switch a.Type {
			case filesystem.TypeDir:
				up, err := fs.Parent(ino)
				if err != nil || up != dir {
					t.Errorf("%s: its .. is %d, not %d (%v)", name, up, dir, err)
				}
				out = append(out, name+" d")
				walk(ino, name)
			case filesystem.TypeSymlink:
				target, err := fs.Readlink(ino)
				out = append(out, fmt.Sprintf("%s l %s", name, target))
				if err != nil {
					t.Errorf("%s: %v", name, err)
				}
			default:
				p := make([]byte, a.Size)
				if n, err := fs.ReadAt(ino, p, 0); int64(n) != a.Size || err != nil && !errors.Is(err, io.EOF) {
					t.Errorf("%s: %d bytes, %v", name, n, err)
				}
				out = append(out, fmt.Sprintf("%s f %s", name, p))
			}
			return true
		})
		if err != nil {
			t.Errorf("list %s/: %v", path, err)
		}
	}
	walk(fs.Root(), "")
	slices.Sort(out)
	return out
}

// TestTheKernelMountsTheSame mounts the same volumes in the same places by the kernel, in a
// mount namespace of its own. Links are resolved by hand there, as chroot would do it.
func TestTheKernelMountsTheSame(t *testing.T) {
	fstest.RequireRoot(t)
	root := image(t, map[string]string{"etc/f": "root", "home/": "", "srv/data/": "", "var/run": "-> /run", "run/lock/": "", "mnt/": "", "opt/bound/": "",
		"home/hidden": "not to be seen", "link": "-> ../../../home", "a/b/c/": ""})
	home := image(t, map[string]string{"ann/file": "ann's", "ann/deep/": "", "bob/": ""})
	deep := image(t, map[string]string{"x/y/z": "deep", "x/w": "-> z"})
	run := image(t, map[string]string{"on-run": "run"})
	ns := namespace.New(open(t, root), 0)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(ns.Mount("/home", open(t, home), nil))
	must(ns.Mount("/link/ann/deep", open(t, deep), nil)) // through a link that ends at the root
	must(ns.Mount("/var/run/lock", open(t, run), nil))   // through an absolute link
	must(ns.Bind("/opt/bound", "/home/ann", false))      // without what is mounted below
	must(ns.Bind("/mnt", "/home", true))                 // with it
	must(ns.Bind("/srv/data", "/home/ann/deep/x", false))
	must(ns.Mount("/a/b", open(t, run), nil))
	must(ns.Mount("/a/b", open(t, deep), nil)) // over the one before
	script := `set -e
mount -o loop,ro "$1" "$5"
mount -o loop,ro "$2" "$5/home"
mount -o loop,ro "$3" "$5/home/ann/deep"
mount -o loop,ro "$4" "$5/run/lock"
mount --bind "$5/home/ann" "$5/opt/bound"
mount --rbind "$5/home" "$5/mnt"
mount --bind "$5/home/ann/deep/x" "$5/srv/data"
mount -o loop,ro "$4" "$5/a/b"
mount -o loop,ro "$3" "$5/a/b"
cd "$5"
find . -mindepth 1 -type d -printf '/%P d\n'
find . -mindepth 1 -type l -printf '/%P l %l\n'
find . -mindepth 1 -type f | while read -r f; do printf '%s f %s\n' "${f#.}" "$(cat "$f")"; done
`
	out := fstest.Run(t, "unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", root, home, deep, run, t.TempDir())
	want := strings.Split(strings.TrimSpace(out), "\n")
	slices.Sort(want)
	got := listing(t, ns)
	if d := difference(want, got); d != "" {
		t.Error(d)
	}
}

func difference(want, got []string) string {
	var out []string
	for _, w := range want {
		if !slices.Contains(got, w) {
			out = append(out, "missing "+w)
		}
	}
	for _, g := range got {
		if !slices.Contains(want, g) {
			out = append(out, "extra "+g)
		}
	}
	return strings.Join(out, "\n")
}

func TestPathsStayInside(t *testing.T) {
	root := image(t, map[string]string{"etc/f": "", "up": "-> ../../../..", "abs": "-> /etc", "loop": "-> loop", "dangling": "-> /nowhere", "file": "x"})
	ns := namespace.New(open(t, root), 0)
	top := ns.Root()
	etc, err := ns.Lookup(top, []byte("etc"))
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]filesystem.Inode{"/": top, "": top, "../..": top, "/up": top, "/up/etc/../etc": etc, "abs": etc, "/abs/.": etc} {
		if got, err := ns.Walk(path); err != nil || got != want {
			t.Errorf("%q: %d, %v; want %d", path, got, err, want)
		}
	}
	for path, want := range map[string]error{"/loop": namespace.ErrLinks, "/dangling": filesystem.ErrNotExist, "/file/x": filesystem.ErrNotDir, "/no/x": filesystem.ErrNotExist} {
		if _, err := ns.Walk(path); !errors.Is(err, want) {
			t.Errorf("%q: %v; want %v", path, err, want)
		}
	}
	for path, want := range map[string]error{"/file": filesystem.ErrNotDir, "/nowhere": filesystem.ErrNotExist} {
		if err := ns.Mount(path, open(t, root), nil); !errors.Is(err, want) {
			t.Errorf("mount at %q: %v; want %v", path, err, want)
		}
	}
}

// What lies below the mount point of a volume that cannot be read is not what the guest saw.
func TestAVolumeThatCannotBeReadCoversItsMountPoint(t *testing.T) {
	ns := namespace.New(open(t, image(t, map[string]string{"home/old": "old", "home/sub/": ""})), 0)
	broken := errors.New("it is locked")
	if err := ns.Mount("/home", func() (filesystem.FS, error) { return nil, broken }, nil); err != nil {
		t.Fatal(err)
	}
	home, err := ns.Lookup(ns.Root(), []byte("home"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ns.Getattr(home); !errors.Is(err, broken) {
		t.Errorf("attributes: %v", err)
	}
	if _, err := ns.Lookup(home, []byte("old")); !errors.Is(err, broken) {
		t.Errorf("lookup: %v", err)
	}
	if err := ns.ReadDir(home, 0, func(filesystem.Dirent) bool { t.Error("an entry"); return false }); !errors.Is(err, broken) {
		t.Errorf("list: %v", err)
	}
	if err := ns.Mount("/home/sub", open(t, image(t, nil)), nil); !errors.Is(err, broken) {
		t.Errorf("mount below: %v", err)
	}
}

func TestMountsAreBounded(t *testing.T) {
	img := open(t, image(t, map[string]string{"a/": "", "b/": ""}))
	ns := namespace.New(img, 0)
	var err error
	n := 0
	for ; err == nil && n < 1000; n++ {
		err = ns.Mount("/a", img, nil)
	}
	if !errors.Is(err, namespace.ErrTooMany) || n > 64 {
		t.Errorf("after %d mounts: %v", n, err)
	}
	ns = namespace.New(img, 0)
	for n = 0; n < 1000; n++ { // each doubles what is mounted
		if err = ns.Bind("/b", "/", true); err != nil {
			break
		}
	}
	if !errors.Is(err, namespace.ErrTooMany) {
		t.Errorf("after %d binds of all: %v", n, err)
	}
}

// bigInodes is a file system whose inode numbers need all 64 bits, as those of XFS may.
type bigInodes struct{ filesystem.FS }

const highBit = filesystem.Inode(1) << 63

func (b bigInodes) Root() filesystem.Inode { return b.FS.Root() | highBit }
func (b bigInodes) Lookup(dir filesystem.Inode, name []byte) (filesystem.Inode, error) {
	ino, err := b.FS.Lookup(dir&^highBit, name)
	return ino | highBit, err
}
func (b bigInodes) ReadDir(dir filesystem.Inode, cookie uint64, yield func(filesystem.Dirent) bool) error {
	return b.FS.ReadDir(dir&^highBit, cookie, func(d filesystem.Dirent) bool { d.Inode |= highBit; return yield(d) })
}
func (b bigInodes) Getattr(ino filesystem.Inode) (filesystem.Attr, error) {
	return b.FS.Getattr(ino &^ highBit)
}
func (b bigInodes) Parent(ino filesystem.Inode) (filesystem.Inode, error) {
	ino, err := b.FS.Parent(ino &^ highBit)
	return ino | highBit, err
}
func (b bigInodes) ReadAt(ino filesystem.Inode, p []byte, off int64) (int, error) {
	return b.FS.ReadAt(ino&^highBit, p, off)
}

func TestLargeInodeNumbers(t *testing.T) {
	fs, err := open(t, image(t, map[string]string{"a/b/c": "text", "d": "more"}))()
	if err != nil {
		t.Fatal(err)
	}
	plain := namespace.New(func() (filesystem.FS, error) { return fs, nil }, 0)
	big := namespace.New(func() (filesystem.FS, error) { return bigInodes{fs}, nil }, 0)
	if d := difference(listing(t, plain), listing(t, big)); d != "" {
		t.Error(d)
	}
	if _, err := big.Getattr(1 << 38); err != nil {
		t.Errorf("the first large number: %v", err)
	}
	if _, err := big.Getattr(1<<38 + 1000); !errors.Is(err, filesystem.ErrNotExist) {
		t.Errorf("a number that was never given: %v", err)
	}
}
