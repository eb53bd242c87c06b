package snapshot

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/keelblock/keelblock/blockdev/cbt"
)

var (
	// ErrReleased: the slots were given back.
	ErrReleased = errors.New("slots were released")
	// ErrOpenCut: the slots have a cut that is neither committed nor aborted.
	ErrOpenCut = errors.New("an earlier cut is still open")
)

// Coordinator hands out the slots of a daemon's disks.
type Coordinator struct {
	clock *cbt.Clock

	mu   sync.Mutex
	held map[string]bool
	// queue holds who waits, in order of arrival. A waiter is served when all its
	// disks are free and nobody before it wants one of them, so that a machine of many
	// disks is not starved by machines of one.
	queue []*waiter
}

type waiter struct {
	ids    []string
	served chan struct{}
}

// New returns a Coordinator for trackers of clock c.
func New(c *cbt.Clock) *Coordinator {
	return &Coordinator{clock: c, held: make(map[string]bool)}
}

// Slots are the slots of a set of disks. The methods may be called from any
// goroutine.
type Slots struct {
	owner *Coordinator
	disks []*cbt.Tracker
	ids   []string

	mu       sync.Mutex
	released bool
	cut      *Cut
}

// Acquire takes the slots of all disks, or of none: it waits until all are free. The
// order of disks is the order of Cut.Disks. A disk may be named once.
func (c *Coordinator) Acquire(ctx context.Context, disks []*cbt.Tracker) (*Slots, error) {
	s := &Slots{owner: c, disks: slices.Clone(disks)}
	for _, d := range disks {
		s.ids = append(s.ids, d.DiskID())
	}
	slices.Sort(s.ids)
	if len(slices.Compact(slices.Clone(s.ids))) != len(s.ids) {
		return nil, fmt.Errorf("acquire slots of %q: a disk is named twice", s.ids)
	}
	w := &waiter{ids: s.ids, served: make(chan struct{})}
	c.mu.Lock()
	c.queue = append(c.queue, w)
	c.serve()
	c.mu.Unlock()
	select {
	case <-w.served:
		return s, nil
	case <-ctx.Done():
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if i := slices.Index(c.queue, w); i >= 0 {
		c.queue = slices.Delete(c.queue, i, i+1)
	} else { // served at this very moment
		c.free(s.ids)
	}
	c.serve()
	return nil, fmt.Errorf("acquire slots of %q: %w", s.ids, context.Cause(ctx))
}

// Waiting is the number of requests that wait for slots. The queue is as long as its
// callers make it: one request per job.
func (c *Coordinator) Waiting() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.queue)
}

// serve gives slots to everyone who can have them; c.mu is held.
func (c *Coordinator) serve() {
	wanted := make(map[string]bool)
	c.queue = slices.DeleteFunc(c.queue, func(w *waiter) bool {
		blocked := slices.ContainsFunc(w.ids, func(id string) bool { return c.held[id] || wanted[id] })
		for _, id := range w.ids {
			if blocked {
				wanted[id] = true
			} else {
				c.held[id] = true
			}
		}
		if !blocked {
			close(w.served)
		}
		return !blocked
	})
}

func (c *Coordinator) free(ids []string) {
	for _, id := range ids {
		delete(c.held, id)
	}
}

// Release aborts a cut that is still open and gives the slots back. It is harmless
// to call it again.
func (s *Slots) Release() {
	s.mu.Lock()
	cut, released := s.cut, s.released
	s.released = true
	s.mu.Unlock()
	if released {
		return
	}
	if cut != nil {
		cut.Abort() // what it could report, Cut.Err has
	}
	for _, d := range s.disks {
		d.DropBaseline()
	}
	s.owner.mu.Lock()
	defer s.owner.mu.Unlock()
	s.owner.free(s.ids)
	s.owner.serve()
}

// ready returns an error unless the slots are held and have no open cut.
func (s *Slots) ready() error {
	switch {
	case s.released:
		return ErrReleased
	case s.cut != nil && !s.cut.ended():
		return ErrOpenCut
	}
	return nil
}

// Baseline makes the maps of all disks begin anew: the disks are cut, the writes of
// before the cut drain, and what was listed is forgotten. What the maps list
// from here on is what changed since. Until a commit in these slots the disks stay
// without a base, or in compare. It waits for writes that are under way.
func (s *Slots) Baseline(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	err := s.ready()
	if err == nil {
		err = ctx.Err()
	}
	if err == nil {
		err = s.owner.clock.Baseline(s.disks)
	}
	if err != nil {
		return fmt.Errorf("begin full read of %q: %w", s.ids, err)
	}
	return nil
}

// Cut freezes all disks at one instant and waits for the writes that were before it.
// What can fail (the spill, its space) is done before the instant, so that a guest
// is not frozen in vain. An error that comes later, while the cut drains, wraps
// ErrAborted; either way no disk is left frozen.
func (s *Slots) Cut(ctx context.Context) (*Cut, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.ready(); err != nil {
		return nil, fmt.Errorf("cut %q: %w", s.ids, err)
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("cut %q: %w", s.ids, err)
	}
	z, err := s.owner.clock.Freeze(s.disks)
	if err != nil {
		return nil, fmt.Errorf("cut %q: %w", s.ids, err)
	}
	c := &Cut{FrozenAt: z.At, FreezeDuration: z.Duration, freeze: z}
	for _, f := range z.Disks {
		c.Disks = append(c.Disks, &Snapshot{frozen: f})
	}
	for _, f := range z.Disks {
		if err := f.Drain(ctx); err != nil {
			return nil, fmt.Errorf("cut %q: %w", s.ids, errors.Join(err, c.Abort()))
		}
	}
	s.cut = c
	return c, nil
}
