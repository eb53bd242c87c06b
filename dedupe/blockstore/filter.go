package blockstore

import (
	"encoding/binary"
	"math/rand/v2"
	"sync"

	"github.com/keelblock/keelblock/dedupe"
)

// filter is a set of digests that may say yes too often and never no too often: a
// Bloom filter of 16 bits for each digest, four of which it sets. Full, it says yes
// wrongly 24 times in 10 000. Its places are salted, so that what one filter keeps by
// mistake another one does not.
//
// Digests, keyed or not, are uniform, so their own bytes are the hash.
type filter struct {
	bits []uint64
	salt [2]uint64
	room int // digests that may still be added before it is full
}

const (
	filterProbes = 4
	filterBits   = 16 // for each digest
	// minFilter is the least number of digests that a filter is made for.
	minFilter = 1 << 16
)

func newFilter(digests int) *filter {
	words := (max(digests, minFilter)*filterBits + 63) / 64
	return &filter{bits: make([]uint64, words), salt: [2]uint64{rand.Uint64() | 1, rand.Uint64() | 1}, room: max(digests, minFilter)}
}

// each calls fn with the word and bit of each probe, until it returns false.
func (f *filter) each(d dedupe.Digest, fn func(word, bit uint64) bool) bool {
	h := (binary.LittleEndian.Uint64(d[:]) + f.salt[1]) * f.salt[0]
	step := binary.LittleEndian.Uint64(d[8:])*f.salt[1] | 1
	n := uint64(len(f.bits)) * 64
	for range filterProbes {
		at := (h >> 7) % n
		if !fn(at/64, 1<<(at%64)) {
			return false
		}
		h += step
	}
	return true
}

func (f *filter) has(d dedupe.Digest) bool {
	return f.each(d, func(w, bit uint64) bool { return f.bits[w]&bit != 0 })
}

func (f *filter) add(d dedupe.Digest) {
	f.room--
	f.each(d, func(w, bit uint64) bool { f.bits[w] |= bit; return true })
}

// maxSeen bounds the digests that a seen remembers: 64 MiB of filters. Beyond, it has
// seen everything.
const maxSeen = 1 << 25

// seen is a growing set of digests, of filters each as large as all before it. It
// forgets nothing, says yes too often when it is large, and may be used from any
// number of goroutines. The zero value is empty.
type seen struct {
	mu      sync.Mutex
	filters []*filter
	size    int
	all     bool
}

func (s *seen) add(d dedupe.Digest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all || s.hasLocked(d) {
		return
	}
	if n := len(s.filters); n == 0 || s.filters[n-1].room == 0 {
		if s.size >= maxSeen {
			s.all, s.filters = true, nil
			return
		}
		s.filters = append(s.filters, newFilter(s.size))
	}
	s.filters[len(s.filters)-1].add(d)
	s.size++
}

func (s *seen) has(d dedupe.Digest) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.all || s.hasLocked(d)
}

func (s *seen) hasLocked(d dedupe.Digest) bool {
	for _, f := range s.filters {
		if f.has(d) {
			return true
		}
	}
	return false
}
