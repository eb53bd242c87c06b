package vault

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keelblock/keelblock/appliance"
)

// A vault whose folder is empty at a later start stays closed and nothing is made there;
// it is opened when the folder is back, and made anew when somebody says so.
func TestEmptyFolderIsNoFirstStart(t *testing.T) {
	dir := t.TempDir()
	s := newTestSet(t, dir)
	if err := s.Default().Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	publish(t, s, 1)
	spec, err := s.Plan(Spec{Name: "archive", Locations: []string{filepath.Join(dir, "mnt", "archive")}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Create(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	s = newTestSet(t, dir) // a second start finds both
	for _, v := range s.All() {
		if err := v.Open(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	aside := filepath.Join(dir, "aside")
	if err := os.Rename(filepath.Join(dir, "vault"), aside); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "vault"), 0o700); err != nil { // a mount point
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(dir, "mnt")); err != nil {
		t.Fatal(err)
	}

	s = newTestSet(t, dir)
	for _, v := range s.All() {
		err := v.Open(t.Context())
		if !errors.Is(err, ErrGone) || !errors.Is(err, appliance.ErrUnavailable) || !strings.Contains(err.Error(), v.Spec().Dir) || !strings.Contains(err.Error(), "keelblock vault create "+v.Name()) {
			t.Errorf("vault %s: %v", v.Name(), err)
		}
		if empty, err := isEmpty(v.Spec().Dir); !empty {
			t.Errorf("something was made in the folder of vault %s: %v", v.Name(), err)
		}
		if v.IsBack() {
			t.Errorf("vault %s is back", v.Name())
		}
	}

	v, err := s.Get("archive")
	if err != nil {
		t.Fatal(err)
	}
	old := v.Spec().ID
	if spec, err = s.Plan(Spec{Name: "archive", Locations: []string{filepath.Join(dir, "mnt", "archive")}}); err != nil {
		t.Fatal(err)
	}
	if v, err = s.Create(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	if id := v.Spec().ID; id == old || len(id) != 32 {
		t.Errorf("the vault that was made anew has id %q, the old one %q", id, old)
	}
	if _, err := s.Plan(Spec{Name: "archive"}); !errors.Is(err, appliance.ErrExists) {
		t.Errorf("a second vault of the name: %v", err)
	}

	d := s.Default()
	if err := errors.Join(os.Remove(d.Spec().Dir), os.Rename(aside, d.Spec().Dir)); err != nil {
		t.Fatal(err)
	}
	if !d.IsBack() {
		t.Error("the default vault is not seen to be back")
	}
	if err := d.Open(t.Context()); err != nil || len(d.Peek().Points.List("web", false)) != 1 {
		t.Errorf("the default vault after its folder came back: %v", err)
	}
}

// The default vault is made anew where it was, and a kill before its id was written down
// is no reason to refuse it.
func TestDefaultVaultAnew(t *testing.T) {
	dir := t.TempDir()
	for range 2 {
		s := newTestSet(t, dir)
		if err := s.Default().Open(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"vaults.json", "vaults.json.copy"} {
			if err := os.Remove(filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	s := newTestSet(t, dir)
	if err := s.Default().Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.Close(), os.RemoveAll(filepath.Join(dir, "vault"))); err != nil {
		t.Fatal(err)
	}
	s = newTestSet(t, dir)
	if err := s.Default().Open(t.Context()); !errors.Is(err, ErrGone) {
		t.Errorf("open: %v", err)
	}
	if _, err := s.Plan(Spec{Name: DefaultName, Locations: []string{dir + "/elsewhere"}}); !errors.Is(err, appliance.ErrInvalid) {
		t.Errorf("the default vault in another folder: %v", err)
	}
	spec, err := s.Plan(Spec{Name: DefaultName})
	if err != nil {
		t.Fatal(err)
	}
	if v, err := s.Create(t.Context(), spec); err != nil || v != s.Default() || v.Spec().Dir != dir+"/vault" {
		t.Errorf("create: %v", err)
	}
	publish(t, s, 1)
}
