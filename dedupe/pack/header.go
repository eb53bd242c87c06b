package pack

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash/crc32"
	"time"

	"github.com/keelblock/keelblock/dedupe"
)

const (
	// HeaderSize is the offset of the first record of a pack, in bytes.
	HeaderSize = 96
	// PageSize is what a pad aligns to.
	PageSize = 4096

	packVersion = 1
)

var packMagic = [8]byte{'K', 'E', 'E', 'L', 'P', 'A', 'C', 'K'}

// ID names a pack at every location: 128 random bits.
type ID [16]byte

// String is the id in 32 lower-case hexadecimal digits.
func (id ID) String() string { return hex.EncodeToString(id[:]) }

// ParseID is the inverse of ID.String.
func ParseID(s string) (ID, error) {
	var id ID
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(id) {
		return id, fmt.Errorf("pack id %q: want %d hexadecimal digits", s, 2*len(id))
	}
	copy(id[:], b)
	return id, nil
}

// VaultID names the vault that wrote a pack: 128 random bits of its superblock.
type VaultID [16]byte

// Class is which kinds of records a pack holds.
type Class uint8

// The classes.
const (
	// ClassData holds blocks, and bundles of patches.
	ClassData Class = 1
	// ClassMetadata holds nodes, manifests, notes and publications.
	ClassMetadata Class = 2
)

// String is "data" or "metadata".
func (c Class) String() string {
	switch c {
	case ClassData:
		return "data"
	case ClassMetadata:
		return "metadata"
	}
	return fmt.Sprintf("class %d", uint8(c))
}

// Holds reports whether records of a kind belong into packs of the class. A block
// is what a guest wrote, so that no block may ever be taken for a manifest.
func (c Class) Holds(k dedupe.Kind) bool {
	switch c {
	case ClassData:
		return k == dedupe.KindBlock || k == KindBundle || k == KindPad
	case ClassMetadata:
		return k >= dedupe.KindNode && k <= KindPad
	}
	return false
}

// ClassOf is the class of the packs that records of a kind go to.
func ClassOf(k dedupe.Kind) Class {
	if k == dedupe.KindBlock || k == KindBundle {
		return ClassData
	}
	return ClassMetadata
}

// Header is the start of a pack.
type Header struct {
	Class   Class
	ID      ID
	Vault   VaultID
	Domain  dedupe.DomainID
	Created time.Time
}

// Encode is the header's HeaderSize bytes.
func (h *Header) Encode() []byte {
	b := make([]byte, HeaderSize)
	copy(b, packMagic[:])
	le := binary.LittleEndian
	le.PutUint16(b[8:], packVersion)
	b[10] = byte(h.Class)
	le.PutUint32(b[12:], HeaderSize)
	copy(b[16:], h.ID[:])
	copy(b[32:], h.Vault[:])
	copy(b[48:], h.Domain[:])
	le.PutUint64(b[64:], uint64(h.Created.Unix()))
	le.PutUint32(b[92:], crc32.Checksum(b[:92], castagnoli))
	return b
}

// DecodeHeader reads a pack's header from its first HeaderSize bytes.
// dedupe.ErrCorrupt when magic or CRC is wrong, dedupe.ErrUnknownFormat when the
// version or class is not known to this release.
func DecodeHeader(b []byte) (Header, error) {
	var h Header
	if len(b) < HeaderSize {
		return h, fmt.Errorf("pack header of %d bytes: %w", len(b), dedupe.ErrCorrupt)
	}
	if [8]byte(b) != packMagic {
		return h, fmt.Errorf("pack magic %x: %w", b[:8], dedupe.ErrCorrupt)
	}
	le := binary.LittleEndian
	if le.Uint32(b[92:]) != crc32.Checksum(b[:92], castagnoli) {
		return h, fmt.Errorf("pack header checksum: %w", dedupe.ErrCorrupt)
	}
	if v := le.Uint16(b[8:]); v != packVersion {
		return h, fmt.Errorf("pack version %d: %w", v, dedupe.ErrUnknownFormat)
	}
	h = Header{
		Class: Class(b[10]), ID: ID(b[16:32]), Vault: VaultID(b[32:48]), Domain: dedupe.DomainID(b[48:64]),
		Created: time.Unix(int64(le.Uint64(b[64:])), 0).UTC(),
	}
	if n := le.Uint32(b[12:]); n != HeaderSize {
		return h, fmt.Errorf("pack header size %d: %w", n, dedupe.ErrUnknownFormat)
	}
	if h.Class != ClassData && h.Class != ClassMetadata {
		return h, fmt.Errorf("pack class %d: %w", b[10], dedupe.ErrUnknownFormat)
	}
	return h, nil
}
