package lvm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

// Errors of this package.
var (
	// ErrNotPV: there is no label of LVM2.
	ErrNotPV = errors.New("no LVM2 physical volume")
	// ErrCorrupt: a checksum fails or the metadata contradict themselves.
	ErrCorrupt = errors.New("LVM2 metadata are damaged")
	// ErrUnsupported: a type of volume that this package does not read.
	ErrUnsupported = errors.New("not supported")
	// ErrMissing: a physical volume of the group is not there.
	ErrMissing = errors.New("physical volume is missing")
)

const (
	sectorSize   = 512
	labelSectors = 4  // the label is in one of them
	uuidLen      = 32 // without the dashes
	mdaHeader    = 512
	mdaMagic     = "\x20LVM2\x20x[5A%r0N*>"
	crcInitial   = 0xf597a6cf // INITIAL_CRC of lib/misc/crc.h

	// maxMetadata bounds a metadata text, maxLocations a list of areas.
	maxMetadata  = 4 << 20
	maxLocations = 16
)

// crc is LVM2's checksum: CRC-32 without the usual inversions, begun at crcInitial.
func crc(parts ...[]byte) uint32 {
	sum := ^uint32(crcInitial)
	for _, p := range parts {
		sum = crc32.Update(sum, crc32.IEEETable, p)
	}
	return ^sum
}

// PV is a physical volume as its label and its metadata areas describe it.
type PV struct {
	// UUID is without dashes, as the label has it.
	UUID string
	// Size is that of what it lies on, in bytes.
	Size int64
	// Warnings say what was damaged and how it was helped.
	Warnings []string

	r    io.ReaderAt
	meta *metadata // the newest valid one, nil when this one carries none
}

// Group is the name of its volume group: "" for one that carries no metadata.
func (pv *PV) Group() string {
	if pv.meta == nil {
		return ""
	}
	return pv.meta.name
}

// MetadataBytes is how much of memory its metadata take: a text that is parsed when the
// group is assembled.
func (pv *PV) MetadataBytes() int {
	if pv.meta == nil {
		return 0
	}
	return len(pv.meta.text)
}

// metadata is a text that is well formed. It is kept unparsed, since a hostile one takes
// many times its length when parsed.
type metadata struct {
	name  string
	id    string
	seqno int64
	text  string
}

// area is a range in bytes; size 0 means up to the end.
type area struct{ offset, size int64 }

// ReadPV reads the label of r, of size bytes, and the newest metadata behind it. A
// physical volume whose metadata are all damaged is an error; one that has none (its
// group keeps them elsewhere) is not.
func ReadPV(r io.ReaderAt, size int64) (*PV, error) {
	pv := &PV{r: r, Size: size}
	areas, err := pv.readLabel()
	if err != nil {
		return nil, err
	}
	var damaged error
	for _, a := range areas {
		m, err := pv.readArea(a)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				return nil, err
			}
			damaged = err
			pv.Warnings = append(pv.Warnings, fmt.Sprintf("the metadata area at %d is not used: %v", a.offset, err))
			continue
		}
		if m != nil && (pv.meta == nil || m.seqno > pv.meta.seqno) {
			pv.meta = m
		}
	}
	if pv.meta == nil && damaged != nil {
		return nil, fmt.Errorf("physical volume %s: %w", DashedUUID(pv.UUID), damaged)
	}
	return pv, nil
}

// read gives n bytes at off.
func (pv *PV) read(off, n int64) ([]byte, error) {
	if off < 0 || n < 0 || off > pv.Size || n > pv.Size-off {
		return nil, fmt.Errorf("%d bytes at %d are outside the physical volume of %d: %w", n, off, pv.Size, ErrCorrupt)
	}
	p := make([]byte, n)
	if err := readFull(pv.r, p, off); err != nil {
		return nil, fmt.Errorf("read physical volume: %w", err)
	}
	return p, nil
}

func readFull(r io.ReaderAt, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// readLabel finds the label and reads the header behind it, which names the areas of
// metadata.
func (pv *PV) readLabel() ([]area, error) {
	if pv.Size < labelSectors*sectorSize {
		return nil, ErrNotPV
	}
	p, err := pv.read(0, labelSectors*sectorSize)
	if err != nil {
		return nil, err
	}
	found := error(ErrNotPV)
	for n := range int64(labelSectors) {
		s := p[n*sectorSize:][:sectorSize]
		if string(s[:8]) != "LABELONE" || string(s[24:32]) != "LVM2 001" {
			continue
		}
		le := binary.LittleEndian
		if le.Uint64(s[8:]) != uint64(n) || crc(s[20:]) != le.Uint32(s[16:]) {
			found = fmt.Errorf("checksum or place of the label in sector %d is wrong: %w", n, ErrCorrupt)
			continue
		}
		return pv.readHeader(s, int64(le.Uint32(s[20:])))
	}
	return nil, found
}

// readHeader reads the header at offset at of the label's sector: UUID, size, the list
// of data areas and that of metadata areas, each ended by zeros.
func (pv *PV) readHeader(s []byte, at int64) ([]area, error) {
	if at < 32 || at+uuidLen+8 > sectorSize {
		return nil, fmt.Errorf("the header of the physical volume is at %d: %w", at, ErrCorrupt)
	}
	pv.UUID = string(s[at:][:uuidLen])
	rest := s[at+uuidLen+8:]
	_, rest, err := locations(rest)
	if err != nil {
		return nil, err
	}
	areas, _, err := locations(rest)
	return areas, err
}

func locations(p []byte) ([]area, []byte, error) {
	var out []area
	for len(p) >= 16 && len(out) < maxLocations {
		off, size := binary.LittleEndian.Uint64(p), binary.LittleEndian.Uint64(p[8:])
		p = p[16:]
		if off == 0 {
			return out, p, nil
		}
		if off > 1<<62 || size > 1<<62 {
			break
		}
		out = append(out, area{int64(off), int64(size)})
	}
	return nil, nil, fmt.Errorf("the list of areas does not end: %w", ErrCorrupt)
}

// readArea reads the metadata that an area's header names; nil when it is empty. The
// area is a ring: a text that reaches its end goes on behind the header.
func (pv *PV) readArea(a area) (*metadata, error) {
	h, err := pv.read(a.offset, mdaHeader)
	if err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	start, size := le.Uint64(h[24:]), le.Uint64(h[32:])
	switch {
	case crc(h[4:]) != le.Uint32(h) || string(h[4:20]) != mdaMagic:
		return nil, fmt.Errorf("checksum or signature of its header is wrong: %w", ErrCorrupt)
	case le.Uint32(h[20:]) != 1:
		return nil, fmt.Errorf("version %d of the metadata area is not known: %w", le.Uint32(h[20:]), ErrCorrupt)
	case start != uint64(a.offset) || size <= mdaHeader || size > uint64(pv.Size) || start > uint64(pv.Size)-size:
		return nil, fmt.Errorf("its header describes %d bytes at %d: %w", size, start, ErrCorrupt)
	}
	// The first location is the committed text. Flag 1: this area is ignored.
	off, length, sum, flags := le.Uint64(h[40:]), le.Uint64(h[48:]), le.Uint32(h[56:]), le.Uint32(h[60:])
	if off == 0 || flags&1 != 0 {
		return nil, nil
	}
	if off < mdaHeader || off >= size || length > size-mdaHeader || length > maxMetadata {
		return nil, fmt.Errorf("a text of %d bytes at %d does not fit into the area of %d: %w", length, off, size, ErrCorrupt)
	}
	first := min(length, size-off)
	head, err := pv.read(int64(start+off), int64(first))
	if err != nil {
		return nil, err
	}
	tail, err := pv.read(int64(start)+mdaHeader, int64(length-first))
	if err != nil {
		return nil, err
	}
	if crc(head, tail) != sum {
		return nil, fmt.Errorf("checksum of the text is wrong: %w", ErrCorrupt)
	}
	text := string(bytes.TrimRight(append(head, tail...), "\x00"))
	m, _, err := parseMetadata(text)
	return m, err
}

// parseMetadata finds the volume group in a text.
func parseMetadata(text string) (*metadata, *section, error) {
	root, err := parseText(text)
	if err != nil {
		return nil, nil, err
	}
	if root.text("contents") != "Text Format Volume Group" || len(root.order) != 1 {
		return nil, nil, fmt.Errorf("the text describes no volume group: %w", ErrCorrupt)
	}
	if v, err := root.number("version", 1<<31); err != nil || v != 1 {
		return nil, nil, fmt.Errorf("version %d of the text is not known: %w", v, ErrCorrupt)
	}
	group := root.sections[root.order[0]]
	m := &metadata{name: root.order[0], id: group.text("id"), text: text}
	if m.id == "" {
		return nil, nil, fmt.Errorf("volume group %q has no id: %w", m.name, ErrCorrupt)
	}
	m.seqno, err = group.number("seqno", 1<<40)
	return m, group, err
}

// DashedUUID writes a UUID as LVM's tools do: 6-4-4-4-4-4-6.
func DashedUUID(u string) string {
	if len(u) != uuidLen {
		return u
	}
	return fmt.Sprintf("%s-%s-%s-%s-%s-%s-%s", u[:6], u[6:10], u[10:14], u[14:18], u[18:22], u[22:26], u[26:])
}
