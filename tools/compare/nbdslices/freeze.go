package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/keelblock/keelblock/blockdev/cbt"
	"github.com/keelblock/keelblock/blockdev/localdisk"
)

const (
	freezeDisks = 8
	freezeBytes = 1 << 40
	freezeCount = 200              // at most,
	freezeFor   = 10 * time.Second // since what a freeze leaves to clear takes a while
	maxFreeze   = time.Millisecond
)

// freezeRows freezes disks of 1 TiB, sparse files on a disk's file system, while
// writers of each go on: the time from the first disk's word to the new epoch. No writer
// waits for it or for what comes before, the look at the spill's free space; a remark
// tells what the whole call takes.
func (p plan) freezeRows(ctx context.Context, at places) (err error) {
	const medianRow, maxRow = "freeze-8x1TiB-median", "freeze-8x1TiB-max"
	if !p.wanted(medianRow) && !p.wanted(maxRow) {
		return nil
	}
	clock := cbt.NewClock()
	var disks []*cbt.Tracker
	defer func() {
		for _, t := range disks {
			err = errors.Join(err, t.Close())
		}
	}()
	for i := range freezeDisks {
		name := fmt.Sprintf("freeze%d", i)
		file := filepath.Join(at.disk, name+".raw")
		if err := localdisk.Create(file, freezeBytes); err != nil {
			return err
		}
		d, err := localdisk.Open(file, localdisk.Options{})
		if err != nil {
			return err
		}
		t, err := cbt.Open(d, clock, cbt.Options{DiskID: name, MapPath: filepath.Join(at.memory, name+".map"), SavePath: file + ".saved"})
		if err != nil {
			return errors.Join(err, d.Close())
		}
		disks = append(disks, t)
	}
	var ending atomic.Bool
	var wg sync.WaitGroup
	for i := range 2 { // as many writers as keep both cores busy
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(i), 1))
			buf := make([]byte, 4096)
			for k := 0; !ending.Load(); k++ {
				if _, err := disks[k%freezeDisks].WriteAt(buf, rng.Int64N(1<<6)<<34); err != nil {
					return // of which the freeze will tell
				}
			}
		})
	}
	instants, calls, err := freezes(ctx, clock, disks)
	ending.Store(true)
	wg.Wait()
	if err != nil {
		return err
	}
	for _, row := range []struct {
		name string
		part float64
	}{{medianRow, 0.5}, {maxRow, 1}} {
		if d := max(percentile(instants, row.part), 1); p.wanted(row.name) {
			print(row.name, fmt.Sprintf("%.1fus", float64(d)/1e3), microseconds(maxFreeze), float64(maxFreeze)/float64(d), 1)
		}
	}
	fmt.Printf("# freeze: the whole call %s\n", describe(calls))
	return nil
}

func freezes(ctx context.Context, clock *cbt.Clock, disks []*cbt.Tracker) (instants, calls []time.Duration, err error) {
	for start := time.Now(); len(calls) < freezeCount && (len(calls) == 0 || time.Since(start) < freezeFor); {
		began := time.Now()
		z, err := clock.Freeze(disks)
		calls = append(calls, time.Since(began))
		if err != nil {
			return nil, nil, err
		}
		instants = append(instants, z.Duration)
		for _, f := range z.Disks {
			err = errors.Join(err, f.Drain(ctx))
		}
		for _, f := range z.Disks {
			err = errors.Join(err, f.Abort())
		}
		if err != nil {
			return nil, nil, err
		}
	}
	return instants, calls, nil
}
