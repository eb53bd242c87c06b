package blockstore

import (
	"context"
	"errors"
	"fmt"

	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/keyring"
	"github.com/keelblock/keelblock/dedupe/pack"
)

// Commit implements dedupe.Batch. After an error that comes when the publication was
// already durable the commit is cancelled by another record. Should that fail too, the
// Store takes no batches until the record can be written; if it is closed before, the next
// Open may find the commit whole.
func (b *Batch) Commit(ctx context.Context, p dedupe.Publication) ([]dedupe.Digest, error) {
	if err := b.enter(ctx); err != nil {
		return nil, fmt.Errorf("commit: %w", errors.Join(err, b.abort()))
	}
	defer b.s.leave()
	ids, err := b.commit(ctx, p)
	if err != nil {
		b.fail(err)
		return nil, fmt.Errorf("commit: %w", errors.Join(err, b.abort()))
	}
	if err := b.finish(b.s.returnPack); err != nil {
		// The point is published; what failed is only the packs' tails.
		b.s.log.Error("return packs after a commit", "vault", b.s.dir, "err", err)
	}
	return ids, nil
}

func checkPublication(p dedupe.Publication) error {
	if n := len(p.Manifests) + len(p.Notes); n > pack.MaxPublished {
		return fmt.Errorf("%d manifests and notes, limit %d", n, pack.MaxPublished)
	}
	for i, m := range p.Manifests {
		if len(m) == 0 || len(m) > dedupe.MaxMetadataSize {
			return fmt.Errorf("manifest %d of %d bytes, want 1 to %d", i, len(m), dedupe.MaxMetadataSize)
		}
	}
	for i := range p.Notes {
		if n := len(p.Notes[i].Body); n > dedupe.MaxMetadataSize {
			return fmt.Errorf("note %d of %d bytes, limit %d", i, n, dedupe.MaxMetadataSize)
		}
	}
	return nil
}

// commit is the order of the package's comment: blocks, nodes, manifests and notes,
// publication, index.
func (b *Batch) commit(ctx context.Context, p dedupe.Publication) ([]dedupe.Digest, error) {
	if err := checkPublication(p); err != nil {
		return nil, err
	}
	if len(p.Manifests) == 0 && len(p.Notes) > 0 {
		b.useSpare(p.Notes)
	}
	if err := b.flushData(); err != nil {
		return nil, err
	}
	if err := b.writeTouched(); err != nil {
		return nil, err
	}
	if len(p.Manifests)+len(p.Notes) == 0 {
		return nil, b.flushMeta()
	}
	published := make([]publishedRecord, 0, len(p.Manifests)+len(p.Notes))
	ids := make([]dedupe.Digest, len(p.Manifests))
	pub := pack.Publication{}
	for i, m := range p.Manifests {
		r, err := b.appendPublished(ctx, dedupe.KindManifest, m)
		if err != nil {
			return nil, fmt.Errorf("manifest %d: %w", i, err)
		}
		ids[i] = r.digest
		published = append(published, r)
	}
	pub.Manifests = ids
	b.s.publishing.Lock()
	defer b.s.publishing.Unlock()
	if err := b.s.isBroken(); err != nil { // a publication of this serial may stand
		return nil, err
	}
	pub.Serial, pub.FirstNote = b.s.nextPublication()
	for i, n := range p.Notes {
		n.Sequence = pub.FirstNote + uint64(i)
		r, err := b.appendPublished(ctx, dedupe.KindNote, pack.EncodeNote(&n))
		if err != nil {
			return nil, fmt.Errorf("note %d: %w", i, err)
		}
		r.sequence = n.Sequence
		pub.Notes = append(pub.Notes, r.digest)
		published = append(published, r)
	}
	if len(p.Notes) == 0 {
		pub.FirstNote = 0
	}
	return ids, b.publish(ctx, &pub, published)
}

// useSpare lets a commit of notes alone take of the reserve what it needs, and no more:
// without notes nothing is deleted, and without deletions no space is freed.
func (b *Batch) useSpare(notes []dedupe.Note) {
	b.mu.Lock()
	fresh := len(b.packs) == 0
	b.mu.Unlock()
	if !fresh { // something was put
		return
	}
	const around = pack.RecordHeaderSize + keyring.Overhead
	// The publication, and maybe its cancellation; pads; the seal.
	spare := 2*int64(around+len(pack.EncodePublication(&pack.Publication{Notes: make([]dedupe.Digest, len(notes))}))) +
		pack.HeaderSize + 4*pack.PageSize + pack.SealSize(len(notes)+2)
	for i := range notes {
		spare += int64(around + len(pack.EncodeNote(&notes[i])))
	}
	b.meta.spare = spare
}

// isBroken is why nothing is committed any more, or nil.
func (s *Store) isBroken() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.broken
}

// publishedRecord is a manifest or note of this commit.
type publishedRecord struct {
	kind     dedupe.Kind
	digest   dedupe.Digest
	place    place
	sequence uint64 // of a note
}

// nextPublication is the serial of the next publication and the sequence of its
// first note. Store.publishing is held.
func (s *Store) nextPublication() (serial, sequence uint64) {
	s.index.mu.Lock()
	defer s.index.mu.Unlock()
	return s.index.m.nextSerial, s.index.m.nextSequence
}

// appendPublished appends a manifest, note or publication to the metadata packs.
func (b *Batch) appendPublished(ctx context.Context, kind dedupe.Kind, content []byte) (publishedRecord, error) {
	r := publishedRecord{kind: kind, digest: b.s.metadataDigest(kind, content)}
	e, number, err := b.appendRecord(ctx, newRecord{kind: kind, digest: r.digest, content: content})
	r.place = placeOf(number, b.s.Epoch(), &e)
	return r, err
}

// publish writes the publication, syncs it, and then shows it.
func (b *Batch) publish(ctx context.Context, pub *pack.Publication, published []publishedRecord) error {
	rec, err := b.appendPublished(ctx, pack.KindPublication, pack.EncodePublication(pub))
	if err != nil {
		return err
	}
	if err := b.flushMeta(); err != nil {
		return errors.Join(err, b.cancel(ctx, pub.Serial, rec.digest))
	}
	err = b.s.index.update(func(c *change) error { return c.publish(pub, published) })
	if err != nil {
		return errors.Join(err, b.cancel(ctx, pub.Serial, rec.digest))
	}
	return nil
}

// publish enters manifests and notes of a publication and moves on the numbers.
func (c *change) publish(pub *pack.Publication, published []publishedRecord) error {
	for _, r := range published {
		var err error
		if r.kind == dedupe.KindNote {
			err = c.set(noteKey(r.sequence), append(r.place.append(make([]byte, 0, placeSize+dedupe.DigestSize)), r.digest[:]...))
		} else {
			err = c.setPlace(r.kind, r.digest, r.place, false)
		}
		if err != nil {
			return err
		}
	}
	c.m.nextSerial = max(c.m.nextSerial, pub.Serial+1)
	if pub.Checkpoint { // met again by a rebuild
		c.m.checkpoint = max(c.m.checkpoint, pub.Serial)
		c.m.nextSequence = max(c.m.nextSequence, pub.FirstNote)
		return nil
	}
	if n := uint64(len(pub.Notes)); n > 0 {
		c.m.nextSequence = max(c.m.nextSequence, pub.FirstNote+n)
	}
	return nil
}

// flushMeta makes every node, manifest and note of the batch durable and enters the
// nodes into the index.
func (b *Batch) flushMeta() error {
	st := &b.meta
	st.mu.Lock()
	defer st.mu.Unlock()
	return b.flushLocked(st)
}

// cancel makes sure that a publication, which may be durable, does not count.
func (b *Batch) cancel(ctx context.Context, serial uint64, publication dedupe.Digest) error {
	content := cancellation(serial, publication)
	_, err := b.appendPublished(context.WithoutCancel(ctx), pack.KindPublication, content)
	if err == nil {
		_, _, err = b.meta.cur.w.Sync()
	}
	if err == nil {
		b.meta.cur.durable = b.meta.cur.w.End() // an abort must not cut it off
		b.s.index.useSerial(serial)
		return nil
	}
	err = fmt.Errorf("commit %d is neither published nor cancelled, the vault takes no more until it is: %w", serial, err)
	b.s.mu.Lock()
	b.s.broken, b.s.unsettled = err, &unsettled{serial, publication}
	b.s.mu.Unlock()
	return err
}

func cancellation(serial uint64, publication dedupe.Digest) []byte {
	return pack.EncodePublication(&pack.Publication{Serial: serial, Cancel: true, Manifests: []dedupe.Digest{publication}})
}

// unsettled is a commit of which it is not known whether it is durable.
type unsettled struct {
	serial      uint64
	publication dedupe.Digest
}

// settle cancels the commit whose fate is not known, if there is one, and then the Store goes
// on: the disk may have had no room, and has some again. The cancellation goes to a pack of
// its own, since nothing is known about the one that the commit was written to. With it the
// index has the serial as used, so that a start after a crash passes the commit over too.
func (s *Store) settleCommit() error {
	s.mu.Lock()
	waiting := s.unsettled != nil
	s.mu.Unlock()
	if !waiting {
		return nil
	}
	s.publishing.Lock()
	defer s.publishing.Unlock()
	s.mu.Lock()
	u, broken := s.unsettled, s.broken
	s.mu.Unlock()
	if u == nil {
		return nil
	}
	s.index.useSerial(u.serial)
	if err := s.writeAlone([][]byte{cancellation(u.serial, u.publication)}, s.closeRoom()); err != nil {
		return errors.Join(broken, err)
	}
	s.mu.Lock()
	s.broken, s.unsettled = nil, nil
	s.mu.Unlock()
	s.log.Info("a commit whose fate was not known is cancelled", "vault", s.dir, "serial", u.serial)
	return nil
}

// Abort implements dedupe.Batch.
func (b *Batch) Abort() error {
	if err := b.s.enter(); err != nil {
		return nil // Close aborts it, or has
	}
	defer b.s.leave()
	return b.abort()
}

func (b *Batch) abort() error {
	if err := b.finish(b.s.rollBackPack); err != nil {
		return fmt.Errorf("abort: %w", err)
	}
	return nil
}

// finish ends the batch once: it waits for packs being sealed and hands its current
// packs to fn.
func (b *Batch) finish(fn func(*openPack) error) error {
	b.mu.Lock()
	if b.done {
		b.mu.Unlock()
		return nil
	}
	b.done = true
	b.mu.Unlock()
	var errs []error
	for _, st := range []*stream{&b.data, &b.meta} {
		st.mu.Lock()
		_ = st.waitLocked() // what failed has failed the batch
		for _, job := range st.sealing {
			if job.failed != nil {
				errs = append(errs, b.s.rollBackPack(job.failed))
			}
		}
		st.sealing = nil
		if st.cur != nil {
			errs = append(errs, fn(st.cur))
			st.cur = nil
		}
		st.mu.Unlock()
	}
	b.s.mu.Lock()
	delete(b.s.batches, b)
	b.s.mu.Unlock()
	return errors.Join(errs...)
}
