package md

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
)

// Errors of this package.
var (
	// ErrNotMember: there is no superblock of md.
	ErrNotMember = errors.New("no member of an md array")
	// ErrCorrupt: a checksum fails or a superblock contradicts itself.
	ErrCorrupt = errors.New("md superblock is damaged")
	// ErrUnsupported: a level or feature that this package does not read.
	ErrUnsupported = errors.New("not supported")
	// ErrMissing: a member of the array is not there, or too old to be read.
	ErrMissing = errors.New("member is missing")
)

const (
	sectorSize = 512
	magic      = 0xa92b4efc
	maxDisks   = 384 // of superblock 1: MAX_DEVS of mdadm's array of roles; 27 of 0.90

	roleSpare   = 0xffff
	roleFaulty  = 0xfffe
	roleJournal = 0xfffd
)

// Feature bits of superblock 1 (include/uapi/linux/raid/md_p.h).
const (
	featureBitmap          = 1 << 0
	featureRecovery        = 1 << 1
	featureReshape         = 1 << 2
	featureBadBlocks       = 1 << 3
	featureReplacement     = 1 << 4
	featureRecoveryBitmap  = 1 << 7
	featureBitmapVersioned = 1 << 8
	featureLayout          = 1 << 12
	knownFeatures          = featureBitmap | featureRecovery | featureReshape | featureBadBlocks | featureReplacement | featureRecoveryBitmap | featureBitmapVersioned | featureLayout
)

// Layouts of a RAID0 whose members differ in size.
const (
	layoutUnknown   = 0
	layoutOriginal  = 1
	layoutAlternate = 2
)

// Member is what the superblock of one member says.
type Member struct {
	// Version is "0.90", "1.0", "1.1" or "1.2".
	Version string
	// ArrayUUID tells the arrays apart.
	ArrayUUID string
	// ArrayName is the array's name without its host; for 0.90, the minor number.
	ArrayName string
	Level     int
	// SuperOffset is where the superblock is, in bytes.
	SuperOffset int64
	Events      uint64

	r          io.ReaderAt
	size       int64 // of what it lies on
	dataOffset int64 // bytes
	dataSize   int64 // bytes that the array uses, or can use for RAID0
	arraySize  int64 // bytes of each member, for RAID1
	chunk      int64 // bytes
	layout     uint32
	disks      int
	role       int // its place in the array, or -1
	roles      []int
	rebuilding bool // it is not whole yet
	dirty      bool // the array was in use, or its members were being brought in step
	bad        []extent
	err        error // it cannot be used in any array
}

type extent struct{ offset, length int64 }

// ReadMember reads the superblock of r, of size bytes, at any of the places that a
// version has for it.
func ReadMember(r io.ReaderAt, size int64) (*Member, error) {
	found := error(ErrNotMember)
	note := func(err error) error {
		if err != nil && !errors.Is(err, ErrNotMember) {
			found = err
		}
		if err != nil && !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrNotMember) && !errors.Is(err, ErrUnsupported) {
			return err
		}
		return nil
	}
	for minor, at := range []int64{(size/sectorSize*sectorSize - 8<<10) &^ 4095, 0, 4096} {
		m, err := readVersion1(r, size, at, minor)
		if err == nil {
			return m, nil
		}
		if fatal := note(err); fatal != nil {
			return nil, fatal
		}
	}
	m, err := readVersion0(r, size)
	if err == nil {
		return m, nil
	}
	if fatal := note(err); fatal != nil {
		return nil, fatal
	}
	return nil, found
}

func readAt(r io.ReaderAt, size, off, n int64) ([]byte, error) {
	if off < 0 || off > size || n > size-off {
		return nil, ErrNotMember
	}
	p := make([]byte, n)
	if err := readFull(r, p, off); err != nil {
		return nil, fmt.Errorf("read md superblock: %w", err)
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

// fold adds 32-bit words as md's checksums do.
func fold(p []byte) uint32 {
	var sum uint64
	for len(p) >= 4 {
		sum += uint64(binary.LittleEndian.Uint32(p))
		p = p[4:]
	}
	if len(p) == 2 {
		sum += uint64(binary.LittleEndian.Uint16(p))
	}
	return uint32(sum) + uint32(sum>>32)
}

// readVersion1 reads a superblock of version 1 at the place of its minor version.
func readVersion1(r io.ReaderAt, size, at int64, minor int) (*Member, error) {
	p, err := readAt(r, size, at, 4096)
	if err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	if le.Uint32(p) != magic || le.Uint32(p[4:]) != 1 {
		return nil, ErrNotMember
	}
	slots := le.Uint32(p[220:])
	if slots > (4096-256)/2 {
		return nil, fmt.Errorf("%d places: %w", slots, ErrCorrupt)
	}
	sum := le.Uint32(p[216:])
	le.PutUint32(p[216:], 0)
	if fold(p[:256+2*slots]) != sum {
		return nil, fmt.Errorf("checksum of the superblock at %d is wrong: %w", at, ErrCorrupt)
	}
	if int64(le.Uint64(p[144:])) != at/sectorSize {
		return nil, ErrNotMember // of a device of another size
	}
	name, _, _ := bytes.Cut(p[32:64], []byte{0})
	m := &Member{Version: fmt.Sprintf("1.%d", minor), ArrayUUID: fmt.Sprintf("%x", p[16:32]), ArrayName: shortName(string(name)),
		Level: int(int32(le.Uint32(p[72:]))), SuperOffset: at, Events: le.Uint64(p[200:]), r: r, size: size, role: -1}
	features := le.Uint32(p[8:])
	if unknown := features &^ knownFeatures; unknown != 0 {
		m.err = fmt.Errorf("an md array with the features %#x is %w", unknown, ErrUnsupported)
	}
	if features&featureReshape != 0 {
		m.err = fmt.Errorf("an md array that is being reshaped is %w", ErrUnsupported)
	}
	return m, m.loadVersion1(p, features, int(slots))
}

func (m *Member) loadVersion1(p []byte, features uint32, slots int) error {
	le := binary.LittleEndian
	dataOffset, dataSize, used := le.Uint64(p[128:]), le.Uint64(p[136:]), le.Uint64(p[80:])
	chunk, disks := le.Uint32(p[88:]), le.Uint32(p[92:])
	const most = math.MaxInt64 / sectorSize
	if dataOffset > most || dataSize > most || used > most || disks > maxDisks || chunk > 1<<24 {
		return fmt.Errorf("%d bytes at %d of %d members: %w", dataSize, dataOffset, disks, ErrCorrupt)
	}
	m.dataOffset, m.dataSize, m.arraySize = int64(dataOffset)*sectorSize, int64(dataSize)*sectorSize, int64(used)*sectorSize
	m.chunk, m.disks = int64(chunk)*sectorSize, int(disks)
	if features&featureLayout != 0 {
		m.layout = le.Uint32(p[76:])
	}
	for i := range slots {
		m.roles = append(m.roles, int(le.Uint16(p[256+2*i:])))
	}
	if n := le.Uint32(p[160:]); n < uint32(len(m.roles)) && m.roles[n] < m.disks {
		m.role = m.roles[n]
	}
	m.rebuilding = features&(featureRecovery|featureReplacement) != 0
	m.dirty = le.Uint64(p[208:]) != math.MaxUint64
	if features&featureBadBlocks != 0 {
		return m.readBadBlocks(p)
	}
	return nil
}

// readBadBlocks reads the list of ranges that this member lost.
func (m *Member) readBadBlocks(p []byte) error {
	le := binary.LittleEndian
	shift, sectors, offset := p[185], le.Uint16(p[186:]), int64(int32(le.Uint32(p[188:])))
	if sectors == 0 {
		return nil
	}
	if shift > 32 || sectors > 64 {
		return fmt.Errorf("a list of bad blocks of %d sectors: %w", sectors, ErrCorrupt)
	}
	list := make([]byte, int(sectors)*sectorSize)
	at := m.SuperOffset + offset*sectorSize
	if at < 0 || at > m.size-int64(len(list)) {
		return fmt.Errorf("a list of bad blocks at %d: %w", at, ErrCorrupt)
	}
	if err := readFull(m.r, list, at); err != nil {
		return fmt.Errorf("read md's list of bad blocks: %w", err)
	}
	for ; len(list) > 0; list = list[8:] {
		v := le.Uint64(list)
		if v == math.MaxUint64 {
			return nil
		}
		first, count := v>>10<<shift, v&0x3ff<<shift
		if count == 0 || first > 1<<52 || count > 1<<52 {
			continue
		}
		m.bad = append(m.bad, extent{int64(first)*sectorSize - m.dataOffset, int64(count) * sectorSize})
	}
	return nil
}

// shortName takes the host off a name: "web:0" is 0. What cannot stand in the name of a
// file becomes an underscore.
func shortName(name string) string {
	if _, after, ok := strings.Cut(name, ":"); ok && after != "" {
		name = after
	}
	return strings.Map(func(c rune) rune {
		if c == '/' || c < ' ' || c == 0x7f || c == '\uFFFD' {
			return '_'
		}
		return c
	}, name)
}

// readVersion0 reads a superblock 0.90, in the last 64 KiB that are aligned to that. Its
// numbers are those of the machine; little endian is read.
func readVersion0(r io.ReaderAt, size int64) (*Member, error) {
	at := size&^(64<<10-1) - 64<<10
	p, err := readAt(r, size, at, 4096)
	if err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	word := func(n int) uint32 { return le.Uint32(p[4*n:]) }
	if word(0) != magic || word(1) != 0 || word(2) < 90 || word(2) > 91 {
		return nil, ErrNotMember
	}
	sum := word(38)
	le.PutUint32(p[4*38:], 0)
	if fold(p) != sum {
		return nil, fmt.Errorf("checksum of the superblock at %d is wrong: %w", at, ErrCorrupt)
	}
	m := &Member{Version: "0.90", ArrayUUID: fmt.Sprintf("%08x%08x%08x%08x", word(5), word(13), word(14), word(15)), ArrayName: fmt.Sprint(word(11)),
		Level: int(int32(word(7))), SuperOffset: at, Events: uint64(word(40))<<32 | uint64(word(39)), r: r, size: size, role: -1,
		dataSize: at, arraySize: int64(word(8)) << 10, chunk: int64(word(65)), disks: int(word(10))}
	if word(2) == 91 {
		m.err = fmt.Errorf("an md array that is being reshaped is %w", ErrUnsupported)
	}
	if m.disks > 27 || m.chunk > 1<<30 {
		return nil, fmt.Errorf("%d members, chunks of %d bytes: %w", m.disks, m.chunk, ErrCorrupt)
	}
	for i := range 27 {
		role, d := roleSpare, 128+32*i
		switch state := word(d + 4); { // 0: faulty, 1: active, 2: in step
		case state&1 != 0:
			role = roleFaulty
		case state&6 == 6:
			role = int(word(d + 3))
		}
		m.roles = append(m.roles, role)
	}
	// This disk: its raid_disk and state stand in the copy of its descriptor.
	if role, state := word(992+3), word(992+4); state&7 == 6 && int64(role) < int64(m.disks) {
		m.role = int(role)
	}
	m.dirty = word(33)&1 == 0
	return m, nil
}
