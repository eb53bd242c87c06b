package fstest

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/keelblock/keelblock/blockdev"
	"github.com/keelblock/keelblock/blockdev/filesystem"
)

// Entry is what is known of one name.
type Entry struct {
	Attr   filesystem.Attr
	Target string // of a symbolic link
	// Xattrs are name and value; a value may hold any bytes.
	Xattrs map[string]string
	// Digest is of the contents of a regular file: SHA-256 over the number and the
	// bytes of each aligned block of 64 KiB that is not all zero, in order. Holes
	// need not be read for it.
	Digest [sha256.Size]byte
	// Data are the ranges of a regular file that are not holes.
	Data []blockdev.Extent
}

// Manifest is a tree: path below the root ("" for the root itself, names joined by
// '/', bytes as they are) to Entry.
type Manifest map[string]Entry

// Fields say what Diff leaves out. Type, permissions, owner, size, times of
// modification, link target, device numbers, link count, attributes and contents
// are always compared.
type Fields uint

// The fields that may be left out.
const (
	FieldInode  Fields = 1 << iota // inode number and generation
	FieldBlocks                    // allocated size
	FieldData                      // where the holes are
	FieldAtime
	FieldCtime
	FieldBirth
	FieldDirSize // the size of directories
)

// Diff tells the differences, one line each, in the order of the paths. got and want
// are equal when there are none.
func Diff(want, got Manifest, ignore Fields) []string {
	var out []string
	paths := slices.Sorted(maps.Keys(want))
	for p := range got {
		if _, ok := want[p]; !ok {
			paths = append(paths, p)
		}
	}
	slices.Sort(paths)
	for _, p := range paths {
		w, inWant := want[p]
		g, inGot := got[p]
		switch {
		case !inGot:
			out = append(out, fmt.Sprintf("%q is missing", p))
		case !inWant:
			out = append(out, fmt.Sprintf("%q should not be there", p))
		default:
			for _, d := range diffEntry(w, g, ignore) {
				out = append(out, fmt.Sprintf("%q: %s", p, d))
			}
		}
	}
	return out
}

func diffEntry(w, g Entry, ignore Fields) []string {
	var out []string
	check := func(field Fields, name string, want, got any) {
		if ignore&field == 0 && want != got {
			out = append(out, fmt.Sprintf("%s is %v, want %v", name, got, want))
		}
	}
	a, b := w.Attr, g.Attr
	check(0, "type", a.Type, b.Type)
	check(0, "perm", strconv.FormatUint(uint64(a.Perm), 8), strconv.FormatUint(uint64(b.Perm), 8))
	check(0, "nlink", a.Nlink, b.Nlink)
	check(0, "uid", a.UID, b.UID)
	check(0, "gid", a.GID, b.GID)
	if a.Type != filesystem.TypeDir || ignore&FieldDirSize == 0 {
		check(0, "size", a.Size, b.Size)
	}
	check(0, "rdev major", a.RdevMajor, b.RdevMajor)
	check(0, "rdev minor", a.RdevMinor, b.RdevMinor)
	check(0, "mtime", timeString(a.Mtime), timeString(b.Mtime))
	check(FieldAtime, "atime", timeString(a.Atime), timeString(b.Atime))
	check(FieldCtime, "ctime", timeString(a.Ctime), timeString(b.Ctime))
	check(FieldBirth, "birth", timeString(a.Birth), timeString(b.Birth))
	check(FieldInode, "inode", a.Inode, b.Inode)
	check(FieldBlocks, "blocks", a.Blocks, b.Blocks)
	check(0, "target", strconv.Quote(w.Target), strconv.Quote(g.Target))
	check(0, "digest", w.Digest, g.Digest)
	if ignore&FieldData == 0 && !slices.Equal(w.Data, g.Data) {
		out = append(out, fmt.Sprintf("data is at %s, want %s", extentsString(g.Data), extentsString(w.Data)))
	}
	for _, name := range slices.Sorted(maps.Keys(w.Xattrs)) {
		if v, ok := g.Xattrs[name]; !ok {
			out = append(out, fmt.Sprintf("attribute %q is missing", name))
		} else if v != w.Xattrs[name] {
			out = append(out, fmt.Sprintf("attribute %q is %.80q (%d bytes), want %.80q (%d bytes)",
				name, v, len(v), w.Xattrs[name], len(w.Xattrs[name])))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(g.Xattrs)) {
		if _, ok := w.Xattrs[name]; !ok {
			out = append(out, fmt.Sprintf("attribute %q should not be there", name))
		}
	}
	return out
}

func timeString(t time.Time) string {
	if t.IsZero() {
		return "none"
	}
	return t.UTC().Format(time.RFC3339Nano)
}

func extentsString(e []blockdev.Extent) string {
	if len(e) > 8 {
		return fmt.Sprintf("%v ... (%d)", e[:8], len(e))
	}
	return fmt.Sprint(e)
}

// digestBlock is the unit of Entry.Digest.
const digestBlock = 64 << 10

// digest computes Entry.Digest, reading only what lies in data.
func digest(size int64, data []blockdev.Extent, readAt func(p []byte, off int64) (int, error)) (sum [sha256.Size]byte, err error) {
	h := sha256.New()
	var p, zero []byte
	if len(data) > 0 {
		p = make([]byte, min(size, 16*digestBlock))
		zero = make([]byte, min(size, digestBlock))
	}
	done := int64(0) // everything before is in the sum
	for _, e := range data {
		at := max(done, e.Offset/digestBlock*digestBlock)
		end := min((e.End()+digestBlock-1)/digestBlock*digestBlock, size)
		for at < end {
			q := p[:min(int64(len(p)), end-at)]
			n, err := readAt(q, at)
			if n < len(q) {
				if err == nil || err == io.EOF {
					err = io.ErrUnexpectedEOF
				}
				return sum, fmt.Errorf("read %d bytes at %d: %w", len(q), at, err)
			}
			for i := 0; i < len(q); i += digestBlock {
				b := q[i:min(i+digestBlock, len(q))]
				if bytes.Equal(b, zero[:len(b)]) {
					continue
				}
				var number [8]byte
				binary.LittleEndian.PutUint64(number[:], uint64(at)/digestBlock+uint64(i/digestBlock))
				h.Write(number[:])
				h.Write(b)
			}
			at += int64(len(q))
		}
		done = max(done, at)
	}
	return [sha256.Size]byte(h.Sum(nil)), nil
}

// dataExtents lists the data of a file by its two seeks. noData tells whether an
// error says that there is no more.
func dataExtents(size int64, nextData, nextHole func(off int64) (int64, error), noData func(error) bool) ([]blockdev.Extent, error) {
	var out []blockdev.Extent
	for at := int64(0); at < size; {
		start, err := nextData(at)
		if err != nil && noData(err) {
			break
		}
		if err != nil {
			return nil, err
		}
		end, err := nextHole(start)
		if err != nil {
			return nil, err
		}
		if start < at || end <= start {
			return nil, errors.New("seeks go backwards")
		}
		out = append(out, blockdev.Extent{Offset: start, Length: end - start})
		at = end
	}
	return out, nil
}
