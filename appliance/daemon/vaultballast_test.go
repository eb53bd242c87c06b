package daemon_test

import (
	"os"
	"path/filepath"
	"testing"

	kb "github.com/keelblock/keelblock/appliance/api/keelblockv1"
)

// A vault that lies on another file system than the data folder has a ballast of its own:
// with that file system full, a stop does not die while the index writes its last tables,
// nor does the start after it, and the point is there.
func TestVaultOnAFullFileSystemOfItsOwnIsStopped(t *testing.T) {
	t.Parallel() // mostly waits for syncs
	mnt := loopMount(t, "ext4", 400<<20)
	cfg := testConfig(t, dataDir(t))
	cfg.BallastBytes = 32 << 20
	p := startProcess(t, cfg)
	a := &appliance{t: t, cfg: cfg, clients: p.clients}
	a.makeVault(&kb.CreateVaultRequest{Name: "archive", Locations: []string{filepath.Join(mnt, "archive")}})
	p.makeDisk(t, "web0", 16<<20)
	p.makeMachine(t, "web", "web0")
	g := newGuest(t, cfg, "web0", 3)
	g.write(t, 0, 16<<20)
	point := a.wait(t, call(t, a.machines.Backup, &kb.BackupRequest{Machine: "web", Vault: "archive"}))
	if point.State != "Completed" {
		t.Fatal(point.Error)
	}
	id := call(t, a.points.List, &kb.ListPointsRequest{}).Points[0].Id
	g.disconnect(t)
	ballast := filepath.Join(mnt, "archive", "ballast")
	if st, err := os.Stat(ballast); err != nil || st.Size() != cfg.BallastBytes {
		t.Fatalf("the vault's ballast: %v, %v", st, err)
	}
	hog := filepath.Join(mnt, "hog")
	fill(t, hog)
	p.terminate()
	if _, err := os.Stat(ballast); !os.IsNotExist(err) {
		t.Errorf("the ballast is kept on a full file system: %v", err)
	}
	fill(t, hog+"2") // and others take what it gave up

	p = startProcess(t, cfg)
	a = &appliance{t: t, cfg: cfg, clients: p.clients}
	if err := os.Remove(hog); err != nil {
		t.Fatal(err)
	}
	p.terminate()
	p = startProcess(t, cfg)
	a = &appliance{t: t, cfg: cfg, clients: p.clients}
	a.comparePoint(t, id, "", g.want)
	if st, err := os.Stat(ballast); err != nil || st.Size() != cfg.BallastBytes {
		t.Errorf("the ballast does not come back with the space: %v, %v", st, err)
	}
	p.terminate()
}
