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

// measured are the rates of one shape: for each start those of its rounds, by side.
type measured []*[sides][]float64

// rate is the median of a side over the medians of the starts.
func (m measured) rate(side int) float64 {
	var each []float64
	for _, start := range m {
		each = append(each, median(start[side]))
	}
	return median(each)
}

// ratio is the median over the starts of the medians of the rounds' ratios, which
// perStart lists.
func (m measured) ratio(a, b int) (ratio float64, perStart []float64) {
	for _, start := range m {
		perStart = append(perStart, median(ratios(start[a], start[b])))
	}
	return median(perStart), perStart
}

// runStage measures the rows of a stage and prints them.
func (p plan) runStage(ctx context.Context, at places, st stage) error {
	var chosen []shape
	for _, s := range st.shapes {
		for _, r := range comparisons {
			if p.wanted(st.row(r.group, s)) {
				chosen = append(chosen, s)
				break
			}
		}
	}
	if len(chosen) == 0 {
		return nil
	}
	rates := make([]measured, len(chosen))
	for range p.starts {
		if err := p.runServers(ctx, at, st, chosen, rates); err != nil {
			return err
		}
	}
	for i, s := range chosen {
		for _, r := range comparisons {
			if name := st.row(r.group, s); p.wanted(name) {
				ratio, perStart := rates[i].ratio(r.ours, r.peer)
				print(name, s.rate(rates[i].rate(r.ours)), s.rate(rates[i].rate(r.peer)), ratio, r.goal(s))
				fmt.Printf("# %s: starts %.2f\n", name, perStart)
			}
		}
	}
	return nil
}

// orders are those in which a round may turn to the sides. Over four rounds each goes
// first once, and each follows each other one once: what a slice leaves behind, in the
// caches or on its way to the disk, meets all alike.
var orders = [4][sides]int{{0, 1, 3, 2}, {1, 2, 0, 3}, {2, 3, 1, 0}, {3, 0, 2, 1}}

// runServers measures all shapes with one start of the servers.
func (p plan) runServers(ctx context.Context, at places, st stage, chosen []shape, rates []measured) error {
	peers, stop, err := at.start(ctx, st)
	if err != nil {
		return err
	}
	defer stop()
	for i, s := range chosen {
		var start [sides][]float64
		for round := range p.rounds + 1 { // one to warm up
			for _, k := range orders[round%len(orders)] {
				if ctx.Err() != nil {
					return ctx.Err()
				}
				if s.cold {
					if err := dropCache(at.file(st)); err != nil {
						return err
					}
				}
				rate, err := peers[k].slice(s, p.slice)
				if err != nil {
					return fmt.Errorf("%s: %s: %w", st.row("nbd", s), peers[k].name, err)
				}
				if round > 0 {
					start[k] = append(start[k], rate)
				}
			}
		}
		rates[i] = append(rates[i], &start)
	}
	return nil
}

// slice is the rate of all connections together.
func (p *peer) slice(s shape, d time.Duration) (float64, error) {
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
