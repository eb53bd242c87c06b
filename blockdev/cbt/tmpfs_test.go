package cbt

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// smallTmpfs mounts a tmpfs of the test's own.
func smallTmpfs(t *testing.T, size string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting a tmpfs needs root")
	}
	dir := t.TempDir()
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size="+size, "keelblock-test", dir).CombinedOutput(); err != nil {
		t.Skipf("cannot mount a tmpfs: %v: %s", err, out)
	}
	t.Cleanup(func() { command(t, "umount", dir) })
	return dir
}

// fill leaves no page free.
func fill(t *testing.T, dir string) (free func()) {
	t.Helper()
	name := filepath.Join(dir, "ballast")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for err == nil {
		_, err = f.Write(make([]byte, 4096))
	}
	return func() { os.Remove(name) }
}

func TestFullTmpfsMakesTheDiskSuspectAndKillsNobody(t *testing.T) {
	d, c := newMemDisk(600*mib), NewClock()
	dir := smallTmpfs(t, "1m")
	o := options(t, d)
	o.MapPath = filepath.Join(dir, "map")
	tr := mustOpen(t, d, c, o)
	if err := tr.SetBase(PointID{1}); err != nil {
		t.Fatal(err)
	}
	mustWrite(t, tr, 0, 4096, 1) // leaf 0 exists
	empty := fill(t, dir)
	mustWrite(t, tr, 100*mib, 4096, 1)
	if state, reason := tr.Tracking(); state != TrackingEnabled {
		t.Fatalf("a leaf that exists is enough: %v: %s", state, reason)
	}
	mustWrite(t, tr, 500*mib-4096, 8192, 2) // another leaf
	if state, reason := tr.Tracking(); state != TrackingCompare || !strings.Contains(reason, "tmpfs") {
		t.Errorf("tracking %v: %s", state, reason)
	}
	if got := listed(tr); len(got) != 2 {
		t.Errorf("listed %v", got)
	}
	// What is not listed cannot be frozen, neither now nor in the middle of a full read.
	if _, err := c.Freeze([]*Tracker{tr}); !errors.Is(err, errIncomplete) {
		t.Errorf("freeze: %v", err)
	}
	if err := c.Baseline([]*Tracker{tr}); err != nil {
		t.Fatal(err)
	}
	mustWrite(t, tr, 300*mib, 4096, 2)
	if err := c.Advance([]*Tracker{tr}, nil); !errors.Is(err, errIncomplete) {
		t.Errorf("advance: %v", err)
	}
	if _, err := c.Freeze([]*Tracker{tr}); !errors.Is(err, errIncomplete) {
		t.Errorf("freeze after the failed advance: %v", err)
	}
	empty()
	if err := c.Baseline([]*Tracker{tr}); err != nil {
		t.Fatal(err)
	}
	mustWrite(t, tr, 300*mib, 4096, 3)
	z := mustFreeze(t, c, tr)
	f := z.Disks[0]
	err := f.Capture(context.Background(), Sink{Write: func(int64, []byte) error { return nil }})
	if err := errors.Join(err, f.Prepare(PointID{2}), f.Commit()); err != nil {
		t.Fatal(err)
	}
	if state, reason := tr.Tracking(); state != TrackingEnabled {
		t.Errorf("after the full read: %v: %s", state, reason)
	}
}

func TestTmpfsWithoutRoomForTheMap(t *testing.T) {
	d := newMemDisk(mib)
	dir := smallTmpfs(t, "64k")
	o := options(t, d)
	o.MapPath = filepath.Join(dir, "map")
	fill(t, dir)
	tr := mustOpen(t, d, NewClock(), o)
	if err := tr.SetBase(PointID{1}); err != nil {
		t.Fatal(err)
	}
	mustWrite(t, tr, 0, 4096, 1)
	if state, _ := tr.Tracking(); state != TrackingEnabled || len(listed(tr)) != 1 {
		t.Errorf("tracking %v, listed %v", state, listed(tr))
	}
	abandon(t, tr)
	tr = mustOpen(t, d, NewClock(), o)
	if state, _ := tr.Tracking(); state != TrackingCompare {
		t.Errorf("after a kill: %v", state)
	}
}

// TestMapGivesItsPagesBack: what a commit forgot does not stay in memory for ever.
func TestMapGivesItsPagesBack(t *testing.T) {
	d, c := newMemDisk(512*mib), NewClock()
	o := options(t, d)
	tr := mustOpen(t, d, c, o)
	for round := range 3 {
		for off := int64(0); off < d.Size(); off += 128 * mib {
			mustWrite(t, tr, off, 1, 1)
		}
		f := mustFreeze(t, c, tr).Disks[0]
		err := f.Capture(context.Background(), Sink{Write: func(int64, []byte) error { return nil }})
		if err := errors.Join(err, f.Prepare(PointID{2}), f.Commit()); err != nil {
			t.Fatal(err)
		}
		backed := 0
		for i := range tr.maps {
			for leaf := range int64(4) {
				backed += int(tr.maps[i].backed[0] >> leaf & 1)
			}
		}
		if round > 0 && backed > 4 {
			t.Errorf("round %d: %d leaves are backed, none is used", round, backed)
		}
	}
}
