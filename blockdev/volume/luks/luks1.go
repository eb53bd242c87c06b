package luks

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
)

// LUKS1 On-Disk Format Specification 1.2.3.
const (
	luks1Slots       = 8
	luks1SlotOffset  = 208
	luks1SlotBytes   = 48
	luks1Active      = 0x00AC71F3
	luks1Inactive    = 0x0000DEAD
	luks1DigestBytes = 20
)

func readLUKS1(r io.ReaderAt, size int64, p []byte) (*Header, error) {
	be := binary.BigEndian
	text := func(from, n int) string {
		t, _, _ := bytes.Cut(p[from:from+n], []byte{0})
		return string(t)
	}
	h := &Header{Version: 1, r: r, size: size, SectorBytes: 512, UUID: text(168, 40), Cipher: text(8, 32) + "-" + text(40, 32)}
	hash := text(72, 32)
	h.dataOffset = int64(be.Uint32(p[104:])) * 512
	h.keyBytes = int(be.Uint32(p[108:]))
	if h.keyBytes < 1 || h.keyBytes > maxKeyBytes || h.dataOffset > size || h.dataOffset < 1024 {
		return nil, fmt.Errorf("a key of %d bytes, data at %d of %d: %w", h.keyBytes, h.dataOffset, size, ErrCorrupt)
	}
	h.dataSize = (size - h.dataOffset) / 512 * 512
	for i := range luks1Slots {
		s := p[luks1SlotOffset+i*luks1SlotBytes:][:luks1SlotBytes]
		switch be.Uint32(s) {
		case luks1Inactive:
			continue
		case luks1Active:
		default:
			return nil, fmt.Errorf("key slot %d is neither active nor inactive: %w", i, ErrCorrupt)
		}
		n := slot{number: fmt.Sprint(i), keyBytes: h.keyBytes, areaKey: h.keyBytes, afHash: hash, cipher: h.Cipher,
			kdf:    kdf{kind: kdfPBKDF2, hash: hash, salt: bytes.Clone(s[8:40]), iterations: int64(be.Uint32(s[4:]))},
			offset: int64(be.Uint32(s[40:])) * 512, stripes: int(be.Uint32(s[44:]))}
		n.size = int64(n.stripes) * int64(n.keyBytes)
		n.err = n.check(size)
		h.slots = append(h.slots, n)
	}
	h.digests = []digest{{value: bytes.Clone(p[112:132]), kdf: kdf{kind: kdfPBKDF2, hash: hash, salt: bytes.Clone(p[132:164]), iterations: int64(be.Uint32(p[164:]))}}}
	return h, h.checkCipher()
}

// check holds a slot against the bounds.
func (s slot) check(size int64) error {
	switch {
	case s.keyBytes < 1 || s.keyBytes > maxKeyBytes || s.areaKey < 1 || s.areaKey > maxKeyBytes:
		return fmt.Errorf("keys of %d and %d bytes: %w", s.keyBytes, s.areaKey, ErrCorrupt)
	case s.stripes < 1 || s.stripes > maxStripes || int64(s.stripes)*int64(s.keyBytes) > s.size:
		return fmt.Errorf("%d stripes in an area of %d bytes: %w", s.stripes, s.size, ErrCorrupt)
	case s.size > maxAreaBytes || s.offset < 512 || s.offset > size || s.size > size-s.offset:
		return fmt.Errorf("its area, %d bytes at %d, is not inside the volume: %w", s.size, s.offset, ErrCorrupt)
	}
	return s.kdf.check()
}
