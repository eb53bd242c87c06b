package verify

import (
	"hash/maphash"
	"sync"

	"github.com/keelblock/keelblock/dedupe"
)

// maxSeen bounds a Seen: 256 GiB of blocks of 64 KiB, in some 80 MB. What does not fit is
// read again by the next point that has it.
const maxSeen = 4 << 20

// Seen is the blocks that a run over several points has found good. The zero value is
// empty; nil remembers nothing. It may be used by many goroutines.
type Seen struct {
	once sync.Once
	seed maphash.Seed
	mu   sync.Mutex
	m    map[uint64]struct{} // hashes of digests under a random seed
}

func (s *Seen) key(d dedupe.Digest) uint64 {
	s.once.Do(func() { s.seed, s.m = maphash.MakeSeed(), make(map[uint64]struct{}) })
	return maphash.Bytes(s.seed, d[:])
}

func (s *Seen) has(d dedupe.Digest) bool {
	if s == nil {
		return false
	}
	k := s.key(d)
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.m[k]
	return ok
}

func (s *Seen) add(d dedupe.Digest) {
	if s == nil {
		return
	}
	k := s.key(d)
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.m) < maxSeen {
		s.m[k] = struct{}{}
	}
}
