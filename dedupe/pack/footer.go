package pack

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/keelblock/keelblock/dedupe"
)

const (
	// MaxEntries bounds the records of one pack.
	MaxEntries = 1 << 18

	footerHeaderSize = 64
	entrySize        = 56
	patchEntrySize   = entrySize + dedupe.DigestSize
	hashSize         = sha256.Size
	trailerSize      = 32
)

var (
	footerMagic  = [8]byte{'K', 'E', 'E', 'L', 'F', 'O', 'O', 'T'}
	trailerMagic = [8]byte{'K', 'E', 'E', 'L', 'S', 'E', 'A', 'L'}
)

// ErrNotSealed: the pack has no trailer at its end; read it with Scan.
var ErrNotSealed = errors.New("pack is not sealed")

// Entry is what a footer says about one record, enough to rebuild an index.
type Entry struct {
	Kind          dedupe.Kind
	Codec         Codec
	Encoding      Encoding
	Level         uint8
	Depth         uint8
	Flags         uint8
	Cipher        Cipher
	Offset        int64 // of the record's header in the pack
	StoredLength  uint32
	LogicalLength uint32
	Digest        dedupe.Digest
	Base          dedupe.Digest // of a patch
	Patches       []Patch       // of a bundle
}

// Size is what the record takes in its pack, in bytes.
func (e *Entry) Size() int64 { return RecordHeaderSize + int64(e.StoredLength) }

// entryOf is the footer's entry of a record at an offset, with the patches of a bundle.
func entryOf(r *Record, off int64, patches []Patch) Entry {
	e := Entry{
		Kind: r.Kind, Codec: r.Codec, Encoding: r.Encoding, Level: r.Level, Depth: r.Depth, Cipher: r.Cipher,
		Offset: off, StoredLength: r.StoredLength, LogicalLength: r.LogicalLength, Digest: r.Digest, Base: r.Base,
		Patches: patches,
	}
	if r.HasCiphertextHash {
		e.Flags |= flagCiphertextHash
	}
	return e
}

// Footer is the end of a sealed pack. Header.Created is not in it.
type Footer struct {
	Header  Header
	Entries []Entry
	// RecordsEnd is the offset of the footer, behind the last record.
	RecordsEnd int64
}

// SealSize is what sealing adds to a pack of n whole records, in bytes.
func SealSize(n int) int64 { return footerHeaderSize + int64(n)*entrySize + hashSize + trailerSize }

// footerSize is what the entries take in a footer.
func footerSize(entries []Entry) (n int64) {
	for i := range entries {
		n += entries[i].footerSize()
	}
	return n
}

func (e *Entry) footerSize() int64 {
	switch {
	case e.Kind == KindBundle:
		return entrySize + 4 + int64(len(e.Patches))*patchSize
	case e.Encoding != EncodingWhole:
		return patchEntrySize
	}
	return entrySize
}

// EncodeFooter is footer, hash and trailer, to be written at offset at.
func EncodeFooter(h *Header, entries []Entry, at int64) []byte {
	b := make([]byte, footerHeaderSize, SealSize(0)+footerSize(entries))
	le := binary.LittleEndian
	copy(b, footerMagic[:])
	le.PutUint16(b[8:], packVersion)
	b[10] = byte(h.Class)
	le.PutUint32(b[12:], uint32(len(entries)))
	copy(b[16:], h.ID[:])
	copy(b[32:], h.Vault[:])
	copy(b[48:], h.Domain[:])
	for i := range entries {
		e := &entries[i]
		b = append(b, byte(e.Kind), byte(e.Codec), byte(e.Encoding), e.Level, e.Depth, e.Flags, byte(e.Cipher), 0)
		b = le.AppendUint64(b, uint64(e.Offset))
		b = le.AppendUint32(b, e.StoredLength)
		b = le.AppendUint32(b, e.LogicalLength)
		b = append(b, e.Digest[:]...)
		switch {
		case e.Kind == KindBundle:
			b = appendPatches(b, e.Patches)
		case e.Encoding != EncodingWhole:
			b = append(b, e.Base[:]...)
		}
	}
	n := len(b)
	sum := sha256.Sum256(b)
	b = append(b, sum[:]...)
	b = le.AppendUint64(b, uint64(at))
	b = le.AppendUint32(b, uint32(n))
	b = le.AppendUint16(b, packVersion)
	b = append(b, make([]byte, 6)...)
	b = le.AppendUint32(b, crc32.Checksum(b[n:], castagnoli))
	return append(b, trailerMagic[:]...)
}

// ReadFooter reads the footer of a sealed pack of size bytes. ErrNotSealed without
// a trailer at its end; dedupe.ErrCorrupt when trailer, hash or an entry is wrong;
// dedupe.ErrUnknownFormat for another version.
func ReadFooter(r io.ReaderAt, size int64) (*Footer, error) {
	if size < HeaderSize+SealSize(0) {
		return nil, ErrNotSealed
	}
	var tail [hashSize + trailerSize]byte
	if _, err := r.ReadAt(tail[:], size-int64(len(tail))); err != nil {
		return nil, fmt.Errorf("read pack trailer: %w", err)
	}
	le := binary.LittleEndian
	t := tail[hashSize:]
	if [8]byte(t[24:]) != trailerMagic {
		return nil, ErrNotSealed
	}
	if le.Uint32(t[20:]) != crc32.Checksum(tail[:hashSize+20], castagnoli) {
		return nil, fmt.Errorf("pack trailer checksum: %w", dedupe.ErrCorrupt)
	}
	if v := le.Uint16(t[12:]); v != packVersion {
		return nil, fmt.Errorf("pack trailer version %d: %w", v, dedupe.ErrUnknownFormat)
	}
	at, n := int64(le.Uint64(t)), int64(le.Uint32(t[8:]))
	if at < HeaderSize || n < footerHeaderSize || n > footerHeaderSize+MaxEntries*patchEntrySize ||
		at > size || at+n+hashSize+trailerSize != size {
		return nil, fmt.Errorf("pack trailer names %d bytes at %d of %d: %w", n, at, size, dedupe.ErrCorrupt)
	}
	b := make([]byte, n)
	if _, err := r.ReadAt(b, at); err != nil {
		return nil, fmt.Errorf("read pack footer: %w", err)
	}
	if sha256.Sum256(b) != [hashSize]byte(tail[:hashSize]) {
		return nil, fmt.Errorf("pack footer hash: %w", dedupe.ErrCorrupt)
	}
	return decodeFooter(b, at)
}

// decodeFooter reads a footer whose hash is right. Everything is checked all the
// same: who can write a footer can write a hash.
func decodeFooter(b []byte, at int64) (*Footer, error) {
	le := binary.LittleEndian
	if len(b) < footerHeaderSize || [8]byte(b) != footerMagic {
		return nil, fmt.Errorf("pack footer magic: %w", dedupe.ErrCorrupt)
	}
	if v := le.Uint16(b[8:]); v != packVersion {
		return nil, fmt.Errorf("pack footer version %d: %w", v, dedupe.ErrUnknownFormat)
	}
	f := &Footer{RecordsEnd: at, Header: Header{
		Class: Class(b[10]), ID: ID(b[16:32]), Vault: VaultID(b[32:48]), Domain: dedupe.DomainID(b[48:64]),
	}}
	if f.Header.Class != ClassData && f.Header.Class != ClassMetadata {
		return nil, fmt.Errorf("pack class %d: %w", b[10], dedupe.ErrUnknownFormat)
	}
	count := int64(le.Uint32(b[12:]))
	b = b[footerHeaderSize:]
	if count > MaxEntries || count*entrySize > int64(len(b)) {
		return nil, fmt.Errorf("pack footer of %d entries in %d bytes: %w", count, len(b), dedupe.ErrCorrupt)
	}
	f.Entries = make([]Entry, count)
	free, patches := int64(HeaderSize), int64(0) // where the next record may begin; patches so far
	for i := range f.Entries {
		n, err := f.Entries[i].decode(b)
		if err != nil {
			return nil, fmt.Errorf("pack footer entry %d: %w", i, err)
		}
		b = b[n:]
		e := &f.Entries[i]
		if e.Offset < free || e.Offset > at-e.Size() || !f.Header.Class.Holds(e.Kind) {
			return nil, fmt.Errorf("pack footer entry %d: kind %d at %d: %w", i, e.Kind, e.Offset, dedupe.ErrCorrupt)
		}
		free = e.Offset + e.Size()
		if patches += int64(len(e.Patches)); count+patches > MaxEntries {
			return nil, fmt.Errorf("pack footer of more than %d entries and patches: %w", MaxEntries, dedupe.ErrCorrupt)
		}
	}
	if len(b) != 0 {
		return nil, fmt.Errorf("pack footer: %d bytes behind its entries: %w", len(b), dedupe.ErrCorrupt)
	}
	return f, nil
}

// decode reads one entry from the start of b and returns its length.
func (e *Entry) decode(b []byte) (int, error) {
	if len(b) < entrySize {
		return 0, fmt.Errorf("%d bytes left: %w", len(b), dedupe.ErrCorrupt)
	}
	le := binary.LittleEndian
	*e = Entry{
		Kind: dedupe.Kind(b[0]), Codec: Codec(b[1]), Encoding: Encoding(b[2]), Level: b[3], Depth: b[4],
		Flags: b[5], Cipher: Cipher(b[6]), Offset: int64(le.Uint64(b[8:])),
		StoredLength: le.Uint32(b[16:]), LogicalLength: le.Uint32(b[20:]), Digest: dedupe.Digest(b[24:56]),
	}
	r := Record{Kind: e.Kind, Codec: e.Codec, Encoding: e.Encoding, Cipher: e.Cipher,
		StoredLength: e.StoredLength, LogicalLength: e.LogicalLength}
	if e.Kind == KindBundle {
		r.GrainSize = GrainSize // an entry does not have it
	}
	if err := r.validate(); err != nil {
		return 0, err
	}
	switch {
	case e.Kind == KindBundle:
		list, n, err := decodePatches(b[entrySize:], e.Size())
		e.Patches = list
		return entrySize + n, err
	case e.Encoding == EncodingWhole:
		return entrySize, nil
	}
	if len(b) < patchEntrySize {
		return 0, fmt.Errorf("%d bytes left: %w", len(b), dedupe.ErrCorrupt)
	}
	e.Base = dedupe.Digest(b[56:88])
	return patchEntrySize, nil
}
