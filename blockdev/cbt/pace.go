package cbt

import (
	"context"
	"runtime"
	"time"
)

// How a capture leaves room for the guest
//
// A capture reads the disk, and what takes its grains hashes and compresses them on
// every core: left alone it takes half the machine from a guest that is busy. So it
// is paced, but only while the guest is: a write is registered, or a read waits for
// the disk, at the moment of the look. A guest that asks for little is hardly ever
// met, and loses little.
//
// What is paced is not the bytes but the blocks of 64 KiB that they touch, as one
// grain costs whoever takes it the work of its block.
//
// The captures of a daemon share the rate. One that lasts becomes faster: every paceGrowth it may do as much again. A
// guest that never rests cannot hold it for ever, and each write to a grain that is
// still pending costs that guest a copy.

const (
	// paceBlock is what one touched grain counts for.
	paceBlock = 64 << 10
	// pacePerCore is how much is captured per second and core beside a busy guest, a
	// fifth of what a core hashes and compresses (333 MB/s on two cores,
	// tools/compare/RESULTS.md).
	pacePerCore = 32 << 20
	// paceBurst is captured without a look.
	paceBurst = 1 << 20
	// paceStep is how long a wait lasts until the guest is looked at again.
	paceStep   = time.Millisecond
	paceGrowth = 10 * time.Second
)

// pacer bounds the rate of one capture.
type pacer struct {
	rate  func() float64 // bytes per second at the start
	busy  func() bool
	now   func() time.Time
	sleep func(context.Context, time.Duration)

	began, last time.Time
	// debt is what was captured ahead of the rate, in bytes; blocks below next are
	// counted.
	debt float64
	next int64
}

func (t *Tracker) newPacer() *pacer {
	p := &pacer{busy: t.guestIsBusy, now: time.Now, sleep: sleep, rate: func() float64 {
		return pacePerCore * float64(runtime.NumCPU()) / float64(max(t.clock.captures.Load(), 1))
	}}
	if t.pacing != nil {
		t.pacing(p)
	}
	p.began = p.now()
	p.last = p.began
	return p
}

// took counts [off, off+n) as captured, ranges ascend, and waits while that is ahead of the rate and
// the guest is busy.
func (p *pacer) took(ctx context.Context, off, n int64) {
	p.settle()
	end := (off + n + paceBlock - 1) / paceBlock
	p.debt += float64(end-max(off/paceBlock, p.next)) * paceBlock
	p.next = end
	for p.debt > paceBurst && p.busy() && ctx.Err() == nil {
		p.sleep(ctx, paceStep)
		p.settle()
	}
	if p.debt > paceBurst {
		p.debt = paceBurst // what a guest that was idle let through is not owed
	}
}

// settle takes from the debt what the rate allowed since the last look.
func (p *pacer) settle() {
	now := p.now()
	grown := 1 + float64(now.Sub(p.began))/float64(paceGrowth)
	p.debt = max(p.debt-now.Sub(p.last).Seconds()*p.rate()*grown, 0)
	p.last = now
}

// guestIsBusy reports whether the guest is writing, or waits for a read from the disk,
// at this moment.
func (t *Tracker) guestIsBusy() bool {
	if t.reading.Load() != 0 {
		return true
	}
	for i := range t.stripes.state {
		if t.stripes.state[i].Load() != 0 {
			return true
		}
	}
	return false
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
