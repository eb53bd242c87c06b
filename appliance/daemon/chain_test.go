package daemon_test

import (
	"testing"

	kb "github.com/keelblock/keelblock/appliance/api/keelblockv1"
)

// The chain: a live disk, written by an NBD client, backed up, changed, backed up
// again reading only what changed, restored, and compared byte for byte; then the
// same again after a clean stop.
func TestChain(t *testing.T) {
	cfg := testConfig(t, dataDir(t))
	a := start(t, cfg)
	const size = 24 << 20
	a.makeDisk(t, "web0", size)
	a.makeMachine(t, "web", "web0")
	g := newGuest(t, cfg, "web0", 1)
	g.write(t, 0, 5<<20)
	g.write(t, 9<<20+512, 1<<20)
	g.write(t, size-512, 512)
	first := a.backup(t, "web")
	if first.Tracking != "full" || first.Sequence != 1 || first.Consistency != "crash" || first.Reason == "" {
		t.Errorf("first point: %v", first)
	}
	before := append([]byte(nil), g.want...)

	g.write(t, 1<<20+4096, 4096)
	g.write(t, 20<<20, 128<<10)
	second := a.backup(t, "web")
	if second.Tracking != "enabled" || second.Sequence != 2 {
		t.Errorf("second point: %v", second)
	}
	if changed := int64(4096 + 128<<10); second.ReadBytes != changed || second.ChangedBytes != changed {
		t.Errorf("second backup read %d and changed %d bytes, want %d", second.ReadBytes, second.ChangedBytes, changed)
	}
	after := append([]byte(nil), g.want...)
	a.comparePoint(t, first.Id, "", before)
	a.comparePoint(t, "web@latest", "", after)

	a.restore(t, first.Id, "", "old0")
	compare(t, "old0", open(t, cfg, "old0"), before)
	g.disconnect(t)

	a.stop()
	noLeftovers(t, cfg)
	a = start(t, cfg)
	compare(t, "web0 after restart", open(t, cfg, "web0"), after)
	third := a.backup(t, "web")
	if third.Tracking != "enabled" || third.ReadBytes != 0 || third.Disks[0].RootDigest != second.Disks[0].RootDigest {
		t.Errorf("a backup without changes after a clean stop: %v", third)
	}
	a.comparePoint(t, first.Id, "web0", before)
	list := call(t, a.points.List, &kb.ListPointsRequest{Machine: "web"}).Points
	if len(list) != 3 || list[0].Id != first.Id || list[2].Id != third.Id {
		t.Errorf("points: %v", list)
	}
	v := a.wait(t, call(t, a.points.Verify, &kb.VerifyRequest{}))
	if v.State != "Completed" || len(v.Result) != 3 {
		t.Errorf("verify: %v", v)
	}
	if v.TotalBytes == 0 || v.DoneBytes != v.TotalBytes {
		t.Errorf("verify has done %d of %d bytes", v.DoneBytes, v.TotalBytes)
	}
}
