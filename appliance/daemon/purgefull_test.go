package daemon_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"connectrpc.com/connect"

	kb "github.com/keelblock/keelblock/appliance/api/keelblockv1"
	"github.com/keelblock/keelblock/appliance/vault"
)

// A vault below its reserve takes no backup, also after a restart, when no pack is open; but
// points are deleted, held, purged, and their space is freed.
func TestPointsArePurgedBelowTheReserve(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t, dataDir(t))
	cfg.CollectEvery = -1
	a := start(t, cfg)
	a.makeDisk(t, "web0", 16<<20)
	a.makeMachine(t, "web", "web0")
	g := newGuest(t, cfg, "web0", 48)
	var points []*kb.RecoveryPoint
	for range 3 {
		g.write(t, 0, 4<<20)
		points = append(points, a.backup(t, "web"))
	}
	g.disconnect(t)
	a.stop()

	space, err := vault.SpaceOf(cfg.DataDir)
	if err != nil {
		t.Fatal(err)
	}
	cfg.VaultReserveBytes = space.Total
	a = start(t, cfg)
	if j := a.wait(t, call(t, a.machines.Backup, &kb.BackupRequest{Machine: "web"})); j.State != "Failed" || j.ErrorCode != connect.CodeResourceExhausted.String() {
		t.Errorf("backup below the reserve: %v", j)
	}
	call(t, a.points.Delete, &kb.DeletePointRequest{Point: points[1].Id})
	call(t, a.points.Undelete, &kb.UndeletePointRequest{Point: points[1].Id})
	call(t, a.points.Hold, &kb.HoldPointRequest{Point: points[1].Id})
	_, err = tryCall(a.points.Delete, &kb.DeletePointRequest{Point: points[1].Id, Purge: true})
	wantCode(t, err, connect.CodePermissionDenied)
	call(t, a.points.Delete, &kb.DeletePointRequest{Point: points[0].Id, Purge: true})
	before := packFileBytes(t, cfg)
	if j := a.wait(t, call(t, a.vaults.Collect, &kb.CollectRequest{})); j.State != "Completed" {
		t.Errorf("collection below the reserve: %v", j)
	}
	if freed := before - packFileBytes(t, cfg); freed < 3<<20 {
		t.Errorf("%d bytes are freed, 4 MiB are dead", freed)
	}
	a.comparePoint(t, points[2].Id, "", g.want)
}

// On a file system without a free byte a point is purged in the room of the ballast, a
// collection frees its space, and when all others give back what they took the ballast is
// made again and backups go on: in one run of the daemon.
func TestFullVaultIsEmptiedInTheRoomOfTheBallast(t *testing.T) {
	t.Parallel() // mostly waits for syncs
	mnt := loopMount(t, "ext4", 400<<20)
	cfg := testConfig(t, filepath.Join(mnt, "kb"))
	cfg.CollectEvery, cfg.BallastBytes = -1, 40<<20
	backing := filepath.Join(dataDir(t), "web0.raw") // this is not about the disk's own file
	if f, err := os.Create(backing); err != nil || errors.Join(f.Truncate(64<<20), f.Close()) != nil {
		t.Fatal(err)
	}
	a := start(t, cfg)
	call(t, a.disks.Create, &kb.CreateDiskRequest{Name: "web0", Backing: backing})
	a.makeMachine(t, "web", "web0")
	g := newGuest(t, cfg, "web0", 49)
	var points []*kb.RecoveryPoint
	var kept [][]byte
	for range 3 {
		g.write(t, 0, 32<<20)
		points = append(points, a.backup(t, "web"))
		kept = append(kept, slices.Clone(g.want))
	}
	ballast := filepath.Join(cfg.DataDir, "ballast")
	there := func() bool { st, err := os.Stat(ballast); return err == nil && st.Size() == cfg.BallastBytes }
	if !there() {
		t.Fatal("there is no ballast")
	}
	hog := filepath.Join(mnt, "hog")
	fill(t, hog)
	failed := func() {
		t.Helper()
		g.write(t, 40<<20, 1<<20)
		j, err := tryCall(a.machines.Backup, &kb.BackupRequest{Machine: "web"})
		if err == nil {
			if j = a.wait(t, j); j.State != "Failed" || j.ErrorCode != connect.CodeResourceExhausted.String() {
				t.Fatalf("backup into a full vault: %v", j)
			}
			return
		}
		wantCode(t, err, connect.CodeResourceExhausted)
	}
	failed()
	if !there() {
		t.Fatal("a backup took the ballast")
	}
	call(t, a.points.Delete, &kb.DeletePointRequest{Point: points[0].Id, Purge: true})
	if there() {
		t.Fatal("the ballast is there, and a purge had no room")
	}
	collect := func() {
		t.Helper()
		if j := a.wait(t, call(t, a.vaults.Collect, &kb.CollectRequest{})); j.State != "Completed" || !strings.HasPrefix(j.Result[0], "freed ") {
			t.Fatalf("collection: %v", j)
		}
	}
	before := packFileBytes(t, cfg)
	collect()
	if freed := before - packFileBytes(t, cfg); freed < 24<<20 {
		t.Errorf("%d bytes are freed, 32 MiB are dead", freed)
	}

	// Somebody takes all of that, too: now nothing is left to give up.
	fill(t, hog+"2")
	_, err := tryCall(a.points.Delete, &kb.DeletePointRequest{Point: points[1].Id, Purge: true})
	wantCode(t, err, connect.CodeResourceExhausted)
	if err == nil || !strings.Contains(err.Error(), "free a few MiB") {
		t.Errorf("a purge without a byte: %v", err)
	}
	failed()
	a.comparePoint(t, points[1].Id, "", kept[1])
	a.comparePoint(t, points[2].Id, "", kept[2])
	if err := errors.Join(os.Remove(hog), os.Remove(hog+"2")); err != nil {
		t.Fatal(err)
	}
	call(t, a.points.Delete, &kb.DeletePointRequest{Point: points[1].Id, Purge: true})
	collect()
	if !there() {
		t.Error("the ballast is not made again")
	}
	a.comparePoint(t, points[2].Id, "", kept[2])
	a.comparePoint(t, a.backup(t, "web").Id, "", g.want)
	g.disconnect(t)
}
