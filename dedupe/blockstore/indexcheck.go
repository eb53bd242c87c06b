package blockstore

import (
	"errors"
	"fmt"

	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/blockstore/badgerfiles"
)

// checkIndexFiles reads the index's files before Badger does. clean says that the vault was
// closed cleanly.
func checkIndexFiles(dir string, clean bool) error {
	err := badgerfiles.Check(dir, clean)
	switch {
	case errors.Is(err, badgerfiles.ErrNoManifest):
		return fmt.Errorf("index has no manifest: %w", dedupe.ErrCorrupt)
	case errors.Is(err, badgerfiles.ErrDamaged):
		return fmt.Errorf("index %w: %w", err, dedupe.ErrCorrupt)
	}
	return err
}
