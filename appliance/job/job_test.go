package job_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/keelblock/keelblock/appliance"
	"github.com/keelblock/keelblock/appliance/catalog"
	"github.com/keelblock/keelblock/appliance/job"
)

func wait(t *testing.T, task *job.Task) job.Record {
	t.Helper()
	select {
	case <-task.Ended():
	case <-time.After(10 * time.Second):
		t.Fatal("the job does not end")
	}
	return task.Record()
}

func drain(t *testing.T, m *job.Manager) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := m.Drain(ctx); err != nil {
		t.Error(err)
	}
}

func start(t *testing.T, m *job.Manager, run func(context.Context, *job.Task) error) *job.Task {
	t.Helper()
	task, err := m.Start("Backup", "web", run)
	if err != nil {
		t.Fatal(err)
	}
	return task
}

func TestOutcomeBecomesState(t *testing.T) {
	m := job.New(job.Options{Code: func(error) string { return "internal" }})
	defer drain(t, m)
	for want, run := range map[job.State]func(context.Context, *job.Task) error{
		job.Completed: func(_ context.Context, t *job.Task) error { t.AddDone(5); t.Result("id"); return nil },
		job.CompletedWithWarnings: func(_ context.Context, t *job.Task) error {
			t.Warn("label is crash")
			return nil
		},
		job.Failed: func(context.Context, *job.Task) error { return errors.New("disk on fire") },
	} {
		r := wait(t, start(t, m, run))
		if r.State != want || r.EndedAt.Before(r.StartedAt) {
			t.Errorf("want %s, got %+v", want, r)
		}
	}
	r := wait(t, start(t, m, func(context.Context, *job.Task) error { panic("a bug") }))
	if r.State != job.Failed || !strings.Contains(r.Error, "a bug") || r.ErrorCode != "internal" {
		t.Errorf("panic: %+v", r)
	}
}

func TestCancelEndsTheWorkAndIsNotAFailure(t *testing.T) {
	m := job.New(job.Options{})
	defer drain(t, m)
	began := make(chan struct{})
	task := start(t, m, func(ctx context.Context, task *job.Task) error {
		task.Begin("TransferToVault")
		close(began)
		<-ctx.Done()
		return ctx.Err()
	})
	<-began
	if r, err := m.Cancel(task.ID()); err != nil || r.State != job.Cancelling {
		t.Fatalf("%+v %v", r, err)
	}
	r := wait(t, task)
	if r.State != job.Cancelled || r.SubTasks[0].State != job.Cancelled {
		t.Fatalf("%+v", r)
	}
	if _, err := m.Cancel(task.ID()); !errors.Is(err, appliance.ErrInUse) {
		t.Fatalf("second cancel: %v", err)
	}
	if _, err := m.Cancel("nobody"); !errors.Is(err, appliance.ErrNotFound) {
		t.Fatalf("unknown job: %v", err)
	}
}

func TestDrainRefusesNewJobs(t *testing.T) {
	m := job.New(job.Options{Running: 1, Waiting: 1})
	block := func(ctx context.Context, _ *job.Task) error { <-ctx.Done(); return ctx.Err() }
	a, b := start(t, m, block), start(t, m, block)
	if _, err := m.Start("Backup", "web", block); !errors.Is(err, appliance.ErrUnavailable) {
		t.Fatalf("a third job: %v", err)
	}
	drain(t, m)
	for _, task := range []*job.Task{a, b} {
		if r := wait(t, task); r.State != job.Cancelled || !strings.Contains(r.Error, "stopping") {
			t.Errorf("%+v", r)
		}
	}
	if _, err := m.Start("Backup", "web", block); !errors.Is(err, appliance.ErrUnavailable) {
		t.Fatalf("after drain: %v", err)
	}
}

func TestHistorySurvivesAndKillBecomesFailed(t *testing.T) {
	dir := t.TempDir()
	db, err := catalog.Open(dir, catalog.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { db.Close() }()
	h := catalog.NewCollection[job.Record](db, "job")
	m := job.New(job.Options{})
	if err := m.Attach(context.Background(), h); err != nil {
		t.Fatal(err)
	}
	good := wait(t, start(t, m, func(_ context.Context, t *job.Task) error { t.Result("abc"); return nil }))
	// A job of a daemon that was killed: its record says InProgress.
	killed := job.Record{ID: "00000000000dead0", Kind: "Backup", Object: "db", State: job.InProgress,
		SubTasks: []job.SubTask{{Name: "Freeze", State: job.InProgress}}}
	if err := h.Put(killed.ID, killed); err != nil {
		t.Fatal(err)
	}
	drain(t, m)
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if db, err = catalog.Open(dir, catalog.Options{}); err != nil {
		t.Fatal(err)
	}
	m = job.New(job.Options{})
	if err := m.Attach(context.Background(), catalog.NewCollection[job.Record](db, "job")); err != nil {
		t.Fatal(err)
	}
	if r, err := m.Get(good.ID); err != nil || r.State != job.Completed || r.Result[0] != "abc" {
		t.Fatalf("%+v %v", r, err)
	}
	r, err := m.Get(killed.ID)
	if err != nil || r.State != job.Failed || !strings.Contains(r.Error, "interrupted") || r.SubTasks[0].State != job.Failed {
		t.Fatalf("%+v %v", r, err)
	}
	if l := m.List(); len(l) != 2 || l[0].ID != killed.ID {
		t.Fatalf("list: %+v", l)
	}
}

func TestHistoryIsBounded(t *testing.T) {
	db, err := catalog.Open(t.TempDir(), catalog.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	h := catalog.NewCollection[job.Record](db, "job")
	batch := map[string]*job.Record{}
	for i := range job.HistoryLimit + 20 {
		id := fmt.Sprintf("%08d", i)
		batch[id] = &job.Record{ID: id, State: job.Completed}
	}
	if err := h.Update(batch); err != nil {
		t.Fatal(err)
	}
	m := job.New(job.Options{})
	if err := m.Attach(context.Background(), h); err != nil {
		t.Fatal(err)
	}
	if l := m.List(); len(l) != job.HistoryLimit || l[0].ID != "00000020" {
		t.Fatalf("%d jobs, first %s", len(l), l[0].ID)
	}
	if _, ok, err := h.Get("00000019"); ok || err != nil {
		t.Fatalf("the oldest is still stored: %v %v", ok, err)
	}
}

func TestWatchSendsChangesAndTheEnd(t *testing.T) {
	m := job.New(job.Options{})
	defer drain(t, m)
	goOn := make(chan struct{})
	task := start(t, m, func(_ context.Context, task *job.Task) error { task.SetTotal(9); task.AddDone(9); <-goOn; return nil })
	var states []job.State
	var once bool
	err := m.Watch(context.Background(), task.ID(), func(r job.Record) error {
		states = append(states, r.State)
		if !once {
			once = true
			close(goOn)
		}
		return nil
	})
	if err != nil || states[0] != job.InProgress || states[len(states)-1] != job.Completed {
		t.Fatalf("%v %v", states, err)
	}
	if err := m.Watch(context.Background(), "nobody", nil); !errors.Is(err, appliance.ErrNotFound) {
		t.Fatalf("unknown: %v", err)
	}
}

func TestFinalStatesNeverChange(t *testing.T) {
	for _, s := range []job.State{job.Completed, job.CompletedWithWarnings, job.Failed, job.Cancelled} {
		for e := job.Succeeded; e <= job.Interrupted; e++ {
			if n := job.Next(s, e); n != s {
				t.Errorf("%s becomes %s by event %d", s, n, e)
			}
		}
	}
	if job.Next(job.Cancelling, job.Succeeded) != job.Completed {
		t.Error("a point that was committed must not be called cancelled")
	}
}
