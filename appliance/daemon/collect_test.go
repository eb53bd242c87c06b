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
)

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
	deadline := time.Now().Add(jobTimeout)
	for packFileBytes(t, cfg) > after-6<<20 {
		if time.Now().After(deadline) {
			t.Fatalf("the daemon does not collect by itself: %d bytes in packs", packFileBytes(t, cfg))
		}
		time.Sleep(50 * time.Millisecond)
	}
	a.comparePoint(t, points[3].Id, "", want)
}
