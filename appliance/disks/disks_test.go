package disks_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keelblock/keelblock/appliance"
	"github.com/keelblock/keelblock/appliance/disks"
	"github.com/keelblock/keelblock/blockdev/cbt"
	"github.com/keelblock/keelblock/blockdev/nbd/server"
)

// registry opens the disks of dir, and closes them when the test ends.
func registry(t *testing.T, dir string) *served {
	t.Helper()
	r, err := tryRegistry(t, dir)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// served is a registry with its server.
type served struct {
	*disks.Registry
	server  *server.Server
	stopped bool
}

func tryRegistry(t *testing.T, dir string) (*served, error) {
	t.Helper()
	s := server.New(server.Options{})
	r, err := disks.Open(disks.Options{Dir: filepath.Join(dir, "disks"), SpillDir: filepath.Join(dir, "spill"),
		MapDir: filepath.Join(dir, "maps"), Clock: cbt.NewClock(), Server: s})
	if err != nil {
		return nil, err
	}
	r.SetOwners(map[string]string{})
	out := &served{Registry: r, server: s}
	t.Cleanup(func() { stop(t, out) })
	return out, nil
}

func create(t *testing.T, r *served, name string) *disks.Disk {
	t.Helper()
	d, err := r.Create(disks.Spec{Name: name, SizeBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// stop ends a registry as the daemon does. A second call is harmless.
func stop(t *testing.T, r *served) {
	t.Helper()
	if r.stopped {
		return
	}
	r.stopped = true
	if err := errors.Join(r.server.Shutdown(context.Background()), r.Close()); err != nil {
		t.Error(err)
	}
}

// A kill at any step of making or deleting a disk leaves the disk whole or absent, as
// the list says.
func TestStartFinishesOrForgetsWhatAKillLeft(t *testing.T) {
	dir := t.TempDir()
	r := registry(t, dir)
	for _, n := range []string{"whole", "made", "kept"} {
		create(t, r, n)
	}
	content := bytes.Repeat([]byte{7}, 4096)
	for _, n := range []string{"made", "kept"} {
		d, err := r.Get(n)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := d.Device().WriteAt(content, 0); err != nil {
			t.Fatal(err)
		}
	}
	stop(t, r)
	file := func(name string) string { return filepath.Join(dir, "disks", name) }
	foreign := disks.NewID() + ".map"
	// A disk that was listed but not renamed; one that was renamed but is still listed;
	// files of disks that are not listed; a map of a disk that is gone; a file of nobody.
	for _, err := range []error{
		os.Rename(file("made.raw"), file("made.raw.partial")),
		os.Rename(file("kept.raw"), file("kept.raw.deleted")),
		os.WriteFile(file("half.raw.partial"), content, 0o600),
		os.WriteFile(file("gone.raw.deleted"), content, 0o600),
		os.WriteFile(file(foreign), content, 0o600),
		os.WriteFile(filepath.Join(dir, "maps", foreign), content, 0o600),
		os.WriteFile(file("orphan.raw"), content, 0o600),
	} {
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
	}
	r = registry(t, dir)
	if l := r.List(); len(l) != 3 {
		t.Fatalf("%d disks", len(l))
	}
	for _, n := range []string{"made", "kept"} {
		d, err := r.Get(n)
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(content))
		if s, reason := d.State(); s == disks.Offline {
			t.Fatalf("%s: %s", n, reason)
		}
		if _, err := d.Device().ReadAt(got, 0); err != nil || !bytes.Equal(got, content) {
			t.Errorf("%s: %v", n, err)
		}
	}
	for _, n := range []string{"half.raw.partial", "gone.raw.deleted", foreign} {
		if _, err := os.Stat(file(n)); !os.IsNotExist(err) {
			t.Errorf("%s is left: %v", n, err)
		}
	}
	// Nobody's file is not ours to remove, nor to overwrite.
	if _, err := r.Create(disks.Spec{Name: "orphan", SizeBytes: 512}); !errors.Is(err, appliance.ErrExists) {
		t.Errorf("create over a foreign file: %v", err)
	}
	if got, err := os.ReadFile(file("orphan.raw")); err != nil || !bytes.Equal(got, content) {
		t.Errorf("the foreign file: %v", err)
	}
}

// A disk that is being filled is seen by nobody, keeps its name, and leaves nothing when
// it is given up.
func TestUnfinishedDisk(t *testing.T) {
	dir := t.TempDir()
	r := registry(t, dir)
	u, err := r.Begin(disks.Spec{Name: "new0", SizeBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Get("new0"); !errors.Is(err, appliance.ErrNotFound) {
		t.Errorf("it is seen: %v", err)
	}
	if _, err := r.Begin(disks.Spec{Name: "new0", SizeBytes: 1 << 20}); !errors.Is(err, appliance.ErrExists) {
		t.Errorf("its name is taken twice: %v", err)
	}
	if err := r.AddExport("new0", "", u.Device(), nil); !errors.Is(err, appliance.ErrExists) {
		t.Errorf("its name is exported: %v", err)
	}
	if err := errors.Join(u.Discard(), u.Discard()); err != nil {
		t.Fatal(err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "disks", "new0*")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	create(t, r, "new0")
}

func TestDamagedListIsReportedAndTheCopyServes(t *testing.T) {
	dir := t.TempDir()
	r := registry(t, dir)
	create(t, r, "web0")
	stop(t, r)
	list := filepath.Join(dir, "disks", "disks.json")
	if err := os.WriteFile(list, []byte("keelblock-state 1 disks"), 0o600); err != nil {
		t.Fatal(err)
	}
	r = registry(t, dir)
	if r.Damage() == nil || len(r.List()) != 1 {
		t.Fatalf("damage %v, %d disks", r.Damage(), len(r.List()))
	}
	create(t, r, "web1") // writes both anew
	stop(t, r)
	r = registry(t, dir)
	if r.Damage() != nil || len(r.List()) != 2 {
		t.Fatalf("damage %v, %d disks", r.Damage(), len(r.List()))
	}
	stop(t, r)
	for _, p := range []string{list, list + ".copy"} {
		if err := os.WriteFile(p, []byte("nothing"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := tryRegistry(t, dir); err == nil || !strings.Contains(err.Error(), "disks.json") {
		t.Fatalf("without any list: %v", err)
	}
	for _, n := range []string{"web0.raw", "web1.raw"} {
		if _, err := os.Stat(filepath.Join(dir, "disks", n)); err != nil {
			t.Errorf("a start without a list touched %s: %v", n, err)
		}
	}
}

func TestHeldDiskIsNotDeleted(t *testing.T) {
	r := registry(t, t.TempDir())
	create(t, r, "web0")
	_, release, err := r.Hold("web0")
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Delete(context.Background(), "web0"); !errors.Is(err, appliance.ErrInUse) {
		t.Errorf("held: %v", err)
	}
	release()
	if err := r.Claim("m", "web0"); err != nil {
		t.Fatal(err)
	}
	if err := r.Claim("other", "web0"); !errors.Is(err, appliance.ErrInUse) {
		t.Errorf("claimed twice: %v", err)
	}
	if err := r.Delete(context.Background(), "web0"); !errors.Is(err, appliance.ErrInUse) {
		t.Errorf("owned: %v", err)
	}
	r.Unclaim("m", "web0")
	if err := r.Delete(context.Background(), "web0"); err != nil {
		t.Error(err)
	}
}

func TestMapDirectoryIsOneForEachDataDirectory(t *testing.T) {
	a, b := t.TempDir(), t.TempDir()
	pa, err := disks.MapDirectory("", a)
	if err != nil {
		t.Fatal(err)
	}
	pb, err := disks.MapDirectory("", b)
	if err != nil {
		t.Fatal(err)
	}
	if pa == pb || strings.HasPrefix(pa, a) {
		t.Errorf("%s %s", pa, pb)
	}
	if p, err := disks.MapDirectory("/maps", a); err != nil || filepath.Dir(p) != "/maps" {
		t.Errorf("given: %s %v", p, err)
	}
}
