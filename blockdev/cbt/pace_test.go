package cbt

import (
	"context"
	"testing"
	"time"
)

// fakePace is the time of a pacer: it passes only while the pacer sleeps.
type fakePace struct {
	time time.Time
	busy func() bool
	rate float64
}

func (f *fakePace) install(p *pacer) {
	p.now = func() time.Time { return f.time }
	p.sleep = func(_ context.Context, d time.Duration) { f.time = f.time.Add(d) }
	p.rate = func() float64 { return f.rate }
	if f.busy != nil {
		p.busy = f.busy
	}
}

func TestPacerWaitsOnlyBesideABusyGuest(t *testing.T) {
	busy := false
	f := &fakePace{time: time.Unix(1e9, 0), busy: func() bool { return busy }, rate: 16 << 20}
	tr := &Tracker{clock: NewClock(), pacing: f.install}
	p := tr.newPacer()
	start := f.time
	for off := range int64(64) { // 64 MiB
		p.took(t.Context(), off<<20, 1<<20)
	}
	if f.time != start {
		t.Errorf("an idle guest: waited %v", f.time.Sub(start))
	}
	busy = true
	for off := range int64(16) {
		p.took(t.Context(), (64+off)<<20, 1<<20)
	}
	// 16 MiB, of which one is free; the rate has grown a little by the end.
	if d := f.time.Sub(start); d < 800*time.Millisecond || d > time.Second+10*time.Millisecond {
		t.Errorf("a busy guest: 16 MiB at 16 MiB/s waited %v", d)
	}
	start = f.time
	for i := range int64(16) { // a grain of each block, and another: 1 MiB counts
		p.took(t.Context(), 80<<20+i<<16, 4096)
		p.took(t.Context(), 80<<20+i<<16+8192, 4096)
	}
	if d := f.time.Sub(start); d < 40*time.Millisecond || d > 80*time.Millisecond {
		t.Errorf("16 blocks of which two grains each are captured waited %v, want what 1 MiB takes", d)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	start = f.time
	p.took(ctx, 128<<20, 64<<20)
	if f.time != start {
		t.Errorf("a capture that was cancelled waited %v", f.time.Sub(start))
	}
}

func TestPacerSharesAndGrows(t *testing.T) {
	tr := &Tracker{clock: NewClock()}
	one := tr.newPacer().rate()
	tr.clock.captures.Store(4)
	if four := tr.newPacer().rate(); four != one/4 {
		t.Errorf("one of four captures has %v of %v", four, one)
	}
	f := &fakePace{time: time.Unix(1e9, 0), busy: func() bool { return true }, rate: 16 << 20}
	tr.pacing = f.install
	p := tr.newPacer()
	first := f.time
	p.took(t.Context(), 0, 16<<20)
	second := f.time
	f.time = f.time.Add(9 * paceGrowth)
	third := f.time
	p.took(t.Context(), 32<<20, 16<<20)
	if early, late := second.Sub(first), f.time.Sub(third); late > early/5 {
		t.Errorf("16 MiB took %v at the start and %v after %v", early, late, 9*paceGrowth)
	}
}
