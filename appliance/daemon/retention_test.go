package daemon_test

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"

	kb "github.com/keelblock/keelblock/appliance/api/keelblockv1"
	"github.com/keelblock/keelblock/appliance/clock"
	"github.com/keelblock/keelblock/appliance/config"
)

const oneDay = 24 * time.Hour

// hostClock is the clocks of a host, which the test moves.
type hostClock struct {
	mu sync.Mutex
	r  clock.Reading
}

// read is config.Config.ReadClock.
func (h *hostClock) read() clock.Reading {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.r
}

// pass lets time go by.
func (h *hostClock) pass(d time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.r.Wall, h.r.Boot = h.r.Wall.Add(d), h.r.Boot+d
}

// set sets the wall clock, and nothing else.
func (h *hostClock) set(d time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.r.Wall = h.r.Wall.Add(d)
}

// clockConfig is testConfig with a clock that stands still and passes of expiry all the time.
func clockConfig(t *testing.T) (config.Config, *hostClock) {
	t.Helper()
	h := &hostClock{r: clock.Reading{Wall: time.Now().UTC().Round(0), Boot: time.Hour, BootID: "the boot"}}
	cfg := testConfig(t, dataDir(t))
	cfg.ReadClock, cfg.ExpiryInterval = h.read, 10*time.Millisecond
	return cfg, h
}

// backupFor makes a point that is kept for d.
func (c clients) backupFor(t *testing.T, machine string, d time.Duration) *kb.RecoveryPoint {
	t.Helper()
	j := c.wait(t, call(t, c.machines.Backup, &kb.BackupRequest{Machine: machine, RetainSeconds: int64(d / time.Second)}))
	if j.State != "Completed" || len(j.Result) != 1 {
		t.Fatalf("backup: %v", j)
	}
	return call(t, c.points.Get, &kb.GetPointRequest{Selector: j.Result[0]}).Point
}

// states are the points of web with what became of each: "available", "deleted"; one that
// was purged is missing.
func (c clients) states(t *testing.T) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, p := range call(t, c.points.List, &kb.ListPointsRequest{Machine: "web", Deleted: true}).Points {
		out[p.Id] = p.State
	}
	return out
}

// awaitStates waits until the points are as wanted.
func (c clients) awaitStates(t *testing.T, what string, want map[string]string) {
	t.Helper()
	var got map[string]string
	for end := time.Now().Add(jobTimeout); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		got = c.states(t)
		if fmt.Sprint(got) == fmt.Sprint(want) {
			return
		}
	}
	t.Fatalf("%s: points are %v, want %v", what, got, want)
}

// passes waits until expiry has surely looked at everything: it expires another machine's
// point, which was made for a time.
func (c clients) passes(t *testing.T, h *hostClock) {
	t.Helper()
	old := c.backupFor(t, "canary", time.Second)
	c.backup(t, "canary") // the newest never goes
	h.pass(2 * time.Second)
	for end := time.Now().Add(jobTimeout); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		list := call(t, c.points.List, &kb.ListPointsRequest{Machine: "canary"}).Points
		if !slices.ContainsFunc(list, func(p *kb.RecoveryPoint) bool { return p.Id == old.Id }) {
			return
		}
	}
	t.Fatal("expiry does not run")
}

// expiryAlert is the alert of the clock, or "".
func (c clients) clockAlert(t *testing.T) string {
	t.Helper()
	for _, a := range call(t, c.app.Status, &kb.StatusRequest{}).Alerts {
		if a.ObjectName == "clock" {
			return a.Text
		}
	}
	return ""
}

func retentionAppliance(t *testing.T) (*appliance, *hostClock, config.Config) {
	t.Helper()
	cfg, h := clockConfig(t)
	a := start(t, cfg)
	a.makeDisk(t, "web0", 1<<20)
	a.makeMachine(t, "web", "web0")
	a.makeDisk(t, "canary0", 1<<20)
	a.makeMachine(t, "canary", "canary0")
	return a, h, cfg
}

// TestDemand05PointsMadeByHandExpire: an on-demand point has an expiry of its own, beside the rules
// of its machine.
func TestDemand05PointsMadeByHandExpire(t *testing.T) {
	a, h, _ := retentionAppliance(t)
	call(t, a.machines.Edit, &kb.EditMachineRequest{Name: "web", Keep: &kb.KeepRules{Last: 2}})
	own := a.backupFor(t, "web", 3*oneDay)
	if at := own.RetainUntil.AsTime(); !at.Equal(h.read().Wall.Add(3 * oneDay)) {
		t.Errorf("retained until %v", at)
	}
	first, second, third := a.backup(t, "web"), a.backup(t, "web"), a.backup(t, "web")
	// It takes no place of the two newest, and stays behind them.
	a.awaitStates(t, "by the rules", map[string]string{own.Id: "available", first.Id: "deleted", second.Id: "available", third.Id: "available"})
	h.pass(3*oneDay - time.Second)
	a.passes(t, h) // moves the clock past its time
	a.awaitStates(t, "its time has passed", map[string]string{own.Id: "deleted", first.Id: "deleted", second.Id: "available", third.Id: "available"})
	// The newest stays, though its time has passed too.
	last := a.backupFor(t, "web", oneDay)
	h.pass(2 * oneDay)
	a.passes(t, h)
	if s := a.states(t)[last.Id]; s != "available" {
		t.Errorf("the newest point is %q", s)
	}
}

// TestDemand46PointsGoByThemselves is what retention does of demand 46: points that no rule
// keeps are deleted softly, each with its reason, and purged when their period is over; what
// is kept reads back.
func TestDemand46PointsGoByThemselves(t *testing.T) {
	a, h, cfg := retentionAppliance(t)
	g := newGuest(t, cfg, "web0", 46)
	var points []*kb.RecoveryPoint
	var contents [][]byte
	for range 5 {
		g.write(t, 0, 64<<10)
		points, contents = append(points, a.backup(t, "web")), append(contents, slices.Clone(g.want))
	}
	g.disconnect(t)
	held := points[0]
	call(t, a.points.Hold, &kb.HoldPointRequest{Point: held.Id, Text: "evidence"})
	call(t, a.points.Export, &kb.ExportRequest{Point: points[1].Id, Name: "look"})
	call(t, a.machines.Edit, &kb.EditMachineRequest{Name: "web", Keep: &kb.KeepRules{Last: 2}})
	want := map[string]string{held.Id: "available", points[1].Id: "available", points[2].Id: "deleted", points[3].Id: "available", points[4].Id: "available"}
	a.awaitStates(t, "expired", want)
	found := false
	for _, j := range call(t, a.jobs.List, &kb.ListJobsRequest{}).Jobs {
		found = found || j.Kind == "Expiry" && slices.Contains(j.Result, "web "+points[2].Id+" expired: no rule keeps it")
	}
	if !found {
		t.Error("no job says what expired and why")
	}
	a.comparePoint(t, points[2].Id, "", contents[2]) // soft-deleted points read back
	call(t, a.points.Unexport, &kb.UnexportRequest{Name: "look"})
	want[points[1].Id] = "deleted"
	a.awaitStates(t, "no longer in use", want)
	call(t, a.points.Export, &kb.ExportRequest{Point: points[1].Id, Name: "look"}) // in use again: not purged
	h.pass(15 * oneDay)
	delete(want, points[2].Id)
	a.awaitStates(t, "purged", want)
	call(t, a.points.Unexport, &kb.UnexportRequest{Name: "look"})
	call(t, a.points.Release, &kb.ReleasePointRequest{Point: held.Id})
	delete(want, points[1].Id)
	want[held.Id] = "deleted"
	a.awaitStates(t, "the rest", want)
	for _, i := range []int{0, 3, 4} {
		a.comparePoint(t, points[i].Id, "", contents[i])
	}
	a.stop()
	a = start(t, cfg)
	a.awaitStates(t, "after a restart", want)
}

// TestLockedVaultAttacked tries everything that an operator, or who took his place, can do
// against the points of a locked vault.
func TestLockedVaultAttacked(t *testing.T) {
	a, h, cfg := retentionAppliance(t)
	call(t, a.machines.Edit, &kb.EditMachineRequest{Name: "web", Keep: &kb.KeepRules{Last: 9, Daily: 9}})
	before := a.backup(t, "web")
	minimum := int64(30 * oneDay / time.Second)
	call(t, a.vaults.Edit, &kb.EditVaultRequest{Name: "default", Immutability: "locked", MinimumRetentionSeconds: &minimum})
	after := a.backup(t, "web")
	last := a.backupFor(t, "web", 90*oneDay)
	want := map[string]string{before.Id: "available", after.Id: "available", last.Id: "available"}
	short := int64(60)
	attack := func(when string) {
		t.Helper()
		refused := func(what string, err error) {
			t.Helper()
			if connect.CodeOf(err) != connect.CodePermissionDenied || !strings.Contains(err.Error(), "; ") {
				t.Errorf("%s: %s: %v, want a refusal with the next step", when, what, err)
			}
		}
		for id := range want {
			_, err := tryCall(a.points.Delete, &kb.DeletePointRequest{Point: id})
			refused("delete", err)
			_, err = tryCall(a.points.Delete, &kb.DeletePointRequest{Point: id, Purge: true})
			refused("purge", err)
		}
		for what, r := range map[string]*kb.EditVaultRequest{"disable": {Immutability: "disabled"}, "unlock": {Immutability: "unlocked"},
			"shorten soft delete": {SoftDeleteSeconds: &short}, "shorten retention": {MinimumRetentionSeconds: &short},
			"all at once": {Immutability: "disabled", SoftDeleteSeconds: &short, MinimumRetentionSeconds: &short}} {
			r.Name = "default"
			_, err := tryCall(a.vaults.Edit, r)
			refused(what, err)
		}
		_, err := tryCall(a.machines.Edit, &kb.EditMachineRequest{Name: "web", Keep: &kb.KeepRules{Last: 1}})
		refused("shorter rules", err)
		pruned, err := tryCall(a.points.Prune, &kb.PruneRequest{Machine: "web", Keep: &kb.KeepRules{Last: 1}})
		if err == nil {
			for _, d := range pruned.Decisions {
				if !d.Keep {
					t.Errorf("%s: prune deletes %v", when, d)
				}
			}
		} else {
			refused("prune", err)
		}
		call(t, a.points.Hold, &kb.HoldPointRequest{Point: before.Id})
		call(t, a.points.Release, &kb.ReleasePointRequest{Point: before.Id})
		a.awaitStates(t, when, want)
	}
	attack("at once")

	h.set(3652 * oneDay)
	attack("clock ten years ahead")
	if text := a.clockAlert(t); !strings.Contains(text, "keelblock vault accept-clock") {
		t.Errorf("alert %q", text)
	}
	a.stop()
	a = start(t, cfg)
	attack("and after a restart")
	call(t, a.app.AcceptClock, &kb.AcceptClockRequest{})
	attack("and when it was accepted")
	if text := a.clockAlert(t); text != "" {
		t.Errorf("alert %q after it was accepted", text)
	}

	a.stop()
	flipEveryPage(t, filepath.Join(cfg.VaultDir(), "index", "MANIFEST"))
	a = start(t, cfg)
	if j := a.wait(t, call(t, a.app.RebuildIndex, &kb.RebuildIndexRequest{})); j.State != "Completed" {
		t.Fatalf("rebuild: %v", j)
	}
	attack("after a rebuild of the index")

	call(t, a.machines.Delete, &kb.DeleteMachineRequest{Name: "web"})
	a.makeMachine(t, "web", "web0")
	if _, err := tryCall(a.machines.Edit, &kb.EditMachineRequest{Name: "web", Keep: &kb.KeepRules{Last: 1}}); connect.CodeOf(err) != connect.CodePermissionDenied {
		t.Errorf("rules of a machine that was deleted and made anew: %v", err)
	}
	h.pass(29 * oneDay)
	attack("a day before their time")

	// Their time is over, and no trick is needed.
	h.pass(2 * oneDay)
	call(t, a.points.Delete, &kb.DeletePointRequest{Point: before.Id})
	_, err := tryCall(a.points.Delete, &kb.DeletePointRequest{Point: before.Id, Purge: true})
	wantCode(t, err, connect.CodePermissionDenied)
	want[before.Id] = "deleted"
	a.awaitStates(t, "deleted", want)
	h.pass(15 * oneDay)
	delete(want, before.Id)
	a.awaitStates(t, "purged by itself", want)
	_, err = tryCall(a.points.Delete, &kb.DeletePointRequest{Point: last.Id})
	wantCode(t, err, connect.CodePermissionDenied)
}

// TestClockSuspendsExpiry: a clock that jumps expires nothing and purges nothing, says so,
// and goes on when it is right again or was accepted.
func TestClockSuspendsExpiry(t *testing.T) {
	for name, jump := range map[string]time.Duration{"forward ten years": 3652 * oneDay, "back an hour": -time.Hour} {
		t.Run(name, func(t *testing.T) {
			a, h, cfg := retentionAppliance(t)
			own, gone := a.backupFor(t, "web", oneDay), a.backup(t, "web")
			last := a.backup(t, "web")
			call(t, a.points.Delete, &kb.DeletePointRequest{Point: gone.Id})
			want := map[string]string{own.Id: "available", gone.Id: "deleted", last.Id: "available"}
			a.passes(t, h)
			h.set(jump)
			for range 2 { // as it is, and after a restart
				for a.clockAlert(t) == "" {
					time.Sleep(5 * time.Millisecond)
				}
				if _, err := tryCall(a.points.Prune, &kb.PruneRequest{Machine: "web", Keep: &kb.KeepRules{Last: 1}}); connect.CodeOf(err) != connect.CodePermissionDenied {
					t.Errorf("prune: %v", err)
				}
				time.Sleep(10 * cfg.ExpiryInterval) // a pass that should not be would be now
				if got := a.states(t); fmt.Sprint(got) != fmt.Sprint(want) {
					t.Fatalf("points are %v, want %v", got, want)
				}
				a.stop()
				a = start(t, cfg)
			}
			h.set(-jump)
			a.passes(t, h)
			if text := a.clockAlert(t); text != "" {
				t.Errorf("alert %q after it was set right", text)
			}
			a.awaitStates(t, "set right", want)
			h.pass(oneDay)
			want[own.Id] = "deleted"
			a.awaitStates(t, "a day later", want)
			h.set(30 * oneDay)
			call(t, a.app.AcceptClock, &kb.AcceptClockRequest{})
			a.awaitStates(t, "accepted", map[string]string{last.Id: "available"})
		})
	}
}
