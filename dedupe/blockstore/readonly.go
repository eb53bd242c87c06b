package blockstore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/pack"
)

// openReadOnly opens without writing to the vault. A vault that was closed cleanly
// and that nobody else has open is read through its own index; while this Store is
// open nobody can open it for writing. In every other case, and when Badger refuses,
// an index is built from the packs in a scratch folder.
func (s *Store) openReadOnly() error {
	if err := s.openPacks(false); err != nil {
		return err
	}
	lock, err := takeLock(s.dir, unix.LOCK_SH)
	switch {
	case err == nil && s.isClean():
		s.lock = lock
		o := badgerOptions(filepath.Join(s.dir, indexName))
		o.ReadOnly = true
		o.CompactL0OnClose = false
		if err := s.openOwnIndex(o); err == nil {
			return nil
		} else {
			s.log.Warn("index is not used, the packs are read instead", "vault", s.dir, "err", err)
		}
		s.lock = nil
		releaseLock(lock)
	case err == nil:
		releaseLock(lock)
	case !errors.Is(err, dedupe.ErrLocked) && !errors.Is(err, os.ErrNotExist):
		return err
	}
	return s.openScratch()
}

// isClean reports whether the vault was closed cleanly.
func (s *Store) isClean() bool {
	b, err := os.ReadFile(filepath.Join(s.dir, stateName))
	if err != nil {
		return false
	}
	state, err := pack.DecodeState(b)
	return err == nil && state.Clean
}

// openScratch builds an index of what the packs hold now.
func (s *Store) openScratch() error {
	dir, err := os.MkdirTemp(s.o.ScratchDir, "keelblock-index-")
	if err != nil {
		return fmt.Errorf("make scratch index: %w", noSpace(err))
	}
	s.scratch = dir
	o := badgerOptions(dir)
	o.SyncWrites = false // it does not outlive this Store
	if err := s.buildIndex(context.Background(), o, 1, false, nil); err != nil {
		return fmt.Errorf("build scratch index: %w", err)
	}
	return nil
}
