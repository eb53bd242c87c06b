package cbt

import (
	"crypto/rand"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Format of the intent file; the table is in FORMAT.md.
const (
	intentMagic  = "KBCBTINT"
	sectorMagic  = "KBIS"
	regionShift  = 24 // a region is 16 MiB
	regionBytes  = 1 << regionShift
	intentSlot   = 4096 // distance of the two header slots
	intentBody   = 2 * intentSlot
	intentSector = 512
	// sectorRegions is how many regions one sector speaks for: 480 bytes of bits,
	// 60 GiB of disk.
	sectorRegions = 480 * 8
	sectorWords   = sectorRegions / 64
)

// intentIO is the open file, as far as a test must be able to stand in for it.
type intentIO interface {
	io.ReaderAt
	io.WriterAt
	// Sync makes what was written durable, and the length of the file.
	Sync() error
	io.Closer
}

// dataFile is a file that syncs by fdatasync. The intent file is written in place, so
// that nothing but its data changes, unless the disk grows.
type dataFile struct{ *os.File }

func (f dataFile) Sync() error {
	for {
		if err := unix.Fdatasync(int(f.Fd())); err != unix.EINTR {
			return err
		}
	}
}

// regionsOf is the number of regions of a disk.
func regionsOf(size int64) int64 { return (size + regionBytes - 1) >> regionShift }

// sectorsOf is the number of sectors that a disk's regions take, at least one.
func sectorsOf(size int64) int64 {
	return max((regionsOf(size)+sectorRegions-1)/sectorRegions, 1)
}

// intentImage is an intent file as it was read: every sector of it is good.
type intentImage struct {
	h    header
	io   intentIO
	bits []uint64 // sectorWords for each sector
}

// sectors is how many sectors the file has.
func (m *intentImage) sectors() int64 { return int64(len(m.bits)) / sectorWords }

// trusted reports whether h says that everything outside of the active regions
// equals the base.
func (h *header) trusted() bool {
	return h.state == TrackingEnabled || h.flags&flagNarrow != 0
}

// fits reports whether a disk of this size can be the one that h is about: a resize
// may have been under way.
func (h *header) fits(size int64) bool {
	return size == h.sizeBytes || h.resizeTo != 0 && size == h.resizeTo
}

// encodeSector fills buf[:intentSector] with sector i. words are its sectorWords.
func encodeSector(buf []byte, i int64, id uint64, words []uint64) {
	b := buf[:intentSector]
	clear(b)
	copy(b, sectorMagic)
	littleEndian.PutUint32(b[4:], uint32(i))
	littleEndian.PutUint64(b[8:], id)
	for k, w := range words[:sectorWords] {
		littleEndian.PutUint64(b[24+8*k:], w)
	}
	littleEndian.PutUint32(b[508:], crc32.Checksum(b[:508], castagnoli))
}

// decodeSector reads sector i of the file with this id into words.
func decodeSector(b []byte, i int64, id uint64, words []uint64) error {
	switch {
	case string(b[:4]) != sectorMagic, crc32.Checksum(b[:508], castagnoli) != littleEndian.Uint32(b[508:]):
		return fmt.Errorf("sector %d is damaged", i)
	case littleEndian.Uint32(b[4:]) != uint32(i), littleEndian.Uint64(b[8:]) != id:
		return fmt.Errorf("sector %d is that of another file", i)
	}
	for k := range words[:sectorWords] {
		words[k] = littleEndian.Uint64(b[24+8*k:])
	}
	return nil
}

// openIntents reads an intent file. Any damage is an error: nothing of the file may
// then be believed. A missing file is fs.ErrNotExist.
func openIntents(path string, wrap func(*os.File) intentIO) (_ *intentImage, err error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	m := &intentImage{io: wrap(f)}
	defer func() {
		if err != nil {
			m.io.Close()
		}
	}()
	if m.h, err = readIntentHeader(m.io); err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	// A resize that was under way may have made the file longer than it had to be.
	n := sectorsOf(max(m.h.sizeBytes, m.h.resizeTo))
	if st.Size() < intentBody+n*intentSector {
		return nil, fmt.Errorf("%d bytes are too short for %d sectors", st.Size(), n)
	}
	m.bits = make([]uint64, n*sectorWords)
	r := io.NewSectionReader(m.io, intentBody, n*intentSector)
	var b [intentSector]byte
	for i := range n {
		if _, err := io.ReadFull(r, b[:]); err != nil {
			return nil, fmt.Errorf("read sector %d: %w", i, err)
		}
		if err := decodeSector(b[:], i, m.h.intentID, m.bits[i*sectorWords:]); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// readIntentHeader returns the newer header. A slot that was written and is damaged is
// an error, whatever the other one says: it may have been the newer one, and have said
// that the file is not to be trusted. A crash does not damage a slot, since a sector
// is written whole or not at all.
func readIntentHeader(f io.ReaderAt) (h header, err error) {
	var b [intentSlot + headerBytes]byte
	if _, err := f.ReadAt(b[:], 0); err != nil {
		return h, fmt.Errorf("read header: %w", err)
	}
	h, err = decodeHeader(intentMagic, b[:])
	other, errB := decodeHeader(intentMagic, b[intentSlot:])
	for _, e := range []error{err, errB} {
		if e != nil && !errors.Is(e, errNotWritten) {
			return h, e
		}
	}
	switch {
	case err != nil && errB != nil:
		return h, err
	case err != nil || errB == nil && other.sequence > h.sequence:
		h = other
	}
	return h, nil
}

// createIntents writes a whole intent file in place of whatever path holds. All of it
// is durable and allocated when it returns, so that nothing written in place later
// needs space (on a file system that writes in place).
func createIntents(path string, wrap func(*os.File) intentIO, h header, bits []uint64) (_ *intentImage, err error) {
	tmp := path + ".new"
	f, err := os.OpenFile(tmp, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	m := &intentImage{h: h, io: wrap(f), bits: bits}
	defer func() {
		if err != nil {
			m.io.Close()
			os.Remove(tmp)
		}
	}()
	var id [8]byte
	rand.Read(id[:]) // never fails
	m.h.intentID = littleEndian.Uint64(id[:])
	m.h.sequence = 1
	page := make([]byte, intentBody)
	m.h.encode(intentMagic, page[m.h.sequence%2*intentSlot:])
	if _, err := m.io.WriteAt(page, 0); err != nil {
		return nil, err
	}
	if err := m.write(0, m.sectors()-1); err != nil {
		return nil, err
	}
	if err := errors.Join(m.io.Sync(), os.Rename(tmp, path), syncDir(path)); err != nil {
		return nil, err
	}
	return m, nil
}

// write writes the sectors first..last, not yet durable.
func (m *intentImage) write(first, last int64) error {
	const most = 512 // sectors of one call
	buf := make([]byte, 0, min(last-first+1, most)*intentSector)
	for i := first; i <= last; {
		buf = buf[:0]
		at := i
		for ; i <= last && i < at+most; i++ {
			buf = buf[:len(buf)+intentSector]
			encodeSector(buf[len(buf)-intentSector:], i, m.h.intentID, m.bits[i*sectorWords:])
		}
		if _, err := m.io.WriteAt(buf, intentBody+at*intentSector); err != nil {
			return err
		}
	}
	return nil
}

// writeHeader makes h the header of the file, durably. It goes to the slot that does
// not hold the newest one.
func (m *intentImage) writeHeader(h header) error {
	h.sequence, h.intentID = m.h.sequence+1, m.h.intentID
	var b [headerBytes]byte
	h.encode(intentMagic, b[:])
	if _, err := m.io.WriteAt(b[:], int64(h.sequence%2)*intentSlot); err != nil {
		return err
	}
	if err := m.io.Sync(); err != nil {
		return err
	}
	m.h = h
	return nil
}
