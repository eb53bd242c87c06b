package job

import (
	"context"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Task is a running job as its own function sees it. All methods may be called
// from any number of goroutines.
type Task struct {
	m      *Manager
	cancel context.CancelCauseFunc
	ended  chan struct{} // closed when the record is final
	done   atomic.Int64
	total  atomic.Int64

	mu       sync.Mutex
	rec      Record
	warnings []string
}

// ID of the job.
func (t *Task) ID() string { return t.rec.ID } // never changes

// SetTotal says how many bytes there are to do.
func (t *Task) SetTotal(bytes int64) { t.total.Store(bytes) }

// AddTotal adds to the bytes there are to do.
func (t *Task) AddTotal(bytes int64) { t.total.Add(bytes) }

// AddDone adds to the bytes that are done.
func (t *Task) AddDone(bytes int64) { t.done.Add(bytes) }

// Detail says in a short line what the job is doing now.
func (t *Task) Detail(text string) {
	t.mu.Lock()
	t.rec.Detail = text
	t.mu.Unlock()
}

// Warn adds a warning: the job will end CompletedWithWarnings instead of Completed.
func (t *Task) Warn(text string) {
	t.mu.Lock()
	t.warnings = append(t.warnings, text)
	t.mu.Unlock()
}

// Result adds lines to the result.
func (t *Task) Result(lines ...string) {
	t.mu.Lock()
	t.rec.Result = append(t.rec.Result, lines...)
	t.mu.Unlock()
}

// Begin opens a sub-task; the returned function ends it, failed when err is not
// nil. Ending twice is harmless.
func (t *Task) Begin(name string) (end func(err error)) {
	t.mu.Lock()
	i := len(t.rec.SubTasks)
	t.rec.SubTasks = append(t.rec.SubTasks, SubTask{Name: name, State: InProgress, StartedAt: t.m.now()})
	t.mu.Unlock()
	var once sync.Once
	return func(err error) {
		once.Do(func() {
			t.mu.Lock()
			defer t.mu.Unlock()
			s := &t.rec.SubTasks[i]
			s.EndedAt, s.State = t.m.now(), Completed
			if err != nil {
				s.State = Failed
			}
		})
	}
}

// Ended is closed when the job has ended.
func (t *Task) Ended() <-chan struct{} { return t.ended }

// Record is a copy of what is known now.
func (t *Task) Record() Record {
	t.mu.Lock()
	defer t.mu.Unlock()
	r := t.rec.clone()
	if !r.State.Ended() {
		r.DoneBytes, r.TotalBytes = t.done.Load(), t.total.Load()
	}
	return r
}

// apply moves the job to the state after e and returns the record.
func (t *Task) apply(e Event) Record {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.rec.State = Next(t.rec.State, e)
	return t.rec.clone()
}

// finish makes the record final.
func (t *Task) finish(err error, cancelled bool, code string) Record {
	t.mu.Lock()
	defer t.mu.Unlock()
	event := Succeeded
	switch {
	case err != nil && cancelled:
		event = GaveUp
	case err != nil:
		event = Broke
	case len(t.warnings) > 0:
		event = SucceededPartly
	}
	r := &t.rec
	r.State = Next(r.State, event)
	r.EndedAt = t.m.now()
	r.DoneBytes, r.TotalBytes = t.done.Load(), t.total.Load()
	r.Detail = ""
	r.Error = strings.Join(t.warnings, "; ")
	if err != nil {
		r.Error, r.ErrorCode = err.Error(), code
	}
	for i := range r.SubTasks {
		if s := &r.SubTasks[i]; !s.State.Ended() {
			s.State, s.EndedAt = r.State, r.EndedAt
		}
	}
	return r.clone()
}

func (m *Manager) now() time.Time { return m.o.Now().UTC() }
