package catalog_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/keelblock/keelblock/appliance/catalog"
)

type item struct {
	Disks []string `json:"disks"`
}

func open(t *testing.T, dir string) *catalog.DB {
	t.Helper()
	db, err := catalog.Open(dir, catalog.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return db
}

func TestDocumentsSurviveCloseAndStayInTheirCollection(t *testing.T) {
	dir := t.TempDir()
	db := open(t, dir)
	a, b := catalog.NewCollection[item](db, "a"), catalog.NewCollection[item](db, "ab")
	want := map[string]item{"web": {[]string{"web0"}}, "db": {[]string{"d0", "d1"}}}
	for n, v := range want {
		if err := a.Put(n, v); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Put("other", item{}); err != nil {
		t.Fatal(err)
	}
	if err := a.Put("gone", item{}); err != nil {
		t.Fatal(err)
	}
	if err := a.Delete("gone"); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if _, _, err := a.Get("web"); !errors.Is(err, catalog.ErrClosed) {
		t.Fatalf("read after close: %v", err)
	}
	db = open(t, dir)
	a = catalog.NewCollection[item](db, "a")
	got := map[string]item{}
	if err := a.Each(context.Background(), func(n string, v item) bool { got[n] = v; return true }); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Fatal(d)
	}
	if _, ok, err := a.Get("nobody"); ok || err != nil {
		t.Fatalf("absent: %v %v", ok, err)
	}
}

func TestUpdateIsAllOrNone(t *testing.T) {
	db := open(t, t.TempDir())
	c := catalog.NewCollection[item](db, "a")
	if err := c.Update(map[string]*item{"ok": {}, strings.Repeat("x", 300): {}}); err == nil {
		t.Fatal("a name of 300 bytes was accepted")
	}
	if _, ok, err := c.Get("ok"); ok || err != nil {
		t.Fatalf("half an update: %v %v", ok, err)
	}
}

// A damaged table must be an error of Open or of the read, never a panic and never
// another document.
func TestFlippedByteInTheTableIsAnError(t *testing.T) {
	dir := t.TempDir()
	db := open(t, dir)
	c := catalog.NewCollection[item](db, "a")
	for _, n := range []string{"a", "b", "c"} {
		if err := c.Put(n, item{[]string{strings.Repeat(n, 1000)}}); err != nil {
			t.Fatal(err)
		}
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	tables, err := filepath.Glob(filepath.Join(dir, "*.sst"))
	if err != nil || len(tables) == 0 {
		t.Fatalf("no table after close: %v %v", tables, err)
	}
	data, err := os.ReadFile(tables[0])
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)/3] ^= 0xff
	if err := os.WriteFile(tables[0], data, 0o600); err != nil {
		t.Fatal(err)
	}
	db, err = catalog.Open(dir, catalog.Options{})
	if err != nil {
		t.Logf("open says: %v", err)
		return
	}
	defer db.Close()
	c = catalog.NewCollection[item](db, "a")
	failed := false
	for _, n := range []string{"a", "b", "c"} {
		v, ok, err := c.Get(n)
		failed = failed || err != nil
		if err == nil && (!ok || v.Disks[0] != strings.Repeat(n, 1000)) {
			t.Fatalf("%s reads as %+v %v", n, v, ok)
		}
	}
	if !failed {
		t.Fatal("the flipped byte went unnoticed")
	}
}

// Badger ends the process at a table of wrong length, and forgets all when its manifest
// is gone: both must be errors, since the disks are served by the same process.
func TestDamagedFilesAreErrors(t *testing.T) {
	for name, damage := range map[string]func(path string) error{
		"*.sst cut":     func(p string) error { return os.Truncate(p, 100) },
		"*.sst empty":   func(p string) error { return os.Truncate(p, 0) },
		"*.sst zeroed":  func(p string) error { return os.WriteFile(p, make([]byte, 4096), 0o600) },
		"*.sst noise":   func(p string) error { return os.WriteFile(p, bytes.Repeat([]byte{0xa7, 3, 0x5e}, 2000), 0o600) },
		"*.sst gone":    os.Remove,
		"MANIFEST cut":  func(p string) error { return os.Truncate(p, 20) },
		"MANIFEST gone": os.Remove,
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			db, err := catalog.Open(dir, catalog.Options{})
			if err == nil {
				err = errors.Join(catalog.NewCollection[item](db, "a").Put("web", item{[]string{"web0"}}), db.Close())
			}
			if err != nil {
				t.Fatal(err)
			}
			pattern, _, _ := strings.Cut(name, " ")
			files, err := filepath.Glob(filepath.Join(dir, pattern))
			if err != nil || len(files) == 0 {
				t.Fatalf("no %s to damage: %v", pattern, err)
			}
			if err := damage(files[0]); err != nil {
				t.Fatal(err)
			}
			db, err = catalog.Open(dir, catalog.Options{})
			if err == nil {
				db.Close()
			}
			if !errors.Is(err, catalog.ErrDamaged) {
				t.Errorf("open: %v, want ErrDamaged", err)
			}
		})
	}
}

// A kill while Badger opens leaves a log of no length, which it would not open.
func TestKillWhileItOpens(t *testing.T) {
	for _, name := range []string{"00009.mem", "000009.vlog"} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			db := open(t, dir)
			if err := catalog.NewCollection[item](db, "a").Put("web", item{[]string{"web0"}}); err != nil {
				t.Fatal(err)
			}
			if err := db.Close(); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
				t.Fatal(err)
			}
			if _, ok, err := catalog.NewCollection[item](open(t, dir), "a").Get("web"); !ok || err != nil {
				t.Errorf("after the kill: %t, %v", ok, err)
			}
		})
	}
}
