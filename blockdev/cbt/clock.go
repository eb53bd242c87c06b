package cbt

import (
	"sync"
	"sync/atomic"
)

// Clock is the epoch counter that all trackers of a daemon share. Epoch e+1 begins
// with the e-th freeze. One Clock makes any set of its disks freezable at one
// instant; the zero value is not usable.
type Clock struct {
	// mu lets one freeze happen at a time. It is held for the few stores that a
	// freeze is, never over I/O.
	mu    sync.Mutex
	epoch atomic.Uint64
}

// NewClock returns a Clock at epoch 1.
func NewClock() *Clock {
	c := &Clock{}
	c.epoch.Store(1)
	return c
}

// phase is what a disk's freeze word says about its other map.
type phase uint64

const (
	// phaseIdle: the other map is empty, or holds the bits of a Baseline that is
	// about to forget them.
	phaseIdle phase = 0
	// phaseTransition: cut, and writes of the older epoch may still be adding bits
	// to the frozen map, so that a clear bit there proves nothing.
	phaseTransition phase = 1
	// phaseFrozen: the frozen map is complete.
	phaseFrozen phase = 2
	// phaseClosed: no write may register any more.
	phaseClosed phase = 3
)

// word is the one atomic word of a disk: the epoch of its latest cut, which of its
// two maps is live, and the phase. It never takes an earlier value again within
// one phase, as cut only grows.
type word uint64

func newWord(cut uint64, live int, p phase) word {
	return word(cut<<3 | uint64(live)<<2 | uint64(p))
}

func (w word) cut() uint64 { return uint64(w) >> 3 }
func (w word) live() int   { return int(w>>2) & 1 }
func (w word) phase() phase {
	return phase(w & 3)
}
func (w word) withPhase(p phase) word { return w&^3 | word(p) }

// shards is the number of in-flight counters of a map: enough that writers of
// different stripes do not share a cache line.
const shards = 16

// counter is an in-flight counter on a cache line of its own.
type counter struct {
	n atomic.Int64
	_ [56]byte
}

// register enters a write into the map of its epoch and returns that map with the
// word under which it entered. Counting first and looking again afterwards is what
// lets a freeze wait for every write of the older epoch: a write that passed the
// second look is counted, one that did not has set no bit (V3).
func (t *Tracker) register(shard int) (*fineMap, word, bool) {
	for {
		w := word(t.word.Load())
		if w.phase() == phaseClosed {
			return nil, w, false
		}
		e := t.clock.epoch.Load()
		t.hooks.at(hookEpochLoaded, t)
		m := &t.maps[w.live()]
		if e < w.cut() {
			m = &t.maps[1-w.live()]
		}
		m.inflight[shard].n.Add(1)
		t.hooks.at(hookRegistered, t)
		if word(t.word.Load()) == w && t.clock.epoch.Load() == e {
			return m, w, true
		}
		m.inflight[shard].n.Add(-1)
	}
}

// hook names a point of the protocol at which a test may hold a goroutine.
type hook int

const (
	hookEpochLoaded hook = iota
	hookRegistered
	hookBitsSet
	hookClaimed
	hookCaptureRead
	hookWordsStored
)

// hooks is nil outside of tests.
type hooks func(h hook, t *Tracker)

func (h hooks) at(p hook, t *Tracker) {
	if h != nil {
		h(p, t)
	}
}
