package cbt

import (
	"bufio"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"os"
)

// leafRecord is the length of one leaf in the saved map: its index, its words.
const leafRecord = 8 + leafBytes

// writeSaved writes header and maps to path, first without the clean flag. Only
// when all of it is durable does the header get the flag, as the last thing.
func writeSaved(path string, h header, maps *[2]fineMap) error {
	tmp := path + ".new"
	f, err := os.OpenFile(tmp, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("save map: %w", err)
	}
	defer f.Close() // a second Close on the good path
	defer os.Remove(tmp)
	clean := h.flags & flagClean
	h.flags &^= flagClean
	h.leaves, h.bodySum, err = writeBody(f, maps)
	if err != nil {
		return fmt.Errorf("save map %q: %w", path, err)
	}
	if err := writeSavedHeader(f, &h); err != nil {
		return fmt.Errorf("save map %q: %w", path, err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("save map: %w", err)
	}
	if err := syncDir(path); err != nil {
		return fmt.Errorf("save map %q: %w", path, err)
	}
	if clean != 0 {
		h.flags |= clean
		if err := writeSavedHeader(f, &h); err != nil {
			return fmt.Errorf("save map %q: %w", path, err)
		}
	}
	return f.Close()
}

// writeSavedHeader overwrites the first sector and makes the file durable.
func writeSavedHeader(f *os.File, h *header) error {
	var buf [headerBytes]byte
	h.encode(savedMagic, buf[:])
	if _, err := f.WriteAt(buf[:], 0); err != nil {
		return err
	}
	return f.Sync()
}

func writeBody(f *os.File, maps *[2]fineMap) (leaves uint64, sum uint32, err error) {
	if maps == nil {
		return 0, 0, nil
	}
	if _, err := f.Seek(headerBytes, io.SeekStart); err != nil {
		return 0, 0, err
	}
	crc := crc32.New(castagnoli)
	w := bufio.NewWriterSize(io.MultiWriter(f, crc), 256<<10)
	var rec [leafRecord]byte
	for leaf := range int64(len(maps[0].summary)) << 6 {
		a, b := maps[0].hasLeaf(leaf), maps[1].hasLeaf(leaf)
		if !a && !b {
			continue
		}
		clear(rec[:])
		littleEndian.PutUint64(rec[:], uint64(leaf))
		for k, i := 8, leaf<<leafShift; i < maps[0].endOfLeaf(leaf); i++ {
			littleEndian.PutUint64(rec[k:], maps[0].load(i)|maps[1].load(i))
			k += 8
		}
		if _, err := w.Write(rec[:]); err != nil {
			return 0, 0, err
		}
		leaves++
	}
	err = w.Flush()
	return leaves, crc.Sum32(), err
}

// openSaved reads the header of a saved map. A missing file is fs.ErrNotExist.
func openSaved(path string) (*os.File, header, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, header{}, err
	}
	buf := make([]byte, headerBytes)
	if _, err := io.ReadFull(f, buf); err != nil {
		return f, header{}, fmt.Errorf("saved map %q: %w: %w", path, errHeader, err)
	}
	h, err := decodeHeader(savedMagic, buf)
	if err != nil {
		return f, h, fmt.Errorf("saved map %q: %w", path, err)
	}
	return f, h, nil
}

// loadBody reads the body of a saved map into m. Bits that were loaded before an
// error stay; the caller trusts none of them.
func loadBody(f *os.File, h header, m *fineMap, grains int64) error {
	if h.leaves > uint64(len(m.words)+leafWords-1)>>leafShift {
		return fmt.Errorf("%w: %d leaves", errHeader, h.leaves)
	}
	crc := crc32.New(castagnoli)
	r := bufio.NewReaderSize(io.NewSectionReader(f, headerBytes, int64(h.leaves)*leafRecord), 256<<10)
	last := int64(-1)
	for range h.leaves {
		leaf, err := loadLeaf(r, crc, m, last, grains)
		if err != nil {
			return fmt.Errorf("read body of saved map: %w", err)
		}
		last = leaf
	}
	if got := crc.Sum32(); got != h.bodySum {
		return fmt.Errorf("read body of saved map: %w: checksum %08x, stored %08x", errHeader, got, h.bodySum)
	}
	return nil
}

func loadLeaf(r io.Reader, crc hash.Hash32, m *fineMap, last, grains int64) (int64, error) {
	var rec [leafRecord]byte
	if _, err := io.ReadFull(r, rec[:]); err != nil {
		return 0, errors.Join(errHeader, err)
	}
	crc.Write(rec[:])
	leaf := int64(littleEndian.Uint64(rec[:]))
	if leaf <= last || leaf >= int64(len(m.words)+leafWords-1)>>leafShift {
		return 0, fmt.Errorf("%w: leaf %d after %d", errHeader, leaf, last)
	}
	if err := m.grow(leaf); err != nil {
		return 0, err
	}
	for k, i := 8, leaf<<leafShift; i < m.endOfLeaf(leaf); i++ {
		v := littleEndian.Uint64(rec[k:])
		if end := grains - i<<6; end < 64 && v>>max(end, 0) != 0 {
			return 0, fmt.Errorf("%w: grain past the end of the disk", errHeader)
		}
		m.words[i] = v
		k += 8
	}
	return leaf, nil
}
