package pack

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"time"

	"github.com/keelblock/keelblock/dedupe"
)

const (
	superblockVersion    = 1
	superblockHeaderSize = 64
	domainSize           = 48
	maxDomains           = 64
	stateSize            = 32
	stateVersion         = 1

	// SchemeSHA256 is the id scheme of all nodes, and of blocks in unencrypted domains of
	// the first vaults: SHA-256 of their bytes.
	SchemeSHA256 = 1
	// SchemeHMAC is that of encrypted domains of the first vaults: HMAC-SHA-256 of their
	// bytes under the domain's id key.
	SchemeHMAC = 2
	// SchemeGrains is that of unencrypted domains: the digest of a block is made of those
	// of its grains (dedupe.GrainDigests).
	SchemeGrains = 3
	// SchemeKeyedGrains is that of encrypted domains: SchemeGrains under the id key.
	SchemeKeyedGrains = 4
)

var (
	superblockMagic = [8]byte{'K', 'E', 'E', 'L', 'V', 'A', 'L', 'T'}
	stateMagic      = [8]byte{'K', 'E', 'E', 'L', 'S', 'T', 'A', 'T'}
)

// KeyCheck recognises the key of a domain without telling anything of it.
type KeyCheck [14]byte

// Domain is a key domain as the superblock has it.
type Domain struct {
	ID     dedupe.DomainID
	Scheme uint8 // how ids of blocks are made
	Cipher Cipher
	Check  KeyCheck // of the domain's keys; zero without a cipher
	KeyID  KeyID    // of the data key that the vault was made with; zero without a cipher
}

// Encrypted reports whether the domain's blocks are sealed and their ids keyed.
func (d *Domain) Encrypted() bool { return d.Cipher != CipherNone }

// Grains reports whether ids of blocks are made of the digests of their grains.
func (d *Domain) Grains() bool { return d.Scheme == SchemeGrains || d.Scheme == SchemeKeyedGrains }

// isKnown reports whether this release knows the pair of id scheme and cipher.
func (d *Domain) isKnown() bool {
	switch d.Scheme {
	case SchemeSHA256, SchemeGrains:
		return d.Cipher == CipherNone
	case SchemeHMAC, SchemeKeyedGrains:
		return d.Cipher == CipherXAES
	}
	return false
}

// Superblock is what never changes about a vault.
type Superblock struct {
	BlockSize int
	Vault     VaultID
	Created   time.Time
	// Domains has at least one; new blocks are made in the first.
	Domains []Domain
}

// Encode is the superblock's bytes.
func (s *Superblock) Encode() []byte {
	b := make([]byte, superblockHeaderSize+len(s.Domains)*domainSize)
	le := binary.LittleEndian
	copy(b, superblockMagic[:])
	le.PutUint16(b[8:], superblockVersion)
	le.PutUint16(b[10:], uint16(len(s.Domains)))
	le.PutUint32(b[12:], uint32(s.BlockSize))
	le.PutUint32(b[16:], dedupe.FanOut)
	b[20] = SchemeSHA256
	copy(b[24:], s.Vault[:])
	le.PutUint64(b[40:], uint64(s.Created.Unix()))
	for i, d := range s.Domains {
		p := b[superblockHeaderSize+i*domainSize:]
		copy(p, d.ID[:])
		p[16], p[17] = d.Scheme, byte(d.Cipher)
		copy(p[18:], d.Check[:])
		copy(p[32:], d.KeyID[:])
	}
	return le.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

// DecodeSuperblock is the inverse of Encode. dedupe.ErrCorrupt when magic, length or
// CRC is wrong, dedupe.ErrUnknownFormat when this release cannot serve the vault.
func DecodeSuperblock(b []byte) (*Superblock, error) {
	le := binary.LittleEndian
	if len(b) < superblockHeaderSize+domainSize+4 || [8]byte(b) != superblockMagic {
		return nil, fmt.Errorf("superblock magic: %w", dedupe.ErrCorrupt)
	}
	end := len(b) - 4
	if le.Uint32(b[end:]) != crc32.Checksum(b[:end], castagnoli) {
		return nil, fmt.Errorf("superblock checksum: %w", dedupe.ErrCorrupt)
	}
	if v := le.Uint16(b[8:]); v != superblockVersion {
		return nil, fmt.Errorf("superblock version %d: %w", v, dedupe.ErrUnknownFormat)
	}
	n := int(le.Uint16(b[10:]))
	if n < 1 || n > maxDomains || end != superblockHeaderSize+n*domainSize {
		return nil, fmt.Errorf("superblock of %d domains in %d bytes: %w", n, len(b), dedupe.ErrCorrupt)
	}
	s := &Superblock{
		BlockSize: int(le.Uint32(b[12:])), Vault: VaultID(b[24:40]),
		Created: time.Unix(int64(le.Uint64(b[40:])), 0).UTC(),
	}
	if err := CheckBlockSize(s.BlockSize); err != nil {
		return nil, err
	}
	if f := le.Uint32(b[16:]); f != dedupe.FanOut {
		return nil, fmt.Errorf("superblock fan-out %d: %w", f, dedupe.ErrUnknownFormat)
	}
	if b[20] != SchemeSHA256 {
		return nil, fmt.Errorf("superblock node id scheme %d: %w", b[20], dedupe.ErrUnknownFormat)
	}
	for i := range n {
		p := b[superblockHeaderSize+i*domainSize:]
		d := Domain{ID: dedupe.DomainID(p[:16]), Scheme: p[16], Cipher: Cipher(p[17]), Check: KeyCheck(p[18:32]), KeyID: KeyID(p[32:48])}
		if !d.isKnown() {
			return nil, fmt.Errorf("key domain %x with id scheme %d and cipher %d: %w", d.ID, d.Scheme, d.Cipher, dedupe.ErrUnknownFormat)
		}
		s.Domains = append(s.Domains, d)
	}
	return s, nil
}

// CheckBlockSize returns an error unless n is a power of two between
// dedupe.MinBlockSize and dedupe.MaxBlockSize.
func CheckBlockSize(n int) error {
	if n < dedupe.MinBlockSize || n > dedupe.MaxBlockSize || n&(n-1) != 0 {
		return fmt.Errorf("block size %d: want a power of two from %d to %d", n, dedupe.MinBlockSize, dedupe.MaxBlockSize)
	}
	return nil
}

// State says how a vault was left.
type State struct {
	Clean bool
	// Epoch is the number of unclean stops, from 1: a record verified in an
	// earlier epoch must be verified again before it is called held.
	Epoch uint32
}

// Encode is the state's bytes.
func (s State) Encode() []byte {
	b := make([]byte, stateSize)
	le := binary.LittleEndian
	copy(b, stateMagic[:])
	le.PutUint16(b[8:], stateVersion)
	if s.Clean {
		b[10] = 1
	}
	le.PutUint32(b[12:], s.Epoch)
	le.PutUint32(b[28:], crc32.Checksum(b[:28], castagnoli))
	return b
}

// DecodeState is the inverse of Encode.
func DecodeState(b []byte) (State, error) {
	le := binary.LittleEndian
	if len(b) != stateSize || [8]byte(b) != stateMagic || le.Uint32(b[28:]) != crc32.Checksum(b[:28], castagnoli) {
		return State{}, fmt.Errorf("state of the vault: %w", dedupe.ErrCorrupt)
	}
	if v := le.Uint16(b[8:]); v != stateVersion {
		return State{}, fmt.Errorf("state version %d: %w", v, dedupe.ErrUnknownFormat)
	}
	return State{Clean: b[10] == 1, Epoch: le.Uint32(b[12:])}, nil
}
