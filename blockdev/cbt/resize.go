package cbt

import (
	"context"
	"errors"
	"fmt"

	"github.com/keelblock/keelblock/blockdev"
)

// How a disk changes its size
//
// Two things are in danger: the list, since what lies between the two sizes is a
// change like any other (V17), and the guest that writes meanwhile. A crash may come at
// any step, and who recovers sees one of two sizes.
//
//	announce   the regions between the sizes are active in the intent file, and the
//	           headers of intent file and map file say resizeTo; durable
//	fence      the disk shrinks: no write passes the new end any more
//	resize     the device below, durable
//	settle     with every write waiting: a map of the new size, in which all between
//	           the two sizes is listed; the new size is seen
//	forget     the headers say the new size, and no resizeTo
//
// A crash before announce is durable leaves the old size and nothing else. Until
// forget is durable, the device itself is the authority: Open takes the old size and
// the one in resizeTo, lists what lies between, and is done. A device that grew and
// was not seen to yet may hold anything in what it gained (a block device; a file has
// zeros there): nobody was told of the new size, so Open zeroes it.
//
// The list begins at a multiple of 1 MiB, so that the block of the vault in which the
// disk ends, or ended, is read as a whole from the disk, and not in part from a point
// in which it was longer.

// hooks of a resize, for tests.
const (
	hookResizeAnnounced hook = iota + 100
	hookResizeDone
	hookResizeSettled
)

// Resize makes the disk newSize bytes long, a multiple of SectorSize: it may not be
// frozen, nor read in full, which the caller ensures by holding its slot. Guests write on;
// they are stopped for the moment in which the map is exchanged. A second call with the
// same size does nothing, or finishes what the first could not.
//
// After an error the disk has the size that Size tells, and the next Open is content
// with either.
func (t *Tracker) Resize(ctx context.Context, newSize int64) error {
	if err := t.resize(ctx, newSize); err != nil {
		return fmt.Errorf("resize disk %q to %d bytes: %w", t.opts.DiskID, newSize, err)
	}
	return nil
}

func (t *Tracker) resize(ctx context.Context, newSize int64) error {
	dev, ok := t.dev.(blockdev.Resizer)
	switch {
	case !ok:
		return blockdev.ErrNotSupported
	case newSize <= 0 || newSize > blockdev.MaxSize || newSize%blockdev.SectorSize != 0:
		return fmt.Errorf("want a multiple of %d bytes in %d .. %d", blockdev.SectorSize, blockdev.SectorSize, blockdev.MaxSize)
	}
	t.life.Lock()
	defer t.life.Unlock()
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	old, pending, err := t.resizable(newSize)
	if err != nil || old == newSize && pending == 0 {
		return err
	}
	if err := t.announce(old, newSize); err != nil {
		return errors.Join(err, t.forgetResize(old))
	}
	t.hooks.at(hookResizeAnnounced, t)
	if newSize < old {
		t.fence(newSize)
	}
	err = dev.Resize(newSize)
	t.hooks.at(hookResizeDone, t)
	if t.dev.Size() != newSize {
		// Its tail may be gone in part, so it is listed.
		t.fence(old)
		t.listBetween(old, newSize)
		return errors.Join(err, t.forgetResize(old))
	}
	if e := t.settle(old, newSize); e != nil {
		return errors.Join(err, e)
	}
	t.hooks.at(hookResizeSettled, t)
	return errors.Join(err, t.forgetResize(newSize))
}

// resizable returns the size that the headers know, and the one of a resize that is
// not finished.
func (t *Tracker) resizable(newSize int64) (old, pending int64, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	old, pending = t.header.sizeBytes, t.header.resizeTo
	switch {
	case t.closed:
		err = blockdev.ErrClosed
	case t.frozen.Load() != nil:
		err = ErrFrozen
	case t.baselined:
		err = errors.New("it is being read in full")
	case pending != 0 && pending != newSize:
		err = fmt.Errorf("a resize to %d bytes is not finished", pending)
	}
	return old, pending, err
}

// announce makes durable what a recovery has to know.
func (t *Tracker) announce(old, newSize int64) error {
	if t.intents != nil {
		if err := t.intents.extend(max(old, newSize)); err != nil {
			return err
		}
		t.stopWrites()
		t.intents.adopt(max(old, newSize))
		t.resumeWrites()
		e := changedBy(old, newSize)
		if err := t.activate(regionsIn(e.Offset, e.Length)); err != nil {
			return err
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.header.resizeTo = newSize
	return t.store()
}

// changedBy is what a resize changes, from before the end of the smaller size.
func changedBy(a, b int64) blockdev.Extent {
	from := min(a, b) &^ (maxChunk - 1)
	return blockdev.Extent{Offset: from, Length: max(a, b) - from}
}

// allStripes is every stripe of a disk. Whoever holds them exclusively has every
// write, trim and write of zeros waiting before it has registered.
var allStripes = span{0, stripeCount - 1}

func (t *Tracker) stopWrites()   { t.stripes.lock(allStripes, true) }
func (t *Tracker) resumeWrites() { t.stripes.unlock(allStripes, true) }

// fence moves the end that writes may not pass.
func (t *Tracker) fence(size int64) {
	t.stopWrites()
	defer t.resumeWrites()
	t.size.Store(size)
}

// listBetween lists what lies between two sizes in the map as it is.
func (t *Tracker) listBetween(old, newSize int64) {
	e := changedBy(old, newSize)
	if e.Length = min(e.End(), old) - e.Offset; e.Length <= 0 {
		return
	}
	t.stopWrites()
	ok := t.maps[word(t.word.Load()).live()].set(e.Offset>>grainShift, (e.End()-1)>>grainShift)
	t.resumeWrites()
	if !ok {
		t.mapIsIncomplete()
	}
}

// settle exchanges everything that is as large as the disk.
func (t *Tracker) settle(old, newSize int64) error {
	l := layoutOf(newSize)
	claimed, err := newScratch(l.words)
	if err != nil {
		return err
	}
	preserved, err := newScratch(l.words)
	if err != nil {
		return errors.Join(err, claimed.free())
	}
	t.stopWrites()
	defer t.resumeWrites()
	t.whole.Lock()
	defer t.whole.Unlock()
	t.mu.Lock()
	defer t.mu.Unlock()
	before := t.header
	t.size.Store(newSize)
	t.header.sizeBytes, t.header.resizeTo = newSize, 0
	if err := t.remap(changedBy(old, newSize)); err != nil {
		// The old map serves the smaller of the two sizes.
		t.header = before
		t.size.Store(min(old, newSize))
		return errors.Join(err, claimed.free(), preserved.free())
	}
	err = errors.Join(t.claimed.free(), t.preserved.free())
	t.claimed, t.preserved = claimed, preserved
	t.spill.resize(newSize)
	return err
}

// forgetResize makes it durable that no resize is under way.
func (t *Tracker) forgetResize(size int64) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.header.sizeBytes, t.header.resizeTo = size, 0
	return t.store()
}

// settleResize makes the disk below fit to serve after a crash in a resize: what it
// gained is zeroed, since nobody knows whether that was done.
func (t *Tracker) settleResize(old, resizeTo int64) error {
	t.log.Info("a resize was cut short", "from", old, "to", resizeTo, "size", t.Size())
	if resizeTo <= old || t.Size() != resizeTo {
		return nil
	}
	var err error
	if t.below.zero != nil {
		err = t.below.zero.WriteZeroes(old, resizeTo-old, true)
	} else {
		zeros := make([]byte, min(resizeTo-old, maxChunk))
		for off := old; off < resizeTo && err == nil; off += int64(len(zeros)) {
			_, err = t.dev.WriteAt(zeros[:min(int64(len(zeros)), resizeTo-off)], off)
		}
	}
	if err == nil {
		err = t.dev.Flush()
	}
	if err != nil {
		return fmt.Errorf("zero what the disk gained: %w", err)
	}
	return nil
}

// remap puts a map file of the present size in place of the present one, with what
// that lists and changed. Nobody uses the maps.
func (t *Tracker) remap(changed blockdev.Extent) error {
	l := layoutOf(t.Size())
	file, named, err := createMapFile(t.opts.MapPath, l)
	if err != nil {
		return err
	}
	var fresh [2]fineMap
	file.attach(&fresh)
	grains := (t.Size() + blockdev.GrainSize - 1) >> grainShift
	for i := range fresh {
		fresh[i].copyFrom(&t.maps[i], grains)
	}
	live := word(t.word.Load()).live()
	if end := min(changed.End(), t.Size()); changed.Offset < end && !fresh[live].set(changed.Offset>>grainShift, (end-1)>>grainShift) {
		t.doubt("no room on tmpfs for the map")
	}
	file.writeHeader(&t.header)
	if err := file.publish(); err != nil {
		return errors.Join(err, file.close(false))
	}
	// Without a name the new map must not leave the old one to be believed.
	if err := t.file.close(!named); err != nil {
		t.log.Warn("the map of the old size is left", "map", t.file.path, "error", err)
	}
	t.file = file
	file.attach(&t.maps)
	for i := range fresh {
		t.maps[i].backed = fresh[i].backed
		t.maps[i].incomplete.Store(fresh[i].incomplete.Load())
	}
	return nil
}

// copyFrom takes over the bits of o below grains, into a map that is empty.
func (m *fineMap) copyFrom(o *fineMap, grains int64) {
	o.eachLeaf(func(leaf int64) {
		end := min(o.endOfLeaf(leaf), (grains+63)>>6)
		for i := leaf << leafShift; i < end; i++ {
			v := o.load(i)
			if rest := grains - i<<6; rest < 64 {
				v &= 1<<rest - 1
			}
			if v == 0 {
				continue
			}
			if !m.hasLeaf(leaf) && m.grow(leaf) != nil {
				m.incomplete.Store(true)
				return
			}
			m.words[i] = v
		}
	})
	if o.incomplete.Load() {
		m.incomplete.Store(true)
	}
}
