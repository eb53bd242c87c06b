package pack

import (
	"encoding/binary"
	"fmt"

	"github.com/keelblock/keelblock/dedupe"
)

const (
	noteHeaderSize        = 48
	publicationHeaderSize = 32
	// MaxPublished bounds the manifests and notes of one commit together.
	MaxPublished = 16384
)

// EncodeNote is a note's content in a pack.
func EncodeNote(n *dedupe.Note) []byte {
	b := make([]byte, noteHeaderSize, noteHeaderSize+len(n.Body))
	binary.LittleEndian.PutUint64(b, n.Sequence)
	binary.LittleEndian.PutUint16(b[8:], n.Type)
	copy(b[16:], n.Subject[:])
	return append(b, n.Body...)
}

// DecodeNote is the inverse of EncodeNote. Body is a copy.
func DecodeNote(b []byte) (dedupe.Note, error) {
	if len(b) < noteHeaderSize || len(b) > noteHeaderSize+dedupe.MaxMetadataSize {
		return dedupe.Note{}, fmt.Errorf("note of %d bytes: %w", len(b), dedupe.ErrCorrupt)
	}
	n := dedupe.Note{
		Sequence: binary.LittleEndian.Uint64(b), Type: binary.LittleEndian.Uint16(b[8:]),
		Subject: dedupe.Digest(b[16:48]), Body: append([]byte(nil), b[noteHeaderSize:]...),
	}
	if n.Sequence == 0 {
		return n, fmt.Errorf("note without a sequence: %w", dedupe.ErrCorrupt)
	}
	return n, nil
}

// Publication is what one commit made visible, or that it did not after all.
type Publication struct {
	// Serial orders the commits of a vault, from 1.
	Serial uint64
	// Cancel says that a publication does not count after all, because its commit
	// returned an error: Manifests is then the digest of that publication's record.
	Cancel bool
	// Manifests are digests of manifests, Notes those of notes' records, the
	// first of which has the sequence FirstNote.
	Manifests []dedupe.Digest
	FirstNote uint64
	Notes     []dedupe.Digest
}

// EncodePublication is a publication's content in a pack.
func EncodePublication(p *Publication) []byte {
	b := make([]byte, publicationHeaderSize, publicationHeaderSize+(len(p.Manifests)+len(p.Notes))*dedupe.DigestSize)
	le := binary.LittleEndian
	le.PutUint64(b, p.Serial)
	if p.Cancel {
		b[8] = 1
	}
	le.PutUint32(b[12:], uint32(len(p.Manifests)))
	le.PutUint32(b[16:], uint32(len(p.Notes)))
	le.PutUint64(b[24:], p.FirstNote)
	for i := range p.Manifests {
		b = append(b, p.Manifests[i][:]...)
	}
	for i := range p.Notes {
		b = append(b, p.Notes[i][:]...)
	}
	return b
}

// DecodePublication is the inverse of EncodePublication.
func DecodePublication(b []byte) (*Publication, error) {
	if len(b) < publicationHeaderSize || b[8] > 1 {
		return nil, fmt.Errorf("publication of %d bytes: %w", len(b), dedupe.ErrCorrupt)
	}
	le := binary.LittleEndian
	p := &Publication{Serial: le.Uint64(b), Cancel: b[8] == 1, FirstNote: le.Uint64(b[24:])}
	m, n := int64(le.Uint32(b[12:])), int64(le.Uint32(b[16:]))
	if m+n > MaxPublished || int64(len(b)) != publicationHeaderSize+(m+n)*dedupe.DigestSize ||
		p.Serial == 0 || (n > 0 && p.FirstNote == 0) {
		return nil, fmt.Errorf("publication %d of %d manifests and %d notes in %d bytes: %w", p.Serial, m, n, len(b), dedupe.ErrCorrupt)
	}
	b = b[publicationHeaderSize:]
	for i := range m + n {
		d := dedupe.Digest(b[i*dedupe.DigestSize:])
		if i < m {
			p.Manifests = append(p.Manifests, d)
		} else {
			p.Notes = append(p.Notes, d)
		}
	}
	return p, nil
}
