package daemon_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	kb "github.com/keelblock/keelblock/appliance/api/keelblockv1"
	"github.com/keelblock/keelblock/appliance/disks"
	"github.com/keelblock/keelblock/appliance/statefile"
)

func (c clients) resize(t *testing.T, disk string, size int64) *kb.Disk {
	t.Helper()
	d := call(t, c.disks.Resize, &kb.ResizeDiskRequest{Name: disk, SizeBytes: size, Shrink: true})
	if d.SizeBytes != size {
		t.Fatalf("resized to %d: %v", size, d)
	}
	return d
}

// unused waits until the server has seen the end of a disk's connections.
func (c clients) unused(t *testing.T, disk string) {
	t.Helper()
	for end := time.Now().Add(jobTimeout); call(t, c.disks.Get, &kb.GetDiskRequest{Name: disk}).Connections > 0; {
		if time.Now().After(end) {
			t.Fatalf("disk %s still has connections", disk)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// resized is what a disk holds after a change of its size.
func resized(p []byte, size int) []byte {
	out := make([]byte, size)
	copy(out, p)
	return out
}

// A disk grows and shrinks while a client is connected and cursors stand on it: every
// point has the size and the bytes of its time, older ones keep theirs, and the map lists
// all that differs.
func TestResizeWhileServed(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t, dataDir(t))
	a := start(t, cfg)
	const mib = 1 << 20
	a.makeDisk(t, "web0", 5*mib+512)
	a.makeMachine(t, "web", "web0")
	g := newGuest(t, cfg, "web0", 97)
	g.write(t, 0, 5*mib+512)
	type past struct {
		id      string
		content []byte
	}
	var points []past
	place := func(tracking string) {
		t.Helper()
		p := a.backup(t, "web")
		if p.Tracking != tracking || p.Disks[0].SizeBytes != int64(len(g.want)) {
			t.Errorf("point of a disk of %d bytes: %v", len(g.want), p)
		}
		points = append(points, past{p.Id, bytes.Clone(g.want)})
	}
	place("full")
	call(t, a.cursors.Create, &kb.CreateCursorRequest{Name: "c", Disk: "web0"})
	for i, size := range []int{8 * mib, 8*mib + 1024, 2*mib + 4096 + 512, 2 * mib, 6 * mib, 6 * mib, 512, 9*mib + 512} {
		a.resize(t, "web0", int64(size))
		old := g.dev
		g.want = resized(g.want, size)
		// A connection keeps the size with which it began, and gets errors past the end.
		if old.Size() > int64(size) {
			if _, err := old.ReadAt(make([]byte, 512), old.Size()-512); err == nil {
				t.Errorf("size %d: a read past the end gives data", size)
			}
			if _, err := old.WriteAt(make([]byte, 512), old.Size()-512); err == nil {
				t.Errorf("size %d: a write past the end is acknowledged", size)
			}
		}
		g.dev = open(t, cfg, "web0")
		compare(t, "web0 resized", g.dev, g.want)
		g.write(t, int64(size)-512, 512)
		if size > mib {
			g.write(t, g.rng.Int64N(int64(size)-5000), 5000)
		}
		for _, p := range points {
			listed := grainsOf(call(t, a.disks.Map, &kb.MapDiskRequest{Name: "web0", SincePoint: p.id}).Extents)
			differ := differing(resized(p.content, max(size, len(p.content)))[:size], g.want)
			wantListed(t, "after a resize", listed, differ, false)
		}
		wantListed(t, "cursor after a resize", a.mapSince(t, "web0", "c"), differing(resized(points[0].content, max(size, len(points[0].content)))[:size], g.want), false)
		if i%2 == 1 {
			place("enabled")
		}
		if err := old.Close(); err != nil {
			t.Fatal(err)
		}
	}
	place("enabled")
	for _, p := range points {
		a.comparePoint(t, p.id, "", p.content)
	}
	g.disconnect(t)
	a.stop()
	a = start(t, cfg)
	compare(t, "web0 after a restart", open(t, cfg, "web0"), g.want)
	if p := a.backup(t, "web"); p.Tracking != "enabled" || p.ReadBytes != 0 {
		t.Errorf("a backup after a clean stop: %v", p)
	}
	a.restore(t, points[0].id, "", "old0")
	compare(t, "restored", open(t, cfg, "old0"), points[0].content)
}

// What is wrong is refused before anything is waited for; a resize waits for a backup.
func TestResizeRefusesAndWaits(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t, dataDir(t))
	a := start(t, cfg)
	a.makeDisk(t, "web0", 64<<20)
	a.makeMachine(t, "web", "web0")
	g := newGuest(t, cfg, "web0", 98)
	g.write(t, 0, 64<<20)
	for _, tt := range []struct {
		name string
		size int64
		want connect.Code
	}{{"web0", 1 << 20, connect.CodeInvalidArgument}, {"web0", 1000, connect.CodeInvalidArgument}, {"web0", 0, connect.CodeInvalidArgument},
		{"web0", 1 << 60, connect.CodeInvalidArgument}, {"nothing", 1 << 20, connect.CodeNotFound}} {
		if _, err := tryCall(a.disks.Resize, &kb.ResizeDiskRequest{Name: tt.name, SizeBytes: tt.size}); connect.CodeOf(err) != tt.want {
			t.Errorf("resize %s to %d: %v, want %v", tt.name, tt.size, err, tt.want)
		}
	}
	j := call(t, a.machines.Backup, &kb.BackupRequest{Machine: "web"})
	for j.DoneBytes == 0 && j.EndedAt == nil { // it has the slot
		time.Sleep(time.Millisecond)
		j = call(t, a.jobs.Get, &kb.GetJobRequest{JobId: j.JobId})
	}
	a.resize(t, "web0", 80<<20)
	if j = call(t, a.jobs.Get, &kb.GetJobRequest{JobId: j.JobId}); j.State != "Completed" {
		t.Fatalf("the resize did not wait for the backup: %v", j)
	}
	a.comparePoint(t, j.Result[0], "", g.want)
	p := a.backup(t, "web")
	if p.Disks[0].SizeBytes != 80<<20 || p.Tracking != "enabled" {
		t.Errorf("the next point: %v", p)
	}
	a.comparePoint(t, p.Id, "", resized(g.want, 80<<20))
}

// A kill between any two durable steps leaves a disk of one of the two sizes that is
// served, and whose next point is right.
func TestResizeKilledBetweenItsSteps(t *testing.T) {
	t.Parallel() // mostly waits for syncs
	const old = 4 << 20
	cfg := testConfig(t, dataDir(t))
	p := startProcess(t, cfg)
	type want struct{ resizeTo, has int64 }
	wanted := map[string]want{}
	guests := map[string]*guest{}
	var data []string
	for i, size := range []int64{6<<20 + 512, 1<<20 + 512} {
		for j, has := range []int64{old, size} { // before the file has the new size, or after
			disk, swap := fmt.Sprintf("web%d", 2*i+j), fmt.Sprintf("swap%d", 2*i+j)
			p.makeDisk(t, disk, old)
			call(t, p.disks.Create, &kb.CreateDiskRequest{Name: swap, SizeBytes: old, Role: "temporary"})
			wanted[disk], wanted[swap] = want{size, has}, want{size, has}
			data = append(data, disk)
			guests[disk] = newGuest(t, cfg, disk, uint64(99+2*i+j))
			guests[disk].write(t, 0, old)
		}
	}
	p.makeMachine(t, "web", data...)
	p.backup(t, "web")
	for _, d := range data {
		guests[d].write(t, 8192, 4096)
	}
	p.kill()
	// The list names both sizes, the file has one of them.
	var list struct {
		Disks []disks.Entry `json:"disks"`
	}
	path := filepath.Join(cfg.DisksDir(), "disks.json")
	l, err := statefile.Load(path, "disks", &list)
	if err != nil {
		t.Fatal(err)
	}
	for i, e := range list.Disks {
		list.Disks[i].ResizeTo = wanted[e.Name].resizeTo
		if err := os.Truncate(filepath.Join(cfg.DisksDir(), e.Name+".raw"), wanted[e.Name].has); err != nil {
			t.Fatal(err)
		}
	}
	if err := statefile.Save(path, "disks", l.Serial+1, list); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second start finds nothing to do
		p.kill()
		p = startProcess(t, cfg)
		for name, w := range wanted {
			if d := call(t, p.disks.Get, &kb.GetDiskRequest{Name: name}); d.SizeBytes != w.has || d.State == "offline" {
				t.Fatalf("after the kill, want %v: %v", w, d)
			}
		}
		raw, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(raw), "resizeTo") {
			t.Error("the list still has a resize under way")
		}
	}
	pt := p.backup(t, "web")
	for _, name := range data {
		content := resized(guests[name].want, int(wanted[name].has))
		compare(t, name, open(t, cfg, name), content)
		p.restore(t, pt.Id, name, name+"-back")
		compare(t, name+" in the point", open(t, cfg, name+"-back"), content)
	}
}

// A real daemon is killed at random moments of resizes: each time the disk has one of the
// sizes that were asked for last, what lies below both is untouched, and the next point
// is the disk.
func TestResizeKilledAtRandom(t *testing.T) {
	t.Parallel() // mostly waits for syncs
	cfg := testConfig(t, dataDir(t))
	p := startProcess(t, cfg)
	const least = 2 << 20
	p.makeDisk(t, "web0", least)
	p.makeMachine(t, "web", "web0")
	g := newGuest(t, cfg, "web0", 100)
	g.write(t, 0, least)
	p.backup(t, "web")
	g.disconnect(t)
	rng := g.rng
	for round := range 6 {
		ended := make(chan struct{})
		running := p
		go func() {
			defer close(ended)
			for { // until the daemon is gone
				size := least + 512*rng.Int64N(8192)
				_, err := tryCall(running.disks.Resize, &kb.ResizeDiskRequest{Name: "web0", SizeBytes: size, Shrink: true})
				if err != nil {
					return
				}
			}
		}()
		time.Sleep(time.Duration(20+round*13) * time.Millisecond)
		p.kill()
		<-ended
		p = startProcess(t, cfg)
		d := call(t, p.disks.Get, &kb.GetDiskRequest{Name: "web0"})
		if d.State == "offline" || d.SizeBytes < least {
			t.Fatalf("round %d: %v", round, d)
		}
		want := resized(g.want, int(d.SizeBytes)) // what it gained was never written
		compare(t, "web0 after a kill", open(t, cfg, "web0"), want)
		pt := p.backup(t, "web")
		if pt.Disks[0].SizeBytes != d.SizeBytes {
			t.Errorf("round %d: point %v of a disk of %d bytes", round, pt, d.SizeBytes)
		}
		back := fmt.Sprintf("back%d", round)
		p.restore(t, pt.Id, "", back)
		compare(t, "point after a kill", open(t, cfg, back), want)
	}
}

// Roles: what was written while a disk was temporary is in the next point when it is a
// data disk again, and nothing of it is in a point before.
func TestEditRole(t *testing.T) {
	cfg := testConfig(t, dataDir(t))
	a := start(t, cfg)
	a.makeDisk(t, "web0", 2<<20)
	a.makeDisk(t, "web1", 2<<20)
	a.makeMachine(t, "web", "web0", "web1")
	g := newGuest(t, cfg, "web1", 101)
	g.write(t, 0, 1<<20)
	a.backup(t, "web")
	edit := func(role string) (*kb.Disk, error) {
		return tryCall(a.disks.Edit, &kb.EditDiskRequest{Name: "web1", Role: role})
	}
	_, err := edit("temporary")
	wantCode(t, err, connect.CodeFailedPrecondition) // the guest is connected
	g.disconnect(t)
	a.unused(t, "web1")
	_, err = edit("permanent")
	wantCode(t, err, connect.CodeInvalidArgument)
	call(t, a.cursors.Create, &kb.CreateCursorRequest{Name: "c", Disk: "web1"})
	_, err = edit("temporary")
	wantCode(t, err, connect.CodeFailedPrecondition)
	call(t, a.cursors.Delete, &kb.DeleteCursorRequest{Name: "c"})
	if d, err := edit("temporary"); err != nil || d.Role != "temporary" || d.MachineName != "web" {
		t.Fatalf("%v, %v", d, err)
	}
	g.dev = open(t, cfg, "web1")
	g.write(t, 4096, 4096)
	p := a.backup(t, "web")
	if len(p.Disks) != 1 || len(p.ExcludedDisks) != 1 || p.ExcludedDisks[0] != "web1" {
		t.Errorf("point without the temporary disk: %v", p)
	}
	a.resize(t, "web1", 3<<20)
	g.disconnect(t)
	g.want = resized(g.want, 3<<20)
	a.stop()
	a = start(t, cfg)
	if d, err := edit("data"); err != nil || d.Role != "data" || d.SizeBytes != 3<<20 {
		t.Fatalf("%v, %v", d, err)
	}
	p = a.backup(t, "web")
	if p.Tracking != "checksumCompare" || len(p.Disks) != 2 {
		t.Errorf("the first point of a disk that is protected again: %v", p)
	}
	a.comparePoint(t, p.Id, "web1", g.want)
	g.dev = open(t, cfg, "web1")
	g.write(t, 2<<20, 4096)
	p = a.backup(t, "web")
	if p.Tracking != "enabled" || p.ReadBytes != 4096 {
		t.Errorf("the point after it: %v", p)
	}
	a.comparePoint(t, p.Id, "web1", g.want)
}

// The list of common names outlives the daemon.
func TestEditAllow(t *testing.T) {
	cfg := testConfig(t, dataDir(t))
	a := start(t, cfg)
	a.makeDisk(t, "web0", 1<<20)
	guest := open(t, cfg, "web0") // access is not asked of unix sockets, and needs no free disk
	d := call(t, a.disks.Edit, &kb.EditDiskRequest{Name: "web0", Allow: []string{"host-b", "host-a", "host-b"}})
	if strings.Join(d.Allow, " ") != "host-a host-b" {
		t.Errorf("allowed: %v", d.Allow)
	}
	yes := true
	_, err := tryCall(a.disks.Edit, &kb.EditDiskRequest{Name: "web0", Exclusive: &yes})
	wantCode(t, err, connect.CodeFailedPrecondition)
	if err := guest.Close(); err != nil {
		t.Fatal(err)
	}
	a.unused(t, "web0")
	call(t, a.disks.Edit, &kb.EditDiskRequest{Name: "web0", Exclusive: &yes})
	a.stop()
	a = start(t, cfg)
	d = call(t, a.disks.Edit, &kb.EditDiskRequest{Name: "web0", Disallow: []string{"host-a"}})
	if strings.Join(d.Allow, " ") != "host-b" || !d.Exclusive {
		t.Errorf("after a restart: %v", d)
	}
	_, err = tryCall(a.disks.Edit, &kb.EditDiskRequest{Name: "web0", Disallow: []string{"host-a"}})
	wantCode(t, err, connect.CodeNotFound)
	for _, bad := range []string{"", "a\nb", strings.Repeat("x", 65)} {
		_, err = tryCall(a.disks.Edit, &kb.EditDiskRequest{Name: "web0", Allow: []string{bad}})
		wantCode(t, err, connect.CodeInvalidArgument)
	}
	compare(t, "web0", open(t, cfg, "web0"), make([]byte, 1<<20))
}
