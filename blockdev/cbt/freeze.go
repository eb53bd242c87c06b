package cbt

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/keelblock/keelblock/blockdev"
)

// How disks are frozen
//
// A freeze divides the writes of all its disks into those before and those after an
// instant, while nobody stops writing. The writes before are the snapshot; what they
// changed since the last commit is in one map, the frozen one, and what comes after
// goes into the other, the live one. Nothing is copied at the instant. A grain of the
// frozen map that the backup has not read yet is pending, and whoever wants to
// overwrite it copies the old content to the spill first.
//
// # The naive way, and its race
//
// Give every write an epoch, let the freeze add one, let a write set its bit in the
// map of its epoch and look at the epoch again before it writes. It passes any stress
// test and is wrong:
//
//	W1 loads epoch e and is descheduled
//	   the freeze makes it e+1 and exchanges the maps
//	W2 (epoch e+1, same grain) sees no frozen bit, preserves nothing, writes
//	W1 wakes, sets the grain's bit in the frozen map, then looks again, too late
//	   the backup finds the bit and reads W2's data into snapshot e
//
// The bit of e appeared after somebody had relied on its absence. So there are two
// rules. A write counts itself into its map before it sets a bit, and then looks
// again whether that is still the map of its epoch (register); and until all writes
// that are counted in the frozen map have left it, its clear bits prove nothing
// (phaseTransition).
//
// # The instant
//
// Every disk has one atomic word: the epoch of its latest cut, which of its maps is
// live, the phase. A cut stores, for each of its disks, the next epoch, the other map
// and phaseTransition, and then adds one to the epoch that all disks of the daemon
// share. That addition is the instant, for two disks or for eighty: a write that
// meets a new word in the old epoch knows by the word's epoch that it is still
// before the cut, and takes the frozen map. If the first disk's write was
// acknowledged before the second disk's was issued, it loaded the same epoch or an
// earlier one, so no cut can hold the second without the first. Taking the disks one
// after the other, each with an epoch of its own, breaks exactly that. A disk
// outside of the cut sees the epoch move, looks a second time, and goes on.
//
// # A write
//
//	lock the stripes of the range, shared, the last one (the desk) together with
//	register: word, epoch → map; count; both unchanged? else uncount and repeat
//	set the bits
//	live map, and (phaseTransition, or a grain of the range is pending)?
//	    uncount, unlock, lock the stripes exclusively, register anew, set the bits,
//	    claim each pending grain and copy it to the spill
//	write, uncount, unlock
//
// In the transition a write of the new epoch cannot know what is pending. It takes
// its stripes exclusively, and thereby waits for the older writes of those stripes
// and of no others; when it has them, the frozen map is exact for its range. Only
// writes of the live map look at pending grains: a write of the frozen map is part
// of the snapshot, whatever it overwrites.
//
// # A capture
//
// takes no locks. It reads a run of frozen grains and claims them afterwards, by
// setting their bits in the claimed map, which starts empty with each freeze: that
// is why the freeze copies nothing. A grain is claimed by one side only. If the
// capture wins, nobody had overwritten the grain before the claim, so the read that
// came before it is good. If a write won, the capture throws its read away, waits
// until the grain is preserved (a third map, set when the copy is in the spill) and
// takes the copy.
//
// # When it fails half-way
//
// The copy before a write can fail: the spill is full, a disk has an error. The guest
// must not feel it. The write sets the flag aborted, which all disks of the cut
// share, and overwrites the grain. From then on nobody preserves. A capture looks at
// the flag after it has claimed and before it hands anything on: whoever overwrote
// without preserving had seen or set the flag before, so what the capture has handed
// on is good, and what it holds now is dropped. A grain that was claimed and never
// preserved keeps the capture from waiting for ever by the same flag.
//
// An abort may come at any time, also while old writes have yet to set their bits.
// It waits for them, and only then merges the frozen map into the live one: merged
// earlier, a late bit would go into a map that is about to be cleared. Claimed
// grains are merged like the others; that they were read is worth nothing without
// the commit. Then the phase becomes idle, and a write that is busy preserving is
// waited for, since its bits in the claimed and preserved maps would otherwise belong
// to the next freeze. Only then are the maps cleared.
//
// A commit differs in one step: in place of the merge, the header takes the
// candidate as base. Before it, the map holds for the old base and for the new one
// alike (it lists more than the new one needs), so a kill on either side of the step
// loses nothing. After a kill the two maps are merged into one; that is the abort of
// whatever was open. While both are cleared after a commit, a kill leaves bits that
// list too much.
//
// The model in model_test.go visits every interleaving of this and of the intent map, for
// few writes, and finds each of thirty bugs when it is put in, those named above among
// them.

var (
	// ErrAborted: the frozen content is no longer whole. Freeze.Err says why. The
	// changes are listed again for the next cut.
	ErrAborted = errors.New("cut was aborted")
	// ErrFrozen: the disk has an open freeze already.
	ErrFrozen = errors.New("disk is frozen by another cut")
	// errIncomplete: see fineMap.incomplete.
	errIncomplete = errors.New("the changed map is incomplete: no room on tmpfs")
)

// Freeze is one instant at which a set of disks stands still. It is made by
// Clock.Freeze and ends, disk by disk, in Frozen.Commit or Frozen.Abort.
type Freeze struct {
	// At is the instant, Duration how long the freeze took: the time between the
	// first disk's word and the epoch.
	At       time.Time
	Duration time.Duration
	// Disks are in the order in which they were given.
	Disks []*Frozen

	// aborted is read by guest writes before they overwrite what they did not preserve.
	aborted atomic.Bool
	mu      sync.Mutex
	err     error
}

// Frozen is one disk of a Freeze.
type Frozen struct {
	t      *Tracker
	freeze *Freeze
	m      *fineMap // the frozen map
	// use is held for reading by a capture, for writing by commit and abort.
	use sync.RWMutex
	// wait guards waiters for a grain that somebody is preserving.
	wait      sync.Mutex
	preserved *sync.Cond

	synced   atomic.Bool // a flush began after the drain, and succeeded
	started  atomic.Bool // Capture ran
	captured atomic.Bool // and saw everything
	ready    bool        // drained; phase is frozen
	done     bool        // under t.life
}

// Freeze cuts all disks at one instant and returns at once; Drain must follow. The
// disks have no open freeze and belong to this Clock. On an error no disk is frozen.
func (c *Clock) Freeze(disks []*Tracker) (*Freeze, error) {
	z := &Freeze{Disks: make([]*Frozen, len(disks))}
	unlock, err := c.lockAll(disks)
	if err != nil {
		return nil, err
	}
	defer unlock()
	for i, t := range disks {
		z.Disks[i] = &Frozen{t: t, freeze: z}
		z.Disks[i].preserved = sync.NewCond(&z.Disks[i].wait)
		if err := t.prepareFreeze(); err != nil {
			return nil, fmt.Errorf("freeze disk %q: %w", t.opts.DiskID, err)
		}
	}
	c.cut(disks, phaseTransition, z)
	return z, nil
}

// cut is the instant. The words come before the epoch: a write that meets a new word
// in the old epoch knows that it is still before the cut.
func (c *Clock) cut(disks []*Tracker, p phase, z *Freeze) {
	c.mu.Lock()
	defer c.mu.Unlock()
	start := time.Now()
	next := c.epoch.Load() + 1
	for i, t := range disks {
		w := word(t.word.Load())
		if z != nil {
			z.Disks[i].m = &t.maps[w.live()]
			t.frozen.Store(z.Disks[i])
		}
		t.word.Store(uint64(newWord(next, 1-w.live(), p)))
		t.hooks.at(hookWordsStored, t)
	}
	c.epoch.Store(next)
	if z != nil {
		z.At = time.Now()
		z.Duration = z.At.Sub(start)
	}
}

// lockAll takes the life locks of disks in the order of their ids.
func (c *Clock) lockAll(disks []*Tracker) (unlock func(), err error) {
	sorted := slices.SortedFunc(slices.Values(disks), func(a, b *Tracker) int {
		return strings.Compare(a.opts.DiskID, b.opts.DiskID)
	})
	for i, t := range sorted {
		if t.clock != c || i > 0 && sorted[i-1].opts.DiskID == t.opts.DiskID {
			return nil, fmt.Errorf("freeze disk %q: named twice, or not of this clock", t.opts.DiskID)
		}
	}
	for i, t := range sorted {
		t.life.Lock()
		if t.closed || t.frozen.Load() != nil {
			err = ErrFrozen
			if t.closed {
				err = blockdev.ErrClosed
			}
			unlockAll(sorted[:i+1])
			return nil, fmt.Errorf("freeze disk %q: %w", t.opts.DiskID, err)
		}
	}
	return func() { unlockAll(sorted) }, nil
}

func unlockAll(disks []*Tracker) {
	for _, t := range disks {
		t.life.Unlock()
	}
}

// prepareFreeze does what can fail, before anything is frozen.
func (t *Tracker) prepareFreeze() error {
	if t.maps[word(t.word.Load()).live()].incomplete.Load() {
		return errIncomplete
	}
	return t.spill.prepare()
}

// Err says why the freeze was aborted, or nil.
func (z *Freeze) Err() error {
	z.mu.Lock()
	defer z.mu.Unlock()
	return z.err
}

// Fail requests the abort of all disks of the freeze: captures end with ErrAborted,
// guest writes stop preserving. The first reason stays. The owner still calls Abort.
func (z *Freeze) Fail(reason error) {
	z.mu.Lock()
	if z.err == nil {
		z.err = fmt.Errorf("%w: %w", ErrAborted, reason)
	}
	z.mu.Unlock()
	z.aborted.Store(true)
	for _, f := range z.Disks {
		f.wait.Lock()
		f.preserved.Broadcast()
		f.wait.Unlock()
	}
}

// Drain waits for the writes that were before the cut. Capture may follow. When ctx
// ends first, or the map turns out to be incomplete, the freeze is aborted.
func (f *Frozen) Drain(ctx context.Context) error {
	if !f.m.drained(ctx.Done()) {
		f.freeze.Fail(context.Cause(ctx))
		return f.freeze.Err()
	}
	if f.m.incomplete.Load() {
		f.freeze.Fail(fmt.Errorf("disk %q: %w", f.t.opts.DiskID, errIncomplete))
		return f.freeze.Err()
	}
	f.t.life.Lock()
	defer f.t.life.Unlock()
	if f.t.closed || f.done {
		f.freeze.Fail(blockdev.ErrClosed)
		return f.freeze.Err()
	}
	f.t.word.Store(uint64(word(f.t.word.Load()).withPhase(phaseFrozen)))
	f.t.maps[word(f.t.word.Load()).live()].reclaim()
	f.ready = true
	f.t.counts.freezes.Add(1)
	return nil
}

// Prepare makes the disk durable, unless that was done since the drain: what the point
// holds is not listed any more after the commit, so the disk may not lose it. Then it
// notes in the headers, durably, that p is about to be committed. It fails when the
// freeze was aborted, or not all of it was captured.
func (f *Frozen) Prepare(p PointID) error {
	if err := f.freeze.Err(); err != nil {
		return err
	}
	if !f.captured.Load() && f.ChangedBytes() != 0 {
		return fmt.Errorf("prepare disk %q: its changes were not captured", f.t.opts.DiskID)
	}
	if !f.synced.Load() {
		if err := f.t.Flush(); err != nil {
			return fmt.Errorf("prepare disk %q: %w", f.t.opts.DiskID, err)
		}
	}
	f.t.mu.Lock()
	defer f.t.mu.Unlock()
	f.t.header.candidate = p
	if err := f.t.store(); err != nil {
		return fmt.Errorf("prepare disk %q: %w", f.t.opts.DiskID, err)
	}
	return nil
}

// Commit makes the prepared point the base and forgets the frozen map. The point is
// durable in the vault by now. An aborted freeze is not committed: Commit then
// aborts, which lists too much and loses nothing.
func (f *Frozen) Commit() error {
	if err := f.freeze.Err(); err != nil {
		return errors.Join(err, f.Abort())
	}
	quiet, err := f.end(true)
	return errors.Join(err, f.t.clearIntents(quiet))
}

// Abort merges the frozen map into the live one. Harmless after Commit.
func (f *Frozen) Abort() error {
	f.t.life.Lock()
	done := f.done
	f.t.life.Unlock()
	if done {
		return nil
	}
	f.freeze.Fail(errors.New("on request"))
	_, err := f.end(false)
	return err
}

// end retires the frozen map, after a commit, or merges it back. It returns the
// regions that may leave the intent map.
func (f *Frozen) end(commit bool) (quiet []uint64, err error) {
	t := f.t
	t.life.Lock()
	defer t.life.Unlock()
	if f.done || t.closed { // Close saves the union of both maps
		f.done = true
		return nil, nil
	}
	f.use.Lock()
	defer f.use.Unlock()
	f.m.drained(nil)
	w := word(t.word.Load())
	t.whole.Lock()
	defer t.whole.Unlock()
	if commit {
		trusted, err := t.commitHeader()
		if err != nil {
			return nil, err
		}
		if trusted {
			quiet = t.quietRegions(f.m)
		}
	} else {
		t.maps[w.live()].merge(f.m)
		t.counts.aborts.Add(1)
	}
	t.word.Store(uint64(w.withPhase(phaseIdle)))
	// A write that saw the frozen phase may still be preserving; a later one sees
	// the idle phase and comes back.
	for spin := 0; t.preserving.Load() != 0; spin++ {
		pause(spin, nil)
	}
	// frozen before claimed: the other way round everything would be pending again.
	f.m.clear()
	err = errors.Join(t.claimed.clear(), t.preserved.clear(), t.spill.reset())
	t.frozen.Store(nil)
	f.done = true
	if err != nil {
		return nil, fmt.Errorf("end snapshot of disk %q: %w", t.opts.DiskID, err)
	}
	return quiet, nil
}

// commitHeader makes the candidate the base. Trust returns if a Baseline came first
// and no doubt since.
func (t *Tracker) commitHeader() (trusted bool, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	h := &t.header
	if h.candidate.IsZero() {
		return false, fmt.Errorf("commit disk %q: no point was prepared", t.opts.DiskID)
	}
	h.base, h.candidate = h.candidate, PointID{}
	switch {
	case h.state == TrackingEnabled:
	case t.baselined && t.doubts == t.verified:
		h.state, h.reason = TrackingEnabled, ""
	case h.state == TrackingNone, h.flags&flagNarrow != 0:
		h.state, h.reason = TrackingCompare, t.lastDoubt
		if !t.baselined {
			h.reason = "committed without a full read"
		}
	}
	h.flags = 0
	t.baselined = false
	if err := t.store(); err != nil {
		// The intent file still names base and candidate, which is right as long as
		// no region leaves it.
		t.log.Warn("the new base is not durable: after a power cut more is compared", "error", err)
		return false, nil
	}
	return h.state == TrackingEnabled, nil
}
