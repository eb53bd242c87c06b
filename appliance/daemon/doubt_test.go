package daemon_test

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	kb "github.com/keelblock/keelblock/appliance/api/keelblockv1"
)

// After a power cut the backup compares the regions of 16 MiB that were being written, and
// no others; the result is that of a comparison of the whole disk.
func TestPowerCutComparesOnlyWhatWasWritten(t *testing.T) {
	const mib, size = int64(1 << 20), 256 << 20
	cfg := testConfig(t, dataDir(t))
	p := startProcess(t, cfg)
	p.makeDisk(t, "web0", size)
	p.makeMachine(t, "web", "web0")
	g := newGuest(t, cfg, "web0", 12)
	for r := int64(0); r < 16; r += 2 {
		g.write(t, 16*r*mib, 3*mib)
	}
	p.backup(t, "web")
	p.backup(t, "web") // nothing was written for an interval: the regions are cleared
	g.write(t, 100*mib, 4096)
	g.write(t, 200*mib+512, 512)
	g.disconnect(t)
	p.kill()
	powerOff := func() {
		t.Helper()
		if err := os.RemoveAll(cfg.MapDir); err != nil {
			t.Fatal(err)
		}
	}
	powerOff()

	p = startProcess(t, cfg)
	d := call(t, p.disks.Get, &kb.GetDiskRequest{Name: "web0"})
	if d.State != "suspect" || d.Reason != "after a power cut 2 regions of 16 MiB are compared" {
		t.Errorf("disk: %s: %s", d.State, d.Reason)
	}
	status := call(t, p.app.Status, &kb.StatusRequest{})
	if !slices.ContainsFunc(status.Alerts, func(a *kb.Alert) bool {
		return a.ObjectName == "web0" && strings.Contains(a.Text, "2 regions of 16 MiB")
	}) {
		t.Errorf("alerts: %v", status.Alerts)
	}
	doubtful := []*kb.Extent{{Offset: 96 * mib, Length: 16 * mib}, {Offset: 192 * mib, Length: 16 * mib}}
	listed := func() []*kb.Extent { return call(t, p.disks.Map, &kb.MapDiskRequest{Name: "web0"}).Extents }
	if got := listed(); !slices.EqualFunc(got, doubtful, func(a, b *kb.Extent) bool { return a.Offset == b.Offset && a.Length == b.Length }) {
		t.Errorf("map after a power cut: %v", got)
	}
	// A second cut before anything was compared changes nothing.
	p.kill()
	powerOff()
	p = startProcess(t, cfg)
	if got := listed(); len(got) != 2 {
		t.Errorf("map after a second power cut: %v", got)
	}
	g.dev = open(t, cfg, "web0")
	g.write(t, 120*mib, 4096)
	third := p.backup(t, "web")
	// Of the two regions and the one written since, 3 MiB, 3 MiB and 4 KiB hold data.
	if third.Tracking != "checksumCompare" || third.ChangedBytes != 3*4096 || third.ReadBytes > 7*mib {
		t.Errorf("read %d bytes, changed %d: %v", third.ReadBytes, third.ChangedBytes, third)
	}
	a := &appliance{t: t, cfg: cfg, clients: p.clients}
	a.comparePoint(t, third.Id, "", g.want)
	if got := listed(); len(got) != 0 {
		t.Errorf("map after the backup: %v", got)
	}
	if fourth := p.backup(t, "web"); fourth.Tracking != "enabled" || fourth.ReadBytes != 0 {
		t.Errorf("the next backup: %v", fourth)
	}
	g.disconnect(t)
	p.terminate()
}

// Somebody writes the disk's file while the daemon serves it. No list has that, the next
// backup's audit finds it, and the point is right all the same.
func TestN3ForeignWriteIsFoundAndCompared(t *testing.T) {
	const size = 4 << 20 // small enough that each audit looks at every block
	cfg := testConfig(t, dataDir(t))
	a := start(t, cfg)
	a.makeDisk(t, "web0", size)
	a.makeMachine(t, "web", "web0")
	g := newGuest(t, cfg, "web0", 20)
	g.write(t, 0, 2<<20)
	a.backup(t, "web")
	if p := a.backup(t, "web"); p.Tracking != "enabled" {
		t.Fatalf("before: %v", p)
	}
	g.write(t, 64<<10, 4096)
	f, err := os.OpenFile(filepath.Join(cfg.DisksDir(), "web0.raw"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("behind its back"), 3<<20); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	copy(g.want[3<<20:], "behind its back")
	j := a.wait(t, call(t, a.machines.Backup, &kb.BackupRequest{Machine: "web"}))
	if j.State != "CompletedWithWarnings" || !strings.Contains(j.Error, "audit") {
		t.Errorf("the job that finds it: %v", j)
	}
	p := call(t, a.points.Get, &kb.GetPointRequest{Selector: j.Result[0]}).Point
	if p.Tracking != "checksumCompare" || p.ChangedBytes != 2*4096 {
		t.Errorf("the backup that finds it: %v", p)
	}
	a.comparePoint(t, p.Id, "", g.want)
	alerts := call(t, a.app.Status, &kb.StatusRequest{}).Alerts
	if !slices.ContainsFunc(alerts, func(x *kb.Alert) bool {
		return x.Severity == "critical" && x.ObjectName == "web0" && strings.Contains(x.Text, "audit: the block at 3145728 differs")
	}) {
		t.Errorf("alerts: %v", alerts)
	}
	if p := a.backup(t, "web"); p.Tracking != "enabled" {
		t.Errorf("afterwards: %v", p)
	}
	g.disconnect(t)
	if now, err := os.ReadFile(filepath.Join(cfg.DisksDir(), "web0.raw")); err != nil || !bytes.Equal(now, g.want) {
		t.Errorf("the disk itself: %v", err)
	}
}
