package ext_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/keelblock/keelblock/blockdev/filesystem"
	"github.com/keelblock/keelblock/blockdev/filesystem/ext"
	"github.com/keelblock/keelblock/blockdev/filesystem/fstest"
)

// crashImages are kept in testdata with the manifest that the kernel gave after it
// replayed a copy: file systems at work, at an instant.
var crashImages = []struct {
	name, data string
	mkfs       []string
}{
	{"crash-csum3", "", []string{"mkfs.ext4", "-O", "64bit,metadata_csum", "-J", "size=1"}},
	{"crash-csum1", "journal_checksum", []string{"mkfs.ext4", "-O", "^metadata_csum,^64bit", "-J", "size=1"}},
	{"crash-ext3", "", []string{"mkfs.ext3", "-J", "size=1"}},
	{"crash-data", "data=journal", []string{"mkfs.ext4", "-O", "^metadata_csum,64bit", "-J", "size=1"}},
	{"crash-fast", "", []string{"mkfs.ext4", "-O", "fast_commit,^metadata_csum", "-J", "size=2"}},
	{"crash-fast-csum", "", []string{"mkfs.ext4", "-O", "fast_commit,inline_data,metadata_csum", "-J", "size=2"}},
}

// TestMakeCrashImages is for -update.
func TestMakeCrashImages(t *testing.T) {
	if !*update {
		t.Skip("only with -update")
	}
	for i, c := range crashImages {
		t.Run(c.name, func(t *testing.T) {
			fast := strings.HasPrefix(c.name, "crash-fast")
			mkfs := append(c.mkfs[:len(c.mkfs):len(c.mkfs)], "-b", "1024", "-N", "512", "-m", "0")
			b := startBusy(t, 12<<20, mkfs, c.data, uint64(i))
			image := filepath.Join(t.TempDir(), "snapshot")
			for range 50 {
				time.Sleep(200 * time.Millisecond)
				b.snapshot(image)
				state, m, ok := judge(t, image, fast)
				if !ok || !strings.Contains(state, "replayed") || fast && !strings.Contains(state, "fast commits") {
					continue
				}
				b.end()
				p, err := os.ReadFile(image)
				if err != nil {
					t.Fatal(err)
				}
				writeGzip(t, c.name+".img.gz", p)
				writeGzip(t, c.name+".manifest.gz", []byte(m.Text(crashIgnore(c.name))))
				t.Log(state)
				return
			}
			t.Fatal("no instant was good")
		})
	}
}

func crashIgnore(name string) fstest.Fields {
	if strings.HasPrefix(name, "crash-fast") {
		return fstest.FieldBlocks
	}
	return 0
}

// TestGoldenReplay reads the crash images and requires what the kernel showed after
// its replay.
func TestGoldenReplay(t *testing.T) {
	for _, c := range crashImages {
		fs, err := open(smallImage(t, c.name))
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if s := fs.Info().State; !s.Clean || !strings.Contains(s.Reason, "its journal was replayed") {
			t.Errorf("%s: %+v", c.name, s)
		}
		m, err := fstest.FromFS(fs)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if got, want := m.Text(crashIgnore(c.name)), string(readGzip(t, c.name+".manifest.gz")); got != want {
			t.Errorf("%s: the manifest differs:\n%s", c.name, firstDifference(got, want))
		}
	}
}

func firstDifference(got, want string) string {
	g, w := strings.Split(got, "\n"), strings.Split(want, "\n")
	for i := range min(len(g), len(w)) {
		if g[i] != w[i] {
			return "got  " + g[i] + "\nwant " + w[i]
		}
	}
	return "one is longer"
}

// journalOf gives the offsets of the journal's blocks in an image.
func journalOf(t testing.TB, p []byte) (blocks []int64, firstFast int) {
	t.Helper()
	blocks, firstFast, err := ext.JournalBlocksForTest(bytes.NewReader(p), int64(len(p)))
	if err != nil {
		t.Fatal(err)
	}
	return blocks, firstFast
}

const (
	jbd2Descriptor = 1
	jbd2Commit     = 2
)

// logBlocks are the offsets of the blocks of a type that are in the log to be
// replayed, oldest first.
func logBlocks(t *testing.T, p []byte, kind uint32) []int64 {
	t.Helper()
	be := binary.BigEndian
	blocks, firstFast := journalOf(t, p)
	sequence, start := be.Uint32(p[blocks[0]+0x18:]), int(be.Uint32(p[blocks[0]+0x1C:]))
	var out []int64
	at := start
	for range blocks {
		q := p[blocks[at]:]
		if s := be.Uint32(q[8:]); be.Uint32(q) == 0xC03B3998 && s >= sequence && s < sequence+10000 && be.Uint32(q[4:]) == kind {
			out = append(out, blocks[at])
		}
		if at++; at >= min(firstFast-1, len(blocks)) {
			at = 1
		}
	}
	return out
}

// TestDamagedJournalIsJudgedAsTheKernelDoes changes one byte in the middle of the log
// and asks both. Where the reader refuses, it says what and where.
func TestDamagedJournalIsJudgedAsTheKernelDoes(t *testing.T) {
	fstest.RequireRoot(t)
	for _, image := range []string{"crash-csum3", "crash-csum1", "crash-ext3", "crash-fast-csum"} {
		good := smallImage(t, image)
		blocks, _ := journalOf(t, good)
		descriptors, commits := logBlocks(t, good, jbd2Descriptor), logBlocks(t, good, jbd2Commit)
		if len(descriptors) < 4 || len(commits) < 4 {
			t.Fatalf("%s: %d descriptors, %d commits", image, len(descriptors), len(commits))
		}
		for _, c := range []struct {
			what string
			at   int64
		}{
			{"superblock of the journal", blocks[0] + 0x60},
			{"first descriptor", descriptors[0] + 300},
			{"descriptor in the middle", descriptors[len(descriptors)/2] + 20},
			{"data block", descriptors[len(descriptors)/2] + 1024 + 100},
			{"commit in the middle", commits[len(commits)/2] + 0x12},
			{"magic of a commit in the middle", commits[len(commits)/2]},
			{"last commit", commits[len(commits)-1] + 0x12},
			{"start of the log", blocks[0] + 0x1F},
		} {
			t.Run(image+"/"+c.what, func(t *testing.T) {
				p := bytes.Clone(good)
				p[c.at] ^= 0x11
				path := filepath.Join(t.TempDir(), "image")
				if err := os.WriteFile(path, p, 0o600); err != nil {
					t.Fatal(err)
				}
				state, _, _ := judge(t, path, true)
				t.Log(state)
			})
		}
	}
}

// TestRefusedJournalSaysWhatAndWhere: without the kernel as a judge.
func TestRefusedJournalSaysWhatAndWhere(t *testing.T) {
	good := smallImage(t, "crash-csum3")
	commits := logBlocks(t, good, jbd2Commit)
	for _, c := range []struct {
		at   int64
		want string
	}{
		{commits[len(commits)/2] + 0x12, "the checksum of its commit in block"},
		{logBlocks(t, good, jbd2Descriptor)[1] + 20, "the checksum of one of its descriptor or revoke blocks is wrong"},
	} {
		p := bytes.Clone(good)
		p[c.at] ^= 1
		_, err := open(p)
		if !errors.Is(err, filesystem.ErrCorrupt) || !strings.Contains(err.Error(), c.want) ||
			!strings.Contains(err.Error(), "the kernel does not mount this file system either") {
			t.Errorf("%d: %v", c.at, err)
		}
	}
}

// TestTornFastCommitShowsTheFullCommits: power was cut in the middle of the first fast
// commit. The kernel does not mount that; what was committed in full is shown here,
// and labelled.
func TestTornFastCommitShowsTheFullCommits(t *testing.T) {
	p := smallImage(t, "crash-fast")
	blocks, first := journalOf(t, p)
	clear(p[blocks[first]+12:][:1024-12])
	fs, err := open(p)
	if err != nil {
		t.Fatal(err)
	}
	s := fs.Info().State
	if s.Clean || !strings.HasPrefix(s.Reason, "state as of the last full commit; the fast commits behind it have not been replayed (the first of them is not complete)") {
		t.Errorf("%+v", s)
	}
	if _, err := fstest.FromFS(fs); err != nil {
		t.Error(err)
	}
}

// TestExternalJournalIsLabelled: its UUID says which device would be needed.
func TestExternalJournalIsLabelled(t *testing.T) {
	p := smallImage(t, "crash-ext3")
	le := binary.LittleEndian
	le.PutUint32(p[superblock+0xE0:], 0)
	copy(p[superblock+0xD0:], "\x12\x34\x56\x78")
	fs, err := open(p)
	if err != nil {
		t.Fatal(err)
	}
	if s := fs.Info().State; s.Clean || !strings.Contains(s.Reason, "journal is on another device (UUID 12345678-") {
		t.Errorf("%+v", s)
	}
}

// TestUnknownJournalFeatureIsRefused by its bits.
func TestUnknownJournalFeatureIsRefused(t *testing.T) {
	p := smallImage(t, "crash-ext3")
	blocks, _ := journalOf(t, p)
	p[blocks[0]+0x28+2] |= 0x40
	if _, err := open(p); !errors.Is(err, filesystem.ErrUnsupported) || !strings.Contains(err.Error(), "incompat 0x4000") {
		t.Errorf("%v", err)
	}
}

// TestHostileJournalsEnd builds logs without checksums that go in circles, point
// anywhere and claim too much.
func TestHostileJournalsEnd(t *testing.T) {
	be := binary.BigEndian
	header := func(q []byte, kind, sequence uint32) {
		clear(q[:1024])
		be.PutUint32(q, 0xC03B3998)
		be.PutUint32(q[4:], kind)
		be.PutUint32(q[8:], sequence)
	}
	for _, c := range []struct {
		name string
		make func(p []byte, blocks []int64, sequence uint32)
		want error
	}{
		{"a log of nothing but empty descriptors", func(p []byte, blocks []int64, sequence uint32) {
			for _, b := range blocks[1:] {
				header(p[b:], jbd2Descriptor, sequence)
				be.PutUint16(p[b+12+6:], 8)
			}
		}, filesystem.ErrCorrupt},
		{"a log of nothing but revoke blocks", func(p []byte, blocks []int64, sequence uint32) {
			for _, b := range blocks[1:] {
				header(p[b:], 5, sequence)
				be.PutUint32(p[b+12:], 1024)
			}
		}, filesystem.ErrCorrupt},
		{"a revoke block of 4 GiB", func(p []byte, blocks []int64, sequence uint32) {
			header(p[blocks[1]:], 5, sequence)
			be.PutUint32(p[blocks[1]+12:], 0xFFFFFFFF)
			header(p[blocks[2]:], jbd2Commit, sequence)
		}, filesystem.ErrCorrupt},
		{"a block behind the end of the volume", func(p []byte, blocks []int64, sequence uint32) {
			header(p[blocks[1]:], jbd2Descriptor, sequence)
			be.PutUint32(p[blocks[1]+12:], 0xFFFFFFF0)
			be.PutUint16(p[blocks[1]+12+6:], 8)
			header(p[blocks[3]:], jbd2Commit, sequence)
		}, filesystem.ErrCorrupt},
		{"the superblock is replaced by zeros", func(p []byte, blocks []int64, sequence uint32) {
			header(p[blocks[1]:], jbd2Descriptor, sequence)
			be.PutUint32(p[blocks[1]+12:], 1)
			be.PutUint16(p[blocks[1]+12+6:], 8)
			clear(p[blocks[2]:][:1024])
			header(p[blocks[3]:], jbd2Commit, sequence)
		}, filesystem.ErrUnknown},
		{"a commit of nothing", func(p []byte, blocks []int64, sequence uint32) {
			header(p[blocks[1]:], jbd2Commit, sequence)
		}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := smallImage(t, "crash-ext3")
			blocks, _ := journalOf(t, p)
			be.PutUint32(p[blocks[0]+0x1C:], 1)
			c.make(p, blocks, be.Uint32(p[blocks[0]+0x18:]))
			fs, err := open(p)
			if !errors.Is(err, c.want) {
				t.Fatal(err)
			}
			if err == nil {
				walk(t, fs, 3000)
			}
			checkHeap(t)
		})
	}
}

// resealFast makes the checksums of the fast commits right again.
func resealFast(p []byte, blocks []int64, first int) {
	le := binary.LittleEndian
	crc := uint32(0)
	update := func(q []byte) { crc = ^crc32.Update(^crc, crc32.MakeTable(crc32.Castagnoli), q) }
	for _, b := range blocks[first:] {
		q := p[b:][:1024]
		for at := 0; at+4 <= len(q); {
			end := at + 4 + int(le.Uint16(q[at+2:]))
			if end > len(q) {
				return
			}
			switch tag := le.Uint16(q[at:]); {
			case tag == 8 && end-at >= 12:
				update(q[at : at+8])
				le.PutUint32(q[at+8:], crc)
				crc = 0
			case tag == 0 || tag > 9:
				return
			default:
				update(q[at:end])
			}
			at = end
		}
	}
}

// TestDamagedReplaysAreSurvived: no panic, no call over its time, whatever the bytes
// of the journal. In the images without checksums nothing stops a replay early.
func TestDamagedReplaysAreSurvived(t *testing.T) {
	for _, image := range []string{"crash-ext3", "crash-data", "crash-fast", "crash-csum1"} {
		p := smallImage(t, image)
		blocks, first := journalOf(t, p)
		rnd := rand.New(rand.NewPCG(5, 6))
		var used []int
		for i, b := range blocks {
			if !bytes.Equal(p[b:b+1024], make([]byte, 1024)) && (image != "crash-fast" || i == 0 || i >= first) {
				used = append(used, int(b))
			}
		}
		opened, n, calls := 0, 25, 300
		if full() {
			n, calls = 5000, 2000
		}
		original := bytes.Clone(p)
		for range n {
			damage(rnd, p, used)
			if image == "crash-fast" {
				resealFast(p, blocks, first)
			}
			if fs, err := open(p); err == nil {
				opened++
				walk(t, fs, calls)
			}
			copy(p, original)
		}
		checkHeap(t)
		t.Logf("%s: %d of %d variants could be opened", image, opened, n)
	}
}

// FuzzReplay patches the journal of a crash image and reads all of the file system.
// The input is the number of the image, 1 to reseal the fast commits, and then
// patches: which used block of the journal (2 bytes), where in it (2), how many bytes
// (1), the bytes.
func FuzzReplay(f *testing.F) {
	images := make([][]byte, len(crashImages))
	blocks := make([][]int64, len(crashImages))
	first := make([]int, len(crashImages))
	used := make([][]int64, len(crashImages))
	for i, c := range crashImages {
		images[i] = smallImage(f, c.name)
		blocks[i], first[i] = journalOf(f, images[i])
		f.Add([]byte{byte(i), 0})
		for k, b := range blocks[i] {
			q := images[i][b:][:1024]
			if bytes.Equal(q, make([]byte, 1024)) {
				continue
			}
			used[i] = append(used[i], b)
			if len(used[i]) < 12 || k >= first[i] {
				patch := binary.LittleEndian.AppendUint16([]byte{byte(i), 1}, uint16(len(used[i])-1))
				patch = append(patch, 0, 0, 64)
				f.Add(append(patch, q[:64]...))
			}
		}
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) < 2 || len(in) > 4096 {
			return
		}
		i, reseal := int(in[0])%len(images), in[1]&1 != 0
		image := bytes.Clone(images[i])
		for in = in[2:]; len(in) > 5; {
			block := int(binary.LittleEndian.Uint16(in)) % len(used[i])
			at := int(used[i][block]) + int(binary.LittleEndian.Uint16(in[2:]))%1024
			n := min(int(in[4]), len(in)-5)
			copy(image[at:], in[5:5+n])
			in = in[5+n:]
		}
		if reseal {
			resealFast(image, blocks[i], min(first[i], len(blocks[i])))
		}
		if fs, err := open(image); err == nil {
			walk(t, fs, 1500)
		}
		checkHeap(t)
	})
}
