package fusemount

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
)

const (
	// interruptGrace is how long an operation may go on after its caller was
	// interrupted. Go programs interrupt themselves all the time (SIGURG), so an
	// interrupt must not fail an operation that is about to end.
	interruptGrace = 2 * time.Second
	// maxStuck is how many operations of one volume may be past their deadline
	// before new ones fail at once.
	maxStuck = 4
)

// guarded is what panics and hangs are counted against: a volume, or the tree.
type guarded struct {
	stuck  atomic.Int32
	mu     sync.Mutex
	broken error // set by a panic, for good
}

func (g *guarded) state() error {
	if g.stuck.Load() >= maxStuck {
		return errHanging
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.broken
}

func (g *guarded) breakFor(err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.broken == nil {
		g.broken = err
	}
}

type outcome[T any] struct {
	value T
	err   error
}

// guard runs fn with a deadline, and in a goroutine of its own so that the caller
// gets its answer even when fn hangs or panics. What fn writes must belong to fn: it
// may still run when guard has returned.
func guard[T any](f *files, g *guarded, cancel <-chan struct{}, fn func(ctx context.Context) (T, error)) (T, error) {
	var none T
	if err := g.state(); err != nil {
		return none, err
	}
	ctx, stop := context.WithTimeout(context.Background(), f.deadline)
	defer stop()
	var late atomic.Bool // this run counts in g.stuck
	done := make(chan outcome[T], 1)
	go func() {
		var o outcome[T]
		defer func() {
			if p := recover(); p != nil {
				o.err = fmt.Errorf("%w: %v", errPanic, p)
				g.breakFor(o.err)
				f.log.Error("reader panicked", "panic", p, "stack", string(debug.Stack()))
			}
			if late.Swap(true) {
				g.stuck.Add(-1)
			}
			done <- o
		}()
		o.value, o.err = fn(ctx)
	}()

	deadline := time.NewTimer(f.deadline + time.Second)
	defer deadline.Stop()
	var grace <-chan time.Time
	for {
		select {
		case o := <-done:
			if errors.Is(o.err, context.DeadlineExceeded) {
				o.err = fmt.Errorf("%w (%s)", errDeadline, f.deadline)
			}
			return o.value, o.err
		case <-cancel:
			cancel = nil
			t := time.NewTimer(interruptGrace)
			defer t.Stop()
			grace = t.C
		case <-grace:
			grace = nil
			g.leave(&late)
			return none, context.Canceled
		case <-deadline.C:
			g.leave(&late)
			return none, fmt.Errorf("%w (%s)", errDeadline, f.deadline)
		}
	}
}

// leave counts a run that goes on without anybody waiting for it, until it ends.
func (g *guarded) leave(late *atomic.Bool) {
	g.stuck.Add(1)
	if late.Swap(true) { // it ended just now
		g.stuck.Add(-1)
	}
}

// report tells the owner of a volume what is about to be answered with EIO.
func (f *files) report(v *volume, st fuse.Status, what string, err error) {
	if st != fuse.EIO {
		return
	}
	if v != nil {
		v.entry.Volume.Report(what, err)
		return
	}
	f.log.Warn("answered with an I/O error", "operation", what, "err", err)
}
