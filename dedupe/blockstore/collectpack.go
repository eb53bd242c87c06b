package blockstore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"

	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/pack"
)

// keepPercent: a pack is written again when it would then take less than this of what
// it takes now. What stays is at most 1/0.85 = 1.18 of what is live.
const keepPercent = 85

// Dead says which manifests and notes go. Both are asked while no commit is under way.
type Dead struct {
	// Manifest is asked with the digest of a published manifest.
	Manifest func(d dedupe.Digest) bool
	// Subject is the manifest that a note is about, by the note's sequence, and zero for
	// one that is about none or is not known. A note goes when its subject is not
	// published any more.
	Subject func(sequence uint64) dedupe.Digest
}

// SweepPacks ends a collection: it drops the packs in which nothing is needed, removes
// dead manifests and notes, and writes what is left in packs with much room to new
// ones. It follows the last pass. A full disk is no error: what needs room is left
// undone.
func (c *Collection) SweepPacks(ctx context.Context, dead Dead) (err error) {
	if c.o.IndexOnly {
		return nil
	}
	if err := c.s.enter(); err != nil {
		return err
	}
	defer c.s.leave()
	if err := c.countPublished(ctx, dead); err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, c.closeOut())
		c.report.PackBytes = c.s.Stats().PackBytes
		if errors.Is(err, dedupe.ErrNoSpace) && ctx.Err() == nil {
			c.report.NoSpace = true
			c.report.Problems = append(c.report.Problems, err.Error())
			err = nil
		}
	}()
	if err := c.dropDead(ctx, pack.ClassData); err != nil {
		return fmt.Errorf("drop packs: %w", err)
	}
	metaRewrite := c.worthRewriting(pack.ClassMetadata)
	if c.report.DeadPoints > 0 || len(metaRewrite) > 0 || len(c.deadPacks(pack.ClassMetadata)) > 0 {
		if err := c.forget(ctx, dead); err != nil {
			return fmt.Errorf("remove deleted points: %w", err)
		}
		if err := c.dropDead(ctx, pack.ClassMetadata); err != nil {
			return fmt.Errorf("drop packs: %w", err)
		}
	}
	for _, row := range append(c.worthRewriting(pack.ClassData), metaRewrite...) {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := c.rewrite(ctx, row); err != nil {
			return fmt.Errorf("rewrite pack %v: %w", row.id, err)
		}
	}
	return nil
}

// Report is what the collection found and did so far.
func (c *Collection) Report() CollectReport { return c.report }

// published is dead for what is old: what was published, or published again, since the
// collection began stays.
func (c *Collection) published(dead Dead) deadPublished {
	return deadPublished{
		manifest: func(d dedupe.Digest, p place) bool {
			return c.isOld(p) && dead.Manifest != nil && dead.Manifest(d)
		},
		note: func(sequence uint64, p place, stays map[dedupe.Digest]bool) bool {
			if !c.isOld(p) || dead.Subject == nil {
				return false
			}
			subject := dead.Subject(sequence)
			return !subject.IsZero() && (!stays[subject] || c.s.o.bugs.notesAlone)
		},
	}
}

// countPublished adds manifests and notes to the figures of their packs.
func (c *Collection) countPublished(ctx context.Context, dead Dead) error {
	is := c.published(dead)
	_, gone, err := c.s.listPublished(ctx, deadPublished{
		manifest: func(d dedupe.Digest, p place) bool {
			gone := is.manifest(d, p)
			c.count(p, gone)
			return gone
		},
		note: func(sequence uint64, p place, stays map[dedupe.Digest]bool) bool {
			gone := is.note(sequence, p, stays)
			c.count(p, gone)
			return gone
		},
	})
	if err == nil {
		c.report.DeadPoints = int64(len(gone.manifests))
	}
	return err
}

// forget writes a checkpoint without the dead points and removes their entries: first
// the manifests, durably, then their notes, of which one says that the point is purged.
func (c *Collection) forget(ctx context.Context, dead Dead) error {
	if c.o.DryRun {
		return nil
	}
	isDead := c.published(dead)
	var gone *forgotten
	var err error
	if c.s.o.bugs.noCheckpoint {
		_, gone, err = c.s.listPublished(ctx, isDead)
	} else {
		gone, err = c.s.checkpoint(ctx, isDead)
	}
	if err != nil {
		return err
	}
	first, second := gone.manifests, gone.notes
	if c.s.o.bugs.notesFirst {
		first, second = second, first
	}
	if err := c.removeEntries(first); err != nil {
		return err
	}
	return c.removeEntries(second)
}

// candidates are the packs of a class that may go, with what is live in them.
func (c *Collection) candidates(class pack.Class, fn func(row packRow, t *packTally)) {
	for n, row := range c.rows {
		if row.class != class || !c.old[n] || row.state == packDropped {
			continue
		}
		t := c.tally[n]
		if t == nil {
			t = new(packTally)
		}
		fn(row, t)
	}
}

// deadPacks are those in which nothing is live, and no publication of use.
func (c *Collection) deadPacks(class pack.Class) []packRow {
	var list []packRow
	c.candidates(class, func(row packRow, t *packTally) {
		if t.live > 0 {
			return
		}
		if class == pack.ClassMetadata && !c.wastes(row, t, c.publicationBytes(row)) {
			return
		}
		list = append(list, row)
	})
	slices.SortFunc(list, func(a, b packRow) int { return cmp.Compare(a.number, b.number) })
	return list
}

// wastes reports whether a pack would take much less if it were written again.
func (c *Collection) wastes(row packRow, t *packTally, more int64) bool {
	after := more
	if t.live > 0 {
		after += pack.HeaderSize + t.liveBytes + pack.SealSize(int(t.live)) + pack.PageSize
	}
	return after*100 < row.end*keepPercent
}

// Packs that are smaller than this part of a full one are joined when there are as many:
// each collection and each stop of the store seals what is open.
const (
	smallPack  = 4
	smallPacks = 16
)

// worthRewriting are the packs with something live and much room, and small ones when
// there are many, the emptiest first.
func (c *Collection) worthRewriting(class pack.Class) []packRow {
	var list, small []packRow
	c.candidates(class, func(row packRow, t *packTally) {
		if t.live == 0 || row.state == packRetired {
			return
		}
		if row.end < c.s.o.PackBytes/smallPack {
			small = append(small, row)
		}
		if !c.wastes(row, t, 0) {
			return
		}
		if class == pack.ClassMetadata && !c.wastes(row, t, c.publicationBytes(row)) {
			return
		}
		list = append(list, row)
	})
	if len(small) >= smallPacks {
		for _, row := range small {
			if !slices.Contains(list, row) {
				list = append(list, row)
			}
		}
	}
	slices.SortFunc(list, func(a, b packRow) int {
		return cmp.Or(cmp.Compare(c.tally[a.number].liveBytes, c.tally[b.number].liveBytes), cmp.Compare(a.number, b.number))
	})
	return list
}

// publicationBytes is what publications that still count take in a pack: nothing, when
// this collection writes a checkpoint for other reasons.
func (c *Collection) publicationBytes(row packRow) (bytes int64) {
	if c.report.DeadPoints > 0 {
		return 0
	}
	f, content, err := c.s.openContent(row.id, true)
	if err != nil || content == nil {
		return 0
	}
	defer f.Close()
	found, err := c.s.publications(f, content.entries)
	if err != nil {
		return 0
	}
	c.s.index.mu.Lock()
	checkpoint := c.s.index.m.checkpoint
	c.s.index.mu.Unlock()
	for _, p := range found {
		if p.pub.Serial > checkpoint || p.pub.Checkpoint && p.pub.Serial == checkpoint {
			bytes += pack.RecordHeaderSize + int64(len(pack.EncodePublication(p.pub)))
		}
	}
	if bytes > 0 {
		bytes += pack.HeaderSize + pack.SealSize(len(found)) + pack.PageSize
	}
	return bytes
}

// dropDead drops the packs of a class in which nothing is live.
func (c *Collection) dropDead(ctx context.Context, class pack.Class) error {
	list := c.deadPacks(class)
	for len(list) > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		n := min(len(list), 64)
		if err := c.drop(list[:n]); err != nil {
			return err
		}
		c.report.DroppedPacks += int64(n)
		list = list[n:]
	}
	return nil
}

// drop drops packs that no entry names, and counts what that frees.
func (c *Collection) drop(rows []packRow) error {
	if !c.o.DryRun {
		if err := c.s.removePacks(rows); err != nil {
			return err
		}
	}
	for _, row := range rows {
		c.report.FreedBytes += row.end
	}
	return nil
}

// move is an entry that is to name the copy of its record.
type move struct {
	key      []byte
	from, to place
}

// rewrite copies what is live in a pack, lets the index name the copies, and drops the
// pack. A live record that does not verify keeps the pack, as it is: it is retired,
// and reported.
func (c *Collection) rewrite(ctx context.Context, row packRow) error {
	if c.o.DryRun {
		t := c.tally[row.number]
		c.report.RewrittenPacks++
		c.report.CopiedBytes += t.liveBytes
		c.report.FreedBytes += row.end - t.liveBytes
		return nil
	}
	f, content, err := c.s.openContent(row.id, false)
	if errors.Is(err, fs.ErrNotExist) {
		return c.retire(row, "its file is missing")
	}
	if err != nil {
		return err
	}
	if content == nil || content.problem != nil {
		if f != nil {
			_ = f.Close() // only read
		}
		return c.retire(row, "it is not readable")
	}
	defer f.Close()
	notes, err := c.notesIn(row)
	if err != nil {
		return err
	}
	var moves []move
	c.repack = repacking{}
	for i := range content.entries {
		if err := ctx.Err(); err != nil {
			return err
		}
		e := &content.entries[i]
		live, err := c.liveEntries(e, row.number, notes)
		var done []move
		if err == nil && len(live) > 0 {
			if done, err = c.copyLive(f, e, live); errors.Is(err, dedupe.ErrCorrupt) && c.s.healed(e, live[0]) {
				done, err = c.copyLive(f, e, live) // this copy of the pack was written again from another one
			}
		}
		if errors.Is(err, dedupe.ErrCorrupt) || errors.Is(err, dedupe.ErrNotFound) {
			return c.retire(row, fmt.Sprintf("%s %v does not verify: %v", kindName(e.Kind), e.Digest, err))
		}
		if err != nil {
			return err
		}
		moves = append(moves, done...)
	}
	done, err := c.flushBundle()
	if err != nil {
		return err
	}
	moves = append(moves, done...)
	for _, m := range moves {
		c.report.CopiedBytes += m.to.account()
		c.report.FreedBytes -= m.to.account()
	}
	if t := c.tally[row.number]; int64(len(moves)) != t.live {
		// Batches may have stored some of them again. If not, the index names records
		// that the pack does not list, and it must not go.
		if named, err := c.named(row.number); err != nil || named != int64(len(moves)) {
			return errors.Join(err, c.retire(row, fmt.Sprintf("the index names %d records in it, %d were found", named, len(moves))))
		}
	}
	return c.replace(row, moves)
}

// copyLive copies what lives in a record. The entries that are returned say where to;
// those of patches may come later, from flushBundle.
func (c *Collection) copyLive(f io.ReaderAt, e *pack.Entry, live []move) ([]move, error) {
	if e.Kind == pack.KindBundle && len(live) < len(e.Patches) && c.s.rebundles() {
		return c.copyBundle(f, e, live)
	}
	return live, c.copyRecord(f, e, live)
}

// replace lets the index name copies that have been made, and drops their pack.
func (c *Collection) replace(row packRow, moves []move) error {
	if c.s.o.bugs.removeFirst {
		if err := c.syncOut(); err != nil {
			return err
		}
		if err := c.drop([]packRow{row}); err != nil {
			return err
		}
	}
	if err := c.move(moves); err != nil {
		return err
	}
	c.report.RewrittenPacks++
	if c.s.o.bugs.removeFirst {
		return nil
	}
	return c.drop([]packRow{row})
}

// move makes what the collection has written durable, and then lets the index name it.
func (c *Collection) move(moves []move) error {
	if err := c.syncOut(); err != nil {
		return err
	}
	for list := moves; len(list) > 0; {
		n := min(len(list), sweepEntries)
		if err := c.s.o.hook("collect", "move entries"); err != nil {
			return noSpace(err)
		}
		err := c.s.index.update(func(ch *change) error {
			for _, m := range list[:n] {
				if _, err := ch.moveTo(m.key, m.from, m.to); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		list = list[n:]
	}
	return c.s.o.hook("collect", "entries have moved")
}

// liveEntries are the entries of the index that name a pack's record: of a bundle, those
// of its patches. notes are the entries of notes in the pack, by the records' offsets.
func (c *Collection) liveEntries(e *pack.Entry, number uint32, notes map[int64][]byte) (live []move, err error) {
	var keys [][]byte
	switch e.Kind {
	case dedupe.KindBlock, dedupe.KindNode, dedupe.KindManifest:
		keys = [][]byte{contentKey(e.Kind, e.Digest)}
	case pack.KindBundle:
		for i := range e.Patches {
			keys = append(keys, contentKey(dedupe.KindBlock, e.Patches[i].Digest))
		}
	case dedupe.KindNote:
		if key, ok := notes[e.Offset]; ok {
			keys = [][]byte{key}
		}
	default: // publications stand in the checkpoint
		return nil, nil
	}
	for _, key := range keys {
		val, err := c.s.index.get(key)
		if err != nil {
			return nil, err
		}
		if val == nil {
			continue
		}
		from, err := decodePlace(val)
		if err != nil {
			return nil, err
		}
		if from.pack == number && int64(from.offset) == e.Offset {
			live = append(live, move{key: key, from: from})
		}
	}
	return live, nil
}

// notesIn are the keys of the notes that the index has in a pack, by the offsets of
// their records. They are not read for it: they may be sealed.
func (c *Collection) notesIn(row packRow) (map[int64][]byte, error) {
	if row.class != pack.ClassMetadata {
		return nil, nil
	}
	notes := make(map[int64][]byte)
	err := c.s.index.scan(prefixNote, func(key, val []byte) error {
		p, err := decodePlace(val)
		if err == nil && p.pack == row.number {
			notes[int64(p.offset)] = slices.Clone(key)
		}
		return err
	})
	return notes, err
}

// named counts the entries of the index that name records of a pack.
func (c *Collection) named(number uint32) (n int64, err error) {
	for _, prefix := range []byte{prefixBlock, prefixNode, prefixManifest, prefixNote} {
		err := c.s.index.scan(prefix, func(_, val []byte) error {
			p, err := decodePlace(val)
			if err == nil && p.pack == number {
				n++
			}
			return err
		})
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// retire leaves a pack for good: it is read, and dropped once nothing in it is live.
func (c *Collection) retire(row packRow, why string) error {
	c.report.Problems = append(c.report.Problems, fmt.Sprintf("pack %v is kept: %s", row.id, why))
	c.s.log.Error("pack is kept by collection", "vault", c.s.dir, "pack", row.id.String(), "err", why)
	row.state = packRetired
	return c.s.index.addEntries(row, 0, nil, true)
}

// copyRecord verifies a record and appends it, as it stands, to a pack of the
// collection, and fills in where live, the entries that name it, are to point.
func (c *Collection) copyRecord(f io.ReaderAt, e *pack.Entry, live []move) error {
	s := c.s
	buf := s.codec.buffer(int(e.StoredLength))
	defer s.codec.put(buf)
	rec, _, grown, err := pack.ReadRecord(f, e.Offset, e.StoredLength, *buf)
	*buf = grown
	if err != nil {
		return err
	}
	stored := slices.Clone(grown) // opening a sealed payload may use its storage
	if err := s.verifyRecord(&rec, grown, e, live); err != nil {
		return err
	}
	placed, number, err := c.appendOut(&rec, stored)
	if err != nil {
		return err
	}
	for i := range live {
		to := live[i].from
		to.pack, to.offset, to.epoch = number, uint32(placed.Offset), s.Epoch()
		live[i].to = to
	}
	return nil
}

// healed reads a record as any reader does, from whichever location has it whole, which
// heals the others.
func (s *Store) healed(e *pack.Entry, m move) bool {
	kind := e.Kind
	d := e.Digest
	if kind == pack.KindBundle {
		kind, d = dedupe.KindBlock, dedupe.Digest(m.key[1:])
	}
	_, err := s.read(m.from, kind, d, nil)
	return err == nil
}

// verifyRecord compares the content of a record, header and payload, with its digest;
// of a bundle, that of each patch in it that is live.
func (s *Store) verifyRecord(rec *pack.Record, record []byte, e *pack.Entry, live []move) error {
	if rec.Kind != e.Kind || rec.Digest != e.Digest {
		return fmt.Errorf("record there is %s %v: %w", kindName(rec.Kind), rec.Digest, dedupe.ErrCorrupt)
	}
	if rec.Kind == pack.KindBundle {
		if _, err := s.ids(rec); errors.Is(err, dedupe.ErrNoKey) && rec.HasCiphertextHash {
			return compareSum(dedupe.Sum(record[pack.RecordHeaderSize:]), rec.CiphertextHash)
		}
		for _, m := range live {
			if _, err := s.read(m.from, dedupe.KindBlock, dedupe.Digest(m.key[1:]), nil); err != nil {
				return err
			}
		}
		return nil
	}
	ids, err := s.ids(rec)
	if errors.Is(err, dedupe.ErrNoKey) && rec.HasCiphertextHash {
		return compareSum(dedupe.Sum(record[pack.RecordHeaderSize:]), rec.CiphertextHash)
	}
	if err != nil {
		return err
	}
	plain := s.codec.buffer(int(rec.LogicalLength))
	defer s.codec.put(plain)
	payload, err := s.payload(rec, record, nil)
	if err != nil {
		return err
	}
	content, err := s.codec.decode(rec, payload, (*plain)[:0])
	if err != nil {
		return err
	}
	return checkSum(ids, rec.Kind, rec.Level, content, rec.Digest)
}

// outPack is where the collection's pack of a class is kept.
func (c *Collection) outPack(class pack.Class) **openPack {
	if class == pack.ClassMetadata {
		return &c.outMeta
	}
	return &c.outData
}

// out is the pack that the collection appends to. It may use the reserve of free
// space: what it writes frees more. When there is no room for a whole pack it makes do
// with a smaller one.
func (c *Collection) out(class pack.Class, record int64) (*openPack, error) {
	at := c.outPack(class)
	if *at != nil {
		return *at, nil
	}
	least := pack.HeaderSize + record + pack.SealSize(1) + 2*pack.PageSize
	c.s.relieve(least + c.s.indexRoomNow())
	free, err := freeBytes(c.s.dir)
	if err != nil {
		return nil, err
	}
	size := max(least, min(c.s.o.PackBytes, free-c.s.indexRoomNow()))
	if err := c.s.checkSpare(size, c.s.indexRoomNow()); err != nil {
		return nil, err
	}
	p, err := c.s.makePack(class, size, size)
	if err != nil {
		return nil, noSpace(err)
	}
	*at = p
	return p, nil
}

// sealOut seals the collection's pack of a class.
func (c *Collection) sealOut(class pack.Class) error {
	at := c.outPack(class)
	p := *at
	if err := p.w.Seal(); err != nil {
		return err
	}
	if err := c.s.enterRow(p, packSealed, len(p.w.Entries(0)), p.w.End()); err != nil {
		return err
	}
	*at = nil
	return c.s.closePack(p)
}

// syncOut makes durable what the collection has copied so far.
func (c *Collection) syncOut() error {
	for _, p := range []*openPack{c.outData, c.outMeta} {
		if p == nil || p.w.End() == p.durable {
			continue
		}
		n, end, err := p.w.Sync()
		if err != nil {
			return noSpace(err)
		}
		if err := c.s.enterRow(p, packOpen, n, end); err != nil {
			return err
		}
	}
	return nil
}

// closeOut gives the collection's packs back: to the pool, for the batches to come.
// What was copied and not moved is rolled back.
func (c *Collection) closeOut() error {
	var errs []error
	for _, class := range []pack.Class{pack.ClassData, pack.ClassMetadata} {
		at := c.outPack(class)
		p := *at
		if *at = nil; p == nil {
			continue
		}
		if p.w.End() == p.durable && p.known {
			errs = append(errs, c.s.returnPack(p))
		} else {
			errs = append(errs, c.s.rollBackPack(p))
		}
	}
	return errors.Join(errs...)
}
