package blockstore

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"

	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/pack"
	"github.com/keelblock/keelblock/dedupe/packdir"
)

// content is what a pack's footer, or else its records, say.
type content struct {
	header  pack.Header
	entries []pack.Entry
	sealed  bool
	end     int64 // behind the last record that verifies; sealed: the file's size
	size    int64 // of the file
	// problem says why a sealed pack had to be scanned, or a header is not readable.
	problem error
}

// readContent reads what a pack holds: its footer when it is sealed, else its
// records up to the first that does not verify. With a damaged footer the records
// are read. With a damaged header the records count if they verify, under the id of
// the file's name. A pack of another vault is dedupe.ErrCorrupt: its blocks would
// verify, but its recovery points are not this vault's.
func (s *Store) readContent(f *os.File, id pack.ID) (*content, error) {
	c, err := readContent(f, id)
	if err == nil && c.header.Vault != s.sb.Vault && c.header.Vault != (pack.VaultID{}) {
		return nil, fmt.Errorf("pack is of vault %x: %w", c.header.Vault, dedupe.ErrCorrupt)
	}
	return c, err
}

func readContent(f *os.File, id pack.ID) (*content, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	c := &content{size: st.Size()}
	footer, err := pack.ReadFooter(f, c.size)
	switch {
	case err == nil && footer.Header.ID == id:
		c.header, c.entries, c.sealed, c.end = footer.Header, footer.Entries, true, c.size
		return c, nil
	case err == nil:
		return nil, fmt.Errorf("footer is of pack %v: %w", footer.Header.ID, dedupe.ErrCorrupt)
	case errors.Is(err, dedupe.ErrUnknownFormat):
		return nil, err
	case !errors.Is(err, pack.ErrNotSealed) && !errors.Is(err, dedupe.ErrCorrupt):
		return nil, err
	case errors.Is(err, dedupe.ErrCorrupt):
		c.problem = err
	}
	return c, c.scan(f, id)
}

// errHeader marks a problem with a pack's header alone.
var errHeader = errors.New("pack header")

// scan fills in a pack that has no footer, or a damaged one.
func (c *content) scan(f *os.File, id pack.ID) error {
	var err error
	c.header, err = pack.ReadHeader(f)
	switch {
	case errors.Is(err, dedupe.ErrUnknownFormat):
		return err
	case errors.Is(err, dedupe.ErrCorrupt):
		c.problem = cmp.Or(c.problem, fmt.Errorf("%w: %w", errHeader, err))
		c.header = pack.Header{ID: id}
	case err != nil:
		return err
	case c.header.ID != id:
		return fmt.Errorf("header is of pack %v: %w", c.header.ID, dedupe.ErrCorrupt)
	}
	classes := []pack.Class{c.header.Class}
	if c.header.Class == 0 { // its first record tells
		classes = []pack.Class{pack.ClassData, pack.ClassMetadata}
	}
	for _, class := range classes {
		c.header.Class = class
		c.entries = c.entries[:0]
		scan := pack.Scan
		if c.problem != nil && !errors.Is(c.problem, errHeader) {
			scan = pack.ScanDamaged // it had a trailer, so it was written to its end
		}
		c.end, err = scan(f, c.size, class, func(e pack.Entry, _ []byte) error {
			if len(c.entries) == pack.MaxEntries {
				return fmt.Errorf("more than %d records: %w", pack.MaxEntries, dedupe.ErrCorrupt)
			}
			c.entries = append(c.entries, e)
			return nil
		})
		if err != nil || len(c.entries) > 0 {
			return err
		}
	}
	return nil
}

// publications reads the publications among a pack's entries.
func (s *Store) publications(f *os.File, entries []pack.Entry) ([]foundPublication, error) {
	var found []foundPublication
	for i := range entries {
		e := &entries[i]
		if e.Kind != pack.KindPublication {
			continue
		}
		b, err := s.entryContent(f, e)
		if err != nil {
			return found, fmt.Errorf("publication %v at %d: %w", e.Digest, e.Offset, err)
		}
		pub, err := pack.DecodePublication(b)
		if err != nil {
			return found, fmt.Errorf("publication %v at %d: %w", e.Digest, e.Offset, err)
		}
		found = append(found, foundPublication{digest: e.Digest, pub: pub})
	}
	return found, nil
}

// foundPublication is a publication read back from a pack.
type foundPublication struct {
	digest dedupe.Digest
	pub    *pack.Publication
}

// entryContent is the verified content of an entry that is not a node.
func (s *Store) entryContent(f io.ReaderAt, e *pack.Entry) ([]byte, error) {
	rec, payload, _, err := pack.ReadRecord(f, e.Offset, e.StoredLength, nil)
	if err != nil {
		return nil, err
	}
	if rec.Cipher != pack.CipherNone {
		return nil, fmt.Errorf("%s with cipher %d: %w", kindName(rec.Kind), rec.Cipher, dedupe.ErrUnknownFormat)
	}
	b, err := s.codec.decode(&rec, payload, nil)
	if err != nil {
		return nil, err
	}
	if rec.Kind != e.Kind || dedupe.Sum(b) != e.Digest {
		return nil, fmt.Errorf("content is not that of %v: %w", e.Digest, dedupe.ErrCorrupt)
	}
	return b, nil
}

// effective are the publications that count, in order: the newest checkpoint that is
// complete, and what was published after it and not cancelled.
func effective(found []foundPublication) []*pack.Publication {
	cancelled := make(map[dedupe.Digest]bool)
	for _, f := range found {
		if f.pub.Cancel {
			for _, d := range f.pub.Manifests {
				cancelled[d] = true
			}
		}
	}
	list := newestCheckpoint(found)
	var until uint64 // what was published up to this serial stands in the checkpoint
	if len(list) > 0 {
		until = list[0].Serial
	}
	for _, f := range found {
		if !f.pub.Cancel && !f.pub.Checkpoint && !cancelled[f.digest] && f.pub.Serial > until {
			list = append(list, f.pub)
		}
	}
	slices.SortStableFunc(list, func(a, b *pack.Publication) int { return cmp.Compare(a.Serial, b.Serial) })
	return list
}

// newestCheckpoint is the parts of the newest checkpoint of which all are there.
func newestCheckpoint(found []foundPublication) []*pack.Publication {
	parts := make(map[uint64]map[uint16]*pack.Publication) // by serial and number
	var newest uint64
	for _, f := range found {
		p := f.pub
		if !p.Checkpoint {
			continue
		}
		if parts[p.Serial] == nil {
			parts[p.Serial] = make(map[uint16]*pack.Publication)
		}
		parts[p.Serial][p.Part] = p // of two copies, either
		if len(parts[p.Serial]) == int(p.Parts) {
			newest = max(newest, p.Serial)
		}
	}
	list := make([]*pack.Publication, 0, len(parts[newest]))
	for _, p := range parts[newest] {
		list = append(list, p)
	}
	return list
}

// packIDs are the packs in the vault's folder, in order of their ids.
func (s *Store) packIDs() ([]pack.ID, error) { return s.packs.List() }

// recover finishes after an unclean stop. Packs that the index does not know as
// sealed are read: what verifies is entered, where the last record ends the pack is
// sealed, and publications that the index has not seen are applied. What was only
// half there is gone. Packs that a collection was removing go, so that all locations
// have the same ones. Running it again after a kill in its midst is harmless.
func (s *Store) recover() error {
	if err := s.removeDropped(); err != nil {
		return err
	}
	ids, err := s.packIDs()
	if err != nil {
		return err
	}
	var found []foundPublication
	var metaEntries []recoveredEntry
	var patches patchedPacks
	var done []packRow
	for _, id := range ids {
		row, known, err := s.index.packByID(id)
		if err != nil {
			return err
		}
		if known && row.state != packOpen {
			continue
		}
		if !known {
			row = packRow{id: id}
		}
		pubs, entries, err := s.recoverPack(&row, known, &patches)
		if err != nil {
			return fmt.Errorf("pack %v: %w", id, err)
		}
		if row.state == packSealed || row.state == packRetired {
			done = append(done, row)
		}
		found = append(found, pubs...)
		metaEntries = append(metaEntries, entries...)
	}
	if err := patches.enter(func(p *patchedPack, depth uint8) error {
		return s.index.addFound(p.row, p.entries, depth, &finding{intact: s.isIntact})
	}); err != nil {
		return err
	}
	places := make(map[dedupe.Digest]recoveredEntry, len(metaEntries))
	for _, e := range metaEntries {
		places[e.digest] = e
	}
	for _, pub := range effective(found) {
		if serial, _ := s.nextPublication(); pub.Serial < serial {
			continue // the index knows it
		}
		if err := s.findListed(pub, places); err != nil {
			return err
		}
		if err := s.republish(pub, places); err != nil {
			return err
		}
	}
	return s.recovered(done, found)
}

// recovered ends a recovery: packs that are done need no reading any more. Until then the index
// has those packs as open, so that a recovery that is cut off begins with all of them again:
// what one of them publishes may stand in another. No serial is used twice, whatever became
// of its commit.
func (s *Store) recovered(done []packRow, found []foundPublication) error {
	if len(done)+len(found) == 0 {
		return nil
	}
	return s.index.update(func(c *change) error {
		for _, row := range done {
			if err := c.setPack(row); err != nil {
				return err
			}
		}
		c.useSerials(found)
		return nil
	})
}

// useSerials lets what comes later have other serials than publications that were found,
// cancelled ones included.
func (c *change) useSerials(found []foundPublication) {
	for _, f := range found {
		c.m.nextSerial = max(c.m.nextSerial, f.pub.Serial+1)
	}
}

// removeDropped removes the packs that a collection was removing when it was cut off.
func (s *Store) removeDropped() error {
	var left []packRow
	err := s.index.scan(prefixPack, func(key, val []byte) error {
		if len(key) != 5 {
			return fmt.Errorf("index key %x: %w", key, dedupe.ErrCorrupt)
		}
		row, err := decodePackRow(binary.BigEndian.Uint32(key[1:]), val)
		if err == nil && row.state == packDropped {
			left = append(left, row)
		}
		return err
	})
	if err != nil || len(left) == 0 {
		return err
	}
	return s.removePacks(left)
}

// findListed looks in the sealed packs for what a publication lists and was not
// found in the others: its commit filled a metadata pack.
func (s *Store) findListed(pub *pack.Publication, places map[dedupe.Digest]recoveredEntry) error {
	missing := make(map[dedupe.Digest]bool)
	for _, d := range slices.Concat(pub.Manifests, pub.Notes) {
		if _, ok := places[d]; !ok {
			missing[d] = true
		}
	}
	if len(missing) == 0 {
		return nil
	}
	ids, err := s.packIDs()
	if err != nil {
		return err
	}
	for _, id := range ids {
		row, known, err := s.index.packByID(id)
		if err != nil {
			return err
		}
		if !known || row.class != pack.ClassMetadata {
			continue
		}
		f, c, err := s.openContent(id, true)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if c == nil {
			continue
		}
		_ = f.Close() // only read
		for _, e := range publishedEntries(row.number, c.entries) {
			if missing[e.digest] {
				places[e.digest] = e
			}
		}
	}
	return nil
}

// recoveredEntry is a manifest or note found in a pack.
type recoveredEntry struct {
	kind   dedupe.Kind
	digest dedupe.Digest
	place  place
}

// patchedPack is a pack with patches, which are entered after all whole blocks.
type patchedPack struct {
	row     packRow
	depths  uint32       // as patchDepths
	entries []pack.Entry // its bundles, unless they are read again
}

type patchedPacks []patchedPack

// add notes a pack that has patches; entries are kept unless it is read again.
func (l *patchedPacks) add(row packRow, entries []pack.Entry, again bool) {
	p := patchedPack{row: row, depths: patchDepths(entries)}
	if p.depths == 0 {
		return
	}
	if !again {
		p.entries = entries
	}
	*l = append(*l, p)
}

// enter calls fn for each depth from 1 and each pack that has patches of it.
func (l patchedPacks) enter(fn func(p *patchedPack, depth uint8) error) error {
	for depth := uint8(1); depth <= pack.MaxPatchDepth; depth++ {
		for i := range l {
			if l[i].depths&(1<<depth) == 0 {
				continue
			}
			if err := fn(&l[i], depth); err != nil {
				return fmt.Errorf("pack %v: %w", l[i].row.id, err)
			}
		}
	}
	return nil
}

// isIntact reports whether the record of an index entry, or the bundle of a patch, is there
// and its checksums are right, which can be said without a key.
func (s *Store) isIntact(r indexRow) bool {
	f, _, err := s.openPackFile(r.place.pack)
	if err != nil {
		return false
	}
	defer s.files.release(f)
	buf := s.codec.buffer(int(r.place.stored))
	defer s.codec.put(buf)
	rec, payload, grown, err := pack.ReadRecord(f.f, int64(r.place.offset), r.place.stored, *buf)
	*buf = grown
	if err != nil || !r.place.isPatch() {
		return err == nil && rec.Kind == r.kind && rec.Digest == r.digest
	}
	bu, err := pack.BundleOf(&rec, payload)
	slot := int(r.place.slot)
	return err == nil && slot < len(bu.Members) && bu.Members[slot].Digest == r.digest && bu.Members[slot].Base == r.place.base
}

// recoverPack reads one pack that was open, seals it and enters its records; that it is
// sealed is left to recovered. Of its patches it only takes note.
func (s *Store) recoverPack(row *packRow, known bool, patches *patchedPacks) ([]foundPublication, []recoveredEntry, error) {
	copies := s.packs.Copies(row.id)
	defer packdir.CloseCopies(copies)
	best, c, err := s.bestCopy(copies, row.id)
	if err != nil || best < 0 { // another pack under this name is never touched
		return nil, nil, err
	}
	if !copies[best].In { // only a location that is out has it: first there are copies again
		if err := s.equalize(copies, best); err != nil {
			return nil, nil, err
		}
		return s.recoverPack(row, known, patches)
	}
	f := copies[best].File
	if !known && len(c.entries) == 0 && c.problem == nil || !known && c.isBlank(f) {
		s.log.Info("removed an empty pack after an unclean stop", "vault", s.dir, "pack", row.id.String())
		return nil, nil, s.packs.Remove(row.id)
	}
	if !known {
		if row.number, err = s.index.numberPack(); err != nil {
			return nil, nil, err
		}
	}
	row.class = c.header.Class
	if err := s.sealCopies(copies, best, row, c); err != nil {
		return nil, nil, err
	}
	now := *row
	now.state = packOpen
	// Epoch 0: nothing is believed before it was read back.
	if err := s.index.addFound(now, c.entries, 0, &finding{intact: s.isIntact}); err != nil {
		return nil, nil, err
	}
	patches.add(now, slices.DeleteFunc(slices.Clone(c.entries), func(e pack.Entry) bool { return e.Kind != pack.KindBundle }), false)
	pubs, err := s.publications(f, c.entries)
	if err != nil {
		return nil, nil, err
	}
	return pubs, publishedEntries(row.number, c.entries), nil
}

// sealCopies seals the best copy and makes the others equal to it. Only then the index
// knows the pack as sealed, so that a kill in between ends here again.
func (s *Store) sealCopies(copies []packdir.Copy, best int, row *packRow, c *content) error {
	w, err := s.packs.Write(copies[best])
	if err != nil {
		return err
	}
	err = s.sealRecovered(w, row, c)
	if err = errors.Join(err, w.Close()); err != nil || row.state != packSealed {
		return err // of a damaged pack each copy stays as it is: together they may be whole
	}
	return s.equalize(copies, best)
}

// publishedEntries are the manifests and notes of a pack.
func publishedEntries(number uint32, entries []pack.Entry) []recoveredEntry {
	var list []recoveredEntry
	for i := range entries {
		if e := &entries[i]; e.Kind == dedupe.KindManifest || e.Kind == dedupe.KindNote {
			list = append(list, recoveredEntry{e.Kind, e.Digest, placeOf(number, 0, e)})
		}
	}
	return list
}

// isBlank reports whether a pack never got its header: its file is empty or zeros.
func (c *content) isBlank(f *os.File) bool {
	b := make([]byte, min(c.size, pack.HeaderSize+pack.RecordHeaderSize))
	if _, err := f.ReadAt(b, 0); err != nil {
		return false
	}
	return !slices.ContainsFunc(b, func(x byte) bool { return x != 0 })
}

// sealRecovered seals a half-written pack where its records end. A pack that is
// damaged below what the index knows as durable is never cut: it is retired as it
// is, and whatever verifies in it stays readable.
func (s *Store) sealRecovered(f pack.File, row *packRow, c *content) error {
	switch {
	case c.sealed: // but maybe in the page cache only: who sealed it was killed before the sync
		row.state, row.end = packSealed, c.size
		return f.Sync()
	case c.end < row.end || c.problem != nil:
		s.log.Error("pack is damaged below its committed end; verify shows what is lost", "vault", s.dir,
			"pack", row.id.String(), "readable", c.end, "committed", row.end, "err", c.problem)
		row.state, row.end = packRetired, max(row.end, c.end)
		return f.Sync()
	}
	size, err := pack.SealFile(f, c.header, c.entries, c.end)
	if err != nil {
		return err
	}
	s.log.Info("sealed a pack after an unclean stop", "vault", s.dir, "pack", row.id.String(),
		"records", len(c.entries), "cut_bytes", max(0, c.size-c.end))
	row.state, row.end = packSealed, size
	return nil
}

// republish applies a publication. A manifest or note that it lists and that no pack
// holds any more was damaged: it is reported, and the others are published.
func (s *Store) republish(pub *pack.Publication, places map[dedupe.Digest]recoveredEntry) error {
	published := make([]publishedRecord, 0, len(pub.Manifests)+len(pub.Notes))
	var lost []lostNote
	list := func(kind dedupe.Kind, d dedupe.Digest, sequence uint64) {
		e, ok := places[d]
		if !ok || e.kind != kind {
			s.log.Error("what a commit published is not in any pack", "vault", s.dir, "serial", pub.Serial,
				"kind", kindName(kind), "digest", d.String())
			if kind == dedupe.KindNote {
				lost = append(lost, lostNote{sequence: sequence, digest: d})
			}
			return
		}
		published = append(published, publishedRecord{kind: kind, digest: d, place: e.place, sequence: sequence})
	}
	for _, d := range pub.Manifests {
		list(dedupe.KindManifest, d, 0)
	}
	for i, d := range pub.Notes {
		list(dedupe.KindNote, d, pub.Sequence(i))
	}
	return s.index.update(func(c *change) error {
		for _, n := range lost {
			if err := c.setLost(n); err != nil {
				return err
			}
		}
		return c.publish(pub, published)
	})
}

// lostNote was published, and is in no pack. It has an entry without a place, so that
// Notes goes on to say that a note cannot be read: it may have been a hold, or a lock,
// and a rebuild of the index must not end it.
type lostNote struct {
	sequence uint64
	digest   dedupe.Digest
}

func (c *change) setLost(n lostNote) error {
	return c.set(noteKey(n.sequence), append(make([]byte, placeSize), n.digest[:]...))
}
