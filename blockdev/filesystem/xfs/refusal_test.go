package xfs_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"strings"
	"testing"

	"github.com/keelblock/keelblock/blockdev/filesystem"
	"github.com/keelblock/keelblock/blockdev/filesystem/fstest"
	"github.com/keelblock/keelblock/blockdev/filesystem/xfs"
)

const incompatAt = 216

func TestUnknownFeaturesAreRefusedByName(t *testing.T) {
	for _, c := range []struct {
		bit  uint32
		want string
	}{
		{0x10, "needsrepair"}, {0x100, "metadir"}, {0x200, "zoned"}, {0x80000000, "incompat bit 31"}, {0x800, "incompat bit 11"},
	} {
		p := smallImage(t, "v5")
		be := binary.BigEndian
		be.PutUint32(p[incompatAt:], be.Uint32(p[incompatAt:])|c.bit)
		sealSuper(p)
		_, err := open(p)
		if !errors.Is(err, filesystem.ErrUnsupported) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("bit %#x: %v", c.bit, err)
		}
	}
	p := smallImage(t, "v4")
	p[101] = p[101]&^0xF | 3
	if _, err := open(p); !errors.Is(err, filesystem.ErrUnsupported) || !strings.Contains(err.Error(), "version 3") {
		t.Errorf("version 3: %v", err)
	}
}

func TestWhatIsNoXFSIsUnknown(t *testing.T) {
	for _, p := range [][]byte{nil, make([]byte, 100), make([]byte, 1<<20)} {
		if _, err := open(p); !errors.Is(err, filesystem.ErrUnknown) {
			t.Errorf("%d bytes: %v", len(p), err)
		}
	}
}

// find gives the offsets of the blocks of 512 bytes behind the superblock that have
// magic at an offset in them.
func find(t *testing.T, p []byte, at int, magic string) []int {
	t.Helper()
	var out []int
	for off := 512; off+512 <= len(p); off += 512 {
		if string(p[off+at:off+at+len(magic)]) == magic {
			out = append(out, off)
		}
	}
	if len(out) == 0 {
		t.Fatalf("the image has no block with %q", magic)
	}
	return out
}

// TestEveryChecksumIsVerified changes one unimportant byte of each kind of structure
// and requires that using it is ErrCorrupt, while the rest can be read.
func TestEveryChecksumIsVerified(t *testing.T) {
	list := func(fs *xfs.FS, dir string) error {
		ino, err := fs.Lookup(fs.Root(), []byte(dir))
		if err != nil {
			return err
		}
		return fs.ReadDir(ino, 0, func(filesystem.Dirent) bool { return true })
	}
	name := func(dir string) func(fs *xfs.FS) error {
		return func(fs *xfs.FS) error {
			ino, err := fs.Lookup(fs.Root(), []byte(dir))
			if err != nil {
				return err
			}
			_, err = fs.Lookup(ino, []byte(entryName(7)))
			return err
		}
	}
	attr := func(file, name string) func(fs *xfs.FS) error {
		return func(fs *xfs.FS) error {
			dir, err := fs.Lookup(fs.Root(), []byte("xattrs"))
			if err != nil {
				return err
			}
			ino, err := fs.Lookup(dir, []byte(file))
			if err != nil {
				return err
			}
			_, err = fs.Xattr(ino, name)
			return err
		}
	}
	for _, c := range []struct {
		name, magic string
		at, change  int // of the magic; the byte changed, in the block
		use         func(fs *xfs.FS) error
	}{
		{"directory of one block", "XDB3", 0, 500, func(fs *xfs.FS) error { return list(fs, "block") }},
		{"directory data", "XDD3", 0, 500, func(fs *xfs.FS) error { return errors.Join(list(fs, "leaf"), list(fs, "node")) }},
		{"one block of hashes", "\x3d\xf1", 8, 500, name("leaf")},
		{"node of hashes", "\x3e\xbe", 8, 400, func(fs *xfs.FS) error { return errors.Join(name("node")(fs), attr("tree", "user.001")(fs)) }},
		{"map of extents", "BMA3", 0, 400, func(fs *xfs.FS) error { _, err := fstest.File(fs, "sparse"); return err }},
		{"link", "XSLM", 0, 200, func(fs *xfs.FS) error {
			var all error
			for _, n := range []string{"symlink400", "symlink1000"} {
				ino, err := fs.Lookup(fs.Root(), []byte(n))
				if err == nil {
					_, err = fs.Readlink(ino)
				}
				all = errors.Join(all, err)
			}
			return all
		}},
		{"value of an attribute", "XARM", 0, 200, attr("remote", "user.remote")},
		{"attributes", "\x3b\xee", 8, 400, func(fs *xfs.FS) error {
			return errors.Join(attr("block", "user.block")(fs), attr("remote", "user.remote")(fs), attr("tree", "user.001")(fs))
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := smallImage(t, "v5-1k")
			fs, err := open(p)
			if err != nil {
				t.Fatal(err)
			}
			if err := c.use(fs); err != nil {
				t.Fatalf("before the damage: %v", err)
			}
			for _, off := range find(t, p, c.at, c.magic) {
				p[off+c.change] ^= 0x10
			}
			if fs, err = open(p); err != nil {
				t.Fatal(err)
			}
			if err := c.use(fs); !errors.Is(err, filesystem.ErrCorrupt) {
				t.Errorf("after the damage: %v", err)
			}
			if _, err := fstest.File(fs, "deep", "a", "b", "c", "file"); err != nil {
				t.Errorf("another file: %v", err)
			}
		})
	}
	p := smallImage(t, "v5")
	p[300] ^= 1
	if _, err := open(p); !errors.Is(err, filesystem.ErrCorrupt) {
		t.Errorf("superblock: %v", err)
	}
}

// TestBlockOfAnotherPlaceIsRefused: a block that is whole, but says that it belongs
// elsewhere, is not believed.
func TestBlockOfAnotherPlaceIsRefused(t *testing.T) {
	p := smallImage(t, "v5-1k")
	at, other := find(t, p, 0, "XDB3")[0], find(t, p, 0, "XDD3")[0]
	copy(p[at:at+4096], p[other:other+4096])
	fs, err := open(p)
	if err != nil {
		t.Fatal(err)
	}
	ino, err := fs.Lookup(fs.Root(), []byte("block"))
	if err != nil {
		t.Fatal(err)
	}
	err = fs.ReadDir(ino, 0, func(filesystem.Dirent) bool { return true })
	if !errors.Is(err, filesystem.ErrCorrupt) || !strings.Contains(err.Error(), "block says that it is sector") {
		t.Errorf("%v", err)
	}
}

func TestWrongCallsAreErrors(t *testing.T) {
	fs, err := open(smallImage(t, "v5"))
	if err != nil {
		t.Fatal(err)
	}
	root := fs.Root()
	file, err := fs.Lookup(root, []byte("sparse"))
	if err != nil {
		t.Fatal(err)
	}
	check := func(what string, err, want error) {
		t.Helper()
		if !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", what, err, want)
		}
	}
	_, err = fs.ReadAt(root, make([]byte, 1), 0)
	check("read a directory", err, filesystem.ErrIsDir)
	_, err = fs.Lookup(file, []byte("x"))
	check("look up in a file", err, filesystem.ErrNotDir)
	_, err = fs.Readlink(file)
	check("readlink of a file", err, filesystem.ErrInvalid)
	for _, dir := range []string{"", "short", "block", "leaf", "node"} {
		ino := root
		if dir != "" {
			ino = lookup(t, fs, dir)
		}
		_, err = fs.Lookup(ino, []byte("none"))
		check("missing name in "+dir, err, filesystem.ErrNotExist)
	}
	_, err = fs.Lookup(root, bytes.Repeat([]byte("x"), 256))
	check("long name", err, filesystem.ErrNotExist)
	_, err = fs.Xattr(file, "user.none")
	check("missing attribute", err, filesystem.ErrNoXattr)
	for _, n := range []filesystem.Inode{0, 1 << 40, 1<<64 - 1} {
		_, err = fs.Getattr(n)
		check("unused inode", err, filesystem.ErrNotExist)
	}
	_, err = fs.ReadAt(file, make([]byte, 1), -1)
	check("negative offset", err, filesystem.ErrInvalid)
	_, err = fs.NextData(file, 1<<40)
	check("seek behind the end", err, filesystem.ErrNoData)
	_, err = fs.ReadAt(lookup(t, fs, "null"), make([]byte, 1), 0)
	check("read a device", err, filesystem.ErrInvalid)
}
