package cbt

import (
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
)

// TestStripesExcludeAndCount: holders of random ranges, shared and exclusive, some of
// them wrapping. Exclusive ones are alone in all of their stripes; at the end nobody is
// counted; and nobody waits for ever.
func TestStripesExcludeAndCount(t *testing.T) {
	var tr Tracker
	tr.clock = NewClock()
	tr.word.Store(uint64(newWord(0, 0, phaseIdle)))
	s := &tr.stripes
	s.init(&tr.maps)
	const used = 12 // stripes at both ends of the array, so that holders meet
	var shared, alone [stripeCount]atomic.Int32
	var wg sync.WaitGroup
	for seed := range uint64(8) {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(seed, 1))
			for range 3000 {
				off := (int64(stripeCount) - used/2 + rng.Int64N(used)) << stripeShift
				p := spanOf(off, 1+rng.Int64N(maxChunk))
				exclusive := rng.IntN(4) == 0
				s.lock(p, exclusive)
				i, _, ok := tr.register(p.desk(), exclusive)
				if !ok || s.state[p.desk()].Load()&mapCount(i) == 0 {
					t.Error("registered and not counted")
				}
				p.each(func(i int) {
					if !exclusive {
						shared[i].Add(1)
						if alone[i].Load() != 0 {
							t.Errorf("stripe %d is held shared beside an exclusive holder", i)
						}
					} else if alone[i].Add(1) != 1 || shared[i].Load() != 0 {
						t.Errorf("stripe %d is held exclusively by more than one", i)
					}
				})
				p.each(func(i int) {
					if exclusive {
						alone[i].Add(-1)
					} else {
						shared[i].Add(-1)
					}
				})
				s.leave(p.desk(), mapUnit(i))
				s.unlock(p, exclusive)
			}
		})
	}
	wg.Wait()
	for i := range s.state {
		if v := s.state[i].Load(); v != 0 {
			t.Errorf("stripe %d is left with state %#x", i, v)
		}
	}
	if !tr.maps[0].drained(nil) {
		t.Error("not drained")
	}
}
