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
			bytes := p.doubtBytes()
			a.t.AddTotal(min(p.disk.AllocatedBytes(), bytes))
			a.e.o.Logger.Info("disk is read without a list", "bytes", bytes, "machine", p.part.machine.Name, "disk", p.disk.Name(), "tracking", p.tracking, "reason", p.reason)
		}
	}
	if len(trackers) == 0 {
		return nil
	}
	a.t.Detail("reading disks that are in doubt")
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

// doubt yields what has to be read of a live disk that has no list. Compared with the
// base of its map that may be a part: after a power cut, the regions that were being
// written. The rest equals the base, and is taken from there.
func (p *plan) doubt(yield func(blockdev.Extent) bool) {
	t := p.disk.Tracker()
	if p.narrow {
		t.Doubtful(yield)
		return
	}
	yield(blockdev.Extent{Length: t.Size()})
}

// doubtBytes is the sum of doubt.
func (p *plan) doubtBytes() (n int64) {
	p.doubt(func(e blockdev.Extent) bool { n += e.Length; return true })
	return n
}

// readDisk ingests what is in doubt of one live disk. Holes are told, not read.
func (a *attemptState) readDisk(ctx context.Context, i int) error {
	p := a.plans[i]
	o := a.options()
	o.Trim = p.tracking == recoverypoint.TrackingChecksumCompare
	pass, err := ingest.NewPass(a.h.Store, a.batch, p.base, p.disk.Tracker().Size(), o)
	if err != nil {
		return err
	}
	defer pass.Abort()
	buf := make([]byte, readChunk)
	p.doubt(func(e blockdev.Extent) bool {
		err = readRange(ctx, p.disk.Tracker(), e, pass, buf, a.t.AddDone)
		return err == nil
	})
	if err != nil {
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

// readRange feeds a range of dev, of whole grains, to a pass in ascending order.
func readRange(ctx context.Context, dev *cbt.Tracker, e blockdev.Extent, pass *ingest.Pass, buf []byte, done func(int64)) error {
	var failed error
	err := grainExtents(dev, e, func(x blockdev.Extent, s blockdev.ExtentStatus) bool {
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

// grainExtents yields the extents of dev in a range of whole grains, with bounds on
// whole grains: a grain that is a hole only in part counts as data.
func grainExtents(dev *cbt.Tracker, in blockdev.Extent, yield func(blockdev.Extent, blockdev.ExtentStatus) bool) error {
	end := in.End()
	var data blockdev.Extent // seen, not yet yielded
	stopped := false
	emit := func(x blockdev.Extent, s blockdev.ExtentStatus) bool {
		if x.Length > 0 && !yield(x, s) {
			stopped = true
		}
		return !stopped
	}
	at := in.Offset // everything before is in data or yielded
	err := dev.Extents(at, in.Length, func(x blockdev.Extent, s blockdev.ExtentStatus) bool {
		if !s.Zero {
			return true
		}
		from := (x.Offset + blockdev.GrainSize - 1) / blockdev.GrainSize * blockdev.GrainSize
		to := x.End()
		if to < end {
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
		emit(blockdev.Extent{Offset: at, Length: end - at}, blockdev.ExtentStatus{})
	}
	return err
}
