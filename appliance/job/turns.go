package job

import (
	"sync"
	"time"
)

const (
	// turnsLook is how long what the guests do is taken as known.
	turnsLook = 20 * time.Millisecond
	// turnsQuiet is how long guests must have asked for nothing before jobs may have
	// every core: longer than the pauses of a guest with a hundred requests a second.
	turnsQuiet = 100 * time.Millisecond
)

// Turns shares the cores between goroutines that compute for jobs, of all jobs
// together. While guests ask for something one core is kept free for them, where there
// is more than one; else all may be used. It is safe for concurrent use.
//
// A lower priority ([Background]) does not do that alone: the thread that serves a guest
// sleeps between two requests, and finds on waking that every core is taken.
type Turns struct {
	all      int           // turns while no guest asks for anything
	requests func() uint64 // of all guests, ever
	now      func() time.Time

	mu      sync.Mutex
	free    sync.Cond // a turn may have come free
	taken   int
	seen    uint64    // requests at the last look
	looked  time.Time // the last look
	active  time.Time // the last look that found new requests
	waiting int
}

// NewTurns makes Turns for this many cores, at least 1. requests counts what guests have
// asked for since the start; it is called at most every 20 ms.
func NewTurns(cores int, requests func() uint64) *Turns {
	return newTurns(cores, requests, time.Now)
}

func newTurns(cores int, requests func() uint64, now func() time.Time) *Turns {
	t := &Turns{all: max(cores, 1), requests: requests, now: now, seen: requests()}
	t.free.L = &t.mu
	return t
}

// Take waits for a turn. There is always one for somebody, so that jobs go on: whoever
// holds one must not take another.
func (t *Turns) Take() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.waiting++
	for t.taken >= t.limit() {
		t.free.Wait() // the holder of a turn looks again as he gives it back
	}
	t.waiting--
	t.taken++
}

// Give ends a turn.
func (t *Turns) Give() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.taken--
	for range min(t.waiting, t.limit()-t.taken) {
		t.free.Signal()
	}
}

// limit is how many turns there are now.
func (t *Turns) limit() int {
	now := t.now()
	if now.Sub(t.looked) >= turnsLook {
		if n := t.requests(); n != t.seen {
			t.seen = n
			if now.Sub(t.looked) < turnsQuiet { // else it may have been long ago
				t.active = now
			}
		}
		t.looked = now
	}
	if now.Sub(t.active) < turnsQuiet {
		return max(t.all-1, 1)
	}
	return t.all
}
