package blockstore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/pack"
	"github.com/keelblock/keelblock/dedupe/packdir"
)

// CopiesReport is what VerifyCopies and RepairLocations found and did.
type CopiesReport struct {
	Packs    int64 // looked at
	Bytes    int64 // of one copy of each
	Replaced int64 // copies that were missing or damaged, and are whole now
	// Lost are records that verify in no copy.
	Lost []LostRecord
	// Problems are packs that could not be looked at.
	Problems []string
}

// LostRecord is a record that verifies in no copy of its pack.
type LostRecord struct {
	Kind   dedupe.Kind
	Digest dedupe.Digest
	Pack   string
	Offset int64
}

// maxLost bounds CopiesReport.Lost and Problems.
const maxLost = 10000

// VerifyCopies reads every copy of every sealed pack in full, and heals what another
// copy can heal. With one location it says which records are damaged, also of those
// that no point needs. It goes on beside everything else; while batches are open it
// takes half of the time.
func (s *Store) VerifyCopies(ctx context.Context, progress func(done, total int64)) (CopiesReport, error) {
	var r CopiesReport
	if err := s.enter(); err != nil {
		return r, err
	}
	defer s.leave()
	s.repairing.Lock()
	defer s.repairing.Unlock()
	_, err := s.healAll(ctx, &r, nil, progress)
	if err != nil {
		return r, fmt.Errorf("verify copies of vault %q: %w", s.dir, err)
	}
	return r, nil
}

// RepairLocations makes the copies of every pack complete at every location that can be
// repaired: one that is out and whose folder is there, is this vault's or empty, and one
// that lacks packs. Ingest goes on. Locations repaired are in again. Interrupted, it
// begins again, and copies only what still differs.
func (s *Store) RepairLocations(ctx context.Context, progress func(done, total int64)) (CopiesReport, error) {
	var r CopiesReport
	if err := s.enter(); err != nil {
		return r, err
	}
	defer s.leave()
	s.repairing.Lock()
	defer s.repairing.Unlock()
	if err := s.repairLocations(ctx, &r, progress); err != nil {
		return r, fmt.Errorf("repair locations of vault %q: %w", s.dir, err)
	}
	return r, nil
}

func (s *Store) repairLocations(ctx context.Context, r *CopiesReport, progress func(done, total int64)) error {
	if s.o.ReadOnly {
		return dedupe.ErrReadOnly
	}
	if err := s.packs.CheckPresence(); err != nil {
		return err
	}
	var targets []int
	var errs []error
	for i, st := range s.packs.States() {
		if st.State == packdir.StateIn {
			continue
		}
		if err := s.packs.BeginRepair(i); err != nil {
			errs = append(errs, err)
			continue
		}
		targets = append(targets, i)
	}
	done, err := s.healAll(ctx, r, nil, progress)
	for _, i := range targets {
		if err != nil {
			errs = append(errs, s.packs.EndRepair(i, err))
			continue
		}
		if jerr := s.join(ctx, i, r, done); jerr != nil {
			errs = append(errs, s.packs.EndRepair(i, jerr))
		}
	}
	if len(targets) == 0 && err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// join ends the repair of one location: done are the packs that were compared.
func (s *Store) join(ctx context.Context, i int, r *CopiesReport, done map[pack.ID]bool) error {
	surplus, err := s.packs.Surplus(i)
	if err != nil {
		return err
	}
	if s.o.bugs.keepSurplus {
		surplus = nil
	}
	for _, id := range surplus {
		if err := s.packs.RemoveSurplus(i, id); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := s.packs.Join(i); err != nil {
		return err
	}
	// From here on every pack that is made or written has its copy there. What was
	// open before, and is sealed now, was not compared yet.
	if _, err := s.healAll(ctx, r, done, nil); err != nil {
		return err
	}
	return s.packs.Complete(i)
}

// healAll heals every sealed pack but those of skip, and returns which it has seen.
func (s *Store) healAll(ctx context.Context, r *CopiesReport, skip map[pack.ID]bool, progress func(done, total int64)) (map[pack.ID]bool, error) {
	ids, err := s.packIDs()
	if err != nil {
		return nil, err
	}
	seen := make(map[pack.ID]bool, len(ids))
	var total, bytes int64
	if progress != nil {
		total = s.packSizes(ids)
	}
	for _, id := range ids {
		if skip[id] {
			continue
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		began := time.Now()
		n, ok, err := s.healOne(id, r)
		if err != nil {
			return nil, err
		}
		if ok {
			seen[id] = true
		}
		bytes += n
		if progress != nil {
			progress(bytes, max(total, bytes))
		}
		s.pace(ctx, time.Since(began))
	}
	return seen, nil
}

// healOne heals one pack and adds it to a report. Not ok: it is still written, or gone.
func (s *Store) healOne(id pack.ID, r *CopiesReport) (size int64, ok bool, err error) {
	row, known, err := s.index.packByID(id)
	if err != nil || !known || row.state == packOpen {
		return 0, false, err
	}
	s.healing.Lock()
	defer s.healing.Unlock()
	if row.state == packRetired {
		return s.copyRetired(row, r)
	}
	h, err := s.healPack(row)
	switch {
	case errors.Is(err, fs.ErrNotExist): // collected meanwhile
		return 0, false, nil
	case errors.Is(err, errFooter):
		if len(r.Problems) < maxLost {
			r.Problems = append(r.Problems, err.Error())
		}
		return 0, true, nil
	case err != nil:
		return 0, false, err
	}
	r.Packs++
	r.Bytes += h.size
	r.Replaced += int64(h.replaced)
	for i := range h.lost {
		r.lose(&h.lost[i], s.packPath(id))
	}
	return h.size, true, nil
}

// lose adds what a record held that verifies nowhere: of a bundle its blocks.
func (r *CopiesReport) lose(e *pack.Entry, path string) {
	add := func(kind dedupe.Kind, d dedupe.Digest) {
		if len(r.Lost) < maxLost {
			r.Lost = append(r.Lost, LostRecord{Kind: kind, Digest: d, Pack: path, Offset: e.Offset})
		}
	}
	if e.Kind != pack.KindBundle {
		add(e.Kind, e.Digest)
	}
	for _, p := range e.Patches {
		add(dedupe.KindBlock, p.Digest)
	}
}

// copyRetired copies a pack that was never sealed to where it is missing, or behind.
// Other copies that differ stay: together they may have more than each.
func (s *Store) copyRetired(row packRow, r *CopiesReport) (int64, bool, error) {
	copies := s.packs.Copies(row.id)
	defer packdir.CloseCopies(copies)
	best, c, err := s.bestCopy(copies, row.id)
	if err != nil || best < 0 {
		return 0, best < 0, err
	}
	r.Packs++
	for _, to := range copies {
		if !to.In || to.File != nil && (!to.Repairing || equal(to.File, copies[best].File)) {
			continue
		}
		if err := s.packs.Replace(to, copies[best], nil); err != nil {
			if err := s.copyFailed(to, err); err != nil {
				return 0, false, err
			}
			continue
		}
		r.Replaced++
	}
	return c.size, true, nil
}

// pace lets a backup have half of the disks' time.
func (s *Store) pace(ctx context.Context, worked time.Duration) {
	s.mu.Lock()
	busy := len(s.batches) > 0
	s.mu.Unlock()
	if !busy {
		return
	}
	t := time.NewTimer(min(worked, time.Second))
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
