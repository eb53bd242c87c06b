package fat_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/keelblock/keelblock/blockdev/filesystem"
	"github.com/keelblock/keelblock/blockdev/filesystem/fat"
	"github.com/keelblock/keelblock/blockdev/filesystem/fstest"
)

// volume is a FAT12 of 100 clusters of 512 bytes with two FATs and 16 entries in the
// root, built by hand to hold what no mkfs makes.
type volume []byte

const (
	sector   = 512
	rootAt   = 3 * sector
	dataAt   = 4 * sector
	clusters = 100
)

func newVolume() volume {
	v := make(volume, dataAt+clusters*sector)
	le := binary.LittleEndian
	copy(v, "\xEB\x3C\x90mkfs.fat")
	le.PutUint16(v[11:], sector)
	v[13] = 1
	le.PutUint16(v[14:], 1)
	v[16] = 2
	le.PutUint16(v[17:], 16)
	le.PutUint16(v[19:], uint16(len(v)/sector))
	v[21] = 0xF8
	le.PutUint16(v[22:], 1)
	copy(v[510:], "\x55\xAA")
	v.set(0, 0xFF8, 0, 1)
	v.set(1, 0xFFF, 0, 1)
	return v
}

// set sets an entry in the given copies of the FAT.
func (v volume) set(c, value int, copies ...int) {
	for _, n := range copies {
		p := v[sector*(1+n)+c*3/2:]
		old := binary.LittleEndian.Uint16(p)
		if c%2 == 0 {
			old = old&0xF000 | uint16(value)
		} else {
			old = old&0xF | uint16(value)<<4
		}
		binary.LittleEndian.PutUint16(p, old)
	}
}

// link makes a chain in both copies.
func (v volume) link(chain ...int) {
	for i, c := range chain[:len(chain)-1] {
		v.set(c, chain[i+1], 0, 1)
	}
	v.set(chain[len(chain)-1], 0xFFF, 0, 1)
}

func (v volume) cluster(c int) []byte { return v[dataAt+(c-2)*sector:][:sector] }

// entry puts an entry into slot of the directory at p; name has 11 bytes.
func entry(p []byte, slot int, name string, attr byte, first, size int) {
	e := p[slot*32:][:32]
	copy(e, name)
	e[11] = attr
	binary.LittleEndian.PutUint16(e[26:], uint16(first))
	binary.LittleEndian.PutUint32(e[28:], uint32(size))
}

func (v volume) open(t *testing.T) *fat.FS {
	t.Helper()
	fs, err := fat.Open(bytes.NewReader(v), int64(len(v)))
	if err != nil {
		t.Fatal(err)
	}
	return fs
}

// names lists the root.
func names(t *testing.T, fs filesystem.FS) (out []string) {
	t.Helper()
	if err := fs.ReadDir(fs.Root(), 0, func(d filesystem.Dirent) bool { out = append(out, string(d.Name)); return true }); err != nil {
		t.Fatal(err)
	}
	return out
}

func read(fs filesystem.FS, name string) (string, error) {
	p, err := fstest.File(fs, name)
	return string(p), err
}

// A chain of 3 clusters that the format lets go wrong in each way.
func TestBrokenChainsAreErrors(t *testing.T) {
	for name, c := range map[string]struct {
		damage func(v volume)
		ok     bool
	}{
		"whole":                           {func(v volume) {}, true},
		"ends early":                      {func(v volume) { v.set(11, 0xFFF, 0, 1) }, false},
		"cyclic":                          {func(v volume) { v.set(12, 10, 0, 1) }, false},
		"cyclic within":                   {func(v volume) { v.set(11, 10, 0, 1) }, false},
		"its own next":                    {func(v volume) { v.set(10, 10, 0, 1) }, false},
		"free":                            {func(v volume) { v.set(11, 0, 0, 1) }, false},
		"bad":                             {func(v volume) { v.set(11, 0xFF7, 0, 1) }, false},
		"behind the end":                  {func(v volume) { v.set(11, clusters+2, 0, 1) }, false},
		"begins at 1":                     {func(v volume) { entry(v[rootAt:], 0, "FILE       ", 0, 1, 1500) }, false},
		"no cluster":                      {func(v volume) { entry(v[rootAt:], 0, "FILE       ", 0, 0, 1500) }, false},
		"goes on behind the size":         {func(v volume) { v.link(10, 11, 12, 13, 14, 15, 16, 17) }, true},
		"first FAT free, the second good": {func(v volume) { v.set(11, 0, 0) }, true},
		"first FAT ends, the second good": {func(v volume) { v.set(10, 0xFFF, 0) }, true},
		"second FAT free":                 {func(v volume) { v.set(11, 0, 1) }, true},
		"both broken differently":         {func(v volume) { v.set(11, 0, 0); v.set(10, 0, 1) }, false},
	} {
		t.Run(name, func(t *testing.T) {
			v := newVolume()
			entry(v[rootAt:], 0, "FILE       ", 0, 10, 1500)
			v.link(10, 11, 12)
			want := ""
			for c := 10; c <= 12; c++ {
				copy(v.cluster(c), strings.Repeat(fmt.Sprintf("cluster %d\n", c), 60)[:sector])
				want += string(v.cluster(c))
			}
			c.damage(v)
			fs := v.open(t)
			got, err := read(fs, "FILE")
			if c.ok && (err != nil || got != want[:1500]) {
				t.Errorf("%.30q, %v", got, err)
			}
			if !c.ok && !errors.Is(err, filesystem.ErrCorrupt) {
				t.Errorf("%d bytes, %v", len(got), err)
			}
			differ := strings.Contains(name, "FAT") || strings.Contains(name, "both")
			if s := fs.Info().State; s.Clean == differ || (differ && !strings.Contains(s.Reason, "copies of the FAT differ")) {
				t.Errorf("state %+v", s)
			}
		})
	}
}

func TestDirectoriesOfHostileImages(t *testing.T) {
	v := newVolume()
	entry(v[rootAt:], 0, "CYCLE      ", 0x10, 20, 0)
	v.link(20, 21)
	v.set(21, 20, 0, 1)
	entry(v[rootAt:], 1, "ITSELF     ", 0x10, 30, 0)
	v.link(30)
	entry(v.cluster(30), 0, "..         ", 0x10, 0, 0)
	entry(v.cluster(30), 1, "AGAIN      ", 0x10, 30, 0)
	entry(v[rootAt:], 2, "NOCLUSTR   ", 0x10, 0, 0)
	entry(v[rootAt:], 3, "SLASH      ", 0x10, 40, 0)
	v.link(40)
	entry(v.cluster(40), 0, "FIRST      ", 0, 0, 0)
	entry(v.cluster(40), 1, "A/B        ", 0, 0, 0)
	fs := v.open(t)
	fstest.Walk(t, fs, 500)
	list := func(name string) (out []string, err error) {
		ino, err := fs.Lookup(fs.Root(), []byte(name))
		if err != nil {
			t.Fatal(err)
		}
		return out, fs.ReadDir(ino, 0, func(d filesystem.Dirent) bool { out = append(out, string(d.Name)); return true })
	}
	for _, name := range []string{"CYCLE", "NOCLUSTR", "SLASH"} {
		if got, err := list(name); !errors.Is(err, filesystem.ErrCorrupt) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	if got, err := list("ITSELF"); err != nil || len(got) != 1 {
		t.Errorf("%q, %v", got, err)
	}
}

func longEntries(p []byte, slot int, name []uint16, short string) {
	sum := byte(0)
	for i := range 11 {
		sum = sum>>1 | sum<<7
		sum += short[i]
	}
	slots := (len(name) + 12) / 13
	padded := append(append([]uint16(nil), name...), 0)
	for len(padded) < slots*13 {
		padded = append(padded, 0xFFFF)
	}
	for i := range slots {
		e := p[(slot+i)*32:][:32]
		number := slots - i
		e[0], e[11], e[13] = byte(number), 0x0F, sum
		if i == 0 {
			e[0] |= 0x40
		}
		for j := range 13 {
			at := []int{1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30}[j]
			binary.LittleEndian.PutUint16(e[at:], padded[(number-1)*13+j])
		}
	}
	entry(p, slot+slots, short, 0, 0, 0)
}

// Names that neither Linux nor mtools write.
func TestUnusualNames(t *testing.T) {
	v := newVolume()
	root := v[rootAt:]
	longEntries(root, 0, []uint16{'l', 0xD83D, 'x', 0xDE00}, "LX         ") // lone surrogates
	longEntries(root, 2, []uint16{'a', '/', 'b'}, "ASLASHB    ")            // falls back
	longEntries(root, 4, []uint16{'w', 'r', 'o', 'n', 'g'}, "WRONGSUMTXT")  // its checksum is broken
	root[4*32+13]++
	entry(root, 6, "\x05LPHA   \x90\x80 ", 0, 0, 0) // E5 in disguise, code page 437
	entry(root, 7, "LOWER   EXT", 0, 0, 0)
	root[7*32+12] = 0x18
	entry(root, 8, "LOWER2  EXT", 0, 0, 0)
	root[8*32+12] = 0x10
	entry(root, 9, "\xE5GONE    ", 0, 0, 0)
	entry(root, 10, "MY LABEL   ", 0x08, 0, 0)
	entry(root, 12, "BEHIND END ", 0, 0, 0) // slot 11 was never used: the list ends there
	fs := v.open(t)
	want := []string{"l\xed\xa0\xbdx\xed\xb8\x80", "ASLASHB", "WRONGSUM.TXT", "σLPHA.ÉÇ", "lower.ext", "LOWER2.ext"}
	if got := names(t, fs); strings.Join(got, "|") != strings.Join(want, "|") {
		t.Errorf("%q, want %q", got, want)
	}
	if l := fs.Info().Label; l != "MY LABEL" {
		t.Errorf("label %q", l)
	}
	for _, n := range want {
		if _, err := fs.Lookup(fs.Root(), []byte(n)); err != nil {
			t.Error(err)
		}
	}
	if _, err := fs.Lookup(fs.Root(), []byte("lower.EXT")); !errors.Is(err, filesystem.ErrNotExist) {
		t.Errorf("case was folded: %v", err)
	}
}

// FAT12 of 4 KiB sectors has no dirty bit but that of the boot sector; the others have
// flags in the FAT, too.
func TestDirtyVolumesAreLabelled(t *testing.T) {
	for name, c := range map[string]struct {
		image string
		at    int64
		value byte
		says  string
	}{
		"boot sector, FAT12": {"fat12", 0x25, 1, "not unmounted"},
		"boot sector, FAT16": {"fat16", 0x25, 1, "not unmounted"},
		"boot sector, FAT32": {"fat32", 0x41, 1, "not unmounted"},
		"FAT16":              {"fat16", 4*sector + 3, 0x7F, "not unmounted"},
		"FAT16, errors":      {"fat16", 4*sector + 3, 0xBF, "errors of the disk"},
		"FAT32":              {"fat32", 32*sector + 7, 0x07, "not unmounted"},
		"FAT32, errors":      {"fat32", 32*sector + 7, 0x0B, "errors of the disk"},
	} {
		t.Run(name, func(t *testing.T) {
			s := image(t, c.image)
			s.Patch(c.at, []byte{c.value})
			fs, err := fat.Open(s, s.Size())
			if err != nil {
				t.Fatal(err)
			}
			if state := fs.Info().State; state.Clean || !strings.Contains(state.Reason, c.says) || strings.Contains(state.Reason, "differ") {
				t.Errorf("%+v", state)
			}
		})
	}
}

func TestUnknownAndDamagedVolumesAreRefused(t *testing.T) {
	for name, c := range map[string]struct {
		image string
		at    int64
		bytes string
		want  error
	}{
		"version of FAT32":    {"fat32", 42, "\x01\x00", filesystem.ErrUnsupported},
		"sector size":         {"fat16", 11, "\x01\x02", filesystem.ErrCorrupt},
		"cluster size":        {"fat16", 13, "\x03", filesystem.ErrCorrupt},
		"no FAT":              {"fat16", 16, "\x00", filesystem.ErrCorrupt},
		"media":               {"fat16", 21, "\x01", filesystem.ErrCorrupt},
		"larger than volume":  {"fat32", 32, "\xff\xff\xff\x7f", filesystem.ErrCorrupt},
		"FAT larger":          {"fat32", 36, "\xff\xff\xff\x7f", filesystem.ErrCorrupt},
		"root cluster":        {"fat32", 44, "\xff\xff\xff\x0f", filesystem.ErrCorrupt},
		"root cluster is 0":   {"fat32", 44, "\x00\x00\x00\x00", filesystem.ErrCorrupt},
		"active FAT":          {"fat32", 40, "\x85\x00", filesystem.ErrCorrupt},
		"no boot sector":      {"fat16", 0, "\x12\x34", filesystem.ErrUnknown},
		"root without a size": {"fat16", 17, "\x00\x00", filesystem.ErrCorrupt},
	} {
		s := image(t, c.image)
		s.Patch(c.at, []byte(c.bytes))
		if _, err := fat.Open(s, s.Size()); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	s := image(t, "fat16")
	for _, n := range []int64{0, 100, 512, 4096, s.Size() - 1024} {
		r := io.NewSectionReader(s, 0, n)
		if _, err := fat.Open(r, n); !errors.Is(err, filesystem.ErrCorrupt) && !errors.Is(err, filesystem.ErrUnknown) {
			t.Errorf("cut to %d bytes: %v", n, err)
		}
	}
}

// TestNothingIsReadPastErrors: an error of the disk below is one of the call.
func TestErrorsOfTheDiskAreGivenOn(t *testing.T) {
	v := newVolume()
	entry(v[rootAt:], 0, "FILE       ", 0, 10, 512)
	v.link(10)
	broken := errors.New("broken disk")
	fs, err := fat.Open(failing{bytes.NewReader(v), dataAt, broken}, int64(len(v)))
	if err == nil {
		_, err = read(fs, "FILE")
	}
	if !errors.Is(err, broken) {
		t.Errorf("%v", err)
	}
}

// failing fails reads that touch anything from an offset on.
type failing struct {
	r    io.ReaderAt
	from int64
	err  error
}

func (f failing) ReadAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > f.from {
		return 0, f.err
	}
	return f.r.ReadAt(p, off)
}
