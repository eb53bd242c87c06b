package vault

import (
	"errors"
	"path/filepath"
	"testing"

	"github.com/keelblock/keelblock/appliance"
)

// What compression a vault has is written down and is that of the next start; one that
// there is not is refused, in a plan as in a change.
func TestCompressionIsKept(t *testing.T) {
	dir := t.TempDir()
	s := newTestSet(t, dir)
	if err := s.Default().Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"lz4", "ZSTD"} {
		if _, err := s.Plan(Spec{Name: "odd", Compression: name}); !errors.Is(err, appliance.ErrInvalid) {
			t.Errorf("a plan with compression %q: %v", name, err)
		}
		if err := s.SetCompression(t.Context(), DefaultName, name); !errors.Is(err, appliance.ErrInvalid) {
			t.Errorf("a change to compression %q: %v", name, err)
		}
	}
	spec, err := s.Plan(Spec{Name: "archive", Compression: "zstd", Locations: []string{filepath.Join(dir, "archive")}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Create(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	if err := s.SetCompression(t.Context(), DefaultName, "none"); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	s = newTestSet(t, dir)
	want := map[string]string{DefaultName: "none", "archive": "zstd"}
	for _, v := range s.All() {
		if err := v.Open(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := v.Spec().Compression; got != want[v.Name()] {
			t.Errorf("after a start vault %s has compression %q, want %q", v.Name(), got, want[v.Name()])
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}
