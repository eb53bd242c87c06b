package blockstore

import (
	"encoding/binary"
	"fmt"

	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/pack"
)

// The index's keys begin with one of these.
const (
	prefixBlock    = 'B' // digest → place
	prefixNode     = 'N' // digest → place
	prefixManifest = 'M' // digest → place, of published manifests only
	prefixNote     = 'T' // sequence, big endian → place, digest
	prefixPack     = 'P' // pack number, big endian → packRow
	prefixPackID   = 'Q' // pack id → pack number
	prefixMeta     = 'S' // → meta
)

const (
	placeVersion = 1
	placeSize    = 20
	metaSize     = 72
	packRowSize  = 28
	// txnEntries bounds one transaction of the index.
	txnEntries = 4096
	// entryBytes is what one entry may cost Badger until it is compacted, in bytes;
	// an entry at rest is 68.
	entryBytes = 256
)

// place is where a record is: the value of an index entry.
type place struct {
	pack     uint32 // its number, not its id
	offset   uint32
	stored   uint32
	epoch    uint32 // in which it was written or last verified
	level    uint8  // of a node
	encoding pack.Encoding
	flags    uint8
}

func (p place) size() int64 { return pack.RecordHeaderSize + int64(p.stored) }

func (p place) append(b []byte) []byte {
	le := binary.LittleEndian
	b = append(b, placeVersion, p.flags, byte(p.encoding), p.level)
	b = le.AppendUint32(b, p.pack)
	b = le.AppendUint32(b, p.offset)
	b = le.AppendUint32(b, p.stored)
	return le.AppendUint32(b, p.epoch)
}

func decodePlace(b []byte) (place, error) {
	if len(b) < placeSize || b[0] != placeVersion {
		return place{}, fmt.Errorf("index entry %x: %w", b, dedupe.ErrCorrupt)
	}
	le := binary.LittleEndian
	return place{flags: b[1], encoding: pack.Encoding(b[2]), level: b[3],
		pack: le.Uint32(b[4:]), offset: le.Uint32(b[8:]), stored: le.Uint32(b[12:]), epoch: le.Uint32(b[16:])}, nil
}

// placeOf is the place of a pack's entry.
func placeOf(number, epoch uint32, e *pack.Entry) place {
	return place{pack: number, offset: uint32(e.Offset), stored: e.StoredLength, epoch: epoch,
		level: e.Level, encoding: e.Encoding, flags: e.Flags}
}

// contentKey is the key of a block, node or manifest.
func contentKey(kind dedupe.Kind, d dedupe.Digest) []byte {
	k := make([]byte, 1+dedupe.DigestSize)
	switch kind {
	case dedupe.KindBlock:
		k[0] = prefixBlock
	case dedupe.KindNode:
		k[0] = prefixNode
	case dedupe.KindManifest:
		k[0] = prefixManifest
	}
	copy(k[1:], d[:])
	return k
}

func noteKey(sequence uint64) []byte {
	return binary.BigEndian.AppendUint64([]byte{prefixNote}, sequence)
}

func packKey(number uint32) []byte {
	return binary.BigEndian.AppendUint32([]byte{prefixPack}, number)
}

// packState is how far a pack has come.
type packState uint8

const (
	packOpen    packState = 1 // may be appended to, by the process that has it open
	packSealed  packState = 2
	packRetired packState = 3 // damaged or never sealed: read, never written
)

// packRow is what the index knows about a pack.
type packRow struct {
	number uint32
	id     pack.ID
	class  pack.Class
	state  packState
	end    int64 // all below it is synced and indexed
}

func (r packRow) encode() []byte {
	b := append(make([]byte, 0, packRowSize), r.id[:]...)
	b = append(b, byte(r.class), byte(r.state), 0, 0)
	return binary.LittleEndian.AppendUint64(b, uint64(r.end))
}

func decodePackRow(number uint32, b []byte) (packRow, error) {
	if len(b) < packRowSize {
		return packRow{}, fmt.Errorf("index row of pack %d: %w", number, dedupe.ErrCorrupt)
	}
	return packRow{number: number, id: pack.ID(b[:16]), class: pack.Class(b[16]), state: packState(b[17]),
		end: int64(binary.LittleEndian.Uint64(b[20:]))}, nil
}

// meta is what the index knows about the whole vault. It is part of every
// transaction that changes it.
type meta struct {
	vault        pack.VaultID
	nextSerial   uint64
	nextSequence uint64
	nextPack     uint32
	epoch        uint32
	packs        int64
	packBytes    int64
	blocks       int64
	nodes        int64
}

func (m *meta) encode() []byte {
	le := binary.LittleEndian
	b := append(make([]byte, 0, metaSize), m.vault[:]...)
	b = le.AppendUint64(b, m.nextSerial)
	b = le.AppendUint64(b, m.nextSequence)
	b = le.AppendUint32(b, m.nextPack)
	b = le.AppendUint32(b, m.epoch)
	for _, n := range []int64{m.packs, m.packBytes, m.blocks, m.nodes} {
		b = le.AppendUint64(b, uint64(n))
	}
	return b
}

func decodeMeta(b []byte) (meta, error) {
	if len(b) < metaSize {
		return meta{}, fmt.Errorf("index header of %d bytes: %w", len(b), dedupe.ErrCorrupt)
	}
	le := binary.LittleEndian
	return meta{vault: pack.VaultID(b[:16]), nextSerial: le.Uint64(b[16:]), nextSequence: le.Uint64(b[24:]),
		nextPack: le.Uint32(b[32:]), epoch: le.Uint32(b[36:]), packs: int64(le.Uint64(b[40:])),
		packBytes: int64(le.Uint64(b[48:])), blocks: int64(le.Uint64(b[56:])), nodes: int64(le.Uint64(b[64:]))}, nil
}
