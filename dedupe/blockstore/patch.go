package blockstore

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/pack"
)

const (
	// maxPatchDepth bounds the patches from a block down to a whole one.
	maxPatchDepth = 2
	// bundleBytes of grains, or more, close a bundle. One that is read for a single
	// block is read whole, so it is not much larger than a block; one much smaller
	// compresses worse.
	bundleBytes = 128 << 10
)

// patches is a dedupe.Patches of a Batch: what it keeps back is one bundle that is being
// filled.
type patches struct {
	b      *Batch
	stored atomic.Int64 // bytes in packs of bundles since the last Flush

	// flight is held for reading while a bundle is written, and for writing by whoever
	// needs all of them to have arrived. It is taken within mu, or without it.
	flight sync.RWMutex

	mu   sync.Mutex
	open *bundle // nil: empty
}

// bundle is patches that are being put together.
type bundle struct {
	members []pack.Member
	grains  []byte // of all of them; never moves, as readers look into it
}

// grainPatches is the patches of a Batch in a key domain where a block's digest is made of
// those of its grains.
type grainPatches struct{ *patches }

// newPatch is a block to be kept as a patch.
type newPatch struct {
	member pack.Member
	grains [][]byte // of the patch, in ascending order
}

// patchWith is a patch whose grains are those of a block.
func patchWith(m pack.Member, content []byte) *newPatch {
	p := &newPatch{member: m, grains: make([][]byte, 0, m.Grains.Count())}
	for i := range len(content) / pack.GrainSize {
		if m.Grains.Has(i) {
			p.grains = append(p.grains, content[i*pack.GrainSize:][:pack.GrainSize])
		}
	}
	return p
}

// patchInMemory is a patch that is kept back. It is never changed.
type patchInMemory struct {
	set    dedupe.Grains
	grains []byte
}

var (
	_ dedupe.PatchBatch     = (*Batch)(nil)
	_ dedupe.Patches        = (*patches)(nil)
	_ dedupe.SummingPatches = (*patches)(nil)
	_ dedupe.GrainPatches   = (*grainPatches)(nil)
)

// Patches implements dedupe.PatchBatch.
func (b *Batch) Patches() dedupe.Patches {
	w := &patches{b: b}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.patches = append(b.patches, w)
	if b.s.ownDigester().Grains() {
		return grainPatches{w}
	}
	return w
}

// PutPatch implements dedupe.Patches.
func (w *patches) PutPatch(ctx context.Context, p []byte, base dedupe.Digest, was func() ([]byte, error)) (dedupe.Put, error) {
	return w.b.putBlock(ctx, p, func(sum dedupe.Summed) (dedupe.Put, error) {
		return w.put(ctx, sum, base, was)
	})
}

// PutSummedPatch implements dedupe.SummingPatches.
func (w *patches) PutSummedPatch(ctx context.Context, b dedupe.Summed, base dedupe.Digest, was func() ([]byte, error)) (dedupe.Put, error) {
	return w.b.putSummed(ctx, b, func(sum dedupe.Summed) (dedupe.Put, error) {
		return w.put(ctx, sum, base, was)
	})
}

// put is putContent with the choice of a patch.
func (w *patches) put(ctx context.Context, sum dedupe.Summed, base dedupe.Digest, was func() ([]byte, error)) (dedupe.Put, error) {
	d, p := sum.Digest(), sum.Content()
	put := dedupe.Put{Digest: d}
	sh := w.b.shard(d)
	sh.digest.Lock()
	defer sh.digest.Unlock()
	h, err := w.b.hold(dedupe.KindBlock, d, 0)
	if h.held || err != nil {
		return put, err
	}
	// Another batch may store d, too, and be the first to enter it into the index: what
	// this one names is then the other's record, which nothing need reach any more.
	if !w.b.s.o.bugs.skipPatch {
		w.b.window.add(d)
	}
	var m pack.Member
	ok := false
	if !h.known {
		m, ok, err = w.b.patchOf(d, p, base, was)
	}
	if err != nil {
		return put, err
	}
	if !ok {
		return w.b.putWhole(ctx, put, newRecord{kind: dedupe.KindBlock, digest: d, content: p, list: sum.List()})
	}
	put.New, put.RawBytes = true, int64(m.Grains.Count())*pack.GrainSize
	return put, w.add(ctx, patchWith(m, p))
}

// patchOf is d, whose content is p, as a patch over base, or over the whole block that
// base is made from; not ok when it is to be stored whole.
//
// A block that the index has in any form is stored whole: its record does not verify, and a whole
// one heals whatever was laid over it. For the same reason no block ever comes to lie
// over itself, however records are lost and stored again: a patch is only made of a
// block that nobody can have as a base.
func (b *Batch) patchOf(d dedupe.Digest, p []byte, base dedupe.Digest, was func() ([]byte, error)) (m pack.Member, ok bool, err error) {
	if base.IsZero() {
		return m, false, nil
	}
	chain, ok, err := b.patchable(d, base)
	if !ok || err != nil {
		return m, false, err
	}
	old, err := was()
	if err != nil || len(old) != len(p) {
		if err != nil && !errors.Is(err, dedupe.ErrCorrupt) && !errors.Is(err, dedupe.ErrNotFound) {
			return m, false, err
		}
		return m, false, nil
	}
	differ := differing(p, old)
	if m, ok := chain.patch(d, base, differ, len(p)); ok {
		return m, true, nil
	}
	if n := differ.Count(); n == 0 || n > maxPatchGrains(len(p)) {
		return m, false, nil
	}
	return b.patchOverRoot(d, p, chain)
}

// patchable is what base is made from, if d may be a patch over it.
func (b *Batch) patchable(d, base dedupe.Digest) (c chain, ok bool, err error) {
	if b.s.o.WholeBlocks || base == d {
		return c, false, nil
	}
	if base.IsZero() {
		return c, true, nil
	}
	return b.chain(base, d)
}

// patch is d as one patch more over base, which is made from the chain; not ok when that
// would be too deep, or too much.
func (c *chain) patch(d, base dedupe.Digest, differ dedupe.Grains, blockSize int) (m pack.Member, ok bool) {
	n := differ.Count()
	if n == 0 || c.depth >= maxPatchDepth || int(c.total)+n > maxPatchGrains(blockSize) {
		return m, false
	}
	return pack.Member{Digest: d, Base: base, Depth: c.depth + 1, Total: c.total + uint8(n), Grains: differ}, true
}

// patchOverRoot is the patch over the whole block at a chain's end, when one more over
// the others would be too deep or too much. Where the same grains change again and
// again, as in the hot pages of a database, it is as small as the first was.
//
// The root is claimed for itself: what lay between may have been stored over another one
// meanwhile, and may come to be stored whole, and then nothing else keeps it.
func (b *Batch) patchOverRoot(d dedupe.Digest, p []byte, c chain) (m pack.Member, ok bool, err error) {
	if c.root.IsZero() {
		m, ok = overRoot(d, c.root, differing(p, make([]byte, len(p))), len(p))
		return m, ok, nil
	}
	if h, err := b.holdsBase(c.root); !h.held || err != nil {
		return m, false, err
	}
	buf := b.s.codec.buffer(len(p))
	defer b.s.codec.put(buf)
	old, err := b.s.read(c.place, dedupe.KindBlock, c.root, (*buf)[:0])
	if errors.Is(err, dedupe.ErrCorrupt) || errors.Is(err, dedupe.ErrNotFound) {
		return m, false, nil
	}
	if err != nil {
		return m, false, err
	}
	m, ok = overRoot(d, c.root, differing(p, old), len(p))
	return m, ok, nil
}

// overRoot is the patch of d over the whole block at the end of a chain.
func overRoot(d, root dedupe.Digest, differ dedupe.Grains, blockSize int) (pack.Member, bool) {
	whole := chain{root: root}
	return whole.patch(d, root, differ, blockSize)
}

// maxPatchGrains bounds the grains of a patch, and of all patches over one whole block: a
// quarter of a block. With half of it, readers took up to twice the time of whole blocks:
// the package's comment has the table.
func maxPatchGrains(blockSize int) int { return blockSize / pack.GrainSize / 4 }

// differing are the grains in which two blocks differ.
func differing(p, q []byte) (set dedupe.Grains) {
	for at := 0; at < len(p); at += pack.GrainSize {
		if string(p[at:at+pack.GrainSize]) != string(q[at:at+pack.GrainSize]) {
			set.Add(at / pack.GrainSize)
		}
	}
	return set
}

// chain is what a block is made from.
type chain struct {
	depth, total uint8         // patches, and their grains
	root         dedupe.Digest // the whole block, or zero: the patches lie over zeros
	place        place         // of root
}

// chain follows the bases of a block that is to become the base of d. Not ok: it is not
// held, or d is among its bases.
func (b *Batch) chain(base, d dedupe.Digest) (c chain, ok bool, err error) {
	h, err := b.holdsBase(base)
	if !h.held || err != nil {
		return c, false, err
	}
	c.root = base
	p := h.place
	for range pack.MaxPatchDepth + 1 {
		c.depth, c.total = max(c.depth, p.depth), max(c.total, p.total)
		if !p.isPatch() {
			c.place = p
			return c, true, nil
		}
		if c.root = p.base; c.root == d {
			return c, false, nil
		}
		if c.root.IsZero() {
			return c, true, nil
		}
		if p, ok, err = b.lookup(dedupe.KindBlock, c.root); !ok || err != nil {
			return c, false, err
		}
	}
	return c, false, nil
}

// holdsBase is hold of a block that is to become a base: a collection that is under way
// sees the claim, and leaves it.
func (b *Batch) holdsBase(base dedupe.Digest) (h holding, err error) {
	if b.s.o.bugs.skipBase {
		h.place, h.held, err = b.lookup(dedupe.KindBlock, base)
		return h, err
	}
	return b.hold(dedupe.KindBlock, base, 0)
}

// lookup is the place of content in the batch or in the index.
func (b *Batch) lookup(kind dedupe.Kind, d dedupe.Digest) (place, bool, error) {
	if p, ok := b.pending(kind, d); ok {
		return p, true, nil
	}
	return b.s.index.lookup(kind, d)
}

// add puts a patch into the open bundle, from where it can be read at once, and writes
// the bundle when that is full.
func (w *patches) add(ctx context.Context, p *newPatch) error {
	w.mu.Lock()
	if w.open == nil {
		w.open = &bundle{grains: make([]byte, 0, bundleBytes+maxPatchGrains(w.b.s.sb.BlockSize)*pack.GrainSize)}
	}
	at := len(w.open.grains)
	for _, grain := range p.grains {
		w.open.grains = append(w.open.grains, grain...)
	}
	w.open.members = append(w.open.members, p.member)
	m := &p.member
	w.b.setPending(entry{dedupe.KindBlock, m.Digest}, place{encoding: pack.EncodingPatch, epoch: w.b.s.Epoch(), base: m.Base,
		depth: m.Depth, total: m.Total, memory: &patchInMemory{m.Grains, w.open.grains[at:]}})
	var full *bundle
	if len(w.open.grains) >= bundleBytes || len(w.open.members) == pack.MaxBundleMembers {
		full = w.takeLocked()
	}
	w.mu.Unlock()
	return w.write(ctx, full)
}

// takeLocked takes the open bundle out to be written; write must follow.
func (w *patches) takeLocked() *bundle {
	bu := w.open
	if w.open = nil; bu != nil {
		w.flight.RLock()
	}
	return bu
}

// write appends a bundle to the batch's packs. Its patches were taken before: what goes
// wrong fails the batch.
func (w *patches) write(ctx context.Context, bu *bundle) error {
	if bu == nil {
		return nil
	}
	defer w.flight.RUnlock()
	b := w.b
	dir := pack.Bundle{BlockSize: b.s.sb.BlockSize, Members: bu.members}
	directory := dir.Append(nil)
	rec := pack.Record{Kind: pack.KindBundle, Encoding: pack.EncodingPatch, GrainSize: pack.GrainSize,
		Digest: pack.BundleDigest(directory), HeadLength: uint32(len(directory))}
	e, number, err := b.appendContent(context.WithoutCancel(ctx), rec, directory, bu.grains, func(number uint32, e *pack.Entry) {
		b.placedPatches(number, e, bu)
	})
	if err != nil {
		return b.fail(fmt.Errorf("append %d patches: %w", len(bu.members), err))
	}
	b.writtenPatches(number, &e)
	w.stored.Add(e.Size())
	b.s.counts.newBytes.Add(e.Size())
	return nil
}

// placedPatches gives the patches of a bundle their places before it is written. They
// are read from memory until it is.
func (b *Batch) placedPatches(number uint32, e *pack.Entry, bu *bundle) {
	at := 0
	for i := range e.Patches {
		p := patchPlace(number, b.s.Epoch(), e, i)
		n := bu.members[i].Grains.Count() * pack.GrainSize
		p.memory = &patchInMemory{bu.members[i].Grains, bu.grains[at : at+n]}
		b.setPending(entry{dedupe.KindBlock, e.Patches[i].Digest}, p)
		at += n
	}
}

// writtenPatches lets go of the memory of patches that can be read from their pack.
func (b *Batch) writtenPatches(number uint32, e *pack.Entry) {
	for i := range e.Patches {
		key := entry{dedupe.KindBlock, e.Patches[i].Digest}
		sh := b.shard(key.digest)
		sh.mu.Lock()
		if p, ok := sh.places[key]; ok && p.pack == number { // else the index has it already
			p.memory = nil
			sh.places[key] = p
		}
		sh.mu.Unlock()
	}
}

// Flush implements dedupe.Patches.
func (w *patches) Flush(ctx context.Context) (int64, error) {
	if err := w.b.enter(ctx); err != nil {
		return 0, fmt.Errorf("flush patches: %w", err)
	}
	defer w.b.s.leave()
	if err := w.flush(ctx); err != nil {
		return 0, fmt.Errorf("flush patches: %w", err)
	}
	return w.stored.Swap(0), nil
}

// flush writes the open bundle and waits for those that others write.
func (w *patches) flush(ctx context.Context) error {
	w.mu.Lock()
	bu := w.takeLocked()
	w.mu.Unlock()
	err := w.write(ctx, bu)
	w.flight.Lock() // nobody waits for long: a bundle is written without waiting for another
	defer w.flight.Unlock()
	return err
}

// flushPatches writes all patches that were put so far.
func (b *Batch) flushPatches() error {
	b.mu.Lock()
	list := b.patches
	b.mu.Unlock()
	for _, w := range list {
		if err := w.flush(context.Background()); err != nil {
			return err
		}
	}
	return nil
}
