package xfs_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/keelblock/keelblock/blockdev/filesystem/fstest"
)

// dirtyImages were copied while they were mounted. Their manifests are what the
// kernel showed after it had recovered the log of a copy.
var dirtyImages = []struct {
	name string
	mkfs []string
}{
	{"dirty", []string{"-m", "reflink=1,rmapbt=1"}},
	{"dirty-1k", []string{"-b", "size=1024", "-n", "size=4096", "-i", "nrext64=1"}},
}

func TestMakeDirtyImages(t *testing.T) {
	if !*update {
		t.Skip("only with -update")
	}
	outer, _ := fstest.Mount(t, fstest.Image(t, 4*gib, "mkfs.xfs", "-q", "-f", "-m", "reflink=1"), fstest.MountOptions{Type: "xfs"})
	for _, name := range []string{"TEST_DIR", "TEST_DEV", "QA_CHECK_FS"} {
		t.Setenv(name, "x") // mkfs.xfs makes less than 300 MB
	}
	for _, d := range dirtyImages {
		path := filepath.Join(outer, d.name)
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(path, smallSize); err != nil {
			t.Fatal(err)
		}
		fstest.Run(t, append(append([]string{"mkfs.xfs", "-q", "-f"}, d.mkfs...), path)...)
		dir, unmount := fstest.Mount(t, path, fstest.MountOptions{Type: "xfs"})
		fillSmall(t, dir)
		syncLog(t, dir) // several checkpoints
		for i := range 100 {
			if err := os.Remove(filepath.Join(dir, "node", entryName(i*7))); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Rename(filepath.Join(dir, "short"), filepath.Join(dir, "deep", "moved")); err != nil {
			t.Fatal(err)
		}
		syncLog(t, dir)
		if err := os.Remove(filepath.Join(dir, "symlink5")); err != nil {
			t.Fatal(err)
		}
		syncLog(t, dir)
		fstest.Run(t, "cp", "--reflink=always", path, path+"-copy")
		unmount()
		image, err := os.ReadFile(path + "-copy")
		if err != nil {
			t.Fatal(err)
		}
		writeGzip(t, d.name+".img.gz", image)
		dir, unmount = fstest.Mount(t, path+"-copy", fstest.MountOptions{Type: "xfs"})
		m, err := fstest.FromDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		unmount()
		writeGzip(t, d.name+".manifest.gz", []byte(m.Text(fstest.FieldAtime)))
	}
}

// syncLog brings all changes into the log, and little else to the disk.
func syncLog(t *testing.T, dir string) {
	t.Helper()
	f, err := os.Create(filepath.Join(dir, "synced"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString("synced"); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestRecoveredGolden reads the dirty images and requires what the kernel showed.
func TestRecoveredGolden(t *testing.T) {
	for _, d := range dirtyImages {
		requireText(t, d.name, smallImage(t, d.name), readGzip(t, d.name+".manifest.gz"))
	}
}

// requireText holds what the reader shows of an image against a manifest without
// times of access.
func requireText(t *testing.T, name string, image, manifest []byte) {
	t.Helper()
	fs, err := open(image)
	if err != nil {
		t.Errorf("%s: %v", name, err)
		return
	}
	if s := fs.Info().State; !s.Clean {
		t.Errorf("%s: %s", name, s.Reason)
	}
	m, err := fstest.FromFS(fs)
	if err != nil {
		t.Errorf("%s: %v", name, err)
		return
	}
	want := strings.Split(string(manifest), "\n")
	got := strings.Split(m.Text(fstest.FieldAtime), "\n")
	if len(got) != len(want) {
		t.Errorf("%s: %d names, want %d", name, len(got), len(want))
	}
	for i := range min(len(got), len(want)) {
		if got[i] != want[i] {
			t.Errorf("%s:\n got %s\nwant %s", name, got[i], want[i])
		}
	}
}

// logOf is where the log of an image of one allocation group stands.
func logOf(p []byte) (start, end int) {
	be := binary.BigEndian
	blockSize := int(be.Uint32(p[4:]))
	start = int(be.Uint64(p[48:])) * blockSize
	return start, start + int(be.Uint32(p[96:]))*blockSize
}

// records are the offsets of the headers of log records that were written after
// mkfs.xfs, in the order in which they stand.
func records(p []byte) []int {
	var out []int
	start, end := logOf(p)
	for off := start; off < end; off += 512 {
		if binary.BigEndian.Uint32(p[off:]) == 0xFEEDBABE {
			out = append(out, off)
		}
	}
	return out
}

// TestLogThatCannotBeReplayedIsLabelled damages the log and requires that the state
// says so, and that nothing is shown as if all were well.
func TestLogThatCannotBeReplayedIsLabelled(t *testing.T) {
	le := binary.LittleEndian
	for _, c := range []struct {
		name, want string
		damage     func(p []byte)
	}{
		{"unknown item", "log item 0x1299", func(p []byte) {
			for _, off := range records(p) {
				le.PutUint32(p[off+32:], 0) // no checksum
			}
			start, end := logOf(p)
			for off := start; off+8 < end; off += 4 { // every buffer item becomes another
				if le.Uint16(p[off:]) == 0x123C && off%512 > 4 && le.Uint16(p[off+2:]) < 5 {
					le.PutUint16(p[off:], 0x1299)
				}
			}
		}},
		{"other byte order", "byte order", func(p []byte) {
			for _, off := range records(p) {
				p[off+303] = 2
			}
		}},
		{"log on another device", "another device", func(p []byte) {
			clear(p[48:56])
			sealSuper(p)
		}},
		{"no record", "log", func(p []byte) {
			start, end := logOf(p)
			for off := start; off < end; off += 512 {
				clear(p[off+4 : off+512])
			}
		}},
	} {
		p := smallImage(t, "dirty")
		c.damage(p)
		fs, err := open(p)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if s := fs.Info().State; s.Clean || !strings.Contains(s.Reason, c.want) || !strings.Contains(s.Reason, "could not be replayed") {
			t.Errorf("%s: %+v", c.name, s)
		}
	}
}

// FuzzRecovery patches the log of an image, without the checksums of its records, and
// walks what comes of it. The input is the number of the image and then patches as in
// FuzzOpenAndWalk, of sectors of the log.
func FuzzRecovery(f *testing.F) {
	images := make([][]byte, len(dirtyImages))
	used := make([][]int, len(dirtyImages))
	for i, d := range dirtyImages {
		p := smallImage(f, d.name)
		for _, off := range records(p) {
			binary.LittleEndian.PutUint32(p[off+32:], 0)
		}
		start, end := logOf(p)
		zero := make([]byte, 508)
		for off := start; off < end; off += 512 {
			if !bytes.Equal(p[off+4:off+512], zero) {
				used[i] = append(used[i], off)
			}
		}
		images[i] = p
		f.Add([]byte{byte(i)})
		for n, at := range used[i][:min(len(used[i]), 100)] {
			patch := binary.LittleEndian.AppendUint16([]byte{byte(i)}, uint16(n))
			f.Add(append(append(patch, 4, 0, 64), p[at+4:at+68]...))
		}
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) == 0 || len(in) > 4096 {
			return
		}
		i := int(in[0]) % len(images)
		image := images[i]
		type old struct {
			at int
			b  []byte
		}
		var olds []old
		defer func() {
			for i := len(olds) - 1; i >= 0; i-- {
				copy(image[olds[i].at:], olds[i].b)
			}
		}()
		for in = in[1:]; len(in) > 5; {
			at := used[i][int(binary.LittleEndian.Uint16(in))%len(used[i])] + int(binary.LittleEndian.Uint16(in[2:]))%512
			n := min(int(in[4]), len(in)-5, len(image)-at)
			olds = append(olds, old{at, bytes.Clone(image[at : at+n])})
			copy(image[at:], in[5:5+n])
			in = in[5+n:]
		}
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		start := threadTime(t)
		fs, err := open(image)
		if d := threadTime(t) - start; d > maxOperation {
			t.Fatalf("Open took %v", d)
		}
		if err == nil {
			walk(t, fs, 1500)
		}
		checkHeap(t)
	})
}

// TestTornRecordsAreLeftOut damages the records at the head of the log, as a power
// cut does that stops them on their way, and requires what the kernel makes of it.
func TestTornRecordsAreLeftOut(t *testing.T) {
	for _, d := range dirtyImages {
		p := smallImage(t, d.name)
		var heads []int // without those of mkfs.xfs and those that only mark room
		for _, off := range records(p) {
			if binary.BigEndian.Uint32(p[off+12:]) > 512 {
				heads = append(heads, off)
			}
		}
		if len(heads) < 2 {
			t.Fatalf("%s: log of %d records", d.name, len(heads))
		}
		for back := 1; back <= min(4, len(heads)-1); back++ {
			p := smallImage(t, d.name)
			p[heads[len(heads)-back]+600] ^= 1
			path := filepath.Join(t.TempDir(), fmt.Sprint(d.name, back))
			if err := os.WriteFile(path, p, 0o600); err != nil {
				t.Fatal(err)
			}
			compareRecovered(t, fmt.Sprintf("%s, record %d from the end", d.name, back), path)
		}
	}
}
