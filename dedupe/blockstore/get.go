package blockstore

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/pack"
)

// kindName is what errors call a kind.
func kindName(k dedupe.Kind) string {
	switch k {
	case dedupe.KindBlock:
		return "block"
	case dedupe.KindNode:
		return "node"
	case dedupe.KindManifest:
		return "manifest"
	case dedupe.KindNote:
		return "note"
	}
	return fmt.Sprintf("kind %d", k)
}

// Get implements dedupe.Store. Blocks and nodes of open batches are found too.
func (s *Store) Get(ctx context.Context, kind dedupe.Kind, d dedupe.Digest, buf []byte) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := s.enter(); err != nil {
		return nil, err
	}
	defer s.leave()
	p, ok, err := s.find(kind, d)
	if err != nil {
		return nil, fmt.Errorf("get %s %v: %w", kindName(kind), d, err)
	}
	if !ok {
		return nil, fmt.Errorf("get %s %v: %w", kindName(kind), d, dedupe.ErrNotFound)
	}
	content, err := s.read(p, kind, d, buf)
	if err != nil {
		return s.readMoved(p, kind, d, buf, err)
	}
	return content, nil
}

// readMoved is for a record that could not be read at p, with err: a collection may
// have moved it meanwhile, or a batch stored it again.
func (s *Store) readMoved(p place, kind dedupe.Kind, d dedupe.Digest, buf []byte, err error) ([]byte, error) {
	for range heldTries {
		again, ok, ferr := s.find(kind, d)
		if ferr != nil || !ok || again.same(p) {
			return nil, err
		}
		var content []byte
		if content, err = s.read(again, kind, d, buf); err == nil {
			return content, nil
		}
		p = again
	}
	return nil, err
}

// find is the place of a block, node or published manifest. Open batches are asked
// first: an entry is in the index before it leaves its batch.
func (s *Store) find(kind dedupe.Kind, d dedupe.Digest) (place, bool, error) {
	if kind < dedupe.KindBlock || kind > dedupe.KindManifest {
		return place{}, false, nil
	}
	if kind != dedupe.KindManifest {
		s.mu.Lock()
		p, ok := s.pendingLocked(kind, d)
		s.mu.Unlock()
		if ok {
			return p, true, nil
		}
	}
	return s.index.lookup(kind, d)
}

// pendingLocked is the place of a block or node of an open batch; mu is held.
func (s *Store) pendingLocked(kind dedupe.Kind, d dedupe.Digest) (place, bool) {
	for b := range s.batches {
		if p, ok := b.pending(kind, d); ok {
			return p, true
		}
	}
	return place{}, false
}

// findBlocks is find of several blocks.
func (s *Store) findBlocks(digests []dedupe.Digest, places []place, ok []bool, errs []error) {
	s.mu.Lock()
	for i, d := range digests {
		places[i], ok[i] = s.pendingLocked(dedupe.KindBlock, d)
	}
	s.mu.Unlock()
	s.index.lookups(digests, places, ok, errs) // after all batches were asked
}

// read returns the verified content of a record.
func (s *Store) read(p place, kind dedupe.Kind, d dedupe.Digest, buf []byte) ([]byte, error) {
	r, err := s.fetch(p, kind, d, buf)
	if err == nil {
		err = checkContent(&r, kind, d)
		if err != nil && p.isPatch() {
			err = s.blame(p, d, err)
		}
	}
	if err != nil {
		if content, ok := s.readCopies(p, kind, d, buf, err); ok {
			return content, nil
		}
	}
	if err = s.counted(p, kind, d, r.pack, err); err != nil {
		return nil, err
	}
	return r.content, nil
}

// counted counts a record that was read. Its errors name the digest and the pack;
// everything that is not what it should be is counted too, unless it has only moved.
func (s *Store) counted(p place, kind dedupe.Kind, d dedupe.Digest, id pack.ID, err error) error {
	s.counts.readBlocks.Add(1)
	if err == nil {
		return nil
	}
	if (errors.Is(err, dedupe.ErrCorrupt) || errors.Is(err, dedupe.ErrNotFound)) && !s.moved(p, kind, d) {
		s.counts.corruptBlocks.Add(1)
		s.suspect.add(entry{kind, d})
	}
	return fmt.Errorf("%s %v in pack %v at %d: %w", kindName(kind), d, id, p.offset, err)
}

// fetched is what stands in a record. Its content was not compared with the digest:
// nobody else may see it before that.
type fetched struct {
	content  []byte
	level    uint8
	digester dedupe.Digester // of its domain
	pack     pack.ID
}

// fetch reads a record and decodes it. The pack is known with an error too.
func (s *Store) fetch(p place, kind dedupe.Kind, d dedupe.Digest, buf []byte) (r fetched, err error) {
	if p.isPatch() {
		err = s.fetchPatch(&r, p, d, buf, 0)
		return r, err
	}
	var f *cachedFile
	if f, r.pack, err = s.openPackFile(p.pack); err != nil {
		return r, err
	}
	defer s.files.release(f)
	err = s.fetchFrom(&r, f.f, p, kind, d, buf)
	return r, err
}

// fetchFrom is fetch from one copy of the pack.
func (s *Store) fetchFrom(r *fetched, f *os.File, p place, kind dedupe.Kind, d dedupe.Digest, buf []byte) error {
	if ok, err := s.fetchRaw(r, f, p, kind, d, buf); ok {
		return err
	}
	scratch := s.codec.buffer(int(p.stored))
	defer s.codec.put(scratch)
	rec, _, grown, err := pack.ReadRecord(f, int64(p.offset), p.stored, *scratch)
	*scratch = grown
	if err != nil {
		return err
	}
	if err := s.checkRecord(&rec, p, kind, d); err != nil {
		return err
	}
	r.level = rec.Level
	if r.digester, err = s.digester(&rec); err != nil {
		return err
	}
	payload, err := s.payload(&rec, grown, buf)
	if err != nil {
		return err
	}
	r.content, err = s.codec.decode(&rec, payload, buf)
	return err
}

// checkContent compares what was fetched with its digest.
func checkContent(r *fetched, kind dedupe.Kind, d dedupe.Digest) error {
	return checkSum(r.digester, kind, r.level, r.content, d)
}

// checkSum compares content with its digest.
func checkSum(g dedupe.Digester, kind dedupe.Kind, level uint8, content []byte, d dedupe.Digest) error {
	sum, err := pack.Sum(g, kind, level, content)
	if err != nil {
		return err
	}
	return compareSum(sum, d)
}

func compareSum(sum, d dedupe.Digest) error {
	if sum != d {
		return fmt.Errorf("content has digest %v: %w", sum, dedupe.ErrCorrupt)
	}
	return nil
}

// fetchRaw reads a record straight into buf when its payload is as long as its
// content, and so is the content, if there is room. The digest will say all that the
// payload's CRC would, which is not computed. Not ok: it is no such record.
func (s *Store) fetchRaw(r *fetched, f *os.File, p place, kind dedupe.Kind, d dedupe.Digest, buf []byte) (ok bool, err error) {
	want := s.contentSize(kind)
	head := int(p.stored) - want
	if want == 0 || head != 0 && (kind != dedupe.KindBlock || head != pack.ListLength(want, pack.CipherNone)) || cap(buf) < want {
		return false, nil
	}
	list := s.codec.buffer(head)
	defer s.codec.put(list)
	rec, err := pack.ReadRawRecord(f, int64(p.offset), (*list)[:head], buf[:want])
	if err != nil {
		return true, err
	}
	if rec.Codec != pack.CodecRaw || rec.Cipher != pack.CipherNone || rec.Encoding != pack.EncodingWhole || int(rec.HeadLength) != head {
		return false, nil
	}
	r.content, r.level = buf[:want], rec.Level
	if err := s.checkRecord(&rec, p, kind, d); err != nil {
		return true, err
	}
	if r.digester, err = s.digester(&rec); err == nil && rec.HasGrainList {
		err = checkList(r.digester, make([]dedupe.Digest, want/pack.GrainSize), (*list)[:head], d)
	}
	return true, err
}

// checkRecord compares a record's header with what the index says of it.
func (s *Store) checkRecord(rec *pack.Record, p place, kind dedupe.Kind, d dedupe.Digest) error {
	if rec.Kind != kind || rec.Digest != d || rec.StoredLength != p.stored {
		return fmt.Errorf("record there is %s %v: %w", kindName(rec.Kind), rec.Digest, dedupe.ErrCorrupt)
	}
	if want := s.contentSize(kind); want != 0 && int(rec.LogicalLength) != want {
		return fmt.Errorf("content of %d bytes, want %d: %w", rec.LogicalLength, want, dedupe.ErrCorrupt)
	}
	return nil
}

// contentSize is the length of every content of a kind, or 0 when it varies.
func (s *Store) contentSize(kind dedupe.Kind) int {
	switch kind {
	case dedupe.KindBlock:
		return s.sb.BlockSize
	case dedupe.KindNode:
		return pack.NodeSize
	}
	return 0
}

// openPackFile opens a pack for reading; s.files.release must follow. A pack whose
// file is missing is dedupe.ErrNotFound: its records are absent.
func (s *Store) openPackFile(number uint32) (*cachedFile, pack.ID, error) {
	f, id, err := s.acquirePack(number)
	if err == nil && s.missing.any.Load() {
		s.healMissing()
	}
	return f, id, err
}

func (s *Store) acquirePack(number uint32) (*cachedFile, pack.ID, error) {
	return s.files.acquire(number, func() (*os.File, pack.ID, error) {
		row, ok, err := s.packRow(number)
		if err != nil {
			return nil, row.id, err
		}
		if !ok {
			return nil, row.id, fmt.Errorf("pack number %d is not in the index: %w", number, dedupe.ErrNotFound)
		}
		f, whole, err := s.packs.OpenRead(row.id)
		if err == nil && !whole && row.state == packSealed {
			s.missing.add(row)
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil, row.id, fmt.Errorf("pack is missing: %w", dedupe.ErrNotFound)
		}
		return f, row.id, err
	})
}

// packRow is a pack's row, also of one that is only in an open batch.
func (s *Store) packRow(number uint32) (packRow, bool, error) {
	if p := s.writing.find(number); p != nil {
		return packRow{number: number, id: p.id, class: p.class, state: packOpen}, true, nil
	}
	return s.index.pack(number)
}

func (s *Store) packPath(id pack.ID) string { return s.packs.Path(id) }

// Locate says where a block, node or published manifest is stored: the path of its
// pack, the offset of its record there, and the record's length with its header. Of a
// patch the record is the bundle, and the length its share of it: the sum over all that
// is stored is what the records take.
func (s *Store) Locate(d dedupe.Digest) (path string, off, length int64, err error) {
	if err := s.enter(); err != nil {
		return "", 0, 0, err
	}
	defer s.leave()
	for _, kind := range []dedupe.Kind{dedupe.KindBlock, dedupe.KindNode, dedupe.KindManifest} {
		p, ok, err := s.find(kind, d)
		if err != nil {
			return "", 0, 0, fmt.Errorf("locate %v: %w", d, err)
		}
		if !ok {
			continue
		}
		row, ok, err := s.packRow(p.pack)
		for tries := 0; err == nil && !ok && s.moved(p, kind, d) && tries < heldTries; tries++ {
			if p, _, err = s.find(kind, d); err == nil {
				row, ok, err = s.packRow(p.pack)
			}
		}
		if err != nil || !ok {
			return "", 0, 0, fmt.Errorf("locate %v: pack number %d: %w", d, p.pack, errors.Join(err, dedupe.ErrNotFound))
		}
		return s.packPath(row.id), int64(p.offset), p.account(), nil
	}
	return "", 0, 0, fmt.Errorf("locate %v: %w", d, dedupe.ErrNotFound)
}

// Measure is what the record of a block, node or published manifest takes in its pack, as
// Locate has it, and whether it is a patch.
func (s *Store) Measure(kind dedupe.Kind, d dedupe.Digest) (length int64, patch bool, err error) {
	if err := s.enter(); err != nil {
		return 0, false, err
	}
	defer s.leave()
	p, ok, err := s.find(kind, d)
	if err == nil && !ok {
		err = dedupe.ErrNotFound
	}
	if err != nil {
		return 0, false, fmt.Errorf("measure %s %v: %w", kindName(kind), d, err)
	}
	return p.account(), p.isPatch(), nil
}

// Base is the block that a block is made of, when it is stored as a patch; not ok when it
// is stored whole, or over zeros, or not at all. Whatever needs the block needs its base.
func (s *Store) Base(d dedupe.Digest) (base dedupe.Digest, ok bool, err error) {
	if err := s.enter(); err != nil {
		return base, false, err
	}
	defer s.leave()
	p, ok, err := s.find(dedupe.KindBlock, d)
	if err != nil {
		return base, false, fmt.Errorf("base of block %v: %w", d, err)
	}
	return p.base, ok && p.hasBase(), nil
}

// errStop ends a scan of the index early.
var errStop = errors.New("stop")

// Manifests implements dedupe.Store.
func (s *Store) Manifests(ctx context.Context, yield func(dedupe.Digest) bool) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.leave()
	err := s.index.scan(prefixManifest, func(key, _ []byte) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		if len(key) != 1+dedupe.DigestSize {
			return fmt.Errorf("index key %x: %w", key, dedupe.ErrCorrupt)
		}
		if !yield(dedupe.Digest(key[1:])) {
			return errStop
		}
		return nil
	})
	if err != nil && !errors.Is(err, errStop) {
		return fmt.Errorf("list manifests: %w", err)
	}
	return nil
}

// Notes implements dedupe.Store. Notes that do not verify are left out, and the listing
// is dedupe.ErrCorrupt at its end: a deletion or a hold may be among them.
func (s *Store) Notes(ctx context.Context, yield func(dedupe.Note) bool) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.leave()
	var damage error // the first
	err := s.index.scan(prefixNote, func(key, val []byte) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := s.readNote(key, val)
		if errors.Is(err, errNoteGone) {
			return nil
		}
		if errors.Is(err, dedupe.ErrCorrupt) || errors.Is(err, dedupe.ErrNoKey) {
			damage = cmp.Or(damage, err)
			return nil
		}
		if err != nil {
			return err
		}
		if !yield(n) {
			return errStop
		}
		return nil
	})
	if errors.Is(err, errStop) {
		err, damage = nil, nil
	}
	if err = cmp.Or(err, damage); err != nil {
		return fmt.Errorf("list notes: %w", err)
	}
	return nil
}

// errNoteGone: the note was collected while notes were listed.
var errNoteGone = errors.New("note is gone")

func (s *Store) readNote(key, val []byte) (dedupe.Note, error) {
	if len(key) != 9 || len(val) != placeSize+dedupe.DigestSize {
		return dedupe.Note{}, fmt.Errorf("index entry of note %x: %w", key, dedupe.ErrCorrupt)
	}
	p, err := decodePlace(val)
	if err != nil {
		return dedupe.Note{}, err
	}
	content, err := s.read(p, dedupe.KindNote, dedupe.Digest(val[placeSize:]), nil)
	if err != nil {
		// The listing is of one instant; a collection may have moved the note since.
		now, gerr := s.index.get(key)
		switch {
		case gerr == nil && now == nil:
			return dedupe.Note{}, errNoteGone
		case gerr == nil && string(now) != string(val):
			return s.readNote(key, now)
		}
		return dedupe.Note{}, err
	}
	n, err := pack.DecodeNote(content)
	if err == nil && n.Sequence != binary.BigEndian.Uint64(key[1:]) {
		err = fmt.Errorf("note %d where %d should be: %w", n.Sequence, binary.BigEndian.Uint64(key[1:]), dedupe.ErrCorrupt)
	}
	return n, err
}
