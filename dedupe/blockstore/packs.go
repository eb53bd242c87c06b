package blockstore

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/pack"
	"github.com/keelblock/keelblock/dedupe/packdir"
)

// openPack is a pack that can be appended to. It belongs to one batch at a time, or
// to the pool.
type openPack struct {
	number uint32
	id     pack.ID
	class  pack.Class
	file   *packdir.File
	w      *pack.Writer
	// indexed counts the entries that are durable in the index, and durable is the
	// offset behind them: what Rollback may not touch.
	indexed int
	durable int64
	known   bool // has a row in the index
	// spoilt: the index names records behind durable, since entering them failed halfway.
	// Nothing may be cut off or written any more.
	spoilt bool
	sealed bool // its index entries and its row say so
}

func (p *openPack) row(state packState) packRow {
	return packRow{number: p.number, id: p.id, class: p.class, state: state, end: p.durable}
}

// writingPacks are the open packs by number, for readers.
type writingPacks struct {
	mu    sync.RWMutex
	packs map[uint32]*openPack
}

func (t *writingPacks) find(number uint32) *openPack {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.packs[number]
}

func (t *writingPacks) add(p *openPack) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.packs == nil {
		t.packs = make(map[uint32]*openPack)
	}
	t.packs[p.number] = p
}

func (t *writingPacks) remove(p *openPack) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.packs, p.number)
}

// takePack is a preallocated pack with room, from the pool or new. With spare, which is not
// 0 for what lets space be freed, it has room for so many bytes only, and may use the reserve.
func (s *Store) takePack(class pack.Class, spare int64) (*openPack, error) {
	s.mu.Lock()
	var p *openPack
	if list := s.pool[class]; len(list) > 0 {
		p = list[len(list)-1]
		s.pool[class] = list[:len(list)-1]
	}
	s.mu.Unlock()
	if p == nil {
		return s.newPack(class, spare)
	}
	size, err := s.roomFor(p.w.End(), spare)
	if err == nil {
		err = p.file.Allocate(p.w.End(), size)
	}
	if err != nil {
		return nil, errors.Join(err, s.returnPack(p))
	}
	return p, nil
}

// newPack makes a pack, preallocated, with its name durable.
func (s *Store) newPack(class pack.Class, spare int64) (*openPack, error) {
	size, err := s.roomFor(0, spare)
	if err != nil {
		return nil, err
	}
	return s.makePack(class, size, s.o.PackBytes)
}

// roomFor asks for the room of a pack that ends at end, and returns how far to allocate it:
// whole, or for spare bytes.
func (s *Store) roomFor(end, spare int64) (size int64, err error) {
	if spare > 0 {
		return min(end+spare, s.o.PackBytes), s.checkSpare(spare, s.closeRoom())
	}
	return s.o.PackBytes, s.checkPackRoom(s.o.PackBytes - end)
}

// makePack is newPack without asking for room: of size bytes, which may grow up to limit.
func (s *Store) makePack(class pack.Class, size, limit int64) (_ *openPack, err error) {
	number, err := s.index.numberPack()
	if err != nil {
		return nil, err
	}
	var id pack.ID
	rand.Read(id[:])
	f, err := s.packs.Create(id, size)
	if err != nil {
		return nil, fmt.Errorf("make pack: %w", err)
	}
	p := &openPack{number: number, id: id, class: class, file: f, durable: pack.HeaderSize}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close(), s.packs.Remove(id))
		}
	}()
	p.w, err = pack.NewWriter(p.file, pack.Header{Class: class, ID: id, Vault: s.sb.Vault, Domain: s.Domain(), Created: s.o.Now()}, limit)
	if err != nil {
		return nil, err
	}
	if err := s.packs.SyncNames(); err != nil {
		return nil, err
	}
	s.writing.add(p)
	return p, nil
}

// indexPack syncs a pack and enters its records so far into the index; after that
// they are held. Only the pack's owner calls it, one call at a time.
func (s *Store) indexPack(p *openPack) ([]pack.Entry, error) {
	if p.w.End() == p.durable {
		return nil, nil
	}
	n, end, err := p.w.Sync()
	if err != nil {
		return nil, err
	}
	fresh := p.w.Entries(0)[p.indexed:n]
	return fresh, s.enterPack(p, packOpen, fresh, end)
}

// sealPack seals a pack, enters the rest of its records and closes its file. After an error
// the pack is its owner's to roll back, as soon as nobody needs the records any more.
func (s *Store) sealPack(p *openPack) ([]pack.Entry, error) {
	if err := p.w.Seal(); err != nil {
		return nil, err
	}
	fresh := p.w.Entries(p.indexed)
	if err := s.enterPack(p, packSealed, fresh, p.w.End()); err != nil {
		return nil, err
	}
	p.sealed = true
	return fresh, s.closePack(p)
}

// sealOrRollBack is sealPack of a pack whose records nobody needs but those that the index has.
// One that cannot be sealed stays open for the next batch, or is retired: left as it is, with
// an open file that nobody knows, it would be collected only after an unclean stop.
func (s *Store) sealOrRollBack(p *openPack) error {
	_, err := s.sealPack(p)
	if err != nil {
		err = errors.Join(err, s.rollBackPack(p))
	}
	return err
}

// enterRow makes a pack with synced records up to end known to the index, without
// entries of them.
func (s *Store) enterRow(p *openPack, state packState, records int, end int64) error {
	row := p.row(state)
	row.end = end
	if err := s.index.addEntries(row, 0, nil, true); err != nil {
		return err
	}
	p.indexed, p.durable, p.known = records, end, true
	return nil
}

// enterPack writes index entries of synced records and moves the pack's marks.
func (s *Store) enterPack(p *openPack, state packState, fresh []pack.Entry, end int64) error {
	row := p.row(state)
	row.end = end
	if err := s.index.addEntries(row, s.Epoch(), fresh, false); err != nil {
		// It goes in several transactions, each with the pack's row.
		now, ok, rerr := s.index.pack(p.number)
		p.spoilt = rerr != nil || ok && (!p.known || now.end != p.durable)
		return err
	}
	p.indexed += len(fresh)
	p.durable = end
	p.known = true
	if err := s.restored(fresh); err != nil {
		p.spoilt = state == packSealed
		return err
	}
	return nil
}

// closePack forgets an open pack; its file stays.
func (s *Store) closePack(p *openPack) error {
	s.writing.remove(p)
	if err := p.w.Close(); err != nil {
		return fmt.Errorf("close pack %v: %w", p.id, err)
	}
	return nil
}

// returnPack gives a pack back after a commit: without preallocated tail, to the
// pool, or sealed when little more would fit.
func (s *Store) returnPack(p *openPack) error {
	if p.w.End() > s.o.PackBytes-s.o.PackBytes/16 {
		return s.sealOrRollBack(p)
	}
	if err := p.w.Trim(); err != nil {
		return errors.Join(err, s.abandonPack(p))
	}
	s.poolPack(p)
	return nil
}

func (s *Store) poolPack(p *openPack) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pool[p.class] = append(s.pool[p.class], p)
}

// rollBackPack takes from a pack all that is not in the index, when its batch is
// aborted. A pack that then holds nothing is removed.
func (s *Store) rollBackPack(p *openPack) error {
	if p.sealed { // only closing it failed
		return nil
	}
	if p.spoilt {
		return s.abandonPack(p) // all that the index names was synced before
	}
	if p.indexed == 0 && !p.known && p.durable == pack.HeaderSize { // else it has a cancellation
		return errors.Join(s.closePack(p), s.removePack(p.number, p.id))
	}
	if err := p.w.Rollback(p.durable); err != nil {
		return errors.Join(err, s.abandonPack(p))
	}
	s.poolPack(p)
	return nil
}

// removePack removes a pack's file at every location. The index knows nothing of it
// any more; readers that have it open keep it until they are done.
func (s *Store) removePack(number uint32, id pack.ID) error {
	s.files.drop(number)
	if s.o.bugs.removeOnce {
		return os.Remove(s.packPath(id))
	}
	if err := s.packs.Remove(id); err != nil {
		return fmt.Errorf("remove pack %v: %w", id, err)
	}
	return nil
}

// removePacks removes packs that no entry names: their rows say so first, so that a start
// after a crash goes on with it and does not read them again; then the files go, durably;
// then the rows.
func (s *Store) removePacks(rows []packRow) error {
	s.relieve(s.indexRoomNow())
	err := s.index.update(func(ch *change) error {
		for _, row := range rows {
			row.state = packDropped
			if err := ch.setPack(row); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, row := range rows {
		if err := s.removePack(row.number, row.id); err != nil {
			return err
		}
		s.files.drop(row.number) // who opened it between
	}
	if err := s.packs.SyncNames(); err != nil {
		return err
	}
	if err := s.o.hook("collect", "packs are removed"); err != nil {
		return err
	}
	return s.index.update(func(ch *change) error {
		for _, row := range rows {
			if err := ch.removePack(row); err != nil {
				return err
			}
		}
		return nil
	})
}

// abandonPack stops writing to a pack whose file failed. What is indexed stays
// readable; the next Open after an unclean stop looks at the rest.
func (s *Store) abandonPack(p *openPack) error {
	s.log.Error("pack is not written any more after an error", "vault", s.dir, "pack", p.id.String())
	s.writing.remove(p)
	_ = p.w.Close() // its error is that of the write before
	row := p.row(packRetired)
	if now, ok, err := s.index.pack(p.number); err == nil && ok {
		row.end = max(row.end, now.end) // of a spoilt one
	} else if err == nil && p.durable == pack.HeaderSize {
		return s.removePack(p.number, p.id) // nothing in it was ever acknowledged
	}
	return s.index.addEntries(row, 0, nil, true)
}

// sealIdle seals the packs of the pool if there is room for their footers: only what is
// sealed can be collected. With relieve it asks for that room.
func (s *Store) sealIdle(relieve bool) error {
	s.mu.Lock()
	var need int64
	for _, list := range s.pool {
		for _, p := range list {
			need += pack.SealSize(len(p.w.Entries(0))) + pack.PageSize
		}
	}
	s.mu.Unlock()
	if relieve {
		s.relieve(need + indexRoom)
	}
	if err := s.checkRoom(need + indexRoom); errors.Is(err, dedupe.ErrNoSpace) {
		return nil
	} else if err != nil {
		return err
	}
	return s.sealPool()
}

// sealPool seals the packs of the pool, at Close.
func (s *Store) sealPool() error {
	s.mu.Lock()
	pool := s.pool
	s.pool = make(map[pack.Class][]*openPack)
	s.mu.Unlock()
	var errs []error
	for _, list := range pool {
		for _, p := range list {
			if err := s.sealOrRollBack(p); err != nil {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}
