package blockstore

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"
	"github.com/dgraph-io/badger/v4/table"

	"github.com/keelblock/keelblock/dedupe"
)

// checkIndexFiles reads Badger's manifest and every table that it names, before
// Badger does. Badger 4.9.6 must not meet a damaged one: at a wrong bit it panics in a
// goroutine of its own, which ends the process (tools/decisions has the test), and
// tables behind a damaged place of the manifest it deletes. The second reading, by
// Badger, comes from the page cache: a 1 TiB vault has some 1.1 GiB of tables.
//
// clean says that the vault was closed cleanly: only then a manifest that ends in
// half a change is damaged. After a kill or a power cut that is what Badger expects.
func checkIndexFiles(dir string, clean bool) error {
	f, err := os.Open(filepath.Join(dir, badger.ManifestFilename))
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("index has no manifest: %w", dedupe.ErrCorrupt)
	}
	if err != nil {
		return err
	}
	defer f.Close()
	m, end, err := badger.ReplayManifestFile(f, 0, badger.DefaultOptions(dir).WithLogger(nil))
	if err != nil {
		return fmt.Errorf("index manifest: %w: %w", err, dedupe.ErrCorrupt)
	}
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if clean && end != st.Size() {
		return fmt.Errorf("index manifest ends at %d of %d bytes: %w", end, st.Size(), dedupe.ErrCorrupt)
	}
	for id := range m.Tables {
		if err := checkTable(dir, id); err != nil {
			return fmt.Errorf("index table %06d.sst: %w: %w", id, err, dedupe.ErrCorrupt)
		}
	}
	return nil
}

// removeEmptyLogs removes logs without a byte. Badger makes a log in two steps, the
// file and then its length; killed in between it leaves one that it refuses to open, once
// (4.9.6: "Create a new file"). Such a log has never held anything.
func removeEmptyLogs(dir string) error {
	for _, pattern := range []string{"*.mem", "*.vlog"} {
		logs, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			return err
		}
		for _, name := range logs {
			if st, err := os.Stat(name); err != nil || st.Size() > 0 {
				continue // Badger says what is wrong with it
			}
			if err := os.Remove(name); err != nil {
				return err
			}
		}
	}
	return nil
}

// checkTable reads one table whole and compares all of its checksums.
func checkTable(dir string, id uint64) (err error) {
	b, err := os.ReadFile(table.NewFilename(id, dir))
	if err != nil {
		return err
	}
	defer func() {
		if p := recover(); p != nil { // how Badger's reader meets lengths that cannot be
			err = fmt.Errorf("%v", p)
		}
	}()
	t, err := table.OpenInMemoryTable(b, id, &table.Options{ChkMode: options.OnTableRead, Compression: options.None})
	if err != nil {
		return err
	}
	return t.VerifyChecksum()
}
