package expiry_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keelblock/keelblock/appliance/clock"
	"github.com/keelblock/keelblock/appliance/expiry"
	"github.com/keelblock/keelblock/appliance/job"
	"github.com/keelblock/keelblock/appliance/machine"
	"github.com/keelblock/keelblock/appliance/vault"
	"github.com/keelblock/keelblock/dedupe/recoverypoint"
	"github.com/keelblock/keelblock/dedupe/retention"
)

var machineID = recoverypoint.ID{1}

// lab is an open vault with one machine whose clock the test moves.
type lab struct {
	t        *testing.T
	h        *vault.Handle
	e        *expiry.Engine
	now      clock.Time
	rules    retention.Rules
	sequence uint64
	alerts   map[string]string
}

// List is the one machine.
func (l *lab) List() ([]machine.Machine, error) {
	return []machine.Machine{{ID: machineID.String(), Name: "web", Retention: l.rules}}, nil
}

func newLab(t *testing.T) *lab {
	t.Helper()
	dir := t.TempDir()
	set := vault.NewSet(vault.SetOptions{DataDir: dir, DefaultDir: dir + "/vault", Site: &vault.Site{ID: strings.Repeat("0a", 16), Name: "here"}})
	if err := set.Default().Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	jobs := job.New(job.Options{})
	t.Cleanup(func() {
		if err := jobs.Drain(context.Background()); err != nil {
			t.Error(err)
		}
		if err := set.Close(); err != nil {
			t.Error(err)
		}
	})
	l := &lab{t: t, h: set.Default().Peek(), alerts: map[string]string{}}
	l.e = expiry.New(expiry.Options{Vaults: set, Machines: l, Jobs: jobs, Now: func() clock.Time { return l.now },
		Alert: func(object, text string) { l.alerts[object] = text }})
	return l
}

// publish makes points, one at each of the times.
func (l *lab) publish(times ...time.Time) {
	l.t.Helper()
	b, err := l.h.Store.Begin(l.t.Context())
	if err != nil {
		l.t.Fatal(err)
	}
	var ms []*recoverypoint.Manifest
	for _, at := range times {
		l.sequence++
		ms = append(ms, &recoverypoint.Manifest{MachineID: machineID, MachineName: "web", CutID: recoverypoint.ID{2}, CutMachines: []recoverypoint.ID{machineID},
			Generation: recoverypoint.Generation{Number: 1, ID: recoverypoint.ID{3}}, Sequence: l.sequence, FrozenAt: at,
			Consistency: recoverypoint.Crash, Tracking: recoverypoint.TrackingFull})
	}
	if _, err := l.h.Points.Publish(l.t.Context(), b, ms, nil, nil); err != nil {
		l.t.Fatal(err)
	}
}

func (l *lab) pass(at time.Time) {
	l.t.Helper()
	l.now.At, l.now.Proven = at, at
	if err := l.e.Pass(l.t.Context()); err != nil {
		l.t.Fatal(err)
	}
}

func (l *lab) days(withDeleted bool) (out []string) {
	for _, p := range l.h.Points.List("web", withDeleted) {
		out = append(out, p.Manifest.FrozenAt.Format(time.DateOnly))
	}
	return out
}

// TestDemand48TenYearsInAVault: a point a day for ten years by a fake clock, expiry once a
// week, and exactly what a person would name is left in the vault.
func TestDemand48TenYearsInAVault(t *testing.T) {
	l := newLab(t)
	l.rules = retention.Rules{Last: 1, Daily: 7, Weekly: 4, Monthly: 6, Yearly: 10}
	at := time.Date(2016, 11, 22, 3, 0, 0, 0, time.UTC)
	for end := at.AddDate(10, 0, 0); at.Before(end); {
		var week []time.Time
		for range 7 {
			week, at = append(week, at), at.AddDate(0, 0, 1)
		}
		l.publish(week...)
		l.pass(at)
	}
	want := strings.Fields(`2017-12-31 2018-12-31 2019-12-31 2020-12-31 2021-12-31 2022-12-31 2023-12-31 2024-12-31 2025-12-31
		2026-06-30 2026-07-31 2026-08-31 2026-09-30 2026-10-31 2026-11-08 2026-11-15
		2026-11-17 2026-11-18 2026-11-19 2026-11-20 2026-11-21 2026-11-22 2026-11-23`)
	if got := l.days(false); !slices.Equal(got, want) {
		t.Errorf("kept\n%v, want\n%v", got, want)
	}
	// What went in the last two weeks can still be undeleted, nothing older is there.
	for _, p := range l.h.Points.List("web", true) {
		if p.Deleted && at.Sub(p.DeletedAt) >= 14*24*time.Hour {
			t.Errorf("point of %v, deleted %v, is not purged", p.Manifest.FrozenAt, p.DeletedAt)
		}
	}
}

func TestDoubtSuspendsThePass(t *testing.T) {
	l := newLab(t)
	day := time.Date(2026, 11, 22, 3, 0, 0, 0, time.UTC)
	l.publish(day, day.AddDate(0, 0, 1), day.AddDate(0, 0, 2))
	l.rules = retention.Rules{Last: 1}
	l.now.Doubt = "the clock says something else"
	l.pass(day.AddDate(20, 0, 0))
	if n := len(l.days(false)); n != 3 {
		t.Errorf("%d points left in doubt, want 3", n)
	}
	l.now.Doubt = ""
	l.pass(day.AddDate(0, 0, 2))
	if n := len(l.days(false)); n != 1 {
		t.Errorf("%d points left, want 1", n)
	}
}

func TestMachineWithoutRulesKeepsAll(t *testing.T) {
	l := newLab(t)
	day := time.Date(2026, 11, 22, 3, 0, 0, 0, time.UTC)
	l.publish(day, day.AddDate(0, 0, 1))
	l.pass(day.AddDate(50, 0, 0))
	if n := len(l.days(false)); n != 2 {
		t.Errorf("%d points left, want 2", n)
	}
}

// TestFailureIsAnAlert: what cannot be written is told, and told to be over.
func TestFailureIsAnAlert(t *testing.T) {
	l := newLab(t)
	day := time.Date(2026, 11, 22, 3, 0, 0, 0, time.UTC)
	l.publish(day, day.AddDate(0, 0, 1))
	l.rules = retention.Rules{Last: 1, TimeZone: "Mars/Olympus"} // from a damaged catalog
	l.now.At, l.now.Proven = day, day
	if err := l.e.Pass(t.Context()); err == nil || !strings.Contains(l.alerts["expiry in vault default"], "Mars/Olympus") {
		t.Errorf("%v, alerts %v", err, l.alerts)
	}
	l.rules.TimeZone = ""
	l.pass(day)
	if text := l.alerts["expiry in vault default"]; text != "" || fmt.Sprint(l.days(false)) != "[2026-11-23]" {
		t.Errorf("alert %q, left %v", text, l.days(false))
	}
}
