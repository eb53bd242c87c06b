package main

import (
	"context"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// plan is how much is measured.
type plan struct {
	starts int // of the servers, per stage: two processes of one binary differ by 5 %
	rounds int // of each start
	slice  time.Duration
	wanted func(row string) bool
}

// runStage measures the rows of a stage and prints them.
func (p plan) runStage(ctx context.Context, at places, st stage) error {
	var chosen []shape
	for _, s := range st.shapes {
		if p.wanted(st.row("nbd", s)) || p.wanted(st.row("tracked", s)) {
			chosen = append(chosen, s)
		}
	}
	if len(chosen) == 0 {
		return nil
	}
	rates := make([][servers][]float64, len(chosen))
	for range p.starts {
		if err := p.runServers(ctx, at, st, chosen, rates); err != nil {
			return err
		}
	}
	for i, s := range chosen {
		r := rates[i]
		if name := st.row("nbd", s); p.wanted(name) {
			print(name, s.rate(median(r[tracked])), s.rate(median(r[nbdkit])), median(ratios(r[tracked], r[nbdkit])), s.nbdkitGoal())
		}
		if name := st.row("tracked", s); p.wanted(name) {
			print(name, s.rate(median(r[tracked])), s.rate(median(r[raw])), median(ratios(r[tracked], r[raw])), trackedGoal)
		}
	}
	return nil
}

// runServers measures all shapes with one start of the servers.
func (p plan) runServers(ctx context.Context, at places, st stage, chosen []shape, rates [][servers][]float64) error {
	peers, stop, err := at.start(ctx, st)
	if err != nil {
		return err
	}
	defer stop()
	for i, s := range chosen {
		for round := range p.rounds + 1 { // one to warm up
			for turn := range servers {
				if ctx.Err() != nil {
					return ctx.Err()
				}
				k := (turn + round) % servers // each goes first in turn
				rate, err := peers[k].slice(s, p.slice)
				if err != nil {
					return fmt.Errorf("%s: %s: %w", st.row("nbd", s), peers[k].name, err)
				}
				if round > 0 {
					rates[i][k] = append(rates[i][k], rate)
				}
			}
		}
	}
	return nil
}

// slice is the rate of all connections together.
func (p *peer) slice(s shape, d time.Duration) (float64, error) {
	if s.cold {
		if err := dropCache(p.file); err != nil {
			return 0, err
		}
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	var rate float64
	var failed error
	for _, l := range p.loads {
		wg.Go(func() {
			n, took, err := l.slice(s, d)
			mu.Lock()
			defer mu.Unlock()
			rate += float64(n) / took.Seconds()
			if err != nil {
				failed = err
			}
		})
	}
	wg.Wait()
	return rate, failed
}

// dropCache writes what is dirty of a file and forgets its pages.
func dropCache(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Fdatasync(int(f.Fd())); err != nil {
		return err
	}
	return unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
}
