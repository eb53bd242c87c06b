package daemon_test

import (
	"bytes"
	"context"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"

	kb "github.com/keelblock/keelblock/appliance/api/keelblockv1"
	"github.com/keelblock/keelblock/blockdev/nbd/client"
)

// makeVault makes a vault and waits for it.
func (a *appliance) makeVault(r *kb.CreateVaultRequest) *kb.Vault {
	a.t.Helper()
	if j := a.wait(a.t, call(a.t, a.vaults.Create, r)); j.State != "Completed" {
		a.t.Fatalf("create vault: %v", j)
	}
	return a.vault(r.Name)
}

// vault is one of the list.
func (a *appliance) vault(name string) *kb.Vault {
	a.t.Helper()
	list := call(a.t, a.vaults.List, &kb.ListVaultsRequest{}).Vaults
	i := slices.IndexFunc(list, func(v *kb.Vault) bool { return v.Name == name })
	if i < 0 {
		a.t.Fatalf("vault %q is not in %v", name, list)
	}
	return list[i]
}

// backupInto makes a point in a vault.
func (a *appliance) backupInto(machine, vault string) *kb.RecoveryPoint {
	a.t.Helper()
	j := a.wait(a.t, call(a.t, a.machines.Backup, &kb.BackupRequest{Machine: machine, Vault: vault}))
	if j.State != "Completed" || len(j.Result) != 1 {
		a.t.Fatalf("backup: %v", j)
	}
	return call(a.t, a.points.Get, &kb.GetPointRequest{Selector: j.Result[0]}).Point
}

// fillBlocks writes n random blocks at the start of a disk.
func fillBlocks(t *testing.T, a *appliance, disk string, seed byte, n int) {
	t.Helper()
	c := open(t, a.cfg, disk)
	defer c.Close()
	p := make([]byte, 64<<10)
	for i := range n {
		for j := range p {
			p[j] = byte(j*7+i) ^ seed ^ byte(j>>8)
		}
		if _, err := c.WriteAt(p, int64(i)*int64(len(p))); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
}

// Demand 6: a vault has a unique name, there may be several, and they are isolated: what
// one has stored the other stores again, and the loss of one leaves the other whole.
func TestDemand06VaultsAreUniqueAndIsolated(t *testing.T) {
	cfg := testConfig(t, dataDir(t))
	a := start(t, cfg)
	a.makeDisk(t, "web0", 16<<20)
	a.makeMachine(t, "web", "web0")
	fillBlocks(t, a, "web0", 1, 64)
	a.makeVault(&kb.CreateVaultRequest{Name: "archive", Redundancy: "LRS"})
	for _, name := range []string{"archive", "default"} {
		_, err := tryCall(a.vaults.Create, &kb.CreateVaultRequest{Name: name})
		wantCode(t, err, connect.CodeAlreadyExists)
	}
	_, err := tryCall(a.vaults.Create, &kb.CreateVaultRequest{Name: "twin", Locations: []string{a.vault("archive").Locations[0].Path}})
	if err == nil {
		t.Error("a second vault in the folder of the first")
	}
	first, second := a.backupInto("web", ""), a.backupInto("web", "archive")
	if second.NewBytes != 64*64<<10 || first.NewBytes != second.NewBytes {
		t.Errorf("the vaults took %d and %d bytes, want 64 blocks each", first.NewBytes, second.NewBytes)
	}
	if second.Sequence <= first.Sequence {
		t.Errorf("sequence %d after %d", second.Sequence, first.Sequence)
	}
	if n := len(call(t, a.points.List, &kb.ListPointsRequest{Machine: "web"}).Points); n != 2 {
		t.Errorf("%d points are listed, want those of both vaults", n)
	}
	if p := call(t, a.points.Get, &kb.GetPointRequest{Selector: "web@latest"}).Point; p.Id != second.Id {
		t.Errorf("the latest is %s, want %s of the other vault", p.Id, second.Id)
	}
	folder := a.vault("archive").Locations[0].Path
	a.stop()

	// One vault's index is lost: it is closed, says what to do, and the other serves.
	if err := os.RemoveAll(filepath.Join(folder, "index")); err != nil {
		t.Fatal(err)
	}
	a = start(t, cfg)
	if v := a.vault("archive"); v.State != "closed" || !strings.Contains(v.Reason, "rebuild-index") {
		t.Errorf("a vault without an index: %v", v)
	}
	if j := a.wait(t, call(t, a.points.Verify, &kb.VerifyRequest{Point: first.Id})); j.State != "Completed" {
		t.Errorf("the point of the other vault: %v", j)
	}
	if j := a.wait(t, call(t, a.app.RebuildIndex, &kb.RebuildIndexRequest{Vault: "archive"})); j.State != "Completed" {
		t.Fatalf("rebuild: %v", j)
	}
	if j := a.wait(t, call(t, a.points.Verify, &kb.VerifyRequest{Point: second.Id})); j.State != "Completed" {
		t.Errorf("after the rebuild: %v", j)
	}
	_, err = tryCall(a.app.RebuildIndex, &kb.RebuildIndexRequest{Vault: "nowhere"})
	wantCode(t, err, connect.CodeNotFound)
}

// Demand 7: a vault is bound to the site that made it. Nobody names a storage account; at
// another site the vault is refused, with a code, and nothing of it is changed.
func TestDemand07VaultOfAnotherSiteIsRefused(t *testing.T) {
	here, there := testConfig(t, dataDir(t)), testConfig(t, dataDir(t))
	a := start(t, here)
	a.makeDisk(t, "web0", 1<<20)
	a.makeMachine(t, "web", "web0")
	fillBlocks(t, a, "web0", 1, 4)
	folder := filepath.Join(dataDir(t), "vault")
	a.makeVault(&kb.CreateVaultRequest{Name: "archive", Locations: []string{folder}})
	p := a.backupInto("web", "archive")
	a.stop()

	b := start(t, there)
	j := b.wait(t, call(t, b.vaults.Create, &kb.CreateVaultRequest{Name: "taken", Locations: []string{folder}}))
	if j.State != "Failed" || j.ErrorCode != "permission_denied" || !strings.Contains(j.Error, "belongs to site") {
		t.Errorf("a vault of another site: %v", j)
	}
	if list := call(t, b.vaults.List, &kb.ListVaultsRequest{}).Vaults; len(list) != 1 {
		t.Errorf("vaults after the refusal: %v", list)
	}
	b.stop()

	a = start(t, here)
	if j := a.wait(t, call(t, a.points.Verify, &kb.VerifyRequest{Point: p.Id})); j.State != "Completed" {
		t.Errorf("the point at its own site: %v", j)
	}
}

// Demand 9: a vault's redundancy is GRS unless it is said otherwise, may be changed, and
// is fixed from the first point on.
func TestDemand09RedundancyIsFixedByTheFirstPoint(t *testing.T) {
	cfg := testConfig(t, dataDir(t))
	a := start(t, cfg)
	if v := a.vault("default"); v.Redundancy != "GRS" {
		t.Errorf("the default vault is %s", v.Redundancy)
	}
	if v := a.makeVault(&kb.CreateVaultRequest{Name: "local", Redundancy: "LRS"}); v.Redundancy != "LRS" {
		t.Errorf("the new vault is %s", v.Redundancy)
	}
	_, err := tryCall(a.vaults.Create, &kb.CreateVaultRequest{Name: "odd", Redundancy: "ZRS"})
	wantCode(t, err, connect.CodeInvalidArgument)
	call(t, a.vaults.Edit, &kb.EditVaultRequest{Name: "local", Redundancy: "RA-GRS"})
	a.makeDisk(t, "web0", 1<<20)
	a.makeMachine(t, "web", "web0")
	a.backupInto("web", "local")
	_, err = tryCall(a.vaults.Edit, &kb.EditVaultRequest{Name: "local", Redundancy: "LRS"})
	if err == nil || !strings.Contains(err.Error(), "fixed since it holds recovery points") {
		t.Errorf("change after the first point: %v", err)
	}
	call(t, a.vaults.Edit, &kb.EditVaultRequest{Name: "local", Redundancy: "RA-GRS"}) // as it is
	a.stop()
	a = start(t, cfg)
	if v := a.vault("local"); v.Redundancy != "RA-GRS" {
		t.Errorf("after a restart the vault is %s", v.Redundancy)
	}
}

// Demand 47: backups are isolated from what they protect. Root in a guest, who has the
// guest's disk and its NBD connection, can destroy the disk; no byte that he sends
// reaches a point.
func TestDemand47GuestCannotReachItsPoints(t *testing.T) {
	cfg := testConfig(t, dataDir(t))
	a := start(t, cfg)
	a.makeDisk(t, "web0", 4<<20)
	a.makeMachine(t, "web", "web0")
	fillBlocks(t, a, "web0", 1, 64)
	p := a.backup(t, "web")

	guest := open(t, cfg, "web0")
	if _, err := guest.WriteAt(bytes.Repeat([]byte{0xff}, 4<<20), 0); err != nil {
		t.Fatal(err)
	}
	if err := guest.WriteZeroes(0, 4<<20, true); err != nil {
		t.Fatal(err)
	}
	guest.Close()
	// The point's own disk takes no write, whatever the client asks for.
	export := call(t, a.points.Export, &kb.ExportRequest{Point: p.Id, Name: "web-copy"})
	c, err := client.Dial(context.Background(), export.Uri)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.WriteAt(make([]byte, 4096), 0); err == nil {
		t.Error("a recovery point was written to")
	}
	// The control socket is not for those who may have disks: only the owner's user and
	// group get through run/, and the API is behind it.
	st, err := os.Stat(filepath.Dir(cfg.APISocket()))
	if err != nil {
		t.Fatal(err)
	}
	if mode := st.Mode().Perm(); mode&0o007 != 0 {
		t.Errorf("run/ has mode %o", mode)
	}
	if os.Getuid() == 0 {
		if err := asNobody(t, func() error {
			conn, err := net.DialTimeout("unix", cfg.APISocket(), time.Second)
			if err == nil {
				conn.Close()
			}
			return err
		}); err == nil {
			t.Error("nobody reached the API")
		}
	}
	if j := a.wait(t, call(t, a.points.Verify, &kb.VerifyRequest{Point: p.Id})); j.State != "Completed" {
		t.Errorf("the point afterwards: %v", j)
	}
}

// asNobody runs fn in a thread whose file system identity is that of nobody. The thread
// ends with it.
func asNobody(t *testing.T, fn func() error) error {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread dies with the goroutine
		const nobody = 65534
		if _, _, errno := syscall.RawSyscall(syscall.SYS_SETFSGID, nobody, 0, 0); errno != 0 {
			done <- nil
			return
		}
		if _, _, errno := syscall.RawSyscall(syscall.SYS_SETFSUID, nobody, 0, 0); errno != 0 {
			done <- nil
			return
		}
		done <- fn()
	}()
	return <-done
}
