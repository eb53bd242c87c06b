package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/keelblock/keelblock/tools/rig"
)

const (
	guestBytes = 512 << 20
	guestRate  = 1000 // writes per second of each guest
	// maxGuestP99: beside a backup the p99 of writes may be so much of that of an
	// untracked disk.
	maxGuestP99 = 1.5
	// captureGoal is what a guest that writes as fast as it can keeps while a backup runs.
	captureGoal = 0.85
)

// appliance is a daemon with one machine of one disk, and beside it the same disk
// untracked behind our server in a process of its own, on the same file system.
type appliance struct {
	r     *rig.Rig
	disk  *load
	plain *load
	close func()
}

// startAppliance fills the disk and backs it up once.
func startAppliance(ctx context.Context, bin string) (a *appliance, err error) {
	r, err := rig.New(bin, "keelblock-nbdslices-")
	if err != nil {
		return nil, err
	}
	ends := []func(){func() { r.Close() }}
	a = &appliance{r: r, close: func() {
		for i := len(ends) - 1; i >= 0; i-- {
			ends[i]()
		}
	}}
	defer func() {
		if err != nil {
			a.close()
		}
	}()
	for _, args := range [][]string{{"serve", "-d"}, {"disk", "create", "d", "--size", strconv.Itoa(guestBytes)}, {"machine", "create", "m", "--disk", "d"}} {
		if _, err := r.Keelblock(ctx, args...); err != nil {
			return nil, err
		}
	}
	if a.disk, err = connect(address{network: "unix", at: r.Socket(), export: "d"}, guestBytes); err != nil {
		return nil, err
	}
	ends = append(ends, a.disk.close)
	o := serveOptions{file: filepath.Join(r.Dir, "plain.raw"), maps: r.Dir, network: "unix", at: filepath.Join(r.Dir, "plain.sock")}
	if err := os.WriteFile(o.file, nil, 0o600); err != nil {
		return nil, err
	}
	if err := os.Truncate(o.file, guestBytes); err != nil {
		return nil, err
	}
	server, err := startServer(ctx, o)
	if err != nil {
		return nil, err
	}
	ends = append(ends, server.stop)
	if a.plain, err = connect(address{network: o.network, at: o.at}, guestBytes); err != nil {
		return nil, err
	}
	ends = append(ends, a.plain.close)
	for _, l := range []*load{a.disk, a.plain} {
		if err := l.fillExport(); err != nil {
			return nil, err
		}
	}
	_, err = r.Backup(ctx, "m")
	return a, err
}

// backup makes a point and returns from when to when that took.
func (a *appliance) backup(ctx context.Context) (window, error) {
	w := window{from: time.Now()}
	_, err := a.r.Backup(ctx, "m")
	w.to = time.Now()
	return w, err
}

// guestRows measures what backups do to writes.
func (p plan) guestRows(ctx context.Context, bin string) error {
	var runs []guestRun
	for _, g := range []guestRun{{"5s", 5 * time.Second, 11}, {"60s", 60 * time.Second, 3}} {
		if p.wanted("guest-p99-during-" + g.name) {
			runs = append(runs, g)
		}
	}
	const capturing = "capture-write-4k-qd32"
	if len(runs) == 0 && !p.wanted(capturing) {
		return nil
	}
	if _, err := os.Stat(bin); err != nil {
		fmt.Printf("# guest and capture rows: %v; make builds it\n", err)
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 8*time.Minute) // 5 minutes are usual
	defer cancel()
	a, err := startAppliance(ctx, bin)
	if err != nil {
		return err
	}
	defer a.close()
	if p.wanted(capturing) {
		if err := p.captureRow(ctx, a, capturing); err != nil {
			return err
		}
	}
	for _, g := range runs {
		if err := g.measure(ctx, a); err != nil {
			return err
		}
	}
	return nil
}

// guestRun is a guest on each disk, and a backup at an interval.
type guestRun struct {
	name    string
	every   time.Duration
	backups int
}

// measure runs both guests all the time, so that whatever else the machine does meets
// both. A round is a backup: the p99 of the writes before, during and after it against
// that of the untracked disk in the quiet moment just before it. The median of the
// rounds counts: one moment at which the machine did something else decides nothing. What
// the same backup does to the untracked disk, behind a server that has no part in it, is
// a row without a goal: no tracker can be better than that.
func (g guestRun) measure(ctx context.Context, a *appliance) error {
	guests, end := context.WithCancel(ctx)
	defer end()
	var lists [2][]sample
	var errs [2]error
	var wg sync.WaitGroup
	for i, l := range []*load{a.disk, a.plain} {
		wg.Go(func() { lists[i], errs[i] = l.guest(guests, guestRate) })
	}
	settle := min(g.every/4, 5*time.Second)
	var rounds []guestRound
	var failed error
	for range g.backups {
		start := time.Now()
		select {
		case <-time.After(g.every):
		case <-ctx.Done():
		}
		w, err := a.backup(ctx)
		if err != nil {
			failed = err
			break
		}
		rounds = append(rounds, guestRound{
			before: window{maxTime(start.Add(settle), w.from.Add(-5*time.Second)), w.from},
			during: w,
			after:  window{w.to, w.to.Add(settle)},
		})
	}
	select {
	case <-time.After(settle):
	case <-ctx.Done():
	}
	end()
	wg.Wait()
	if err := errors.Join(failed, errs[0], errs[1], ctx.Err()); err != nil {
		return err
	}
	g.print(rounds, lists[0], lists[1])
	return nil
}

// guestRound are the moments around one backup.
type guestRound struct{ before, during, after window }

// print prints the rows of a run; ours and plain are the writes of its guests.
func (g guestRun) print(rounds []guestRound, ours, plain []sample) {
	p99 := func(list []sample, w window) float64 { return float64(percentile(in(list, w), 0.99)) }
	before := func(r guestRound) window { return r.before }
	during := func(r guestRound) window { return r.during }
	after := func(r guestRound) window { return r.after }
	row := func(name string, goal float64, list []sample, when func(guestRound) window) {
		var then, quiet []float64
		var all []time.Duration
		for _, r := range rounds {
			then, quiet = append(then, p99(list, when(r))), append(quiet, p99(plain, r.before))
			all = append(all, in(list, when(r))...)
		}
		print(name+"-"+g.name, microseconds(time.Duration(median(then))), microseconds(time.Duration(median(quiet))), median(ratios(quiet, then)), goal)
		fmt.Printf("# %s\n", describe(all))
	}
	row("guest-p99-before", 1/maxGuestP99, ours, before)
	row("guest-p99-during", 1/maxGuestP99, ours, during)
	row("guest-p99-after", 1/maxGuestP99, ours, after)
	row("guest-p99-untracked-during", 0, plain, during)
	var total time.Duration
	for _, r := range rounds {
		total += r.during.to.Sub(r.during.from)
	}
	fmt.Printf("# %d backups, %v each\n", len(rounds), (total / time.Duration(len(rounds))).Round(time.Millisecond))
}

func maxTime(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// captureRow writes as fast as it can and compares slices while a backup runs with
// those just before it.
func (p plan) captureRow(ctx context.Context, a *appliance, name string) error {
	s := shape{write: true, bytes: 4 << 10, depth: 32}
	var quiet, busy, parts []float64
	for range 6 {
		var before []float64
		for range 10 { // and these are what the backup has to capture
			n, took, err := a.disk.slice(s, p.slice)
			if err != nil {
				return err
			}
			before = append(before, float64(n)/took.Seconds())
		}
		done := make(chan error, 1)
		go func() {
			_, err := a.backup(ctx)
			done <- err
		}()
		var while []float64
		for running := true; running; {
			n, took, err := a.disk.slice(s, p.slice)
			if err != nil {
				return errors.Join(err, <-done)
			}
			select {
			case err := <-done:
				if err != nil {
					return err
				}
				running = false
			default:
				while = append(while, float64(n)/took.Seconds())
			}
		}
		if len(while) < 3 {
			continue
		}
		q, b := median(before), mean(while)
		quiet, busy, parts = append(quiet, q), append(busy, b), append(parts, b/q)
	}
	if len(parts) == 0 {
		return errors.New("no backup took long enough to be measured")
	}
	print(name, s.rate(median(busy)), s.rate(median(quiet)), median(parts), captureGoal)
	return nil
}

func mean(list []float64) (m float64) {
	for _, v := range list {
		m += v / float64(len(list))
	}
	return m
}
