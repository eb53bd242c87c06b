package dedupe

import (
	"crypto/hmac"
	"crypto/sha256"
	"fmt"
	"hash"
	"io"
	"sync"
)

// IDKey makes the ids of blocks and notes in an encrypted key domain: HMAC-SHA-256 of
// their bytes, so that an id tells nothing to who has no key, not even whether a guess
// is right. A nil *IDKey makes those of an unencrypted domain, SHA-256, so that nobody
// needs to ask which it is. All methods may be called from any number of goroutines.
type IDKey struct {
	sums sync.Pool // of *keyedSum
	// inner and outer are the states of HMAC's two hashes after their pads, for sum8.
	inner, outer [8]uint32
}

// keyedSum is a hash under the key, and room for its result: handed to an interface, a
// Digest of the caller would be allocated at each call.
type keyedSum struct {
	h   hash.Hash
	sum Digest
}

// NewIDKey makes ids under a key, of at most 64 bytes, which is copied.
func NewIDKey(key []byte) *IDKey {
	if len(key) > sha256.BlockSize {
		panic(fmt.Sprintf("dedupe: id key of %d bytes", len(key)))
	}
	var inner, outer [sha256.BlockSize]byte
	copy(inner[:], key)
	copy(outer[:], key)
	for i := range inner {
		inner[i] ^= 0x36
		outer[i] ^= 0x5c
	}
	k := &IDKey{inner: stateAfter(&inner), outer: stateAfter(&outer)}
	clear(inner[:])
	clear(outer[:])
	own := append([]byte(nil), key...)
	k.sums.New = func() any { return &keyedSum{h: hmac.New(sha256.New, own)} }
	return k
}

// Sum is the id of a block or a note.
func (k *IDKey) Sum(p []byte) Digest {
	if k == nil {
		return Sum(p)
	}
	s := k.sums.Get().(*keyedSum)
	defer k.sums.Put(s)
	s.h.Reset()
	s.h.Write(p)
	s.h.Sum(s.sum[:0])
	return s.sum
}

// Format keeps the key out of whatever is printed, whatever the verb.
func (k *IDKey) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "id key (hidden)") }
