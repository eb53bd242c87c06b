package btrfs_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keelblock/keelblock/blockdev/filesystem"
	"github.com/keelblock/keelblock/blockdev/filesystem/btrfs"
	"github.com/keelblock/keelblock/blockdev/filesystem/fstest"
)

// Places in the superblock.
const (
	flagsAt    = 0x38
	logRootAt  = 0x60
	incompatAt = 0xbc
	sumTypeAt  = 0xc4
)

// patchSuper sets bits of a number in the superblock.
func patchSuper(image *fstest.Sparse, at int64, set uint64) {
	var p [8]byte
	image.ReadAt(p[:], superAt+at)
	binary.LittleEndian.PutUint64(p[:], binary.LittleEndian.Uint64(p[:])|set)
	image.Patch(superAt+at, p[:])
	seal(image, superAt, 4096)
}

func TestUnknownFeaturesAreRefusedByName(t *testing.T) {
	for _, c := range []struct {
		at   int64
		bit  int
		want string
	}{
		{incompatAt, 7, "raid56"}, {incompatAt, 12, "zoned"}, {incompatAt, 13, "extent-tree-v2"}, {incompatAt, 14, "raid-stripe-tree"},
		{incompatAt, 15, "incompat bit 15"}, {incompatAt, 63, "incompat bit 63"},
		{flagsAt, 33, "btrfs-image"}, {flagsAt, 40, "btrfstune"}, {sumTypeAt, 3, "checksum type 8"},
	} {
		image := smallImage(t, "mixed")
		patchSuper(image, c.at, 1<<c.bit)
		_, err := btrfs.Open(image, image.Size())
		if !errors.Is(err, filesystem.ErrUnsupported) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", c.want, err)
		}
	}
	image := smallImage(t, "mixed")
	patchSuper(image, incompatAt, 1<<16) // simple quota
	if _, err := btrfs.Open(image, image.Size()); err != nil {
		t.Errorf("simple quota: %v", err)
	}
}

func TestWhatIsNoBtrfsIsUnknown(t *testing.T) {
	for _, p := range [][]byte{nil, make([]byte, 100), make([]byte, 1<<20)} {
		if _, err := btrfs.Open(bytes.NewReader(p), int64(len(p))); !errors.Is(err, filesystem.ErrUnknown) {
			t.Errorf("%d bytes: %v", len(p), err)
		}
	}
}

// TestSuperblockOfTheNewestGenerationIsUsed: with the first one damaged, the copy is,
// and the state says so.
func TestSuperblockOfTheNewestGenerationIsUsed(t *testing.T) {
	image := smallImage(t, "dup")
	image.Patch(superAt+0x130, []byte("x"))
	fs, err := btrfs.Open(image, image.Size())
	if err != nil {
		t.Fatal(err)
	}
	s := fs.Info().State
	if s.Clean || !strings.Contains(s.Reason, "superblock at 65536: checksum does not match") || !strings.Contains(s.Reason, "copy at 67108864") {
		t.Errorf("%+v", s)
	}
	fstest.Golden(t, fs, filepath.Join("testdata", "dup.manifest.gz"), fstest.FieldAtime)
	image.Patch(64<<20+0x130, []byte("x"))
	if _, err := btrfs.Open(image, image.Size()); !errors.Is(err, filesystem.ErrCorrupt) {
		t.Errorf("both damaged: %v", err)
	}
}

// TestSeveralDevices opens one device of file systems of two.
func TestSeveralDevices(t *testing.T) {
	for _, c := range []struct {
		data, metadata, want string // want "" to be read
	}{
		{"raid1", "raid1", ""},
		{"single", "raid1", ""},
		{"raid0", "raid0", "RAID0 over 2 devices"},
		{"raid10", "raid10", "RAID10 over 2 devices"},
		{"raid5", "raid1", "raid56"},
	} {
		t.Run(c.data+" and "+c.metadata, func(t *testing.T) {
			var disks []string
			for range 2 {
				disks = append(disks, fstest.Image(t, 600<<20))
			}
			fstest.Run(t, append([]string{"mkfs.btrfs", "-q", "-d", c.data, "-m", c.metadata}, disks...)...)
			if c.want == "" {
				fillBoth(t, disks)
			}
			for i, d := range disks {
				f, size := fstest.Open(t, d)
				fs, err := btrfs.Open(f, size)
				if c.want != "" {
					if !errors.Is(err, filesystem.ErrUnsupported) || !strings.Contains(err.Error(), c.want) {
						t.Errorf("disk %d: %v", i, err)
					}
					continue
				}
				if err != nil {
					t.Errorf("disk %d: %v", i, err)
					continue
				}
				if s := fs.Info().State; s.Clean || !strings.Contains(s.Reason, "one of 2 devices") {
					t.Errorf("disk %d: %+v", i, s)
				}
				p, err := fstest.File(fs, "2")
				elsewhere := c.data == "single" && errors.Is(err, filesystem.ErrUnsupported) && strings.Contains(err.Error(), "single on another device")
				if !elsewhere && (err != nil || !bytes.Equal(p, bytes.Repeat([]byte{'c'}, 200000))) {
					t.Errorf("disk %d: %d bytes, %v", i, len(p), err)
				}
			}
		})
	}
}

// fillBoth mounts a file system of two devices and makes some files.
func fillBoth(t *testing.T, disks []string) {
	t.Helper()
	fstest.RequireRoot(t)
	second := strings.TrimSpace(fstest.Run(t, "losetup", "-f", "--show", disks[1]))
	t.Cleanup(func() { fstest.Run(t, "losetup", "-d", second) })
	dir, unmount := fstest.Mount(t, disks[0], fstest.MountOptions{Type: "btrfs", Data: "device=" + second})
	for i := range 4 {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), bytes.Repeat([]byte{byte('a' + i)}, 200000), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	unmount()
}

// logNodes are the places of the nodes of log trees.
func logNodes(t *testing.T, image *fstest.Sparse) []int64 {
	t.Helper()
	var out []int64
	for _, at := range nodes(t, image) {
		if p := header(image, at); int64(binary.LittleEndian.Uint64(p[88:])) == -6 {
			out = append(out, at)
		}
	}
	if out == nil {
		t.Fatal("the image has no log")
	}
	return out
}

// TestLogThatCannotBeReplayedIsLabelled damages the log and requires that the state
// says so, and that what is shown is the last commit.
func TestLogThatCannotBeReplayedIsLabelled(t *testing.T) {
	clean := smallImage(t, "dirty")
	clean.Patch(superAt+logRootAt, make([]byte, 8))
	seal(clean, superAt, 4096)
	fs, err := btrfs.Open(clean, clean.Size())
	if err != nil {
		t.Fatal(err)
	}
	committed, err := fstest.FromFS(fs)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, want string
		damage     func(image *fstest.Sparse)
	}{
		{"unknown item", "type 97", func(image *fstest.Sparse) {
			for _, at := range logNodes(t, image) {
				p := header(image, at)
				for i := range min(binary.LittleEndian.Uint32(p[96:]), 100) {
					if k := int64(101 + 25*i + 8); p[100] == 0 && p[k] == 96 {
						image.Patch(at+k, []byte{97})
					}
				}
				seal(image, at, 4096)
			}
		}},
		{"damaged node", "checksum", func(image *fstest.Sparse) {
			for _, at := range logNodes(t, image) {
				image.Patch(at+500, []byte("damage"))
			}
		}},
		{"log of another time", "generation", func(image *fstest.Sparse) {
			for _, at := range logNodes(t, image) {
				image.Patch(at+80, []byte{1, 0, 0, 0})
				seal(image, at, 4096)
			}
		}},
		{"nowhere", "no chunk", func(image *fstest.Sparse) {
			patchSuper(image, logRootAt, 1<<50)
		}},
	} {
		image := smallImage(t, "dirty")
		c.damage(image)
		fs, err := btrfs.Open(image, image.Size())
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if s := fs.Info().State; s.Clean || !strings.Contains(s.Reason, c.want) || !strings.Contains(s.Reason, "could not be replayed") {
			t.Errorf("%s: %+v", c.name, s)
		}
		got, err := fstest.FromFS(fs)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		for _, d := range fstest.Diff(committed, got, 0) {
			t.Errorf("%s: %s", c.name, d)
		}
	}
}

// TestMapSaysWhereTheBytesLie reads every file from the places that Map gives, and
// finds what ReadAt gives.
func TestMapSaysWhereTheBytesLie(t *testing.T) {
	image := fstest.Image(t, shortSize, "mkfs.btrfs", "-q")
	dir, unmount := fstest.Mount(t, image, fstest.MountOptions{Type: "btrfs"})
	fstest.Populate(t, dir, fstest.Content{Entries: 10, HalfEntries: 10, SparseBytes: 2 << 20, BigBytes: 3 << 20, StripedParts: 100})
	unmount()
	f, size := fstest.Open(t, image)
	fs, err := btrfs.Open(f, size)
	if err != nil {
		t.Fatal(err)
	}
	m, err := fstest.FromFS(fs)
	if err != nil {
		t.Fatal(err)
	}
	placed := 0
	for path, e := range m {
		if e.Attr.Type != filesystem.TypeRegular || e.Attr.Size == 0 {
			continue
		}
		want, got := make([]byte, e.Attr.Size), make([]byte, e.Attr.Size)
		if _, err := fs.ReadAt(e.Attr.Inode, want, 0); err != nil {
			t.Fatalf("%q: %v", path, err)
		}
		inline := false
		err := fs.Map(e.Attr.Inode, func(x filesystem.FileExtent) bool {
			if inline = x.Place < 0; !inline {
				p := got[x.Offset:min(x.Offset+x.Length, e.Attr.Size)]
				if _, err := f.ReadAt(p, x.Place); err != nil {
					t.Fatal(err)
				}
			}
			return !inline
		})
		if err != nil || !inline && !bytes.Equal(got, want) {
			t.Errorf("%q: other bytes lie where Map says: %v", path, err)
		}
		if !inline {
			placed++
		}
	}
	if placed < 20 {
		t.Errorf("only %d files have a place", placed)
	}
}
