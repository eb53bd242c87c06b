package daemon_test

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"

	kb "github.com/keelblock/keelblock/appliance/api/keelblockv1"
	"github.com/keelblock/keelblock/appliance/keys/keystest"
	"github.com/keelblock/keelblock/blockdev"
)

// A block of the base that rotted in its pack is no failure of the next backup, which
// needs it for the neighbours of a changed grain: it compares, and heals.
func TestRottenBaseBlockIsReadFromTheDisk(t *testing.T) {
	cfg := testConfig(t, dataDir(t))
	a := start(t, cfg)
	a.makeDisk(t, "web0", 8<<20)
	a.makeMachine(t, "web", "web0")
	g := newGuest(t, cfg, "web0", 50)
	g.write(t, 0, 4<<20)
	first := a.backup(t, "web")
	then := append([]byte(nil), g.want...)
	a.stop()
	if n := keystest.FlipBlock(t, cfg.DataDir, then[1<<20:1<<20+64<<10]); n != 1 {
		t.Fatalf("the block is in %d packs", n)
	}
	a = start(t, cfg)
	g.dev = open(t, cfg, "web0")
	g.write(t, 1<<20, 4096) // so the live disk cannot heal it, and its neighbours are in the rotten block
	v := a.wait(t, call(t, a.points.Verify, &kb.VerifyRequest{Point: first.Id}))
	if v.State != "Failed" || v.ErrorCode != "data_loss" || !strings.Contains(strings.Join(v.Result, "\n"), "1048576") {
		t.Errorf("verify of a damaged point: %v", v)
	}
	call(t, a.points.Export, &kb.ExportRequest{Point: first.Id, Name: "bad"})
	bad := open(t, cfg, "bad")
	if _, err := bad.ReadAt(make([]byte, 4096), 1<<20); err == nil {
		t.Error("a damaged block was read as content")
	}
	if _, err := bad.ReadAt(make([]byte, 4096), 0); err != nil {
		t.Errorf("a good block of a damaged point: %v", err)
	}
	j := a.wait(t, call(t, a.points.RestoreDisk, &kb.RestoreDiskRequest{Point: first.Id, Name: "back0"}))
	if j.State != "Failed" || j.ErrorCode != "data_loss" {
		t.Errorf("restore of a damaged point: %v", j)
	}
	if _, err := tryCall(a.disks.Get, &kb.GetDiskRequest{Name: "back0"}); connect.CodeOf(err) != connect.CodeNotFound {
		t.Errorf("a failed restore left a disk: %v", err)
	}
	noLeftovers(t, cfg)

	second := a.backup(t, "web")
	if second.Tracking != "checksumCompare" {
		t.Errorf("second: %v", second)
	}
	a.comparePoint(t, second.Id, "", g.want)
	if v := a.wait(t, call(t, a.points.Verify, &kb.VerifyRequest{Point: second.Id})); v.State != "Completed" {
		t.Errorf("verify of the next point: %v", v)
	}
	g.write(t, 2<<20, 4096)
	if third := a.backup(t, "web"); third.Tracking != "enabled" {
		t.Errorf("third: %v", third)
	}
}

// Requests that come before the freeze share a job; each gets a point whose cut came
// after it.
func TestConcurrentRequestsJoinOrWait(t *testing.T) {
	cfg := testConfig(t, dataDir(t))
	a := start(t, cfg)
	a.makeDisk(t, "web0", 32<<20)
	a.makeMachine(t, "web", "web0")
	g := newGuest(t, cfg, "web0", 51)
	g.write(t, 0, 16<<20)
	const n = 16
	var wg sync.WaitGroup
	var mu sync.Mutex
	jobs := map[string]time.Time{} // id → when it was last asked for
	for range n {
		wg.Go(func() {
			asked := time.Now()
			j, err := tryCall(a.machines.Backup, &kb.BackupRequest{Machine: "web"})
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			if asked.After(jobs[j.JobId]) {
				jobs[j.JobId] = asked
			}
		})
	}
	wg.Wait()
	if len(jobs) == n {
		t.Error("no request joined another")
	}
	for id, asked := range jobs {
		j := a.wait(t, &kb.Job{JobId: id})
		if j.State != "Completed" {
			t.Fatalf("job: %v", j)
		}
		p := call(t, a.points.Get, &kb.GetPointRequest{Selector: j.Result[0]}).Point
		if p.FrozenAt.AsTime().Before(asked) {
			t.Errorf("asked at %v, frozen at %v", asked, p.FrozenAt.AsTime())
		}
	}
	seq := []int64{}
	for _, p := range call(t, a.points.List, &kb.ListPointsRequest{Machine: "web"}).Points {
		seq = append(seq, p.Sequence)
	}
	if !slices.IsSorted(seq) || len(slices.Compact(slices.Clone(seq))) != len(jobs) {
		t.Errorf("sequences: %v of %d jobs", seq, len(jobs))
	}
}

// A label that was asked for and not reached is a warning; by default it is only a reason.
func TestConsistencyLabelIsHonest(t *testing.T) {
	cfg := testConfig(t, dataDir(t))
	a := start(t, cfg)
	a.makeDisk(t, "web0", 1<<20)
	a.makeMachine(t, "web", "web0")
	for asked, want := range map[string]string{"": "Completed", "crash": "Completed", "filesystem": "CompletedWithWarnings", "application": "CompletedWithWarnings"} {
		j := a.wait(t, call(t, a.machines.Backup, &kb.BackupRequest{Machine: "web", Consistency: asked, Note: "n " + asked}))
		if j.State != want {
			t.Errorf("%q: %v", asked, j)
			continue
		}
		p := call(t, a.points.Get, &kb.GetPointRequest{Selector: j.Result[0]}).Point
		if p.Consistency != "crash" || (p.Reason == "") != (asked == "crash") || p.Note != "n "+asked {
			t.Errorf("%q: %v", asked, p)
		}
		if want == "CompletedWithWarnings" && !strings.Contains(j.Error, asked) {
			t.Errorf("%q: the warning does not say it: %q", asked, j.Error)
		}
	}
}

// The definition goes with the point; deleted points come back; the map shows what the
// next backup reads.
func TestPointCarriesDefinitionAndComesBack(t *testing.T) {
	cfg := testConfig(t, dataDir(t))
	a := start(t, cfg)
	a.makeDisk(t, "web0", 4<<20)
	def := "<domain type='kvm'>" + strings.Repeat("<disk/>", 20000) + "</domain>"
	call(t, a.machines.Create, &kb.CreateMachineRequest{Name: "web", Disks: []string{"web0"}, Definition: def})
	p := a.backup(t, "web")
	if p.Definition != def {
		t.Errorf("definition of %d bytes, want %d", len(p.Definition), len(def))
	}
	g := newGuest(t, cfg, "web0", 52)
	g.write(t, 8192, 4096)
	g.write(t, 1<<20, 512)
	m := call(t, a.disks.Map, &kb.MapDiskRequest{Name: "web0"}).Extents
	if len(m) != 2 || m[0].Offset != 8192 || m[0].Length != 4096 || m[1].Offset != 1<<20 || m[1].Length != blockdev.GrainSize {
		t.Errorf("map: %v", m)
	}
	second := a.backup(t, "web")
	if m := call(t, a.disks.Map, &kb.MapDiskRequest{Name: "web0"}).Extents; len(m) != 0 {
		t.Errorf("map after a backup: %v", m)
	}
	if m := call(t, a.disks.Map, &kb.MapDiskRequest{Name: "web0", SincePoint: p.Id}).Extents; len(m) == 0 {
		t.Error("nothing differs from the first point")
	}
	d := call(t, a.points.Delete, &kb.DeletePointRequest{Point: second.Id})
	if d.State != "deleted" || d.DeletedUntil == nil {
		t.Errorf("deleted: %v", d)
	}
	if l := call(t, a.points.List, &kb.ListPointsRequest{Machine: "web"}).Points; len(l) != 1 {
		t.Errorf("list: %v", l)
	}
	if q := call(t, a.points.Get, &kb.GetPointRequest{Selector: "web@latest"}).Point; q.Id != p.Id {
		t.Errorf("latest is %s", q.Id)
	}
	if u := call(t, a.points.Undelete, &kb.UndeletePointRequest{Point: second.Id}); u.State != "available" {
		t.Errorf("undeleted: %v", u)
	}
	a.comparePoint(t, "web@latest", "", g.want)
}

// A kill in mid-restore leaves no half disk, and no file.
func TestKillDuringRestoreLeavesNoHalfDisk(t *testing.T) {
	t.Parallel() // mostly waits for syncs
	cfg := testConfig(t, dataDir(t))
	p := startProcess(t, cfg)
	p.makeDisk(t, "web0", 128<<20)
	p.makeMachine(t, "web", "web0")
	g := newGuest(t, cfg, "web0", 53)
	g.write(t, 0, 96<<20)
	pt := p.backup(t, "web")
	g.disconnect(t)
	call(t, p.points.RestoreDisk, &kb.RestoreDiskRequest{Point: pt.Id, Name: "back0"})
	time.Sleep(30 * time.Millisecond)
	p.kill()
	p = startProcess(t, cfg)
	noLeftovers(t, cfg)
	d, err := tryCall(p.disks.Get, &kb.GetDiskRequest{Name: "back0"})
	if err == nil {
		t.Log("the restore was quicker than the kill")
		compare(t, "back0", open(t, cfg, d.Name), g.want)
		return
	}
	wantCode(t, err, connect.CodeNotFound)
	p.restore(t, pt.Id, "", "back0")
	compare(t, "back0", open(t, cfg, "back0"), g.want)
}

// A disk over a given file: served, protected, and left alone when it is deleted.
func TestBackingFile(t *testing.T) {
	cfg := testConfig(t, dataDir(t))
	a := start(t, cfg)
	file := filepath.Join(t.TempDir(), "given.raw")
	content := bytes.Repeat([]byte("keelblock"), 1<<20)[:8<<20]
	if err := os.WriteFile(file, content, 0o600); err != nil {
		t.Fatal(err)
	}
	d := call(t, a.disks.Create, &kb.CreateDiskRequest{Name: "given", Backing: file})
	if d.SizeBytes != 8<<20 || d.Backing != file {
		t.Errorf("disk: %v", d)
	}
	compare(t, "given", open(t, cfg, "given"), content)
	a.makeMachine(t, "m", "given")
	p := a.backup(t, "m")
	a.comparePoint(t, p.Id, "", content)
	a.stop()
	// It vanishes while the daemon is down: offline, with the reason, others unharmed.
	if err := os.Rename(file, file+".away"); err != nil {
		t.Fatal(err)
	}
	a = start(t, cfg)
	a.makeDisk(t, "other", 1<<20)
	if d := call(t, a.disks.Get, &kb.GetDiskRequest{Name: "given"}); d.State != "offline" || !strings.Contains(d.Reason, file) {
		t.Errorf("disk without its file: %v", d)
	}
	_, err := tryCall(a.machines.Backup, &kb.BackupRequest{Machine: "m"})
	wantCode(t, err, connect.CodeFailedPrecondition)
	a.stop()
	// It comes back changed: nobody watched, so the next backup compares.
	if err := os.WriteFile(file+".away", append([]byte("changed!!"), content[9:]...), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(file+".away", file); err != nil {
		t.Fatal(err)
	}
	copy(content, "changed!!")
	a = start(t, cfg)
	p = a.backup(t, "m")
	if p.Tracking != "checksumCompare" {
		t.Errorf("a file that was changed behind our back: %v", p)
	}
	a.comparePoint(t, p.Id, "", content)
	call(t, a.machines.Delete, &kb.DeleteMachineRequest{Name: "m"})
	call(t, a.disks.Delete, &kb.DeleteDiskRequest{Name: "given"})
	if got, err := os.ReadFile(file); err != nil || !bytes.Equal(got, content) {
		t.Errorf("the given file after the disk was deleted: %v", err)
	}
}

// One writer writes numbered pages at random, one after the other, while points are
// made: full, incremental, with a small spill. Each point must be exactly the disk
// after some number K of writes: every page holds its last write up to K, whole.
func TestPointOfABusyDiskIsOneInstant(t *testing.T) {
	t.Parallel() // mostly waits for syncs
	cfg := testConfig(t, dataDir(t))
	// As large as the disk, so that no cut is aborted; a tenth of it is less than what is
	// written during the full read, so that this is read again.
	cfg.SpillBytes = 48 << 20
	a := start(t, cfg)
	const size, page = 48 << 20, 4096
	a.makeDisk(t, "web0", size)
	a.makeMachine(t, "web", "web0")
	g := newGuest(t, cfg, "web0", 60)
	g.write(t, 0, size) // so that the full read takes a while
	type write struct{ page, seq uint64 }
	var history []write
	stop := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, page)
		for seq := uint64(1); ; seq++ {
			select {
			case <-stop:
				return
			default:
			}
			n := g.rng.Uint64N(size / page)
			if seq%4 == 0 {
				n %= 64 // a hot set
			}
			for i := 0; i < page; i += 8 {
				binary.LittleEndian.PutUint64(buf[i:], seq)
			}
			history = append(history, write{n, seq})
			if _, err := g.dev.WriteAt(buf, int64(n)*page); err != nil {
				t.Error(err)
				return
			}
		}
	}()
	end := sync.OnceFunc(func() { close(stop); <-done })
	defer end()
	var points []string
	for i := range 4 {
		p := a.backup(t, "web")
		points = append(points, p.Id)
		if want := map[bool]string{true: "full", false: "enabled"}[i == 0]; p.Tracking != want {
			t.Errorf("point %d is %s", i, p.Tracking)
		}
	}
	end()
	for i, id := range points {
		call(t, a.points.Export, &kb.ExportRequest{Point: id, Name: "check"})
		c := open(t, cfg, "check")
		got := make([]byte, size)
		for off := 0; off < size; off += 4 << 20 {
			if _, err := c.ReadAt(got[off:off+4<<20], int64(off)); err != nil {
				t.Fatal(err)
			}
		}
		c.Close()
		call(t, a.points.Unexport, &kb.UnexportRequest{Name: "check"})
		want := append([]byte(nil), g.want...)
		last := uint64(0) // the highest number in the point: its instant
		for n := range uint64(size / page) {
			p := got[n*page : n*page+page]
			if v := binary.LittleEndian.Uint64(p); v <= uint64(len(history)) && v > 0 && history[v-1].page == n {
				last = max(last, v)
			}
		}
		for _, w := range history[:last] {
			for j := uint64(0); j < page; j += 8 {
				binary.LittleEndian.PutUint64(want[w.page*page+j:], w.seq)
			}
		}
		for n := range size / page {
			if !bytes.Equal(got[n*page:n*page+page], want[n*page:n*page+page]) {
				t.Fatalf("point %d, the disk after %d of %d writes: page %d begins with %x, want %x", i, last, len(history), n,
					got[n*page:n*page+16], want[n*page:n*page+16])
			}
		}
		t.Logf("point %d is the disk after %d of %d writes", i, last, len(history))
	}
}

// Zeros and trims are changes like any other, at any alignment; a disk that was trimmed
// whole makes a point that stores nothing.
func TestZeroesAndTrimsAreChanges(t *testing.T) {
	cfg := testConfig(t, dataDir(t))
	a := start(t, cfg)
	a.makeDisk(t, "web0", 8<<20)
	a.makeMachine(t, "web", "web0")
	g := newGuest(t, cfg, "web0", 61)
	g.write(t, 0, 8<<20)
	a.backup(t, "web")
	zero := func(off, n int64, punch bool) {
		t.Helper()
		if err := g.dev.WriteZeroes(off, n, punch); err != nil {
			t.Fatal(err)
		}
		clear(g.want[off : off+n])
	}
	zero(512, 512, true)
	zero(1<<20+100*512, 70000/512*512, false)
	if err := g.dev.Trim(3<<20+512, 1<<20); err != nil {
		t.Fatal(err)
	}
	if _, err := g.dev.ReadAt(g.want[3<<20:5<<20], 3<<20); err != nil { // a trim may leave anything
		t.Fatal(err)
	}
	p := a.backup(t, "web")
	if p.Tracking != "enabled" {
		t.Errorf("point: %v", p)
	}
	a.comparePoint(t, p.Id, "", g.want)
	zero(0, 8<<20, true)
	p = a.backup(t, "web")
	a.comparePoint(t, p.Id, "", g.want)
	if p.NewBytes != 0 {
		t.Errorf("a disk of zeros needs %d new bytes", p.NewBytes)
	}
}

// A cancelled backup leaves no point and no trace in the next one.
func TestCancelBackup(t *testing.T) {
	cfg := testConfig(t, dataDir(t))
	a := start(t, cfg)
	a.makeDisk(t, "web0", 96<<20)
	a.makeMachine(t, "web", "web0")
	g := newGuest(t, cfg, "web0", 62)
	g.write(t, 0, 96<<20)
	j := call(t, a.machines.Backup, &kb.BackupRequest{Machine: "web"})
	for range 200 {
		if j = call(t, a.jobs.Get, &kb.GetJobRequest{JobId: j.JobId}); j.DoneBytes > 0 || j.EndedAt != nil {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	if _, err := tryCall(a.jobs.Cancel, &kb.CancelJobRequest{JobId: j.JobId}); err != nil {
		t.Skipf("the backup was quicker: %v", err)
	}
	if j = a.wait(t, j); j.State == "Completed" {
		t.Skip("the backup was quicker")
	}
	if j.State != "Cancelled" || j.ErrorCode != "canceled" {
		t.Errorf("job: %v", j)
	}
	if l := call(t, a.points.List, &kb.ListPointsRequest{}).Points; len(l) != 0 {
		t.Errorf("points: %v", l)
	}
	p := a.backup(t, "web")
	a.comparePoint(t, p.Id, "", g.want)
}
