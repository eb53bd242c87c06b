package statefile_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/keelblock/keelblock/appliance/statefile"
)

type doc struct {
	Names []string `json:"names"`
}

func save(t *testing.T, path string, serial uint64, names ...string) {
	t.Helper()
	if err := statefile.Save(path, "test", serial, doc{names}); err != nil {
		t.Fatal(err)
	}
}

func TestSaveThenLoad(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.json")
	var d doc
	if l, err := statefile.Load(path, "test", &d); err != nil || l.Serial != 0 {
		t.Fatalf("a state that was never saved: serial %d, %v", l.Serial, err)
	}
	save(t, path, 1, "a")
	save(t, path, 2, "a", "b")
	l, err := statefile.Load(path, "test", &d)
	if err != nil || l.Serial != 2 || l.Damage != nil || len(d.Names) != 2 {
		t.Fatalf("got %+v %+v %v", l, d, err)
	}
	if _, err := statefile.Load(path, "other", &d); !errors.Is(err, statefile.ErrDamaged) {
		t.Fatalf("another kind was accepted: %v", err)
	}
}

// Any single flipped byte of either file must leave the newest state readable, and
// must be reported; flipped in both, it must be an error.
func TestFlippedByteIsNeverBelieved(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "s.json")
	save(t, path, 7, "web0", "web1")
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for i := range whole {
		bad := append([]byte(nil), whole...)
		bad[i] ^= 0x11
		for _, victim := range []string{path, path + ".copy"} {
			write(t, victim, bad)
			var d doc
			l, err := statefile.Load(path, "test", &d)
			if err != nil || l.Damage == nil || l.Serial != 7 || len(d.Names) != 2 {
				t.Fatalf("byte %d of %s: %+v %+v %v", i, victim, l, d, err)
			}
			write(t, victim, whole)
		}
		write(t, path, bad)
		write(t, path+".copy", bad)
		var d doc
		if _, err := statefile.Load(path, "test", &d); !errors.Is(err, statefile.ErrDamaged) {
			t.Fatalf("byte %d of both: %v, %+v", i, err, d)
		}
		write(t, path, whole)
		write(t, path+".copy", whole)
	}
}

func TestCopyOneSerialBehindIsNoDamage(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.json")
	save(t, path, 1, "old")
	old, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	save(t, path, 2, "new")
	write(t, path+".copy", old)
	var d doc
	if l, err := statefile.Load(path, "test", &d); err != nil || l.Damage != nil || d.Names[0] != "new" {
		t.Fatalf("%+v %+v %v", l, d, err)
	}
}

// A file of version 1 reads for ever, and is what Save writes today.
func TestGoldenVersion1(t *testing.T) {
	golden, err := os.ReadFile("testdata/v1.json")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "s.json")
	save(t, path, 42, "web0", "web1")
	if got, err := os.ReadFile(path); err != nil || string(got) != string(golden) {
		t.Fatalf("%v: Save writes\n%s\nthe golden file is\n%s", err, got, golden)
	}
	write(t, path, golden)
	var d doc
	if l, err := statefile.Load(path, "test", &d); err != nil || l.Serial != 42 || len(d.Names) != 2 {
		t.Fatalf("%+v %+v %v", l, d, err)
	}
}

func write(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func FuzzLoad(f *testing.F) {
	f.Add([]byte("keelblock-state 1 test 1 00\n{}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		path := filepath.Join(t.TempDir(), "s.json")
		write(t, path, data)
		var d doc
		_, _ = statefile.Load(path, "test", &d)
	})
}
