package main

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"
)

func newGuest() *guest {
	return &guest{done: make(chan struct{}), found: -1, heard: make(chan struct{})}
}

func TestConsoleIsUnderstood(t *testing.T) {
	g := newGuest()
	g.listen(strings.NewReader("[  1.0] Linux\r\nLAB cache write back\r\nLAB found 17 bad 3\r\n\r\n[ok] LAB synced 18\r\nLAB: wait restart\r\nLAB synced 19"))
	if g.found != 17 || g.bad != 3 || g.synced != 19 || g.cache != "write back" {
		t.Errorf("found %d, bad %d, synced %d, cache %q; want 17, 3, 19, write back", g.found, g.bad, g.synced, g.cache)
	}
}

func TestWaitEndsWhenReached(t *testing.T) {
	g := newGuest()
	go g.hear("LAB synced 4")
	if err := g.await(t.Context(), "entry 4", time.Minute, func() bool { return g.synced >= 4 }); err != nil {
		t.Error(err)
	}
}

func TestWaitIsBounded(t *testing.T) {
	g := newGuest()
	g.hear("Kernel panic")
	never := func() bool { return false }
	if err := g.await(t.Context(), "what never comes", 10*time.Millisecond, never); err == nil || !strings.Contains(err.Error(), "Kernel panic") {
		t.Errorf("error %v, want one with the console's last lines", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := g.await(ctx, "what never comes", time.Minute, never); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want canceled", err)
	}
	close(g.done)
	if err := g.await(t.Context(), "what never comes", time.Minute, never); err == nil || !strings.Contains(err.Error(), "qemu ended") {
		t.Errorf("error %v, want that qemu ended", err)
	}
}

// What orders say is kept in order, for who follows.
func TestOrdersAreFollowed(t *testing.T) {
	g := newGuest()
	g.listen(strings.NewReader("LAB: kernel 6.1\r\n[ 1.0] LAB: queue nbd0 write_cache=write-through fua=0 logical_block_size=512 ro=0\r\n"))
	l := &lab{ctx: t.Context(), began: time.Now()}
	if err := l.follow(g, nil); err == nil || !strings.Contains(err.Error(), "nbd0: the kernel has") {
		t.Errorf("error %v, want that the queue is not what we advertise", err)
	}
	sound := "nbd0 write_cache=write-back fua=1 discard_max_bytes=4294966784 logical_block_size=512 ro=0"
	if err := checkQueue(sound); err != nil {
		t.Error(err)
	}
	if err := checkQueue(strings.Replace(sound, "4294966784", "0", 1)); err == nil {
		t.Error("a device that cannot trim passes")
	}
	if err := checkQueue("nbd3 write_cache=write-back fua=0 discard_max_bytes=0 logical_block_size=512 ro=1"); err != nil {
		t.Errorf("read-only: %v", err)
	}
	g = newGuest()
	g.listen(strings.NewReader("LAB: fail attach: line 7\r\n"))
	if err := l.follow(g, nil); err == nil || !strings.Contains(err.Error(), "in the guest: attach: line 7") {
		t.Errorf("error %v, want what failed in the guest", err)
	}
	waits := false
	g = newGuest()
	g.in = discard{}
	g.listen(strings.NewReader("LAB: wait restart\r\nLAB: done\r\n"))
	err := l.follow(g, map[string]func() error{"restart": func() error { waits = true; return nil }})
	if err != nil || !waits {
		t.Errorf("error %v, action taken %v", err, waits)
	}
}

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }
func (discard) Close() error                { return nil }

// A point that lacks an acknowledged entry, or holds one from its future, is a
// failure of the run.
func TestPointHoldsWhatWasAcknowledged(t *testing.T) {
	l := &lab{}
	for _, tt := range []struct {
		found int
		ok    bool
	}{{9, false}, {10, true}, {14, true}, {15, false}} {
		g := newGuest()
		g.found = tt.found
		if err := l.holds(g, point{atLeast: 10}, 15); (err == nil) != tt.ok {
			t.Errorf("%d found, 10 acknowledged, below 15: %v", tt.found, err)
		}
	}
}
