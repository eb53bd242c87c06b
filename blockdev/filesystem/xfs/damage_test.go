package xfs_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/keelblock/keelblock/blockdev/filesystem"
	"github.com/keelblock/keelblock/blockdev/filesystem/fstest"
)

// variants is how many damaged images each test tries, of all images together in a
// short run and of each in a full one.
const variants = 120

// usedBlocks are the offsets of the 1 KiB blocks that are not all zero and not of the
// log: damage elsewhere is mostly without effect.
func usedBlocks(p []byte) []int {
	var out []int
	be := binary.BigEndian
	blockSize := int(be.Uint32(p[4:]))
	logStart := int(be.Uint64(p[48:])) * blockSize // the only allocation group
	logEnd := logStart + int(be.Uint32(p[96:]))*blockSize
	zero := make([]byte, 1024)
	for off := 0; off < len(p); off += 1024 {
		if (off < logStart || off >= logEnd) && !bytes.Equal(p[off:off+1024], zero) {
			out = append(out, off)
		}
	}
	return out
}

// damage changes a few bytes and returns what undoes it.
func damage(rnd *rand.Rand, p []byte, used []int) (undo func()) {
	type old struct {
		at int
		b  byte
	}
	var olds []old
	for range 1 + rnd.IntN(8) {
		at := used[rnd.IntN(len(used))] + rnd.IntN(1024)
		if rnd.IntN(3) == 0 { // the front of a block is where headers are
			at = at/1024*1024 + rnd.IntN(64)
		}
		olds = append(olds, old{at, p[at]})
		switch rnd.IntN(3) {
		case 0:
			p[at] ^= 1 << rnd.IntN(8)
		case 1:
			p[at] = byte(rnd.Uint32())
		case 2:
			p[at] = 0xFF
		}
	}
	return func() {
		for i := len(olds) - 1; i >= 0; i-- {
			p[olds[i].at] = olds[i].b
		}
	}
}

// TestDamagedImagesAreSurvived: no panic, no call over its time, whatever the bytes.
func TestDamagedImagesAreSurvived(t *testing.T) {
	for _, s := range smallImages {
		p := smallImage(t, s.name)
		used := usedBlocks(p)
		rnd := rand.New(rand.NewPCG(1, 2))
		opened, variants := 0, variants/len(smallImages)
		if full() {
			variants *= len(smallImages)
		}
		for range variants {
			undo := damage(rnd, p, used)
			if fs, err := open(p); err == nil {
				opened++
				walk(t, fs, 20000)
			}
			undo()
		}
		checkHeap(t)
		if opened < variants/4 {
			t.Errorf("%s: only %d of %d variants could be opened", s.name, opened, variants)
		}
	}
}

// TestDamagedMetadataIsAnErrorNotOtherMetadata: with version 5, whatever bytes
// change, what can still be reached is what was there before, or an error. Only the
// contents of files and long link targets, which have no checksum, may differ.
func TestDamagedMetadataIsAnErrorNotOtherMetadata(t *testing.T) {
	p := smallImage(t, "v5-1k")
	fs, err := open(p)
	if err != nil {
		t.Fatal(err)
	}
	good, err := fstest.FromFS(fs)
	if err != nil {
		t.Fatal(err)
	}
	used := usedBlocks(p)
	rnd := rand.New(rand.NewPCG(3, 4))
	errorsSeen := 0
	for i := range variants {
		undo := damage(rnd, p, used)
		fs, err := open(p)
		if err != nil {
			errorsSeen++
		} else {
			c := comparer{t: t, fs: fs, good: good}
			c.dir("", fs.Root())
			errorsSeen += c.errors
			if t.Failed() {
				t.Fatalf("variant %d", i)
			}
		}
		undo()
	}
	if errorsSeen < variants/4 {
		t.Errorf("only %d errors in %d variants: the damage is not where it should be", errorsSeen, variants)
	}
}

// comparer requires that a damaged image shows the good manifest or errors.
type comparer struct {
	t      *testing.T
	fs     filesystem.FS
	good   fstest.Manifest
	errors int
}

// expected counts an error and requires that it is the right one.
func (c *comparer) expected(path string, err error) {
	c.t.Helper()
	c.errors++
	if !errors.Is(err, filesystem.ErrCorrupt) {
		c.t.Errorf("%q: %v", path, err)
	}
}

func (c *comparer) dir(path string, ino filesystem.Inode) {
	want := c.good[path]
	a, err := c.fs.Getattr(ino)
	if err != nil {
		c.expected(path, err)
		return
	}
	if a != want.Attr {
		c.t.Errorf("%q: %+v, want %+v", path, a, want.Attr)
	}
	names, err := c.fs.Xattrs(ino)
	if err != nil {
		c.expected(path, err)
	} else if len(names) != len(want.Xattrs) {
		c.t.Errorf("%q: attributes %q", path, names)
	}
	for _, n := range names {
		if v, err := c.fs.Xattr(ino, n); err != nil {
			c.expected(path, err)
		} else if string(v) != want.Xattrs[n] {
			c.t.Errorf("%q: attribute %q is %q", path, n, v)
		}
	}
	switch a.Type {
	case filesystem.TypeSymlink:
		target, err := c.fs.Readlink(ino)
		if err != nil {
			c.expected(path, err)
		} else if len(target) < 60 && string(target) != want.Target { // in the inode
			c.t.Errorf("%q: target %q", path, target)
		}
	case filesystem.TypeDir:
		c.entries(path, ino)
	}
}

func (c *comparer) entries(path string, ino filesystem.Inode) {
	prefix := path
	if path != "" {
		prefix += "/"
	}
	children := make(map[string]filesystem.Inode)
	err := c.fs.ReadDir(ino, 0, func(d filesystem.Dirent) bool {
		children[prefix+string(d.Name)] = d.Inode
		return true
	})
	if err != nil {
		c.expected(path, err)
	}
	for p := range c.good {
		inside := len(p) > len(prefix) && p[:len(prefix)] == prefix && !bytes.Contains([]byte(p[len(prefix):]), []byte("/"))
		if _, ok := children[p]; inside && !ok && err == nil {
			c.t.Errorf("%q is missing without an error", p)
		}
	}
	for p, child := range children {
		if want, ok := c.good[p]; !ok || want.Attr.Inode != child {
			c.t.Errorf("%q: inode %d should not be there", p, child)
			continue
		}
		if found, err := c.fs.Lookup(ino, []byte(p[len(prefix):])); err != nil {
			c.expected(p, err)
		} else if found != child {
			c.t.Errorf("%q: Lookup gives %d, ReadDir %d", p, found, child)
		}
		c.dir(p, child)
	}
}

// TestTruncatedImageIsRefused: a volume that ends early is not read at all.
func TestTruncatedImageIsRefused(t *testing.T) {
	p := smallImage(t, "v5-1k")
	for _, n := range []int{0, 1000, 1024, 2047, 2048, 100000, len(p) - 1024} {
		if _, err := open(p[:n]); !errors.Is(err, filesystem.ErrCorrupt) && !errors.Is(err, filesystem.ErrUnknown) {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
}
