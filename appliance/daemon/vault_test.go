package daemon_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	kb "github.com/keelblock/keelblock/appliance/api/keelblockv1"
	"github.com/keelblock/keelblock/appliance/disks"
	"github.com/keelblock/keelblock/appliance/vault"
)

// flipEveryPage damages a file so that no part of it can be believed.
func flipEveryPage(t *testing.T, path string) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for i := 7; i < len(data); i += 64 {
		data[i] ^= 0x5a
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// A vault that cannot be opened never takes the disks down: they are served, the API
// says what is wrong and what to do, and the index is made anew from the packs.
func TestBrokenVaultLeavesDisksServed(t *testing.T) {
	t.Parallel() // mostly waits for syncs
	for _, victim := range []string{"index/*.sst", "index/MANIFEST", "index"} {
		t.Run(strings.ReplaceAll(victim, "/", " "), func(t *testing.T) {
			cfg := testConfig(t, dataDir(t))
			a := start(t, cfg)
			a.makeDisk(t, "web0", 8<<20)
			a.makeMachine(t, "web", "web0")
			g := newGuest(t, cfg, "web0", 3)
			g.write(t, 1<<20, 3<<20)
			p := a.backup(t, "web")
			g.disconnect(t)
			a.stop()

			files, err := filepath.Glob(filepath.Join(cfg.VaultDir(), victim))
			if err != nil || len(files) == 0 {
				t.Fatalf("nothing to damage: %v %v", files, err)
			}
			for _, f := range files {
				if victim == "index" { // a folder that is none
					if err := os.RemoveAll(f); err != nil {
						t.Fatal(err)
					}
					if err := os.WriteFile(f, []byte("not an index"), 0o600); err != nil {
						t.Fatal(err)
					}
					continue
				}
				flipEveryPage(t, f)
			}

			a = start(t, cfg)
			compare(t, "disk beside a broken vault", open(t, cfg, "web0"), g.want)
			st := call(t, a.app.Status, &kb.StatusRequest{})
			if st.Vault.State == "open" {
				t.Log("the vault healed itself")
			} else {
				if st.Vault.State != "closed" || !strings.Contains(st.Vault.Reason, "rebuild-index") || len(st.Alerts) == 0 {
					t.Fatalf("status: %v %v", st.Vault, st.Alerts)
				}
				_, err = tryCall(a.machines.Backup, &kb.BackupRequest{Machine: "web"})
				wantCode(t, err, connect.CodeUnavailable)
				if !strings.Contains(err.Error(), "rebuild-index") {
					t.Errorf("the next step is missing: %v", err)
				}
				// New disks can be made, machines can be seen.
				a.makeDisk(t, "new0", 1<<20)
				if m := call(t, a.machines.Get, &kb.GetMachineRequest{Name: "web"}); len(m.Disks) != 1 {
					t.Errorf("machine: %v", m)
				}
				j := a.wait(t, call(t, a.app.RebuildIndex, &kb.RebuildIndexRequest{}))
				if j.State != "Completed" {
					t.Fatalf("rebuild: %v", j)
				}
			}
			a.comparePoint(t, p.Id, "", g.want)
			if next := a.backup(t, "web"); next.Tracking != "enabled" || next.ReadBytes != 0 {
				t.Errorf("backup after the rebuild: %v", next)
			}
		})
	}
}

// A vault whose superblock is damaged stays closed; nothing is made over it.
func TestDamagedSuperblockIsRefused(t *testing.T) {
	cfg := testConfig(t, dataDir(t))
	a := start(t, cfg)
	a.makeDisk(t, "web0", 1<<20)
	a.stop()
	entries, err := os.ReadDir(cfg.VaultDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Type().IsRegular() {
			flipEveryPage(t, filepath.Join(cfg.VaultDir(), e.Name()))
		}
	}
	a = start(t, cfg)
	if st := call(t, a.app.VaultStatus, &kb.VaultStatusRequest{}); st.State != "closed" || st.Reason == "" {
		t.Fatalf("vault: %v", st)
	}
	if d := call(t, a.disks.Get, &kb.GetDiskRequest{Name: "web0"}); d.State != "online" {
		t.Fatalf("disk: %v", d)
	}
}

// Two starts that die while opening leave the vault closed at the third, with the way
// out; an opening that ends, well or not, leaves no trace.
func TestDeathsWhileOpeningKeepTheVaultClosed(t *testing.T) {
	cfg := testConfig(t, dataDir(t))
	a := start(t, cfg)
	a.makeDisk(t, "web0", 1<<20)
	a.stop()
	noLeftovers(t, cfg)
	m := vault.NewMarker(filepath.Join(cfg.DataDir, "vault.opening"))
	for range 2 { // what a start does that then dies
		if ok, err := m.Enter(); !ok || err != nil {
			t.Fatal(ok, err)
		}
	}
	a = start(t, cfg)
	st := call(t, a.app.Status, &kb.StatusRequest{})
	if st.Vault.State != "closed" || !strings.Contains(st.Vault.Reason, "vault rebuild-index") || len(st.Disks) != 1 {
		t.Fatalf("status: %v", st)
	}
	_, err := tryCall(a.machines.List, &kb.ListMachinesRequest{})
	wantCode(t, err, connect.CodeUnavailable)
	_, err = tryCall(a.disks.Delete, &kb.DeleteDiskRequest{Name: "web0"})
	wantCode(t, err, connect.CodeUnavailable)
	a.stop()
	a = start(t, cfg) // stays closed, however often it is started
	if j := a.wait(t, call(t, a.app.RebuildIndex, &kb.RebuildIndexRequest{})); j.State != "Completed" {
		t.Fatalf("rebuild: %v", j)
	}
	a.makeMachine(t, "web", "web0")
	a.backup(t, "web")
	a.stop()
	noLeftovers(t, cfg)
}

// A damaged catalog takes neither disks nor points down.
func TestBrokenCatalogLeavesDisksAndPoints(t *testing.T) {
	cfg := testConfig(t, dataDir(t))
	a := start(t, cfg)
	a.makeDisk(t, "web0", 4<<20)
	a.makeMachine(t, "web", "web0")
	g := newGuest(t, cfg, "web0", 4)
	g.write(t, 0, 1<<20)
	p := a.backup(t, "web")
	g.disconnect(t)
	a.stop()
	flipEveryPage(t, filepath.Join(cfg.CatalogDir(), "MANIFEST"))
	a = start(t, cfg)
	_, err := tryCall(a.machines.Get, &kb.GetMachineRequest{Name: "web"})
	wantCode(t, err, connect.CodeUnavailable)
	a.comparePoint(t, p.Id, "", g.want)
	a.restore(t, p.Id, "", "back0")
	compare(t, "restored without a catalog", open(t, cfg, "back0"), g.want)
	a.stop()
	// The way out that the error names: the machine is made anew and goes on with its
	// points.
	if err := os.RemoveAll(cfg.CatalogDir()); err != nil {
		t.Fatal(err)
	}
	a = start(t, cfg)
	a.makeMachine(t, "web", "web0")
	if next := a.backup(t, "web"); next.Sequence != p.Sequence+1 || next.Tracking != "enabled" {
		t.Errorf("next point: %v", next)
	}
}

// A stop while a backup runs is bounded, leaves no half point, and the next backup is
// right.
func TestStopDuringBackup(t *testing.T) {
	cfg := testConfig(t, dataDir(t))
	a := start(t, cfg)
	a.makeDisk(t, "web0", 64<<20)
	a.makeMachine(t, "web", "web0")
	g := newGuest(t, cfg, "web0", 5)
	g.write(t, 0, 60<<20)
	j := call(t, a.machines.Backup, &kb.BackupRequest{Machine: "web"})
	time.Sleep(50 * time.Millisecond)
	g.disconnect(t)
	began := time.Now()
	a.stop()
	if d := time.Since(began); d > 10*time.Second {
		t.Errorf("the stop took %v", d)
	}
	noLeftovers(t, cfg)
	a = start(t, cfg)
	j = call(t, a.jobs.Get, &kb.GetJobRequest{JobId: j.JobId})
	list := call(t, a.points.List, &kb.ListPointsRequest{}).Points
	switch {
	case j.State == "Cancelled" && len(list) == 0:
	case j.State == "Completed" && len(list) == 1:
		t.Log("the backup was quicker than the stop")
	default:
		t.Errorf("job %v with %d points", j, len(list))
	}
	p := a.backup(t, "web")
	a.comparePoint(t, p.Id, "", g.want)
}

// Two daemons on one data directory.
func TestSecondDaemonIsRefused(t *testing.T) {
	cfg := testConfig(t, dataDir(t))
	a := start(t, cfg)
	err := runOnce(t, cfg)
	if err == nil || !strings.Contains(err.Error(), cfg.DataDir) || !strings.Contains(err.Error(), "pid") {
		t.Fatalf("second daemon: %v", err)
	}
	// The first one is unharmed, its sockets are its own.
	a.makeDisk(t, "web0", 1<<20)
	open(t, cfg, "web0")
}

// Without a tmpfs for the maps disks are served all the same, and status says what that
// costs.
func TestUnusableMapDirectoryLeavesDisksServed(t *testing.T) {
	cfg := testConfig(t, dataDir(t))
	if disks.IsTmpfs(cfg.DataDir) {
		t.Skip("TMPDIR is on tmpfs, so the folder that takes the place of --map-dir is as good")
	}
	file := filepath.Join(t.TempDir(), "not-a-folder")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	cfg.MapDir = file
	a := start(t, cfg)
	a.makeDisk(t, "web0", 4<<20)
	a.makeMachine(t, "web", "web0")
	g := newGuest(t, cfg, "web0", 6)
	g.write(t, 0, 1<<20)
	p := a.backup(t, "web")
	a.comparePoint(t, p.Id, "", g.want)
	a.saveKeys(t)
	alerts := call(t, a.app.Status, &kb.StatusRequest{}).Alerts
	if len(alerts) != 1 || !strings.Contains(alerts[0].Text, "--map-dir") {
		t.Errorf("alerts: %v", alerts)
	}
	warned := false
	for _, f := range call(t, a.app.Doctor, &kb.DoctorRequest{}).Findings {
		warned = warned || f.Check == "map directory" && f.Result == "warn"
	}
	if !warned {
		t.Error("the doctor finds nothing wrong with the map directory")
	}
}
