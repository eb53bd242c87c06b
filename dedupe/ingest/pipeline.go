package ingest

import (
	"context"
	"errors"
	"fmt"
	"math/bits"
	"sync"

	"github.com/keelblock/keelblock/blockdev"
	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/hashtree"
)

// job is one block, or one run of holes, on its way through the pipeline.
type job struct {
	ctx   context.Context // of the call that sent it on
	index int64           // of the block, or of the first hole
	holes int64           // blocks that become holes; then nothing below is used
	buf   []byte          // one block; owned by the job until the collector gives it back
	given int64           // bytes given by Write
	grain dedupe.Grains   // those of them
	sum   dedupe.Summed   // the block with its digest, if that was computed ahead
	edit  *dedupe.Edit    // the block by its grains, if it was laid over the base's

	done   chan struct{} // closed by the worker
	put    dedupe.Put    // zero when the block is all zeros
	differ dedupe.Grains // grains that differ from the base
	same   bool          // the block is the base's
	err    error
}

// fill marks the grains of [at, at+n) as given.
func (j *job) fill(at, n int) {
	for g := at / blockdev.GrainSize; g*blockdev.GrainSize < at+n; g++ {
		j.grain.Add(g)
	}
}

// pipeline is the goroutines of a Pass: workers take blocks in any order, the
// collector takes their results in order.
type pipeline struct {
	work    chan *job
	ordered chan *job
	free    chan []byte   // block buffers: their number bounds what is under way
	failed  chan struct{} // closed by the collector at its first error
	err     error         // valid once failed is closed
	wg      sync.WaitGroup
}

// start begins the goroutines, at the first block.
func (p *Pass) start() {
	if p.pipe != nil {
		return
	}
	window := max(p.o.Workers*blockWindow, windowBytes/p.blockSize)
	pipe := &pipeline{work: make(chan *job, window), ordered: make(chan *job, 2*window),
		free: make(chan []byte, window+1), failed: make(chan struct{})}
	for range window + 1 { // one is being filled
		pipe.free <- make([]byte, p.blockSize)
	}
	p.pipe = pipe
	for range p.o.Workers {
		pipe.wg.Go(p.worker)
	}
	pipe.wg.Go(p.collect)
}

// stop ends the goroutines and takes over their first error.
func (p *Pass) stop() {
	if p.pipe == nil {
		return
	}
	close(p.pipe.work)
	close(p.pipe.ordered)
	p.pipe.wg.Wait()
	if p.pipe.err != nil && (p.err == nil || errors.Is(p.err, context.Canceled)) {
		p.err = p.pipe.err
	}
	p.pipe, p.cur = nil, nil
}

// send puts a job into the pipeline, in order.
func (p *Pass) send(ctx context.Context, j *job) error {
	p.start()
	j.done = make(chan struct{})
	select {
	case p.pipe.ordered <- j:
	case <-p.pipe.failed:
		return p.fail(p.pipe.err)
	case <-ctx.Done():
		return p.fail(ctx.Err())
	}
	if j.holes > 0 {
		close(j.done)
		return nil
	}
	p.pipe.work <- j // waits at most for one worker: there is one block more than places
	return nil
}

func (p *Pass) worker() {
	if p.o.Begin != nil {
		p.o.Begin()
	}
	g := group{p: p}
	for j := range p.pipe.work {
		g.gather(j)
		g.inTurn()
	}
}

// inTurn prepares and stores the blocks of a group when it is this worker's turn: once for
// all of them, since handing a turn on for each block costs as much as a scattered one.
func (g *group) inTurn() {
	defer g.p.turn()()
	g.prepare()
	for i, j := range g.jobs[:g.n] {
		select {
		case <-g.p.pipe.failed:
		default:
			j.err = g.p.process(j, &g.base[i])
		}
	}
	for _, j := range g.jobs[:g.n] { // at the end: the collector wakes once for all of them
		close(j.done)
	}
}

// turn waits for this worker's turn to compute; what it returns ends it.
func (p *Pass) turn() (end func()) {
	if p.o.Turn == nil {
		return func() {}
	}
	p.o.Turn.Take()
	return p.o.Turn.Give
}

// process stores a block that was prepared, and finds out which of its grains differ.
func (p *Pass) process(j *job, base *baseBlock) error {
	if base.err != nil {
		return base.err
	}
	if done, err := p.putLaid(j, base); done || err != nil {
		return err
	}
	at := j.index * int64(p.blockSize)
	if j.sum.Content() != nil || !allZero(j.buf) {
		if err := p.put(j, base); err != nil {
			return fmt.Errorf("ingest block at %d: %w", at, err)
		}
	}
	j.same = j.put.Digest == base.digest
	if j.same || j.edit != nil {
		return nil // what differs is known
	}
	j.differ = j.grain
	switch {
	case base.known || base.digest.IsZero():
	case !p.o.Trim:
		return nil
	default:
		if err := base.read(p, j.ctx); err != nil {
			if damaged(err) {
				return nil // what differs cannot be told: all that was given
			}
			return err
		}
	}
	for w, word := range j.grain { // what was not given is the base's
		for ; word != 0; word &= word - 1 {
			g := w*64 + bits.TrailingZeros64(word)
			from := g * blockdev.GrainSize
			now := j.buf[from:min(int64(from+blockdev.GrainSize), p.size-at)]
			if base.known && string(now) == string(base.buf[from:from+len(now)]) || !base.known && allZero(now) {
				j.differ.Remove(g)
			}
		}
	}
	return nil
}

// putLaid stores a block that was laid over the base's, unless the store wants all of it:
// then it is completed.
func (p *Pass) putLaid(j *job, base *baseBlock) (done bool, err error) {
	if j.edit == nil {
		return false, nil
	}
	if j.differ = j.edit.Differ(); j.edit.Zero() {
		return true, nil
	}
	var ok bool
	if j.put, ok, err = p.grains.PutLaid(j.ctx, j.edit); err != nil {
		return false, fmt.Errorf("ingest block at %d: %w", j.index*int64(p.blockSize), err)
	}
	if ok {
		j.same = j.put.Digest == base.digest
		return true, nil
	}
	if !p.isPartial(j) {
		return false, nil
	}
	if !base.digest.IsZero() {
		base.err = base.read(p, j.ctx)
	}
	p.complete(j, base)
	return false, base.err
}

// put stores the block: as a patch over the base's block where that is known to be much
// like it, or will be read to see what differs.
func (p *Pass) put(j *job, base *baseBlock) (err error) {
	if p.patches == nil || base.digest.IsZero() || !base.known && (!p.o.Trim || j.edit != nil) {
		if j.sum.Content() != nil {
			j.put, err = p.summing.PutSummed(j.ctx, j.sum)
		} else {
			j.put, err = p.batch.PutBlock(j.ctx, j.buf)
		}
		return err
	}
	old := func() ([]byte, error) {
		if !base.known {
			if err := base.read(p, j.ctx); err != nil {
				return nil, err
			}
		}
		return base.buf, nil
	}
	if s, ok := p.patches.(dedupe.SummingPatches); ok && j.sum.Content() != nil {
		j.put, err = s.PutSummedPatch(j.ctx, j.sum, base.digest, old)
	} else {
		j.put, err = p.patches.PutPatch(j.ctx, j.buf, base.digest, old)
	}
	return err
}

func damaged(err error) bool {
	return errors.Is(err, dedupe.ErrCorrupt) || errors.Is(err, dedupe.ErrNotFound)
}

// collect puts the results into the tree, in order.
func (p *Pass) collect() {
	pipe := p.pipe
	var err error
	for j := range pipe.ordered {
		<-j.done
		if err == nil {
			if err = p.take(j); err != nil {
				pipe.err = err
				close(pipe.failed)
			}
		}
		if j.buf != nil {
			pipe.free <- j.buf // never blocks: it came from there
		}
	}
}

// take puts one result into the tree and the figures.
func (p *Pass) take(j *job) error {
	if j.err != nil {
		return j.err
	}
	if j.holes > 0 {
		err := p.tree.Zero(j.ctx, j.index, j.holes, func(e hashtree.Entry) { p.dropped(j.ctx, e) })
		return baseError(err)
	}
	changed, err := p.tree.Set(j.ctx, j.index, j.put.Digest)
	if err != nil {
		return baseError(err)
	}
	if changed && !j.same {
		p.listGrains(j)
	}
	p.stats.ReadBytes += j.given
	p.stats.NewBytes += j.put.RawBytes
	p.stats.StoredBytes += j.put.StoredBytes
	if p.o.Progress != nil && j.given > 0 {
		p.o.Progress(p.stats.ReadBytes)
	}
	return nil
}

// listGrains adds the block's changed grains to the change set.
func (p *Pass) listGrains(j *job) {
	at := j.index * int64(p.blockSize)
	for w, word := range j.differ {
		for word != 0 {
			g := int64(w*64 + bits.TrailingZeros64(word))
			word &= word - 1
			p.changes.Add(blockdev.Extent{Offset: at + g*blockdev.GrainSize, Length: blockdev.GrainSize})
		}
	}
}

// dropped lists what the base had in a subtree that became a hole. If it cannot be
// read, all of it counts: a change set may list too much.
func (p *Pass) dropped(ctx context.Context, e hashtree.Entry) {
	whole := blockdev.Extent{Offset: e.Offset, Length: e.Length}
	if e.Level < 0 {
		p.changes.Add(whole)
		return
	}
	end := min(e.Offset+e.Length, p.base.SizeBytes)
	if end <= e.Offset {
		return
	}
	err := hashtree.Walk(ctx, p.nodes, p.base, e.Offset, end-e.Offset, func(index int64, _ dedupe.Digest) bool {
		off := index * int64(p.blockSize)
		p.changes.Add(blockdev.Extent{Offset: off, Length: min(int64(p.blockSize), p.size-off)})
		return true
	})
	if err != nil {
		p.changes.Add(whole)
	}
}

func allZero(p []byte) bool {
	// The first word decides for nearly all blocks with data; the rest compares the
	// block with itself one word on, which the runtime does at memory speed.
	for i := range min(8, len(p)) {
		if p[i] != 0 {
			return false
		}
	}
	return string(p[8:]) == string(p[:len(p)-8])
}
