package daemon_test

import (
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	kb "github.com/keelblock/keelblock/appliance/api/keelblockv1"
)

// A vault whose file system is mounted read-only stays closed and untouched, and says what
// to do; everything else works. Writable again, it is as it was.
func TestVaultOnReadOnlyMedia(t *testing.T) {
	t.Parallel() // mostly waits for syncs
	mnt := loopMount(t, "ext4", 100<<20)
	cfg := testConfig(t, dataDir(t))
	cfg.BallastBytes = 1 << 20
	a := start(t, cfg)
	a.makeVault(&kb.CreateVaultRequest{Name: "archive", Locations: []string{filepath.Join(mnt, "archive")}})
	a.makeDisk(t, "web0", 4<<20)
	a.makeMachine(t, "web", "web0")
	g := newGuest(t, cfg, "web0", 11)
	g.write(t, 0, 4<<20)
	if j := a.wait(t, call(t, a.machines.Backup, &kb.BackupRequest{Machine: "web", Vault: "archive"})); j.State != "Completed" {
		t.Fatal(j.Error)
	}
	id := call(t, a.points.List, &kb.ListPointsRequest{}).Points[0].Id
	g.disconnect(t)
	a.stop()
	remount := func(flags uintptr) {
		t.Helper()
		if err := unix.Mount("", mnt, "", unix.MS_REMOUNT|flags, ""); err != nil {
			t.Fatal(err)
		}
	}
	remount(unix.MS_RDONLY)
	a = start(t, cfg)
	if v := a.vault("archive"); v.State != "closed" || !strings.Contains(v.Reason, "mounted read-only") || strings.Contains(v.Reason, "rebuild-index") {
		t.Errorf("vault %s: %s", v.State, v.Reason)
	}
	j, err := tryCall(a.app.RebuildIndex, &kb.RebuildIndexRequest{Vault: "archive"})
	if err == nil {
		err = &jobError{a.wait(t, j).Error}
	}
	if !strings.Contains(err.Error(), "mount it for writing") {
		t.Errorf("rebuild of the index: %v", err)
	}
	a.comparePoint(t, a.backup(t, "web").Id, "", g.want) // the default vault has no part in it
	a.stop()
	remount(0)
	a = start(t, cfg)
	a.comparePoint(t, id, "", g.want)
}

type jobError struct{ text string }

func (e *jobError) Error() string { return e.text }
