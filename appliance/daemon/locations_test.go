package daemon_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	kb "github.com/keelblock/keelblock/appliance/api/keelblockv1"
	"github.com/keelblock/keelblock/appliance/config"
	"github.com/keelblock/keelblock/dedupe/dedupetest"
)

// locationsConfig is a configuration whose default vault has n locations.
func locationsConfig(t *testing.T, n int) (config.Config, []string) {
	t.Helper()
	dir := dataDir(t)
	cfg := testConfig(t, filepath.Join(dir, "data"))
	dirs := []string{cfg.VaultDir()}
	for i := 1; i < n; i++ {
		dirs = append(dirs, filepath.Join(dir, fmt.Sprintf("copy%d", i)))
	}
	cfg.VaultLocations, cfg.VerifyEvery = dirs[1:], "never"
	return cfg, dirs
}

// packsAt are the packs of a location, largest first.
func packsAt(t *testing.T, dir string) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "packs", "*.pack"))
	if err != nil {
		t.Fatal(err)
	}
	size := func(name string) int64 {
		st, err := os.Stat(name)
		if err != nil {
			return 0
		}
		return st.Size()
	}
	slices.SortFunc(names, func(a, b string) int { return int(size(b) - size(a)) })
	return names
}

// differ says where copies of packs are not equal, or "".
func differ(t *testing.T, dirs []string) string {
	t.Helper()
	first := packsAt(t, dirs[0])
	for _, dir := range dirs[1:] {
		if n := len(packsAt(t, dir)); n != len(first) {
			return fmt.Sprintf("%d packs at %s, %d at %s", n, dir, len(first), dirs[0])
		}
		for _, name := range first {
			a, err := os.ReadFile(name)
			if err != nil {
				return err.Error()
			}
			b, err := os.ReadFile(filepath.Join(dir, "packs", filepath.Base(name)))
			if err != nil {
				return err.Error()
			}
			if !bytes.Equal(a, b) {
				return fmt.Sprintf("%s differs at %s", filepath.Base(name), dir)
			}
		}
	}
	return ""
}

// flipIn flips a bit in the payload of the first record of a pack.
func flipIn(t *testing.T, pack string) {
	t.Helper()
	dedupetest.Flip(t, pack, 96+192+1000) // behind the pack's header and the record's
}

// within waits until what returns "", the reason why it is not so yet.
func within(t *testing.T, what func() string) {
	t.Helper()
	for end := time.Now().Add(jobTimeout); ; time.Sleep(50 * time.Millisecond) {
		reason := what()
		if reason == "" {
			return
		}
		if time.Now().After(end) {
			t.Fatal(reason)
		}
	}
}

// notIn says which location of the default vault is not in, or "".
func (a *appliance) notIn() string {
	for _, l := range call(a.t, a.app.VaultStatus, &kb.VaultStatusRequest{}).Locations {
		if l.State != "in" || l.MissingPacks > 0 {
			return fmt.Sprintf("location %s is %s and lacks %d packs: %s", l.Path, l.State, l.MissingPacks, l.Reason)
		}
	}
	return ""
}

// Demand 37: three copies of everything are kept; whatever is damaged, removed or lost
// of one of them, the points read back, and the copy returns by itself. Demand 77: after
// a backup all copies are identical.
func TestDemand37ThreeCopiesAndEachReturns(t *testing.T) {
	cfg, dirs := locationsConfig(t, 3)
	cfg.VerifyInterval = 100 * time.Millisecond
	a := start(t, cfg)
	a.makeDisk(t, "d", 32<<20)
	a.makeMachine(t, "vm", "d")
	g := newGuest(t, cfg, "d", 37)
	g.write(t, 0, 8<<20)
	first := a.backup(t, "vm")
	g.write(t, 4<<20, 8<<20)
	second := a.backup(t, "vm")
	a.stop()
	if text := differ(t, dirs); text != "" {
		t.Fatalf("after two backups: %s", text)
	}

	// The first copy is damaged, and the second one removed.
	packs := packsAt(t, dirs[0])
	flipIn(t, packs[0])
	for _, name := range packsAt(t, dirs[1]) {
		if err := os.Remove(name); err != nil {
			t.Fatal(err)
		}
	}
	a = start(t, cfg)
	a.comparePoint(t, second.Id, "d", g.want)
	j := a.wait(t, call(t, a.points.Verify, &kb.VerifyRequest{}))
	if j.State != "Completed" {
		t.Errorf("verification: %v", j)
	}
	if j.TotalBytes == 0 || j.DoneBytes != j.TotalBytes {
		t.Errorf("verification did %d of %d bytes", j.DoneBytes, j.TotalBytes)
	}
	within(t, a.notIn)
	if text := differ(t, dirs); text != "" {
		t.Errorf("after a verification: %s", text)
	}

	// The third one is lost while the daemon runs, which goes on with two and says so.
	if err := os.Rename(dirs[2], dirs[2]+".lost"); err != nil {
		t.Fatal(err)
	}
	g2 := newGuest(t, cfg, "d", 38)
	copy(g2.want, g.want)
	g2.write(t, 20<<20, 4<<20)
	third := a.backup(t, "vm")
	within(t, func() string {
		for _, alert := range call(t, a.app.Status, &kb.StatusRequest{}).Alerts {
			if alert.ObjectName == dirs[2] && strings.Contains(alert.Text, "out") {
				return ""
			}
		}
		return "no alert about the lost location"
	})
	if err := os.Mkdir(dirs[2], 0o700); err != nil { // a new disk
		t.Fatal(err)
	}
	within(t, a.notIn)
	a.comparePoint(t, third.Id, "d", g2.want)
	for _, id := range []string{first.Id, second.Id, third.Id} {
		if j := a.wait(t, call(t, a.points.Verify, &kb.VerifyRequest{Point: id})); j.State != "Completed" {
			t.Errorf("verification of %s: %v", id, j)
		}
	}
	a.stop()
	if text := differ(t, dirs); text != "" {
		t.Errorf("after a lost location was replaced: %s", text)
	}
}

// A damaged block of the newest point comes back from the live disk while the guest has
// not changed it; else it is in quarantine, its points are named, and the next backup
// that finds the content stores it again.
func TestVerifyHealsFromTheLiveDisk(t *testing.T) {
	cfg := testConfig(t, dataDir(t))
	cfg.VerifyEvery = "never"
	a := start(t, cfg)
	a.makeDisk(t, "d", 16<<20)
	a.makeMachine(t, "vm", "d")
	g := newGuest(t, cfg, "d", 1)
	g.write(t, 0, 4<<20)
	p := a.backup(t, "vm")
	a.stop()
	damage := func() { flipIn(t, packsAt(t, cfg.VaultDir())[0]) }
	damage()
	a = start(t, cfg)
	j := a.wait(t, call(t, a.points.Verify, &kb.VerifyRequest{Point: p.Id}))
	if j.State != "Completed" || !strings.Contains(strings.Join(j.Result, "\n"), "healed 1 blocks from the live disks") {
		t.Fatalf("verification of a point that the live disk can heal: %v", j)
	}
	a.comparePoint(t, p.Id, "d", g.want)
	a.stop()

	// Without the disk nothing heals it.
	cfg = testConfig(t, dataDir(t))
	cfg.VerifyEvery = "never"
	a = start(t, cfg)
	a.makeDisk(t, "d", 16<<20)
	a.makeMachine(t, "vm", "d")
	g = newGuest(t, cfg, "d", 2)
	g.write(t, 0, 4<<20)
	old := bytes.Clone(g.want)
	p = a.backup(t, "vm")
	g.write(t, 0, 4<<20) // all of it is other content now
	a.stop()
	damage()
	a = start(t, cfg)
	j = a.wait(t, call(t, a.points.Verify, &kb.VerifyRequest{Point: p.Id}))
	if j.State != "Failed" || j.ErrorCode != "data_loss" {
		t.Errorf("verification of a damaged point: %v", j)
	}
	check := func(when string, quarantined int64, points ...string) {
		t.Helper()
		v := call(t, a.app.VaultStatus, &kb.VaultStatusRequest{})
		if v.QuarantinedBlocks != quarantined || !slices.Equal(v.DamagedPoints, points) {
			t.Errorf("%s: %d blocks in quarantine and damaged points %q, want %d and %q", when, v.QuarantinedBlocks, v.DamagedPoints, quarantined, points)
		}
	}
	check("after the verification", 1, p.Id)
	a.stop()
	a = start(t, cfg)
	check("after a restart", 1, p.Id)
	c := open(t, cfg, "d")
	if _, err := c.WriteAt(old, 0); err != nil { // the guest writes the same again
		t.Fatal(err)
	}
	second := a.backup(t, "vm")
	check("after a backup with the content", 0, p.Id)
	for _, id := range []string{p.Id, second.Id} {
		if j := a.wait(t, call(t, a.points.Verify, &kb.VerifyRequest{Point: id})); j.State != "Completed" {
			t.Errorf("verification of %s: %v", id, j)
		}
	}
	check("after the second verification", 0)
}

// Points are verified by themselves, and what was is known after a restart.
func TestVerificationIsScheduled(t *testing.T) {
	cfg := testConfig(t, dataDir(t))
	cfg.VerifyEvery, cfg.VerifyInterval = "1s", 50*time.Millisecond
	a := start(t, cfg)
	a.makeDisk(t, "d", 16<<20)
	a.makeMachine(t, "vm", "d")
	newGuest(t, cfg, "d", 1).write(t, 0, 1<<20)
	p := a.backup(t, "vm")
	within(t, func() string {
		for _, j := range call(t, a.jobs.List, &kb.ListJobsRequest{}).Jobs {
			if j.Kind == "Verify" && j.ObjectName == "scheduled" && j.State == "Completed" && j.TotalBytes > 0 && j.DoneBytes == j.TotalBytes {
				return ""
			}
		}
		return "no scheduled verification"
	})
	a.stop()
	b, err := os.ReadFile(filepath.Join(cfg.DataDir, "verify.json"))
	if err != nil || !bytes.Contains(b, []byte(p.Id)) {
		t.Fatalf("verify.json does not name %s: %v", p.Id, err)
	}
	cfg.VerifyEvery = "7d" // nothing is due for long
	a = start(t, cfg)
	before := len(call(t, a.jobs.List, &kb.ListJobsRequest{}).Jobs)
	time.Sleep(10 * cfg.VerifyInterval)
	if after := len(call(t, a.jobs.List, &kb.ListJobsRequest{}).Jobs); after != before {
		t.Errorf("%d jobs more with nothing due", after-before)
	}
}
