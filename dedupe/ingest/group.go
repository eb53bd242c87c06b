package ingest

import (
	"context"
	"fmt"

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

	edits [groupSize]dedupe.Edit
	laid  [groupSize]int // the jobs of edits
	nlaid int
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
	g.nlaid = 0
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
	partial = g.lay(partial)
	g.readBases(partial)
	for _, i := range partial {
		g.p.complete(g.jobs[i], &g.base[i])
	}
	g.sum()
	g.layWhole()
}

// lay has the store find out which blocks the partial ones are, from what it knows of the
// base's grains, and returns those that have to be completed instead.
func (g *group) lay(partial []int) (left []int) {
	if g.p.grains == nil {
		return partial
	}
	for _, i := range partial {
		j, b := g.jobs[i], &g.base[i]
		if !g.p.canLay(j, b) {
			left = append(left, i)
			continue
		}
		g.addEdit(dedupe.Edit{Base: b.digest, Content: j.buf, Given: j.grain}, i)
	}
	return append(left, g.layEdits(0)...)
}

// canLay reports whether a partial block is worth laying over the base's: not many grains
// over a hole, which are no patch; nor over a block that is cut by the disk's end, behind
// which the base's may go on.
func (p *Pass) canLay(j *job, b *baseBlock) bool {
	if b.digest.IsZero() {
		return j.grain.Count() <= p.blockSize/blockdev.GrainSize/4
	}
	return p.size-j.index*int64(p.blockSize) >= int64(p.blockSize)
}

// layWhole is lay of blocks that were given whole and are another one than the base's, when
// it matters in what they differ.
func (g *group) layWhole() {
	if g.p.grains == nil || !g.p.o.Trim {
		return
	}
	from := g.nlaid
	for i, j := range g.jobs[:g.n] {
		b := &g.base[i]
		if j.edit != nil || b.err != nil || b.known || b.digest.IsZero() || j.sum.Content() == nil || j.sum.Digest() == b.digest {
			continue
		}
		g.addEdit(dedupe.EditOf(&j.sum, b.digest), i)
	}
	g.layEdits(from)
}

// addEdit adds the edit of a job.
func (g *group) addEdit(e dedupe.Edit, job int) {
	g.edits[g.nlaid], g.laid[g.nlaid] = e, job
	g.nlaid++
}

// layEdits lays the edits from a number on, and returns the jobs for which that failed.
func (g *group) layEdits(from int) (failed []int) {
	edits := g.edits[from:g.nlaid]
	if len(edits) == 0 {
		return nil
	}
	g.p.grains.Lay(g.jobs[0].ctx, edits)
	for k, i := range g.laid[from:g.nlaid] {
		if edits[k].Laid() {
			g.jobs[i].edit = &edits[k]
		} else {
			failed = append(failed, i)
		}
	}
	return failed
}

// lookUp finds the base's block of a job, and reports whether some of its grains have to
// come from there.
func (p *Pass) lookUp(j *job, b *baseBlock) (partial bool) {
	at := j.index * int64(p.blockSize)
	partial = p.isPartial(j)
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

// isPartial reports whether some of a block's grains were not given.
func (p *Pass) isPartial(j *job) bool { return j.grain.Count() < p.grainsOf(j) }

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
		if j.grain.Has(i) {
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
		if j.edit == nil && g.base[i].err == nil && !allZero(j.buf) {
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
