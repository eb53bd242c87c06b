package blockstore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/dgraph-io/badger/v4"
	"golang.org/x/sys/unix"

	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/pack"
	"github.com/keelblock/keelblock/dedupe/packdir"
)

// RebuildIndex makes the index of a vault anew from its packs alone and puts it in
// the place of the old one. It is the answer to a damaged or missing index. progress,
// when not nil, is told bytes of packs read and their sum.
//
// Everything that verifies is entered, also what no recovery point reaches: blocks of
// aborted backups, left to collection. Nothing is believed to be held before its
// record was read back, as after an unclean stop. A pack that cannot be read is
// reported to the Logger and left out; what only it held is then ErrNotFound.
func RebuildIndex(ctx context.Context, dir string, o Options, progress func(done, total int64)) error {
	if err := rebuildIndex(ctx, dir, o, progress); err != nil {
		return fmt.Errorf("rebuild index of vault %q: %w", dir, err)
	}
	return nil
}

func rebuildIndex(ctx context.Context, dir string, o Options, progress func(done, total int64)) (err error) {
	if err := o.Validate(); err != nil {
		return err
	}
	s, err := newStore(dir, o.withDefaults())
	if err != nil {
		return err
	}
	defer s.releaseAll()
	if s.lock, err = takeLock(dir, unix.LOCK_EX); err != nil {
		return err
	}
	if err := s.openPacks(true); err != nil {
		return err
	}
	fresh := filepath.Join(dir, newIndexName)
	if err := os.RemoveAll(fresh); err != nil {
		return err
	}
	epoch := s.nextEpoch()
	if err := s.buildIndex(ctx, badgerOptions(fresh), epoch, true, progress); err != nil {
		return errors.Join(err, s.dropIndex(fresh))
	}
	x := s.index
	s.index = nil
	if err := x.close(); err != nil {
		return err
	}
	// Until the names are exchanged the vault has its old index and state. A state
	// of the old epoch with the new index is an unclean stop's: harmless.
	if err := writeFile(filepath.Join(dir, stateName), pack.State{Epoch: epoch}.Encode(), s.o.hook); err != nil {
		return err
	}
	return s.exchangeIndex(fresh)
}

// dropIndex closes and removes an index that was not finished.
func (s *Store) dropIndex(path string) error {
	var err error
	if s.index != nil {
		err = s.index.close()
		s.index = nil
	}
	return errors.Join(err, os.RemoveAll(path))
}

// nextEpoch is later than any that the state knows. The damaged index may know a
// later one, but none of its entries survives.
func (s *Store) nextEpoch() uint32 {
	b, err := os.ReadFile(filepath.Join(s.dir, stateName))
	if err == nil {
		if state, err := pack.DecodeState(b); err == nil {
			return state.Epoch + 1
		}
	}
	return 1
}

// exchangeIndex gives the new index the old one's name, at one instant, and removes
// the old one.
func (s *Store) exchangeIndex(fresh string) error {
	old := filepath.Join(s.dir, indexName)
	if err := syncDir(fresh, s.o.hook); err != nil {
		return err
	}
	err := unix.Renameat2(unix.AT_FDCWD, fresh, unix.AT_FDCWD, old, unix.RENAME_EXCHANGE)
	if err != nil { // no old one, or a file system that cannot exchange
		if err := os.RemoveAll(old); err != nil {
			return err
		}
		if err := os.Rename(fresh, old); err != nil {
			return err
		}
	}
	if err := syncDir(s.dir, s.o.hook); err != nil {
		return err
	}
	return os.RemoveAll(fresh)
}

// buildIndex makes an index from the packs and makes it the Store's.
//
// Metadata packs are read first, for publications: what a publication seen there
// reaches was written before it, so the second reading, of all packs, finds it also
// while another process goes on writing.
func (s *Store) buildIndex(ctx context.Context, o badger.Options, epoch uint32, limitRoom bool, progress func(done, total int64)) error {
	var err error
	if s.index, err = newIndex(o, s.sb.Vault, epoch); err != nil {
		return noSpace(err)
	}
	if limitRoom {
		s.index.room = s.checkRoom
	}
	published, err := s.collectPublications(ctx)
	if err != nil {
		return err
	}
	ids, err := s.packIDs()
	if err != nil {
		return err
	}
	total, done := s.packSizes(ids), int64(0)
	var patches patchedPacks
	places := make(map[dedupe.Digest]recoveredEntry)
	wanted := make(map[dedupe.Digest]bool)
	for _, pub := range published {
		for _, d := range pub.Manifests {
			wanted[d] = true
		}
		for _, d := range pub.Notes {
			wanted[d] = true
		}
	}
	for _, id := range ids {
		if err := ctx.Err(); err != nil {
			return err
		}
		size, err := s.addPack(id, wanted, places, &patches)
		if err != nil {
			return fmt.Errorf("pack %v: %w", id, err)
		}
		done += size
		if progress != nil {
			progress(done, max(total, done))
		}
	}
	if err := patches.enter(func(p *patchedPack, depth uint8) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		return s.addPatches(p, depth)
	}); err != nil {
		return err
	}
	for _, pub := range published {
		if err := s.republish(pub, places); err != nil {
			return err
		}
	}
	return nil
}

// addPatches enters the patches of one depth of a pack whose whole blocks are in the
// index. The pack is read again: only what has patches is, and memory is bounded.
func (s *Store) addPatches(p *patchedPack, depth uint8) error {
	f, c, err := s.openContent(p.row.id, false)
	if err != nil || c == nil {
		return err
	}
	defer f.Close()
	return s.index.addFound(p.row, c.entries, depth, s.isIntact)
}

func (s *Store) packSizes(ids []pack.ID) (total int64) {
	for _, id := range ids {
		if size, err := s.packs.Size(id); err == nil {
			total += size
		}
	}
	return total
}

// collectPublications reads the publications of all metadata packs.
func (s *Store) collectPublications(ctx context.Context) ([]*pack.Publication, error) {
	ids, err := s.packIDs()
	if err != nil {
		return nil, err
	}
	var found []foundPublication
	for _, id := range ids {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		f, c, err := s.openContent(id, true)
		if err != nil {
			return nil, fmt.Errorf("pack %v: %w", id, err)
		}
		if c == nil {
			continue
		}
		pubs, err := s.publications(f, c.entries)
		_ = f.Close() // only read
		found = append(found, pubs...)
		if err != nil {
			s.log.Error("publication is not readable", "vault", s.dir, "pack", id.String(), "err", err)
		}
	}
	return effective(found), nil
}

// openContent reads a pack's content, of the best copy; nil when the pack is gone,
// damaged beyond use, or a data pack where only metadata is asked for.
func (s *Store) openContent(id pack.ID, metadataOnly bool) (*os.File, *content, error) {
	copies := s.packs.Copies(id)
	defer packdir.CloseCopies(copies)
	if metadataOnly && isData(copies) {
		return nil, nil, nil
	}
	best, c, err := s.bestCopy(copies, id)
	if err != nil || best < 0 {
		return nil, nil, err
	}
	if c.problem != nil {
		s.log.Error("pack is damaged, its records were read one by one", "vault", s.dir, "pack", id.String(),
			"readable", c.end, "size", c.size, "err", c.problem)
	}
	if !c.sealed && c.problem == nil && !s.o.ReadOnly {
		if err := s.equalize(copies, best); err != nil {
			return nil, nil, err
		}
	}
	f := copies[best].File
	copies[best].File = nil // the caller's
	return f, c, nil
}

// isData reports whether a pack's header says that it holds blocks.
func isData(copies []packdir.Copy) bool {
	for _, c := range copies {
		if c.File == nil {
			continue
		}
		if h, err := pack.ReadHeader(c.File); err == nil {
			return h.Class == pack.ClassData
		}
	}
	return false
}

// addPack enters a pack's records into a new index and notes where wanted manifests
// and notes are. It returns the pack's size.
func (s *Store) addPack(id pack.ID, wanted map[dedupe.Digest]bool, places map[dedupe.Digest]recoveredEntry, patches *patchedPacks) (int64, error) {
	f, c, err := s.openContent(id, false)
	if err != nil || c == nil {
		return 0, err
	}
	defer f.Close()
	if len(c.entries) == 0 {
		return c.size, nil
	}
	number, err := s.index.numberPack()
	if err != nil {
		return 0, err
	}
	row := packRow{number: number, id: id, class: c.header.Class, state: packRetired, end: c.end}
	if c.sealed {
		row.state = packSealed
	}
	if err := s.index.addFound(row, c.entries, 0, s.isIntact); err != nil {
		return 0, err
	}
	patches.add(row, c.entries, true)
	for _, e := range publishedEntries(number, c.entries) {
		if wanted[e.digest] {
			places[e.digest] = e
		}
	}
	return c.size, nil
}
