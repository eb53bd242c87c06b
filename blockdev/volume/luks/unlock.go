package luks

import (
	"crypto/subtle"
	"fmt"
	"io"
	"strings"
	"sync"
)

// Key is a volume key that the header's digest has confirmed.
type Key []byte

// Unlock tries the passphrase (or the content of a key file) on each key slot. It takes
// as long as the slots were made to take: some seconds. A slot that cannot be tried does
// not keep the others from it; when none fits, the error names those as well.
func (h *Header) Unlock(passphrase []byte) (Key, error) {
	var work cost
	var skipped []string
	for _, s := range h.slots {
		err := s.err
		if err == nil {
			work = work.plus(s.kdf)
			for _, d := range h.digests {
				work = work.plus(d.kdf)
			}
			if work.iterations > maxIterations || work.kib > maxTotalKiB {
				err = fmt.Errorf("the slots together take more work than is %w", ErrUnsupported)
			}
		}
		var key Key
		if err == nil {
			key, err = h.try(s, passphrase)
		}
		if err != nil {
			skipped = append(skipped, fmt.Sprintf("key slot %s could not be tried: %v", s.number, err))
			continue
		}
		if key != nil {
			return key, nil
		}
	}
	switch {
	case len(h.slots) == 0:
		return nil, fmt.Errorf("the LUKS header has no key slot in use: %w", ErrPassphrase)
	case len(skipped) > 0:
		return nil, fmt.Errorf("%w (%s)", ErrPassphrase, strings.Join(skipped, "; "))
	}
	return nil, ErrPassphrase
}

// cost is the work of some derivations.
type cost struct{ iterations, kib int64 }

// plus adds what checks have bounded; a sum of 32 such fits easily.
func (c cost) plus(k kdf) cost {
	if k.kind == kdfPBKDF2 {
		c.iterations += min(max(k.iterations, 0), 2*maxIterations)
	} else if k.memoryKiB > 0 && k.passes > 0 {
		c.kib += k.memoryKiB * min(k.passes, 2*maxTotalKiB/k.memoryKiB+1)
	}
	return c
}

// try gives the volume key, or nil when the passphrase is not that slot's.
func (h *Header) try(s slot, passphrase []byte) (Key, error) {
	if _, err := newHash(s.afHash); err != nil {
		return nil, err
	}
	areaKey, err := s.kdf.derive(passphrase, s.areaKey)
	if err != nil {
		return nil, err
	}
	defer clear(areaKey)
	c, err := newSectors(s.cipher, areaKey)
	if err != nil {
		return nil, err
	}
	n := (int64(s.stripes)*int64(s.keyBytes) + 511) / 512 * 512
	material, err := readAt(h.r, h.size, s.offset, n)
	if err != nil {
		return nil, err
	}
	defer clear(material)
	c.decrypt(material, 512, 0)
	hash, err := newHash(s.afHash)
	if err != nil {
		return nil, err
	}
	key := merge(material, s.keyBytes, s.stripes, hash)
	right, err := h.confirms(s, key)
	if err != nil || !right {
		clear(key)
		return nil, err
	}
	return key, nil
}

// confirms holds a key against the digests for that slot.
func (h *Header) confirms(s slot, key []byte) (bool, error) {
	for _, d := range h.digests {
		if d.slots != nil && !d.slots[s.number] {
			continue
		}
		if err := d.kdf.check(); err != nil {
			return false, fmt.Errorf("digest: %w", err)
		}
		got, err := d.kdf.derive(key, len(d.value))
		if err != nil {
			return false, err
		}
		if subtle.ConstantTimeCompare(got, d.value) == 1 {
			return true, nil
		}
	}
	return false, nil
}

// Confirms says whether key is this volume's, which takes a fraction of what Unlock
// takes: a machine's recovery points all have the same key.
func (h *Header) Confirms(key Key) bool {
	for _, s := range h.slots {
		if len(key) != s.keyBytes {
			continue
		}
		if right, err := h.confirms(s, key); right && err == nil {
			return true
		}
	}
	return false
}

// Volume is an open volume: its plain text.
type Volume struct {
	r           io.ReaderAt
	offset      int64
	size        int64
	sectorBytes int
	tweak       uint64
	c           sectors
	buffers     sync.Pool // of *[]byte
}

// Open makes the plain text readable.
func (h *Header) Open(key Key) (*Volume, error) {
	c, err := newSectors(h.Cipher, key)
	if err != nil {
		return nil, err
	}
	return &Volume{r: h.r, offset: h.dataOffset, size: h.dataSize, sectorBytes: h.SectorBytes, tweak: h.ivTweak, c: c}, nil
}

// Size is in bytes.
func (v *Volume) Size() int64 { return v.size }

// maxRead bounds the buffer of a read that does not lie on whole sectors.
const maxRead = 256 << 10

// ReadAt decrypts. What lies on whole sectors is read and decrypted in place.
func (v *Volume) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read at %d: negative offset", off)
	}
	done := 0
	for done < len(p) {
		at := off + int64(done)
		if at >= v.size {
			return done, io.EOF
		}
		n, err := v.readPart(p[done:min(int64(len(p)), int64(done)+v.size-at)], at)
		done += n
		if err != nil {
			return done, err
		}
	}
	return done, nil
}

// readPart reads at most p, which lies inside the volume.
func (v *Volume) readPart(p []byte, at int64) (int, error) {
	unit := int64(v.sectorBytes)
	inSector := at % unit
	if whole := int64(len(p)) / unit * unit; inSector == 0 && whole > 0 {
		return int(whole), v.sectors(p[:whole], at)
	}
	first := at - inSector
	n := min((inSector+int64(len(p))+unit-1)/unit*unit, maxRead)
	buffer, _ := v.buffers.Get().(*[]byte)
	if buffer == nil {
		buffer = new([]byte)
		*buffer = make([]byte, maxRead)
	}
	defer v.buffers.Put(buffer)
	q := (*buffer)[:n]
	if err := v.sectors(q, first); err != nil {
		return 0, err
	}
	return copy(p, q[inSector:]), nil
}

// sectors reads and decrypts whole sectors.
func (v *Volume) sectors(p []byte, at int64) error {
	n, err := v.r.ReadAt(p, v.offset+at)
	if n < len(p) {
		if err == nil || err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return err
	}
	v.c.decrypt(p, v.sectorBytes, uint64(at)/512+v.tweak)
	return nil
}
