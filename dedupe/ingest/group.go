package ingest

import (
	"context"
	"fmt"
	"math/bits"

	"github.com/keelblock/keelblock/blockdev"
	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/hashtree"
)

// groupSize is how many blocks a worker takes at once: as many as digests are computed of
// side by side.
const groupSize = 8

// group is the blocks that a worker has in hand. What they have in common is done for all
// of them: the base's blocks are read and verified together, and the digests of the new
// ones computed together, which takes little more than half the time.
type group struct {
	p    *Pass
	jobs [groupSize]*job
	base [groupSize]baseBlock // of each job
	n    int
}

// baseBlock is what the base has in the place of a block.
type baseBlock struct {
	digest dedupe.Digest // zero: nothing
	buf    []byte        // the worker's; made when it is first needed
	known  bool          // buf has the content
	err    error         // the job's: it cannot be completed
}

// gather begins a group with j and adds this worker's share of the blocks that wait.
func (g *group) gather(j *job) {
	p := g.p
	g.jobs[0], g.n = j, 1
	if p.summing == nil && p.several == nil {
		return
	}
	for range min(len(p.pipe.work)/p.o.Workers, groupSize-1) {
		select {
		case j, ok := <-p.pipe.work:
			if !ok {
				return
			}
			g.jobs[g.n] = j
			g.n++
		default: // another worker was faster
			return
		}
	}
}

// prepare completes the blocks from the base and computes their digests.
func (g *group) prepare() {
	select {
	case <-g.p.pipe.failed:
		return
	default:
	}
	defer g.p.turn()()
	var partial []int
	var room [groupSize]int
	partial = room[:0]
	for i, j := range g.jobs[:g.n] {
		b := &g.base[i]
		b.digest, b.known, b.err = dedupe.Digest{}, false, nil
		if g.p.lookUp(j, b) {
			partial = append(partial, i)
		}
	}
	g.readBases(partial)
	for _, i := range partial {
		g.p.complete(g.jobs[i], &g.base[i])
	}
	g.sum()
}

// lookUp finds the base's block of a job, and reports whether some of its grains have to
// come from there.
func (p *Pass) lookUp(j *job, b *baseBlock) (partial bool) {
	at := j.index * int64(p.blockSize)
	count := 0
	for _, w := range j.grain {
		count += bits.OnesCount64(w)
	}
	partial = count < p.grainsOf(j)
	if end := p.size - at; end < int64(p.blockSize) {
		clear(j.buf[end:]) // the disk ends here; the base's may have been larger
	}
	was, err := hashtree.Lookup(j.ctx, p.nodes, p.base, j.index)
	switch {
	case err == nil:
		b.digest = was
	case partial:
		b.err = baseError(err)
	case !damaged(err):
		b.err = err
	} // else the whole block is given: it heals the base
	return partial && b.err == nil
}

// grainsOf is how many grains of a block are on the disk.
func (p *Pass) grainsOf(j *job) int {
	n := min(int64(p.blockSize), p.size-j.index*int64(p.blockSize))
	return int((n + blockdev.GrainSize - 1) / blockdev.GrainSize)
}

// readBases reads the base's blocks of some jobs.
func (g *group) readBases(list []int) {
	var digests [groupSize]dedupe.Digest
	var bufs [groupSize][]byte
	var errs [groupSize]error
	var of [groupSize]*baseBlock
	n := 0
	for _, i := range list {
		if b := &g.base[i]; !b.digest.IsZero() {
			b.room(g.p)
			digests[n], bufs[n], of[n] = b.digest, b.buf, b
			n++
		}
	}
	if n < 2 || g.p.several == nil {
		for _, b := range of[:n] {
			b.err = b.read(g.p, g.jobs[0].ctx)
		}
		return
	}
	g.p.several.GetBlocks(g.jobs[0].ctx, digests[:n], bufs[:n], errs[:n])
	for k, b := range of[:n] {
		if b.known = errs[k] == nil; !b.known {
			b.err = fmt.Errorf("read base block %v: %w", b.digest, errs[k])
		}
	}
}

// complete takes the grains that were not given from the base (invariant V8: never
// from the disk); they are zeros where it has nothing. Before that, the buffer has there
// what it was used for last.
func (p *Pass) complete(j *job, b *baseBlock) {
	size := int64(p.blockSize)
	at := j.index * size
	end := min(size, p.size-at)
	if b.err != nil {
		if damaged(b.err) {
			b.err = &BaseError{Offset: at, Length: end, Err: b.err}
		}
		return
	}
	for i := range p.grainsOf(j) {
		if j.grain[i/64]&(1<<(i%64)) != 0 {
			continue
		}
		from := i * blockdev.GrainSize
		grain := j.buf[from:min(int64(from+blockdev.GrainSize), end)]
		if b.known {
			copy(grain, b.buf[from:])
		} else {
			clear(grain)
		}
	}
}

// sum computes the digests of the blocks.
func (g *group) sum() {
	if g.p.summing == nil {
		return
	}
	var blocks [groupSize][]byte
	var sums [groupSize]dedupe.Summed
	var of [groupSize]*job
	n := 0
	for i, j := range g.jobs[:g.n] {
		if g.base[i].err == nil && !allZero(j.buf) {
			blocks[n], of[n] = j.buf, j
			n++
		}
	}
	if n < 2 {
		return
	}
	g.p.summing.SumBlocks(sums[:n], blocks[:n])
	for i, j := range of[:n] {
		j.sum = sums[i]
	}
}

// room makes the buffer.
func (b *baseBlock) room(p *Pass) {
	if b.buf == nil {
		b.buf = make([]byte, p.blockSize)
	}
}

// read reads the content.
func (b *baseBlock) read(p *Pass, ctx context.Context) error {
	b.room(p)
	got, err := p.source.Get(ctx, dedupe.KindBlock, b.digest, b.buf[:0])
	if err != nil {
		return fmt.Errorf("read base block %v: %w", b.digest, err)
	}
	if len(got) != len(b.buf) {
		return fmt.Errorf("read base block %v: %d bytes, want %d: %w", b.digest, len(got), len(b.buf), dedupe.ErrCorrupt)
	}
	if &got[0] != &b.buf[0] {
		copy(b.buf, got)
	}
	b.known = true
	return nil
}
