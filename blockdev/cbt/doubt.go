package cbt

import (
	"math/bits"
	"sync/atomic"

	"github.com/keelblock/keelblock/blockdev"
)

const intentsLost = "the intent map cannot be written"

// activate makes regions durable in the intent map, before their first write.
func (t *Tracker) activate(r regions) error {
	lost, err := t.intents.activate(r)
	if lost {
		t.Distrust(intentsLost)
	}
	return err
}

// quietRegions are the active regions in which m, if it is given, lists nothing.
func (t *Tracker) quietRegions(m *fineMap) []uint64 {
	if t.intents == nil {
		return nil
	}
	quiet := make([]uint64, 0, 64)
	for i := range t.intents.active {
		w := atomic.LoadUint64(&t.intents.active[i])
		for v := w; v != 0 && m != nil; v &= v - 1 {
			b := bits.TrailingZeros64(v)
			if m.listsRegion(int64(i)<<6 + int64(b)) {
				w &^= 1 << b
			}
		}
		quiet = append(quiet, w)
	}
	return quiet
}

// clearIntents clears what is quiet and listed nowhere. The header in the intent file
// names the base, and what the disk held when that was cut is durable.
func (t *Tracker) clearIntents(quiet []uint64) error {
	if t.intents == nil {
		return nil
	}
	t.whole.RLock()
	lost, err := t.intents.clear(quiet, func(r int64) bool {
		return t.maps[0].listsRegion(r) || t.maps[1].listsRegion(r)
	}, t.whole.RUnlock)
	if lost {
		t.Distrust(intentsLost)
	}
	return err
}

// listsRegion reports whether m lists a grain of the region, or may lack one.
func (m *fineMap) listsRegion(r int64) bool {
	if m.incomplete.Load() {
		return true
	}
	const words = regionBytes / blockdev.GrainSize / 64
	for i := r * words; i < min((r+1)*words, int64(len(m.words))); i++ {
		if m.load(i) != 0 {
			return true
		}
	}
	return false
}

// Doubtful yields, as merged ascending extents, what a compare has to read while
// Tracking is not TrackingEnabled: after a power cut the regions that were being
// written, with those written since; else the whole disk. With TrackingEnabled
// nothing is in doubt.
//
// The answer holds for one base: the point that Bases names, candidate before base.
// Compared with any other point the whole disk is in doubt.
func (t *Tracker) Doubtful(yield func(blockdev.Extent) bool) {
	t.mu.Lock()
	state, narrow := t.header.state, t.header.flags&flagNarrow != 0
	t.mu.Unlock()
	size := t.Size()
	switch {
	case state == TrackingEnabled || size == 0:
	case narrow && t.intents != nil:
		t.intents.each(size, yield)
	default:
		yield(blockdev.Extent{Length: size})
	}
}

// Unwitnessed reports whether the list comes from a clean stop after which nothing
// shows whether somebody else wrote the disk. It ends with the next commit.
func (t *Tracker) Unwitnessed() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.header.flags&flagUnwitnessed != 0
}

// Listed reports whether a grain of [off, off+n) is listed now, live or frozen.
func (t *Tracker) Listed(off, n int64) bool {
	t.whole.RLock()
	defer t.whole.RUnlock()
	if t.file == nil || n <= 0 {
		return false
	}
	first, last := off>>grainShift, (off+n-1)>>grainShift
	for i := first >> 6; i <= min(last>>6, int64(len(t.maps[0].words))-1); i++ {
		if (t.maps[0].load(i)|t.maps[1].load(i))&wordMask(i, first, last) != 0 {
			return true
		}
	}
	return false
}
