package daemon_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	kb "github.com/keelblock/keelblock/appliance/api/keelblockv1"
	"github.com/keelblock/keelblock/appliance/config"
	"github.com/keelblock/keelblock/appliance/keys"
	"github.com/keelblock/keelblock/appliance/transit/transittest"
)

// saveKeys makes an escrow file, so that no alert asks for one.
func (c clients) saveKeys(t *testing.T) *kb.BackupKeysResponse {
	t.Helper()
	b := call(t, c.keys.Backup, &kb.BackupKeysRequest{})
	call(t, c.keys.ConfirmBackup, &kb.ConfirmBackupRequest{BackupId: b.BackupId})
	return b
}

func (c clients) alertsAbout(t *testing.T, text string) int {
	t.Helper()
	n := 0
	for _, a := range call(t, c.app.Status, &kb.StatusRequest{}).Alerts {
		if strings.Contains(a.Text, text) {
			n++
		}
	}
	return n
}

// packsOf gives each pack's contents.
func packsOf(t *testing.T, cfg config.Config) map[string][]byte {
	t.Helper()
	out := map[string][]byte{}
	paths, err := filepath.Glob(filepath.Join(cfg.VaultDir(), "packs", "*"))
	if err != nil || len(paths) == 0 {
		t.Fatalf("%d packs, %v", len(paths), err)
	}
	for _, p := range paths {
		data, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		out[filepath.Base(p)] = data
	}
	return out
}

// samePacks fails unless the packs are the same files with the same bytes.
func samePacks(t *testing.T, what string, before, after map[string][]byte) {
	t.Helper()
	if !maps.EqualFunc(before, after, bytes.Equal) {
		t.Errorf("%s: packs changed", what)
	}
}

// grep counts the files below dir, but for those that skip says, with one of the texts.
func grep(t *testing.T, dir string, skip func(path string) bool, texts ...[]byte) int {
	t.Helper()
	n := 0
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || skip(path) {
			return err
		}
		data, err := os.ReadFile(path)
		for _, text := range texts {
			if bytes.Contains(data, text) {
				t.Logf("%s has %q", path, text[:min(24, len(text))])
				n++
				break
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// Nobody asked for it: after the first start and a backup, nothing of what a guest wrote, and
// nothing of the machine's definition, can be found outside its disk; and what the ids of blocks are cannot
// be told from a guess of their contents.
func TestDemand64EncryptionAtRestIsOnByDefault(t *testing.T) {
	cfg := testConfig(t, dataDir(t))
	a := start(t, cfg)
	a.makeDisk(t, "web0", 8<<20)
	call(t, a.machines.Create, &kb.CreateMachineRequest{Name: "web", Disks: []string{"web0"}, Definition: "<domain>a definition that nobody else shall read</domain>"})
	g := newGuest(t, cfg, "web0", 64)
	g.write(t, 0, 2<<20) // is stored as it is
	text := bytes.Repeat([]byte("the customer's address is 12 Keel Street. "), 4000)
	copy(g.want[4<<20:], text) // is compressed
	if _, err := g.dev.WriteAt(text, 4<<20); err != nil {
		t.Fatal(err)
	}
	p := a.backup(t, "web")
	a.comparePoint(t, p.Id, "", g.want)
	d := call(t, a.keys.Show, &kb.ShowKeysRequest{}).Domains
	if len(d) != 1 || d[0].Kind != "platform" || !d[0].Available {
		t.Errorf("keys: %v", d)
	}
	if v := call(t, a.vaults.List, &kb.ListVaultsRequest{}).Vaults[0]; v.Encryption != "XAES-256-GCM" || v.KeyKind != "platform" {
		t.Errorf("the vault: %v", v)
	}
	g.disconnect(t)
	a.stop()
	texts := [][]byte{[]byte("Keel Street"), []byte("that nobody else shall read")}
	for off := int64(0); off < 2<<20; off += 64 << 10 {
		texts = append(texts, g.want[off+100:off+132])
		guess := sha256.Sum256(g.want[off : off+64<<10])
		texts = append(texts, guess[:])
	}
	disk := filepath.Join(cfg.DisksDir(), "web0.raw")
	catalog := cfg.CatalogDir() + string(filepath.Separator)
	if n := grep(t, cfg.DataDir, func(path string) bool {
		// The definition of the machine as it is now is the catalog's.
		return path == disk || strings.HasPrefix(path, catalog)
	}, texts...); n > 0 {
		t.Errorf("plaintext in %d files", n)
	}
	if n := grep(t, cfg.DisksDir(), func(string) bool { return false }, texts[0]); n != 1 {
		t.Errorf("the scan finds the text in %d disks, so it proves nothing", n)
	}
}

// A vault that was made without encryption goes on as it is.
func TestUnencryptedVaultStaysAsItIs(t *testing.T) {
	cfg := testConfig(t, dataDir(t))
	a := start(t, cfg)
	a.wait(t, call(t, a.vaults.Create, &kb.CreateVaultRequest{Name: "old", Key: "none"}))
	a.makeDisk(t, "web0", 4<<20)
	a.makeMachine(t, "web", "web0")
	g := newGuest(t, cfg, "web0", 65)
	g.write(t, 0, 1<<20)
	backup := func() *kb.RecoveryPoint {
		j := a.wait(t, call(t, a.machines.Backup, &kb.BackupRequest{Machine: "web", Vault: "old"}))
		if j.State != "Completed" {
			t.Fatal(j)
		}
		return call(t, a.points.Get, &kb.GetPointRequest{Selector: j.Result[0]}).Point
	}
	first, then := backup(), slices.Clone(g.want)
	g.disconnect(t)
	a.stop()
	a = start(t, cfg)
	g.dev = open(t, cfg, "web0")
	g.write(t, 2<<20, 1<<20)
	a.comparePoint(t, backup().Id, "", g.want)
	a.comparePoint(t, first.Id, "", then)
	for _, d := range call(t, a.keys.Show, &kb.ShowKeysRequest{}).Domains {
		if d.Vault == "old" && (d.Kind != "none" || len(d.DataKeyIds) > 0) {
			t.Errorf("%v", d)
		}
	}
	if j := a.wait(t, call(t, a.vaults.Create, &kb.CreateVaultRequest{Name: "bad", Key: filepath.Join(cfg.DataDir, "missing")})); j.State != "Failed" {
		t.Errorf("a vault whose key file is missing: %v", j)
	}
	for _, v := range call(t, a.vaults.List, &kb.ListVaultsRequest{}).Vaults {
		if v.Name == "bad" {
			t.Errorf("it is there: %v", v)
		}
	}
}

// Rotation to each kind of customer's key: no pack is touched, byte by byte, and all points
// are readable at once and after a restart.
func TestDemand65RotationRewritesNoDataAndOldPointsStayReadable(t *testing.T) {
	cfg := testConfig(t, dataDir(t))
	srv := transittest.Start(t, true)
	cfg.KMSToken, cfg.KMSCACert = "hvs.test", filepath.Join(cfg.DataDir, "kms-ca.pem")
	file := filepath.Join(cfg.DataDir, "customer.key")
	if err := errors.Join(os.WriteFile(cfg.KMSCACert, srv.CACert, 0o600), os.WriteFile(file, bytes.Repeat([]byte{0xee}, 32), 0o600)); err != nil {
		t.Fatal(err)
	}
	cfg.Passphrases = []string{"correct horse battery"}
	a := start(t, cfg)
	a.makeDisk(t, "web0", 8<<20)
	a.makeMachine(t, "web", "web0")
	g := newGuest(t, cfg, "web0", 66)
	g.write(t, 0, 4<<20)
	first, then := a.backup(t, "web"), slices.Clone(g.want)
	rotations := []*kb.RotateKeyRequest{{}, {Key: file}, {}, {Key: "passphrase", Passphrase: "correct horse battery"},
		{Key: "kms:" + srv.URL + "/transit/keelblock"}, {}, {Key: "platform"}}
	for i, r := range rotations {
		before := packsOf(t, cfg)
		d := call(t, a.keys.Rotate, r)
		samePacks(t, fmt.Sprintf("rotation %d", i), before, packsOf(t, cfg))
		if !d.Available || len(d.DataKeyIds) != 1 {
			t.Errorf("rotation %d: %v", i, d)
		}
		a.comparePoint(t, first.Id, "", then)
		g.disconnect(t)
		a.stop()
		a = start(t, cfg)
		a.comparePoint(t, first.Id, "", then)
		g.dev = open(t, cfg, "web0")
		g.write(t, 4<<20+int64(i)*64<<10, 64<<10)
		a.comparePoint(t, a.backup(t, "web").Id, "", g.want)
	}
	// A new data key seals what is written from now on; nothing is rewritten either.
	before := packsOf(t, cfg)
	d := call(t, a.keys.Rotate, &kb.RotateKeyRequest{NewDataKey: true})
	if len(d.DataKeyIds) != 2 {
		t.Fatalf("%v", d)
	}
	g.write(t, 0, 1<<20)
	last := a.backup(t, "web")
	g.disconnect(t)
	a.stop()
	after := packsOf(t, cfg)
	id, err := hex.DecodeString(d.DataKeyIds[0])
	if err != nil {
		t.Fatal(err)
	}
	sealed := 0
	for name, data := range after {
		if !bytes.HasPrefix(data, before[name]) { // a pack that was open may have got more
			t.Errorf("pack %s was rewritten", name)
		}
		sealed += bytes.Count(data, id)
	}
	if sealed < 16 {
		t.Errorf("%d records are sealed by the new data key", sealed)
	}
	a = start(t, cfg)
	a.comparePoint(t, first.Id, "", then)
	a.comparePoint(t, last.Id, "", g.want)
	if j := a.wait(t, call(t, a.points.Verify, &kb.VerifyRequest{})); j.State != "Completed" {
		t.Errorf("verify: %v", j)
	}
}

// Keys are rotated again and again while a backup runs: it completes, and its point holds.
func TestDemand23KeyIsRotatedDuringABackup(t *testing.T) {
	cfg := testConfig(t, dataDir(t))
	a := start(t, cfg)
	const size = 64 << 20
	a.makeDisk(t, "web0", size)
	a.makeMachine(t, "web", "web0")
	g := newGuest(t, cfg, "web0", 23)
	g.write(t, 0, size)
	j := call(t, a.machines.Backup, &kb.BackupRequest{Machine: "web"})
	during := 0
	for i := 0; ; i++ {
		call(t, a.keys.Rotate, &kb.RotateKeyRequest{NewDataKey: i%2 == 0})
		if call(t, a.jobs.Get, &kb.GetJobRequest{JobId: j.JobId}).EndedAt != nil {
			break
		}
		during++
	}
	t.Logf("%d rotations while it ran", during)
	if during == 0 {
		t.Error("the backup ended before the first rotation")
	}
	if j = a.wait(t, j); j.State != "Completed" || len(j.Result) != 1 {
		t.Fatalf("backup: %v", j)
	}
	a.comparePoint(t, j.Result[0], "", g.want)
	g.disconnect(t)
	a.stop()
	a = start(t, cfg)
	a.comparePoint(t, j.Result[0], "", g.want)
	if v := a.wait(t, call(t, a.points.Verify, &kb.VerifyRequest{Point: j.Result[0]})); v.State != "Completed" {
		t.Errorf("verify: %v", v)
	}
}

// Everything that opens the keys is lost. With the escrow file and its secret the keys come back,
// then the machine; without the secret nobody reads anything in the file.
func TestDemand67KeysAreRestoredThenTheMachine(t *testing.T) {
	cfg := testConfig(t, dataDir(t))
	a := start(t, cfg)
	a.makeDisk(t, "web0", 4<<20)
	a.makeMachine(t, "web", "web0")
	g := newGuest(t, cfg, "web0", 67)
	g.write(t, 0, 2<<20)
	p := a.backup(t, "web")
	if a.alertsAbout(t, "keelblock key backup") != 1 {
		t.Error("nobody is told to save the keys")
	}
	escrow := a.saveKeys(t)
	if a.alertsAbout(t, "keelblock key backup") != 0 {
		t.Error("they are saved, and the alert stays")
	}
	g.disconnect(t)
	a.stop()
	secrets := platformSecrets(t, cfg)
	for _, s := range secrets {
		if bytes.Contains(escrow.Escrow, s) {
			t.Error("a secret can be read in the escrow file")
		}
	}
	for _, path := range []string{cfg.PlatformKeyFile(), cfg.KeysDir(), filepath.Join(cfg.VaultDir(), "keys"), filepath.Join(cfg.DisksDir(), "web0.raw")} {
		if err := os.RemoveAll(path); err != nil {
			t.Fatal(err)
		}
	}
	before := packsOf(t, cfg)
	a = start(t, cfg)
	st := call(t, a.app.VaultStatus, &kb.VaultStatusRequest{})
	if st.State != "closed" || !strings.Contains(st.Reason, "keelblock key restore") {
		t.Errorf("without keys: %v", st)
	}
	if _, err := tryCall(a.machines.Backup, &kb.BackupRequest{Machine: "web"}); err == nil {
		t.Error("a backup began without keys")
	}
	if _, err := os.Stat(cfg.PlatformKeyFile()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a new platform key over an old vault: %v", err)
	}
	a.makeDisk(t, "served", 1<<20) // disks are
	newGuest(t, cfg, "served", 1).write(t, 0, 4096)
	_, err := tryCall(a.keys.Restore, &kb.RestoreKeysRequest{Escrow: escrow.Escrow, Secret: "00000-00000-00000-00000-00000-00000"})
	wantCode(t, err, connect.CodeUnauthenticated)
	r := call(t, a.keys.Restore, &kb.RestoreKeysRequest{Escrow: escrow.Escrow, Secret: escrow.Secret})
	if len(r.Domains) != 1 || !r.Domains[0].Available || len(r.Warnings) > 0 {
		t.Errorf("restored: %v", r)
	}
	samePacks(t, "restoring the keys", before, packsOf(t, cfg))
	a.restore(t, p.Id, "web0", "web0-back")
	compare(t, "restored disk", open(t, cfg, "web0-back"), g.want)
	a.stop()
	a = start(t, cfg)
	a.comparePoint(t, p.Id, "", g.want)
}

// platformSecrets are the keys of a data folder, as they are and in hexadecimal.
func platformSecrets(t *testing.T, cfg config.Config) [][]byte {
	t.Helper()
	data, err := os.ReadFile(cfg.PlatformKeyFile())
	if err != nil {
		t.Fatal(err)
	}
	var out [][]byte
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); len(f) == 3 && f[0] != "keelblock-platform-key" {
			raw, err := hex.DecodeString(f[1])
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, raw, []byte(f[1]))
		}
	}
	if len(out) == 0 {
		t.Fatalf("no key in %s", data)
	}
	return out
}

// A key-management service that is away at the start keeps the vault closed, and disks
// served; when it comes back, the vault opens by itself. The wait is no death of the vault.
func TestServiceThatComesBackOpensTheVault(t *testing.T) {
	cfg := testConfig(t, dataDir(t))
	srv := transittest.Start(t, false)
	cfg.KMSTokenFile, cfg.KMSRetry = filepath.Join(cfg.DataDir, "token"), 200*time.Millisecond
	if err := os.WriteFile(cfg.KMSTokenFile, []byte("hvs.test\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	a := start(t, cfg)
	a.makeDisk(t, "web0", 1<<20)
	a.makeMachine(t, "web", "web0")
	p := a.backup(t, "web")
	call(t, a.keys.Rotate, &kb.RotateKeyRequest{Key: "kms:" + srv.URL + "/transit/keelblock"})
	a.stop()
	srv.Change(func(s *transittest.State) { s.Sealed = true })
	for range 3 { // more than the deaths that keep a vault closed
		a = start(t, cfg)
		st := call(t, a.app.VaultStatus, &kb.VaultStatusRequest{})
		if st.State == "open" || st.State == "closed" && !strings.Contains(st.Reason, "Vault is sealed") {
			t.Errorf("%v", st)
		}
		a.stop()
	}
	a = start(t, cfg)
	srv.Change(func(s *transittest.State) { s.Sealed = false })
	for end := time.Now().Add(jobTimeout); call(t, a.app.VaultStatus, &kb.VaultStatusRequest{}).State != "open"; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it stays closed")
		}
	}
	call(t, a.points.Get, &kb.GetPointRequest{Selector: p.Id})
	noLeftovers(t, cfg)
}

// The platform key of another appliance, or one that others can read, is no reason to make
// a new one.
func TestWrongPlatformKeyLeavesTheVaultClosedAndUntouched(t *testing.T) {
	cfg := testConfig(t, dataDir(t))
	a := start(t, cfg)
	a.makeDisk(t, "web0", 1<<20)
	a.makeMachine(t, "web", "web0")
	p := a.backup(t, "web")
	a.stop()
	good, err := os.ReadFile(cfg.PlatformKeyFile())
	if err != nil {
		t.Fatal(err)
	}
	other := keys.New(keys.Options{Dir: filepath.Join(cfg.DataDir, "x"), PlatformFile: filepath.Join(cfg.DataDir, "other.key")})
	if err := os.Mkdir(filepath.Join(cfg.DataDir, "unborn"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := other.Vault("x", "", keys.Spec{Kind: keys.KindPlatform}).Make(t.Context(), filepath.Join(cfg.DataDir, "unborn")); err != nil {
		t.Fatal(err)
	}
	foreign, err := os.ReadFile(filepath.Join(cfg.DataDir, "other.key"))
	if err != nil {
		t.Fatal(err)
	}
	before := packsOf(t, cfg)
	for _, tt := range []struct {
		name, want string
		data       []byte
		mode       os.FileMode
	}{
		{"of another appliance", "another appliance's", foreign, 0o600},
		{"damaged", "checksum", append(bytes.Clone(good), 'x'), 0o600},
		{"for all to read", "chmod 600", good, 0o644},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if err := errors.Join(os.WriteFile(cfg.PlatformKeyFile(), tt.data, tt.mode), os.Chmod(cfg.PlatformKeyFile(), tt.mode)); err != nil {
				t.Fatal(err)
			}
			a := start(t, cfg)
			st := call(t, a.app.VaultStatus, &kb.VaultStatusRequest{})
			if st.State != "closed" || !strings.Contains(st.Reason, tt.want) || strings.Contains(st.Reason, "rebuild-index") {
				t.Errorf("%v", st)
			}
			open(t, cfg, "web0").Close()
			a.stop()
			if now, err := os.ReadFile(cfg.PlatformKeyFile()); err != nil || !bytes.Equal(now, tt.data) {
				t.Errorf("the file changed: %v", err)
			}
		})
	}
	if err := errors.Join(os.WriteFile(cfg.PlatformKeyFile(), good, 0o600), os.Chmod(cfg.PlatformKeyFile(), 0o600)); err != nil {
		t.Fatal(err)
	}
	a = start(t, cfg)
	samePacks(t, "starts without the key", before, packsOf(t, cfg))
	call(t, a.points.Get, &kb.GetPointRequest{Selector: p.Id})
}
