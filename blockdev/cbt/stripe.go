package cbt

import (
	"sync"
	"sync/atomic"
)

const (
	// stripeShift: a stripe guards 256 KiB.
	stripeShift = 18
	// stripeCount stripes are spread over the disk, range i under stripe
	// i mod stripeCount.
	stripeCount = 1024
	// maxChunk is the most that is changed under one hold of the stripes, in bytes:
	// five of them when it is not aligned.
	maxChunk = 1 << 20
)

const (
	countBits    = 20 // a million holders of one stripe
	sharedUnit   = 1 << (2 * countBits)
	exclusiveBit = 1 << 63
)

// mapUnit counts one write that is registered in map i.
func mapUnit(i int) uint64 { return 1 << (i * countBits) }

// mapCount is the part of state that counts the writes of map i.
func mapCount(i int) uint64 { return mapUnit(i+1) - mapUnit(i) }

// stripes are the RW locks of a disk and, in the same words, the count of the writes
// that are registered, by map. A write holds the stripes of its range shared; a write
// that has to preserve something, or that cannot know yet, holds them exclusively.
//
// One addition takes a lock shared and registers, one gives both back. The states
// lie close together on purpose: the data of 512 writes of 4 KiB flush a second-level
// cache of 2 MiB, so with a cache line for each lock every write missed its line.
type stripes struct {
	// state: a sharedUnit for each shared holder that is not registered here, a
	// mapUnit for each that is, and exclusiveBit.
	state [stripeCount]atomic.Uint64
	// mu of a stripe is held by its exclusive holder, also while that waits for the
	// shared ones. Whoever meets exclusiveBit waits for it.
	mu [stripeCount]sync.Mutex
	// rooms are where exclusive holders wait for the shared ones to leave; stripe i
	// uses room i mod len(rooms).
	rooms [16]waitingRoom
}

type waitingRoom struct {
	mu   sync.Mutex
	left sync.Cond
}

// init readies s to count the writes of maps.
func (s *stripes) init(maps *[2]fineMap) {
	for i := range s.rooms {
		s.rooms[i].left.L = &s.rooms[i].mu
	}
	for i := range maps {
		maps[i].writers, maps[i].count = s, mapCount(i)
	}
}

// span is the range of stripes of one chunk, by index. When it wraps, first is larger
// than last, and 0..last come before first..stripeCount-1: the order of index is the
// order of every holder.
type span struct{ first, last int }

func spanOf(off, n int64) span {
	return span{int(off>>stripeShift) % stripeCount, int((off+n-1)>>stripeShift) % stripeCount}
}

// desk is the stripe that comes last in the order, where a write registers.
func (p span) desk() int {
	if p.first > p.last {
		return stripeCount - 1
	}
	return p.last
}

// each calls do for the stripes of p in their order.
func (p span) each(do func(i int)) {
	i := p.first
	if p.first > p.last {
		for k := 0; k <= p.last; k++ {
			do(k)
		}
	}
	for ; i <= p.desk(); i++ {
		do(i)
	}
}

// lock takes all stripes of p exclusively, or all but the desk shared. A shared
// holder takes the desk's with the registration.
func (s *stripes) lock(p span, exclusive bool) {
	switch {
	case exclusive:
		p.each(s.lockExclusive)
	case p.first != p.last:
		p.each(func(i int) {
			for i != p.desk() && !s.take(i, sharedUnit) {
			}
		})
	}
}

// unlock gives back what lock took.
func (s *stripes) unlock(p span, exclusive bool) {
	switch {
	case exclusive:
		p.each(func(i int) {
			s.state[i].And(^uint64(exclusiveBit))
			s.mu[i].Unlock()
		})
	case p.first != p.last:
		p.each(func(i int) {
			if i != p.desk() {
				s.leave(i, sharedUnit)
			}
		})
	}
}

// take adds a shared holder to stripe i. It returns false, after a wait, when the
// stripe was held exclusively.
func (s *stripes) take(i int, unit uint64) bool {
	if s.state[i].Add(unit)&exclusiveBit == 0 {
		return true
	}
	s.giveWay(i, unit)
	return false
}

// giveWay waits until the exclusive holder of stripe i has gone.
func (s *stripes) giveWay(i int, unit uint64) {
	s.leave(i, unit)
	s.mu[i].Lock()
	defer s.mu[i].Unlock()
}

// leave takes a shared holder away.
func (s *stripes) leave(i int, unit uint64) {
	if s.state[i].Add(-unit)&exclusiveBit != 0 {
		s.wake(i)
	}
}

func (s *stripes) wake(i int) {
	r := &s.rooms[i%len(s.rooms)]
	r.mu.Lock()
	r.left.Broadcast()
	r.mu.Unlock()
}

func (s *stripes) lockExclusive(i int) {
	s.mu[i].Lock()
	if s.state[i].Or(exclusiveBit) == 0 {
		return
	}
	r := &s.rooms[i%len(s.rooms)]
	r.mu.Lock()
	for s.state[i].Load() != exclusiveBit {
		r.left.Wait()
	}
	r.mu.Unlock()
}

// register enters a write into the map of its epoch and returns that map, with its
// index and the word under which the write entered. A shared holder (exclusive is
// false) holds the desk with it. Counting first and looking again afterwards is what
// lets a freeze wait for every write of the older epoch: a write that passed the
// second look is counted, one that did not has set no bit (V3).
func (t *Tracker) register(desk int, exclusive bool) (i int, w word, ok bool) {
	for {
		w = word(t.word.Load())
		if w.phase() == phaseClosed {
			return 0, w, false
		}
		e := t.clock.epoch.Load()
		t.hooks.at(hookEpochLoaded, t)
		i = w.live()
		if e < w.cut() {
			i = 1 - i
		}
		if exclusive {
			t.stripes.state[desk].Add(mapUnit(i))
		} else if !t.stripes.take(desk, mapUnit(i)) {
			continue
		}
		t.hooks.at(hookRegistered, t)
		if word(t.word.Load()) == w && t.clock.epoch.Load() == e {
			return i, w, true
		}
		t.stripes.leave(desk, mapUnit(i))
	}
}
