package blockstore

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/pack"
)

const (
	digestShards = 256
	// sealingPacks bounds the full packs of a batch that are being synced and
	// indexed while it goes on with another one: a put waits when there are more.
	sealingPacks = 2
	// touchedEntries bounds the entries verified by a batch whose new epoch is not
	// in the index yet.
	touchedEntries = 4096
)

// Batch is a dedupe.Batch of a Store.
type Batch struct {
	s      *Store
	shards [digestShards]shard
	data   stream
	meta   stream

	mu      sync.Mutex
	done    bool
	err     error           // the first one that fails the batch for good
	touched map[entry]place // verified entries to be rewritten with this epoch
	patches []*patches      // all that were begun
	packs   []uint32        // numbers of the packs that it has written to

	// window is all that the batch was told to be held, and all that it stores. A collection
	// that begins while the batch is open takes none of it.
	window seen
}

// entry names what a place belongs to.
type entry struct {
	kind   dedupe.Kind
	digest dedupe.Digest
}

// shard holds the batch's places of a part of all digests.
type shard struct {
	digest sync.Mutex // held from "held?" until the record is placed

	mu     sync.Mutex
	places map[entry]place // of records that are not in the index yet
}

// stream is the packs of one class that a batch writes, one after the other.
type stream struct {
	class pack.Class
	spare int64 // bytes of a commit that lets space be freed, see takePack; set before its first record

	mu      sync.Mutex
	cur     *openPack
	sealing []*sealing
	slots   chan struct{}
}

// sealing is a full pack on its way into the index.
type sealing struct {
	done   chan struct{}
	err    error     // set before done is closed
	failed *openPack // the pack, after an error: readers may look into it until the batch ends
}

var (
	_ dedupe.Batch        = (*Batch)(nil)
	_ dedupe.SummingBatch = (*Batch)(nil)
)

func newBatch(s *Store) *Batch {
	return &Batch{s: s, touched: make(map[entry]place),
		data: stream{class: pack.ClassData, slots: make(chan struct{}, sealingPacks)},
		meta: stream{class: pack.ClassMetadata, slots: make(chan struct{}, sealingPacks)}}
}

func (b *Batch) shard(d dedupe.Digest) *shard { return &b.shards[d[0]] }

// pending is the place of a record that the batch put and the index does not have.
func (b *Batch) pending(kind dedupe.Kind, d dedupe.Digest) (place, bool) {
	sh := b.shard(d)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	p, ok := sh.places[entry{kind, d}]
	return p, ok
}

// enter begins a put; b.s.leave ends it.
func (b *Batch) enter(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	b.mu.Lock()
	done, err := b.done, b.err
	b.mu.Unlock()
	if done {
		return dedupe.ErrClosed
	}
	if err != nil {
		return err
	}
	return b.s.enter()
}

// fail makes err the batch's error for good.
func (b *Batch) fail(err error) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err == nil {
		b.err = err
	}
	return err
}

// PutBlock implements dedupe.Batch.
func (b *Batch) PutBlock(ctx context.Context, p []byte) (dedupe.Put, error) {
	return b.putBlock(ctx, p, b.storeBlock(ctx))
}

// SumBlocks implements dedupe.SummingBatch. Without the key, of which a put complains,
// the digests are not those of the domain.
func (b *Batch) SumBlocks(summed []dedupe.Summed, blocks [][]byte) {
	b.s.ownDigester().SumBlocks(summed, blocks)
}

// PutSummed implements dedupe.SummingBatch.
func (b *Batch) PutSummed(ctx context.Context, sb dedupe.Summed) (dedupe.Put, error) {
	return b.putSummed(ctx, sb, b.storeBlock(ctx))
}

// storeBlock stores a block as it is.
func (b *Batch) storeBlock(ctx context.Context) func(sb dedupe.Summed) (dedupe.Put, error) {
	return func(sb dedupe.Summed) (dedupe.Put, error) {
		return b.putContent(ctx, newRecord{kind: dedupe.KindBlock, digest: sb.Digest(), content: sb.Content(), list: sb.List()})
	}
}

// putBlock is putSummed of a block that comes without its digest.
func (b *Batch) putBlock(ctx context.Context, p []byte, store func(sb dedupe.Summed) (dedupe.Put, error)) (dedupe.Put, error) {
	if len(p) != b.s.sb.BlockSize {
		return dedupe.Put{}, fmt.Errorf("put block of %d bytes, want %d", len(p), b.s.sb.BlockSize)
	}
	var sum [1]dedupe.Summed
	b.SumBlocks(sum[:], [][]byte{p})
	return b.putSummed(ctx, sum[0], store)
}

// putSummed is what all puts of a block have in common.
func (b *Batch) putSummed(ctx context.Context, sb dedupe.Summed, store func(sb dedupe.Summed) (dedupe.Put, error)) (dedupe.Put, error) {
	if n := len(sb.Content()); n != b.s.sb.BlockSize {
		return dedupe.Put{}, fmt.Errorf("put block of %d bytes, want %d", n, b.s.sb.BlockSize)
	}
	if err := b.enter(ctx); err != nil {
		return dedupe.Put{}, fmt.Errorf("put block: %w", err)
	}
	defer b.s.leave()
	if err := b.s.missingKey(); err != nil {
		return dedupe.Put{}, fmt.Errorf("put block: %w", err)
	}
	put, err := store(sb)
	if err != nil {
		return put, fmt.Errorf("put block %v: %w", sb.Digest(), err)
	}
	b.s.counts.countPut(put)
	return put, nil
}

// PutNode implements dedupe.Batch.
func (b *Batch) PutNode(ctx context.Context, level int, children *[dedupe.FanOut]dedupe.Digest) (dedupe.Put, error) {
	if level < 0 || level >= dedupe.MaxDepth {
		return dedupe.Put{}, fmt.Errorf("put node of level %d, want 0 to %d", level, dedupe.MaxDepth-1)
	}
	if err := b.enter(ctx); err != nil {
		return dedupe.Put{}, fmt.Errorf("put node: %w", err)
	}
	defer b.s.leave()
	var content [pack.NodeSize]byte
	pack.EncodeNode(content[:], children)
	d := dedupe.NodeSum(level, children)
	put, err := b.putContent(ctx, newRecord{kind: dedupe.KindNode, level: uint8(level), digest: d, content: content[:]})
	if err != nil {
		return put, fmt.Errorf("put node %v: %w", d, err)
	}
	return put, nil
}

// putContent stores content unless it is held. Two puts of one digest do it once:
// the second waits for the first's record to be in its pack.
func (b *Batch) putContent(ctx context.Context, r newRecord) (dedupe.Put, error) {
	put := dedupe.Put{Digest: r.digest}
	sh := b.shard(r.digest)
	sh.digest.Lock()
	defer sh.digest.Unlock()
	held, err := b.held(r.kind, r.digest)
	if held || err != nil {
		return put, err
	}
	return b.putWhole(ctx, put, r)
}

// putWhole stores content that is not held.
//
// Another batch may store it at the same time, and be the last to enter it into the index:
// what this one names is then the other's record, in a pack that this one has no part in. So
// it is in the window, like what was held.
func (b *Batch) putWhole(ctx context.Context, put dedupe.Put, r newRecord) (dedupe.Put, error) {
	if !b.s.o.bugs.skipStored {
		b.window.add(put.Digest)
	}
	e, _, err := b.appendRecord(ctx, r)
	if err != nil {
		return put, err
	}
	put.New, put.StoredBytes, put.RawBytes = true, e.Size(), int64(len(r.content))
	return put, nil
}

// heldTries bounds how often a record may move to another pack while it is looked for.
const heldTries = 8

// held reports whether content is in this batch, or synced and verified since the
// last unclean stop (B2). An entry of an earlier epoch, or one whose record did not
// verify when it was read, is verified now, and believed from now on. One that does
// not verify is not held.
//
// A patch is held when its base is, too, and less deep: both are read and verified by
// themselves.
func (b *Batch) held(kind dedupe.Kind, d dedupe.Digest) (bool, error) {
	h, err := b.hold(kind, d, 0)
	return h.held, err
}

// holding is what hold has found.
type holding struct {
	held  bool
	known bool  // the index, or the batch, has an entry, held or not
	place place // where, when it is held
}

// hold is held of what lies below depth patches, with what was found on the way.
func (b *Batch) hold(kind dedupe.Kind, d dedupe.Digest, depth int) (h holding, err error) {
	if p, ok := b.pending(kind, d); ok {
		return holding{true, true, p}, nil
	}
	for range heldTries {
		claimed, err := b.claim(kind, d)
		if h.known = h.known || claimed.known; err != nil || !claimed.held {
			return h, err
		}
		p := claimed.place
		if held, err := b.heldAt(kind, d, p, depth); held || err != nil {
			return holding{held, true, p}, err
		}
		if again, ok, err := b.s.index.lookup(kind, d); err != nil || !ok || again.same(p) {
			return h, err
		} // a collection moved it meanwhile
	}
	return h, nil
}

// claim looks an entry up and says, in the same instant as far as a collection can
// tell, that it is needed: either the collection has taken the entry before, and it is
// not there, or it takes it no more. Held of what it returns is the latter.
func (b *Batch) claim(kind dedupe.Kind, d dedupe.Digest) (holding, error) {
	s := b.s
	s.gate.RLock()
	defer s.gate.RUnlock()
	p, ok, err := s.index.lookup(kind, d)
	if err != nil || !ok {
		return holding{}, err
	}
	if c := s.collection; c != nil && !c.hit(kind, d) {
		return holding{known: true}, nil
	}
	b.window.add(d)
	return holding{true, true, p}, nil
}

// heldAt is held for content whose record is at p, as far as the index knows.
func (b *Batch) heldAt(kind dedupe.Kind, d dedupe.Digest, p place, depth int) (bool, error) {
	if p.hasBase() {
		if depth == pack.MaxPatchDepth {
			return false, nil
		}
		base, err := b.hold(kind, p.base, depth+1)
		if !base.held || err != nil {
			return false, err
		}
		// A patch may have come into the index without its base, when a crash or an error was
		// between the packs of a batch, and the base later and as a deeper patch: then a
		// rebuilt index could leave the patch out.
		if base.place.depth >= p.depth {
			return false, nil
		}
	}
	suspect := b.s.suspect.has(entry{kind, d})
	if p.epoch == b.s.Epoch() && !suspect {
		return b.s.reaches(p) || b.s.reachesCopy(p), nil
	}
	if b.isTouched(kind, d) && !suspect {
		return true, nil
	}
	buf := b.s.codec.buffer(b.s.sb.BlockSize)
	defer b.s.codec.put(buf)
	if _, err := b.s.read(p, kind, d, (*buf)[:0]); err != nil {
		if !errors.Is(err, dedupe.ErrCorrupt) && !errors.Is(err, dedupe.ErrNotFound) {
			return false, err
		}
		if !b.s.moved(p, kind, d) {
			b.s.log.Warn("stored again: its record does not verify", "vault", b.s.dir, "err", err)
		}
		return false, nil
	}
	b.s.suspect.clear(entry{kind, d})
	return true, b.touch(kind, d, p)
}

// reaches reports whether the pack of a believed entry is there and long enough: a
// pack that somebody deleted or cut holds nothing.
func (s *Store) reaches(p place) bool {
	f, _, err := s.openPackFile(p.pack)
	if err != nil {
		return false
	}
	defer s.files.release(f)
	var st unix.Stat_t
	err = unix.Fstat(int(f.f.Fd()), &st)
	return err == nil && st.Nlink > 0 && st.Size >= int64(p.offset)+p.size()
}

func (b *Batch) isTouched(kind dedupe.Kind, d dedupe.Digest) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	_, ok := b.touched[entry{kind, d}]
	return ok
}

// touch notes that an entry was verified in this epoch.
func (b *Batch) touch(kind dedupe.Kind, d dedupe.Digest, p place) error {
	p.epoch = b.s.Epoch()
	b.mu.Lock()
	b.touched[entry{kind, d}] = p
	full := len(b.touched) >= touchedEntries
	b.mu.Unlock()
	if !full {
		return nil
	}
	return b.writeTouched()
}

// writeTouched enters the verified entries' new epoch into the index. They stay
// believed by this batch meanwhile.
func (b *Batch) writeTouched() error {
	b.mu.Lock()
	list := b.touched
	b.touched = make(map[entry]place)
	b.mu.Unlock()
	if len(list) == 0 {
		return nil
	}
	return b.s.index.update(func(c *change) error {
		for e, p := range list { // a collection may have moved it meanwhile
			if b.s.o.bugs.touchAnyway {
				if err := c.setPlace(e.kind, e.digest, p, false); err != nil {
					return err
				}
			} else if _, err := c.moveTo(contentKey(e.kind, e.digest), p, p); err != nil {
				return err
			}
		}
		return nil
	})
}

// newRecord is content that is to be stored by itself.
type newRecord struct {
	kind    dedupe.Kind
	level   uint8 // of a node
	digest  dedupe.Digest
	content []byte
	list    []dedupe.Digest // of a block's grains, where its digest is made of them
}

// appendRecord compresses content, seals it where that is due, and appends it to the batch's pack of its kind. It
// returns the record's entry and the pack's number.
func (b *Batch) appendRecord(ctx context.Context, r newRecord) (pack.Entry, uint32, error) {
	rec := pack.Record{Kind: r.kind, Level: r.level, Digest: r.digest}
	head := b.s.withList(&rec, r.list)
	return b.appendContent(ctx, rec, head, r.content, b.placed)
}

// appendContent is appendRecord with what else the record's header says, with what stands
// before the content, and with who is told its place.
func (b *Batch) appendContent(ctx context.Context, rec pack.Record, head, content []byte, placed func(number uint32, e *pack.Entry)) (pack.Entry, uint32, error) {
	buf := b.s.codec.buffer(len(head) + len(content))
	defer b.s.codec.put(buf)
	rec.Domain, rec.LogicalLength = b.s.Domain(), uint32(len(content))
	*buf, rec.Codec = b.s.codec.appendPayload(append(*buf, head...), content, rec.Kind == pack.KindBundle)
	var err error
	if *buf, err = b.s.seal(&rec, *buf); err != nil {
		return pack.Entry{}, 0, err
	}
	st := &b.data
	if pack.ClassOf(rec.Kind) == pack.ClassMetadata {
		st = &b.meta
	}
	for {
		p, err := b.current(ctx, st)
		if err != nil {
			return pack.Entry{}, 0, err
		}
		e, err := p.w.Append(&rec, *buf, func(e pack.Entry) { placed(p.number, &e) })
		if err == nil {
			return e, p.number, nil
		}
		if !errors.Is(err, pack.ErrFull) {
			return e, 0, b.fail(err)
		}
		if err := b.roll(ctx, st, p); err != nil {
			return e, 0, err
		}
	}
}

// placed remembers a record until the index has it.
func (b *Batch) placed(number uint32, e *pack.Entry) {
	if e.Kind == dedupe.KindBlock || e.Kind == dedupe.KindNode {
		b.setPending(entry{e.Kind, e.Digest}, placeOf(number, b.s.Epoch(), e))
	}
}

// setPending sets the place of what is not in the index yet.
func (b *Batch) setPending(e entry, p place) {
	sh := b.shard(e.digest)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if sh.places == nil {
		sh.places = make(map[entry]place)
	}
	sh.places[e] = p
}

// forget drops places that the index has now.
func (b *Batch) forget(entries []pack.Entry) {
	drop := func(e entry) {
		sh := b.shard(e.digest)
		sh.mu.Lock()
		delete(sh.places, e)
		sh.mu.Unlock()
	}
	for i := range entries {
		e := &entries[i]
		drop(entry{e.Kind, e.Digest})
		for j := range e.Patches {
			drop(entry{dedupe.KindBlock, e.Patches[j].Digest})
		}
	}
}

// current is the pack that the stream appends to.
func (b *Batch) current(ctx context.Context, st *stream) (*openPack, error) {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.cur != nil {
		return st.cur, nil
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	p, err := b.s.takePack(st.class, st.spare)
	if err != nil {
		return nil, err
	}
	b.mu.Lock()
	b.packs = append(b.packs, p.number) // before it writes to it
	b.mu.Unlock()
	st.cur = p
	return p, nil
}

// roll takes a full pack out of its stream and has it sealed and indexed. For data
// that goes on beside the puts. Nodes are entered only after every block that was
// put before them, so a full metadata pack is done before the put goes on; with
// 8 MiB of disk below a node, that is once in some 64 GiB.
func (b *Batch) roll(ctx context.Context, st *stream, full *openPack) error {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.cur != full {
		return nil // another put did it
	}
	if st == &b.meta {
		if err := b.flushData(); err != nil {
			return b.fail(err)
		}
		entries, err := b.s.sealPack(full)
		if err != nil {
			return b.fail(err)
		}
		st.cur = nil
		b.forget(entries)
		return nil
	}
	select {
	case st.slots <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	st.cur = nil
	job := &sealing{done: make(chan struct{})}
	st.sealing = append(st.finishedLocked(), job)
	go func() { // waited for by flushData, which Commit and Abort call
		defer close(job.done)
		entries, err := b.s.sealPack(full)
		<-st.slots
		if err != nil {
			job.failed, job.err = full, b.fail(err)
			return
		}
		b.forget(entries)
	}()
	return nil
}

// finishedLocked drops what has been sealed well from the list.
func (st *stream) finishedLocked() []*sealing {
	left := st.sealing[:0]
	for _, job := range st.sealing {
		select {
		case <-job.done:
			if job.err == nil {
				continue
			}
		default:
		}
		left = append(left, job)
	}
	return left
}

// waitLocked waits for the packs being sealed. The stream's lock is held.
func (st *stream) waitLocked() error {
	var errs []error
	for _, job := range st.sealing {
		<-job.done
		errs = append(errs, job.err)
	}
	return errors.Join(errs...)
}

// flushData makes every block put so far durable and enters it into the index.
func (b *Batch) flushData() error {
	if err := b.flushPatches(); err != nil {
		return err
	}
	st := &b.data
	st.mu.Lock()
	defer st.mu.Unlock()
	if err := st.waitLocked(); err != nil {
		return err
	}
	return b.flushLocked(st)
}

// flushLocked makes what the stream's open pack holds durable and enters it into the
// index. The stream's lock is held.
func (b *Batch) flushLocked(st *stream) error {
	if st.cur == nil {
		return nil
	}
	entries, err := b.s.indexPack(st.cur)
	if err != nil {
		return err
	}
	b.forget(entries)
	return nil
}
