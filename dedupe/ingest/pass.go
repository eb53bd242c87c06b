package ingest

import (
	"context"
	"errors"
	"fmt"
	"runtime"

	"github.com/keelblock/keelblock/blockdev"
	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/hashtree"
	"github.com/keelblock/keelblock/dedupe/recoverypoint"
)

// Options of a Pass; the zero value is the default of each.
type Options struct {
	// Workers is how many blocks are hashed and compressed at once; 0 is one per
	// core.
	Workers int
	// Begin is called by each worker on its goroutine, before its first block. The
	// goroutine is not used again afterwards. nil: nothing.
	Begin func()
	// Turn, if there is one, is taken by a worker for a few blocks together, and then given
	// back. A worker holds one turn at most.
	Turn Turn
	// Progress is called with the total of bytes given to Write that have gone
	// through, from one goroutine of the Pass, often; it must not block. nil: none.
	Progress func(doneBytes int64)
	// Trim reads the base's block of each block that is given in full and differs,
	// and counts and lists only the grains that differ. For a compare of a whole
	// disk; a captured list of changes knows its grains already.
	Trim bool
}

// Turn lets goroutines compute or has them wait: Passes share the cores by it, with
// each other and with whatever is more urgent.
type Turn interface {
	Take()
	Give()
}

// Stats of a finished Pass.
type Stats struct {
	// ReadBytes were given to Write.
	ReadBytes int64
	// ChangedBytes is the size of the grains listed by Changes, each of them whole
	// except the disk's last.
	ChangedBytes int64
	// NewBytes is what was stored of the blocks that the store did not hold, before
	// compression: all of a block, or the grains of a patch.
	NewBytes int64
	// StoredBytes is what those blocks, and the new nodes, take in packs.
	StoredBytes int64
}

// BaseError: the rest of a block was needed from the base tree and cannot be read.
// The caller marks the range as changed, aborts, and reads it from the disk in the
// next cut.
type BaseError struct {
	Offset, Length int64
	Err            error
}

func (e *BaseError) Error() string {
	return fmt.Sprintf("base of bytes %d+%d cannot be read: %v", e.Offset, e.Length, e.Err)
}

// Unwrap is the store's error.
func (e *BaseError) Unwrap() error { return e.Err }

// ErrOrder: ranges given to a Pass must ascend and consist of whole grains.
var ErrOrder = errors.New("range out of order or not of whole grains")

// Pass is one run over one disk.
type Pass struct {
	batch     dedupe.Batch
	patches   dedupe.Patches      // nil when the batch makes none
	grains    dedupe.GrainPatches // patches, or nil when those are none
	summing   dedupe.SummingBatch // nil when the batch is none
	source    hashtree.Getter     // reads the base: committed content, and the batch's own
	several   dedupe.BlocksGetter // source, or nil when it reads one block after the other
	nodes     hashtree.Nodes
	base      hashtree.Root
	size      int64
	blockSize int
	o         Options
	tree      *hashtree.Writer

	next    int64 // the first byte that may be given
	cur     *job  // the block being put together, or nil
	pipe    *pipeline
	changes *recoverypoint.ChangeSet
	done    bool
	err     error

	stats Stats // of the collector until it has ended
}

// blockWindow is how many blocks per worker are under way at least, and windowBytes
// how many bytes of blocks: enough to keep the workers busy while the caller reads
// his next MiB.
const (
	blockWindow = 4
	windowBytes = 4 << 20
)

// nodeWindow is how many nodes of the base a Pass keeps in memory, 4 KiB each: the
// path, and what the workers look up around it.
const nodeWindow = 64

// NewPass begins a pass over a disk of sizeBytes. base is the tree of a committed
// point of s, or of an earlier pass of b, or the zero Root when nothing is known. The
// size may differ from the base's: growth is a hole until it is written, and of a
// block in which the disk now ends the rest is dropped.
func NewPass(s dedupe.Store, b dedupe.Batch, base hashtree.Root, sizeBytes int64, o Options) (*Pass, error) {
	if o.Workers <= 0 {
		o.Workers = runtime.GOMAXPROCS(0)
	}
	var source hashtree.Getter = s
	if g, ok := b.(hashtree.Getter); ok {
		source = g // reads what it has put and not yet published, too
	}
	p := &Pass{batch: b, source: source, nodes: hashtree.Cached(source, nodeWindow), base: base, size: sizeBytes,
		blockSize: s.BlockSize(), o: o, changes: recoverypoint.NewChangeSet()}
	if pb, ok := b.(dedupe.PatchBatch); ok && !base.IsZero() {
		p.patches = pb.Patches()
		p.grains, _ = p.patches.(dedupe.GrainPatches)
	}
	p.summing, _ = b.(dedupe.SummingBatch)
	p.several, _ = source.(dedupe.BlocksGetter)
	var err error
	p.tree, err = hashtree.NewWriter(p.nodes, nodeCounter{p}, base, sizeBytes, p.blockSize)
	if err != nil {
		return nil, fmt.Errorf("ingest disk of %d bytes: %w", sizeBytes, err)
	}
	return p, nil
}

// nodeCounter counts what the tree's nodes take. It is called by the collector only.
type nodeCounter struct{ p *Pass }

func (c nodeCounter) PutNode(ctx context.Context, level int, children *[dedupe.FanOut]dedupe.Digest) (dedupe.Put, error) {
	put, err := c.p.batch.PutNode(ctx, level, children)
	c.p.stats.StoredBytes += put.StoredBytes
	return put, err
}

// Write gives the content of [off, off+len(data)). Ranges ascend over all calls of
// Write and Zero and consist of whole grains, but for the end of the disk. data is
// not kept. Write waits while the pipeline is full; it returns the first error that
// any part of the Pass met, after which only Abort makes sense.
func (p *Pass) Write(ctx context.Context, off int64, data []byte) error {
	if err := p.check(off, int64(len(data))); err != nil {
		return err
	}
	for len(data) > 0 {
		j, err := p.block(ctx, off/int64(p.blockSize))
		if err != nil {
			return err
		}
		at := int(off % int64(p.blockSize))
		n := copy(j.buf[at:], data)
		j.given += int64(n)
		j.fill(at, n)
		off, data = off+int64(n), data[n:]
	}
	return p.flushFull(ctx)
}

// Zero says that [off, off+n) reads as zeros. The same rules as for Write hold. The
// time depends on the depth of the tree and on what the base had there, not on n.
func (p *Pass) Zero(ctx context.Context, off, n int64) error {
	if err := p.check(off, n); err != nil {
		return err
	}
	bs, end := int64(p.blockSize), off+n
	for off < end {
		last := end
		if end == p.size {
			last = (end + bs - 1) / bs * bs // the padding is zeros anyhow
		}
		if off%bs == 0 && last-off >= bs {
			if err := p.flush(ctx); err != nil {
				return err
			}
			count := (last - off) / bs
			if err := p.send(ctx, &job{ctx: ctx, index: off / bs, holes: count}); err != nil {
				return err
			}
			off += count * bs
			continue
		}
		j, err := p.block(ctx, off/bs)
		if err != nil {
			return err
		}
		at := int(off % bs)
		part := int(min(bs-off%bs, end-off))
		clear(j.buf[at : at+part])
		j.fill(at, part)
		off += int64(part)
	}
	return p.flushFull(ctx)
}

func (p *Pass) check(off, n int64) error {
	if p.err != nil {
		return p.err
	}
	if p.done {
		return fmt.Errorf("ingest: %w", dedupe.ErrClosed)
	}
	if err := blockdev.CheckRange(off, n, p.size); err != nil {
		return fmt.Errorf("ingest %d+%d of a disk of %d bytes: %w", off, n, p.size, err)
	}
	if off < p.next || off%blockdev.GrainSize != 0 || ((off+n)%blockdev.GrainSize != 0 && off+n != p.size) {
		return fmt.Errorf("ingest %d+%d after %d: %w", off, n, p.next, ErrOrder)
	}
	p.next = off + n
	return nil
}

// block is the job that collects the block of this index.
func (p *Pass) block(ctx context.Context, index int64) (*job, error) {
	if p.cur != nil && p.cur.index == index {
		return p.cur, nil
	}
	if err := p.flush(ctx); err != nil {
		return nil, err
	}
	p.cur = &job{ctx: ctx, index: index}
	p.start()
	select {
	case p.cur.buf = <-p.pipe.free:
	case <-ctx.Done():
		p.cur = nil
		return nil, p.fail(ctx.Err())
	}
	return p.cur, nil
}

// flushFull sends the current block on if nothing can be added to it.
func (p *Pass) flushFull(ctx context.Context) error {
	if p.cur != nil && (p.next >= (p.cur.index+1)*int64(p.blockSize) || p.next == p.size) {
		return p.flush(ctx)
	}
	return nil
}

// flush sends the current block on.
func (p *Pass) flush(ctx context.Context) error {
	if p.cur == nil {
		return nil
	}
	j := p.cur
	p.cur = nil
	j.ctx = ctx
	return p.send(ctx, j)
}

// Finish sends what is left through, closes the tree and returns its root. The Pass
// is over, whether it succeeds or not.
func (p *Pass) Finish(ctx context.Context) (hashtree.Root, Stats, error) {
	if p.err == nil && p.done {
		p.err = fmt.Errorf("ingest: %w", dedupe.ErrClosed)
	}
	if p.err == nil {
		p.err = p.flush(ctx)
	}
	if p.err == nil {
		p.err = p.cutEnd(ctx)
	}
	p.stop()
	p.done = true
	if p.err == nil {
		p.err = p.flushPatches(ctx)
	}
	if p.err != nil {
		return hashtree.Root{}, Stats{}, p.err
	}
	root, err := p.tree.Finish(ctx)
	if err != nil {
		p.err = fmt.Errorf("ingest: close tree: %w", baseError(err))
		return hashtree.Root{}, Stats{}, p.err
	}
	p.stats.ChangedBytes = p.changedBytes()
	return root, p.stats, nil
}

// flushPatches writes the patches that are kept back, and counts what all of them take.
func (p *Pass) flushPatches(ctx context.Context) error {
	if p.patches == nil {
		return nil
	}
	n, err := p.patches.Flush(ctx)
	p.stats.StoredBytes += n
	if err != nil {
		return fmt.Errorf("ingest: %w", err)
	}
	return nil
}

// cutEnd drops what the base has behind the new end of the disk in its last block,
// unless that block was given.
func (p *Pass) cutEnd(ctx context.Context) error {
	bs := int64(p.blockSize)
	if p.size >= p.base.SizeBytes || p.size%bs == 0 || p.next > p.size/bs*bs {
		return nil
	}
	if _, err := p.block(ctx, p.size/bs); err != nil {
		return err
	}
	return p.flush(ctx)
}

// changedBytes counts the listed grains; the disk's last one may be shorter.
func (p *Pass) changedBytes() int64 {
	n := p.changes.Bytes()
	if rest := p.size % blockdev.GrainSize; rest != 0 && p.changes.Contains(p.size-rest) {
		n -= blockdev.GrainSize - rest
	}
	return n
}

// Changes lists the grains in which the new tree differs, or may differ, from the
// base: those given in blocks whose digest is another one. It is valid after Finish
// has succeeded, and then the caller's.
func (p *Pass) Changes() *recoverypoint.ChangeSet { return p.changes }

// Abort ends the Pass and waits for its goroutines. After Finish it is harmless. The
// batch is left to the caller.
func (p *Pass) Abort() {
	if !p.done {
		p.done = true
		_ = p.fail(errAborted)
		p.stop()
	}
}

var errAborted = errors.New("ingest: aborted")

// fail remembers the first error.
func (p *Pass) fail(err error) error {
	if p.err == nil {
		p.err = err
	}
	return p.err
}

// baseError makes a damaged base visible as such, whichever part of it it was.
func baseError(err error) error {
	var ne *hashtree.NodeError
	if errors.As(err, &ne) && (errors.Is(ne.Err, dedupe.ErrCorrupt) || errors.Is(ne.Err, dedupe.ErrNotFound)) {
		return &BaseError{Offset: ne.Offset, Length: ne.Length, Err: ne}
	}
	return err
}
