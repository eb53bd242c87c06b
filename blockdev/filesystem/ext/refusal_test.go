package ext_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keelblock/keelblock/blockdev/filesystem"
	"github.com/keelblock/keelblock/blockdev/filesystem/ext"
	"github.com/keelblock/keelblock/blockdev/filesystem/fstest"
)

const (
	superblock = 1024
	incompatAt = superblock + 0x60
)

func TestUnknownFeaturesAreRefusedByName(t *testing.T) {
	for _, c := range []struct {
		bit  uint32
		want string
	}{
		{0x1, "compression"}, {0x8, "journal_dev"}, {0x1000, "dirdata"}, {0x80000000, "incompat bit 31"}, {0x800, "incompat bit 11"},
	} {
		p := smallImage(t, "ext4-nocsum")
		le := binary.LittleEndian
		le.PutUint32(p[incompatAt:], le.Uint32(p[incompatAt:])|c.bit)
		_, err := open(p)
		if !errors.Is(err, filesystem.ErrUnsupported) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("bit %#x: %v", c.bit, err)
		}
	}
}

func TestWhatIsNoExtIsUnknown(t *testing.T) {
	for _, p := range [][]byte{nil, make([]byte, 100), make([]byte, 1<<20)} {
		if _, err := open(p); !errors.Is(err, filesystem.ErrUnknown) {
			t.Errorf("%d bytes: %v", len(p), err)
		}
	}
}

// find gives the offset of the first block of 1 KiB that satisfies ok.
func find(t *testing.T, p []byte, ok func(block []byte) bool) int {
	t.Helper()
	for off := 2048; off+1024 <= len(p); off += 1024 {
		if ok(p[off : off+1024]) {
			return off
		}
	}
	t.Fatal("the image has no such block")
	return 0
}

// TestEveryChecksumIsVerified changes one unimportant byte of each kind of structure
// and requires that using it is ErrCorrupt, while the rest can be read.
func TestEveryChecksumIsVerified(t *testing.T) {
	le := binary.LittleEndian
	file := func(path ...string) func(fs *ext.FS) error {
		return func(fs *ext.FS) error {
			_, err := fstest.File(fs, path...)
			return err
		}
	}
	inode := func(t *testing.T, fs *ext.FS, path ...string) filesystem.Inode {
		ino := fs.Root()
		for _, name := range path {
			var err error
			if ino, err = fs.Lookup(ino, []byte(name)); err != nil {
				t.Fatal(err)
			}
		}
		return ino
	}
	attribute := func(name, attribute string) func(fs *ext.FS) error {
		return func(fs *ext.FS) error {
			ino, err := fs.Lookup(inode(t, fs, "xattrs"), []byte(name))
			if err == nil {
				_, err = fs.Xattr(ino, attribute)
			}
			return err
		}
	}
	list := func(fs *ext.FS) error {
		return fs.ReadDir(inode(t, fs, "hashed"), 0, func(filesystem.Dirent) bool { return true })
	}
	text := []byte("some text some text ")
	for name, c := range map[string]struct {
		at  func(p []byte) int // the byte that is changed
		use func(fs *ext.FS) error
	}{
		"extent node": {
			func(p []byte) int {
				return find(t, p, func(b []byte) bool { return le.Uint16(b) == 0xF30A && le.Uint16(b[2:]) > 50 }) + 8 // eh_generation
			}, file("sparse"),
		},
		"attribute block": {
			func(p []byte) int {
				return find(t, p, func(b []byte) bool { return le.Uint32(b) == 0xEA020000 && bytes.Contains(b, []byte("block")) }) + 4 // h_refcount
			}, attribute("block", "user.block"),
		},
		"attribute inode": {
			func(p []byte) int { // the value of 3 000 bytes ends in its third block, unlike any file
				return find(t, p, func(b []byte) bool {
					return bytes.HasPrefix(b, text[2048%10:][:10]) && bytes.Count(b, []byte{0}) == 1024-(3000-2048)
				}) + 5
			}, attribute("inode", "user.inode"),
		},
		"hash tree root": {
			func(p []byte) int {
				return find(t, p, func(b []byte) bool {
					return le.Uint16(b[4:]) == 12 && le.Uint16(b[16:]) == 1012 && b[12+6] == 2 && b[29] == 8
				}) + 31 // unused_flags
			}, list,
		},
		"directory leaf": {
			func(p []byte) int {
				return find(t, p, func(b []byte) bool { return b[1019] == 0xDE && bytes.Contains(b, []byte("n\xe4m\xe9n")) }) + 7 // the type of an entry
			}, list,
		},
		"inode": {
			func(p []byte) int { // of symlink59, which holds its target
				at := 0x28
				for ; !bytes.HasPrefix(p[at:], text) || le.Uint16(p[at-0x28:]) != 0xA1FF || p[at-0x28+4] != 59; at += 4 {
				}
				return at - 0x28 + 0x64 // i_generation
			}, func(fs *ext.FS) error {
				for _, n := range []string{"symlink5", "symlink59"} {
					ino, err := fs.Lookup(fs.Root(), []byte(n))
					if err != nil {
						return err
					}
					if _, err := fs.Getattr(ino); err != nil {
						return err
					}
				}
				return nil
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := smallImage(t, "ext4-csum")
			fs, err := open(p)
			if err != nil {
				t.Fatal(err)
			}
			if err := c.use(fs); err != nil {
				t.Fatalf("before the damage: %v", err)
			}
			p[c.at(p)] ^= 0x10
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
	for name, at := range map[string]int{"superblock": superblock + 0x88, "group descriptor": 2048 + 12} {
		for _, image := range []string{"ext4-csum", "ext3-uninit"} {
			if image == "ext3-uninit" && name == "superblock" {
				continue // only metadata_csum has one
			}
			p := smallImage(t, image)
			p[at] ^= 1
			if _, err := open(p); !errors.Is(err, filesystem.ErrCorrupt) {
				t.Errorf("%s of %s: %v", name, image, err)
			}
		}
	}
}

// debugfs runs one command on a copy of an image of testdata.
func debugfs(t *testing.T, image, command string) *ext.FS {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(path, smallImage(t, image), 0o600); err != nil {
		t.Fatal(err)
	}
	fstest.Run(t, "debugfs", "-w", "-R", command, path)
	f, size := fstest.Open(t, path)
	fs, err := ext.Open(f, size)
	if err != nil {
		t.Fatal(err)
	}
	return fs
}

func TestEncryptedFilesAreRefusedOneByOne(t *testing.T) {
	fs := debugfs(t, "ext4-csum", "set_inode_field /sparse flags 0x80800")
	ino, err := fs.Lookup(fs.Root(), []byte("sparse"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fs.Getattr(ino); err != nil {
		t.Errorf("Getattr: %v", err)
	}
	if _, err := fs.ReadAt(ino, make([]byte, 10), 0); !errors.Is(err, filesystem.ErrUnsupported) {
		t.Errorf("ReadAt: %v", err)
	}
	if _, err := fstest.File(fs, "deep", "a", "b", "c", "file"); err != nil {
		t.Errorf("another file: %v", err)
	}

	fs = debugfs(t, "ext4-csum", "set_inode_field /hashed flags 0x81800")
	if ino, err = fs.Lookup(fs.Root(), []byte("hashed")); err != nil {
		t.Fatal(err)
	}
	if err := fs.ReadDir(ino, 0, func(filesystem.Dirent) bool { return true }); !errors.Is(err, filesystem.ErrUnsupported) {
		t.Errorf("ReadDir: %v", err)
	}
	if _, err := fs.Lookup(ino, []byte("one")); !errors.Is(err, filesystem.ErrUnsupported) {
		t.Errorf("Lookup: %v", err)
	}
}

func TestCaseInsensitiveDirectoryFindsExactNames(t *testing.T) {
	fs := debugfs(t, "ext4-csum", "set_inode_field /hashed flags 0x40081000")
	if _, err := fstest.File(fs, "hashed", "one"); err != nil {
		t.Errorf("exact name: %v", err)
	}
	if _, err := fstest.File(fs, "hashed", "ONE"); !errors.Is(err, filesystem.ErrNotExist) {
		t.Errorf("other case: %v", err)
	}
}

func TestWrongCallsAreErrors(t *testing.T) {
	fs, err := open(smallImage(t, "ext4-csum"))
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
	_, err = fs.Lookup(root, []byte("none"))
	check("missing name", err, filesystem.ErrNotExist)
	_, err = fs.Lookup(root, bytes.Repeat([]byte("x"), 256))
	check("long name", err, filesystem.ErrNotExist)
	_, err = fs.Xattr(file, "user.none")
	check("missing attribute", err, filesystem.ErrNoXattr)
	for _, n := range []filesystem.Inode{0, 1, 3, 8, 257, 1 << 40} {
		_, err = fs.Getattr(n)
		check("unused inode", err, filesystem.ErrNotExist)
	}
	_, err = fs.ReadAt(file, make([]byte, 1), -1)
	check("negative offset", err, filesystem.ErrInvalid)
	_, err = fs.NextData(file, 1<<40)
	check("seek behind the end", err, filesystem.ErrNoData)
	null, err := fs.Lookup(root, []byte("null"))
	check("lookup of a device", err, nil)
	_, err = fs.ReadAt(null, make([]byte, 1), 0)
	check("read a device", err, filesystem.ErrInvalid)
}
