package btrfs_test

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/keelblock/keelblock/blockdev/filesystem"
	"github.com/keelblock/keelblock/blockdev/filesystem/btrfs"
	"github.com/keelblock/keelblock/blockdev/filesystem/fstest"
)

// variants is how many damaged images each test tries.
func variants() int {
	if full() {
		return 2000
	}
	return 60
}

const superAt = 64 << 10

// seal sets the CRC32c at the front of what stands at a place.
func seal(image *fstest.Sparse, at int64, size int) {
	p := make([]byte, size)
	image.ReadAt(p, at)
	var sum [4]byte
	binary.LittleEndian.PutUint32(sum[:], crc32.Checksum(p[32:], crc32.MakeTable(crc32.Castagnoli)))
	if string(sum[:]) != string(p[:4]) {
		image.Patch(at, sum[:])
	}
}

// header reads the front of a block.
func header(image *fstest.Sparse, at int64) []byte {
	p := make([]byte, 4096)
	image.ReadAt(p, at)
	return p
}

// nodes finds the places of all nodes, of an image whose nodes are of one sector.
func nodes(t testing.TB, image *fstest.Sparse) []int64 {
	t.Helper()
	fsid := header(image, superAt)[32:48]
	var out []int64
	for at := int64(0); at+4096 <= image.Size(); at += 4096 {
		if p := header(image, at); at != superAt && at != 64<<20 && string(p[32:48]) == string(fsid) && p[100] < 8 {
			out = append(out, at)
		}
	}
	if len(out) < 10 {
		t.Fatalf("only %d nodes", len(out))
	}
	return out
}

// TestDamagedImagesAreSurvived: no panic, no call over its time, whatever the bytes,
// also when every checksum matches.
func TestDamagedImagesAreSurvived(t *testing.T) {
	for _, s := range smallImages {
		image := smallImage(t, s.name)
		fstest.Survive(t, image, open, variants()/4)
		if s.name == "dup" {
			continue // of another checksum
		}
		all := nodes(t, image)
		rnd := rand.New(rand.NewPCG(5, 6))
		opened := 0
		for range variants() {
			c := image.Clone()
			c.Damage(rnd)
			for _, at := range append([]int64{superAt}, all...) {
				seal(c, at, 4096)
			}
			if fs, err := open(c, c.Size()); err == nil {
				opened++
				fstest.Walk(t, fs, 4000)
			}
		}
		if opened < variants()/4 {
			t.Errorf("%s: only %d of %d variants could be opened", s.name, opened, variants())
		}
	}
}

// TestDamageIsAnErrorNotOtherContents: whatever bytes change, what can still be
// reached is what was there before, or an error: metadata and data have checksums.
func TestDamageIsAnErrorNotOtherContents(t *testing.T) {
	image := smallImage(t, "mixed")
	fs, err := btrfs.Open(image, image.Size())
	if err != nil {
		t.Fatal(err)
	}
	good, err := fstest.FromFS(fs)
	if err != nil {
		t.Fatal(err)
	}
	contents := make(map[string]string)
	for path, e := range good {
		if e.Attr.Type == filesystem.TypeRegular {
			p := make([]byte, e.Attr.Size)
			if _, err := fs.ReadAt(e.Attr.Inode, p, 0); err != nil && err != io.EOF {
				t.Fatal(err)
			}
			contents[path] = string(p)
		}
	}
	rnd := rand.New(rand.NewPCG(3, 4))
	failed := 0
	for range variants() {
		c := image.Clone()
		c.Damage(rnd)
		fs, err := btrfs.Open(c, c.Size())
		if err != nil {
			failed++
			continue
		}
		for _, path := range slices.Sorted(maps.Keys(good)) {
			if err := same(fs, path, good[path], contents[path]); errors.Is(err, filesystem.ErrCorrupt) {
				failed++
			} else if err != nil {
				t.Fatalf("%q: %v", path, err)
			}
		}
	}
	if failed < variants()/4 {
		t.Errorf("only %d errors in %d variants: the damage is not where it should be", failed, variants())
	}
}

var errOther = errors.New("other than it was")

// same holds a file of a damaged image against what it was.
func same(fs filesystem.FS, path string, want fstest.Entry, content string) error {
	ino := fs.Root()
	for name := range strings.SplitSeq(path, "/") {
		if path == "" {
			break
		}
		var err error
		if ino, err = fs.Lookup(ino, []byte(name)); err != nil {
			return err
		}
	}
	a, err := fs.Getattr(ino)
	if err != nil {
		return err
	}
	if a != want.Attr {
		return errOther
	}
	switch a.Type {
	case filesystem.TypeSymlink:
		target, err := fs.Readlink(ino)
		if err == nil && string(target) != want.Target {
			err = errOther
		}
		return err
	case filesystem.TypeRegular:
		p := make([]byte, a.Size)
		n, err := fs.ReadAt(ino, p, 0)
		if string(p[:n]) != content[:n] {
			return errOther
		}
		if err != nil && err != io.EOF {
			return err
		}
	}
	names, err := fs.Xattrs(ino)
	if err == nil && len(names) != len(want.Xattrs) {
		err = errOther
	}
	for _, n := range names {
		if v, err := fs.Xattr(ino, n); err != nil || string(v) != want.Xattrs[n] {
			return errors.Join(err, errOther)
		}
	}
	return err
}

// TestOneBadCopyIsMended damages one copy of all that has two: nothing is lost. Then
// it damages both, and nothing is shown.
func TestOneBadCopyIsMended(t *testing.T) {
	image := smallImage(t, "dup")
	copies := make(map[string][]int64) // by contents
	zero := string(make([]byte, 4096))
	for at := int64(1 << 20); at+4096 <= image.Size(); at += 4096 {
		if p := string(header(image, at)); p != zero && at != 64<<20 {
			copies[p] = append(copies[p], at)
		}
	}
	for _, which := range [][]int{{0}, {1}, {0, 1}} {
		c := image.Clone()
		pairs := 0
		for _, places := range copies {
			if len(places) != 2 {
				continue
			}
			pairs++
			for _, w := range which {
				c.Patch(places[w]+2000, []byte("damaged"))
				c.Patch(places[w]+60, []byte("damaged"))
			}
		}
		if pairs < 20 {
			t.Fatalf("only %d blocks have two copies", pairs)
		}
		fs, err := btrfs.Open(c, c.Size())
		if len(which) == 2 {
			if !errors.Is(err, filesystem.ErrCorrupt) {
				t.Errorf("both copies damaged: %v", err)
			}
			continue
		}
		if err != nil {
			t.Errorf("copy %d damaged: %v", which[0], err)
			continue
		}
		fstest.Golden(t, fs, filepath.Join("testdata", "dup.manifest.gz"), fstest.FieldAtime)
	}
}

// TestTruncatedImageIsRefused: a volume that ends early is not read at all.
func TestTruncatedImageIsRefused(t *testing.T) {
	image := smallImage(t, "mixed")
	for _, n := range []int64{0, 1000, superAt, superAt + 4095, superAt + 4096, 1 << 20, image.Size() - 4096} {
		_, err := btrfs.Open(io.NewSectionReader(image, 0, n), n)
		if !errors.Is(err, filesystem.ErrCorrupt) && !errors.Is(err, filesystem.ErrUnknown) {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
}

// FuzzOpenAndWalk patches an image of testdata, makes all checksums of superblock and
// nodes right again, and calls everything. The input is the number of the image and
// then patches (fstest.Sparse.PatchFrom).
func FuzzOpenAndWalk(f *testing.F) {
	names := []string{"mixed", "dirty"}
	images := make([]*fstest.Sparse, len(names))
	places := make([][]int64, len(names))
	for i, name := range names {
		images[i] = smallImage(f, name)
		places[i] = nodes(f, images[i])
		f.Add([]byte{byte(i)})
		for _, seed := range images[i].Seeds(40) {
			f.Add(append([]byte{byte(i)}, seed...))
		}
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) == 0 || len(in) > 4096 {
			return
		}
		i := int(in[0]) % len(images)
		c := images[i].Clone()
		c.PatchFrom(in[1:])
		for _, at := range append([]int64{superAt}, places[i]...) {
			seal(c, at, 4096)
		}
		fs, err := timedOpen(t, c)
		if err == nil {
			fstest.Walk(t, fs, 700)
		}
	})
}

// timedOpen is open within the time that a call may take, of this thread on the CPU.
func timedOpen(t *testing.T, image *fstest.Sparse) (filesystem.FS, error) {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	start := threadTime(t)
	fs, err := open(image, image.Size())
	if d := threadTime(t) - start; d > 2*time.Second {
		t.Fatalf("Open took %v", d)
	}
	return fs, err
}

func threadTime(t *testing.T) time.Duration {
	t.Helper()
	var r unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_THREAD, &r); err != nil {
		t.Fatal(err)
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}
