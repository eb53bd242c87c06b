package daemon_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	kb "github.com/keelblock/keelblock/appliance/api/keelblockv1"
	"github.com/keelblock/keelblock/appliance/config"
	"github.com/keelblock/keelblock/appliance/vault"
)

// notCollected is what the daemon logs of a full vault when nothing is to be gained.
const notCollected = "a vault is not collected before its time"

// packFileBytes is what the files of the default vault's packs take.
func packFileBytes(t *testing.T, cfg config.Config) (total int64) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(cfg.VaultDir(), "packs", "*.pack"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		st, err := os.Stat(f)
		if err != nil {
			t.Fatal(err)
		}
		total += st.Size()
	}
	return total
}

// The space of purged points comes back, by hand and by itself; soft-deleted points and
// what others share stay, and read back.
func TestDemand46PurgedBytesReturn(t *testing.T) {
	cfg := testConfig(t, dataDir(t))
	cfg.CollectEvery = -1
	a := start(t, cfg)
	a.makeDisk(t, "web0", 32<<20)
	a.makeMachine(t, "web", "web0")
	g := newGuest(t, cfg, "web0", 46)
	var points []*kb.RecoveryPoint
	for range 4 {
		g.write(t, 0, 8<<20) // each point has its own
		points = append(points, a.backup(t, "web"))
	}
	want := slices.Clone(g.want)
	for _, p := range points[:2] {
		call(t, a.points.Delete, &kb.DeletePointRequest{Point: p.Id, Purge: true})
	}
	call(t, a.points.Delete, &kb.DeletePointRequest{Point: points[2].Id})
	before := packFileBytes(t, cfg)

	j := a.wait(t, call(t, a.vaults.Collect, &kb.CollectRequest{DryRun: true}))
	if j.State != "Completed" || len(j.Result) != 3 || !strings.HasPrefix(j.Result[2], "would free ") || !strings.HasPrefix(j.Result[0], points[2].Id) {
		t.Fatalf("dry run: %v", j)
	}
	j = a.wait(t, call(t, a.vaults.Collect, &kb.CollectRequest{}))
	if j.State != "Completed" || len(j.Result) != 1 || !strings.HasPrefix(j.Result[0], "freed ") {
		t.Fatalf("collect: %v", j)
	}
	after := packFileBytes(t, cfg)
	if freed := before - after; freed < 16<<20 || after < 16<<20 {
		t.Errorf("%d bytes in packs, %d before; 16 MiB are dead and 16 MiB live", after, before)
	}
	last := call(t, a.app.VaultStatus, &kb.VaultStatusRequest{}).LastCollection
	if last.Outcome != "completed" || last.Reason != "on request" || last.FreedBytes < 16<<20 || last.KeptBytes < 16<<20 || last.EndedAt == nil {
		t.Errorf("last collection: %v", last)
	}
	a.comparePoint(t, points[3].Id, "", want)
	call(t, a.points.Undelete, &kb.UndeletePointRequest{Point: points[2].Id})
	if j := a.wait(t, call(t, a.points.Verify, &kb.VerifyRequest{})); j.State != "Completed" || len(j.Result) != 2 {
		t.Errorf("verify: %v", j)
	}
	if _, err := tryCall(a.points.Get, &kb.GetPointRequest{Selector: points[0].Id}); err == nil {
		t.Error("a purged point is still there")
	}
	if p := a.backup(t, "web"); p.Tracking != "enabled" {
		t.Errorf("backup after the collection: %v", p)
	}
	call(t, a.points.Delete, &kb.DeletePointRequest{Point: points[2].Id, Purge: true})
	g.disconnect(t)
	a.stop()

	cfg.CollectEvery = 200 * time.Millisecond
	a = start(t, cfg)
	if l := call(t, a.app.VaultStatus, &kb.VaultStatusRequest{}).LastCollection; l.FreedBytes != last.FreedBytes && l.Reason == last.Reason {
		t.Errorf("last collection after a restart: %v, before %v", l, last)
	}
	deadline := time.Now().Add(jobTimeout)
	for packFileBytes(t, cfg) > after-6<<20 {
		if time.Now().After(deadline) {
			t.Fatalf("the daemon does not collect by itself: %d bytes in packs", packFileBytes(t, cfg))
		}
		time.Sleep(50 * time.Millisecond)
	}
	a.comparePoint(t, points[3].Id, "", want)
}

// collections are the jobs of collections, oldest first.
func (a *appliance) collections() (list []*kb.Job) {
	a.t.Helper()
	for _, j := range call(a.t, a.jobs.List, &kb.ListJobsRequest{}).Jobs {
		if j.Kind == "Collect" {
			list = append(list, j)
		}
	}
	return list
}

// waitCollection waits for the only collection, and for the end of its job.
func (a *appliance) waitCollection() *kb.Job {
	a.t.Helper()
	for deadline := time.Now().Add(jobTimeout); ; time.Sleep(20 * time.Millisecond) {
		if list := a.collections(); len(list) > 0 {
			return a.wait(a.t, list[0])
		}
		if time.Now().After(deadline) {
			a.t.Fatal("no collection begins by itself")
		}
	}
}

// A backup that meets a full vault, and free space below the mark, begin a collection by
// themselves, when there is something to free, and once.
func TestFullVaultIsCollectedEarly(t *testing.T) {
	cfg := testConfig(t, dataDir(t))
	cfg.CollectInterval, cfg.LogLevel = time.Hour, "debug"
	a := start(t, cfg)
	a.makeDisk(t, "web0", 32<<20)
	a.makeMachine(t, "web", "web0")
	g := newGuest(t, cfg, "web0", 47)
	var points []*kb.RecoveryPoint
	for range 4 {
		g.write(t, 0, 4<<20)
		points = append(points, a.backup(t, "web"))
	}
	want := slices.Clone(g.want)
	g.disconnect(t)
	call(t, a.points.Delete, &kb.DeletePointRequest{Point: points[0].Id, Purge: true})
	a.stop()

	space, err := vault.SpaceOf(cfg.DataDir)
	if err != nil {
		t.Fatal(err)
	}
	full := cfg
	full.VaultReserveBytes = space.Total // no backup has room
	a = start(t, full)
	failed := func() {
		t.Helper()
		if j := a.wait(t, call(t, a.machines.Backup, &kb.BackupRequest{Machine: "web"})); j.State != "Failed" || j.ErrorCode == "" {
			t.Errorf("backup into a full vault: %v", j)
		}
	}
	failed()
	j := a.waitCollection()
	if len(j.Result) != 2 || !strings.Contains(j.Result[0], "a backup of web found the vault full") || !strings.HasPrefix(j.Result[1], "freed ") {
		t.Errorf("collection: %v", j)
	}
	failed() // nothing was purged since
	a.waitLog(0, 1, notCollected, "a backup of web found the vault full")
	if n := len(a.collections()); n != 1 {
		t.Errorf("%d collections", n)
	}
	told := func() bool {
		return slices.ContainsFunc(call(t, a.app.Status, &kb.StatusRequest{}).Alerts, func(al *kb.Alert) bool {
			return al.ObjectName == "space of vault default" && strings.Contains(al.Text, "a collection freed ") && strings.Contains(al.Text, "--purge")
		})
	}
	for deadline := time.Now().Add(jobTimeout); !told(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("alerts: %v", call(t, a.app.Status, &kb.StatusRequest{}).Alerts)
		}
	}
	a.comparePoint(t, points[3].Id, "", want)
	a.stop()

	low := cfg
	low.CollectInterval = 50 * time.Millisecond
	low.VaultReserveBytes = space.Free / 5 * 3 // others use the file system meanwhile
	a = start(t, low)
	known := len(a.collections())
	call(t, a.points.Delete, &kb.DeletePointRequest{Point: points[1].Id, Purge: true})
	for deadline := time.Now().Add(jobTimeout); len(a.collections()) == known; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("no collection begins although little space is left")
		}
	}
	if j := a.wait(t, a.collections()[known]); j.State != "Completed" || !strings.Contains(j.Result[0], "bytes are free") {
		t.Errorf("collection: %v", j)
	}
	// The daemon looks at the space again and again, and leaves it at that.
	a.waitLog(a.waitLog(0, 0, notCollected), 3, notCollected)
	if n := len(a.collections()); n != known+1 {
		t.Errorf("%d collections follow one another", n-known)
	}
	if p := a.backup(t, "web"); p.Id == "" {
		t.Error("no backup")
	}
	a.comparePoint(t, points[3].Id, "", want)
}
