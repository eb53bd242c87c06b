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
// the live map. ok is false when the word is not w any more. done: c was a trim, and
// preserve has done what may be done of it, with err as its result.
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
	if c.kind == changeTrim {
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
	p := buf[:min(end<<grainShift, f.t.size)-off]
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

// trimAround trims the parts of c whose grains are not pending; a trim may leave out
// anything.
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
		runs(int64(len(f.m.words)), f.t.size, f.m.hasLeaf, f.m.load, yield)
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
func (f *Frozen) Size() int64 { return f.t.size }

// Capture calls fn with the changed grains as they were at the cut: ascending, in
// pieces of at most 1 MiB that do not cross a multiple of 1 MiB, each once. p is
// valid until fn returns. fn must not end the freeze. It runs once per freeze; when
// it fails the freeze can only be aborted. ErrAborted means that it was.
func (f *Frozen) Capture(ctx context.Context, fn func(off int64, p []byte) error) error {
	if !f.ready || f.started.Swap(true) {
		return fmt.Errorf("capture disk %q: not drained, or captured before", f.t.opts.DiskID)
	}
	if err := f.freeze.Err(); err != nil {
		return fmt.Errorf("capture disk %q: %w", f.t.opts.DiskID, err)
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
	var err error
	f.changed(func(e blockdev.Extent) bool {
		for end := e.End(); e.Offset < end && err == nil; e.Offset += e.Length {
			e.Length = min(end, (e.Offset/maxChunk+1)*maxChunk) - e.Offset
			p := buf[:e.Length]
			if err = f.capture(ctx, e.Offset, p); err == nil {
				err = fn(e.Offset, p)
			}
		}
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
