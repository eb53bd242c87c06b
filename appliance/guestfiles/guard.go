package guestfiles

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/keelblock/keelblock/appliance/fusemount"
	"github.com/keelblock/keelblock/blockdev/filesystem"
)

// maxStuck is how many operations of one volume may be past their deadline before new
// ones fail at once.
const maxStuck = 4

// Errors of this package's own making.
var (
	errDeadline = errors.New("the reader did not answer in time")
	errHanging  = errors.New("the reader of this volume hangs")
	errPanic    = errors.New("the reader of this volume failed and was stopped")
)

// volume is a guest's file system with what is counted against its reader.
type volume struct {
	open     fusemount.Volume
	deadline time.Duration
	stuck    atomic.Int32

	mu     sync.Mutex
	broken error // set by a panic, for good
}

func (v *volume) state() error {
	if v.stuck.Load() >= maxStuck {
		return errHanging
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.broken
}

func (v *volume) breakFor(err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.broken == nil {
		v.broken = err
	}
}

type outcome[T any] struct {
	value T
	err   error
}

// inVolume runs fn on the volume's reader with a deadline. What fn writes must belong
// to fn: it may still run when inVolume has returned with errDeadline or because ctx
// ended.
func inVolume[T any](ctx context.Context, v *volume, fn func(fs filesystem.FS) (T, error)) (T, error) {
	var none T
	if err := v.state(); err != nil {
		return none, err
	}
	done := make(chan outcome[T], 1)
	go func() {
		var o outcome[T]
		defer func() {
			if p := recover(); p != nil {
				o.err = fmt.Errorf("%w: %v", errPanic, p)
				v.breakFor(o.err)
			}
			done <- o
		}()
		var fs filesystem.FS
		if fs, o.err = v.open.Open(ctx); o.err == nil {
			o.value, o.err = fn(fs)
		}
	}()
	timer := time.NewTimer(v.deadline)
	defer timer.Stop()
	select {
	case o := <-done:
		return o.value, o.err
	case <-ctx.Done():
		return none, ctx.Err()
	case <-timer.C:
		v.stuck.Add(1)
		go func() { // until it comes back
			<-done
			v.stuck.Add(-1)
		}()
		return none, fmt.Errorf("%w (%s)", errDeadline, v.deadline)
	}
}

// lost says whether an operation may still be running, so that what it writes to is
// still in use.
func lost(ctx context.Context, err error) bool {
	return err != nil && (ctx.Err() != nil || errors.Is(err, errDeadline) || errors.Is(err, context.Canceled))
}
