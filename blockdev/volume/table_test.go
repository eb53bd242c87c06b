package volume_test

import (
	"encoding/binary"
	"hash/crc32"
	"io"
	"unicode/utf16"
)

// image is a disk in memory that reads as zeros where nothing was written.
type image struct {
	size  int64
	data  map[int64][]byte // by 512-byte sector
	reads int
}

func newImage(size int64) *image { return &image{size: size, data: map[int64][]byte{}} }

func (m *image) sector(n int64) []byte {
	if m.data[n] == nil {
		m.data[n] = make([]byte, 512)
	}
	return m.data[n]
}

func (m *image) write(off int64, p []byte) {
	for i, b := range p {
		at := off + int64(i)
		m.sector(at / 512)[at%512] = b
	}
}

func (m *image) ReadAt(p []byte, off int64) (int, error) {
	m.reads++
	for i := range p {
		at := off + int64(i)
		if at >= m.size {
			return i, io.EOF
		}
		p[i] = 0
		if s := m.data[at/512]; s != nil {
			p[i] = s[at%512]
		}
	}
	return len(p), nil
}

type entry struct {
	code         byte
	first, count uint32
}

func (m *image) bootRecord(sector int64, entries ...entry) {
	s := m.sector(sector)
	binary.LittleEndian.PutUint16(s[510:], 0xAA55)
	for i, e := range entries {
		p := s[446+16*i:]
		p[4] = e.code
		binary.LittleEndian.PutUint32(p[8:], e.first)
		binary.LittleEndian.PutUint32(p[12:], e.count)
	}
}

type gptPart struct {
	name        string
	first, last uint64
}

// linuxData is 0FC63DAF-8483-4772-8E79-3D69D8477DE4 as stored.
var linuxData = []byte{0xAF, 0x3D, 0xC6, 0x0F, 0x83, 0x84, 0x72, 0x47, 0x8E, 0x79, 0x3D, 0x69, 0xD8, 0x47, 0x7D, 0xE4}

// gpt writes both tables, with logical blocks of ss bytes, and the protective MBR.
func (m *image) gpt(ss int64, parts ...gptPart) {
	le := binary.LittleEndian
	entries := make([]byte, 128*128)
	for i, p := range parts {
		e := entries[128*i:]
		copy(e, linuxData)
		e[16] = byte(i + 1)
		le.PutUint64(e[32:], p.first)
		le.PutUint64(e[40:], p.last)
		for j, u := range utf16.Encode([]rune(p.name)) {
			le.PutUint16(e[56+2*j:], u)
		}
	}
	last := m.size/ss - 1
	tableBlocks := int64(len(entries)) / ss
	header := func(lba, other, table int64) {
		h := make([]byte, 92)
		copy(h, "EFI PART")
		le.PutUint32(h[8:], 0x10000)
		le.PutUint32(h[12:], 92)
		le.PutUint64(h[24:], uint64(lba))
		le.PutUint64(h[32:], uint64(other))
		le.PutUint64(h[40:], uint64(2+tableBlocks))
		le.PutUint64(h[48:], uint64(last-1-tableBlocks))
		h[56] = 0x42
		le.PutUint64(h[72:], uint64(table))
		le.PutUint32(h[80:], 128)
		le.PutUint32(h[84:], 128)
		le.PutUint32(h[88:], crc32.ChecksumIEEE(entries))
		le.PutUint32(h[16:], crc32.ChecksumIEEE(h))
		m.write(lba*ss, h)
		m.write(table*ss, entries)
	}
	header(1, last, 2)
	header(last, 1, last-tableBlocks)
	m.bootRecord(0, entry{0xEE, 1, uint32(last)})
}
