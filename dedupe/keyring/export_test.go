package keyring

import (
	"encoding/binary"
	"hash/crc32"
)

// Derivation for the test of what it allocates.
func (k *Keys) Derivation(nonce []byte) {
	x := k.data[0].cipher
	d := x.scratch.Get().(*derivation)
	x.derive(d, nonce)
	x.scratch.Put(d)
}

// SealXAES and OpenXAES are the cipher alone, for the vectors of its specification.
func SealXAES(key, nonce, plaintext, data []byte) []byte {
	return newXAES(key).seal(nil, nonce, plaintext, data)
}

// OpenXAES is the inverse of SealXAES.
func OpenXAES(key, nonce, ciphertext, data []byte) ([]byte, error) {
	return newXAES(key).open(nil, nonce, ciphertext, data)
}

// FixCRC makes changed keys verify again.
func FixCRC(b []byte) {
	if end := len(b) - crcSize; end >= 0 {
		binary.LittleEndian.PutUint32(b[end:], crc32.Checksum(b[:end], castagnoli))
	}
}

// FixRecordCRC makes a changed record header verify again.
func FixRecordCRC(h []byte) {
	binary.LittleEndian.PutUint32(h[188:], crc32.Checksum(h[:188], castagnoli))
}
