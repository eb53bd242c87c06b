package daemon_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	kb "github.com/keelblock/keelblock/appliance/api/keelblockv1"
)

// Every stage that writes meets a file system without a byte left: it fails and says why,
// the point and the keys that there were stay, the disk goes on, and with space all works.
func TestStagesOnFullFileSystem(t *testing.T) {
	t.Parallel() // mostly waits for syncs
	mnt := loopMount(t, "ext4", 400<<20)
	cfg := testConfig(t, filepath.Join(mnt, "kb"))
	cfg.BallastBytes = 32 << 20                      // which a stop gives up
	backing := filepath.Join(dataDir(t), "web0.raw") // this is not about the disk's own file
	if f, err := os.Create(backing); err != nil || errors.Join(f.Truncate(16<<20), f.Close()) != nil {
		t.Fatal(err)
	}
	a := start(t, cfg)
	call(t, a.disks.Create, &kb.CreateDiskRequest{Name: "web0", Backing: backing})
	a.makeMachine(t, "web", "web0")
	g := newGuest(t, cfg, "web0", 17)
	g.write(t, 0, 8<<20)
	p := a.backup(t, "web")
	kept := append([]byte(nil), g.want...)
	g.write(t, 8<<20, 8<<20)

	hog := filepath.Join(mnt, "hog")
	fill(t, hog)
	job := func(j *kb.Job, err error) error {
		if err != nil {
			return err
		}
		if j = a.wait(t, j); j.State != "Completed" {
			return errors.New(j.Error)
		}
		return nil
	}
	for _, stage := range []struct {
		name string
		do   func() error
	}{
		{"backup", func() error { return job(tryCall(a.machines.Backup, &kb.BackupRequest{Machine: "web"})) }},
		{"key rotate", func() error { _, err := tryCall(a.keys.Rotate, &kb.RotateKeyRequest{}); return err }},
		{"key rotate to a new data key", func() error {
			_, err := tryCall(a.keys.Rotate, &kb.RotateKeyRequest{NewDataKey: true})
			return err
		}},
		{"vault create", func() error { return job(tryCall(a.vaults.Create, &kb.CreateVaultRequest{Name: "other"})) }},
	} {
		if err := stage.do(); err == nil || !strings.Contains(err.Error(), "space") {
			t.Errorf("%s: %v, want an error about space", stage.name, err)
		}
		a.comparePoint(t, p.Id, "", kept)
	}
	// An escrow file goes to the client's disk; what the daemon cannot note down is asked for again.
	if b, err := tryCall(a.keys.Backup, &kb.BackupKeysRequest{Secret: "a recovery secret"}); err != nil || len(b.Escrow) == 0 {
		t.Errorf("key backup: %v", err)
	}
	// A collection has nothing to free here, and may say either.
	if err := job(tryCall(a.vaults.Collect, &kb.CollectRequest{})); err != nil && !strings.Contains(err.Error(), "space") {
		t.Errorf("collection: %v", err)
	}
	g.write(t, 0, 1<<20)
	compare(t, "disk beside a full file system", g.dev, g.want)

	// A first start has no room for its first file.
	first := testConfig(t, filepath.Join(mnt, "first"))
	if err := runOnce(t, first); err == nil || !strings.Contains(err.Error(), "space") {
		t.Errorf("first start: %v, want an error about space", err)
	}
	g.disconnect(t)
	a.stop()

	// The index is rebuilt: with no room the old state stays, and the packs are not touched.
	if err := errors.Join(os.Remove(hog), os.RemoveAll(filepath.Join(cfg.VaultDir(), "index"))); err != nil {
		t.Fatal(err)
	}
	a = start(t, cfg)
	fill(t, hog)
	if err := job(tryCall(a.app.RebuildIndex, &kb.RebuildIndexRequest{})); err == nil || !strings.Contains(err.Error(), "space") {
		t.Errorf("rebuild: %v, want an error about space", err)
	}
	if err := os.Remove(hog); err != nil {
		t.Fatal(err)
	}
	if err := job(tryCall(a.app.RebuildIndex, &kb.RebuildIndexRequest{})); err != nil {
		t.Errorf("rebuild with space: %v", err)
	}
	a.comparePoint(t, p.Id, "", kept)
	call(t, a.keys.Rotate, &kb.RotateKeyRequest{NewDataKey: true})
	a.makeVault(&kb.CreateVaultRequest{Name: "other"})
	a.comparePoint(t, a.backup(t, "web").Id, "", g.want)
	a.stop()

	a = start(t, first) // what the first start left is no obstacle to a second one
	a.makeDisk(t, "web0", 1<<20)
	a.makeMachine(t, "web", "web0")
	a.backup(t, "web")
}
