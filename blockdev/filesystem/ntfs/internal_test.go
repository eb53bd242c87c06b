package ntfs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"

	"github.com/keelblock/keelblock/blockdev/filesystem"
)

// PlaceForTest is where in the volume the byte at off of a file's contents is, or, for
// record 0, of the MFT.
func PlaceForTest(f *FS, ino filesystem.Inode, off int64) int64 {
	s, err := f.fileStream(uint64(ino))
	if err != nil || s.isResident {
		return -1
	}
	r, err := f.at(s, uint64(off/f.boot.clusterSize))
	if err != nil || r.lcn == hole {
		return -1
	}
	return r.lcn*f.boot.clusterSize + off%f.boot.clusterSize
}

// AttrPlaceForTest is where in the volume the header of the first attribute of a kind of
// a file is, and its length.
func AttrPlaceForTest(f *FS, ino filesystem.Inode, kind uint32) (off, length int64) {
	at := PlaceForTest(f, recordMFT, int64(ino)*f.boot.recordSize)
	p := make([]byte, f.boot.recordSize)
	if at < 0 || f.cache.Read(p, at) != nil {
		return -1, 0
	}
	le := binary.LittleEndian
	for i := int64(le.Uint16(p[20:])); i+8 <= int64(len(p)); i += int64(le.Uint32(p[i+4:])) {
		if k := le.Uint32(p[i:]); k == kind {
			return at + i, int64(le.Uint32(p[i+4:]))
		} else if k == typeEnd {
			break
		}
	}
	return -1, 0
}

// The example of MS-XCA section 3.3.
func TestLZNT1Example(t *testing.T) {
	packed := []byte{
		0x38, 0xb0, 0x88, 0x46, 0x23, 0x20, 0x00, 0x20, 0x47, 0x20, 0x41, 0x00, 0x10, 0xa2, 0x47, 0x01,
		0xa0, 0x45, 0x20, 0x44, 0x00, 0x08, 0x45, 0x01, 0x50, 0x79, 0x00, 0xc0, 0x45, 0x20, 0x05, 0x24,
		0x13, 0x88, 0x05, 0xb4, 0x02, 0x4a, 0x44, 0xef, 0x03, 0x58, 0x02, 0x8c, 0x09, 0x16, 0x01, 0x48,
		0x45, 0x00, 0xbe, 0x00, 0x9e, 0x00, 0x04, 0x01, 0x18, 0x90, 0x00,
	}
	want := "F# F# G A A G F# E D D E F# F# E E F# F# G A A G F# E D D E F# E D D E E F# D E F# G F# D E F# G F# E D E A F# F# G A A G F# E D D E F# E D D\x00"
	got, err := decompress(packed, 65536)
	if err != nil {
		t.Fatal(err)
	}
	if string(got[:len(want)]) != want || len(bytes.TrimLeft(got[len(want):], "\x00")) != 0 {
		t.Errorf("%q", got[:len(want)+10])
	}
}

func FuzzLZNT1(f *testing.F) {
	f.Add([]byte{0x03, 0xb0, 0x02, 'a', 0xfc, 0x0f}, 4096)
	f.Add([]byte{0x02, 0x30, 'a', 'b', 'c', 0x00, 0x00}, 8192)
	f.Add(bytes.Repeat([]byte{0xff}, 100), 65536)
	f.Fuzz(func(t *testing.T, p []byte, size int) {
		if size < 0 || size > 1<<20 {
			return
		}
		if out, err := decompress(p, size); err == nil && len(out) != size {
			t.Errorf("%d bytes instead of %d", len(out), size)
		} else if err != nil && !errors.Is(err, filesystem.ErrCorrupt) {
			t.Error(err)
		}
	})
}

// Chunks that unpack to too much, refer before their start, or are cut are errors.
func TestBadLZNT1IsRefused(t *testing.T) {
	for name, p := range map[string][]byte{
		"reference at the start": {0x02, 0xb0, 0x01, 0x00, 0x00},
		"too far back":           {0x03, 0xb0, 0x02, 'a', 0x00, 0x10},
		"too long":               {0x05, 0xb0, 0x06, 'a', 0xff, 0x0f, 0xff, 0x0f},
		"half a reference":       {0x02, 0xb0, 0x02, 'a', 0x00},
		"chunk is cut":           {0xff, 0xbf, 0x00, 'a'},
		"no signature":           {0x02, 0x80, 0x00, 'a', 'b'},
	} {
		if out, err := decompress(p, 4096); !errors.Is(err, filesystem.ErrCorrupt) {
			t.Errorf("%s: %d bytes, %v", name, len(out), err)
		}
	}
}

// Names sort as Windows sorts them: by capitals, then by themselves.
func TestCollation(t *testing.T) {
	f := &FS{upcase: make([]uint16, 65536)}
	for i := range f.upcase {
		f.upcase[i] = uint16(i)
		if i >= 'a' && i <= 'z' {
			f.upcase[i] -= 'a' - 'A'
		}
	}
	sorted := []string{"A", "AB", "Ab", "aB", "ab", "B", "_", "文", "\xed\xa0\x80", "\ufffd"}
	for i, a := range sorted {
		for j, b := range sorted {
			got := f.collate(unitsOf([]byte(a)), unitsOf([]byte(b)))
			if (got < 0) != (i < j) || (got == 0) != (i == j) {
				t.Errorf("%q and %q: %d", a, b, got)
			}
		}
	}
}

func TestRunsAreBounded(t *testing.T) {
	f := &FS{boot: &boot{clusterSize: 4096, clusters: 1000}}
	for name, c := range map[string]struct {
		runs    []byte
		highest uint64
		ok      bool
	}{
		"plain":             {[]byte{0x11, 10, 50, 0x11, 5, 0xF6, 0}, 14, true},
		"hole":              {[]byte{0x01, 10, 0}, 9, true},
		"empty":             {[]byte{0}, ^uint64(0), true},
		"no end":            {[]byte{0x11, 10, 50}, 9, false},
		"cut":               {[]byte{0x44, 10}, 9, false},
		"before the volume": {[]byte{0x11, 10, 50, 0x11, 5, 0x80, 0}, 14, false},
		"behind the volume": {[]byte{0x21, 10, 0xE0, 0x03, 0}, 9, false},
		"negative":          {[]byte{0x11, 0xF0, 50, 0}, 9, false},
		"of no clusters":    {[]byte{0x11, 0, 50, 0}, 9, false},
		"too few":           {[]byte{0x11, 10, 50, 0}, 10, false},
		"9 bytes":           {[]byte{0x19, 1, 1, 1, 1, 1, 1, 1, 1, 1, 50, 0}, 9, false},
	} {
		runs, err := f.decodeRuns(&attr{runs: c.runs, highest: c.highest})
		if c.ok != (err == nil) || (err != nil && !errors.Is(err, filesystem.ErrCorrupt)) {
			t.Errorf("%s: %v, %v", name, runs, err)
		}
	}
}
