package exfat_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/keelblock/keelblock/blockdev/filesystem"
	"github.com/keelblock/keelblock/blockdev/filesystem/exfat"
	"github.com/keelblock/keelblock/blockdev/filesystem/fstest"
)

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

func mustOpen(t *testing.T, s *fstest.Sparse) *exfat.FS {
	t.Helper()
	fs, err := exfat.Open(s, s.Size())
	if err != nil {
		t.Fatal(err)
	}
	return fs
}

// changeFile changes the entries of a file and, with sum, mends their checksum. The inode
// number is where they are; they must lie in one cluster.
func changeFile(t *testing.T, s *fstest.Sparse, ino filesystem.Inode, sum bool, change func(p []byte)) {
	t.Helper()
	head := make([]byte, 2)
	if _, err := s.ReadAt(head, int64(ino)*32); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, (int(head[1])+1)*32)
	if _, err := s.ReadAt(p, int64(ino)*32); err != nil {
		t.Fatal(err)
	}
	change(p)
	if sum {
		var v uint16
		for i, b := range p {
			if i != 2 && i != 3 {
				v = v<<15 | v>>1
				v += uint16(b)
			}
		}
		binary.LittleEndian.PutUint16(p[2:], v)
	}
	s.Patch(int64(ino)*32, p)
}

// What lies behind the valid data is zeros, whatever is on the disk.
func TestValidDataLength(t *testing.T) {
	s := image(t, "exfat-512")
	ino := lookup(t, mustOpen(t, s), "files", "size-4097")
	changeFile(t, s, ino, true, func(p []byte) { binary.LittleEndian.PutUint64(p[32+8:], 1000) })
	p, err := fstest.File(mustOpen(t, s), "files", "size-4097")
	if err != nil || len(p) != 4097 {
		t.Fatalf("%d bytes, %v", len(p), err)
	}
	if p[999] == 0 || len(bytes.Trim(p[1000:], "\x00")) != 0 {
		t.Errorf("%q", p[990:1010])
	}
}

func TestTimes(t *testing.T) {
	s := image(t, "exfat-512")
	ino := lookup(t, mustOpen(t, s), "files", "size-512")
	stamp := func(year, month, day, hour, minute, second uint32) uint32 {
		return (year-1980)<<25 | month<<21 | day<<16 | hour<<11 | minute<<5 | second/2
	}
	le := binary.LittleEndian
	changeFile(t, s, ino, true, func(p []byte) {
		le.PutUint32(p[8:], stamp(2026, 7, 4, 12, 30, 58))
		p[20], p[22] = 199, 0x80|8 // +02:00
		le.PutUint32(p[12:], stamp(1999, 12, 31, 23, 59, 58))
		p[21], p[23] = 7, 0x80|(0x80-14) // -03:30
		le.PutUint32(p[16:], stamp(2107, 1, 2, 3, 4, 6))
		p[24] = 0 // no zone
	})
	a, err := mustOpen(t, s).Getattr(ino)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ got, want time.Time }{
		"birth": {a.Birth, time.Date(2026, 7, 4, 10, 30, 59, 990e6, time.UTC)},
		"mtime": {a.Mtime, time.Date(2000, 1, 1, 3, 29, 58, 70e6, time.UTC)},
		"atime": {a.Atime, time.Date(2107, 1, 2, 3, 4, 6, 0, time.UTC)},
	} {
		if !c.got.Equal(c.want) {
			t.Errorf("%s is %v, want %v", name, c.got.UTC(), c.want)
		}
	}
}

// Damage of a file's entries is an error of the directory behind it, never another file.
func TestDamagedEntriesAreErrors(t *testing.T) {
	for name, c := range map[string]struct {
		sum    bool
		change func(p []byte)
		want   error
	}{
		"one bit":             {false, func(p []byte) { p[32+8] ^= 1 }, filesystem.ErrCorrupt},
		"checksum":            {false, func(p []byte) { p[2]++ }, filesystem.ErrCorrupt},
		"more valid than all": {true, func(p []byte) { p[32+14] = 1 }, filesystem.ErrCorrupt},
		"no stream":           {true, func(p []byte) { p[32] = 0xC1 }, filesystem.ErrCorrupt},
		"name too short":      {true, func(p []byte) { p[32+3] = 200 }, filesystem.ErrCorrupt},
		"slash in the name":   {true, func(p []byte) { p[64+2] = '/' }, filesystem.ErrCorrupt},
		"unknown critical":    {true, func(p []byte) { p[64] = 0xC7 }, filesystem.ErrUnsupported},
	} {
		t.Run(name, func(t *testing.T) {
			s := image(t, "exfat-512")
			fs := mustOpen(t, s)
			dir, ino := lookup(t, fs, "files"), lookup(t, fs, "files", "size-65536")
			changeFile(t, s, ino, c.sum, c.change)
			fs = mustOpen(t, s)
			if err := fs.ReadDir(dir, 0, func(filesystem.Dirent) bool { return true }); !errors.Is(err, c.want) {
				t.Errorf("ReadDir: %v", err)
			}
			if _, err := fs.Getattr(ino); !errors.Is(err, c.want) {
				t.Errorf("Getattr: %v", err)
			}
			if _, err := fs.Lookup(dir, []byte("size-65536")); !errors.Is(err, c.want) {
				t.Errorf("Lookup: %v", err)
			}
		})
	}
}

func TestBrokenChainsAreErrors(t *testing.T) {
	for name, change := range map[string]func(p []byte){
		"larger than the volume":        func(p []byte) { p[32+30], p[32+14] = 1, 1 },
		"behind the volume":             func(p []byte) { binary.LittleEndian.PutUint32(p[32+20:], 0xFFFFFF00) },
		"in one piece, over the end":    func(p []byte) { p[32+1] |= 2; binary.LittleEndian.PutUint64(p[32+24:], 7<<20) },
		"a cluster that is not in use":  func(p []byte) { p[32+1] |= 2; binary.LittleEndian.PutUint32(p[32+20:], 11000) },
		"more than the chain has":       func(p []byte) { p[32+1] &^= 2; binary.LittleEndian.PutUint64(p[32+24:], 3<<20) },
		"chain of what lies in one row": func(p []byte) { p[32+1] &^= 2; binary.LittleEndian.PutUint32(p[32+20:], 1) },
	} {
		t.Run(name, func(t *testing.T) {
			s := image(t, "exfat-512")
			ino := lookup(t, mustOpen(t, s), "files", "size-100000")
			changeFile(t, s, ino, true, change)
			fs := mustOpen(t, s)
			if _, err := fs.ReadAt(ino, make([]byte, 10), 0); !errors.Is(err, filesystem.ErrCorrupt) {
				t.Errorf("%v", err)
			}
		})
	}
}

func TestStatesAndRefusals(t *testing.T) {
	le := binary.LittleEndian
	for name, c := range map[string]struct {
		at   int64
		with []byte
		both bool   // of the copy, too
		says string // of the state
		want error
	}{
		"dirty":             {106, []byte{2}, false, "not unmounted", nil},
		"media failure":     {106, []byte{4}, false, "errors of the disk", nil},
		"first boot region": {4000, []byte{77}, false, "its copy is used", nil},
		"both":              {4000, []byte{77}, true, "", filesystem.ErrCorrupt},
		"larger":            {72, le.AppendUint64(nil, 1<<40), true, "", filesystem.ErrCorrupt},
		"sector size":       {108, []byte{60}, true, "", filesystem.ErrCorrupt},
		"other name":        {3, []byte("EXTRA"), true, "", filesystem.ErrUnknown},
	} {
		t.Run(name, func(t *testing.T) {
			s := image(t, "exfat-512")
			s.Patch(c.at, c.with)
			if c.both {
				s.Patch(12*512+c.at, c.with)
			}
			fs, err := exfat.Open(s, s.Size())
			if !errors.Is(err, c.want) {
				t.Fatal(err)
			}
			if err == nil {
				if state := fs.Info().State; state.Clean || !strings.Contains(state.Reason, c.says) {
					t.Errorf("%+v", state)
				}
			}
		})
	}
	s := image(t, "exfat-512")
	for _, n := range []int64{0, 512, 6143, 6144, 100000, s.Size() - 512} {
		if _, err := exfat.Open(io.NewSectionReader(s, 0, n), n); !errors.Is(err, filesystem.ErrCorrupt) && !errors.Is(err, filesystem.ErrUnknown) {
			t.Errorf("cut to %d bytes: %v", n, err)
		}
	}
}

// rootEntry is where the entry of a type is in the root directory.
func rootEntry(t *testing.T, s *fstest.Sparse, kind byte) int64 {
	t.Helper()
	p := make([]byte, 512)
	if _, err := s.ReadAt(p, 0); err != nil {
		t.Fatal(err)
	}
	le := binary.LittleEndian
	cluster := int64(512) << p[109]
	at := int64(le.Uint32(p[88:]))*512 + int64(le.Uint32(p[96:])-2)*cluster
	for end := at + cluster; at < end; at += 32 {
		if _, err := s.ReadAt(p[:1], at); err != nil {
			t.Fatal(err)
		}
		if p[0] == kind {
			return at
		}
	}
	t.Fatalf("no entry of type %#x", kind)
	return 0
}

func TestRootEntriesAreChecked(t *testing.T) {
	for name, c := range map[string]struct {
		kind byte
		off  int64
		with []byte
		want error
	}{
		"checksum of the up-case table": {0x82, 4, []byte{1, 2, 3, 4}, filesystem.ErrCorrupt},
		"no up-case table":              {0x82, 0, []byte{0x02}, filesystem.ErrCorrupt},
		"huge up-case table":            {0x82, 30, []byte{1}, filesystem.ErrCorrupt},
		"bitmap of another size":        {0x81, 24, []byte{1, 0, 0, 0}, filesystem.ErrCorrupt},
		"bitmap outside":                {0x81, 20, []byte{0xff, 0xff, 0xff, 0x7f}, filesystem.ErrCorrupt},
		"unknown critical entry":        {0x83, 0, []byte{0x99}, filesystem.ErrUnsupported},
	} {
		s := image(t, "exfat-512")
		s.Patch(rootEntry(t, s, c.kind)+c.off, c.with)
		if _, err := exfat.Open(s, s.Size()); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	s := image(t, "exfat-512")
	s.Patch(rootEntry(t, s, 0x83), []byte{0xA5}) // benign: left out
	if l := mustOpen(t, s).Info().Label; l != "" {
		t.Errorf("label %q", l)
	}
}
