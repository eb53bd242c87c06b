package disks_test

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/keelblock/keelblock/appliance"
	"github.com/keelblock/keelblock/appliance/disks"
	"github.com/keelblock/keelblock/appliance/statefile"
)

// farDevice is one that no machine has.
const farDevice = "/dev/nbd4095"

// keepAttached keeps until the test ends. It returns once Attach works, which a disk
// web1 shows: the far device is taken, or it is web1's.
func keepAttached(t *testing.T, r *served) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		r.KeepAttached(ctx)
		close(done)
	}()
	starting := func() bool {
		err := r.Attach(ctx, "web1", disks.Attached{Device: farDevice})
		return err != nil && strings.Contains(err.Error(), "starting or stopping")
	}
	for starting() {
		time.Sleep(time.Millisecond)
	}
	t.Cleanup(func() { cancel(); <-done })
}

// attachInList writes what Attach would have written.
func attachInList(t *testing.T, dir, name string) {
	t.Helper()
	path := filepath.Join(dir, "disks", "disks.json")
	var l struct {
		Disks []disks.Entry `json:"disks"`
	}
	loaded, err := statefile.Load(path, "disks", &l)
	if err != nil {
		t.Fatal(err)
	}
	for i := range l.Disks {
		if l.Disks[i].Name == name {
			l.Disks[i].Attached = &disks.Attached{Device: farDevice}
		}
	}
	if err := statefile.Save(path, "disks", loaded.Serial+1, l); err != nil {
		t.Fatal(err)
	}
}

func wantError(t *testing.T, err, kind error, words string) {
	t.Helper()
	if !errors.Is(err, kind) || !strings.Contains(err.Error(), words) {
		t.Errorf("error %v, want %v with %q", err, kind, words)
	}
}

// An attachment outlives the daemon, keeps its disk from being deleted and its device
// from another disk, until it is detached.
func TestAttachmentIsRemembered(t *testing.T) {
	dir := t.TempDir()
	r := registry(t, dir)
	create(t, r, "web0")
	create(t, r, "web1")
	stop(t, r)
	attachInList(t, dir, "web0")

	r = registry(t, dir)
	keepAttached(t, r)
	d, err := r.Get("web0")
	if err != nil {
		t.Fatal(err)
	}
	if path, _ := r.Device(d); path != farDevice {
		t.Errorf("attached to %q after a restart, want %s", path, farDevice)
	}
	wantError(t, r.Delete(t.Context(), "web0"), appliance.ErrInUse, "keelblock disk detach web0")
	create(t, r, "web2") // saves the list
	if path, _ := r.Device(d); path != farDevice {
		t.Errorf("attached to %q after another disk was made", path)
	}
	if err := r.Detach(t.Context(), "web0"); err != nil {
		t.Fatal(err)
	}
	wantError(t, r.Detach(t.Context(), "web0"), appliance.ErrInUse, "not attached")
	if err := r.Delete(t.Context(), "web0"); err != nil {
		t.Error(err)
	}
	stop(t, r)
	r = registry(t, dir)
	for _, d := range r.List() {
		if path, _ := r.Device(d); path != "" {
			t.Errorf("disk %s is attached to %s", d.Name(), path)
		}
	}
}

// Each refusal names the next step, and nothing is remembered.
func TestAttachRefuses(t *testing.T) {
	dir := t.TempDir()
	r := registry(t, dir)
	create(t, r, "web0")
	create(t, r, "web1")
	attach := func(name, device string, connections int) error {
		return r.Attach(t.Context(), name, disks.Attached{Device: device, Connections: connections})
	}
	wantError(t, attach("web0", farDevice, 0), appliance.ErrUnavailable, "starting or stopping")
	stop(t, r)
	attachInList(t, dir, "web1")
	r = registry(t, dir)
	keepAttached(t, r)
	wantError(t, attach("web9", farDevice, 0), appliance.ErrNotFound, "web9")
	wantError(t, attach("web0", "/dev/sda", 0), appliance.ErrInvalid, "whole device such as /dev/nbd0")
	wantError(t, attach("web0", "/dev/nbd0p1", 0), appliance.ErrInvalid, "whole device such as /dev/nbd0")
	wantError(t, attach("web0", farDevice, 17), appliance.ErrInvalid, "1 to 16")
	wantError(t, attach("web0", farDevice, 0), appliance.ErrInUse, `disk "web1" is attached`)
	wantError(t, attach("web1", "/dev/nbd1", 0), appliance.ErrInUse, "keelblock disk detach web1")
	d, err := r.Get("web0")
	if err != nil {
		t.Fatal(err)
	}
	if path, _ := r.Device(d); path != "" {
		t.Errorf("attached to %s after refusals", path)
	}
}
