package verification

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/keelblock/keelblock/appliance/job"
	"github.com/keelblock/keelblock/appliance/vault"
	"github.com/keelblock/keelblock/dedupe/recoverypoint"
)

// retryAfter is how long a repair that failed is not tried again by itself.
const retryAfter = 10 * time.Minute

// Run verifies what is due and repairs locations that came back, until ctx ends. Its
// jobs end with their manager.
func (e *Engine) Run(ctx context.Context) error {
	tick := time.NewTicker(e.o.Look)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			e.look(ctx)
		}
	}
}

// look starts what is due now.
func (e *Engine) look(ctx context.Context) {
	var due []stored
	for _, h := range e.o.Vaults.Handles() {
		e.lookAtLocations(ctx, h)
		due = append(due, e.due(h)...)
	}
	e.startDue(due)
}

func (e *Engine) lookAtLocations(ctx context.Context, h *vault.Handle) {
	repairable, err := h.Store.CheckLocations()
	if err != nil {
		e.o.Logger.Error("locations cannot be looked at", "vault", h.Vault.Name(), "error", err)
	}
	if !repairable {
		return
	}
	e.mu.Lock()
	r := e.repairs[h.Vault.Name()]
	e.mu.Unlock()
	if r != nil && e.o.Now().Before(e.again(r.Record())) {
		return
	}
	if _, err := e.StartRepair(ctx, h.Vault.Name()); err != nil {
		e.o.Logger.Error("locations are not repaired", "vault", h.Vault.Name(), "error", err)
	}
}

// again is when a repair may begin by itself after the last one: soon when that went
// well, for another location may have come back, and yet not so soon that the disks do
// nothing else.
func (e *Engine) again(last job.Record) time.Time {
	switch {
	case !last.State.Ended():
		return e.o.Now().Add(time.Second)
	case last.State == job.Failed:
		return last.EndedAt.Add(retryAfter)
	}
	return last.EndedAt.Add(max(3*e.o.Look, 10*last.EndedAt.Sub(last.StartedAt)))
}

// due are the points of a vault to be verified now: once one of them has not been for a
// whole period, all that have not been for half of it, since they share most blocks.
func (e *Engine) due(h *vault.Handle) []stored {
	if e.o.Every < 0 {
		return nil
	}
	now := e.o.Now()
	var list []stored
	over := false
	for _, p := range h.Points.List("", true) {
		age := now.Sub(e.verifiedAt(p))
		if age < e.o.Every/2 {
			continue
		}
		over = over || age >= e.o.Every
		list = append(list, stored{h, p})
	}
	if !over {
		return nil
	}
	slices.SortStableFunc(list, func(a, b stored) int { return cmp.Compare(e.verifiedAt(a.Point).Unix(), e.verifiedAt(b.Point).Unix()) })
	return list
}

// verifiedAt is when a point was last known to be good: when it was made, at first.
func (e *Engine) verifiedAt(p *recoverypoint.Point) time.Time {
	if o, ok := e.Last(p.ID); ok {
		return o.At
	}
	return p.Manifest.FrozenAt
}

func (e *Engine) startDue(due []stored) {
	if len(due) == 0 {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.scheduled != nil && !e.scheduled.Record().State.Ended() {
		return
	}
	r := &run{e: e, points: due}
	for _, p := range due {
		if !slices.Contains(r.whole, p.in) {
			r.whole = append(r.whole, p.in)
		}
	}
	r.problems = r.whole
	t, err := e.o.Jobs.Start(Kind, "scheduled", r.do)
	if err != nil {
		e.o.Logger.Error("points that are due are not verified", "points", len(due), "error", err)
		return
	}
	e.scheduled = t
}
