package cbt

import (
	"context"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"
)

// sequenceGap is put between the disks of a cut. Without it the wrong way of cutting
// passes too (it did, two million writes long).
const sequenceGap = 300 * time.Microsecond

// sequencer writes the numbers 1, 2, 3 … to disk 0, and after each acknowledgement
// the same number to disk 1, then to disk 2. Each writer has a grain of its own.
type sequencer struct {
	disks []*Tracker
	stop  chan struct{}
	wg    sync.WaitGroup
}

func startSequencer(t *testing.T, disks []*Tracker, writers int) *sequencer {
	s := &sequencer{disks: disks, stop: make(chan struct{})}
	for w := range writers {
		s.wg.Add(1)
		go func() {
			defer s.wg.Done()
			var buf [8]byte
			for k := uint64(1); ; k++ {
				select {
				case <-s.stop:
					return
				default:
				}
				littleEndian.PutUint64(buf[:], k)
				for _, d := range s.disks {
					if _, err := d.WriteAt(buf[:], int64(w)<<grainShift); err != nil {
						t.Error(err)
						return
					}
				}
			}
		}()
	}
	return s
}

// violations captures a cut over the contents of the last one and counts the writers
// whose number is ahead on a later disk, or behind by more than the one under way.
func violations(t *testing.T, snapshots []*Frozen, contents [][]byte, writers int) (n int) {
	t.Helper()
	for i, f := range snapshots {
		contents[i] = capture(t, f, contents[i])
	}
	for w := range writers {
		at := func(i int) uint64 { return littleEndian.Uint64(contents[i][w<<grainShift:]) }
		first := at(0)
		for i := 1; i < len(contents); i++ {
			if at(i) > at(i-1) || first-at(i) > 1 {
				n++
				break
			}
		}
	}
	return n
}

// cutSequence makes cuts with the given function and returns the violations in all.
func cutSequence(t *testing.T, cuts int, cut func(t *testing.T, c *Clock, disks []*Tracker) []*Frozen) (bad int, longest time.Duration) {
	t.Helper()
	const writers, disks = 3, 3
	c := NewClock()
	ts, contents := make([]*Tracker, disks), make([][]byte, disks)
	for i := range ts {
		d := newMemDisk(64 << 10)
		o := options(t, d)
		o.DiskID = "disk-" + strconv.Itoa(i)
		if i > 0 {
			o.hooks = func(h hook, _ *Tracker) {
				if h == hookWordsStored {
					time.Sleep(sequenceGap)
				}
			}
		}
		ts[i] = mustOpen(t, d, c, o)
		contents[i] = make([]byte, d.Size())
	}
	s := startSequencer(t, ts, writers)
	for k := range cuts {
		frozen := cut(t, c, ts)
		bad += violations(t, frozen, contents, writers)
		for _, f := range frozen {
			longest = max(longest, f.freeze.Duration)
			if err := f.Prepare(PointID{byte(k), byte(k >> 8), 1}); err != nil {
				t.Fatal(err)
			}
			if err := f.Commit(); err != nil {
				t.Fatal(err)
			}
		}
	}
	close(s.stop)
	s.wg.Wait()
	return bad, longest
}

func oneInstant(t *testing.T, c *Clock, disks []*Tracker) []*Frozen {
	return mustFreeze(t, c, disks...).Disks
}

// diskAfterDisk is the wrong way: every disk has an instant of its own.
func diskAfterDisk(t *testing.T, c *Clock, disks []*Tracker) (fs []*Frozen) {
	for _, d := range disks {
		fs = append(fs, mustFreeze(t, c, d).Disks...)
		time.Sleep(sequenceGap)
	}
	for _, f := range fs {
		if err := f.Drain(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	return fs
}

// TestDemand30CutHoldsWhatWasAcknowledgedBefore: disk B is never ahead of disk A in a
// cut of both, with a gap forced between the disks of each cut. CUTS=10000 is the
// demand's figure.
func TestDemand30CutHoldsWhatWasAcknowledgedBefore(t *testing.T) {
	cuts := 100
	if n, err := strconv.Atoi(os.Getenv("CUTS")); err == nil {
		cuts = n
	}
	bad, longest := cutSequence(t, cuts, oneInstant)
	if bad != 0 {
		t.Errorf("%d violations in %d cuts", bad, cuts)
	}
	t.Logf("cuts=%d violations=%d longest freeze %v with two gaps of %v in it", cuts, bad, longest, sequenceGap)
}

// TestDemand30CheckerCatchesDiskAfterDisk: the checker is worth something.
func TestDemand30CheckerCatchesDiskAfterDisk(t *testing.T) {
	bad, _ := cutSequence(t, 20, diskAfterDisk)
	if bad == 0 {
		t.Error("cutting disk after disk passed the checker")
	}
	t.Logf("cuts=20 violations=%d", bad)
}

// TestDemand31NothingStopsForACut: while a cut stands between its disks' words and its
// epoch, and then until it drains, writes to all disks go on.
func TestDemand31NothingStopsForACut(t *testing.T) {
	c := NewClock()
	var g gates
	var ts []*Tracker
	for i := range 3 {
		d := newMemDisk(mib)
		o := options(t, d)
		o.DiskID = "disk-" + strconv.Itoa(i)
		o.hooks = g.hook
		ts = append(ts, mustOpen(t, d, c, o))
		mustWrite(t, ts[i], 0, 4096, 1)
	}
	var z *Freeze
	held, frozen := g.hold(t, ts[1], hookWordsStored, func() {
		var err error
		if z, err = c.Freeze(ts); err != nil {
			t.Error(err)
		}
	})
	wrote := background(func() {
		for _, d := range ts {
			if _, err := d.WriteAt([]byte{2}, 0); err != nil {
				t.Error(err)
			}
		}
	})
	wait(t, wrote, "writes in the middle of a freeze")
	held.release()
	wait(t, frozen, "the freeze")
	for i, f := range z.Disks {
		mustWrite(t, ts[i], 0, 4096, 3)
		if err := f.Drain(context.Background()); err != nil {
			t.Fatal(err)
		}
		if got := capture(t, f, make([]byte, mib)); got[0] != 2 {
			t.Errorf("disk %d: captured %d, want 2", i, got[0])
		}
	}
	if z.At.IsZero() || z.Duration <= 0 {
		t.Errorf("the freeze reports %v at %v", z.Duration, z.At)
	}
}
