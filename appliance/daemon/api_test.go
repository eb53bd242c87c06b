package daemon_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"

	kb "github.com/keelblock/keelblock/appliance/api/keelblockv1"
	"github.com/keelblock/keelblock/blockdev/nbd/client"
)

// Every refusal has the right code, names the object, and changes nothing.
func TestErrorsNameTheObjectAndTheNextStep(t *testing.T) {
	cfg := testConfig(t, dataDir(t))
	a := start(t, cfg)
	a.makeDisk(t, "web0", 1<<20)
	a.makeDisk(t, "free0", 1<<20)
	a.makeMachine(t, "web", "web0")
	p := a.backup(t, "web")
	call(t, a.points.Export, &kb.ExportRequest{Point: p.Id, Name: "taken"})
	attached := open(t, cfg, "free0")
	defer attached.Close()
	file := filepath.Join(t.TempDir(), "f.raw")
	if err := os.WriteFile(file, make([]byte, 1000), 0o600); err != nil {
		t.Fatal(err)
	}

	disk := func(r *kb.CreateDiskRequest) func() error {
		return func() error { _, err := tryCall(a.disks.Create, r); return err }
	}
	machine := func(r *kb.CreateMachineRequest) func() error {
		return func() error { _, err := tryCall(a.machines.Create, r); return err }
	}
	edit := func(r *kb.EditMachineRequest) func() error {
		return func() error { _, err := tryCall(a.machines.Edit, r); return err }
	}
	getPoint := func(s string) func() error {
		return func() error { _, err := tryCall(a.points.Get, &kb.GetPointRequest{Selector: s}); return err }
	}
	for _, c := range []struct {
		what string
		do   func() error
		code connect.Code
		text string
	}{
		{"empty name", disk(&kb.CreateDiskRequest{SizeBytes: 512}), connect.CodeInvalidArgument, "empty"},
		{"upper case", disk(&kb.CreateDiskRequest{Name: "Web", SizeBytes: 512}), connect.CodeInvalidArgument, `"Web"`},
		{"a path for a name", disk(&kb.CreateDiskRequest{Name: "../x", SizeBytes: 512}), connect.CodeInvalidArgument, `"../x"`},
		{"64 characters", disk(&kb.CreateDiskRequest{Name: strings.Repeat("a", 64), SizeBytes: 512}), connect.CodeInvalidArgument, "too long"},
		{"no size", disk(&kb.CreateDiskRequest{Name: "d"}), connect.CodeInvalidArgument, "size"},
		{"negative size", disk(&kb.CreateDiskRequest{Name: "d", SizeBytes: -512}), connect.CodeInvalidArgument, "-512"},
		{"odd size", disk(&kb.CreateDiskRequest{Name: "d", SizeBytes: 1000}), connect.CodeInvalidArgument, "512"},
		{"too large", disk(&kb.CreateDiskRequest{Name: "d", SizeBytes: 1 << 52}), connect.CodeInvalidArgument, "2 PiB"},
		{"unknown role", disk(&kb.CreateDiskRequest{Name: "d", SizeBytes: 512, Role: "scratch"}), connect.CodeInvalidArgument, `"scratch"`},
		{"name of a disk", disk(&kb.CreateDiskRequest{Name: "web0", SizeBytes: 512}), connect.CodeAlreadyExists, `"web0"`},
		{"name of an export", disk(&kb.CreateDiskRequest{Name: "taken", SizeBytes: 512}), connect.CodeAlreadyExists, "unexport"},
		{"relative backing", disk(&kb.CreateDiskRequest{Name: "d", Backing: "f.raw"}), connect.CodeInvalidArgument, "absolute"},
		{"absent backing", disk(&kb.CreateDiskRequest{Name: "d", Backing: file + "x"}), connect.CodeNotFound, file + "x"},
		{"odd backing", disk(&kb.CreateDiskRequest{Name: "d", Backing: file}), connect.CodeInvalidArgument, "512"},
		{"backing of another disk", disk(&kb.CreateDiskRequest{Name: "d", Backing: filepath.Join(cfg.DisksDir(), "web0.raw")}), connect.CodeFailedPrecondition, "use"},
		{"delete: belongs to a machine", func() error {
			_, err := tryCall(a.disks.Delete, &kb.DeleteDiskRequest{Name: "web0"})
			return err
		}, connect.CodeFailedPrecondition, "--remove-disk web0"},
		{"delete: connected", func() error {
			_, err := tryCall(a.disks.Delete, &kb.DeleteDiskRequest{Name: "free0"})
			return err
		}, connect.CodeFailedPrecondition, "connection"},
		{"delete: unknown", func() error {
			_, err := tryCall(a.disks.Delete, &kb.DeleteDiskRequest{Name: "nope"})
			return err
		}, connect.CodeNotFound, `"nope"`},
		{"machine without disks", machine(&kb.CreateMachineRequest{Name: "m"}), connect.CodeInvalidArgument, "--disk"},
		{"machine twice", machine(&kb.CreateMachineRequest{Name: "web", Disks: []string{"free0"}}), connect.CodeAlreadyExists, `"web"`},
		{"machine of an unknown disk", machine(&kb.CreateMachineRequest{Name: "m", Disks: []string{"nope"}}), connect.CodeNotFound, `"nope"`},
		{"machine of another's disk", machine(&kb.CreateMachineRequest{Name: "m", Disks: []string{"web0"}}), connect.CodeFailedPrecondition, `"web"`},
		{"disk named twice", machine(&kb.CreateMachineRequest{Name: "m", Disks: []string{"free0", "free0"}}), connect.CodeInvalidArgument, "twice"},
		{"huge definition", machine(&kb.CreateMachineRequest{Name: "m", Disks: []string{"free0"}, Definition: strings.Repeat("<", 1<<20)}), connect.CodeInvalidArgument, "definition"},
		{"edit: unknown", edit(&kb.EditMachineRequest{Name: "nope"}), connect.CodeNotFound, `"nope"`},
		{"edit: exclude a foreign disk", edit(&kb.EditMachineRequest{Name: "web", ExcludeDisks: []string{"free0"}}), connect.CodeInvalidArgument, `"free0"`},
		{"edit: remove a foreign disk", edit(&kb.EditMachineRequest{Name: "web", RemoveDisks: []string{"free0"}}), connect.CodeNotFound, `"free0"`},
		{"backup: unknown", func() error {
			_, err := tryCall(a.machines.Backup, &kb.BackupRequest{Machine: "nope"})
			return err
		}, connect.CodeNotFound, `"nope"`},
		{"backup: unknown consistency", func() error {
			_, err := tryCall(a.machines.Backup, &kb.BackupRequest{Machine: "web", Consistency: "perfect"})
			return err
		}, connect.CodeInvalidArgument, `"perfect"`},
		{"point: nonsense", getPoint("z z"), connect.CodeInvalidArgument, "z z"},
		{"point: only a machine", getPoint("web"), connect.CodeInvalidArgument, "web@latest"},
		{"point: only a word", getPoint("zzz"), connect.CodeNotFound, "zzz"},
		{"point: unknown id", getPoint("0123456789"), connect.CodeNotFound, "0123456789"},
		{"point: unknown machine", getPoint("nope@latest"), connect.CodeNotFound, `"nope"`},
		{"point: too early", getPoint("web@2001-01-01T00:00:00Z"), connect.CodeNotFound, "2001"},
		{"point: no application point", getPoint("web@latest-application"), connect.CodeNotFound, "application"},
		{"restore over a disk", func() error {
			_, err := tryCall(a.points.RestoreDisk, &kb.RestoreDiskRequest{Point: p.Id, Name: "web0"})
			return err
		}, connect.CodeAlreadyExists, `"web0"`},
		{"restore of an unknown disk", func() error {
			_, err := tryCall(a.points.RestoreDisk, &kb.RestoreDiskRequest{Point: p.Id + ":web7", Name: "n"})
			return err
		}, connect.CodeNotFound, "web7"},
		{"export over a disk", func() error {
			_, err := tryCall(a.points.Export, &kb.ExportRequest{Point: p.Id, Name: "web0"})
			return err
		}, connect.CodeAlreadyExists, "disk"},
		{"unexport of a disk", func() error {
			_, err := tryCall(a.points.Unexport, &kb.UnexportRequest{Name: "web0"})
			return err
		}, connect.CodeInvalidArgument, "disk"},
		{"unexport of nothing", func() error {
			_, err := tryCall(a.points.Unexport, &kb.UnexportRequest{Name: "nope"})
			return err
		}, connect.CodeNotFound, `"nope"`},
		{"purge of an exported point", func() error {
			_, err := tryCall(a.points.Delete, &kb.DeletePointRequest{Point: p.Id, Purge: true})
			return err
		}, connect.CodeFailedPrecondition, `export "taken"`},
		{"rebuild of an open vault", func() error {
			_, err := tryCall(a.app.RebuildIndex, &kb.RebuildIndexRequest{})
			return err
		}, connect.CodeFailedPrecondition, "open"},
		{"job: unknown", func() error {
			_, err := tryCall(a.jobs.Get, &kb.GetJobRequest{JobId: "nope"})
			return err
		}, connect.CodeNotFound, `"nope"`},
	} {
		err := c.do()
		if err == nil || connect.CodeOf(err) != c.code || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: want %v with %q, got %v", c.what, c.code, c.text, err)
		}
	}
	if d := call(t, a.disks.List, &kb.ListDisksRequest{}).Disks; len(d) != 2 {
		t.Errorf("a refusal changed the disks: %v", d)
	}
	if m := call(t, a.machines.List, &kb.ListMachinesRequest{}).Machines; len(m) != 1 || len(m[0].Disks) != 1 {
		t.Errorf("a refusal changed the machines: %v", m)
	}
	// A machine in use is not deleted; its points outlive it.
	web := open(t, cfg, "web0")
	_, err := tryCall(a.machines.Delete, &kb.DeleteMachineRequest{Name: "web"})
	wantCode(t, err, connect.CodeFailedPrecondition)
	web.Close()
	waitDisconnected(t, a, "web0")
	call(t, a.machines.Delete, &kb.DeleteMachineRequest{Name: "web"})
	if l := call(t, a.points.List, &kb.ListPointsRequest{Machine: "web"}).Points; len(l) != 1 {
		t.Errorf("points of a deleted machine: %v", l)
	}
}

// JSON over the unix socket, as the proto file shows it.
func TestAPIAnswersCurl(t *testing.T) {
	if _, err := exec.LookPath("curl"); err != nil {
		t.Skip("needs curl")
	}
	cfg := testConfig(t, dataDir(t))
	a := start(t, cfg)
	a.makeDisk(t, "web0", 1<<20)
	out, err := exec.Command("curl", "-sS", "--unix-socket", cfg.APISocket(), "-H", "Content-Type: application/json",
		"-d", `{"name":"web0"}`, "http://localhost/keelblock.v1.Disks/Get").CombinedOutput()
	if err != nil || !strings.Contains(string(out), `"sizeBytes":"1048576"`) {
		t.Errorf("%v: %s", err, out)
	}
	out, err = exec.Command("curl", "-sS", "--unix-socket", cfg.APISocket(), "-H", "Content-Type: application/json",
		"-d", `{"name":"nope"}`, "http://localhost/keelblock.v1.Disks/Get").CombinedOutput()
	if err != nil || !strings.Contains(string(out), `"code":"not_found"`) {
		t.Errorf("%v: %s", err, out)
	}
	for path, mode := range map[string]os.FileMode{cfg.RunDir(): 0o750, cfg.APISocket(): 0o660, cfg.NBDSocket(): 0o660,
		filepath.Join(cfg.DataDir, "site.key"): 0o600, filepath.Join(cfg.DisksDir(), "web0.raw"): 0o600} {
		if st, err := os.Stat(path); err != nil || st.Mode().Perm() != mode {
			t.Errorf("%s: %v %v, want %04o", path, st.Mode().Perm(), err, mode)
		}
	}
}

// A reader's name on points.sock opens for the user who asked and for nobody else, reads
// the point, and ends when nobody uses it; live disks are not there at all.
func TestReaderBelongsToItsUser(t *testing.T) {
	cfg := testConfig(t, dataDir(t))
	a := start(t, cfg)
	a.makeDisk(t, "web0", 4<<20)
	a.makeMachine(t, "web", "web0")
	g := newGuest(t, cfg, "web0", 7)
	g.write(t, 0, 1<<20)
	p := a.backup(t, "web")
	r := call(t, a.points.OpenReader, &kb.OpenReaderRequest{Point: "web@latest:web0", TtlSeconds: 1})
	if r.Socket != cfg.PointsSocket() || r.PointId != p.Id || r.SizeBytes != 4<<20 {
		t.Fatalf("reader: %v", r)
	}
	uri := fmt.Sprintf("nbd+unix:///%s?socket=%s", r.ExportName, r.Socket)
	c, err := client.Dial(context.Background(), uri)
	if err != nil {
		t.Fatal(err)
	}
	compare(t, "reader", c, g.want)
	if _, err := c.WriteAt(make([]byte, 512), 0); err == nil {
		t.Error("a point was written")
	}
	_, err = tryCall(a.points.Delete, &kb.DeletePointRequest{Point: p.Id, Purge: true})
	wantCode(t, err, connect.CodeFailedPrecondition)
	if d, err := client.Dial(context.Background(), fmt.Sprintf("nbd+unix:///web0?socket=%s", r.Socket)); err == nil {
		d.Close()
		t.Error("a live disk is served on points.sock")
	}
	if out, ok := dialAs(t, cfg.RunDir(), uri, 65534); ok {
		t.Errorf("another user opened the reader: %s", out)
	}
	c.Close()
	gone := false
	for range 50 {
		if _, err := tryCall(a.points.Delete, &kb.DeletePointRequest{Point: p.Id, Purge: true}); err == nil {
			gone = true
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	if !gone {
		t.Error("the reader still pins its point after its time to live")
	}
	_, err = tryCall(a.points.CloseReader, &kb.CloseReaderRequest{ExportName: r.ExportName})
	wantCode(t, err, connect.CodeNotFound)
}

// dialAs runs nbdinfo as another user, whom the test lets reach the socket.
func dialAs(t *testing.T, runDir, uri string, uid uint32) (string, bool) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Log("not root: the other user is not tried")
		return "", false
	}
	if _, err := exec.LookPath("nbdinfo"); err != nil {
		t.Log("no nbdinfo: the other user is not tried")
		return "", false
	}
	for path, mode := range map[string]os.FileMode{filepath.Dir(runDir): 0o755, runDir: 0o755, filepath.Join(runDir, "points.sock"): 0o666} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := exec.Command("nbdinfo", "--size", uri).CombinedOutput(); err != nil {
		t.Fatalf("nbdinfo as the owner: %v: %s", err, out)
	}
	cmd := exec.Command("nbdinfo", "--size", uri)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	cmd.Dir = "/"
	out, err := cmd.CombinedOutput()
	if err != nil && strings.Contains(string(out), "Permission denied") {
		t.Errorf("the other user does not even reach the socket: %s", out)
	}
	return string(out), err == nil
}

// A named export reads a point until it is taken back, also while the disk goes on.
func TestNamedExport(t *testing.T) {
	cfg := testConfig(t, dataDir(t))
	a := start(t, cfg)
	a.makeDisk(t, "web0", 4<<20)
	a.makeMachine(t, "web", "web0")
	g := newGuest(t, cfg, "web0", 8)
	g.write(t, 0, 1<<20)
	p := a.backup(t, "web")
	then := append([]byte(nil), g.want...)
	x := call(t, a.points.Export, &kb.ExportRequest{Point: "web@latest", Name: "copy"})
	g.write(t, 0, 1<<20)
	c, err := client.Dial(context.Background(), x.Uri)
	if err != nil {
		t.Fatal(err)
	}
	compare(t, "export", c, then)
	if l := call(t, a.points.ListExports, &kb.ListExportsRequest{}).Exports; len(l) != 1 || l[0].Name != "copy" || l[0].PointId != p.Id {
		t.Errorf("exports: %v", l)
	}
	call(t, a.points.Unexport, &kb.UnexportRequest{Name: "copy"})
	if _, err := c.ReadAt(make([]byte, 512), 0); err == nil {
		t.Error("an export that was taken back is still read")
	}
	c.Close()
	a.makeDisk(t, "copy", 1<<20) // the name is free again
}

// TCP serves the same disks, on an address that ready names.
func TestNBDOverTCP(t *testing.T) {
	cfg := testConfig(t, dataDir(t))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	cfg.NBDListen = []string{"tcp:" + addr}
	a := start(t, cfg)
	if len(a.ready.NBD) != 2 || a.ready.NBD[1] != "tcp:"+addr || a.ready.NBD[0] != "unix:"+cfg.NBDSocket() {
		t.Fatalf("ready: %+v", a.ready)
	}
	a.makeDisk(t, "web0", 1<<20)
	c, err := client.Dial(context.Background(), "nbd://"+addr+"/web0")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if c.Size() != 1<<20 {
		t.Errorf("size %d", c.Size())
	}
}
