package pack

import (
	"encoding/binary"
	"fmt"

	"github.com/keelblock/keelblock/dedupe"
)

const (
	noteHeaderSize        = 48
	publicationHeaderSize = 32
	publicationCancel     = 1
	publicationCheckpoint = 2
	sequenceSize          = 8
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

// Publication is what one commit made visible, or that it did not after all, or a part
// of a checkpoint. See FORMAT.md.
type Publication struct {
	// Serial orders the commits of a vault, from 1.
	Serial uint64
	// Cancel says that a publication does not count after all, because its commit
	// returned an error: Manifests is then the digest of that publication's record.
	Cancel bool
	// Checkpoint says that all publications up to this serial count no more: what is
	// published is what the parts of this checkpoint list, and what was published
	// later. Part of Parts is this one, from 0; only all of them together count.
	Checkpoint  bool
	Part, Parts uint16
	// Manifests are digests of manifests, Notes those of notes' records, the
	// first of which has the sequence FirstNote. In a checkpoint the sequence of each
	// note is in Sequences, and FirstNote is greater than any given so far.
	Manifests []dedupe.Digest
	FirstNote uint64
	Notes     []dedupe.Digest
	Sequences []uint64
}

// Sequence is that of the i-th note.
func (p *Publication) Sequence(i int) uint64 {
	if p.Checkpoint {
		return p.Sequences[i]
	}
	return p.FirstNote + uint64(i)
}

// EncodePublication is a publication's content in a pack.
func EncodePublication(p *Publication) []byte {
	b := make([]byte, publicationHeaderSize, publicationHeaderSize+(len(p.Manifests)+len(p.Notes))*(dedupe.DigestSize+sequenceSize))
	le := binary.LittleEndian
	le.PutUint64(b, p.Serial)
	switch {
	case p.Cancel:
		b[8] = publicationCancel
	case p.Checkpoint:
		b[8] = publicationCheckpoint
		le.PutUint16(b[20:], p.Part)
		le.PutUint16(b[22:], p.Parts)
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
	if p.Checkpoint {
		for i := range p.Notes {
			b = le.AppendUint64(b, p.Sequences[i])
		}
	}
	return b
}

// DecodePublication is the inverse of EncodePublication.
func DecodePublication(b []byte) (*Publication, error) {
	if len(b) < publicationHeaderSize {
		return nil, fmt.Errorf("publication of %d bytes: %w", len(b), dedupe.ErrCorrupt)
	}
	if b[8] > publicationCheckpoint {
		return nil, fmt.Errorf("publication of type %d: %w", b[8], dedupe.ErrUnknownFormat)
	}
	le := binary.LittleEndian
	p := &Publication{Serial: le.Uint64(b), Cancel: b[8] == publicationCancel, Checkpoint: b[8] == publicationCheckpoint, FirstNote: le.Uint64(b[24:])}
	m, n := int64(le.Uint32(b[12:])), int64(le.Uint32(b[16:]))
	size := publicationHeaderSize + (m+n)*dedupe.DigestSize
	if p.Checkpoint {
		p.Part, p.Parts = le.Uint16(b[20:]), le.Uint16(b[22:])
		size += n * sequenceSize
	}
	if m+n > MaxPublished || int64(len(b)) != size || p.Serial == 0 || (n > 0 && p.FirstNote == 0) || (p.Checkpoint && p.Part >= p.Parts) {
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
	if b = b[(m+n)*dedupe.DigestSize:]; p.Checkpoint {
		for i := range n {
			p.Sequences = append(p.Sequences, le.Uint64(b[i*sequenceSize:]))
		}
	}
	return p, nil
}
