package catalog

import (
	"errors"
	"fmt"
	"path/filepath"

	"github.com/keelblock/keelblock/dedupe/blockstore/badgerfiles"
)

// checkFiles reads the catalog's files before Badger does. The catalog is small, so this
// costs little.
func checkFiles(dir string) error {
	// A log of a memory table is there unless the catalog was closed. Only after a kill
	// or a power cut the manifest may end in half a change.
	logs, err := filepath.Glob(filepath.Join(dir, "*.mem"))
	if err != nil {
		return err
	}
	err = badgerfiles.Check(dir, len(logs) == 0)
	switch {
	case errors.Is(err, badgerfiles.ErrNoManifest): // a first start, unless there are tables
		tables, err := filepath.Glob(filepath.Join(dir, "*.sst"))
		if err == nil && len(tables) > 0 {
			err = fmt.Errorf("%w: tables without a manifest", ErrDamaged)
		}
		return err
	case errors.Is(err, badgerfiles.ErrDamaged):
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return err
}
