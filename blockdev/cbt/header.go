package cbt

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/keelblock/keelblock/blockdev"
)

// PointID names a committed recovery point; its bytes are the digest of the
// manifest. The zero value is none. This package knows nothing else about points.
type PointID [32]byte

// IsZero reports whether p names no point.
func (p PointID) IsZero() bool { return p == PointID{} }

// Witness is what a backing file looked like when its map was saved. A file that
// looks different was written by somebody else in between.
type Witness struct {
	Inode      uint64
	Size       int64
	MtimeNanos int64
	CtimeNanos int64
}

// Format constants; the tables are in FORMAT.md.
const (
	mapMagic      = "KBCBTMAP"
	savedMagic    = "KBCBTSAV"
	formatVersion = 1
	// headerBytes is the length of an encoded header, of both files.
	headerBytes = 512
	// maxDiskID, maxBootID and maxReason bound the strings of a header, in bytes.
	maxDiskID = 96
	maxBootID = 40
	maxReason = 96
)

const (
	flagClean   = 1 << 0 // saved map: nothing was written since
	flagWitness = 1 << 1 // saved map: the witness is filled in
	// flagNarrow: state is TrackingCompare, and only the active regions of the intent
	// map are in doubt.
	flagNarrow = 1 << 2
	// flagUnwitnessed: after a clean stop nothing showed whether the disk had been
	// written meanwhile; see Options.AuditUnwitnessed.
	flagUnwitnessed = 1 << 3
)

// header is what the map file, the saved map and the intent file say about themselves.
// All use one layout, told apart by their magic.
type header struct {
	flags    uint16
	state    Tracking
	sequence uint64
	// serial is the map serial: it grows by one whenever the map begins anew or is
	// loaded from its saved form. session is drawn at random with it, so that two
	// copies of one data directory cannot be taken for each other.
	serial    uint64
	session   [16]byte
	sizeBytes int64
	base      PointID
	candidate PointID
	witness   Witness
	leaves    uint64 // saved map: leaf records in the body
	bodySum   uint32 // saved map: CRC-32C of the body
	diskID    string
	bootID    string // map file: the kernel that it lives in
	reason    string // why state is TrackingCompare
	// resizeTo is the size to which the disk is being resized, 0 when it is not: the
	// disk has that size or sizeBytes, and what lies between them is changed.
	resizeTo int64
	// before and intentID are those of the intent file: the session of the saved map
	// that was there when the file was opened, and what its sectors bear.
	before   [16]byte
	intentID uint64
}

var (
	errHeader     = errors.New("header is damaged")
	castagnoli    = crc32.MakeTable(crc32.Castagnoli)
	littleEndian  = binary.LittleEndian
	errNotWritten = errors.New("header was never written")
)

// encode fills buf[:headerBytes].
func (h *header) encode(magic string, buf []byte) {
	b := buf[:headerBytes]
	clear(b)
	copy(b, magic)
	littleEndian.PutUint16(b[8:], formatVersion)
	littleEndian.PutUint16(b[10:], h.flags)
	b[12] = byte(h.state)
	b[14] = grainShift
	littleEndian.PutUint64(b[16:], h.sequence)
	littleEndian.PutUint64(b[24:], h.serial)
	copy(b[32:48], h.session[:])
	littleEndian.PutUint64(b[48:], uint64(h.sizeBytes))
	copy(b[56:88], h.base[:])
	copy(b[88:120], h.candidate[:])
	littleEndian.PutUint64(b[120:], h.witness.Inode)
	littleEndian.PutUint64(b[128:], uint64(h.witness.Size))
	littleEndian.PutUint64(b[136:], uint64(h.witness.MtimeNanos))
	littleEndian.PutUint64(b[144:], uint64(h.witness.CtimeNanos))
	littleEndian.PutUint64(b[152:], h.leaves)
	littleEndian.PutUint32(b[160:], h.bodySum)
	putString(b[164:164+1+maxDiskID], h.diskID)
	putString(b[261:261+1+maxBootID], h.bootID)
	putString(b[302:302+1+maxReason], h.reason)
	littleEndian.PutUint64(b[400:], uint64(h.resizeTo))
	copy(b[408:424], h.before[:])
	littleEndian.PutUint64(b[424:], h.intentID)
	littleEndian.PutUint32(b[508:], crc32.Checksum(b[:508], castagnoli))
}

// decodeHeader refuses what it does not know to the letter.
func decodeHeader(magic string, b []byte) (header, error) {
	var h header
	if len(b) < headerBytes {
		return h, fmt.Errorf("%w: %d bytes", errHeader, len(b))
	}
	b = b[:headerBytes]
	if string(b[:8]) != magic {
		if string(b[:8]) == "\x00\x00\x00\x00\x00\x00\x00\x00" {
			return h, errNotWritten
		}
		return h, fmt.Errorf("%w: magic %q", errHeader, b[:8])
	}
	if got, want := crc32.Checksum(b[:508], castagnoli), littleEndian.Uint32(b[508:]); got != want {
		return h, fmt.Errorf("%w: checksum %08x, stored %08x", errHeader, got, want)
	}
	if v := littleEndian.Uint16(b[8:]); v != formatVersion {
		return h, fmt.Errorf("%w: version %d, known %d", errHeader, v, formatVersion)
	}
	if b[14] != grainShift {
		return h, fmt.Errorf("%w: grain shift %d, known %d", errHeader, b[14], grainShift)
	}
	h.flags = littleEndian.Uint16(b[10:])
	h.state = Tracking(b[12])
	if h.state > TrackingCompare || h.flags&^(flagClean|flagWitness|flagNarrow|flagUnwitnessed) != 0 {
		return h, fmt.Errorf("%w: state %d, flags %#x", errHeader, b[12], h.flags)
	}
	h.sequence = littleEndian.Uint64(b[16:])
	h.serial = littleEndian.Uint64(b[24:])
	copy(h.session[:], b[32:48])
	h.sizeBytes = int64(littleEndian.Uint64(b[48:]))
	copy(h.base[:], b[56:88])
	copy(h.candidate[:], b[88:120])
	h.witness = Witness{
		Inode:      littleEndian.Uint64(b[120:]),
		Size:       int64(littleEndian.Uint64(b[128:])),
		MtimeNanos: int64(littleEndian.Uint64(b[136:])),
		CtimeNanos: int64(littleEndian.Uint64(b[144:])),
	}
	h.leaves = littleEndian.Uint64(b[152:])
	h.bodySum = littleEndian.Uint32(b[160:])
	h.resizeTo = int64(littleEndian.Uint64(b[400:]))
	copy(h.before[:], b[408:424])
	h.intentID = littleEndian.Uint64(b[424:])
	if h.resizeTo < 0 || h.resizeTo > blockdev.MaxSize || magic == intentMagic && (h.sizeBytes < 0 || h.sizeBytes > blockdev.MaxSize) {
		return h, fmt.Errorf("%w: size %d, resized to %d", errHeader, h.sizeBytes, h.resizeTo)
	}
	var ok [3]bool
	h.diskID, ok[0] = getString(b[164 : 164+1+maxDiskID])
	h.bootID, ok[1] = getString(b[261 : 261+1+maxBootID])
	h.reason, ok[2] = getString(b[302 : 302+1+maxReason])
	if ok != [3]bool{true, true, true} {
		return h, fmt.Errorf("%w: string length", errHeader)
	}
	return h, nil
}

// putString stores a length byte and as much of s as fits.
func putString(b []byte, s string) {
	n := copy(b[1:], s)
	b[0] = byte(n)
}

func getString(b []byte) (string, bool) {
	n := int(b[0])
	if n >= len(b) {
		return "", false
	}
	return string(b[1 : 1+n]), true
}
