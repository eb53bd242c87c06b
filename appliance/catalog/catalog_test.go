package catalog_test

import (
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
