package cbt

import (
	"context"
	"errors"
	"fmt"
	"math/bits"
	"sync"
	"sync/atomic"

	"github.com/keelblock/keelblock/blockdev"
)

func (s scratch) load(i int64) uint64 { return atomic.LoadUint64(&s.words[i]) }

// buffers hold one chunk with a partial grain at either end.
var buffers = sync.Pool{New: func() any { return new([maxChunk + 2*blockdev.GrainSize]byte) }}

// chunkWords is the number of bitmap words that such a buffer's grains may touch.
const chunkWords = maxChunk/blockdev.GrainSize/64 + 2

// preserve readies the grains first..last of the frozen snapshot for being
// overwritten by c; the caller holds their stripes exclusively and is registered in
// the live map. ok is false when the word is not w any more. done: c was a trim for which
// the spill has no room, and preserve has done what may be done of it, with err as its
// result.
func (t *Tracker) preserve(w word, c change, first, last int64) (done, ok bool, err error) {
	t.preserving.Add(1)
	defer t.preserving.Add(-1)
	if word(t.word.Load()) != w {
		return false, false, nil
	}
	f := t.frozen.Load()
	if f.freeze.aborted.Load() {
		return false, true, nil
	}
	if c.kind == changeTrim && !t.spill.ample((last-first+1)<<grainShift) {
		return true, true, f.trimAround(c, first, last)
	}
	if err := f.copyBeforeWrite(first, last); err != nil {
		t.log.Warn("snapshot is aborted", "reason", err)
		f.freeze.Fail(fmt.Errorf("disk %q: %w", t.opts.DiskID, err))
	}
	return false, true, nil
}

// copyBeforeWrite claims what is pending of first..last and copies it to the spill.
func (f *Frozen) copyBeforeWrite(first, last int64) error {
	var won [chunkWords]uint64
	base, wins := first>>6, uint64(0)
	for i := base; i <= last>>6; i++ {
		if v := f.m.load(i) & wordMask(i, first, last) &^ f.t.claimed.load(i); v != 0 {
			won[i-base] = v &^ atomic.OrUint64(&f.t.claimed.words[i], v)
			wins |= won[i-base]
		}
	}
	if wins == 0 {
		return nil
	}
	f.t.hooks.at(hookClaimed, f.t)
	buf := buffers.Get().(*[maxChunk + 2*blockdev.GrainSize]byte)
	defer buffers.Put(buf)
	at := func(g int64) bool { return won[g>>6-base]&(1<<(g&63)) != 0 }
	for g := first; g <= last; g++ {
		if !at(g) {
			continue
		}
		end := g + 1
		for end <= last && at(end) {
			end++
		}
		if err := f.copyRun(buf[:], g, end); err != nil {
			return err
		}
		g = end
	}
	f.wait.Lock()
	f.preserved.Broadcast()
	f.wait.Unlock()
	return nil
}

// copyRun preserves the grains first..end-1.
func (f *Frozen) copyRun(buf []byte, first, end int64) error {
	off := first << grainShift
	p := buf[:min(end<<grainShift, f.t.Size())-off]
	if _, err := f.t.dev.ReadAt(p, off); err != nil {
		return fmt.Errorf("read %d bytes at %d before they are overwritten: %w", len(p), off, err)
	}
	if err := f.t.spill.write(p, off); err != nil {
		return err
	}
	f.t.counts.copies.Add(1)
	f.t.counts.copiedBytes.Add(uint64(len(p)))
	for i := first >> 6; i <= (end-1)>>6; i++ {
		atomic.OrUint64(&f.t.preserved.words[i], wordMask(i, first, end-1))
	}
	return nil
}

// trimAround trims the parts of c whose grains are not pending: a trim may leave out
// anything, and is no reason to lose a snapshot. While there is room nothing is left
// out, as some clients take a trim for a write of zeros: nbdfuse does when a hole is
// punched into its file, which is how a loop device over it writes zeros.
func (f *Frozen) trimAround(c change, first, last int64) error {
	pending := func(g int64) bool {
		return (f.m.load(g>>6)&^f.t.claimed.load(g>>6))&(1<<(g&63)) != 0
	}
	var errs []error
	for g := first; g <= last; g++ {
		if pending(g) {
			continue
		}
		end := g + 1
		for end <= last && !pending(end) {
			end++
		}
		from, to := max(c.off, g<<grainShift), min(c.off+c.n, end<<grainShift)
		errs = append(errs, f.t.below.trim.Trim(from, to-from))
		g = end
	}
	return errors.Join(errs...)
}

// Changed yields the frozen grains as merged extents in ascending order. It yields
// nothing once the freeze has ended.
func (f *Frozen) Changed(yield func(blockdev.Extent) bool) {
	f.t.whole.RLock()
	defer f.t.whole.RUnlock()
	f.changed(yield)
}

func (f *Frozen) changed(yield func(blockdev.Extent) bool) {
	if f.t.frozen.Load() == f {
		runs(int64(len(f.m.words)), f.t.Size(), f.m.hasLeaf, f.m.load, yield)
	}
}

// ChangedBytes is the sum of Changed.
func (f *Frozen) ChangedBytes() (n int64) {
	f.Changed(func(e blockdev.Extent) bool {
		n += e.Length
		return true
	})
	return n
}

// Size is the size of the disk in bytes.
func (f *Frozen) Size() int64 { return f.t.Size() }

// Sink takes what a Capture finds: in ascending order, whole grains, each once.
type Sink struct {
	// Write takes content, in pieces of at most 1 MiB that do not cross a multiple of
	// 1 MiB. p is valid until it returns.
	Write func(off int64, p []byte) error
	// Zero takes ranges of any length that were zeros, and spares the disk their
	// reading. nil: zeros are read and written like all else.
	Zero func(off, n int64) error
}

// Capture gives the sink the changed grains as they were at the cut. The sink must
// not end the freeze. Capture runs once per freeze; when it fails the freeze can only
// be aborted. ErrAborted means that it was.
func (f *Frozen) Capture(ctx context.Context, sink Sink) error {
	if !f.ready || f.started.Swap(true) {
		return fmt.Errorf("capture disk %q: not drained, or captured before", f.t.opts.DiskID)
	}
	f.use.RLock()
	defer f.use.RUnlock()
	stop := context.AfterFunc(ctx, func() {
		f.wait.Lock()
		f.preserved.Broadcast()
		f.wait.Unlock()
	})
	defer stop()
	buf := buffers.Get().(*[maxChunk + 2*blockdev.GrainSize]byte)
	defer buffers.Put(buf)
	f.t.clock.captures.Add(1)
	defer f.t.clock.captures.Add(-1)
	c := capturer{f: f, sink: sink, buf: buf[:maxChunk], pace: f.t.newPacer()}
	var err error
	f.changed(func(e blockdev.Extent) bool {
		err = c.extent(ctx, e)
		return err == nil
	})
	if err == nil {
		err = f.t.spill.check()
	}
	if err == nil {
		err = f.freeze.Err()
	}
	if err != nil {
		return fmt.Errorf("capture disk %q: %w", f.t.opts.DiskID, err)
	}
	f.captured.Store(true)
	return nil
}

const (
	// holeWindow bounds how far ahead holes are asked for, and so their list.
	holeWindow = 1 << 30
	// minHole is the shortest range of zeros that is worth a call of its own.
	minHole = 16 << 10
)

// capturer is one run of Capture.
type capturer struct {
	f    *Frozen
	sink Sink
	buf  []byte // maxChunk
	pace *pacer
}

// extent captures one range of changed grains. Where the disk has holes it does not
// read: a guest that trims its free space lists most of its disk. A hole proves as
// much as a read does, and in the same way: it was seen after the cut and before the
// claim, and what is claimed then was not written between cut and claim.
func (c *capturer) extent(ctx context.Context, e blockdev.Extent) error {
	for end := e.End(); e.Offset < end; e.Offset += e.Length {
		e.Length = min(end-e.Offset, holeWindow)
		at := e.Offset
		for _, h := range c.holes(e) {
			if err := c.data(ctx, at, h.Offset); err != nil {
				return err
			}
			if err := c.zeros(ctx, h.Offset, h.End()); err != nil {
				return err
			}
			at = h.End()
		}
		if err := c.data(ctx, at, e.End()); err != nil {
			return err
		}
	}
	return nil
}

// holes lists the whole grains of e that read as zeros now, as far as they are worth it.
func (c *capturer) holes(e blockdev.Extent) (list []blockdev.Extent) {
	t := c.f.t
	if c.sink.Zero == nil || t.below.extents == nil || e.Length < minHole {
		return nil
	}
	// After an error the rest is read, which is right as well.
	_ = t.below.extents.Extents(e.Offset, e.Length, func(x blockdev.Extent, s blockdev.ExtentStatus) bool {
		from := (x.Offset + blockdev.GrainSize - 1) &^ (blockdev.GrainSize - 1)
		to := x.End()
		if to != t.Size() {
			to &^= blockdev.GrainSize - 1
		}
		switch k := len(list) - 1; {
		case !s.Zero:
		case k >= 0 && list[k].End() == from:
			list[k].Length = to - list[k].Offset
		case to-from >= minHole:
			list = append(list, blockdev.Extent{Offset: from, Length: to - from})
		}
		return true
	})
	return list
}

// data captures [off, end) by reading.
func (c *capturer) data(ctx context.Context, off, end int64) error {
	for off < end {
		n := min(end, (off/maxChunk+1)*maxChunk) - off
		if err := c.f.capture(ctx, off, c.buf[:n]); err != nil {
			return err
		}
		if err := c.sink.Write(off, c.buf[:n]); err != nil {
			return err
		}
		c.pace.took(ctx, off, n)
		off += n
	}
	return nil
}

// zeros captures [off, end), which was a hole. Grains that a write claimed come from
// the spill.
func (c *capturer) zeros(ctx context.Context, off, end int64) error {
	f := c.f
	emit := func(to int64) error {
		if off == to {
			return nil
		}
		return c.sink.Zero(off, to-off)
	}
	first, last := off>>grainShift, (end-1)>>grainShift
	for i := first >> 6; i <= last>>6; i++ {
		if i&4095 == 0 && ctx.Err() != nil {
			return context.Cause(ctx)
		}
		mask := wordMask(i, first, last)
		lost := atomic.OrUint64(&f.t.claimed.words[i], mask) & mask
		for ; lost != 0; lost &= lost - 1 {
			g := i<<6 + int64(bits.TrailingZeros64(lost))
			if err := f.await(ctx, g); err != nil {
				return err
			}
			at := g << grainShift
			p := c.buf[:min(blockdev.GrainSize, end-at)]
			if err := emit(at); err != nil {
				return err
			}
			if err := f.t.spill.read(p, at); err != nil {
				return err
			}
			if err := c.sink.Write(at, p); err != nil {
				return err
			}
			off = at + int64(len(p))
		}
	}
	// After the claims: whoever overwrote without preserving had aborted first.
	if f.freeze.aborted.Load() {
		return f.freeze.Err()
	}
	return emit(end)
}

// capture fills p with the frozen grains at off. It reads first and claims then: a
// grain that it wins was not overwritten before the claim, so the read is good.
func (f *Frozen) capture(ctx context.Context, off int64, p []byte) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	_, readErr := f.t.dev.ReadAt(p, off)
	f.t.hooks.at(hookCaptureRead, f.t)
	first, last := off>>grainShift, (off+int64(len(p))-1)>>grainShift
	for i := first >> 6; i <= last>>6; i++ {
		mask := wordMask(i, first, last)
		lost := atomic.OrUint64(&f.t.claimed.words[i], mask) & mask
		for ; lost != 0; lost &= lost - 1 {
			g := i<<6 + int64(bits.TrailingZeros64(lost))
			if err := f.await(ctx, g); err != nil {
				return err
			}
			at := g<<grainShift - off
			if err := f.t.spill.read(p[at:min(at+blockdev.GrainSize, int64(len(p)))], g<<grainShift); err != nil {
				return err
			}
		}
	}
	// After the claims: whoever overwrote without preserving had aborted first.
	if f.freeze.aborted.Load() {
		return f.freeze.Err()
	}
	return readErr
}

// await waits until grain g, which a write claimed, is preserved.
func (f *Frozen) await(ctx context.Context, g int64) error {
	have := func() bool { return f.t.preserved.load(g>>6)&(1<<(g&63)) != 0 }
	if have() {
		return nil
	}
	f.wait.Lock()
	defer f.wait.Unlock()
	for !have() {
		if f.freeze.aborted.Load() {
			return f.freeze.Err()
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		f.preserved.Wait()
	}
	return nil
}
