package keyring

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/subtle"
	"sync"
)

const (
	nonceSize = 24
	tagSize   = 16
)

// xaes is XAES-256-GCM under one key, as https://c2sp.org/XAES-256-GCM has it.
type xaes struct {
	block cipher.Block
	// k1 is the subkey of CMAC for whole blocks, which all of the two are.
	k1 [aes.BlockSize]byte
	// scratch has the room of one derivation: arrays of the caller's stack would be
	// allocated, as they are handed to an interface.
	scratch sync.Pool // of *derivation
}

type derivation struct {
	m   [aes.BlockSize]byte
	key [32]byte
}

func newXAES(key []byte) *xaes {
	x := &xaes{block: mustAES(key)}
	x.scratch.New = func() any { return new(derivation) }
	l := make([]byte, aes.BlockSize)
	x.block.Encrypt(l, l)
	carry := byte(0)
	for i := len(l) - 1; i >= 0; i-- {
		x.k1[i] = l[i]<<1 | carry
		carry = l[i] >> 7
	}
	x.k1[len(l)-1] ^= byte(subtle.ConstantTimeSelect(int(carry), 0x87, 0))
	clear(l)
	return x
}

// mustAES is for keys of 32 bytes, the only thing that aes.NewCipher can find wrong.
func mustAES(key []byte) cipher.Block {
	b, err := aes.NewCipher(key)
	if err != nil {
		panic("keyring: " + err.Error())
	}
	return b
}

// derive makes the key of one nonce, in d: the counter mode of NIST SP 800-108 over
// CMAC, with the label "X", which for one block of input is one call of AES each.
func (x *xaes) derive(d *derivation, nonce []byte) {
	for i := range 2 {
		d.m = [aes.BlockSize]byte{0, byte(i + 1), 'X', 0}
		copy(d.m[4:], nonce[:12])
		subtle.XORBytes(d.m[:], d.m[:], x.k1[:])
		x.block.Encrypt(d.key[i*aes.BlockSize:], d.m[:])
	}
}

// aead is AES-256-GCM under the key of a nonce, for the nonce's last 12 bytes. The
// standard library's states of AES and GCM take no other key later: they are what a
// record costs in allocations, some 1 KiB for 64 KiB sealed.
func (x *xaes) aead(nonce []byte) cipher.AEAD {
	d := x.scratch.Get().(*derivation)
	defer x.scratch.Put(d)
	x.derive(d, nonce)
	block := mustAES(d.key[:])
	clear(d.key[:])
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		panic("keyring: " + err.Error()) // of a block of 16 bytes: never
	}
	return gcm
}

// seal appends the sealed plaintext to dst, which may be plaintext[:0].
func (x *xaes) seal(dst, nonce, plaintext, data []byte) []byte {
	return x.aead(nonce).Seal(dst, nonce[12:nonceSize], plaintext, data)
}

// open is the inverse of seal.
func (x *xaes) open(dst, nonce, ciphertext, data []byte) ([]byte, error) {
	return x.aead(nonce).Open(dst, nonce[12:nonceSize], ciphertext, data)
}
