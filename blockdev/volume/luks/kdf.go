package luks

import (
	"crypto/pbkdf2"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"fmt"
	"hash"
	"runtime/debug"
	"sync"

	"golang.org/x/crypto/argon2"
	"golang.org/x/crypto/ripemd160" //lint:ignore SA1019 LUKS1 headers of that time use it
)

// Kinds of key derivation, as LUKS2 names them.
const (
	kdfPBKDF2   = "pbkdf2"
	kdfArgon2i  = "argon2i"
	kdfArgon2id = "argon2id"
)

// kdf makes a key of a passphrase.
type kdf struct {
	kind       string
	hash       string // of PBKDF2
	salt       []byte
	iterations int64 // of PBKDF2
	passes     int64 // of Argon2
	memoryKiB  int64
	threads    int64
}

// check refuses what would take too much, and what is not known.
func (k kdf) check() error {
	switch k.kind {
	case kdfPBKDF2:
		if _, err := newHash(k.hash); err != nil {
			return err
		}
		if k.iterations < 1 {
			return fmt.Errorf("%d iterations: %w", k.iterations, ErrCorrupt)
		}
		if k.iterations > maxIterations {
			return fmt.Errorf("a key slot with %d iterations is %w (at most %d)", k.iterations, ErrUnsupported, maxIterations)
		}
		return nil
	case kdfArgon2i, kdfArgon2id:
		if k.passes < 1 || k.memoryKiB < 8 || k.threads < 1 || k.threads > maxParallelism {
			return fmt.Errorf("%s with %d passes, %d KiB, %d threads: %w", k.kind, k.passes, k.memoryKiB, k.threads, ErrCorrupt)
		}
		if k.memoryKiB > maxMemoryKiB || k.passes > maxWorkKiB/k.memoryKiB {
			return fmt.Errorf("a key slot whose %s takes %d KiB of memory and %d passes is %w (at most %d KiB, and %d KiB times passes)",
				k.kind, k.memoryKiB, k.passes, ErrUnsupported, maxMemoryKiB, maxWorkKiB)
		}
		return nil
	}
	return fmt.Errorf("key derivation by %.40q is %w", k.kind, ErrUnsupported)
}

// derivation lets one derivation run at a time: each may take up to maxMemoryKiB.
var derivation sync.Mutex

// derive makes a key of n bytes. check must have passed.
func (k kdf) derive(passphrase []byte, n int) ([]byte, error) {
	derivation.Lock()
	defer derivation.Unlock()
	switch k.kind {
	case kdfArgon2i, kdfArgon2id:
		// The memory is given back at once: it is more than all else in this process.
		defer debug.FreeOSMemory()
		if k.kind == kdfArgon2i {
			return argon2.Key(passphrase, k.salt, uint32(k.passes), uint32(k.memoryKiB), uint8(k.threads), uint32(n)), nil
		}
		return argon2.IDKey(passphrase, k.salt, uint32(k.passes), uint32(k.memoryKiB), uint8(k.threads), uint32(n)), nil
	}
	h, err := newHash(k.hash)
	if err != nil {
		return nil, err
	}
	return pbkdf2.Key(h, string(passphrase), k.salt, int(k.iterations), n)
}

// newHash finds a hash by the name that headers use.
func newHash(name string) (func() hash.Hash, error) {
	switch name {
	case "sha1":
		return sha1.New, nil
	case "sha256":
		return sha256.New, nil
	case "sha224":
		return sha256.New224, nil
	case "sha384":
		return sha512.New384, nil
	case "sha512":
		return sha512.New, nil
	case "ripemd160":
		return ripemd160.New, nil
	}
	return nil, fmt.Errorf("the hash %.40q is %w", name, ErrUnsupported)
}

// merge undoes the anti-forensic splitter: material is stripes pieces of n bytes, each
// but the last is xored into a state that is then diffused.
func merge(material []byte, n, stripes int, h func() hash.Hash) []byte {
	state := make([]byte, n)
	for i := range stripes {
		for j, b := range material[i*n : (i+1)*n] {
			state[j] ^= b
		}
		if i < stripes-1 {
			diffuse(state, h)
		}
	}
	return state
}

// diffuse replaces each piece of a hash's length by the hash of its number and itself.
func diffuse(state []byte, h func() hash.Hash) {
	d := h()
	size := d.Size()
	var number [4]byte
	for i := 0; i*size < len(state); i++ {
		piece := state[i*size : min((i+1)*size, len(state))]
		d.Reset()
		binary.BigEndian.PutUint32(number[:], uint32(i))
		d.Write(number[:])
		d.Write(piece)
		copy(piece, d.Sum(nil))
	}
}
