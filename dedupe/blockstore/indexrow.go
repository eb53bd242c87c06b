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
	// prefixQuarantine, kind and digest → since when its record verifies nowhere
	prefixQuarantine = 'X'
)

const (
	placeVersion = 1
	placeSize    = 20
	// A patch has a longer row, of its own version: all of a place, and what the
	// bundle does not say before it is read.
	patchVersion = 2
	patchSize    = placeSize + 8 + dedupe.DigestSize
	metaSize     = 72
	metaMoreSize = 80 // with the serial of the checkpoint
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

	// Of a patch, whose encoding is not whole; its record is the bundle's. The base is
	// an edge: whoever keeps the patch keeps it too.
	base  dedupe.Digest
	depth uint8  // patches down to a whole block, from 1
	total uint8  // grains that they lay over it
	slot  uint8  // in the bundle
	share uint32 // of the bundle's size, for accounts
	// memory is the patch itself while its bundle is not in a pack; else nil.
	memory *patchInMemory
}

// size is what the record takes in its pack.
func (p place) size() int64 { return pack.RecordHeaderSize + int64(p.stored) }

// account is what is counted as stored for the content: a patch has a part of its
// bundle's record, and the parts of all its patches are the record's size.
func (p place) account() int64 {
	if p.isPatch() {
		return int64(p.share)
	}
	return p.size()
}

func (p place) isPatch() bool { return p.encoding != pack.EncodingWhole }

// hasBase reports whether it is a patch over another block, and not over zeros.
func (p place) hasBase() bool { return p.isPatch() && !p.base.IsZero() }

// same reports whether both are of the same bytes of a pack.
func (p place) same(q place) bool {
	return p.pack == q.pack && p.offset == q.offset && p.encoding == q.encoding && p.slot == q.slot
}

// encodedSize is what append appends.
func (p place) encodedSize() int {
	if p.isPatch() {
		return patchSize
	}
	return placeSize
}

func (p place) append(b []byte) []byte {
	le := binary.LittleEndian
	version := byte(placeVersion)
	if p.isPatch() {
		version = patchVersion
	}
	b = append(b, version, p.flags, byte(p.encoding), p.level)
	b = le.AppendUint32(b, p.pack)
	b = le.AppendUint32(b, p.offset)
	b = le.AppendUint32(b, p.stored)
	b = le.AppendUint32(b, p.epoch)
	if version == placeVersion {
		return b
	}
	b = append(b, p.slot, p.depth, p.total, 0)
	b = le.AppendUint32(b, p.share)
	return append(b, p.base[:]...)
}

func decodePlace(b []byte) (place, error) {
	if len(b) < placeSize || (b[0] != placeVersion && (b[0] != patchVersion || len(b) < patchSize)) {
		return place{}, fmt.Errorf("index entry %x: %w", b, dedupe.ErrCorrupt)
	}
	le := binary.LittleEndian
	p := place{flags: b[1], encoding: pack.Encoding(b[2]), level: b[3],
		pack: le.Uint32(b[4:]), offset: le.Uint32(b[8:]), stored: le.Uint32(b[12:]), epoch: le.Uint32(b[16:])}
	if p.isPatch() != (b[0] == patchVersion) {
		return place{}, fmt.Errorf("index entry %x of encoding %d: %w", b, b[2], dedupe.ErrCorrupt)
	}
	if p.isPatch() {
		p.slot, p.depth, p.total, p.share = b[20], b[21], b[22], le.Uint32(b[24:])
		p.base = dedupe.Digest(b[28:patchSize])
	}
	return p, nil
}

// placeOf is the place of a pack's entry.
func placeOf(number, epoch uint32, e *pack.Entry) place {
	return place{pack: number, offset: uint32(e.Offset), stored: e.StoredLength, epoch: epoch,
		level: e.Level, encoding: e.Encoding, flags: e.Flags}
}

// patchPlace is the place of patch i of a bundle.
func patchPlace(number, epoch uint32, e *pack.Entry, i int) place {
	p, m := placeOf(number, epoch, e), &e.Patches[i]
	p.base, p.depth, p.total, p.slot, p.share = m.Base, m.Depth, m.Total, uint8(i), m.Share
	return p
}

// indexRow is the index entry of a block or node.
type indexRow struct {
	kind   dedupe.Kind
	digest dedupe.Digest
	place  place
}

// rowsOf are the index entries of a pack's blocks, patches and nodes. Kinds that are
// published otherwise have none.
func rowsOf(number, epoch uint32, entries []pack.Entry) []indexRow {
	rows := make([]indexRow, 0, len(entries))
	for i := range entries {
		e := &entries[i]
		switch e.Kind {
		case dedupe.KindBlock, dedupe.KindNode:
			rows = append(rows, indexRow{e.Kind, e.Digest, placeOf(number, epoch, e)})
		case pack.KindBundle:
			for j := range e.Patches {
				rows = append(rows, indexRow{dedupe.KindBlock, e.Patches[j].Digest, patchPlace(number, epoch, e, j)})
			}
		}
	}
	return rows
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
	packDropped packState = 4 // no entry is in it; its file is removed, or about to be
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
	// checkpoint is the serial of the newest one, 0 for none: what was published up
	// to it stands there, and not in publications.
	checkpoint uint64
}

func (m *meta) encode() []byte {
	le := binary.LittleEndian
	b := append(make([]byte, 0, metaMoreSize), m.vault[:]...)
	b = le.AppendUint64(b, m.nextSerial)
	b = le.AppendUint64(b, m.nextSequence)
	b = le.AppendUint32(b, m.nextPack)
	b = le.AppendUint32(b, m.epoch)
	for _, n := range []int64{m.packs, m.packBytes, m.blocks, m.nodes} {
		b = le.AppendUint64(b, uint64(n))
	}
	return le.AppendUint64(b, m.checkpoint)
}

func decodeMeta(b []byte) (meta, error) {
	if len(b) < metaSize {
		return meta{}, fmt.Errorf("index header of %d bytes: %w", len(b), dedupe.ErrCorrupt)
	}
	le := binary.LittleEndian
	m := meta{vault: pack.VaultID(b[:16]), nextSerial: le.Uint64(b[16:]), nextSequence: le.Uint64(b[24:]),
		nextPack: le.Uint32(b[32:]), epoch: le.Uint32(b[36:]), packs: int64(le.Uint64(b[40:])),
		packBytes: int64(le.Uint64(b[48:])), blocks: int64(le.Uint64(b[56:])), nodes: int64(le.Uint64(b[64:]))}
	if len(b) >= metaMoreSize { // an index of the first release has none
		m.checkpoint = le.Uint64(b[metaSize:])
	}
	return m, nil
}
