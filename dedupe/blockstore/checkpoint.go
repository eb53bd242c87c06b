package blockstore

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/pack"
)

// checkpointCopies is how many packs a checkpoint is written to: without publications
// before it, a single record would decide about every point when an index is rebuilt.
const checkpointCopies = 2

// forgotten is what a checkpoint left out: entries of manifests and notes that go next.
type forgotten struct {
	manifests, notes []deadEntry
}

// checkpoint writes down all that is published, but for manifests and notes that are
// dead, and makes that durable. From then on no publication before it counts, so packs
// with such publications, manifests and notes can be dropped in any order and with a
// crash anywhere: an index made from the packs never shows a dead point again, and
// never misses one.
//
// No commit is under way meanwhile: it reads the index and writes a few MiB at most.
func (s *Store) checkpoint(ctx context.Context, dead deadPublished) (*forgotten, error) {
	s.publishing.Lock()
	defer s.publishing.Unlock()
	s.mu.Lock()
	broken := s.broken
	s.mu.Unlock()
	if broken != nil {
		return nil, broken
	}
	all, gone, err := s.listPublished(ctx, dead)
	if err != nil {
		return nil, err
	}
	// The serial is used up before anything is written: should this fail half-way, the
	// next commit must not have the serial of a checkpoint that may be complete.
	err = s.index.update(func(c *change) error {
		all.Serial = c.m.nextSerial
		all.FirstNote = c.m.nextSequence
		c.m.nextSerial++
		return nil
	})
	if err != nil {
		return nil, err
	}
	for range checkpointCopies {
		if err := s.writeCheckpoint(splitCheckpoint(all)); err != nil {
			return nil, err
		}
	}
	return gone, s.index.update(func(c *change) error {
		c.m.checkpoint = all.Serial
		return nil
	})
}

// deadPublished says what goes of what is published.
type deadPublished struct {
	manifest func(d dedupe.Digest, p place) bool
	// note is asked after all manifests, with those that stay: a note must not go before
	// the manifest that it is about, or a purged point would be back.
	note func(sequence uint64, p place, stays map[dedupe.Digest]bool) bool
}

// listPublished is a checkpoint of the index's manifests and notes, in one part.
func (s *Store) listPublished(ctx context.Context, dead deadPublished) (*pack.Publication, *forgotten, error) {
	all, gone := &pack.Publication{Checkpoint: true, Parts: 1}, &forgotten{}
	stays := make(map[dedupe.Digest]bool)
	err := s.index.scan(prefixManifest, func(key, val []byte) error {
		if len(key) != 1+dedupe.DigestSize {
			return fmt.Errorf("index key %x: %w", key, dedupe.ErrCorrupt)
		}
		p, err := decodePlace(val)
		if err != nil {
			return err
		}
		d := dedupe.Digest(key[1:])
		if dead.manifest(d, p) {
			gone.manifests = append(gone.manifests, deadEntry{key: string(key), place: p})
			return ctx.Err()
		}
		stays[d] = true
		all.Manifests = append(all.Manifests, d)
		return ctx.Err()
	})
	if err != nil {
		return nil, nil, fmt.Errorf("list manifests: %w", err)
	}
	err = s.index.scan(prefixNote, func(key, val []byte) error {
		if len(key) != 9 || len(val) < dedupe.DigestSize {
			return fmt.Errorf("index entry of note %x: %w", key, dedupe.ErrCorrupt)
		}
		p, err := decodePlace(val)
		if err != nil {
			return err
		}
		sequence, d := binary.BigEndian.Uint64(key[1:]), dedupe.Digest(val[len(val)-dedupe.DigestSize:])
		if dead.note(sequence, p, stays) {
			gone.notes = append(gone.notes, deadEntry{key: string(key), place: p})
			return ctx.Err()
		}
		all.Notes = append(all.Notes, d)
		all.Sequences = append(all.Sequences, sequence)
		return ctx.Err()
	})
	if err != nil {
		return nil, nil, fmt.Errorf("list notes: %w", err)
	}
	return all, gone, nil
}

// splitCheckpoint cuts a checkpoint into parts of at most pack.MaxPublished each.
func splitCheckpoint(all *pack.Publication) []*pack.Publication {
	var parts []*pack.Publication
	m, n := all.Manifests, all.Notes
	sequences := all.Sequences
	for len(parts) == 0 || len(m)+len(n) > 0 {
		p := &pack.Publication{Serial: all.Serial, Checkpoint: true, FirstNote: all.FirstNote, Part: uint16(len(parts))}
		k := min(len(m), pack.MaxPublished)
		p.Manifests, m = m[:k], m[k:]
		k = min(len(n), pack.MaxPublished-k)
		p.Notes, n = n[:k], n[k:]
		p.Sequences, sequences = sequences[:k], sequences[k:]
		parts = append(parts, p)
	}
	for _, p := range parts {
		p.Parts = uint16(len(parts))
	}
	return parts
}

// writeCheckpoint writes the parts of a checkpoint to a pack of their own, durably.
func (s *Store) writeCheckpoint(parts []*pack.Publication) error {
	contents := make([][]byte, len(parts))
	for i, p := range parts {
		contents[i] = pack.EncodePublication(p)
	}
	if err := s.writeAlone(contents, s.indexRoomNow()); err != nil {
		return fmt.Errorf("write checkpoint: %w", err)
	}
	return nil
}

// writeAlone writes publications to a sealed pack of their own, durably, and leaves keep
// bytes free for the index.
func (s *Store) writeAlone(contents [][]byte, keep int64) (err error) {
	size := int64(pack.HeaderSize+2*pack.PageSize) + pack.SealSize(len(contents))
	for _, content := range contents {
		size += pack.RecordHeaderSize + int64(len(content))
	}
	if err := s.checkSpare(size, keep); err != nil {
		return err
	}
	p, err := s.makePack(pack.ClassMetadata, size, size)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.rollBackPack(p))
		}
	}()
	for _, content := range contents {
		buf := append(make([]byte, pack.RecordHeaderSize, pack.RecordHeaderSize+len(content)), content...)
		rec := pack.Record{Kind: pack.KindPublication, Domain: s.Domain(), Digest: dedupe.Sum(content), LogicalLength: uint32(len(content))}
		if _, err := p.w.Append(&rec, buf, nil); err != nil {
			return err
		}
	}
	if err := p.w.Seal(); err != nil {
		return err
	}
	if err := s.enterRow(p, packSealed, len(p.w.Entries(0)), p.w.End()); err != nil {
		return err
	}
	return s.closePack(p)
}
