package blockstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"

	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/pack"
)

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
		if _, err := s.digester(rec); errors.Is(err, dedupe.ErrNoKey) && rec.HasCiphertextHash {
			return compareSum(dedupe.Sum(record[pack.RecordHeaderSize:]), rec.CiphertextHash)
		}
		for _, m := range live {
			if _, err := s.read(m.from, dedupe.KindBlock, dedupe.Digest(m.key[1:]), nil); err != nil {
				return err
			}
		}
		return nil
	}
	digester, err := s.digester(rec)
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
	return checkSum(digester, rec.Kind, rec.Level, content, rec.Digest)
}
