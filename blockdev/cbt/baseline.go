package cbt

import (
	"errors"
	"fmt"

	"github.com/keelblock/keelblock/blockdev"
)

// Baseline cuts the disks, waits for the writes that were before the cut, and
// forgets what the maps listed. From here the live maps list all that changes, and
// nothing is pending. Until a commit the disks are not trusted: TrackingNone stays,
// anything else becomes TrackingCompare. What was read before is worth nothing: a
// caller that wants to go on with it uses Advance.
func (c *Clock) Baseline(disks []*Tracker) error {
	return c.forget(disks, (*Tracker).beginBaseline, func(int, *fineMap) error { return nil })
}

// Advance is for a caller that has read the disks since Baseline, while they were
// written: it begins the lists anew, like Baseline, and calls again with what was
// listed until then, by index into disks, ascending: the grains that have to be read
// once more. With shrinking lists the copies that the final cut will need shrink.
func (c *Clock) Advance(disks []*Tracker, again func(disk int, e blockdev.Extent)) error {
	return c.forget(disks, (*Tracker).inBaseline, func(i int, m *fineMap) error {
		if m.incomplete.Load() {
			// What the map lacks has to be read too, and nobody knows what that is. The
			// merge that follows passes it on to the live map.
			return fmt.Errorf("advance disk %q: %w", disks[i].opts.DiskID, errIncomplete)
		}
		runs(int64(len(m.words)), disks[i].Size(), m.hasLeaf, m.load, func(e blockdev.Extent) bool {
			again(i, e)
			return true
		})
		return nil
	})
}

// forget cuts the disks without a snapshot: begin for each, the instant, the drain,
// visit with what was listed, clear. After an error of visit nothing is forgotten.
func (c *Clock) forget(disks []*Tracker, begin func(*Tracker) error, visit func(int, *fineMap) error) error {
	unlock, err := c.lockAll(disks)
	if err != nil {
		return err
	}
	defer unlock()
	for _, t := range disks {
		if err := begin(t); err != nil {
			return err
		}
	}
	c.cut(disks, phaseIdle, nil)
	var errs []error
	for i, t := range disks {
		live := word(t.word.Load()).live()
		m := &t.maps[1-live]
		m.drained(nil)
		err := visit(i, m)
		errs = append(errs, err)
		t.whole.Lock()
		if err != nil {
			t.maps[live].merge(m)
		}
		m.clear()
		t.whole.Unlock()
		t.maps[live].reclaim()
	}
	return errors.Join(errs...)
}

// inBaseline is an error unless the disk's Baseline stands.
func (t *Tracker) inBaseline() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.baselined {
		return fmt.Errorf("advance disk %q: it has no baseline", t.opts.DiskID)
	}
	return nil
}

func (t *Tracker) beginBaseline() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.header.state == TrackingEnabled {
		t.header.state, t.header.reason = TrackingCompare, "a full read began and was not committed"
	}
	t.verified, t.baselined = t.doubts, true
	return t.store()
}

// DropBaseline takes back what a Baseline promised: the read that it was made for
// will not be committed. Harmless without one.
func (t *Tracker) DropBaseline() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.baselined = false
}
