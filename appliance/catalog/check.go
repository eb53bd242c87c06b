package catalog

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"
	"github.com/dgraph-io/badger/v4/table"
)

// checkFiles reads Badger's manifest and every table that it names, before Badger
// does. At a damaged table Badger 4.9.6 panics in a goroutine of its own, which ends the
// process and with it the disks; without its manifest it begins an empty database
// and deletes the tables. The catalog is small, so this costs little.
func checkFiles(dir string) error {
	f, err := os.Open(filepath.Join(dir, badger.ManifestFilename))
	if errors.Is(err, os.ErrNotExist) {
		tables, err := filepath.Glob(filepath.Join(dir, "*.sst"))
		if err == nil && len(tables) > 0 {
			err = fmt.Errorf("%w: tables without a manifest", ErrDamaged)
		}
		return err
	}
	if err != nil {
		return err
	}
	defer f.Close()
	m, end, err := badger.ReplayManifestFile(f, 0, badger.DefaultOptions(dir).WithLogger(nil))
	if err != nil {
		return fmt.Errorf("%w: manifest: %w", ErrDamaged, err)
	}
	// A log of a memory table is there unless the catalog was closed. Only after a kill
	// or a power cut the manifest may end in half a change.
	logs, err := filepath.Glob(filepath.Join(dir, "*.mem"))
	if err != nil {
		return err
	}
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if len(logs) == 0 && end != st.Size() {
		return fmt.Errorf("%w: manifest ends at %d of %d bytes", ErrDamaged, end, st.Size())
	}
	for id := range m.Tables {
		if err := checkTable(dir, id); err != nil {
			return fmt.Errorf("%w: table %06d.sst: %w", ErrDamaged, id, err)
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
