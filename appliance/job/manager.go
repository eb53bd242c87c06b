package job

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sort"
	"sync"
	"time"

	"github.com/keelblock/keelblock/appliance"
)

// HistoryLimit is how many ended jobs are kept.
const HistoryLimit = 1000

// watchInterval is the least time between two records of one watcher.
const watchInterval = 100 * time.Millisecond

// History keeps records by id. A collection of the catalog is one.
type History interface {
	Put(id string, r Record) error
	Delete(id string) error
	Each(ctx context.Context, yield func(id string, r Record) bool) error
}

// Options of a Manager.
type Options struct {
	// Running bounds the jobs that run at once. 0: 8.
	Running int
	// Waiting bounds the jobs that wait for a turn. 0: 256.
	Waiting int
	// Code classifies an error for Record.ErrorCode. nil: "".
	Code func(error) string
	// Now is the clock. nil: time.Now.
	Now func() time.Time
	// Logger says when jobs begin and end. nil: silent.
	Logger *slog.Logger
}

// Manager runs jobs and keeps their history.
type Manager struct {
	o     Options
	turns chan struct{} // one token for each running job
	wg    sync.WaitGroup

	mu       sync.Mutex
	draining bool
	history  History // nil until Attach
	active   map[string]*Task
	ended    map[string]Record
}

// New returns a Manager without a history: jobs are remembered in memory.
func New(o Options) *Manager {
	if o.Running == 0 {
		o.Running = 8
	}
	if o.Waiting == 0 {
		o.Waiting = 256
	}
	if o.Code == nil {
		o.Code = func(error) string { return "" }
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return &Manager{o: o, turns: make(chan struct{}, o.Running), active: map[string]*Task{}, ended: map[string]Record{}}
}

// Attach loads the history, declares what a kill interrupted Failed, and keeps
// records in it from now on.
func (m *Manager) Attach(ctx context.Context, h History) error {
	var old []Record
	err := h.Each(ctx, func(_ string, r Record) bool { old = append(old, r); return true })
	if err != nil {
		return fmt.Errorf("load job history: %w", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.history = h
	for _, r := range old {
		if !r.State.Ended() {
			r.State = Next(r.State, Interrupted)
			r.Error, r.ErrorCode, r.Detail = "interrupted: the daemon ended while the job ran", "aborted", ""
			r.EndedAt = m.now()
			for i := range r.SubTasks {
				if s := &r.SubTasks[i]; !s.State.Ended() {
					s.State, s.EndedAt = Failed, r.EndedAt
				}
			}
			if err := h.Put(r.ID, r); err != nil {
				return fmt.Errorf("save job history: %w", err)
			}
		}
		m.ended[r.ID] = r
	}
	return m.trim()
}

// Detach forgets the history, before its catalog is closed.
func (m *Manager) Detach() {
	m.mu.Lock()
	m.history = nil
	m.mu.Unlock()
}

// Start begins a job. run gets a context that ends when the job is cancelled; it
// should then return soon, having undone what is half done.
func (m *Manager) Start(kind, object string, run func(ctx context.Context, t *Task) error) (*Task, error) {
	op := fmt.Sprintf("start %s of %q", kind, object)
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.draining {
		return nil, &appliance.Error{Op: op, Kind: appliance.ErrUnavailable, Text: "the daemon is stopping"}
	}
	if len(m.active) >= m.o.Running+m.o.Waiting {
		return nil, &appliance.Error{Op: op, Kind: appliance.ErrUnavailable,
			Text: fmt.Sprintf("%d jobs run or wait already", len(m.active)), Hint: "see keelblock job list, and try again later"}
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	t := &Task{m: m, cancel: cancel, ended: make(chan struct{}), rec: Record{
		ID: newID(m.now()), Kind: kind, Object: object, State: InProgress, StartedAt: m.now(), Detail: "waiting for its turn"}}
	if m.history != nil {
		// A history that cannot be written must not keep a restore or a collection
		// from running: those are what makes room again.
		if err := m.history.Put(t.rec.ID, t.rec); err != nil {
			m.o.Logger.Error("job history is not saved", "job", t.rec.ID, "error", err)
		}
	}
	m.active[t.rec.ID] = t
	m.wg.Go(func() { m.own(ctx, t, run) })
	return t, nil
}

// own is the one goroutine of a job.
func (m *Manager) own(ctx context.Context, t *Task, run func(context.Context, *Task) error) {
	var err error
	select {
	case m.turns <- struct{}{}:
		t.Detail("")
		m.o.Logger.Info("job begins", "job", t.rec.ID, "kind", t.rec.Kind, "object", t.rec.Object)
		err = call(ctx, t, run)
		<-m.turns
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	cancelled := ctx.Err() != nil
	if err != nil && cancelled && !errors.Is(err, appliance.ErrCancelled) {
		err = fmt.Errorf("%w (%w)", context.Cause(ctx), err)
	}
	r := t.finish(err, cancelled, m.o.Code(err))
	t.cancel(nil)
	level := slog.LevelInfo
	if r.State != Completed {
		level = slog.LevelWarn
	}
	m.o.Logger.Log(context.Background(), level, "job ends", "job", r.ID, "kind", r.Kind, "object", r.Object, "state", r.State,
		"bytes", r.DoneBytes, "dur", r.EndedAt.Sub(r.StartedAt).Round(time.Millisecond), "error", r.Error)
	m.mu.Lock()
	delete(m.active, r.ID)
	m.ended[r.ID] = r
	if m.history != nil {
		if err := m.history.Put(r.ID, r); err != nil {
			m.o.Logger.Error("job history is not saved", "job", r.ID, "error", err)
		}
		if err := m.trim(); err != nil {
			m.o.Logger.Error("job history is not trimmed", "error", err)
		}
	}
	m.mu.Unlock()
	close(t.ended)
}

// call runs the work. A panic of one job must not take the disks down: it is a
// broken invariant of ours, reported with its stack, and ends that job.
func call(ctx context.Context, t *Task, run func(context.Context, *Task) error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			t.m.o.Logger.Error("job panicked", "job", t.rec.ID, "panic", p, "stack", string(debug.Stack()))
			err = fmt.Errorf("internal error: %v", p)
		}
	}()
	return run(ctx, t)
}

// trim drops the oldest ended jobs beyond HistoryLimit. m.mu is held.
func (m *Manager) trim() error {
	excess := len(m.ended) - HistoryLimit
	if excess <= 0 {
		return nil
	}
	ids := make([]string, 0, len(m.ended))
	for id := range m.ended {
		ids = append(ids, id)
	}
	sort.Strings(ids)
	for _, id := range ids[:excess] {
		delete(m.ended, id)
		if m.history != nil {
			if err := m.history.Delete(id); err != nil {
				return fmt.Errorf("trim job history: %w", err)
			}
		}
	}
	return nil
}

// List returns all jobs, oldest first.
func (m *Manager) List() []Record {
	m.mu.Lock()
	out := make([]Record, 0, len(m.active)+len(m.ended))
	for _, t := range m.active {
		out = append(out, t.Record())
	}
	for _, r := range m.ended {
		out = append(out, r.clone())
	}
	m.mu.Unlock()
	sort.Slice(out, func(i, j int) bool { return out[i].ID < out[j].ID })
	return out
}

// Get returns one job.
func (m *Manager) Get(id string) (Record, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if t := m.active[id]; t != nil {
		return t.Record(), nil
	}
	if r, ok := m.ended[id]; ok {
		return r.clone(), nil
	}
	return Record{}, appliance.NotFound(fmt.Sprintf("find job %q", id), "job", id)
}

// Cancel asks a job to end and returns its record at once. A job that has ended
// is ErrInUse.
func (m *Manager) Cancel(id string) (Record, error) {
	r, err := m.Get(id)
	if err != nil {
		return r, err
	}
	m.mu.Lock()
	t := m.active[id]
	m.mu.Unlock()
	if t == nil {
		return r, &appliance.Error{Op: fmt.Sprintf("cancel job %q", id), Kind: appliance.ErrInUse,
			Text: "it has ended already: " + string(r.State)}
	}
	r = t.apply(CancelAsked)
	t.cancel(fmt.Errorf("%w by the operator", appliance.ErrCancelled))
	return r, nil
}

// Watch calls send with the job whenever it changed, at most ten times a second,
// and once more when it has ended; then it returns. With id "" it watches all jobs
// that run or begin, until ctx ends or the Manager drains.
func (m *Manager) Watch(ctx context.Context, id string, send func(Record) error) error {
	if id != "" {
		if _, err := m.Get(id); err != nil {
			return err
		}
	}
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	last := map[string]Record{}
	began := m.now()
	for {
		var ended <-chan struct{}
		for _, r := range m.List() {
			if id != "" && r.ID != id || id == "" && r.State.Ended() && r.EndedAt.Before(began) {
				continue
			}
			if old, ok := last[r.ID]; !ok || !old.equal(r) {
				if err := send(r); err != nil {
					return err
				}
				last[r.ID] = r
			}
			if id != "" && r.State.Ended() {
				return nil
			}
		}
		m.mu.Lock()
		if t := m.active[id]; t != nil {
			ended = t.ended
		}
		over := id == "" && m.draining && len(m.active) == 0
		m.mu.Unlock()
		if over {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ended:
		case <-tick.C:
		}
	}
}

// Drain refuses new jobs, cancels those that run and waits for them, at most until
// ctx ends. A job that does not end in time is reported as an error; it still
// runs.
func (m *Manager) Drain(ctx context.Context) error {
	m.mu.Lock()
	m.draining = true
	for _, t := range m.active {
		t.apply(CancelAsked)
		t.cancel(fmt.Errorf("%w: the daemon is stopping", appliance.ErrCancelled))
	}
	m.mu.Unlock()
	done := make(chan struct{})
	go func() { m.wg.Wait(); close(done) }()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		m.mu.Lock()
		n := len(m.active)
		m.mu.Unlock()
		return fmt.Errorf("stop jobs: %d still run: %w", n, ctx.Err())
	}
}

// newID is unique and sorts by time: 11 hexadecimal digits of milliseconds, 5 of
// chance.
func newID(now time.Time) string {
	var b [3]byte
	rand.Read(b[:]) // never fails, see crypto/rand
	return fmt.Sprintf("%011x%s", now.UnixMilli(), hex.EncodeToString(b[:])[:5])
}
