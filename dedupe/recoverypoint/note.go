package recoverypoint

import (
	"bytes"
	"crypto/ed25519"
	"encoding/binary"
	"fmt"
	"time"

	"github.com/keelblock/keelblock/dedupe"
)

// The types of notes, see FORMAT.md. 10 to 12 are reserved.
const (
	NoteSignatures uint16 = 1
	NoteAccounting uint16 = 2
	NoteDelete     uint16 = 3
	NoteUndelete   uint16 = 4
	NotePurge      uint16 = 5
	NoteHold       uint16 = 6
	NoteRelease    uint16 = 7
	NoteExpiry     uint16 = 8
	NoteLock       uint16 = 9
	NoteSettings   uint16 = 13
)

const (
	noteMagic     = "KBNT"
	noteVersion   = 1
	noteHeader    = 8
	maxSignatures = 64
)

// Roles of a signature, and its algorithm.
const (
	RoleOrigin       byte = 1 // the site that made the point
	RoleReceiver     byte = 2 // a site that received and verified it
	AlgorithmEd25519 byte = 1
)

// Signature is one signature over the bytes of a manifest.
type Signature struct {
	Role      byte
	Algorithm byte
	// KeyID is SHA-256 of the public key.
	KeyID     dedupe.Digest
	Signature []byte
}

// Sign signs the bytes of a manifest as they stand.
func Sign(manifest []byte, role byte, key ed25519.PrivateKey) Signature {
	return Signature{Role: role, Algorithm: AlgorithmEd25519, KeyID: KeyID(key.Public().(ed25519.PublicKey)),
		Signature: ed25519.Sign(key, manifest)}
}

// KeyID is how a Signature names a public key.
func KeyID(key ed25519.PublicKey) dedupe.Digest { return dedupe.Sum(key) }

// Verify reports whether s is key's signature over the bytes of a manifest.
func (s Signature) Verify(manifest []byte, key ed25519.PublicKey) bool {
	return s.Algorithm == AlgorithmEd25519 && len(key) == ed25519.PublicKeySize && s.KeyID == KeyID(key) &&
		ed25519.Verify(key, manifest, s.Signature)
}

// Accounting is what making a point cost.
type Accounting struct {
	ReadBytes    int64 // given to ingest
	ChangedBytes int64 // in grains
	NewBytes     int64 // of blocks not held before, before compression
	StoredBytes  int64 // what they and their nodes take in packs
	// ProtectedBytes is the storage that the machine's protected disks occupied at the
	// cut; 0 is also what points of a release have that did not count it.
	ProtectedBytes int64
}

// Event is a deletion, a hold, the end of one, or a time that a point is given.
type Event struct {
	At    time.Time
	Until time.Time // zero: none
	Actor string    // who asked
	Text  string    // why
	// Proven is the time that locks are compared with, never after At. Zero: At. They
	// differ once a person has said what time it is, see package clock of the appliance.
	Proven time.Time
}

// lag is how far locks are behind the time that the event states.
func (e Event) lag() time.Duration { return e.At.Sub(e.proven()) }

// proven is the time that locks are compared with.
func (e Event) proven() time.Time {
	if e.Proven.IsZero() {
		return e.At
	}
	return e.Proven
}

// EncodeSignatures is the body of a NoteSignatures.
func EncodeSignatures(list []Signature) ([]byte, error) {
	if len(list) == 0 || len(list) > maxSignatures {
		return nil, invalid("note with %d signatures", len(list))
	}
	w := newNote(NoteSignatures)
	w.u16(uint16(len(list)))
	for _, s := range list {
		if len(s.Signature) > 1<<15 {
			return nil, invalid("signature of %d bytes", len(s.Signature))
		}
		w.raw([]byte{s.Role, s.Algorithm})
		w.raw(s.KeyID[:])
		w.text(string(s.Signature))
	}
	return w.seal(), nil
}

// DecodeSignatures is the inverse of EncodeSignatures.
func DecodeSignatures(body []byte) ([]Signature, error) {
	r, err := openNote(NoteSignatures, body)
	if err != nil {
		return nil, err
	}
	var list []Signature
	for range r.count(36) {
		s := Signature{Role: r.u8(), Algorithm: r.u8()}
		r.raw(s.KeyID[:])
		s.Signature = []byte(r.text())
		list = append(list, s)
	}
	return list, r.close(body, func() ([]byte, error) { return EncodeSignatures(list) })
}

// EncodeAccounting is the body of a NoteAccounting.
func EncodeAccounting(a Accounting) ([]byte, error) {
	w := newNote(NoteAccounting)
	for _, v := range []int64{a.ReadBytes, a.ChangedBytes, a.NewBytes, a.StoredBytes, a.ProtectedBytes} {
		if v < 0 {
			return nil, invalid("accounting with %d bytes", v)
		}
		w.u64(uint64(v))
	}
	w.zeros(24)
	return w.seal(), nil
}

// DecodeAccounting is the inverse of EncodeAccounting.
func DecodeAccounting(body []byte) (Accounting, error) {
	r, err := openNote(NoteAccounting, body)
	if err != nil {
		return Accounting{}, err
	}
	a := Accounting{ReadBytes: int64(r.u64()), ChangedBytes: int64(r.u64()), NewBytes: int64(r.u64()), StoredBytes: int64(r.u64()),
		ProtectedBytes: int64(r.u64())}
	r.skip(24)
	return a, r.close(body, func() ([]byte, error) { return EncodeAccounting(a) })
}

// EncodeEvent is the body of a note of type NoteDelete .. NoteLock.
func EncodeEvent(noteType uint16, e Event) ([]byte, error) {
	if noteType < NoteDelete || noteType > NoteLock {
		return nil, invalid("note type %d is not an event", noteType)
	}
	if noteType == NoteLock && e.Until.IsZero() {
		return nil, invalid("lock without an end")
	}
	if e.At.Unix() <= 0 || e.At.Year() > 2261 || e.Until.Year() > 2261 || len(e.Actor) > MaxNameBytes {
		return nil, invalid("event at %v until %v by %q", e.At, e.Until, e.Actor)
	}
	for _, s := range []string{e.Actor, e.Text} {
		if err := checkText("event's text", s); err != nil {
			return nil, err
		}
	}
	w := newNote(noteType)
	w.u64(uint64(e.At.UnixNano()))
	until := int64(0)
	if !e.Until.IsZero() {
		if until = e.Until.UnixNano(); until <= 0 {
			return nil, invalid("event until %v", e.Until)
		}
	}
	w.u64(uint64(until))
	proven := int64(0)
	if e.lag() != 0 {
		if proven = e.Proven.UnixNano(); e.lag() < 0 || e.Proven.Unix() <= 0 {
			return nil, invalid("event at %v, proven %v", e.At, e.Proven)
		}
	}
	w.u64(uint64(proven))
	w.zeros(8)
	w.text(e.Actor)
	w.text(e.Text)
	return w.seal(), nil
}

// DecodeEvent is the inverse of EncodeEvent.
func DecodeEvent(noteType uint16, body []byte) (Event, error) {
	r, err := openNote(noteType, body)
	if err != nil {
		return Event{}, err
	}
	e := Event{At: time.Unix(0, int64(r.u64())).UTC()}
	if until := int64(r.u64()); until != 0 {
		e.Until = time.Unix(0, until).UTC()
	}
	if proven := int64(r.u64()); proven != 0 {
		e.Proven = time.Unix(0, proven).UTC()
	}
	r.skip(8)
	e.Actor, e.Text = r.text(), r.text()
	return e, r.close(body, func() ([]byte, error) { return EncodeEvent(noteType, e) })
}

func newNote(noteType uint16) *writer {
	w := new(writer)
	w.raw([]byte(noteMagic))
	w.u16(noteVersion)
	w.u16(noteType)
	return w
}

func openNote(noteType uint16, body []byte) (*reader, error) {
	if len(body) < noteHeader+4 || len(body) > dedupe.MaxMetadataSize || string(body[:4]) != noteMagic {
		return nil, fmt.Errorf("note of %d bytes without the magic %s: %w", len(body), noteMagic, dedupe.ErrUnknownFormat)
	}
	if v := binary.LittleEndian.Uint16(body[4:]); v != noteVersion {
		return nil, fmt.Errorf("note of version %d: %w", v, dedupe.ErrUnknownFormat)
	}
	if t := binary.LittleEndian.Uint16(body[6:]); t != noteType {
		return nil, fmt.Errorf("note of type %d in a record of type %d: %w", t, noteType, dedupe.ErrCorrupt)
	}
	p, err := unseal(body)
	if err != nil {
		return nil, fmt.Errorf("note: %w", err)
	}
	return &reader{b: p, at: noteHeader}, nil
}

// close ends decoding: what was decoded must encode to the same bytes again.
func (r *reader) close(body []byte, encode func() ([]byte, error)) error {
	if r.err != nil {
		return fmt.Errorf("note: %w: %w", r.err, dedupe.ErrCorrupt)
	}
	again, err := encode()
	if err != nil {
		return fmt.Errorf("note: %w: %w", err, dedupe.ErrCorrupt)
	}
	if !bytes.Equal(again, body) {
		return fmt.Errorf("note is not in canonical form: %w", dedupe.ErrCorrupt)
	}
	return nil
}
