package luks

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"strings"

	"golang.org/x/crypto/xts"
)

// sectors decrypts sectors in place. number is that of the first in units of 512 bytes.
type sectors interface {
	decrypt(p []byte, sectorBytes int, number uint64)
}

// newSectors makes the decryption that dm-crypt calls spec, "aes-xts-plain64".
func newSectors(spec string, key []byte) (sectors, error) {
	parts := strings.SplitN(spec, "-", 3)
	if len(parts) != 3 || parts[0] != "aes" {
		return nil, fmt.Errorf("the cipher %.60q is %w", spec, ErrUnsupported)
	}
	mode, iv := parts[1], parts[2]
	switch {
	case mode == "xts" && (iv == "plain64" || iv == "plain"):
		c, err := xts.NewCipher(aes.NewCipher, key)
		if err != nil {
			return nil, fmt.Errorf("%s with a key of %d bytes: %w", spec, len(key), ErrCorrupt)
		}
		return xtsSectors{c, iv == "plain"}, nil
	case mode == "cbc" && (iv == "plain64" || iv == "plain" || iv == "essiv:sha256"):
		b, err := aes.NewCipher(key)
		if err != nil {
			return nil, fmt.Errorf("%s with a key of %d bytes: %w", spec, len(key), ErrCorrupt)
		}
		s := cbcSectors{block: b, short: iv == "plain"}
		if iv == "essiv:sha256" {
			salt := sha256.Sum256(key)
			if s.essiv, err = aes.NewCipher(salt[:]); err != nil {
				return nil, err
			}
		}
		return s, nil
	}
	return nil, fmt.Errorf("the cipher %.60q is %w", spec, ErrUnsupported)
}

// checkCipher refuses a cipher that Open could not use, and sizes of key that it does
// not have.
func (h *Header) checkCipher() error {
	n := h.keyBytes
	if h.Version == 2 {
		for _, s := range h.slots {
			if s.err == nil {
				n = s.keyBytes
			}
		}
		if n == 0 {
			n = 64 // no slot can be used; Unlock will say so
			if strings.Contains(h.Cipher, "-cbc-") {
				n = 32
			}
		}
	}
	if n > maxKeyBytes {
		return fmt.Errorf("a key of %d bytes: %w", n, ErrCorrupt)
	}
	_, err := newSectors(h.Cipher, make([]byte, n))
	return err
}

type xtsSectors struct {
	c     *xts.Cipher
	short bool // plain: the number's low 32 bits
}

func (s xtsSectors) decrypt(p []byte, sectorBytes int, number uint64) {
	for ; len(p) > 0; p = p[sectorBytes:] {
		n := number
		if s.short {
			n = uint64(uint32(n))
		}
		s.c.Decrypt(p[:sectorBytes], p[:sectorBytes], n)
		number += uint64(sectorBytes) / 512
	}
}

type cbcSectors struct {
	block, essiv cipher.Block // essiv: nil for plain
	short        bool
}

func (s cbcSectors) decrypt(p []byte, sectorBytes int, number uint64) {
	for ; len(p) > 0; p = p[sectorBytes:] {
		var iv [aes.BlockSize]byte
		if s.short {
			binary.LittleEndian.PutUint32(iv[:], uint32(number))
		} else {
			binary.LittleEndian.PutUint64(iv[:], number)
		}
		if s.essiv != nil {
			s.essiv.Encrypt(iv[:], iv[:])
		}
		cipher.NewCBCDecrypter(s.block, iv[:]).CryptBlocks(p[:sectorBytes], p[:sectorBytes])
		number += uint64(sectorBytes) / 512
	}
}
