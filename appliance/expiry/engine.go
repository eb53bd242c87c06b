package expiry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/keelblock/keelblock/appliance"
	"github.com/keelblock/keelblock/appliance/clock"
	"github.com/keelblock/keelblock/appliance/job"
	"github.com/keelblock/keelblock/appliance/machine"
	"github.com/keelblock/keelblock/appliance/vault"
	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/recoverypoint"
	"github.com/keelblock/keelblock/dedupe/retention"
)

// Kind is the kind of a pass's job.
const Kind = "Expiry"

// DefaultInterval is the time between two passes.
const DefaultInterval = time.Minute

// actor stands in the notes of a pass.
const actor = "expiry"

// maxLines bounds the result of a job.
const maxLines = 1000

// Options of an Engine. Vaults, Machines, Jobs and Now are required.
type Options struct {
	Vaults   *vault.Set
	Machines interface {
		List() ([]machine.Machine, error)
	}
	Jobs *job.Manager
	// Now is trusted time.
	Now func() clock.Time
	// Interval between two passes. 0: DefaultInterval.
	Interval time.Duration
	// Alert tells what an operator must know about an object, or with "" takes it back;
	// nil: only the log.
	Alert  func(object, text string)
	Logger *slog.Logger
}

// Engine applies retention. All methods may be called from any number of goroutines.
type Engine struct {
	o Options

	mu sync.Mutex // one pass or prune at a time; held over its I/O, nothing else waits for it
}

// New returns an Engine.
func New(o Options) *Engine {
	if o.Interval == 0 {
		o.Interval = DefaultInterval
	}
	if o.Alert == nil {
		o.Alert = func(string, string) {}
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return &Engine{o: o}
}

// Run makes passes until ctx ends.
func (e *Engine) Run(ctx context.Context) error {
	t := time.NewTicker(e.o.Interval)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
		if err := e.Pass(ctx); err != nil && ctx.Err() == nil {
			e.o.Logger.Error("expiry failed", "error", err)
		}
	}
}

// Pass lets go, in all open vaults, what has had its time. In doubt about the time, and
// without the list of machines, it does nothing.
func (e *Engine) Pass(ctx context.Context) error {
	if e.o.Now().Doubt != "" {
		return nil // the clock has raised its own alert
	}
	machines, err := e.o.Machines.List()
	if err != nil {
		return nil // the catalog is closed: there are no rules, and an alert of its own
	}
	rules := make(map[string]retention.Rules, len(machines))
	for _, m := range machines {
		rules[m.ID] = m.Retention
	}
	var errs []error
	for _, h := range e.o.Vaults.Handles() {
		err := e.passVault(ctx, h, rules)
		alert := ""
		if err != nil {
			alert = fmt.Sprintf("points that have had their time stay: %v", err)
			errs = append(errs, fmt.Errorf("vault %s: %w", h.Vault.Name(), err))
		}
		e.o.Alert("expiry in vault "+h.Vault.Name(), alert)
	}
	return errors.Join(errs...)
}

// passVault starts a job when there is something to do, and waits for it.
func (e *Engine) passVault(ctx context.Context, h *vault.Handle, rules map[string]retention.Rules) error {
	w, err := e.due(h, rules)
	if err != nil || w.empty() {
		return err
	}
	t, err := e.o.Jobs.Start(Kind, h.Vault.Name(), func(ctx context.Context, t *job.Task) error {
		e.mu.Lock()
		defer e.mu.Unlock()
		w, err := e.due(h, rules) // a hold may have come since
		if err != nil {
			return err
		}
		return e.do(ctx, t, h, w)
	})
	if err != nil {
		return err
	}
	select {
	case <-t.Ended():
	case <-ctx.Done():
		return ctx.Err()
	}
	if r := t.Record(); r.State == job.Failed {
		return errors.New(r.Error)
	}
	return nil
}

// work is what a pass does in one vault.
type work struct {
	now    clock.Time
	expire []retention.Decision
	purge  []*recoverypoint.Point
}

func (w work) empty() bool { return len(w.expire)+len(w.purge) == 0 }

// due is what has had its time now.
func (e *Engine) due(h *vault.Handle, rules map[string]retention.Rules) (work, error) {
	w := work{now: e.o.Now()}
	if w.now.Doubt != "" {
		return w, nil
	}
	settings := h.Points.Settings()
	byMachine := map[string][]*recoverypoint.Point{}
	for _, p := range h.Points.List("", true) {
		switch {
		case !p.Deleted:
			id := p.Manifest.MachineID.String()
			byMachine[id] = append(byMachine[id], p)
		case p.Purgeable(settings, w.now.At, w.now.Proven) && e.protection(p, settings, w.now) == "":
			w.purge = append(w.purge, p)
		}
	}
	for id, points := range byMachine {
		decisions, err := e.decide(points, settings, rules[id], w.now)
		if err != nil {
			return work{}, fmt.Errorf("machine %q: %w", points[0].Manifest.MachineName, err)
		}
		w.expire = append(w.expire, retention.Expired(decisions)...)
	}
	return w, nil
}

// decide applies rules to the points of one machine, oldest first.
func (e *Engine) decide(points []*recoverypoint.Point, s recoverypoint.Settings, rules retention.Rules, now clock.Time) ([]retention.Decision, error) {
	list := make([]retention.Point, len(points))
	for i, p := range points {
		list[i] = retention.Point{ID: p.ID, FrozenAt: p.Manifest.FrozenAt, RetainUntil: p.RetainUntil, Protection: e.protection(p, s, now)}
	}
	return retention.Apply(list, rules, now.At)
}

// protection says why a point cannot be deleted now, or "".
func (e *Engine) protection(p *recoverypoint.Point, s recoverypoint.Settings, now clock.Time) string {
	if p.Held {
		return "held"
	}
	if end, locked := p.Locked(s, now.Proven); locked {
		return "locked until " + end.UTC().Format("2006-01-02T15:04:05Z")
	}
	if who := e.o.Vaults.PinnedBy(p.ID); len(who) > 0 {
		return "used by " + strings.Join(who, ", ")
	}
	return ""
}

// do deletes and purges. Points that refuse meanwhile stay, and are no error.
func (e *Engine) do(ctx context.Context, t *job.Task, h *vault.Handle, w work) error {
	if err := e.expire(ctx, t, h, w); err != nil {
		return err
	}
	var ids []dedupe.Digest
	for _, p := range w.purge {
		ids = append(ids, p.ID)
	}
	// Who began to use one of them meanwhile keeps it for the next pass.
	done, _, err := e.o.Vaults.Purge(ctx, h, ids, event(w.now, actor, "its soft-delete period is over"))
	for _, p := range done {
		e.line(t, p, fmt.Sprintf("purged: its soft-delete period ended at %s", p.DeletedUntil.UTC().Format("2006-01-02T15:04:05Z")))
	}
	return serious(err)
}

// expire soft-deletes, with one commit for each reason.
func (e *Engine) expire(ctx context.Context, t *job.Task, h *vault.Handle, w work) error {
	var reasons []string
	byReason := map[string][]dedupe.Digest{}
	for _, d := range w.expire {
		r := d.Reason()
		if byReason[r] == nil {
			reasons = append(reasons, r)
		}
		byReason[r] = append(byReason[r], d.ID)
	}
	for _, r := range reasons {
		done, err := h.Points.NoteAll(ctx, byReason[r], recoverypoint.NoteDelete, event(w.now, actor, "expired: "+r))
		for _, p := range done {
			e.line(t, p, "expired: "+r)
		}
		if err := serious(err); err != nil {
			return err
		}
	}
	return nil
}

func event(now clock.Time, who, text string) recoverypoint.Event {
	return recoverypoint.Event{At: now.At, Proven: now.Proven, Actor: who, Text: text}
}

// serious is err unless it only says that points refused, as one that was held just now.
func serious(err error) error {
	var all interface{ Unwrap() []error }
	if errors.As(err, &all) {
		var rest []error
		for _, one := range all.Unwrap() {
			rest = append(rest, serious(one))
		}
		return errors.Join(rest...)
	}
	if errors.Is(err, recoverypoint.ErrHeld) || errors.Is(err, recoverypoint.ErrLocked) || errors.Is(err, recoverypoint.ErrNotFound) {
		return nil
	}
	return err
}

// line reports what became of a point.
func (e *Engine) line(t *job.Task, p *recoverypoint.Point, what string) {
	e.o.Logger.Info("recovery point has had its time", "recovery_point", p.ID, "machine", p.Manifest.MachineName, "why", what)
	if t == nil {
		return
	}
	if n := len(t.Record().Result); n < maxLines {
		t.Result(fmt.Sprintf("%s %s %s", p.Manifest.MachineName, p.ID, what))
	} else if n == maxLines {
		t.Result("… and more; see the log")
	}
}

// Prune decides about all points of a machine, by name or id, that a vault holds, oldest
// first, and, unless it is only a try, soft-deletes what goes. ErrNotFound when the vault
// has no point of the machine.
func (e *Engine) Prune(ctx context.Context, h *vault.Handle, name string, rules retention.Rules, try bool, who string) ([]retention.Decision, error) {
	op := fmt.Sprintf("prune machine %q", name)
	if err := rules.Validate(); err != nil {
		return nil, &appliance.Error{Op: op, Kind: appliance.ErrInvalid, Err: err}
	}
	if rules.IsZero() {
		return nil, &appliance.Error{Op: op, Kind: appliance.ErrInvalid, Text: "there is no rule, and nothing to go by", Hint: "give --keep-last, --keep-daily or another"}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	now := e.o.Now()
	if now.Doubt != "" && !try {
		return nil, &appliance.Error{Op: op, Kind: appliance.ErrRefused, Text: now.Doubt}
	}
	points := h.Points.List(name, false)
	if len(points) == 0 {
		return nil, &appliance.Error{Op: op, Kind: appliance.ErrNotFound, Text: fmt.Sprintf("vault %s has no recovery points of it", h.Vault.Name()), Hint: "see keelblock recovery-point list"}
	}
	decisions, err := e.decideEach(points, h.Points.Settings(), rules, now)
	if err != nil || try {
		return decisions, err
	}
	var ids []dedupe.Digest
	for _, d := range retention.Expired(decisions) {
		ids = append(ids, d.ID)
	}
	done, err := h.Points.NoteAll(ctx, ids, recoverypoint.NoteDelete, event(now, who, "pruned: "+rules.String()))
	for _, p := range done {
		e.line(nil, p, "pruned: "+rules.String())
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", op, err)
	}
	return decisions, nil
}

// decideEach is decide of points that may be of several machines which had the name one
// after the other.
func (e *Engine) decideEach(points []*recoverypoint.Point, s recoverypoint.Settings, rules retention.Rules, now clock.Time) ([]retention.Decision, error) {
	byMachine := map[recoverypoint.ID][]*recoverypoint.Point{}
	for _, p := range points {
		byMachine[p.Manifest.MachineID] = append(byMachine[p.Manifest.MachineID], p)
	}
	found := make(map[dedupe.Digest]retention.Decision, len(points))
	for _, list := range byMachine {
		decisions, err := e.decide(list, s, rules, now)
		if err != nil {
			return nil, err
		}
		for _, d := range decisions {
			found[d.ID] = d
		}
	}
	out := make([]retention.Decision, len(points))
	for i, p := range points {
		out[i] = found[p.ID]
	}
	return out, nil
}
