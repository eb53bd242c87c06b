package badgerfiles_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"

	"github.com/keelblock/keelblock/dedupe/blockstore/badgerfiles"
)

// closed makes a database with a table and closes it.
func closed(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	db, err := badger.Open(badger.DefaultOptions(dir).WithLogger(nil).WithCompression(options.None))
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(txn *badger.Txn) error {
		for i := range 100 {
			if err := txn.Set(fmt.Appendf(nil, "key %d", i), make([]byte, 100)); err != nil {
				return err
			}
		}
		return nil
	})
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestCheck(t *testing.T) {
	change := func(pattern string, do func(p []byte) []byte) func(t *testing.T, dir string) {
		return func(t *testing.T, dir string) {
			files, err := filepath.Glob(filepath.Join(dir, pattern))
			if err != nil || len(files) != 1 {
				t.Fatalf("%q, %v", files, err)
			}
			p, err := os.ReadFile(files[0])
			if err == nil {
				err = os.WriteFile(files[0], do(p), 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	flip := func(p []byte) []byte { p[len(p)/2] ^= 1; return p }
	half := func(p []byte) []byte { return p[:len(p)-3] }
	for name, tt := range map[string]struct {
		do              func(t *testing.T, dir string)
		clean, unclosed error // what Check says when it was closed cleanly, and when not
	}{
		"whole":                      {func(*testing.T, string) {}, nil, nil},
		"a bit of the table":         {change("*.sst", flip), badgerfiles.ErrDamaged, badgerfiles.ErrDamaged},
		"a table that is cut":        {change("*.sst", half), badgerfiles.ErrDamaged, badgerfiles.ErrDamaged},
		"an empty table":             {change("*.sst", func([]byte) []byte { return nil }), badgerfiles.ErrDamaged, badgerfiles.ErrDamaged},
		"half a change":              {change("MANIFEST", func(p []byte) []byte { return append(p, 0, 0, 0) }), badgerfiles.ErrDamaged, nil},
		"a bit of the manifest":      {change("MANIFEST", func(p []byte) []byte { p[2] ^= 1; return p }), badgerfiles.ErrDamaged, badgerfiles.ErrDamaged},
		"no manifest":                {func(t *testing.T, dir string) { os.Remove(filepath.Join(dir, "MANIFEST")) }, badgerfiles.ErrNoManifest, badgerfiles.ErrNoManifest},
		"a log that was only begun":  {func(t *testing.T, dir string) { os.WriteFile(filepath.Join(dir, "000009.mem"), nil, 0o600) }, nil, nil},
		"a folder that is not there": {func(t *testing.T, dir string) { os.RemoveAll(dir) }, badgerfiles.ErrNoManifest, badgerfiles.ErrNoManifest},
	} {
		t.Run(name, func(t *testing.T) {
			dir := closed(t)
			tt.do(t, dir)
			if err := badgerfiles.Check(dir, true); !errors.Is(err, tt.clean) {
				t.Errorf("closed cleanly: %v, want %v", err, tt.clean)
			}
			if err := badgerfiles.Check(dir, false); !errors.Is(err, tt.unclosed) {
				t.Errorf("after a kill: %v, want %v", err, tt.unclosed)
			}
		})
	}
}

func TestRemoveEmptyLogs(t *testing.T) {
	dir := t.TempDir()
	for name, content := range map[string]string{"000001.mem": "", "000002.vlog": "", "000003.mem": "x", "000004.sst": ""} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := badgerfiles.RemoveEmptyLogs(dir); err != nil {
		t.Fatal(err)
	}
	left, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(left) != 2 || filepath.Base(left[0]) != "000003.mem" || filepath.Base(left[1]) != "000004.sst" {
		t.Errorf("left: %q, %v", left, err)
	}
}
