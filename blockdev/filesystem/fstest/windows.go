package fstest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// WindowsContent says how much FillWindows makes. The zero value fits into 3 MiB.
type WindowsContent struct {
	Entries   int // of the large directory; 120
	GrowSteps int // of the two files that grow in turn; 12
	BigBytes  int // of the largest file; 300 KiB
}

// FillWindows fills the mounted file system at dir with what the formats of Windows
// have: FAT, exFAT and NTFS. Contents are text that tells file and offset, so they
// compress well and nothing reads like anything else.
func FillWindows(dir string, c WindowsContent) error {
	if c.Entries == 0 {
		c.Entries = 120
	}
	if c.GrowSteps == 0 {
		c.GrowSteps = 12
	}
	if c.BigBytes == 0 {
		c.BigBytes = 300 << 10
	}
	w := &windowsFiller{dir: dir}
	w.names()
	w.directories(c.Entries)
	w.files(c)
	w.times()
	return w.err
}

// windowsFiller makes contents until the first error.
type windowsFiller struct {
	dir string
	err error
}

func (w *windowsFiller) do(err error) {
	if w.err == nil {
		w.err = err
	}
}

func (w *windowsFiller) mkdir(name string) {
	w.do(os.MkdirAll(filepath.Join(w.dir, name), 0o777))
}

// numberedText is n bytes of 32-byte lines, each with the offset at which it stands.
func numberedText(name string, off, n int) []byte {
	var b strings.Builder
	for at := off / 32 * 32; b.Len() < n+32; at += 32 {
		fmt.Fprintf(&b, "%-19.19s%12d\n", name, at)
	}
	return []byte(b.String()[off%32:][:n])
}

func (w *windowsFiller) write(name string, size int) {
	if w.err == nil {
		w.do(os.WriteFile(w.dir+"/"+name, numberedText(filepath.Base(name), 0, size), 0o666))
	}
}

// names are those that Windows allows, in all forms in which FAT stores them.
func (w *windowsFiller) names() {
	w.mkdir("names")
	for _, name := range []string{
		"README.TXT", "lower.txt", "lower.EXT", "UPPER.ext", "Mixed.Txt", "NOEXT", "noext2", "A", "b", "12345678.123",
		"123456789.123", "12345678.1234", "a.b.c", "two words.txt", "~tilde~1.tmp", "plus+,;=[].x", ".hidden", "..x", "dots...x",
		" leading", "#$%&'()-@^_`{}.!", "Grüße", "ÉTÉ.TXT", "éclair.txt", "ÄÖÜ", "ñandú.ini", "Γ.ΣΦ", "½.¼", "файл", "文件", "ファイル", "ملف", "😀.png", "cafe\u0301", "caf\u00e9",
		strings.Repeat("n", 255), strings.Repeat("ü", 255), strings.Repeat("文", 255), strings.Repeat("😀", 127),
		strings.Repeat("k", 12), strings.Repeat("k", 13), strings.Repeat("k", 14), strings.Repeat("k", 26), strings.Repeat("k", 27),
		"longer name number one.text", "longer name number two.text", "Longer Name Number 3.text",
	} {
		w.write("names/"+name, 40)
	}
}

func (w *windowsFiller) directories(entries int) {
	for _, name := range []string{"empty", "many", "half", "UPPER/lower/Mixed Case"} {
		w.mkdir(name)
	}
	for i := range entries {
		w.write(fmt.Sprintf("many/entry with a number %06d", i), i%3)
		w.write(fmt.Sprintf("half/E%d.DAT", i), 1)
	}
	for i := 0; i < entries; i += 2 {
		w.do(os.Remove(filepath.Join(w.dir, fmt.Sprintf("half/E%d.DAT", i))))
	}
	w.write("half/takes the place of some that were deleted", 10)
	deep := "deep"
	for i := range 25 {
		deep += fmt.Sprintf("/d%d", i)
		w.mkdir(deep)
	}
	w.write(deep+"/bottom", 100)
	for i := range 5 {
		w.mkdir(fmt.Sprintf("subdirs/%d", i))
	}
}

func (w *windowsFiller) files(c WindowsContent) {
	w.mkdir("files")
	for _, size := range []int{0, 1, 500, 511, 512, 513, 700, 1023, 1024, 1025, 4095, 4096, 4097, 65536, 100000} {
		w.write(fmt.Sprint("files/size-", size), size)
	}
	w.write("files/big", c.BigBytes)
	w.grown(c.GrowSteps)
	for i, sizes := range [][2]int{{0, 30000}, {50, 9000}, {20000, 5000}, {30, 10}} { // truncated up and down
		name := fmt.Sprint("files/truncated-", i)
		w.write(name, sizes[0])
		w.do(os.Truncate(filepath.Join(w.dir, name), int64(sizes[1])))
	}
	w.write("files/read-only", 10)
	w.do(os.Chmod(filepath.Join(w.dir, "files/read-only"), 0o444))
	w.write("files/deleted", 5000)
	w.do(os.Remove(filepath.Join(w.dir, "files/deleted")))
	w.write("files/behind the deleted", 20000)
}

// grown makes two files whose parts lie in turn.
func (w *windowsFiller) grown(steps int) {
	const part = 5000
	for i := range steps {
		for _, name := range []string{"grown-a", "grown-b"} {
			if w.err == nil {
				w.do(appendSynced(filepath.Join(w.dir, "files", name), numberedText(name, i*part, part)))
			}
		}
	}
}

func appendSynced(path string, p []byte) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o666)
	if err != nil {
		return err
	}
	defer f.Close() // Sync has told
	if _, err := f.Write(p); err != nil {
		return err
	}
	return f.Sync()
}

// times are within what FAT can store: 1980 to 2107, two seconds.
func (w *windowsFiller) times() {
	w.mkdir("times")
	for i, at := range []time.Time{
		time.Date(1980, 1, 1, 0, 0, 2, 0, time.UTC),
		time.Date(2000, 2, 29, 23, 59, 58, 0, time.UTC),
		time.Date(2026, 7, 4, 12, 30, 31, 570e6, time.UTC),
		time.Date(2038, 1, 19, 3, 14, 8, 0, time.UTC),
		time.Date(2100, 3, 1, 0, 0, 0, 0, time.UTC),
		time.Date(2107, 12, 31, 23, 59, 58, 0, time.UTC),
	} {
		name := fmt.Sprint("times/", i)
		w.write(name, 1)
		mtime, err := unix.TimeToTimespec(at)
		w.do(err)
		atime, err := unix.TimeToTimespec(at.Add(-72 * time.Hour))
		w.do(err)
		if i == 0 {
			atime = mtime
		}
		if w.err == nil {
			w.do(unix.UtimesNanoAt(unix.AT_FDCWD, filepath.Join(w.dir, name), []unix.Timespec{atime, mtime}, 0))
		}
	}
}
