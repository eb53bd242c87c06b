package daemon_test

import (
	"bytes"
	"encoding/binary"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"

	kb "github.com/keelblock/keelblock/appliance/api/keelblockv1"
	"github.com/keelblock/keelblock/appliance/config"
	"github.com/keelblock/keelblock/blockdev/nbd/client"
)

// groupBackup cuts a group and returns the points by machine.
func (c clients) groupBackup(t *testing.T, group string) map[string]*kb.RecoveryPoint {
	t.Helper()
	j := c.wait(t, call(t, c.groups.Backup, &kb.GroupBackupRequest{Group: group}))
	if j.State != "Completed" {
		t.Fatalf("backup of group %s: %v", group, j)
	}
	return c.pointsOf(t, j)
}

// pointsOf reads the result of a group's backup: one line "MACHINE ID" per machine.
func (c clients) pointsOf(t *testing.T, j *kb.Job) map[string]*kb.RecoveryPoint {
	t.Helper()
	out := map[string]*kb.RecoveryPoint{}
	last := ""
	for _, line := range j.Result {
		m, id, ok := strings.Cut(line, " ")
		if !ok || m <= last {
			t.Fatalf("result %q: want lines MACHINE ID in the order of names", j.Result)
		}
		last = m
		p := call(t, c.points.Get, &kb.GetPointRequest{Selector: id}).Point
		if p.MachineName != m || p.Id != id {
			t.Fatalf("result line %q names %v", line, p)
		}
		out[m] = p
	}
	return out
}

// makeShop makes machine app with disks app0 and app1, machine db with disk db0, and
// group shop of both.
func (c clients) makeShop(t *testing.T, size int64) {
	t.Helper()
	for _, d := range []string{"app0", "app1", "db0"} {
		c.makeDisk(t, d, size)
	}
	c.makeMachine(t, "db", "db0")
	c.makeMachine(t, "app", "app0", "app1")
	g := call(t, c.groups.Create, &kb.CreateGroupRequest{Name: "shop", Machines: []string{"db", "app"}})
	if len(g.Machines) != 2 || g.Machines[0].Name != "app" || g.Machines[1].GroupName != "shop" {
		t.Fatalf("group: %v", g)
	}
}

// dependentWriter writes pages numbered 1, 2, 3 … at random places of several disks,
// each only when the one before was acknowledged: what a database does with its log and
// its tables. A cut at one instant holds exactly a prefix of these writes.
type dependentWriter struct {
	devs    []*client.Client
	history []struct{ disk, page int }
	stop    chan struct{}
	done    chan struct{}
}

const writerPage = 4096

func startDependentWriter(t *testing.T, cfg config.Config, disks ...string) *dependentWriter {
	t.Helper()
	w := &dependentWriter{stop: make(chan struct{}), done: make(chan struct{})}
	for _, d := range disks {
		w.devs = append(w.devs, open(t, cfg, d))
	}
	rng := newGuest(t, cfg, disks[0], 80).rng
	pages := int(w.devs[0].Size() / writerPage)
	go func() {
		defer close(w.done)
		buf := make([]byte, writerPage)
		for seq := uint64(1); ; seq++ {
			select {
			case <-w.stop:
				return
			default:
			}
			x := struct{ disk, page int }{rng.IntN(len(disks)), rng.IntN(pages)}
			if seq%3 == 0 {
				x.page %= 16 // a hot set
			}
			for i := 0; i < writerPage; i += 8 {
				binary.LittleEndian.PutUint64(buf[i:], seq)
			}
			w.history = append(w.history, x)
			if _, err := w.devs[x.disk].WriteAt(buf, int64(x.page)*writerPage); err != nil {
				t.Error(err)
				return
			}
		}
	}()
	t.Cleanup(w.end)
	return w
}

func (w *dependentWriter) end() {
	select {
	case <-w.stop:
	default:
		close(w.stop)
	}
	<-w.done
}

// checkPrefix fails unless the disks, read from points, hold exactly the first K writes
// for some K, and returns K. The writer has ended.
func (w *dependentWriter) checkPrefix(t *testing.T, disks [][]byte) int {
	t.Helper()
	last := uint64(0)
	for d, content := range disks {
		for page := 0; page < len(content)/writerPage; page++ {
			v := binary.LittleEndian.Uint64(content[page*writerPage:])
			if v > uint64(len(w.history)) || v > 0 && (w.history[v-1].disk != d || w.history[v-1].page != page) {
				t.Fatalf("disk %d page %d holds write %d, which was not written there", d, page, v)
			}
			last = max(last, v)
		}
	}
	want := make([][]byte, len(disks))
	for d := range disks {
		want[d] = make([]byte, len(disks[d]))
	}
	for i, x := range w.history[:last] {
		for j := 0; j < writerPage; j += 8 {
			binary.LittleEndian.PutUint64(want[x.disk][x.page*writerPage+j:], uint64(i+1))
		}
	}
	for d := range disks {
		for off := 0; off < len(want[d]); off += writerPage {
			if got := disks[d][off : off+writerPage]; !bytes.Equal(got, want[d][off:off+writerPage]) {
				t.Fatalf("the cut holds write %d; disk %d page %d begins with %x, want %x", last, d, off/writerPage, got[:16], want[d][off:off+16])
			}
		}
	}
	return int(last)
}

// readPoint is the whole content of a disk of a point.
func (a *appliance) readPoint(t *testing.T, point, disk string) []byte {
	t.Helper()
	call(t, a.points.Export, &kb.ExportRequest{Point: point, Disk: disk, Name: "check"})
	dev := open(t, a.cfg, "check")
	p := make([]byte, dev.Size())
	for off := 0; off < len(p); off += 4 << 20 {
		if _, err := dev.ReadAt(p[off:min(off+4<<20, len(p))], int64(off)); err != nil {
			t.Fatal(err)
		}
	}
	if err := dev.Close(); err != nil {
		t.Fatal(err)
	}
	call(t, a.points.Unexport, &kb.UnexportRequest{Name: "check"})
	return p
}

// A group of two machines with three disks is cut while a client writes to all three,
// each write after the one before was acknowledged. Whatever the machines' backups do at
// the same time, and whether disks are read in full, compared or by their maps, each cut
// is a prefix of those writes.
func TestN8GroupsAreCutAtOneInstant(t *testing.T) {
	t.Parallel() // mostly waits for syncs
	cfg := testConfig(t, dataDir(t))
	cfg.SpillBytes = 64 << 20
	a := start(t, cfg)
	const size = 4 << 20
	a.makeShop(t, size)
	w := startDependentWriter(t, cfg, "app0", "app1", "db0")
	var cuts []map[string]*kb.RecoveryPoint
	for i := range 4 {
		if i == 2 { // db has lost its base: it is read in full or compared, app is not
			last := cuts[1]["db"]
			call(t, a.points.Delete, &kb.DeletePointRequest{Point: last.Id, Purge: true})
		}
		cut := a.groupBackup(t, "shop")
		cuts = append(cuts, cut)
		app, db := cut["app"], cut["db"]
		if app == nil || db == nil || len(cut) != 2 {
			t.Fatalf("cut %d made points of %v", i, cut)
		}
		if app.CutId != db.CutId || app.Id == db.Id || !app.FrozenAt.AsTime().Equal(db.FrozenAt.AsTime()) {
			t.Errorf("cut %d: cut ids %s and %s, frozen at %v and %v", i, app.CutId, db.CutId, app.FrozenAt, db.FrozenAt)
		}
		if app.Sequence != int64(i+1) || db.Sequence != int64(i+1) {
			t.Errorf("cut %d: sequences %d and %d", i, app.Sequence, db.Sequence)
		}
		want := [][2]string{{"full", "full"}, {"enabled", "enabled"}, {"enabled", "checksumCompare"}, {"enabled", "enabled"}}[i]
		if app.Tracking != want[0] || db.Tracking != want[1] {
			t.Errorf("cut %d: tracking %s and %s, want %v", i, app.Tracking, db.Tracking, want)
		}
	}
	w.end()
	last := 0
	for i, cut := range cuts {
		if i == 1 {
			continue // half of it was purged
		}
		k := w.checkPrefix(t, [][]byte{a.readPoint(t, cut["app"].Id, "app0"), a.readPoint(t, cut["app"].Id, "app1"), a.readPoint(t, cut["db"].Id, "db0")})
		t.Logf("cut %d holds %d of %d writes", i, k, len(w.history))
		if k <= last {
			t.Errorf("cut %d holds %d writes, an earlier one %d", i, k, last)
		}
		last = k
	}
	if v := a.wait(t, call(t, a.points.Verify, &kb.VerifyRequest{})); v.State != "Completed" {
		t.Errorf("verify: %v", v)
	}
}

// Costs are those of each machine, not of the cut; of a few grains over a hole the grains.
func TestN8GroupsAccountPerMachine(t *testing.T) {
	cfg := testConfig(t, dataDir(t))
	a := start(t, cfg)
	a.makeShop(t, 4<<20)
	a.groupBackup(t, "shop")
	app, db := newGuest(t, cfg, "app1", 81), newGuest(t, cfg, "db0", 82)
	app.write(t, 8192, 4096)
	db.write(t, 1<<20, 64<<10)
	db.write(t, 2<<20, 4096)
	cut := a.groupBackup(t, "shop")
	for m, want := range map[string][2]int64{"app": {4096, 4096}, "db": {68 << 10, 68 << 10}} {
		p := cut[m]
		if p.ReadBytes != want[0] || p.ChangedBytes != want[0] || p.NewBytes != want[1] || p.StoredBytes == 0 {
			t.Errorf("%s: read %d, changed %d, new %d, stored %d; want %v", m, p.ReadBytes, p.ChangedBytes, p.NewBytes, p.StoredBytes, want)
		}
	}
	a.comparePoint(t, cut["app"].Id, "app1", app.want)
	a.comparePoint(t, cut["db"].Id, "db0", db.want)
	// A machine of a group is still backed up alone.
	alone := a.backup(t, "db")
	if alone.CutId == cut["db"].CutId || alone.ReadBytes != 0 || alone.Sequence != 3 {
		t.Errorf("db alone: %v", alone)
	}
	if list := call(t, a.points.List, &kb.ListPointsRequest{Machine: "shop"}).Points; len(list) != 5 {
		t.Errorf("the group has %d points, want 5", len(list))
	}
}

// Backups of a group and of its machines that are asked for at the same time wait for
// each other, and each gets points whose cut came after it.
func TestN8GroupsAndMachinesWaitForEachOther(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t, dataDir(t))
	a := start(t, cfg)
	a.makeShop(t, 8<<20)
	newGuest(t, cfg, "app0", 83).write(t, 0, 8<<20)
	var wg sync.WaitGroup
	for i := range 12 {
		wg.Go(func() {
			asked := time.Now()
			var j *kb.Job
			var err error
			switch i % 3 {
			case 0:
				j, err = tryCall(a.groups.Backup, &kb.GroupBackupRequest{Group: "shop"})
			case 1:
				j, err = tryCall(a.machines.Backup, &kb.BackupRequest{Machine: "app"})
			case 2:
				j, err = tryCall(a.machines.Backup, &kb.BackupRequest{Machine: "db"})
			}
			if err != nil {
				t.Error(err)
				return
			}
			if j = a.wait(t, j); j.State != "Completed" {
				t.Errorf("job: %v", j)
				return
			}
			for _, line := range j.Result {
				p, err := tryCall(a.points.Get, &kb.GetPointRequest{Selector: line[strings.LastIndex(line, " ")+1:]})
				if err != nil {
					t.Error(err)
				} else if p.Point.FrozenAt.AsTime().Before(asked) {
					t.Errorf("%s: asked at %v, frozen at %v", line, asked, p.Point.FrozenAt.AsTime())
				}
			}
		})
	}
	wg.Wait()
	cuts := map[string]int{}
	for _, p := range call(t, a.points.List, &kb.ListPointsRequest{Machine: "shop"}).Points {
		cuts[p.CutId]++
	}
	pairs := 0
	for id, n := range cuts {
		if n == 2 {
			pairs++
		} else if n != 1 {
			t.Errorf("cut %s has %d points", id, n)
		}
	}
	if pairs == 0 {
		t.Error("no cut has points of both machines")
	}
}

// There is no half group: when the cut of one machine fails, none gets a point, and the
// changes of all are listed for the next cut.
func TestN8GroupsFailWhole(t *testing.T) {
	cfg := testConfig(t, dataDir(t))
	a := start(t, cfg)
	a.makeShop(t, 96<<20)
	app, db := newGuest(t, cfg, "app0", 84), newGuest(t, cfg, "db0", 85)
	db.write(t, 0, 96<<20)
	app.write(t, 0, 4096)
	j := call(t, a.groups.Backup, &kb.GroupBackupRequest{Group: "shop"})
	for range 2000 {
		if j = call(t, a.jobs.Get, &kb.GetJobRequest{JobId: j.JobId}); j.DoneBytes > 1<<20 || j.EndedAt != nil {
			break
		}
		time.Sleep(time.Millisecond)
	}
	if _, err := tryCall(a.jobs.Cancel, &kb.CancelJobRequest{JobId: j.JobId}); err == nil && a.wait(t, j).State == "Cancelled" {
		if l := call(t, a.points.List, &kb.ListPointsRequest{}).Points; len(l) != 0 {
			t.Errorf("a cancelled cut made points: %v", l)
		}
	} else {
		t.Log("the backup was quicker than its cancellation")
	}
	cut := a.groupBackup(t, "shop")
	a.comparePoint(t, cut["app"].Id, "app0", app.want)
	a.comparePoint(t, cut["db"].Id, "db0", db.want)

	_, err := tryCall(a.machines.Delete, &kb.DeleteMachineRequest{Name: "app"})
	wantCode(t, err, connect.CodeFailedPrecondition)
	if !strings.Contains(err.Error(), `in group "shop"`) || !strings.Contains(err.Error(), "keelblock group delete shop") {
		t.Errorf("deleting a machine of a group: %v", err)
	}
	// A machine that has nothing to protect refuses the cut of all.
	call(t, a.machines.Edit, &kb.EditMachineRequest{Name: "db", ExcludeDisks: []string{"db0"}})
	before := len(call(t, a.points.List, &kb.ListPointsRequest{}).Points)
	_, err = tryCall(a.groups.Backup, &kb.GroupBackupRequest{Group: "shop"})
	wantCode(t, err, connect.CodeFailedPrecondition)
	if !strings.Contains(err.Error(), `machine "db"`) {
		t.Errorf("a group with a machine without disks: %v", err)
	}
	if after := len(call(t, a.points.List, &kb.ListPointsRequest{}).Points); after != before {
		t.Errorf("a refused cut made %d points", after-before)
	}
}

// Groups outlive the daemon, and their names are their own.
func TestN8GroupsStayAndShareNoName(t *testing.T) {
	cfg := testConfig(t, dataDir(t))
	a := start(t, cfg)
	a.makeShop(t, 1<<20)
	a.makeDisk(t, "x0", 1<<20)
	a.makeMachine(t, "x", "x0")
	for _, tt := range []struct {
		name     string
		machines []string
		want     connect.Code
	}{
		{"app", []string{"x"}, connect.CodeAlreadyExists},
		{"shop", []string{"x"}, connect.CodeAlreadyExists},
		{"two", []string{"x", "app"}, connect.CodeFailedPrecondition},
		{"two", []string{"x", "nothing"}, connect.CodeNotFound},
		{"two", []string{"x", "x"}, connect.CodeInvalidArgument},
		{"two", nil, connect.CodeInvalidArgument},
		{"Two", []string{"x"}, connect.CodeInvalidArgument},
	} {
		_, err := tryCall(a.groups.Create, &kb.CreateGroupRequest{Name: tt.name, Machines: tt.machines})
		if connect.CodeOf(err) != tt.want {
			t.Errorf("group %s of %v: %v, want %v", tt.name, tt.machines, err, tt.want)
		}
	}
	_, err := tryCall(a.machines.Create, &kb.CreateMachineRequest{Name: "shop", Disks: []string{"x0"}})
	wantCode(t, err, connect.CodeAlreadyExists)
	a.stop()
	a = start(t, cfg)
	if g := call(t, a.groups.List, &kb.ListGroupsRequest{}).Groups; len(g) != 1 || g[0].Name != "shop" || len(g[0].Machines) != 2 {
		t.Errorf("groups after a restart: %v", g)
	}
	a.groupBackup(t, "shop")
	call(t, a.groups.Delete, &kb.DeleteGroupRequest{Name: "shop"})
	call(t, a.machines.Delete, &kb.DeleteMachineRequest{Name: "app"})
	// The points of app are there, so that app@latest is theirs.
	_, err = tryCall(a.groups.Create, &kb.CreateGroupRequest{Name: "app", Machines: []string{"db"}})
	wantCode(t, err, connect.CodeAlreadyExists)
	_, err = tryCall(a.groups.Backup, &kb.GroupBackupRequest{Group: "shop"})
	wantCode(t, err, connect.CodeNotFound)
}
