package fstest

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"testing"
)

// sparsePage is the unit in which a Sparse is kept and damaged, in bytes.
const sparsePage = 1024

// Sparse is an image in memory of which only the pages that are not all zero are kept.
// Methods that change it are not for use by several goroutines.
type Sparse struct {
	size  int64
	pages map[int64][]byte // by offset / sparsePage; shared with clones, not changed
	used  []int64          // offsets of the pages, in order
}

// LoadSparse reads an image that was compressed by gzip.
func LoadSparse(t testing.TB, path string) *Sparse {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close() // it was only read
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	return ReadSparse(t, z)
}

// ReadSparse reads an image to its end.
func ReadSparse(t testing.TB, r io.Reader) *Sparse {
	t.Helper()
	s := &Sparse{pages: make(map[int64][]byte)}
	zero, p := make([]byte, sparsePage), make([]byte, sparsePage)
	for {
		clear(p)
		n, err := io.ReadFull(r, p)
		if n > 0 && !bytes.Equal(p, zero) {
			s.pages[s.size/sparsePage] = bytes.Clone(p)
			s.used = append(s.used, s.size)
		}
		s.size += int64(n)
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			return s
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// Size is the image's, in bytes.
func (s *Sparse) Size() int64 { return s.size }

// ReadAt is that of io.ReaderAt.
func (s *Sparse) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off >= s.size {
		return 0, io.EOF
	}
	var atEnd error
	if int64(len(p)) > s.size-off {
		p, atEnd = p[:s.size-off], io.EOF
	}
	for n := 0; n < len(p); {
		at := off + int64(n)
		part := p[n:min(len(p), n+int(sparsePage-at%sparsePage))]
		if page := s.pages[at/sparsePage]; page != nil {
			copy(part, page[at%sparsePage:])
		} else {
			clear(part)
		}
		n += len(part)
	}
	return len(p), atEnd
}

// Clone is an image that can be patched by itself.
func (s *Sparse) Clone() *Sparse {
	pages := make(map[int64][]byte, len(s.pages))
	for k, v := range s.pages {
		pages[k] = v
	}
	return &Sparse{s.size, pages, s.used}
}

// Patch puts p at off; what lies behind the end is left out.
func (s *Sparse) Patch(off int64, p []byte) {
	for len(p) > 0 && off >= 0 && off < s.size {
		page := make([]byte, sparsePage)
		copy(page, s.pages[off/sparsePage])
		n := copy(page[off%sparsePage:], p)
		s.pages[off/sparsePage] = page
		off, p = off+int64(n), p[n:]
	}
}

// Damage changes a few bytes of pages that are used, more often at their front, where
// headers are.
func (s *Sparse) Damage(rnd *rand.Rand) {
	for range 1 + rnd.IntN(8) {
		at := s.used[rnd.IntN(len(s.used))]
		if rnd.IntN(3) == 0 {
			at += rnd.Int64N(64)
		} else {
			at += rnd.Int64N(sparsePage)
		}
		var b [1]byte
		if _, err := s.ReadAt(b[:], at); err != nil {
			continue // behind the end of an image that ends within a page
		}
		switch rnd.IntN(3) {
		case 0:
			b[0] ^= 1 << rnd.IntN(8)
		case 1:
			b[0] = byte(rnd.Uint32())
		case 2:
			b[0] = 0xFF
		}
		s.Patch(at, b[:])
	}
}

// PatchFrom applies patches that a fuzzer made: which used page (2 bytes), where in it
// (2 bytes), how many bytes (1 byte), the bytes. So it works on what is metadata and not
// on zeros.
func (s *Sparse) PatchFrom(in []byte) {
	le := binary.LittleEndian
	for len(in) > 5 {
		at := s.used[int(le.Uint16(in))%len(s.used)] + int64(le.Uint16(in[2:])%sparsePage)
		n := min(int(in[4]), len(in)-5)
		s.Patch(at, in[5:5+n])
		in = in[5+n:]
	}
}

// Seeds are inputs of PatchFrom that change nothing, one for each of up to limit used
// pages, evenly spread, so that a fuzzer knows patches of every page.
func (s *Sparse) Seeds(limit int) [][]byte {
	var out [][]byte
	step := max(1, len(s.used)/limit)
	for i := 0; i < len(s.used); i += step {
		patch := binary.LittleEndian.AppendUint16(nil, uint16(i))
		patch = append(patch, 0, 0, 64)
		out = append(out, slices.Concat(patch, s.pages[s.used[i]/sparsePage][:64]))
	}
	return out
}
