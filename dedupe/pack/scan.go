package pack

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/keelblock/keelblock/dedupe"
)

// scanBufferSize is read at a time: it holds the longest record.
const scanBufferSize = 2 << 20

// ReadHeader reads the header of a pack.
func ReadHeader(r io.ReaderAt) (Header, error) {
	b := make([]byte, HeaderSize)
	if n, err := r.ReadAt(b, 0); n < len(b) {
		if err == io.EOF {
			return Header{}, fmt.Errorf("pack of %d bytes: %w", n, dedupe.ErrCorrupt)
		}
		return Header{}, fmt.Errorf("read pack header: %w", err)
	}
	return DecodeHeader(b)
}

// Scan reads the records of a pack of a class, from its first one to the first
// that does not verify by magic, both CRCs, length and class, and returns where that
// is: the pack's valid end. Pads are read over. fn gets each record's entry and its
// payload, which is only valid during the call; an error of fn ends the scan.
//
// Where a half-written pack ends is no error. A record that verifies and is of a
// newer format is dedupe.ErrUnknownFormat: it must not be taken for the end.
func Scan(r io.ReaderAt, size int64, class Class, fn func(e Entry, payload []byte) error) (int64, error) {
	return scan(r, size, class, false, fn)
}

// ScanDamaged is Scan for a pack that was written to its end and whose footer is
// damaged: a record whose header verifies and whose payload does not is passed over,
// since what follows it was written too.
func ScanDamaged(r io.ReaderAt, size int64, class Class, fn func(e Entry, payload []byte) error) (int64, error) {
	return scan(r, size, class, true, fn)
}

func scan(r io.ReaderAt, size int64, class Class, damaged bool, fn func(e Entry, payload []byte) error) (int64, error) {
	w := window{r: r, size: size}
	off := int64(HeaderSize)
	for {
		h, err := w.at(off, RecordHeaderSize)
		if err != nil || h == nil {
			return off, err
		}
		rec, err := DecodeRecord(h)
		if errors.Is(err, dedupe.ErrUnknownFormat) {
			return off, fmt.Errorf("record at %d: %w", off, err)
		}
		if err != nil || !class.Holds(rec.Kind) {
			return off, nil
		}
		b, err := w.at(off, rec.Size())
		if err != nil || b == nil {
			return off, err
		}
		payload := b[RecordHeaderSize:]
		intact := rec.CheckPayload(payload) == nil
		var patches []Patch
		if intact {
			patches, err = patchesOf(&rec, payload)
			intact = err == nil
		}
		if !intact && !damaged {
			return off, nil
		}
		if intact && rec.Kind != KindPad {
			if err := fn(entryOf(&rec, off, patches), payload); err != nil {
				return off, err
			}
		}
		off += rec.Size()
	}
}

// window reads a file front to back in large pieces.
type window struct {
	r    io.ReaderAt
	size int64
	buf  []byte // holds [off, off+len(buf))
	off  int64
}

// at is the n bytes at off, valid until the next call, or nil past the file's end.
func (w *window) at(off, n int64) ([]byte, error) {
	if off+n > w.size {
		return nil, nil
	}
	if off < w.off || off+n > w.off+int64(len(w.buf)) {
		if w.buf == nil {
			w.buf = make([]byte, min(scanBufferSize, w.size))
		}
		w.buf = w.buf[:min(scanBufferSize, w.size-off)]
		w.off = off
		got, err := w.r.ReadAt(w.buf, off)
		if got < len(w.buf) {
			w.buf = w.buf[:got]
			if err != io.EOF {
				return nil, fmt.Errorf("read pack at %d: %w", off, err)
			}
			if int64(got) < n { // cut while it was read
				return nil, nil
			}
		}
	}
	return w.buf[off-w.off:][:n], nil
}

// ReadRecord reads the record of an entry from a pack into buf, whose storage it
// uses when the capacity suffices, and checks magic, lengths, kind and both CRCs. The
// payload is a part of the returned buffer. Bytes past the pack's end, or zeros that
// were only preallocated, are dedupe.ErrNotFound; anything else that is wrong is
// dedupe.ErrCorrupt.
func ReadRecord(r io.ReaderAt, off int64, storedLength uint32, buf []byte) (rec Record, payload, grown []byte, err error) {
	if rec, payload, buf, err = readRecord(r, off, storedLength, buf); err != nil {
		return rec, nil, buf, err
	}
	return rec, payload, buf, rec.CheckPayload(payload)
}

// ReadBundle is ReadRecord of a bundle for a caller who verifies each block that he makes
// of it by its digest: the payload's CRC is not compared. The directory is verified.
func ReadBundle(r io.ReaderAt, off int64, storedLength uint32, buf []byte) (rec Record, bu *Bundle, grown []byte, err error) {
	rec, payload, buf, err := readRecord(r, off, storedLength, buf)
	if err != nil {
		return rec, nil, buf, err
	}
	if uint32(len(payload)) != rec.StoredLength {
		return rec, nil, buf, rec.CheckPayload(payload)
	}
	bu, err = BundleOf(&rec, payload)
	return rec, bu, buf, err
}

// readRecord is ReadRecord without comparing the payload's length and CRC.
func readRecord(r io.ReaderAt, off int64, storedLength uint32, buf []byte) (rec Record, payload, grown []byte, err error) {
	n := RecordHeaderSize + int(storedLength)
	if storedLength > MaxPayloadSize || off < 0 {
		return rec, nil, buf, fmt.Errorf("record of %d bytes at %d: %w", storedLength, off, dedupe.ErrCorrupt)
	}
	if cap(buf) < n {
		buf = make([]byte, n)
	}
	buf = buf[:n]
	if got, err := r.ReadAt(buf, off); got < n {
		return rec, nil, buf, readError(off, err)
	}
	if rec, err = decodeHeader(buf, off); err != nil {
		return rec, nil, buf, err
	}
	return rec, buf[RecordHeaderSize:], buf, nil
}

func readError(off int64, err error) error {
	if err == io.EOF {
		return fmt.Errorf("record at %d passes the pack's end: %w", off, dedupe.ErrNotFound)
	}
	return fmt.Errorf("read record at %d: %w", off, err)
}

func decodeHeader(b []byte, off int64) (Record, error) {
	if [RecordHeaderSize]byte(b) == [RecordHeaderSize]byte{} {
		return Record{}, fmt.Errorf("nothing was written at %d: %w", off, dedupe.ErrNotFound)
	}
	return DecodeRecord(b)
}

// ReadRawRecord is ReadRecord for a caller who expects a payload of len(head)+len(payload)
// bytes, reads its parts to where they shall stand, and verifies them by their digests: the
// payload's CRC is not compared.
func ReadRawRecord(f *os.File, off int64, head, payload []byte) (Record, error) {
	if off < 0 {
		return Record{}, fmt.Errorf("record at %d: %w", off, dedupe.ErrCorrupt)
	}
	var header [RecordHeaderSize]byte
	if err := readParts(f, off, header[:], head, payload); err != nil {
		return Record{}, err
	}
	return decodeHeader(header[:], off)
}

// ReadHead reads the header of a record and the first n bytes of its payload, at most
// len(buf) together, for a caller who verifies those by their digest: the payload's CRC is
// not compared. record is the two, in buf's storage.
func ReadHead(f *os.File, off int64, n int, buf []byte) (rec Record, record []byte, err error) {
	if off < 0 || RecordHeaderSize+n > len(buf) {
		return rec, nil, fmt.Errorf("record at %d with %d bytes before its content: %w", off, n, dedupe.ErrCorrupt)
	}
	buf = buf[:RecordHeaderSize+n]
	if got, err := f.ReadAt(buf, off); got < len(buf) {
		return rec, nil, readError(off, err)
	}
	rec, err = decodeHeader(buf, off)
	return rec, buf, err
}

// readParts fills the parts, one after the other, from off on.
func readParts(f *os.File, off int64, parts ...[]byte) error {
	want := 0
	for _, p := range parts {
		want += len(p)
	}
	n, err := unix.Preadv(int(f.Fd()), parts, off)
	runtime.KeepAlive(f)
	if err == nil && n == want {
		return nil
	}
	at := off // interrupted, or the end: one after the other
	for _, p := range parts {
		if n, err := f.ReadAt(p, at); n < len(p) {
			return readError(off, err)
		}
		at += int64(len(p))
	}
	return nil
}
