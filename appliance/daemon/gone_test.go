package daemon_test

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	kb "github.com/keelblock/keelblock/appliance/api/keelblockv1"
)

// A daemon that starts while the vault's file system is not mounted serves disks, makes no
// vault there, says what to do, and opens the vault when its folder is back.
func TestVaultFolderIsEmpty(t *testing.T) {
	cfg := testConfig(t, dataDir(t))
	cfg.KMSRetry = 50 * time.Millisecond
	a := start(t, cfg)
	a.makeDisk(t, "web0", 16<<20)
	a.makeMachine(t, "web", "web0")
	p := a.backup(t, "web")
	a.stop()

	aside := cfg.VaultDir() + ".aside"
	if err := errors.Join(os.Rename(cfg.VaultDir(), aside), os.Mkdir(cfg.VaultDir(), 0o700)); err != nil {
		t.Fatal(err)
	}
	a = start(t, cfg)
	v := a.vault("default")
	if v.State != "closed" || !strings.Contains(v.Reason, cfg.VaultDir()) || !strings.Contains(v.Reason, "mount its file system") {
		t.Errorf("vault %v", v)
	}
	if _, err := tryCall(a.machines.Backup, &kb.BackupRequest{Machine: "web"}); err == nil {
		t.Error("a backup began")
	}
	if entries, err := os.ReadDir(cfg.VaultDir()); err != nil || len(entries) != 0 {
		t.Fatalf("in the folder: %v, %v", entries, err)
	}
	open(t, cfg, "web0").Close()

	if err := errors.Join(os.Remove(cfg.VaultDir()), os.Rename(aside, cfg.VaultDir())); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(jobTimeout); a.vault("default").State != "open"; {
		if time.Now().After(deadline) {
			t.Fatalf("the vault is not opened: %v", a.vault("default"))
		}
		time.Sleep(20 * time.Millisecond)
	}
	if j := a.wait(t, call(t, a.points.Verify, &kb.VerifyRequest{})); j.State != "Completed" || len(j.Result) != 1 || !strings.Contains(j.Result[0], p.Id) {
		t.Errorf("verify: %v", j)
	}
	if p := a.backup(t, "web"); p.Tracking != "enabled" {
		t.Errorf("the next backup: %v", p)
	}
}
