package blockstore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"

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
//
// A folder without a vault, while Options.Locations have one, becomes its first location:
// the disk that was the first is lost. RepairLocations fills it.
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
	o = o.withDefaults()
	if err := replaceLost(dir, o); err != nil {
		return err
	}
	s, err := newStore(dir, o)
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
	if err := s.packs.SyncNames(); err != nil {
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

// replaceLost makes a folder that has nothing of the vault, since its disk was lost, one
// that can be its first location: with the superblock that the other locations have. Its
// packs are read from there until they are copied.
func replaceLost(dir string, o Options) error {
	_, err := readSuperblock(dir, Options{})
	if packs, _ := os.ReadDir(filepath.Join(dir, packsName)); !errors.Is(err, fs.ErrNotExist) || len(packs) > 0 {
		return nil // what is wrong with it, if anything, comes out when it is opened
	}
	var sb *pack.Superblock
	for _, other := range o.Locations {
		found, err := readSuperblock(other, Options{})
		switch {
		case err != nil:
		case sb != nil && sb.Vault != found.Vault:
			return fmt.Errorf("its locations are of different vaults: %q of vault %x, another of vault %x", other, found.Vault, sb.Vault)
		default:
			sb = found
		}
	}
	if sb == nil {
		return nil
	}
	if err := os.MkdirAll(filepath.Join(dir, packsName), 0o700); err != nil {
		return noSpace(err)
	}
	for _, name := range []string{superblockCopyName, superblockName} {
		if err := writeFile(filepath.Join(dir, name), sb.Encode(), o.hook); err != nil {
			return err
		}
	}
	return syncDir(filepath.Dir(dir), o.hook)
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
// while another process goes on writing. A collection of that process may drop a pack
// that was listed; what was live in it stands in a newer one by then, so the packs are
// listed again.
func (s *Store) buildIndex(ctx context.Context, o badger.Options, epoch uint32, limitRoom bool, progress func(done, total int64)) error {
	var err error
	if s.index, err = newIndex(o, s.sb.Vault, epoch); err != nil {
		return noSpace(err)
	}
	if limitRoom {
		s.index.room = s.checkRoom
	}
	b := builder{s: s, progress: progress, read: make(map[pack.ID]bool)}
	for tries := 0; ; tries++ {
		again, err := b.readAll(ctx)
		if err != nil {
			return err
		}
		last := tries == buildTries
		if again && !last {
			continue
		}
		gone, err := b.enterPatches(ctx)
		if err != nil {
			return err
		}
		if !again && !gone {
			break
		}
		if last && s.o.ReadOnly { // what went may stand in a pack that was not read
			return fmt.Errorf("packs are dropped faster than they are read, %d times: open it again", tries)
		}
		if last {
			break // it is a file that cannot be opened
		}
	}
	for _, pub := range b.published {
		if err := s.republish(pub, b.places); err != nil {
			return err
		}
	}
	return s.index.update(func(c *change) error {
		c.useSerials(b.found)
		return nil
	})
}

// enterPatches enters the patches of all packs, whose whole blocks are in the index. A
// whole block that is damaged gives way to a patch of the same block that is not, before
// anything is laid over it; one whose patch has no base comes back. So does a damaged patch
// to a deeper one: as that is only found when others may lie over it, all patches are then
// entered anew without it. gone says that a pack was gone when it came to it: its patches
// stand in one that was not read yet.
func (b *builder) enterPatches(ctx context.Context) (gone bool, err error) {
	x := b.s.index
	var hidden []indexRow
	if !b.entered {
		gone, err = b.eachPatched(ctx, 0, func(p *patchedPack, entries []pack.Entry) error {
			list, err := x.hideDamaged(p.row.number, entries, b.s.isIntact)
			hidden = append(hidden, list...)
			return err
		})
	}
	b.entered = true
	enter := func(f *finding) {
		for depth := uint8(1); depth <= pack.MaxPatchDepth && err == nil; depth++ {
			var g bool
			g, err = b.eachPatched(ctx, 1<<depth, func(p *patchedPack, entries []pack.Entry) error {
				return x.addFound(p.row, entries, depth, f)
			})
			gone = gone || g
		}
	}
	f := &finding{intact: b.s.isIntact, left: make(map[patchAt]bool)}
	for err == nil {
		f.hiding = make(map[patchAt]bool)
		enter(f)
		if len(hidden) > 0 || len(f.left) > 0 {
			enter(f) // what lies over a block that is a patch, or a deeper one, now
		}
		if len(f.hiding) == 0 || err != nil {
			break
		}
		maps.Copy(f.left, f.hiding) // it grows, so this ends
		err = x.dropPatches()
	}
	if len(hidden) > 0 && err == nil {
		err = x.restore(hidden)
	}
	if len(hidden)+len(f.left) > 0 {
		enter(&finding{intact: b.s.isIntact}) // what came back, and what lies over it
	}
	return gone, err
}

// eachPatched calls fn with what each pack holds that has patches of some of the depths; of
// 0 are all. The packs are read again: only what has patches is, and memory is bounded. One
// that is gone is passed over, and read when it comes back.
func (b *builder) eachPatched(ctx context.Context, depths uint32, fn func(p *patchedPack, entries []pack.Entry) error) (gone bool, err error) {
	for i := range b.patches {
		p := &b.patches[i]
		if p.depths == 0 || depths != 0 && p.depths&depths == 0 {
			continue
		}
		if err := ctx.Err(); err != nil {
			return gone, err
		}
		f, c, err := b.s.openContent(p.row.id, false)
		if errors.Is(err, fs.ErrNotExist) {
			gone, p.depths, b.read[p.row.id] = true, 0, false
			continue
		}
		if err == nil && c != nil {
			err = fn(p, c.entries)
			_ = f.Close() // only read
		}
		if err != nil {
			return gone, fmt.Errorf("pack %v: %w", p.row.id, err)
		}
	}
	return gone, nil
}

// buildTries bounds how often packs are listed again.
const buildTries = 16

// builder makes an index from packs.
type builder struct {
	s           *Store
	progress    func(done, total int64)
	done, total int64
	read        map[pack.ID]bool // packs that are in the index
	found       []foundPublication
	published   []*pack.Publication // those of found that count
	places      map[dedupe.Digest]recoveredEntry
	wanted      map[dedupe.Digest]bool
	patches     patchedPacks
	entered     bool // patches are in the index
}

// readAll reads the packs that there are now and were not read before. again says that
// one of them was gone when it came to it.
func (b *builder) readAll(ctx context.Context) (again bool, err error) {
	var gone bool
	if b.found, gone, err = b.s.collectPublications(ctx); err != nil || gone {
		return gone, err
	}
	b.published = effective(b.found)
	old := b.wanted
	b.wanted = make(map[dedupe.Digest]bool)
	if b.places == nil {
		b.places = make(map[dedupe.Digest]recoveredEntry)
	}
	for _, pub := range b.published {
		for _, d := range slices.Concat(pub.Manifests, pub.Notes) {
			b.wanted[d] = true
			if old != nil && !old[d] { // published since: it may stand in a pack that was read
				b.read = make(map[pack.ID]bool)
			}
		}
	}
	ids, err := b.s.packIDs()
	if err != nil {
		return false, err
	}
	ids = slices.DeleteFunc(ids, func(id pack.ID) bool { return b.read[id] })
	b.total = b.done + b.s.packSizes(ids)
	for _, id := range ids {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		size, there, err := b.s.addPack(id, b.wanted, b.places, &b.patches)
		if err != nil {
			return false, fmt.Errorf("pack %v: %w", id, err)
		}
		again = again || !there
		b.read[id] = there
		b.done += size
		if b.progress != nil {
			b.progress(b.done, max(b.total, b.done))
		}
	}
	return again, nil
}

func (s *Store) packSizes(ids []pack.ID) (total int64) {
	for _, id := range ids {
		if size, err := s.packs.Size(id); err == nil {
			total += size
		}
	}
	return total
}

// collectPublications reads the publications of all metadata packs. gone says that a
// pack was dropped meanwhile.
func (s *Store) collectPublications(ctx context.Context) (found []foundPublication, gone bool, err error) {
	ids, err := s.packIDs()
	if err != nil {
		return nil, false, err
	}
	for _, id := range ids {
		if err := ctx.Err(); err != nil {
			return nil, false, err
		}
		f, c, err := s.openContent(id, true)
		if errors.Is(err, fs.ErrNotExist) {
			gone = true
			continue
		}
		if err != nil {
			return nil, false, fmt.Errorf("pack %v: %w", id, err)
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
	return found, gone, nil
}

// openContent reads a pack's content, of the best copy; nil when the pack is damaged
// beyond use, or a data pack where only metadata is asked for. fs.ErrNotExist when no
// location has it.
func (s *Store) openContent(id pack.ID, metadataOnly bool) (*os.File, *content, error) {
	copies := s.packs.Copies(id)
	defer packdir.CloseCopies(copies)
	if !slices.ContainsFunc(copies, func(c packdir.Copy) bool { return c.File != nil }) {
		return nil, nil, fmt.Errorf("pack %v: %w", id, fs.ErrNotExist)
	}
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
// and notes are. It returns the pack's size, and whether the pack is still there.
func (s *Store) addPack(id pack.ID, wanted map[dedupe.Digest]bool, places map[dedupe.Digest]recoveredEntry, patches *patchedPacks) (size int64, there bool, err error) {
	if !s.o.ReadOnly {
		if err := s.settle(id); err != nil {
			return 0, true, err
		}
	}
	f, c, err := s.openContent(id, false)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, false, nil
	}
	if err != nil || c == nil {
		return 0, true, err
	}
	defer f.Close()
	if len(c.entries) == 0 {
		return c.size, true, nil
	}
	row, known, err := s.index.packByID(id)
	if err != nil {
		return 0, true, err
	}
	number := row.number
	if !known {
		if number, err = s.index.numberPack(); err != nil {
			return 0, true, err
		}
	}
	row = packRow{number: number, id: id, class: c.header.Class, state: packRetired, end: c.end}
	if c.sealed {
		row.state = packSealed
	}
	if c.sealed {
		if err := s.completeCopies(row); err != nil {
			return 0, true, err
		}
	}
	if err := s.index.addFound(row, c.entries, 0, &finding{intact: s.isIntact}); err != nil {
		return 0, true, err
	}
	patches.add(row, c.entries, true)
	for _, e := range publishedEntries(number, c.entries) {
		if wanted[e.digest] {
			places[e.digest] = e
		}
	}
	return c.size, true, nil
}

// completeCopies heals a sealed pack that a location lacks: the old index would have said
// whether a collection was removing it.
func (s *Store) completeCopies(row packRow) error {
	if s.o.ReadOnly || s.packs.Len() == 1 {
		return nil
	}
	copies := s.packs.Copies(row.id)
	packdir.CloseCopies(copies)
	if !slices.ContainsFunc(copies, func(c packdir.Copy) bool { return c.In && c.File == nil }) {
		return nil
	}
	s.healing.Lock()
	defer s.healing.Unlock()
	_, err := s.healPack(row)
	return err
}
