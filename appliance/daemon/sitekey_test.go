package daemon_test

import (
	"os"
	"path/filepath"
	"testing"

	"connectrpc.com/connect"

	kb "github.com/keelblock/keelblock/appliance/api/keelblockv1"
)

// Without the key that signs points none is made, but those that exist are given back.
func TestPointsAreReadWithoutTheSitesKey(t *testing.T) {
	cfg := testConfig(t, dataDir(t))
	p := startProcess(t, cfg)
	p.makeDisk(t, "web0", 8<<20)
	p.makeMachine(t, "web", "web0")
	g := newGuest(t, cfg, "web0", 1)
	g.write(t, 0, 1<<20)
	point := p.backup(t, "web")
	g.disconnect(t)
	p.terminate()
	path := filepath.Join(cfg.DataDir, "site.key")
	key, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	p = startProcess(t, cfg)
	a := &appliance{t: t, cfg: cfg, clients: p.clients}
	a.comparePoint(t, point.Id, "", g.want)
	if n := len(call(t, p.app.Status, &kb.StatusRequest{}).Alerts); n == 0 {
		t.Error("status has no alert")
	}
	j, err := tryCall(p.machines.Backup, &kb.BackupRequest{Machine: "web"})
	if err == nil {
		if j = p.wait(t, j); j.State != "Failed" {
			t.Errorf("a backup without a key: %v", j)
		}
	} else {
		wantCode(t, err, connect.CodeUnavailable)
	}
	p.terminate()
	if err := os.WriteFile(path, key, 0o600); err != nil {
		t.Fatal(err)
	}
	p = startProcess(t, cfg)
	p.backup(t, "web")
	p.terminate()
}
