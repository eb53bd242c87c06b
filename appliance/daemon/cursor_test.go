package daemon_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"

	kb "github.com/keelblock/keelblock/appliance/api/keelblockv1"
	"github.com/keelblock/keelblock/appliance/config"
)

const grain = 4096

// grainsOf are the grains of extents, by offset.
func grainsOf(extents []*kb.Extent) map[int64]bool {
	out := map[int64]bool{}
	for _, x := range extents {
		for off := x.Offset / grain * grain; off < x.Offset+x.Length; off += grain {
			out[off] = true
		}
	}
	return out
}

// differing are the grains in which two disks differ; what lies behind the end of the
// smaller is zeros.
func differing(a, b []byte) map[int64]bool {
	size := max(len(a), len(b))
	x, y := make([]byte, size), make([]byte, size)
	copy(x, a)
	copy(y, b)
	out := map[int64]bool{}
	for off := 0; off < size; off += grain {
		if end := min(off+grain, size); !bytes.Equal(x[off:end], y[off:end]) {
			out[int64(off)] = true
		}
	}
	return out
}

// wantListed fails when a grain that differs is not listed, or, with exact, when another
// one is.
func wantListed(t *testing.T, what string, listed, differ map[int64]bool, exact bool) {
	t.Helper()
	for off := range differ {
		if !listed[off] {
			t.Errorf("%s: the grain at %d differs and is not listed", what, off)
			return
		}
	}
	if exact && len(listed) != len(differ) {
		t.Errorf("%s: %d grains are listed, %d differ", what, len(listed), len(differ))
	}
}

func (c clients) mapSince(t *testing.T, disk, cursor string) map[int64]bool {
	t.Helper()
	return grainsOf(call(t, c.disks.Map, &kb.MapDiskRequest{Name: disk, Cursor: cursor}).Extents)
}

// Several consumers of one disk stand at different points of its history. Each is told
// what changed since its own, to the grain; advancing one disturbs none; all of it
// outlives the daemon.
func TestN9CursorsAreIndependent(t *testing.T) {
	cfg := testConfig(t, dataDir(t))
	a := start(t, cfg)
	a.makeDisk(t, "web0", 8<<20+512)
	_, err := tryCall(a.cursors.Create, &kb.CreateCursorRequest{Name: "early", Disk: "web0"})
	wantCode(t, err, connect.CodeFailedPrecondition)
	if !strings.Contains(err.Error(), "keelblock machine create") {
		t.Errorf("a cursor on a disk without a machine: %v", err)
	}
	a.makeMachine(t, "web", "web0")
	_, err = tryCall(a.cursors.Create, &kb.CreateCursorRequest{Name: "early", Disk: "web0"})
	wantCode(t, err, connect.CodeFailedPrecondition)
	if !strings.Contains(err.Error(), "keelblock backup web") {
		t.Errorf("a cursor before the first point: %v", err)
	}
	g := newGuest(t, cfg, "web0", 90)
	g.write(t, 0, 6<<20)
	then := map[string][]byte{} // cursor → the disk at its point
	at := map[string]string{}
	place := func(name string) {
		t.Helper()
		p := a.backup(t, "web")
		c := call(t, a.cursors.Create, &kb.CreateCursorRequest{Name: name, Disk: "web0"})
		if c.PointId != p.Id || c.DiskName != "web0" {
			t.Errorf("cursor %v, newest point %s", c, p.Id)
		}
		then[name], at[name] = bytes.Clone(g.want), p.Id
	}
	check := func(when string) {
		t.Helper()
		for name, old := range then {
			differ := differing(old, g.want)
			wantListed(t, when+", cursor "+name, a.mapSince(t, "web0", name), differ, true)
			since := call(t, a.disks.Map, &kb.MapDiskRequest{Name: "web0", SincePoint: at[name]}).Extents
			wantListed(t, when+", since "+name, grainsOf(since), differ, true)
		}
	}
	place("a")
	g.write(t, 1<<20+4096, 4096)
	place("b")
	g.write(t, 1<<20+8192, 100)
	g.write(t, 8<<20, 512) // the last grain is cut off
	a.backup(t, "web")
	g.write(t, 3<<20, 70000)
	place("c")
	g.write(t, 5<<20+12345, 1)
	check("live")
	if got := call(t, a.disks.Get, &kb.GetDiskRequest{Name: "web0"}).DirtyBitmaps; !slices.Equal(got, bitmapNames([]string{"a", "b", "c"}, at["c"], at["a"], at["b"])) {
		t.Errorf("dirty bitmaps: %q", got)
	}
	p := a.backup(t, "web")
	check("after a backup")
	then["b"], at["b"] = bytes.Clone(g.want), p.Id
	if c := call(t, a.cursors.Advance, &kb.AdvanceCursorRequest{Name: "b"}); c.PointId != p.Id {
		t.Errorf("advanced to %v", c)
	}
	then["a"], at["a"] = then["c"], at["c"]
	call(t, a.cursors.Advance, &kb.AdvanceCursorRequest{Name: "a", Point: at["c"]})
	check("after advancing")
	g.disconnect(t)
	a.stop()
	a = start(t, cfg)
	g.dev = open(t, cfg, "web0")
	g.write(t, 4<<20, 4096)
	check("after a restart")

	call(t, a.cursors.Delete, &kb.DeleteCursorRequest{Name: "b"})
	if l := call(t, a.cursors.List, &kb.ListCursorsRequest{Disk: "web0"}).Cursors; len(l) != 2 || l[0].Name != "a" || l[1].Name != "c" {
		t.Errorf("cursors: %v", l)
	}
	_, err = tryCall(a.disks.Map, &kb.MapDiskRequest{Name: "web0", Cursor: "b"})
	wantCode(t, err, connect.CodeNotFound)
}

// bitmapNames are the full names that a disk offers: of cursors, then since the points.
func bitmapNames(cursors []string, points ...string) []string {
	var out []string
	for _, c := range cursors {
		out = append(out, "qemu:dirty-bitmap:"+c)
	}
	for _, p := range points {
		out = append(out, "qemu:dirty-bitmap:since-"+p)
	}
	return out
}

// A cursor keeps its point: it is not purged, and a soft deletion does not disturb it. A
// disk is not deleted under it.
func TestN9CursorsPinTheirPoints(t *testing.T) {
	cfg := testConfig(t, dataDir(t))
	a := start(t, cfg)
	for _, d := range []string{"web0", "web1", "swap"} {
		call(t, a.disks.Create, &kb.CreateDiskRequest{Name: d, SizeBytes: 1 << 20, Role: map[bool]string{true: "temporary"}[d == "swap"]})
	}
	a.makeMachine(t, "web", "web0", "web1", "swap")
	first := a.backup(t, "web")
	call(t, a.cursors.Create, &kb.CreateCursorRequest{Name: "c", Disk: "web0"})
	g := newGuest(t, cfg, "web0", 91)
	g.write(t, 4096, 4096)
	a.backup(t, "web")
	purge := func() error {
		_, err := tryCall(a.points.Delete, &kb.DeletePointRequest{Point: first.Id, Purge: true})
		return err
	}
	for range 2 {
		err := purge()
		wantCode(t, err, connect.CodeFailedPrecondition)
		if !strings.Contains(err.Error(), `cursor "c"`) {
			t.Errorf("purge of a cursor's point: %v", err)
		}
		a.stop()
		a = start(t, cfg) // pins are taken again
	}
	call(t, a.points.Delete, &kb.DeletePointRequest{Point: first.Id})
	if m := a.mapSince(t, "web0", "c"); len(m) != 1 || !m[4096] {
		t.Errorf("map since a soft-deleted point: %v", m)
	}
	for name, tt := range map[string]struct {
		req  *kb.MapDiskRequest
		want connect.Code
	}{
		"cursor of another disk":  {&kb.MapDiskRequest{Name: "web1", Cursor: "c"}, connect.CodeInvalidArgument},
		"point and cursor":        {&kb.MapDiskRequest{Name: "web0", Cursor: "c", SincePoint: first.Id}, connect.CodeInvalidArgument},
		"another disk of a point": {&kb.MapDiskRequest{Name: "web0", SincePoint: first.Id + ":web1"}, connect.CodeInvalidArgument},
		"no disk of a point":      {&kb.MapDiskRequest{Name: "web0", SincePoint: first.Id + ":web7"}, connect.CodeNotFound},
		"temporary":               {&kb.MapDiskRequest{Name: "swap"}, connect.CodeFailedPrecondition},
	} {
		if _, err := tryCall(a.disks.Map, tt.req); connect.CodeOf(err) != tt.want {
			t.Errorf("map, %s: %v, want %v", name, err, tt.want)
		}
	}
	for name, tt := range map[string]struct {
		req  *kb.CreateCursorRequest
		want connect.Code
	}{
		"temporary":  {&kb.CreateCursorRequest{Name: "d", Disk: "swap"}, connect.CodeInvalidArgument},
		"name taken": {&kb.CreateCursorRequest{Name: "c", Disk: "web1"}, connect.CodeAlreadyExists},
		"bad name":   {&kb.CreateCursorRequest{Name: "C", Disk: "web1"}, connect.CodeInvalidArgument},
		"no disk":    {&kb.CreateCursorRequest{Name: "d", Disk: "web7"}, connect.CodeNotFound},
	} {
		if _, err := tryCall(a.cursors.Create, tt.req); connect.CodeOf(err) != tt.want {
			t.Errorf("create, %s: %v, want %v", name, err, tt.want)
		}
	}
	call(t, a.machines.Edit, &kb.EditMachineRequest{Name: "web", RemoveDisks: []string{"web0"}})
	_, err := tryCall(a.disks.Delete, &kb.DeleteDiskRequest{Name: "web0"})
	wantCode(t, err, connect.CodeFailedPrecondition)
	if !strings.Contains(err.Error(), "keelblock cursor delete c") {
		t.Errorf("deleting the disk of a cursor: %v", err)
	}
	call(t, a.cursors.Delete, &kb.DeleteCursorRequest{Name: "c"})
	if err := purge(); err != nil {
		t.Errorf("purge after the cursor is gone: %v", err)
	}
	call(t, a.disks.Delete, &kb.DeleteDiskRequest{Name: "web0"})
}

// While backups commit, and move the base of the map, a cursor's answer has everything
// that was acknowledged before it was asked.
func TestN9CursorsLoseNothingWhileBackupsCommit(t *testing.T) {
	t.Parallel() // mostly waits for syncs
	cfg := testConfig(t, dataDir(t))
	a := start(t, cfg)
	a.makeDisk(t, "web0", 2<<20)
	a.makeMachine(t, "web", "web0")
	a.backup(t, "web")
	call(t, a.cursors.Create, &kb.CreateCursorRequest{Name: "c", Disk: "web0"})
	old := make([]byte, 2<<20)
	g := newGuest(t, cfg, "web0", 92)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			j, err := tryCall(a.machines.Backup, &kb.BackupRequest{Machine: "web"})
			if err != nil {
				t.Error(err)
				return
			}
			if j = a.wait(t, j); j.State != "Completed" {
				t.Errorf("backup: %v", j)
				return
			}
		}
	})
	asked := 0
	for end := time.Now().Add(2 * time.Second); time.Now().Before(end) && !t.Failed(); asked++ {
		g.write(t, g.rng.Int64N(512)*grain, grain)
		wantListed(t, "while backups commit", a.mapSince(t, "web0", "c"), differing(old, g.want), true)
	}
	close(stop)
	wg.Wait()
	n := len(call(t, a.points.List, &kb.ListPointsRequest{Machine: "web"}).Points)
	t.Logf("asked %d times while %d points were made", asked, n-1)
	if n < 3 {
		t.Errorf("only %d points were made", n)
	}
}

// In doubt a cursor's answer is everything that may differ: after a kill the map is
// exact; when the map is lost with the kernel, what may have been written; when the base
// is gone too, all of the disk.
func TestN9CursorsInDoubt(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t, dataDir(t))
	p := startProcess(t, cfg)
	const size = 40 << 20
	p.makeDisk(t, "web0", size)
	p.makeMachine(t, "web", "web0")
	g := newGuest(t, cfg, "web0", 93)
	g.write(t, 0, 1<<20)
	p.backup(t, "web")
	call(t, p.cursors.Create, &kb.CreateCursorRequest{Name: "c", Disk: "web0"})
	old := bytes.Clone(g.want)
	g.write(t, 8192, 4096)
	p.backup(t, "web")
	g.write(t, 1<<20, 4096)
	p.kill()
	p = startProcess(t, cfg)
	wantListed(t, "after a kill", p.mapSince(t, "web0", "c"), differing(old, g.want), true)
	g.dev = open(t, cfg, "web0")
	g.write(t, 2<<20, 4096)
	p.kill()
	// What a power cut leaves of the maps.
	maps, err := filepath.Glob(filepath.Join(cfg.MapDir, "*", "*.map"))
	if err != nil || len(maps) != 1 {
		t.Fatalf("maps %q: %v", maps, err)
	}
	if err := os.Remove(maps[0]); err != nil {
		t.Fatal(err)
	}
	p = startProcess(t, cfg)
	if d := call(t, p.disks.Get, &kb.GetDiskRequest{Name: "web0"}); d.State != "suspect" || len(d.DirtyBitmaps) == 0 {
		t.Errorf("disk after its map was lost: %v", d)
	}
	listed := p.mapSince(t, "web0", "c")
	t.Logf("in doubt: %d of %d grains", len(listed), size/grain)
	wantListed(t, "in doubt", listed, differing(old, g.want), false)
	g.dev = open(t, cfg, "web0")
	g.write(t, 39<<20, 4096)
	wantListed(t, "in doubt, written since", p.mapSince(t, "web0", "c"), differing(old, g.want), false)
	q := p.backup(t, "web")
	if q.Tracking != "checksumCompare" {
		t.Errorf("backup in doubt: %v", q)
	}
	wantListed(t, "compared", p.mapSince(t, "web0", "c"), differing(old, g.want), true)
	// The base is purged: what the map lists is relative to nothing.
	call(t, p.points.Delete, &kb.DeletePointRequest{Point: q.Id, Purge: true})
	if l := p.mapSince(t, "web0", "c"); len(l) != size/grain {
		t.Errorf("without the base of the map %d grains are listed, want all", len(l))
	}
}

// nbdMap is what nbdinfo says of a metadata context: ranges with flags not 0.
func nbdMap(t *testing.T, cfg config.Config, export, context string) (out []*kb.Extent) {
	t.Helper()
	p, err := exec.Command("nbdinfo", "--json", "--map="+context, fmt.Sprintf("nbd+unix:///%s?socket=%s", export, cfg.NBDSocket())).CombinedOutput()
	if err != nil {
		t.Fatalf("nbdinfo --map=%s: %v\n%s", context, err, p)
	}
	var list []struct {
		Offset, Length int64
		Type           int
	}
	if err := json.Unmarshal(p, &list); err != nil {
		t.Fatalf("nbdinfo: %v\n%s", err, p)
	}
	for _, x := range list {
		if x.Type != 0 {
			out = append(out, &kb.Extent{Offset: x.Offset, Length: x.Length})
		}
	}
	return out
}

// The dirty bitmaps of a live disk, as stock tools read them: one by the name of each
// cursor, one since each of their points.
func TestN9CursorsAreDirtyBitmaps(t *testing.T) {
	if _, err := exec.LookPath("nbdinfo"); err != nil {
		t.Skip("no nbdinfo (Debian: libnbd-bin)")
	}
	cfg := testConfig(t, dataDir(t))
	a := start(t, cfg)
	a.makeDisk(t, "web0", 8<<20+512)
	a.makeMachine(t, "web", "web0")
	g := newGuest(t, cfg, "web0", 94)
	g.write(t, 0, 2<<20)
	first := a.backup(t, "web")
	old := bytes.Clone(g.want)
	call(t, a.cursors.Create, &kb.CreateCursorRequest{Name: "c", Disk: "web0"})
	g.write(t, 1<<20+4096, 8192)
	second := a.backup(t, "web")
	mid := bytes.Clone(g.want)
	g.write(t, 7<<20, 512)
	g.write(t, 8<<20, 512)
	out, err := exec.Command("nbdinfo", "--json", fmt.Sprintf("nbd+unix:///web0?socket=%s", cfg.NBDSocket())).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, name := range bitmapNames([]string{"c"}, first.Id, second.Id) {
		if !strings.Contains(string(out), fmt.Sprintf("%q", name)) {
			t.Errorf("nbdinfo does not see %s:\n%s", name, out)
		}
	}
	wantListed(t, "cursor", grainsOf(nbdMap(t, cfg, "web0", "qemu:dirty-bitmap:c")), differing(old, g.want), true)
	wantListed(t, "since the first", grainsOf(nbdMap(t, cfg, "web0", "qemu:dirty-bitmap:since-"+first.Id)), differing(old, g.want), true)
	wantListed(t, "since the second", grainsOf(nbdMap(t, cfg, "web0", "qemu:dirty-bitmap:since-"+second.Id)), differing(mid, g.want), true)
}

// An increment with stock tools: a copy of point A, and the ranges that the export of
// point B has dirty since A, are together point B, byte for byte; and so it goes back
// from B to A. QEMU reads the same bitmap.
func TestN9CursorsGiveIncrements(t *testing.T) {
	for _, tool := range []string{"nbdinfo", "nbdcopy", "qemu-img"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip("no " + tool)
		}
	}
	cfg := testConfig(t, dataDir(t))
	a := start(t, cfg)
	const size = 12<<20 + 512
	a.makeDisk(t, "web0", size)
	a.makeDisk(t, "web1", 1<<20)
	a.makeMachine(t, "web", "web0", "web1")
	g := newGuest(t, cfg, "web0", 95)
	g.write(t, 0, 9<<20)
	first := a.backup(t, "web")
	old := bytes.Clone(g.want)
	for i := range int64(40) { // over three more points, all with their lists of changes
		g.write(t, g.rng.Int64N(size-20000), 1+g.rng.Int64N(20000))
		if i%15 == 0 {
			a.backup(t, "web")
		}
	}
	if err := g.dev.WriteZeroes(2<<20, 1<<20, true); err != nil {
		t.Fatal(err)
	}
	clear(g.want[2<<20 : 3<<20])
	second := a.backup(t, "web")
	g.write(t, 0, size) // what comes later is in neither
	for _, tt := range []struct {
		from, to *kb.RecoveryPoint
		was, is  []byte
	}{{first, second, old, nil}, {second, first, nil, old}} {
		x := call(t, a.points.Export, &kb.ExportRequest{Point: tt.to.Id, Disk: "web0", Name: "increment", Since: tt.from.Id})
		bitmap := "qemu:dirty-bitmap:since-" + tt.from.Id
		if x.SincePointId != tt.from.Id || len(x.DirtyBitmaps) != 1 || x.DirtyBitmaps[0] != bitmap {
			t.Errorf("export: %v", x)
		}
		if tt.was == nil {
			tt.was = a.readPoint(t, tt.from.Id, "web0")
		}
		if tt.is == nil {
			tt.is = a.readPoint(t, tt.to.Id, "web0")
		}
		dirty := nbdMap(t, cfg, "increment", bitmap)
		wantListed(t, "increment", grainsOf(dirty), differing(tt.was, tt.is), true)

		// A copy of the old point, and the dirty ranges of the new one, by nbdcopy.
		dir := t.TempDir()
		image, whole := filepath.Join(dir, "copy.raw"), filepath.Join(dir, "new.raw")
		if err := os.WriteFile(image, tt.was, 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command("nbdcopy", x.Uri, whole).CombinedOutput(); err != nil {
			t.Fatalf("nbdcopy: %v\n%s", err, out)
		}
		fresh, err := os.ReadFile(whole)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(fresh, tt.is) {
			t.Fatal("nbdcopy of the export is not the point")
		}
		f, err := os.OpenFile(image, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range dirty {
			if _, err := f.WriteAt(fresh[r.Offset:r.Offset+r.Length], r.Offset); err != nil {
				t.Fatal(err)
			}
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(image)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, tt.is) {
			t.Error("the old point with the dirty ranges is not the new one")
		}

		// QEMU shows the bitmap as a map: what is dirty has "data": false.
		out, err := exec.Command("qemu-img", "map", "--output=json", "--image-opts",
			fmt.Sprintf("driver=nbd,server.type=unix,server.path=%s,export=increment,x-dirty-bitmap=%s", cfg.NBDSocket(), bitmap)).CombinedOutput()
		if err != nil {
			t.Fatalf("qemu-img map: %v\n%s", err, out)
		}
		var list []struct {
			Start, Length int64
			Data          bool
		}
		if err := json.Unmarshal(out, &list); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		var qemu []*kb.Extent
		for _, x := range list {
			if !x.Data {
				qemu = append(qemu, &kb.Extent{Offset: x.Start, Length: x.Length})
			}
		}
		wantListed(t, "increment as QEMU sees it", grainsOf(qemu), grainsOf(dirty), true)
		call(t, a.points.Unexport, &kb.UnexportRequest{Name: "increment"})
	}
	for since, want := range map[string]connect.Code{
		first.Id + ":web1": connect.CodeInvalidArgument,
		first.Id + ":web7": connect.CodeNotFound,
		"nothing@latest":   connect.CodeNotFound,
	} {
		_, err := tryCall(a.points.Export, &kb.ExportRequest{Point: second.Id, Disk: "web0", Name: "increment", Since: since})
		if connect.CodeOf(err) != want {
			t.Errorf("export since %s: %v, want %v", since, err, want)
		}
	}
	if _, err := tryCall(a.points.Unexport, &kb.UnexportRequest{Name: "increment"}); connect.CodeOf(err) != connect.CodeNotFound {
		t.Errorf("a refused export is left: %v", err)
	}
	// A disk that was restored goes on from the point that it came from.
	a.restore(t, second.Id, "web0", "back0")
	a.makeMachine(t, "back", "back0")
	b := newGuest(t, cfg, "back0", 96)
	if c := call(t, a.cursors.Create, &kb.CreateCursorRequest{Name: "back", Disk: "back0"}); c.PointId != second.Id {
		t.Errorf("cursor of a restored disk: %v", c)
	}
	b.write(t, 5<<20, 4096)
	third := a.backup(t, "back")
	if m := a.mapSince(t, "back0", "back"); len(m) != 1 || !m[5<<20] {
		t.Errorf("a restored disk since the point it came from: %v", m)
	}
	call(t, a.points.Export, &kb.ExportRequest{Point: third.Id, Name: "increment", Since: second.Id})
	if d := grainsOf(nbdMap(t, cfg, "increment", "qemu:dirty-bitmap:since-"+second.Id)); len(d) != 1 || !d[5<<20] {
		t.Errorf("increment of a restored disk: %v", d)
	}
}
