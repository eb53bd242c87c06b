package pack

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"github.com/keelblock/keelblock/dedupe"
)

// Sizes and limits of records; see FORMAT.md.
const (
	// RecordHeaderSize is what a record takes beyond its payload, in bytes.
	RecordHeaderSize = 192
	// MaxPayloadSize bounds the stored and the logical length of a record: the
	// largest block or metadata, and what a list of grains, a note or a seal adds to it.
	MaxPayloadSize = 1<<20 + dedupe.MaxGrains*dedupe.DigestSize + 4096
	// SealOverhead is what a seal adds to what it seals, in bytes.
	SealOverhead = 16

	recordVersion = 1
)

var (
	recordMagic = [4]byte{'K', 'R', 'E', 'C'}
	castagnoli  = crc32.MakeTable(crc32.Castagnoli)
)

// Kinds that only packs know, beside those of package dedupe.
const (
	// KindPublication lists what one commit made visible.
	KindPublication dedupe.Kind = 5
	// KindPad fills a pack up to the next page, so that committed bytes are never
	// written again.
	KindPad dedupe.Kind = 6
	// KindBundle holds the patches of several blocks: a directory in clear, then their
	// grains, compressed together.
	KindBundle dedupe.Kind = 7
)

// Codec is how a record's payload is compressed.
type Codec uint8

// The codecs.
const (
	CodecRaw  Codec = 0
	CodecZstd Codec = 1
	CodecS2   Codec = 2
)

// Encoding is what a record's payload, once decompressed, is.
type Encoding uint8

// The encodings.
const (
	// EncodingWhole: the content itself.
	EncodingWhole Encoding = 0
	// EncodingPatch: grains to lay over base blocks. It is the encoding of a bundle;
	// a block of its own with it is reserved: this release writes none and refuses
	// to read one.
	EncodingPatch Encoding = 1
)

// Cipher is how a record's payload is sealed.
type Cipher uint8

// The ciphers.
const (
	CipherNone Cipher = 0
	// CipherXAES is XAES-256-GCM: AES-256-GCM with a nonce of 24 bytes. Package
	// keyring seals and opens.
	CipherXAES Cipher = 1
)

const (
	flagCiphertextHash = 1 << 0
	flagGrainList      = 1 << 1
)

// KeyID names the data key that sealed a record; zero without a cipher.
type KeyID [16]byte

// Record is the header of one stored block, node, manifest, note or publication.
// The zero value of each field but Kind and Digest is right for a whole, raw,
// unsealed record; StoredLength and PayloadCRC are set when it is encoded.
type Record struct {
	Kind          dedupe.Kind
	Codec         Codec
	Encoding      Encoding
	Level         uint8 // of a node
	Depth         uint8 // patches down to a whole block
	Cipher        Cipher
	GrainSize     uint32 // of a patch, bytes
	LogicalLength uint32 // of the content, bytes
	StoredLength  uint32 // of the payload, bytes
	Domain        dedupe.DomainID
	KeyID         KeyID
	Digest        dedupe.Digest
	// HasCiphertextHash says that CiphertextHash, the SHA-256 of the payload, is
	// there, so that a site without the key can verify the record.
	HasCiphertextHash bool
	CiphertextHash    dedupe.Digest
	Base              dedupe.Digest // of a patch
	Nonce             [24]byte
	// HasGrainList says that a block's payload begins with the list of its grains'
	// digests: its digest is that of the list.
	HasGrainList bool
	// HeadLength is how much of the payload, from its start, stands before the content: a
	// bundle's directory, neither compressed nor sealed, or a block's list of grains,
	// sealed apart from the content. 0 for all else.
	HeadLength uint32
	PayloadCRC uint32
}

// Size is what the record takes in its pack, in bytes.
func (r *Record) Size() int64 { return RecordHeaderSize + int64(r.StoredLength) }

// EncodeRecord makes buf a record: its first RecordHeaderSize bytes are written,
// the rest is the payload and stays as it is. It sets r's StoredLength and
// PayloadCRC.
func EncodeRecord(r *Record, buf []byte) error {
	payload := buf[RecordHeaderSize:]
	r.StoredLength = uint32(len(payload))
	r.PayloadCRC = crc32.Checksum(payload, castagnoli)
	if err := r.validate(); err != nil {
		return fmt.Errorf("encode record of %v: %w", r.Digest, err)
	}
	h := buf[:RecordHeaderSize]
	r.encodeHeader(h)
	copy(h[hashOffset:], r.CiphertextHash[:])
	le := binary.LittleEndian
	le.PutUint32(h[crcOffset:], r.PayloadCRC)
	le.PutUint32(h[crcOffset+4:], crc32.Checksum(h[:crcOffset+4], castagnoli))
	return nil
}

// Offsets in a record's header.
const (
	hashOffset = 88
	// NonceOffset is where the nonce stands in a record's header.
	NonceOffset = 152
	crcOffset   = 184 // of the payload's CRC, before that of the header
)

// encodeHeader writes a record's header without ciphertext hash and CRCs.
func (r *Record) encodeHeader(h []byte) {
	clear(h)
	copy(h, recordMagic[:])
	h[4] = recordVersion
	h[5] = byte(r.Kind)
	h[6] = byte(r.Codec)
	h[7] = byte(r.Encoding)
	h[8] = r.Level
	h[9] = r.Depth
	if r.HasCiphertextHash {
		h[10] |= flagCiphertextHash
	}
	if r.HasGrainList {
		h[10] |= flagGrainList
	}
	h[11] = byte(r.Cipher)
	le := binary.LittleEndian
	le.PutUint32(h[12:], r.GrainSize)
	le.PutUint32(h[16:], r.LogicalLength)
	le.PutUint32(h[20:], r.StoredLength)
	copy(h[24:], r.Domain[:])
	copy(h[40:], r.KeyID[:])
	copy(h[56:], r.Digest[:])
	copy(h[120:], r.Base[:])
	copy(h[NonceOffset:], r.Nonce[:])
	le.PutUint32(h[176:], r.HeadLength)
}

// EncodeAssociatedData writes what is authenticated with a sealed payload to dst,
// RecordHeaderSize bytes: the header as EncodeRecord will write it, with ciphertext hash
// and both CRCs zero. r's StoredLength, with what the seal adds, must be set.
func EncodeAssociatedData(r *Record, dst []byte) error {
	if err := r.validate(); err != nil {
		return fmt.Errorf("seal record of %v: %w", r.Digest, err)
	}
	r.encodeHeader(dst[:RecordHeaderSize])
	return nil
}

// ClearUnauthenticated makes a record's header, as it was read, what was authenticated.
func ClearUnauthenticated(h []byte) {
	clear(h[hashOffset : hashOffset+dedupe.DigestSize])
	clear(h[crcOffset:RecordHeaderSize])
}

// CheckCiphertext compares the payload of a sealed record with its ciphertext hash: it
// says without a key whether the payload is what was written. A record without a hash
// has only its CRC to say so.
func (r *Record) CheckCiphertext(payload []byte) error {
	if !r.HasCiphertextHash {
		return nil
	}
	if sum := dedupe.Sum(payload); sum != r.CiphertextHash {
		return fmt.Errorf("sealed payload has hash %v, want %v: %w", sum, r.CiphertextHash, dedupe.ErrCorrupt)
	}
	return nil
}

// DecodeRecord reads a record's header from the first RecordHeaderSize bytes of b.
// dedupe.ErrCorrupt when its magic or CRC is wrong; dedupe.ErrUnknownFormat when
// they are right and the version, kind, codec, encoding, flag or cipher is not
// known to this release.
func DecodeRecord(b []byte) (Record, error) {
	var r Record
	if len(b) < RecordHeaderSize {
		return r, fmt.Errorf("record header of %d bytes: %w", len(b), dedupe.ErrCorrupt)
	}
	h := b[:RecordHeaderSize]
	if [4]byte(h) != recordMagic {
		return r, fmt.Errorf("record magic %x: %w", h[:4], dedupe.ErrCorrupt)
	}
	le := binary.LittleEndian
	if le.Uint32(h[188:]) != crc32.Checksum(h[:188], castagnoli) {
		return r, fmt.Errorf("record header checksum: %w", dedupe.ErrCorrupt)
	}
	if h[4] != recordVersion {
		return r, fmt.Errorf("record version %d: %w", h[4], dedupe.ErrUnknownFormat)
	}
	r = Record{
		Kind: dedupe.Kind(h[5]), Codec: Codec(h[6]), Encoding: Encoding(h[7]),
		Level: h[8], Depth: h[9], Cipher: Cipher(h[11]),
		GrainSize: le.Uint32(h[12:]), LogicalLength: le.Uint32(h[16:]), StoredLength: le.Uint32(h[20:]),
		Domain: dedupe.DomainID(h[24:40]), KeyID: KeyID(h[40:56]), Digest: dedupe.Digest(h[56:88]),
		HasCiphertextHash: h[10]&flagCiphertextHash != 0, CiphertextHash: dedupe.Digest(h[88:120]),
		Base: dedupe.Digest(h[120:152]), Nonce: [24]byte(h[152:176]),
		HasGrainList: h[10]&flagGrainList != 0,
		HeadLength:   le.Uint32(h[176:]), PayloadCRC: le.Uint32(h[184:]),
	}
	if h[10]&^(flagCiphertextHash|flagGrainList) != 0 {
		return r, fmt.Errorf("record flags %#x: %w", h[10], dedupe.ErrUnknownFormat)
	}
	return r, r.validate()
}

// validate refuses what this release does not know, and lengths past the limits.
func (r *Record) validate() error {
	switch {
	case r.Kind < dedupe.KindBlock || r.Kind > KindBundle:
		return fmt.Errorf("record kind %d: %w", r.Kind, dedupe.ErrUnknownFormat)
	case r.Codec > CodecS2:
		return fmt.Errorf("record codec %d: %w", r.Codec, dedupe.ErrUnknownFormat)
	case r.Encoding > EncodingPatch:
		return fmt.Errorf("record encoding %d: %w", r.Encoding, dedupe.ErrUnknownFormat)
	case r.Cipher > CipherXAES:
		return fmt.Errorf("record cipher %d: %w", r.Cipher, dedupe.ErrUnknownFormat)
	case r.StoredLength > MaxPayloadSize || r.LogicalLength > MaxPayloadSize:
		return fmt.Errorf("record lengths %d stored, %d logical, limit %d: %w",
			r.StoredLength, r.LogicalLength, MaxPayloadSize, dedupe.ErrCorrupt)
	case r.Kind == KindBundle && (r.Encoding != EncodingPatch || r.GrainSize != GrainSize):
		return fmt.Errorf("bundle with encoding %d and grains of %d bytes: %w", r.Encoding, r.GrainSize, dedupe.ErrUnknownFormat)
	case r.HasGrainList && (r.Kind != dedupe.KindBlock || r.Encoding != EncodingWhole):
		return fmt.Errorf("record of kind %d and encoding %d with a list of grains: %w", r.Kind, r.Encoding, dedupe.ErrUnknownFormat)
	case r.HasGrainList && r.HeadLength != r.listLength(),
		r.HeadLength > r.StoredLength || (r.Kind != KindBundle && !r.HasGrainList && r.HeadLength != 0):
		return fmt.Errorf("record of kind %d with %d of %d bytes before its content: %w", r.Kind, r.HeadLength, r.StoredLength, dedupe.ErrCorrupt)
	}
	return nil
}

// listLength is the length of a block's list of grains, as it is stored.
func (r *Record) listLength() uint32 {
	return uint32(ListLength(int(r.LogicalLength), r.Cipher))
}

// ListLength is the length of the list of grains of a block of blockSize bytes in its
// record, with its seal.
func ListLength(blockSize int, c Cipher) int {
	n := blockSize / GrainSize * dedupe.DigestSize
	if c != CipherNone {
		n += SealOverhead
	}
	return n
}

// AppendList appends a list of grains as it is stored, before it is sealed.
func AppendList(b []byte, list []dedupe.Digest) []byte {
	for i := range list {
		b = append(b, list[i][:]...)
	}
	return b
}

// DecodeList is the inverse of AppendList: p is copied to list, which has its length.
func DecodeList(list []dedupe.Digest, p []byte) error {
	if len(p) != len(list)*dedupe.DigestSize {
		return fmt.Errorf("list of %d grains in %d bytes: %w", len(list), len(p), dedupe.ErrCorrupt)
	}
	for i := range list {
		list[i] = dedupe.Digest(p[i*dedupe.DigestSize:][:dedupe.DigestSize])
	}
	return nil
}

// CheckPayload compares payload with the header's length and CRC.
func (r *Record) CheckPayload(payload []byte) error {
	if uint32(len(payload)) != r.StoredLength {
		return fmt.Errorf("record payload of %d bytes, want %d: %w", len(payload), r.StoredLength, dedupe.ErrCorrupt)
	}
	if crc32.Checksum(payload, castagnoli) != r.PayloadCRC {
		return fmt.Errorf("record payload checksum: %w", dedupe.ErrCorrupt)
	}
	return nil
}

// Sum is the digest of plain content of a kind in a key domain.
func Sum(g dedupe.Digester, kind dedupe.Kind, level uint8, plain []byte) (dedupe.Digest, error) {
	switch kind {
	case dedupe.KindNode:
	case dedupe.KindBlock:
		if g.Grains() && len(plain)%GrainSize != 0 {
			return dedupe.Digest{}, fmt.Errorf("block of %d bytes: %w", len(plain), dedupe.ErrCorrupt)
		}
		return g.Block(plain), nil
	case dedupe.KindNote:
		return g.Note(plain), nil
	default:
		return dedupe.Sum(plain), nil
	}
	children, err := DecodeNode(plain)
	if err != nil {
		return dedupe.Digest{}, err
	}
	return dedupe.NodeSum(int(level), children), nil
}

// NodeSize is the length of a node's content, in bytes.
const NodeSize = dedupe.FanOut * dedupe.DigestSize

// EncodeNode writes a node's content to dst, which has room for NodeSize bytes.
func EncodeNode(dst []byte, children *[dedupe.FanOut]dedupe.Digest) {
	for i := range children {
		copy(dst[i*dedupe.DigestSize:], children[i][:])
	}
}

// DecodeNode is the inverse of EncodeNode; a node without children is refused.
func DecodeNode(p []byte) (*[dedupe.FanOut]dedupe.Digest, error) {
	if len(p) != NodeSize {
		return nil, fmt.Errorf("node of %d bytes, want %d: %w", len(p), NodeSize, dedupe.ErrCorrupt)
	}
	var children [dedupe.FanOut]dedupe.Digest
	empty := true
	for i := range children {
		copy(children[i][:], p[i*dedupe.DigestSize:])
		empty = empty && children[i].IsZero()
	}
	if empty {
		return nil, fmt.Errorf("node without children: %w", dedupe.ErrCorrupt)
	}
	return &children, nil
}
