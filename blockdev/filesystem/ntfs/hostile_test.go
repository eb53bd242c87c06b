package ntfs_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf16"

	"golang.org/x/sys/unix"

	"github.com/keelblock/keelblock/blockdev/filesystem"
	"github.com/keelblock/keelblock/blockdev/filesystem/fstest"
	"github.com/keelblock/keelblock/blockdev/filesystem/ntfs"
)

func image(t testing.TB, name string) *fstest.Sparse {
	t.Helper()
	return fstest.LoadSparse(t, "testdata/"+name+".img.gz")
}

func mustOpen(t *testing.T, s *fstest.Sparse) *ntfs.FS {
	t.Helper()
	fs, err := ntfs.Open(s, s.Size())
	if err != nil {
		t.Fatal(err)
	}
	return fs
}

func lookup(t testing.TB, fs filesystem.FS, path string) filesystem.Inode {
	t.Helper()
	ino := fs.Root()
	for name := range strings.SplitSeq(path, "/") {
		var err error
		if ino, err = fs.Lookup(ino, []byte(name)); err != nil {
			t.Fatal(err)
		}
	}
	return ino
}

// TestKeptImagesConform: what ntfs-3g showed when the images were made.
func TestKeptImagesConform(t *testing.T) {
	for _, name := range kept {
		t.Run(name, func(t *testing.T) {
			fs := mustOpen(t, image(t, name))
			fstest.Golden(t, sizeless{fs}, "testdata/"+name+".manifest.gz", ignored)
			fstest.Cookies(t, fs)
			fstest.Reads(t, fs, 800)
		})
	}
}

// sizeless shows directories without a size, as the kept manifests do.
type sizeless struct{ filesystem.FS }

func (s sizeless) Getattr(ino filesystem.Inode) (filesystem.Attr, error) {
	a, err := s.FS.Getattr(ino)
	if a.Type == filesystem.TypeDir {
		a.Size = 0
	}
	return a, err
}

func TestDamagedImagesAreSurvived(t *testing.T) {
	for _, name := range kept {
		t.Run(name, func(t *testing.T) { fstest.Survive(t, image(t, name), open, 60) })
	}
}

// FuzzOpenAndWalk patches an image of testdata and calls everything. The input is the
// number of the image and then patches (fstest.Sparse.PatchFrom).
func FuzzOpenAndWalk(f *testing.F) {
	var images []*fstest.Sparse
	for i, name := range kept {
		images = append(images, image(f, name))
		f.Add([]byte{byte(i)})
		for _, seed := range images[i].Seeds(40) {
			f.Add(append([]byte{byte(i)}, seed...))
		}
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) == 0 || len(in) > 4096 {
			return
		}
		s := images[int(in[0])%len(images)].Clone()
		s.PatchFrom(in[1:])
		if fs, err := open(s, s.Size()); err == nil {
			fstest.Walk(t, fs, 3000)
		}
	})
}

// Places in the format that the tests patch.
const (
	kindStandard   = 0x10
	kindVolumeInfo = 0x70
	kindData       = 0x80
	kindIndexRoot  = 0x90
	logFile        = 2
	volume         = 3
	recordSize     = 1024
)

// A volume that is not clean says why.
func TestStatesAreLabelled(t *testing.T) {
	restart := func(inUse, flags uint16, lsn uint64) []byte {
		le := binary.LittleEndian
		p := make([]byte, 4096)
		copy(p, "RSTR")
		le.PutUint16(p[4:], 30)
		le.PutUint16(p[6:], 9)
		le.PutUint16(p[24:], 48)
		le.PutUint64(p[48:], lsn)
		le.PutUint16(p[48+12:], inUse)
		le.PutUint16(p[48+14:], flags)
		for i := range 8 { // the update sequence is 0 everywhere
			le.PutUint16(p[i*512+510:], 0)
		}
		return p
	}
	log := func(pages ...[]byte) func(*fstest.Sparse, *ntfs.FS) {
		return func(s *fstest.Sparse, fs *ntfs.FS) {
			for i, p := range pages {
				s.Patch(ntfs.PlaceForTest(fs, logFile, int64(i)*4096), p)
			}
		}
	}
	const client, none, clean = 0, 0xFFFF, 2
	torn := restart(client, 0, 99)
	torn[511] = 1
	for name, c := range map[string]struct {
		change func(*fstest.Sparse, *ntfs.FS)
		says   string // "": clean
	}{
		"as made":             {func(*fstest.Sparse, *ntfs.FS) {}, ""},
		"log in use":          {log(restart(client, 0, 5), restart(client, 0, 4)), "has not been replayed"},
		"log closed":          {log(restart(none, 0, 5), restart(client, 0, 4)), ""},
		"log says clean":      {log(restart(client, clean, 5), restart(client, 0, 4)), ""},
		"the second is newer": {log(restart(none, 0, 5), restart(client, 0, 6)), "has not been replayed"},
		"a torn page":         {log(torn, restart(none, 0, 4)), ""},
		"both torn":           {log(torn, torn), "has not been replayed"},
		"garbage":             {log([]byte("garbage")), "has not been replayed"},
		"volume flag": {func(s *fstest.Sparse, fs *ntfs.FS) {
			at, length := ntfs.AttrPlaceForTest(fs, volume, kindVolumeInfo)
			s.Patch(at+length-8+2, []byte{1}) // flags at 10 of a value of 12 bytes, filled up to 16
		}, "chkdsk"},
	} {
		t.Run(name, func(t *testing.T) {
			s := image(t, "ntfs-4k")
			c.change(s, mustOpen(t, s))
			state := mustOpen(t, s).Info().State
			if state.Clean != (c.says == "") || !strings.Contains(state.Reason, c.says) {
				t.Errorf("%+v", state)
			}
		})
	}
}

// What cannot be read is an error that names why; its name and attributes can be seen.
func TestUnreadableFilesAreNamed(t *testing.T) {
	for name, c := range map[string]struct {
		file  string
		flags uint16 // of $DATA
		says  string
	}{
		"EFS":                 {"files/size-100000", 0x4000, "EFS"},
		"EFS, in the record":  {"files/size-500", 0x4000, "EFS"},
		"unknown compression": {"files/size-100000", 0x0002, "unknown way 0x2"},
	} {
		t.Run(name, func(t *testing.T) {
			s := image(t, "ntfs-4k")
			fs := mustOpen(t, s)
			ino := lookup(t, fs, c.file)
			at, _ := ntfs.AttrPlaceForTest(fs, ino, kindData)
			s.Patch(at+12, binary.LittleEndian.AppendUint16(nil, c.flags))
			fs = mustOpen(t, s)
			if a, err := fs.Getattr(ino); err != nil || a.Size == 0 {
				t.Errorf("%+v, %v", a, err)
			}
			if _, err := fs.ReadAt(ino, make([]byte, 10), 0); !errors.Is(err, filesystem.ErrUnsupported) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v", err)
			}
		})
	}
}

// A torn record or index block, and an entry of a file that is gone, are errors and not
// older data.
func TestDamageIsAnError(t *testing.T) {
	for name, c := range map[string]struct {
		change func(s *fstest.Sparse, fs *ntfs.FS, ino filesystem.Inode)
	}{
		"torn record": {func(s *fstest.Sparse, fs *ntfs.FS, ino filesystem.Inode) {
			s.Patch(ntfs.PlaceForTest(fs, 0, int64(ino)*recordSize+510), []byte{0xAA, 0xAA})
		}},
		"record used anew": {func(s *fstest.Sparse, fs *ntfs.FS, ino filesystem.Inode) {
			s.Patch(ntfs.PlaceForTest(fs, 0, int64(ino)*recordSize+16), []byte{77})
		}},
		"record not in use": {func(s *fstest.Sparse, fs *ntfs.FS, ino filesystem.Inode) {
			s.Patch(ntfs.PlaceForTest(fs, 0, int64(ino)*recordSize+22), []byte{0})
		}},
		"attribute too long": {func(s *fstest.Sparse, fs *ntfs.FS, ino filesystem.Inode) {
			at, _ := ntfs.AttrPlaceForTest(fs, ino, kindStandard)
			s.Patch(at+4, []byte{0xF8, 0xFF})
		}},
	} {
		t.Run(name, func(t *testing.T) {
			s := image(t, "ntfs-4k")
			fs := mustOpen(t, s)
			dir := lookup(t, fs, "files")
			c.change(s, fs, lookup(t, fs, "files/size-4097"))
			fs = mustOpen(t, s)
			listed := false
			err := fs.ReadDir(dir, 0, func(d filesystem.Dirent) bool {
				if string(d.Name) == "size-4097" {
					listed = true
					if _, err := fs.Getattr(d.Inode); !errors.Is(err, filesystem.ErrCorrupt) && !errors.Is(err, filesystem.ErrNotExist) {
						t.Errorf("Getattr: %v", err)
					}
					if _, err := fs.ReadAt(d.Inode, make([]byte, 5), 0); err == nil {
						t.Error("it can be read")
					}
				}
				return true
			})
			if err != nil || !listed {
				t.Errorf("listed %v, %v", listed, err)
			}
		})
	}
	s := image(t, "ntfs-4k")
	many := lookup(t, mustOpen(t, s), "many")
	magic := []byte("INDX")
	p := make([]byte, s.Size())
	if _, err := s.ReadAt(p, 0); err != nil && err != io.EOF {
		t.Fatal(err)
	}
	for at := bytes.Index(p, magic); at >= 0 && at < len(p); { // tear every index block
		s.Patch(int64(at)+510, []byte{0xAA, 0xAA})
		next := bytes.Index(p[at+4:], magic)
		if next < 0 {
			break
		}
		at += 4 + next
	}
	fs := mustOpen(t, s)
	if err := fs.ReadDir(many, 0, func(filesystem.Dirent) bool { return true }); !errors.Is(err, filesystem.ErrCorrupt) {
		t.Errorf("torn index blocks: %v", err)
	}
}

func TestUnknownAndDamagedVolumesAreRefused(t *testing.T) {
	for name, c := range map[string]struct {
		at    int64
		bytes string
		want  error
	}{
		"other name":         {3, "NTFZ", filesystem.ErrUnknown},
		"sector size":        {11, "\x01\x02", filesystem.ErrCorrupt},
		"cluster size":       {13, "\x03", filesystem.ErrCorrupt},
		"larger than volume": {40, "\xff\xff\xff\x7f", filesystem.ErrCorrupt},
		"record size":        {64, "\x80", filesystem.ErrCorrupt},
		"index size":         {68, "\x00", filesystem.ErrCorrupt},
		"MFT outside":        {48, "\xff\xff\xff\xff", filesystem.ErrCorrupt},
	} {
		s := image(t, "ntfs-4k")
		s.Patch(c.at, []byte(c.bytes))
		if _, err := ntfs.Open(s, s.Size()); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	s := image(t, "ntfs-4k")
	at, length := ntfs.AttrPlaceForTest(mustOpen(t, s), volume, kindVolumeInfo)
	s.Patch(at+length-8, []byte{4})
	if _, err := ntfs.Open(s, s.Size()); !errors.Is(err, filesystem.ErrUnsupported) || !strings.Contains(err.Error(), "version 4.1") {
		t.Errorf("version: %v", err)
	}
	s = image(t, "ntfs-4k")
	for _, n := range []int64{0, 100, 512, 100000, s.Size() / 2} {
		if _, err := ntfs.Open(io.NewSectionReader(s, 0, n), n); !errors.Is(err, filesystem.ErrCorrupt) && !errors.Is(err, filesystem.ErrUnknown) {
			t.Errorf("cut to %d bytes: %v", n, err)
		}
	}
	// The mirror stands in for the first records.
	s = image(t, "ntfs-4k")
	s.Patch(ntfs.PlaceForTest(mustOpen(t, s), 0, 0), make([]byte, 100))
	if fs, err := ntfs.Open(s, s.Size()); err != nil {
		t.Errorf("damaged first record: %v", err)
	} else if _, err := fstest.File(fs, "names", "README.TXT"); err != nil {
		t.Error(err)
	}
}

// reparseData is a reparse point of Microsoft's.
func reparseData(tag uint32, data []byte) []byte {
	le := binary.LittleEndian
	p := le.AppendUint32(nil, tag)
	p = le.AppendUint16(p, uint16(len(data)))
	return append(le.AppendUint16(p, 0), data...)
}

// linkData is that of a symbolic link (flags -1: of a junction).
func linkData(substitute, shown string, flags int) []byte {
	le := binary.LittleEndian
	text := func(s string) (p []byte) {
		for _, u := range utf16.Encode([]rune(s)) {
			p = le.AppendUint16(p, u)
		}
		return p
	}
	a, b := text(substitute), text(shown)
	p := le.AppendUint16(nil, 0)
	p = le.AppendUint16(p, uint16(len(a)))
	p = le.AppendUint16(p, uint16(len(a)))
	p = le.AppendUint16(p, uint16(len(b)))
	if flags >= 0 {
		p = le.AppendUint32(p, uint32(flags))
	}
	return append(append(p, a...), b...)
}

// TestReparsePoints: those that Windows makes, put there through ntfs-3g.
func TestReparsePoints(t *testing.T) {
	path := fstest.Image(t, 16<<20, "mkntfs", "-F", "-q")
	dir, unmount := mount(t, path)
	cases := map[string]struct {
		data   []byte
		dir    bool
		target string // of a link
		says   string // of what cannot be read
		typ    filesystem.Type
	}{
		"relative":   {data: linkData(`..\a b\c`, "", 1), target: "../a b/c", typ: filesystem.TypeSymlink},
		"absolute":   {data: linkData(`\??\C:\Users\x`, `C:\Users\x`, 0), target: `C:\Users\x`, typ: filesystem.TypeSymlink},
		"directory":  {data: linkData(`other`, `other`, 1), dir: true, target: "other", typ: filesystem.TypeSymlink},
		"junction":   {data: linkData(`\??\C:\Users`, "", -1), dir: true, target: `C:\Users`, typ: filesystem.TypeSymlink},
		"wsl":        {data: append([]byte{2, 0, 0, 0}, "/mnt/c"...), target: "/mnt/c", typ: filesystem.TypeSymlink},
		"wof":        {data: make([]byte, 16), says: "CompactOS", typ: filesystem.TypeRegular},
		"dedup":      {data: make([]byte, 16), says: "deduplicated", typ: filesystem.TypeRegular},
		"unheard of": {data: make([]byte, 16), says: "0x80007777", typ: filesystem.TypeRegular},
		"cloud":      {data: make([]byte, 16), typ: filesystem.TypeRegular},
	}
	tags := map[string]uint32{
		"junction": 0xA0000003, "wsl": 0xA000001D, "wof": 0x80000017, "dedup": 0x80000013, "unheard of": 0x80007777, "cloud": 0x9000601A,
	}
	for name, c := range cases {
		p := filepath.Join(dir, name)
		var err error
		if c.dir {
			err = os.Mkdir(p, 0o777)
		} else if strings.Contains("wof dedup unheard of cloud", name) {
			err = os.WriteFile(p, []byte("zeros that are not the contents"), 0o666)
		} else {
			err = os.WriteFile(p, nil, 0o666)
		}
		if err != nil {
			t.Fatal(err)
		}
		tag := uint32(0xA000000C)
		if v, ok := tags[name]; ok {
			tag = v
		}
		if err := unix.Setxattr(p, "system.ntfs_reparse_data", reparseData(tag, c.data), 0); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "hiberfil.sys"), []byte("hibr and more"), 0o666); err != nil {
		t.Fatal(err)
	}
	unmount()
	f, size := fstest.Open(t, path)
	fs, err := ntfs.Open(f, size)
	if err != nil {
		t.Fatal(err)
	}
	if state := fs.Info().State; state.Clean || !strings.Contains(state.Reason, "hibernated") {
		t.Errorf("%+v", state)
	}
	for name, c := range cases {
		ino := lookup(t, fs, name)
		a, err := fs.Getattr(ino)
		if err != nil || a.Type != c.typ {
			t.Errorf("%s: type %d, %v", name, a.Type, err)
			continue
		}
		if c.typ == filesystem.TypeSymlink {
			if target, err := fs.Readlink(ino); err != nil || string(target) != c.target || a.Size != int64(len(target)) {
				t.Errorf("%s: %q of %d, %v", name, target, a.Size, err)
			}
			continue
		}
		_, err = fs.ReadAt(ino, make([]byte, 10), 0)
		if c.says == "" && err != nil || c.says != "" && (!errors.Is(err, filesystem.ErrUnsupported) || !strings.Contains(err.Error(), c.says)) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
