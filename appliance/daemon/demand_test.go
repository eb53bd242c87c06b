package daemon_test

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"

	kb "github.com/keelblock/keelblock/appliance/api/keelblockv1"
)

// Job time is the sum of its named parts.
func TestDemand14JobTimeIsTheSumOfItsSubTasks(t *testing.T) {
	cfg := testConfig(t, dataDir(t))
	a := start(t, cfg)
	a.makeDisk(t, "web0", 32<<20)
	a.makeMachine(t, "web", "web0")
	g := newGuest(t, cfg, "web0", 14)
	g.write(t, 0, 16<<20)
	j := a.wait(t, call(t, a.machines.Backup, &kb.BackupRequest{Machine: "web"}))
	var sum time.Duration
	var names []string
	for _, s := range j.SubTasks {
		names = append(names, s.Name)
		sum += s.EndedAt.AsTime().Sub(s.StartedAt.AsTime())
	}
	for _, want := range []string{"Freeze", "TakeSnapshot", "TransferToVault"} {
		if !slices.Contains(names, want) {
			t.Errorf("no sub-task %s in %v", want, names)
		}
	}
	if total := j.EndedAt.AsTime().Sub(j.StartedAt.AsTime()); total-sum > time.Second || sum > total {
		t.Errorf("sub-tasks take %v of %v: %v", sum, total, j.SubTasks)
	}
}

// A disk added later costs its own content and the delta of the others, no more.
func TestDemand17DiskAddedLater(t *testing.T) {
	cfg := testConfig(t, dataDir(t))
	a := start(t, cfg)
	a.makeDisk(t, "d0", 16<<20)
	a.makeMachine(t, "db", "d0")
	g0 := newGuest(t, cfg, "d0", 170)
	g0.write(t, 0, 8<<20)
	first := a.backup(t, "db")

	a.makeDisk(t, "d1", 16<<20)
	g1 := newGuest(t, cfg, "d1", 171)
	g1.write(t, 1<<20, 2<<20)
	call(t, a.machines.Edit, &kb.EditMachineRequest{Name: "db", AddDisks: []string{"d1"}})
	g0.write(t, 4096, 8192)
	second := a.backup(t, "db")
	if want := int64(2<<20 + 8192); second.ReadBytes != want {
		t.Errorf("read %d bytes, want the new disk's %d and the delta of the old one's 8192", second.ReadBytes, 2<<20)
	}
	a.comparePoint(t, second.Id, "d0", g0.want)
	a.comparePoint(t, second.Id, "d1", g1.want)
	g1.write(t, 0, 4096)
	third := a.backup(t, "db")
	if third.Tracking != "enabled" || third.ReadBytes != 4096 {
		t.Errorf("third: %v", third)
	}
	if p := call(t, a.points.Get, &kb.GetPointRequest{Selector: first.Id}).Point; len(p.Disks) != 1 {
		t.Errorf("the first point has %v", p.Disks)
	}
}

// A machine whose disks nobody has open is backed up all the same.
func TestDemand29OfflineMachineIsBackedUp(t *testing.T) {
	cfg := testConfig(t, dataDir(t))
	a := start(t, cfg)
	a.makeDisk(t, "off0", 8<<20)
	a.makeMachine(t, "off", "off0")
	g := newGuest(t, cfg, "off0", 29)
	g.write(t, 3<<20, 1<<20)
	g.disconnect(t)
	p := a.backup(t, "off")
	a.comparePoint(t, p.Id, "", g.want)
	if p.Consistency != "crash" || p.Reason == "" {
		t.Errorf("label: %v", p)
	}
}

// All disks of a machine are cut at one instant while their guest writes: a writer
// that goes to the second disk only after the first has acknowledged is never found
// with the second disk ahead, nor more than one step behind.
func TestDemand30DisksOfAMachineAreCutAtOneInstant(t *testing.T) {
	t.Parallel() // mostly waits for syncs
	cfg := testConfig(t, dataDir(t))
	a := start(t, cfg)
	const writers, step = 4, 64 << 10
	a.makeDisk(t, "log", 4<<20)
	a.makeDisk(t, "data", 4<<20)
	a.makeMachine(t, "db", "log", "data")
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for w := range writers {
		log, data := open(t, cfg, "log"), open(t, cfg, "data")
		wg.Go(func() {
			buf := make([]byte, 4096)
			for n := uint64(1); ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				binary.LittleEndian.PutUint64(buf, n)
				if _, err := log.WriteAt(buf, int64(w)*step); err != nil {
					t.Errorf("write log: %v", err)
					return
				}
				if _, err := data.WriteAt(buf, int64(w)*step); err != nil {
					t.Errorf("write data: %v", err)
					return
				}
			}
		})
	}
	cuts := 60
	if testing.Short() {
		cuts = 20
	}
	var points []string
	for range cuts {
		points = append(points, a.backup(t, "db").Id)
	}
	close(stop)
	wg.Wait()
	last := make([]uint64, writers)
	for _, id := range points {
		for w := range writers {
			n := make(map[string]uint64)
			for _, disk := range []string{"log", "data"} {
				name := "check-" + disk
				call(t, a.points.Export, &kb.ExportRequest{Point: id, Disk: disk, Name: name})
				c := open(t, cfg, name)
				var b [8]byte
				if _, err := c.ReadAt(b[:], int64(w)*step); err != nil {
					t.Fatal(err)
				}
				n[disk] = binary.LittleEndian.Uint64(b[:])
				c.Close()
				call(t, a.points.Unexport, &kb.UnexportRequest{Name: name})
			}
			if n["data"] > n["log"] || n["log"] > n["data"]+1 {
				t.Fatalf("point %s, writer %d: log %d, data %d", id, w, n["log"], n["data"])
			}
			if n["log"] < last[w] {
				t.Fatalf("point %s, writer %d: log went back from %d to %d", id, w, last[w], n["log"])
			}
			last[w] = n["log"]
		}
	}
	if last[0] == 0 {
		t.Error("the writers wrote nothing")
	}
}

// A point is a copy of its own: it survives its disk, and a new disk is made of it.
func TestDemand38PointSurvivesItsDisk(t *testing.T) {
	cfg := testConfig(t, dataDir(t))
	a := start(t, cfg)
	a.makeDisk(t, "web0", 16<<20)
	a.makeMachine(t, "web", "web0")
	g := newGuest(t, cfg, "web0", 38)
	g.write(t, 1<<20, 4<<20)
	p := a.backup(t, "web")
	g.disconnect(t)
	waitDisconnected(t, a, "web0")
	call(t, a.machines.Delete, &kb.DeleteMachineRequest{Name: "web"})
	call(t, a.disks.Delete, &kb.DeleteDiskRequest{Name: "web0"})
	if left, _ := filepath.Glob(filepath.Join(cfg.DisksDir(), "web0*")); len(left) > 0 {
		t.Errorf("left of the disk: %v", left)
	}
	maps, err := filepath.Glob(filepath.Join(cfg.MapDir, "*", "*"))
	if err != nil || len(maps) > 0 {
		t.Errorf("maps of the deleted disk: %v %v", maps, err)
	}
	a.restore(t, p.Id, "", "back0")
	compare(t, "back0", open(t, cfg, "back0"), g.want)
	// The restored disk knows what it is: its first backup reads only its changes.
	a.makeMachine(t, "back", "back0")
	b := newGuest(t, cfg, "back0", 39)
	copy(b.want, g.want)
	b.write(t, 0, 4096)
	next := a.backup(t, "back")
	if next.Tracking != "enabled" || next.ReadBytes != 4096 {
		t.Errorf("first backup of a restored disk: %v", next)
	}
	a.comparePoint(t, next.Id, "", b.want)
}

// waitDisconnected waits until the server has noticed that clients are gone.
func waitDisconnected(t *testing.T, a *appliance, disk string) {
	t.Helper()
	for range 100 {
		if call(t, a.disks.Get, &kb.GetDiskRequest{Name: disk}).Connections == 0 {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatalf("disk %s keeps its connections", disk)
}

// Only blocks changed since the last backup are read and stored.
func TestDemand42OnlyChangedBlocksTravel(t *testing.T) {
	cfg := testConfig(t, dataDir(t))
	a := start(t, cfg)
	a.makeDisk(t, "web0", 64<<20)
	a.makeMachine(t, "web", "web0")
	g := newGuest(t, cfg, "web0", 42)
	g.write(t, 0, 32<<20)
	a.backup(t, "web")
	var dirty int64
	for i := range int64(20) {
		g.write(t, i*(3<<20)+8192, 4096)
		dirty += 4096
	}
	p := a.backup(t, "web")
	// 20 blocks of 64 KiB, the paths to them, manifest and change set.
	if p.ReadBytes != dirty || p.ChangedBytes != dirty || p.NewBytes > 20*(64<<10) || p.StoredBytes > 20*(64<<10)+64<<10 {
		t.Errorf("read %d, changed %d, new %d, stored %d bytes for %d dirty ones", p.ReadBytes, p.ChangedBytes, p.NewBytes, p.StoredBytes, dirty)
	}
	d := call(t, a.points.Diff, &kb.DiffPointsRequest{From: "web@" + previous(t, a, "web"), To: p.Id})
	if len(d.Disks) != 1 || len(d.Disks[0].Extents) != 20 {
		t.Errorf("the points differ in %v", d.Disks)
	}
}

// previous is the time name of the last point but one.
func previous(t *testing.T, a *appliance, machine string) string {
	t.Helper()
	list := call(t, a.points.List, &kb.ListPointsRequest{Machine: machine}).Points
	return list[len(list)-2].TimeName
}

// Without the map the result is the same; only more is read.
func TestDemand43LostMapIsReplacedByComparing(t *testing.T) {
	cfg := testConfig(t, dataDir(t))
	p := startProcess(t, cfg)
	p.makeDisk(t, "web0", 32<<20)
	p.makeMachine(t, "web", "web0")
	g := newGuest(t, cfg, "web0", 43)
	g.write(t, 0, 16<<20)
	first := p.backup(t, "web")
	g.write(t, 5<<20, 4096)
	g.write(t, 20<<20, 64<<10)
	g.disconnect(t)
	p.kill() // and the map goes, as with the power
	if err := os.RemoveAll(cfg.MapDir); err != nil {
		t.Fatal(err)
	}
	p = startProcess(t, cfg)
	if d := call(t, p.disks.Get, &kb.GetDiskRequest{Name: "web0"}); d.State != "suspect" || d.Reason == "" {
		t.Errorf("disk: %v", d)
	}
	second := p.backup(t, "web")
	if want := int64(4096 + 64<<10); second.Tracking != "checksumCompare" || second.ChangedBytes != want || second.ReadBytes < 16<<20 {
		t.Errorf("changed %d bytes, want %d: %v", second.ChangedBytes, want, second)
	}
	if second.NewBytes > 2*(64<<10) {
		t.Errorf("new %d bytes", second.NewBytes)
	}
	a := &appliance{t: t, cfg: cfg, clients: p.clients}
	a.comparePoint(t, second.Id, "", g.want)
	third := p.backup(t, "web")
	if third.Tracking != "enabled" || third.Disks[0].RootDigest != second.Disks[0].RootDigest {
		t.Errorf("the map is trusted again after a compare: %v", third)
	}
	if first.Disks[0].RootDigest == second.Disks[0].RootDigest {
		t.Error("two different disks with one root")
	}
	p.terminate()
}

// A base that was deleted is no failure: deleted softly it still serves, purged it is
// replaced by comparing, and when nothing is left by a full backup.
func TestDemand44DeletedBaseIsNoFailure(t *testing.T) {
	cfg := testConfig(t, dataDir(t))
	a := start(t, cfg)
	a.makeDisk(t, "web0", 16<<20)
	a.makeMachine(t, "web", "web0")
	g := newGuest(t, cfg, "web0", 44)
	g.write(t, 0, 8<<20)
	first := a.backup(t, "web")
	g.write(t, 0, 4096)
	second := a.backup(t, "web")

	call(t, a.points.Delete, &kb.DeletePointRequest{Point: second.Id})
	g.write(t, 1<<20, 4096)
	third := a.backup(t, "web")
	if third.Tracking != "enabled" || third.ReadBytes != 4096 {
		t.Errorf("over a soft-deleted base: %v", third)
	}
	a.comparePoint(t, third.Id, "", g.want)

	call(t, a.points.Delete, &kb.DeletePointRequest{Point: third.Id, Purge: true})
	g.write(t, 2<<20, 4096)
	fourth := a.backup(t, "web")
	if fourth.Tracking != "checksumCompare" {
		t.Errorf("over a purged base: %v", fourth)
	}
	a.comparePoint(t, fourth.Id, "", g.want)

	for _, p := range []string{first.Id, second.Id, fourth.Id} {
		call(t, a.points.Delete, &kb.DeletePointRequest{Point: p, Purge: true})
	}
	g.write(t, 3<<20, 4096)
	fifth := a.backup(t, "web")
	if fifth.Tracking != "full" {
		t.Errorf("with no point left: %v", fifth)
	}
	a.comparePoint(t, fifth.Id, "", g.want)
	if l := call(t, a.points.List, &kb.ListPointsRequest{Machine: "web", Deleted: true}).Points; len(l) != 1 {
		t.Errorf("points: %v", l)
	}
}

// Temporary disks are left out of points and recorded.
func TestDemand45TemporaryDiskIsExcludedAndRecorded(t *testing.T) {
	cfg := testConfig(t, dataDir(t))
	a := start(t, cfg)
	a.makeDisk(t, "web0", 4<<20)
	a.makeDisk(t, "web1", 4<<20)
	call(t, a.disks.Create, &kb.CreateDiskRequest{Name: "swap", SizeBytes: 4 << 20, Role: "temporary"})
	a.makeMachine(t, "web", "web0", "swap", "web1")
	s := newGuest(t, cfg, "swap", 45)
	s.write(t, 0, 4<<20)
	p := a.backup(t, "web")
	if len(p.Disks) != 2 || len(p.ExcludedDisks) != 1 || p.ExcludedDisks[0] != "swap" || p.ReadBytes != 0 {
		t.Errorf("point: %v", p)
	}
	call(t, a.machines.Edit, &kb.EditMachineRequest{Name: "web", ExcludeDisks: []string{"web1"}})
	p = a.backup(t, "web")
	if len(p.Disks) != 1 || !slices.Equal(p.ExcludedDisks, []string{"swap", "web1"}) {
		t.Errorf("point: %v", p)
	}
	_, err := tryCall(a.points.Export, &kb.ExportRequest{Point: p.Id, Disk: "swap", Name: "x"})
	wantCode(t, err, connect.CodeNotFound)
}

// Equal disks have equal roots, whatever their history.
func TestN2RootsCompareDisksInOneStep(t *testing.T) {
	cfg := testConfig(t, dataDir(t))
	a := start(t, cfg)
	var roots []string
	for i, name := range []string{"a0", "b0"} {
		a.makeDisk(t, name, 8<<20)
		a.makeMachine(t, name[:1], name)
		g := newGuest(t, cfg, name, 2)
		g.write(t, 1<<20, 1<<20)
		if i == 1 { // another history, the same content
			a.backup(t, "b")
			keep := append([]byte(nil), g.want[1<<20:2<<20]...)
			g.write(t, 1<<20, 1<<20)
			a.backup(t, "b")
			if _, err := g.dev.WriteAt(keep, 1<<20); err != nil {
				t.Fatal(err)
			}
		}
		roots = append(roots, a.backup(t, name[:1]).Disks[0].RootDigest)
	}
	if roots[0] != roots[1] {
		t.Errorf("roots differ: %v", roots)
	}
}
