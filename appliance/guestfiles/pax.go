package guestfiles

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/keelblock/keelblock/blockdev"
	"github.com/keelblock/keelblock/blockdev/filesystem"
)

// paxWriter writes the pax interchange format, POSIX.1-2001 "pax - Interchange format".
// archive/tar writes no sparse files and no extended headers of others' making.
type paxWriter struct {
	w   io.Writer
	err error // of a write; nothing is written after it
}

const tarBlock = 512

// paxHeader describes one file of an archive.
type paxHeader struct {
	name     string
	typeflag byte
	attr     filesystem.Attr
	link     string
	xattrs   []xattr
	size     int64 // of the data that follows
	sparse   bool  // the data is that of these ranges of attr.Size bytes
	data     []blockdev.Extent
}

func (w *paxWriter) write(p []byte) error {
	if w.err == nil {
		_, w.err = w.w.Write(p)
	}
	return w.err
}

// pad fills the last block of n bytes of data.
func (w *paxWriter) pad(n int64) error {
	var zeros [tarBlock]byte
	return w.write(zeros[:-n&(tarBlock-1)])
}

// end writes what ends an archive.
func (w *paxWriter) end() error { return w.write(make([]byte, 2*tarBlock)) }

// records are the fields of an extended header.
type records struct{ b strings.Builder }

// add writes "length key=value\n", where the length counts itself.
func (r *records) add(key, value string) {
	rest := len(key) + len(value) + 3 // blank, =, newline
	n := rest + len(strconv.Itoa(rest))
	if n = rest + len(strconv.Itoa(n)); len(strconv.Itoa(n))+rest != n {
		n++
	}
	fmt.Fprintf(&r.b, "%d %s=%s\n", n, key, value)
}

// The largest numbers of the fields of a ustar header.
const (
	maxOctal7  = 1<<21 - 1
	maxOctal11 = 1<<33 - 1
)

// header writes the header of a file, with an extended one before it where the plain
// one cannot say all.
func (w *paxWriter) header(h paxHeader) error {
	var r records
	name := h.name
	var sparseMap string
	if !utf8.ValidString(name) || !utf8.ValidString(h.link) {
		r.add("hdrcharset", "BINARY")
	}
	if h.sparse {
		r.add("GNU.sparse.major", "1")
		r.add("GNU.sparse.minor", "0")
		r.add("GNU.sparse.name", name)
		r.add("GNU.sparse.realsize", strconv.FormatInt(h.attr.Size, 10))
		sparseMap = sparseText(h.data, h.attr.Size)
		name = "GNUSparseFile.0/" + name[strings.LastIndexByte(name, '/')+1:]
	}
	if !fits(name) {
		if !h.sparse {
			r.add("path", name)
		}
		name = ascii(name)
	}
	if !fits(h.link) {
		r.add("linkpath", h.link)
		h.link = ascii(h.link)
	}
	a := h.attr
	size := h.size + int64(len(sparseMap))
	number := func(key string, v, most int64) int64 {
		if v <= most {
			return v
		}
		r.add(key, strconv.FormatInt(v, 10))
		return 0
	}
	uid, gid := number("uid", int64(a.UID), maxOctal7), number("gid", int64(a.GID), maxOctal7)
	plainSize := number("size", size, maxOctal11)
	mtime := a.Mtime.Unix()
	if a.Mtime.IsZero() {
		mtime = 0
	} else if a.Mtime.Nanosecond() != 0 || mtime < 0 || mtime > maxOctal11 {
		r.add("mtime", paxTime(a.Mtime))
		mtime = min(max(mtime, 0), maxOctal11)
	}
	for _, x := range h.xattrs {
		r.add("SCHILY.xattr."+strings.NewReplacer("%", "%25", "=", "%3D").Replace(x.name), string(x.value))
	}
	if ext := r.b.String(); ext != "" {
		w.block("PaxHeaders/"+name, 'x', filesystem.Attr{Perm: 0o644}, 0, 0, int64(len(ext)), mtime, "")
		_ = w.write([]byte(ext))
		_ = w.pad(int64(len(ext)))
	}
	if h.typeflag == '1' {
		plainSize = 0
	}
	w.block(name, h.typeflag, a, uid, gid, plainSize, mtime, h.link)
	return w.write([]byte(sparseMap))
}

// fits says whether a name can stand in a plain header: 100 bytes of ASCII.
func fits(name string) bool { return len(name) <= 100 && name == ascii(name) }

// ascii is the beginning of a name, for the plain header beside an extended one.
func ascii(name string) string {
	b := []byte(name[:min(len(name), 100)])
	for i, c := range b {
		if c >= 0x80 || c == 0 {
			b[i] = '_'
		}
	}
	return string(b)
}

// block writes a ustar header block.
func (w *paxWriter) block(name string, typeflag byte, a filesystem.Attr, uid, gid, size, mtime int64, link string) {
	var b [tarBlock]byte
	octal := func(at, length int, v int64) { copy(b[at:at+length], fmt.Sprintf("%0*o\x00", length-1, v)) }
	copy(b[0:100], name)
	octal(100, 8, int64(a.Perm&0o7777))
	octal(108, 8, uid)
	octal(116, 8, gid)
	octal(124, 12, size)
	octal(136, 12, mtime)
	b[156] = typeflag
	copy(b[157:257], link)
	copy(b[257:], "ustar\x0000")
	if typeflag == '3' || typeflag == '4' {
		octal(329, 8, int64(a.RdevMajor)&maxOctal7)
		octal(337, 8, int64(a.RdevMinor)&maxOctal7)
	}
	copy(b[148:156], "        ")
	sum := int64(0)
	for _, c := range b {
		sum += int64(c)
	}
	copy(b[148:156], fmt.Sprintf("%06o\x00 ", sum))
	_ = w.write(b[:])
}

// paxTime is seconds with a fraction, which has the sign of the whole.
func paxTime(t time.Time) string {
	sec, ns := t.Unix(), int64(t.Nanosecond())
	sign := ""
	if sec < 0 {
		sign = "-"
		if sec = -sec; ns > 0 {
			sec, ns = sec-1, 1e9-ns
		}
	}
	if ns == 0 {
		return fmt.Sprintf("%s%d", sign, sec)
	}
	return strings.TrimRight(fmt.Sprintf("%s%d.%09d", sign, sec, ns), "0")
}

// sparseText is the map of a sparse file, GNU tar manual "PAX Format, Version 1.0": the
// number of ranges and each range's offset and length, one number a line, to a full
// block.
func sparseText(data []blockdev.Extent, size int64) string {
	if n := len(data); n == 0 || data[n-1].End() < size {
		data = append(data[:n:n], blockdev.Extent{Offset: size})
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%d\n", len(data))
	for _, e := range data {
		fmt.Fprintf(&b, "%d\n%d\n", e.Offset, e.Length)
	}
	b.WriteString(strings.Repeat("\x00", -b.Len()&(tarBlock-1)))
	return b.String()
}
