package blockstore

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/pack"
	"github.com/keelblock/keelblock/dedupe/packdir"
)

// Locations is the state of each folder that keeps packs, the vault's own first. It
// lists the folders.
func (s *Store) Locations() []packdir.State { return s.packs.States() }

// CheckLocations marks out the locations whose folder has gone, or became another one,
// and reports whether RepairLocations has something to do.
func (s *Store) CheckLocations() (repairable bool, err error) {
	if err := s.enter(); err != nil {
		return false, err
	}
	defer s.leave()
	if s.packs.Len() == 1 {
		return false, nil
	}
	err = s.packs.CheckPresence()
	return len(s.packs.Repairable()) > 0, err
}

// bestCopy is the copy that holds most of a pack, by its number, with what it holds. Of
// a sealed pack it is the first that is whole; of another one the one whose records
// verify farthest: all of them have what was acknowledged, so what is longer is only
// more. Copies of locations that are out count when no other can be read. -1: there is
// none, or it is no pack of this vault.
func (s *Store) bestCopy(copies []packdir.Copy, id pack.ID) (int, *content, error) {
	best, have := -1, (*content)(nil)
	var failed error
	for _, in := range []bool{true, false} {
		for i, c := range copies {
			if c.File == nil || c.In != in {
				continue
			}
			k, err := s.readContent(c.File, id)
			switch {
			case errors.Is(err, dedupe.ErrCorrupt):
				s.log.Error("not a pack of this vault, left alone", "vault", s.dir, "file", c.Path, "err", err)
				continue
			case errors.Is(err, dedupe.ErrUnknownFormat):
				return -1, nil, err
			case err != nil:
				failed = err
				if err := s.copyFailed(c, err); err != nil {
					return -1, nil, err
				}
				continue
			}
			if k.sealed && k.problem == nil {
				return i, k, nil
			}
			if best < 0 || better(k, have) {
				best, have = i, k
			}
		}
		if best >= 0 {
			return best, have, nil
		}
	}
	return -1, nil, failed
}

func better(a, b *content) bool {
	if (a.problem == nil) != (b.problem == nil) && a.end >= b.end {
		return a.problem == nil
	}
	return a.end > b.end
}

// copyFailed is for a copy that cannot be read or written, as a file: its location is
// out. The error is that there is no other.
func (s *Store) copyFailed(c packdir.Copy, cause error) error {
	if s.packs.Len() == 1 || s.o.ReadOnly || !c.In {
		return cause
	}
	return s.packs.Fail(c, cause)
}

// equalize makes every copy of a pack equal to one of them, durably: one that is equal may
// be so in the page cache only.
func (s *Store) equalize(copies []packdir.Copy, best int) error {
	for i, c := range copies {
		if i == best || !c.In {
			continue
		}
		if c.File != nil && equal(c.File, copies[best].File) {
			if err := s.syncCopy(c); err != nil {
				return err
			}
			continue
		}
		if err := s.packs.Replace(c, copies[best], nil); err != nil {
			if err := s.copyFailed(c, err); err != nil {
				return err
			}
			continue
		}
		s.log.Info("copy of a pack is made equal to the longest one", "file", c.Path)
	}
	return nil
}

// syncCopy makes a copy durable, or takes its location out.
func (s *Store) syncCopy(c packdir.Copy) error {
	if err := s.packs.Sync(c); err != nil {
		return s.copyFailed(c, err)
	}
	return nil
}

// settle makes a pack durable at every location, before a new index names what stands in
// it: who wrote it may have been killed before that. One that was not sealed is sealed where
// its records end if nothing was written behind them. If something was, it may be the rest of
// a record that is damaged, and more: then the pack stays as it is.
func (s *Store) settle(id pack.ID) error {
	copies := s.packs.Copies(id)
	defer packdir.CloseCopies(copies)
	best, c, err := s.bestCopy(copies, id)
	if err != nil || best < 0 {
		return err
	}
	if !c.sealed && c.problem == nil && copies[best].In && len(c.entries) > 0 && endAt(copies, c.end) {
		return s.sealCopies(copies, best, &packRow{id: id}, c)
	}
	for _, c := range copies {
		if c.In && c.File != nil {
			if err := s.syncCopy(c); err != nil {
				return err
			}
		}
	}
	return nil
}

// endAt reports whether no copy has anything but zeros, allocated beforehand, from an
// offset on.
func endAt(copies []packdir.Copy, end int64) bool {
	buf := make([]byte, 64<<10)
	for _, c := range copies {
		if c.File == nil {
			continue
		}
		for off := end; ; {
			n, err := c.File.ReadAt(buf, off)
			if slices.ContainsFunc(buf[:n], func(b byte) bool { return b != 0 }) {
				return false
			}
			if off += int64(n); errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return false
			}
		}
	}
	return true
}

// readCopies reads a record that did not verify, for the reason given, from another
// copy of its pack, and heals the copies that are damaged there.
func (s *Store) readCopies(p place, kind dedupe.Kind, d dedupe.Digest, buf []byte, cause error) ([]byte, bool) {
	if s.packs.Len() == 1 {
		return nil, false
	}
	if p.isPatch() {
		return s.readHealed(p, kind, d, buf, cause)
	}
	row, ok, err := s.packRow(p.pack)
	if err != nil || !ok {
		return nil, false
	}
	copies := s.packs.Copies(row.id)
	defer packdir.CloseCopies(copies)
	for i, c := range copies {
		if c.File == nil {
			continue
		}
		var r fetched
		if err := s.fetchFrom(&r, c.File, p, kind, d, buf); err != nil || checkContent(&r, kind, d) != nil {
			continue
		}
		s.counts.readBlocks.Add(1)
		s.counts.repairedBlocks.Add(1)
		s.log.Warn("record is read from another copy", "kind", kindName(kind), "digest", d.String(), "file", c.Path, "err", cause)
		s.healRecord(row, copies, i, p)
		return r.content, true
	}
	return nil, false
}

// readHealed is readCopies for a patch: what is damaged may be in any of the packs that
// it and its bases are in, so all of them are healed, and it is read again.
func (s *Store) readHealed(p place, kind dedupe.Kind, d dedupe.Digest, buf []byte, cause error) ([]byte, bool) {
	if s.o.ReadOnly {
		return nil, false
	}
	s.healing.Lock()
	for at, depth := p, 0; depth <= pack.MaxPatchDepth; depth++ {
		if row, ok, err := s.packRow(at.pack); err == nil && ok && row.state == packSealed {
			if _, err := s.healPack(row); err != nil {
				s.log.Error("damaged copy of a pack stays", "pack", row.id.String(), "err", err)
			}
		}
		if !at.isPatch() {
			break
		}
		s.bundles.drop(bundleKey{at.pack, at.offset}) // read before it was healed
		if !at.hasBase() {
			break
		}
		base, ok, err := s.find(kind, at.base)
		if err != nil || !ok {
			break
		}
		at = base
	}
	s.healing.Unlock()
	r, err := s.fetch(p, kind, d, buf)
	if err != nil || checkContent(&r, kind, d) != nil {
		return nil, false
	}
	s.counts.readBlocks.Add(1)
	s.counts.repairedBlocks.Add(1)
	s.log.Warn("block is read after its packs were healed", "digest", d.String(), "err", cause)
	return r.content, true
}

// healRecord writes a record that verifies in one copy into the others that differ
// there. A pack that is still written is left alone until it is sealed. When copies are
// being healed already, this one waits for the next reader or verification.
func (s *Store) healRecord(row packRow, copies []packdir.Copy, good int, p place) {
	if s.o.ReadOnly || row.state != packSealed || !s.healing.TryLock() {
		return
	}
	defer s.healing.Unlock()
	raw := packdir.Patch{Off: int64(p.offset), Bytes: make([]byte, p.size())}
	if _, err := copies[good].File.ReadAt(raw.Bytes, raw.Off); err != nil {
		return // the next reader tries again
	}
	for i, c := range copies {
		if i == good || !c.In || c.File != nil && holds(c.File, raw) {
			continue
		}
		if c.File != nil {
			err := s.packs.Rewrite(c, raw)
			if err == nil {
				s.log.Warn("damaged record is written again", "file", c.Path, "offset", raw.Off, "bytes", len(raw.Bytes))
				continue
			}
			s.log.Error("damaged record cannot be written again in its place", "file", c.Path, "err", err)
		}
		if _, err := s.healPack(row); err != nil {
			s.log.Error("damaged copy of a pack stays", "pack", row.id.String(), "err", err)
		}
		return // of all copies
	}
}

func holds(f *os.File, p packdir.Patch) bool {
	got := make([]byte, len(p.Bytes))
	_, err := f.ReadAt(got, p.Off)
	return err == nil && bytes.Equal(got, p.Bytes)
}

// missingPacks are sealed packs that a reader found missing at a location.
type missingPacks struct {
	any atomic.Bool
	mu  sync.Mutex
	m   map[pack.ID]packRow
}

// maxMissing bounds missingPacks: a repair finds the others.
const maxMissing = 1024

func (t *missingPacks) add(row packRow) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.m) >= maxMissing {
		return
	}
	if t.m == nil {
		t.m = make(map[pack.ID]packRow)
	}
	t.m[row.id] = row
	t.any.Store(true)
}

func (t *missingPacks) take() (packRow, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for id, row := range t.m {
		delete(t.m, id)
		t.any.Store(len(t.m) > 0)
		return row, true
	}
	return packRow{}, false
}

// healMissing copies one pack that a reader found missing.
func (s *Store) healMissing() {
	if s.o.ReadOnly || !s.healing.TryLock() {
		return
	}
	defer s.healing.Unlock()
	row, ok := s.missing.take()
	if !ok {
		return
	}
	if _, err := s.healPack(row); err != nil {
		s.log.Error("missing copy of a pack stays missing", "pack", row.id.String(), "err", err)
	}
}

// reachesCopy is reaches after the file that was open turned out gone or short: another
// copy may be whole, and then all are.
func (s *Store) reachesCopy(p place) bool {
	if s.packs.Len() == 1 {
		return false
	}
	row, ok, err := s.index.pack(p.pack)
	if err != nil || !ok || row.state != packSealed {
		return false
	}
	s.healing.Lock()
	_, err = s.healPack(row)
	s.healing.Unlock()
	if err != nil {
		return false
	}
	s.files.drop(p.pack)
	return s.reaches(p)
}

// packHealth is what healPack found and did.
type packHealth struct {
	size     int64
	replaced int          // copies that were written anew
	lost     []pack.Entry // records that verify in no copy
}

// errFooter: no copy of a sealed pack has a footer that verifies.
var errFooter = errors.New("footer verifies in no copy")

// healPack reads every copy of a sealed pack and makes them equal and whole, each record
// from a copy where it verifies. Store.healing is held. A copy that cannot be written
// takes its location out. fs.ErrNotExist: the pack was removed meanwhile.
func (s *Store) healPack(row packRow) (packHealth, error) {
	var h packHealth
	copies := s.packs.Copies(row.id)
	defer packdir.CloseCopies(copies)
	footer, size := s.findFooter(copies, row.id)
	if footer == nil {
		if gone(copies) {
			return h, fmt.Errorf("pack %v: %w", row.id, fs.ErrNotExist)
		}
		return h, fmt.Errorf("pack %v: %w: %w", row.id, errFooter, dedupe.ErrCorrupt)
	}
	h.size = size
	base, patches, lost := compose(copies, footer, size)
	if base < 0 {
		return h, fmt.Errorf("pack %v: %w: %w", row.id, errFooter, dedupe.ErrCorrupt)
	}
	h.lost = lost
	for n := range copies {
		i := (base + 1 + n) % len(copies) // the base itself at last: the others come from it
		c := copies[i]
		if !c.In || len(patches) == 0 && (i == base || s.equals(c, copies[base])) {
			continue
		}
		if err := s.packs.Replace(c, copies[base], patches); err != nil {
			if errors.Is(err, fs.ErrNotExist) && gone(copies) {
				return h, fmt.Errorf("pack %v: %w", row.id, err)
			}
			if err := s.copyFailed(c, err); err != nil {
				return h, fmt.Errorf("pack %v: %w", row.id, err)
			}
			continue
		}
		h.replaced++
		s.log.Warn("copy of a pack is written anew", "file", c.Path, "bytes", size, "records_from_other_copies", len(patches))
	}
	if h.replaced > 0 {
		s.files.drop(row.number)
	}
	return h, nil
}

// equals reports whether a copy has the bytes of another one, on its disk if it is of a
// location that failed.
func (s *Store) equals(c, with packdir.Copy) bool {
	if c.File == nil || c.Repairing && s.packs.Settle(c) != nil {
		return false
	}
	return equal(c.File, with.File)
}

func equal(a, b *os.File) bool {
	same, err := packdir.Equal(a, b)
	return err == nil && same
}

// gone reports whether a pack was removed everywhere.
func gone(copies []packdir.Copy) bool {
	for _, c := range copies {
		if _, err := os.Lstat(c.Path); c.In && err == nil {
			return false
		}
	}
	return true
}

// findFooter is the first footer of the pack that verifies, and the size of its file.
func (s *Store) findFooter(copies []packdir.Copy, id pack.ID) (*pack.Footer, int64) {
	for _, c := range copies {
		if c.File == nil {
			continue
		}
		st, err := c.File.Stat()
		if err != nil {
			continue
		}
		f, err := pack.ReadFooter(c.File, st.Size())
		if err == nil && f.Header.ID == id && f.Header.Vault == s.sb.Vault {
			return f, st.Size()
		}
	}
	return nil, 0
}

// verdict is what of a copy does not verify.
type verdict struct {
	usable bool // it can be the base: its footer is good
	header bool // damaged
	bad    map[int]bool
}

// compose finds the copy to begin with and what of others makes it whole.
func compose(copies []packdir.Copy, footer *pack.Footer, size int64) (base int, patches []packdir.Patch, lost []pack.Entry) {
	verdicts := make([]verdict, len(copies))
	base = -1
	for i, c := range copies {
		if c.File == nil {
			continue
		}
		if base >= 0 && verdicts[base].whole() && equal(c.File, copies[base].File) {
			verdicts[i] = verdicts[base]
			continue
		}
		verdicts[i] = judge(c.File, footer, size)
		if verdicts[i].usable && (base < 0 || len(verdicts[i].bad) < len(verdicts[base].bad)) {
			base = i
		}
	}
	if base < 0 { // not even the footer reads any more
		return base, nil, nil
	}
	from := func(off, n int64, ok func(v *verdict) bool) bool {
		for i, c := range copies {
			if i == base || c.File == nil || !ok(&verdicts[i]) {
				continue
			}
			b := make([]byte, n)
			if _, err := c.File.ReadAt(b, off); err == nil {
				patches = append(patches, packdir.Patch{Off: off, Bytes: b})
				return true
			}
		}
		return false
	}
	if verdicts[base].header && !from(0, pack.HeaderSize, func(v *verdict) bool { return !v.header && v.bad != nil }) {
		patches = append(patches, packdir.Patch{Bytes: footer.Header.Encode()})
	}
	for k := range footer.Entries {
		e := &footer.Entries[k]
		if verdicts[base].bad[k] && !from(e.Offset, e.Size(), func(v *verdict) bool { return v.bad != nil && !v.bad[k] }) {
			lost = append(lost, *e)
		}
	}
	return base, patches, lost
}

func (v *verdict) whole() bool { return v.usable && !v.header && len(v.bad) == 0 }

// judge reads a copy of a sealed pack whole, by what its footer lists.
func judge(f *os.File, footer *pack.Footer, size int64) verdict {
	v := verdict{bad: make(map[int]bool)}
	own, err := pack.ReadFooter(f, size)
	if st, serr := f.Stat(); err == nil && serr == nil && st.Size() == size {
		v.usable = own.RecordsEnd == footer.RecordsEnd && len(own.Entries) == len(footer.Entries)
	}
	h, err := pack.ReadHeader(f)
	v.header = err != nil || h.ID != footer.Header.ID
	var buf []byte
	for k := range footer.Entries {
		e := &footer.Entries[k]
		rec, _, grown, err := pack.ReadRecord(f, e.Offset, e.StoredLength, buf)
		buf = grown
		v.bad[k] = err != nil || rec.Kind != e.Kind || rec.Digest != e.Digest || rec.StoredLength != e.StoredLength
		if !v.bad[k] {
			delete(v.bad, k)
		}
	}
	return v
}
