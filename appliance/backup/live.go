package backup

import (
	"context"
	"errors"

	"github.com/keelblock/keelblock/blockdev"
	"github.com/keelblock/keelblock/blockdev/cbt"
	"github.com/keelblock/keelblock/dedupe/ingest"
	"github.com/keelblock/keelblock/dedupe/recoverypoint"
)

// readWhole reads the disks without a trusted map into unpublished trees, while
// the guest writes.
func (a *attemptState) readWhole(ctx context.Context) error {
	var whole []int
	var trackers []*cbt.Tracker
	for i, p := range a.plans {
		if p.tracking != recoverypoint.TrackingEnabled {
			whole = append(whole, i)
			trackers = append(trackers, p.disk.Tracker())
			a.t.AddTotal(p.disk.AllocatedBytes())
			a.e.o.Logger.Info("disk is read in full", "machine", p.part.machine.Name, "disk", p.disk.Name(), "tracking", p.tracking, "reason", p.reason)
		}
	}
	if len(trackers) == 0 {
		return nil
	}
	a.t.Detail("reading disks in full")
	end := a.t.Begin("ReadDisks")
	err := a.e.o.Clock.Baseline(trackers)
	if err == nil {
		err = a.each(ctx, whole, a.readDisk)
	}
	if err == nil {
		err = a.reread(ctx)
	}
	end(err)
	return err
}

// readDisk ingests one live disk. Holes are told, not read.
func (a *attemptState) readDisk(ctx context.Context, i int) error {
	p := a.plans[i]
	o := a.options()
	o.Trim = p.tracking == recoverypoint.TrackingChecksumCompare
	pass, err := ingest.NewPass(a.h.Store, a.batch, p.base, p.disk.Entry().SizeBytes, o)
	if err != nil {
		return err
	}
	defer pass.Abort()
	if err := readDevice(ctx, p.disk.Tracker(), pass, a.t.AddDone); err != nil {
		return err
	}
	return a.finish(ctx, i, pass)
}

// Limits of reading again what the guest wrote meanwhile.
const (
	maxRereads = 8
	// spillPart: rereading ends when what is listed fits this part of the spill.
	spillPart = 10
)

// reread reads what the guest wrote during the full read once more, and again, until
// little is left to preserve after the freeze, or until it does not become less.
func (a *attemptState) reread(ctx context.Context) error {
	last := make([]int64, len(a.plans))
	for range maxRereads {
		var plans []int
		var trackers []*cbt.Tracker
		for i, p := range a.plans {
			if p.tracking == recoverypoint.TrackingEnabled {
				continue
			}
			s := p.disk.Tracker().Stats()
			shrinks := last[i] == 0 || s.ChangedBytes < last[i]/4*3
			if last[i] = s.ChangedBytes; s.ChangedBytes > s.SpillLimitBytes/spillPart && shrinks {
				plans, trackers = append(plans, i), append(trackers, p.disk.Tracker())
			}
		}
		if len(plans) == 0 {
			return nil
		}
		lists := map[int]*recoverypoint.ChangeSet{}
		for _, i := range plans {
			lists[i] = recoverypoint.NewChangeSet()
		}
		if err := a.e.o.Clock.Advance(trackers, func(k int, x blockdev.Extent) { lists[plans[k]].Add(x) }); err != nil {
			return err
		}
		err := a.each(ctx, plans, func(ctx context.Context, i int) error { return a.readListed(ctx, i, lists[i]) })
		if err != nil {
			return err
		}
	}
	return nil
}

// readListed ingests the listed ranges of a live disk over the tree read before.
func (a *attemptState) readListed(ctx context.Context, i int, list *recoverypoint.ChangeSet) error {
	dev := a.plans[i].disk.Tracker()
	pass, err := ingest.NewPass(a.h.Store, a.batch, a.roots[i], dev.Size(), a.options())
	if err != nil {
		return err
	}
	defer pass.Abort()
	buf := make([]byte, readChunk)
	var failed error
	list.Extents(dev.Size(), func(x blockdev.Extent) bool {
		a.t.AddTotal(x.Length)
		failed = feed(ctx, dev, pass, buf, x, a.t.AddDone)
		return failed == nil
	})
	if failed != nil {
		return failed
	}
	return a.finish(ctx, i, pass)
}

// readChunk is how much of a live disk is read at once.
const readChunk = 1 << 20

// readDevice feeds all of dev to a pass in ascending order.
func readDevice(ctx context.Context, dev *cbt.Tracker, pass *ingest.Pass, done func(int64)) error {
	buf := make([]byte, readChunk)
	var failed error
	err := grainExtents(dev, func(x blockdev.Extent, s blockdev.ExtentStatus) bool {
		if s.Zero {
			failed = pass.Zero(ctx, x.Offset, x.Length)
		} else {
			failed = feed(ctx, dev, pass, buf, x, done)
		}
		return failed == nil
	})
	return errors.Join(failed, err)
}

// feed reads one range of dev into a pass, in pieces on the grid of buf's length.
func feed(ctx context.Context, dev *cbt.Tracker, pass *ingest.Pass, buf []byte, x blockdev.Extent, done func(int64)) error {
	size := int64(len(buf))
	for x.Length > 0 {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		p := buf[:min(x.Length, size-x.Offset%size)]
		if _, err := dev.ReadAt(p, x.Offset); err != nil {
			return err
		}
		if err := pass.Write(ctx, x.Offset, p); err != nil {
			return err
		}
		n := int64(len(p))
		done(n)
		x.Offset, x.Length = x.Offset+n, x.Length-n
	}
	return nil
}

// grainExtents yields the extents of dev with bounds on whole grains: a grain that is
// a hole only in part counts as data.
func grainExtents(dev *cbt.Tracker, yield func(blockdev.Extent, blockdev.ExtentStatus) bool) error {
	size := dev.Size()
	var data blockdev.Extent // seen, not yet yielded
	stopped := false
	emit := func(x blockdev.Extent, s blockdev.ExtentStatus) bool {
		if x.Length > 0 && !yield(x, s) {
			stopped = true
		}
		return !stopped
	}
	at := int64(0) // everything before is in data or yielded
	err := dev.Extents(0, size, func(x blockdev.Extent, s blockdev.ExtentStatus) bool {
		if !s.Zero {
			return true
		}
		from := (x.Offset + blockdev.GrainSize - 1) / blockdev.GrainSize * blockdev.GrainSize
		to := x.End()
		if to < size {
			to -= to % blockdev.GrainSize
		}
		if to <= from {
			return true
		}
		data = blockdev.Extent{Offset: at, Length: from - at}
		at = to
		return emit(data, blockdev.ExtentStatus{}) &&
			emit(blockdev.Extent{Offset: from, Length: to - from}, blockdev.ExtentStatus{Hole: s.Hole, Zero: true})
	})
	if err == nil && !stopped {
		emit(blockdev.Extent{Offset: at, Length: size - at}, blockdev.ExtentStatus{})
	}
	return err
}
