package packdir

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash/crc32"
	"time"

	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/pack"
)

const (
	// MaxLocations is how many locations a vault may have.
	MaxLocations = 3

	recordName       = "location"
	recordVersion    = 1
	recordHeaderSize = 64
	memberSize       = 48
	maxText          = 4096 // of a path and of a reason, in bytes
)

var (
	recordMagic = [8]byte{'K', 'E', 'E', 'L', 'L', 'O', 'C', 'N'}
	castagnoli  = crc32.MakeTable(crc32.Castagnoli)
)

// LocationID names a location for as long as it belongs to its vault: 128 random bits.
type LocationID [16]byte

// String is the id in 32 lower-case hexadecimal digits.
func (id LocationID) String() string { return hex.EncodeToString(id[:]) }

// record is the file "location" in each location: the vault's list of locations as it
// was when this location last belonged to it. FORMAT.md has its bytes.
type record struct {
	vault pack.VaultID
	self  LocationID
	// generation grows when another location becomes the first one, serial with each
	// change of the list. The list with the larger pair is the true one.
	generation, serial uint64
	members            []member // the first has the index
}

// member is one location in a record.
type member struct {
	id         LocationID
	in         bool
	otherPast  bool // it may hold commits of another history
	mountPoint bool // its folder was one
	since      time.Time
	lastCommit uint64
	path       string
	reason     string
}

const (
	flagIn = 1 << iota
	flagOtherPast
	flagMountPoint
)

func (r *record) newer(o *record) bool {
	if r.generation != o.generation {
		return r.generation > o.generation
	}
	return r.serial > o.serial
}

func (r *record) member(id LocationID) *member {
	for i := range r.members {
		if r.members[i].id == id {
			return &r.members[i]
		}
	}
	return nil
}

func (r *record) encode() []byte {
	le := binary.LittleEndian
	b := make([]byte, recordHeaderSize)
	copy(b, recordMagic[:])
	le.PutUint16(b[8:], recordVersion)
	le.PutUint16(b[10:], uint16(len(r.members)))
	copy(b[16:], r.vault[:])
	copy(b[32:], r.self[:])
	le.PutUint64(b[48:], r.generation)
	le.PutUint64(b[56:], r.serial)
	for i := range r.members {
		m := &r.members[i]
		p := make([]byte, memberSize)
		copy(p, m.id[:])
		for flag, set := range map[byte]bool{flagIn: m.in, flagOtherPast: m.otherPast, flagMountPoint: m.mountPoint} {
			if set {
				p[16] |= flag
			}
		}
		if !m.since.IsZero() {
			le.PutUint64(p[24:], uint64(m.since.Unix()))
		}
		le.PutUint64(p[32:], m.lastCommit)
		path, reason := text(m.path), text(m.reason)
		le.PutUint16(p[40:], uint16(len(path)))
		le.PutUint16(p[42:], uint16(len(reason)))
		b = append(append(append(b, p...), path...), reason...)
	}
	return le.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

func text(s string) string { return s[:min(len(s), maxText)] }

// decodeRecord is the inverse of encode. dedupe.ErrCorrupt for anything else than a
// record, dedupe.ErrUnknownFormat for one of a newer release.
func decodeRecord(b []byte) (*record, error) {
	le := binary.LittleEndian
	if len(b) < recordHeaderSize+4 || [8]byte(b) != recordMagic {
		return nil, fmt.Errorf("location record magic: %w", dedupe.ErrCorrupt)
	}
	end := len(b) - 4
	if le.Uint32(b[end:]) != crc32.Checksum(b[:end], castagnoli) {
		return nil, fmt.Errorf("location record checksum: %w", dedupe.ErrCorrupt)
	}
	if v := le.Uint16(b[8:]); v != recordVersion {
		return nil, fmt.Errorf("location record version %d: %w", v, dedupe.ErrUnknownFormat)
	}
	r := &record{vault: pack.VaultID(b[16:32]), self: LocationID(b[32:48]), generation: le.Uint64(b[48:]), serial: le.Uint64(b[56:])}
	n := int(le.Uint16(b[10:]))
	if n < 1 || n > MaxLocations {
		return nil, fmt.Errorf("location record of %d locations: %w", n, dedupe.ErrCorrupt)
	}
	b = b[recordHeaderSize:end]
	for range n {
		if len(b) < memberSize {
			return nil, fmt.Errorf("location record ends early: %w", dedupe.ErrCorrupt)
		}
		path, reason := int(le.Uint16(b[40:])), int(le.Uint16(b[42:]))
		if len(b) < memberSize+path+reason {
			return nil, fmt.Errorf("location record ends early: %w", dedupe.ErrCorrupt)
		}
		m := member{id: LocationID(b[:16]), in: b[16]&flagIn != 0, otherPast: b[16]&flagOtherPast != 0,
			mountPoint: b[16]&flagMountPoint != 0, lastCommit: le.Uint64(b[32:])}
		if at := int64(le.Uint64(b[24:])); at != 0 {
			m.since = time.Unix(at, 0).UTC()
		}
		b = b[memberSize:]
		m.path, m.reason = string(b[:path]), string(b[path:path+reason])
		b = b[path+reason:]
		r.members = append(r.members, m)
	}
	if len(b) != 0 {
		return nil, fmt.Errorf("location record has %d bytes too many: %w", len(b), dedupe.ErrCorrupt)
	}
	return r, nil
}
