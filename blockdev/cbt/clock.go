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
	// captures is how many run; see pace.go.
	captures atomic.Int64
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
