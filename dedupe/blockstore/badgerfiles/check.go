package badgerfiles

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"
	"github.com/dgraph-io/badger/v4/table"
)

// The classes of errors of Check; any other is that of a file that cannot be read.
var (
	// ErrDamaged: a manifest or a table is not what Badger wrote.
	ErrDamaged = errors.New("damaged")
	// ErrNoManifest: there is no manifest, as in a folder where no database was made yet.
	ErrNoManifest = errors.New("no manifest")
)

// damage is an ErrDamaged that does not say so in its text: the caller has its own word.
type damage struct{ error }

func (d damage) Is(target error) bool { return target == ErrDamaged }

func (d damage) Unwrap() error { return d.error }

// Check reads Badger's manifest and every table that it names, and compares all checksums.
//
// clean says that the database was closed cleanly: only then a manifest that ends in half a
// change is damaged. After a kill or a power cut that is what Badger expects.
func Check(dir string, clean bool) error {
	f, err := os.Open(filepath.Join(dir, badger.ManifestFilename))
	if errors.Is(err, os.ErrNotExist) {
		return ErrNoManifest
	}
	if err != nil {
		return err
	}
	defer f.Close() // only read
	m, end, err := badger.ReplayManifestFile(f, 0, badger.DefaultOptions(dir).WithLogger(nil))
	if err != nil {
		return damage{fmt.Errorf("manifest: %w", err)}
	}
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if clean && end != st.Size() {
		return damage{fmt.Errorf("manifest ends at %d of %d bytes", end, st.Size())}
	}
	for id := range m.Tables {
		if err := checkTable(dir, id); err != nil {
			return damage{fmt.Errorf("table %06d.sst: %w", id, err)}
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

// RemoveEmptyLogs removes logs without a byte. Badger makes a log in two steps, the
// file and then its length; killed in between it leaves one that it refuses to open, once
// (4.9.6: "Create a new file"). Such a log has never held anything.
func RemoveEmptyLogs(dir string) error {
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
