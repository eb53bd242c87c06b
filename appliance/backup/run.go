package backup

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/keelblock/keelblock/appliance"
	"github.com/keelblock/keelblock/appliance/disks"
	"github.com/keelblock/keelblock/appliance/job"
	"github.com/keelblock/keelblock/appliance/vault"
	"github.com/keelblock/keelblock/blockdev/cbt"
	"github.com/keelblock/keelblock/blockdev/snapshot"
	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/hashtree"
	"github.com/keelblock/keelblock/dedupe/ingest"
	"github.com/keelblock/keelblock/dedupe/recoverypoint"
)

// maxAttempts: as the map says; compared, when the audit finds that it lies, or when a
// block of the base does not verify; in full, when its tree does not verify either.
const maxAttempts = 4

// run is a whole job. It calls frozen when it answers no further requests.
func (e *Engine) run(ctx context.Context, t *job.Task, h *vault.Handle, r Request, frozen func()) error {
	parts, release, err := e.hold(r)
	if err != nil {
		return err
	}
	defer release()
	if h.Site.Key == nil {
		return &appliance.Error{Kind: appliance.ErrUnavailable, Text: "the key that signs points cannot be read",
			Hint: "put site.key and site.json back from a copy and start the daemon again; points can be read without"}
	}
	if err := checkSpace(h); err != nil {
		return err
	}
	t.Detail("waiting for the disks' slots")
	endWait := t.Begin("Wait")
	slots, err := e.slots.Acquire(ctx, trackers(parts))
	endWait(err)
	if err != nil {
		return err
	}
	defer slots.Release()
	planner := newPlanner(h)
	for attempt := 1; ; attempt++ {
		a := &attemptState{e: e, t: t, h: h, req: r, frozen: frozen, slots: slots}
		for _, p := range parts {
			a.parts = append(a.parts, &part{machine: p.machine, members: p.members})
		}
		err := a.run(ctx, planner)
		if errors.Is(err, errAgain) && attempt < maxAttempts {
			e.o.Logger.Warn("backup begins again and compares", "object", r.object(), "job", t.ID(), "error", err)
			continue
		}
		return err
	}
}

// checkSpace fails early, with the numbers, when the vault would take nothing.
func checkSpace(h *vault.Handle) error {
	s, err := vault.SpaceOf(h.Dir)
	if err != nil {
		return err
	}
	if s.Free <= h.ReserveBytes {
		return &appliance.Error{Kind: appliance.ErrNoSpace,
			Text: fmt.Sprintf("vault %s has %d bytes free and keeps %d of them in reserve", h.Vault.Name(), s.Free, h.ReserveBytes),
			Hint: "free space on its file system, or delete recovery points"}
	}
	return nil
}

// attemptState is one attempt to make the points of a cut.
type attemptState struct {
	e      *Engine
	t      *job.Task
	h      *vault.Handle
	req    Request
	frozen func()
	parts  []*part
	slots  *snapshot.Slots

	plans []plan // in the order of the slots
	batch dedupe.Batch

	mu    sync.Mutex
	roots []hashtree.Root            // by plan; of what was read before the freeze, then final
	sets  []*recoverypoint.ChangeSet // by plan; what differs from the plan's base
}

// pinned decides for one disk and pins the point whose tree is taken over: a batch puts
// nothing of it, so collection would not know that it is needed, were it purged.
func (a *attemptState) pinned(planner *planner, pt *part, d *disks.Disk) (plan, func(), error) {
	for {
		p, err := planner.plan(pt, d)
		if err != nil || p.point.IsZero() {
			return p, func() {}, err
		}
		unpin, err := a.e.o.Vaults.Pin(p.point, a.req.op())
		if err != nil {
			continue // it was purged a moment ago
		}
		if a.h.Points.Get(p.point) != nil {
			return p, unpin, nil
		}
		unpin() // purged in this vault before it was pinned; another one holds it too
	}
}

func (a *attemptState) run(ctx context.Context, planner *planner) (err error) {
	for _, pt := range a.parts {
		for _, d := range pt.members.disks {
			p, unpin, err := a.pinned(planner, pt, d)
			if err != nil {
				return fmt.Errorf("disk %q: %w", d.Name(), err)
			}
			defer unpin()
			a.plans = append(a.plans, p)
			a.roots = append(a.roots, hashtree.Root{})
			a.sets = append(a.sets, recoverypoint.NewChangeSet())
		}
	}
	defer func() { err = a.blame(planner, err) }()
	if a.batch, err = a.h.Store.Begin(ctx); err != nil {
		return err
	}
	defer a.batch.Abort() // harmless after the commit
	if err := a.audit(ctx); err != nil {
		return err
	}
	if err := a.readWhole(ctx); err != nil {
		return err
	}
	cut, err := a.cut(ctx)
	if err != nil {
		return err
	}
	defer cut.Abort() // harmless after the commit
	end := a.t.Begin("TransferToVault")
	points, err := a.transfer(ctx, cut)
	end(err)
	if err != nil {
		if why := cut.Err(); why != nil && !errors.Is(err, snapshot.ErrAborted) {
			err = errors.Join(err, why)
		}
		return err
	}
	if err := cut.Commit(); err != nil {
		a.e.o.Logger.Warn("the points are good; the next backup reads more than it must", "recovery_point", points[0].ID, "error", err)
	}
	for _, p := range points {
		line := p.ID.String()
		if a.req.Group != "" {
			line = p.Manifest.MachineName + " " + line
		}
		a.t.Result(line)
	}
	return nil
}

// blame turns an unusable base into errAgain and remembers the disk.
func (a *attemptState) blame(planner *planner, err error) error {
	var be *diskError
	var base *ingest.BaseError
	if err == nil || !errors.As(err, &be) || !errors.As(err, &base) {
		return err
	}
	d := a.plans[be.plan].disk
	planner.distrusted[d.Entry().ID]++
	d.Tracker().Distrust(fmt.Sprintf("the base does not verify at %d: %v", base.Offset, base.Err))
	return fmt.Errorf("%w: %w", errAgain, err)
}

// diskError says which disk of the attempt failed.
type diskError struct {
	plan int
	name string
	err  error
}

func (e *diskError) Error() string { return fmt.Sprintf("disk %q: %v", e.name, e.err) }
func (e *diskError) Unwrap() error { return e.err }

// each calls fn for plans in parallel, on threads that leave guests the cores.
func (a *attemptState) each(ctx context.Context, plans []int, fn func(ctx context.Context, i int) error) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, i := range plans {
		g.Go(func() error {
			job.Background()
			if err := fn(ctx, i); err != nil {
				return &diskError{plan: i, name: a.plans[i].disk.Name(), err: err}
			}
			return nil
		})
	}
	return g.Wait()
}

func (a *attemptState) options() ingest.Options {
	return ingest.Options{Workers: max(a.e.o.Workers/len(a.plans), 1), Begin: job.Background, Turn: a.e.o.Turns}
}

// cut freezes all disks at one instant. From here the job answers no new requests.
func (a *attemptState) cut(ctx context.Context) (*snapshot.Cut, error) {
	a.frozen()
	a.t.Detail("freezing")
	endFreeze := a.t.Begin("Freeze") // nothing in the guest to freeze yet
	endFreeze(nil)
	end := a.t.Begin("TakeSnapshot")
	cut, err := a.slots.Cut(ctx)
	end(err)
	return cut, err
}

// transfer captures the frozen disks, and publishes the points: all or none.
func (a *attemptState) transfer(ctx context.Context, cut *snapshot.Cut) ([]*recoverypoint.Point, error) {
	a.t.Detail("storing what changed")
	var all []int
	for i := range a.plans {
		all = append(all, i)
		a.t.AddTotal(cut.Disks[i].ChangedBytes())
	}
	err := a.each(ctx, all, func(ctx context.Context, i int) error {
		return a.capture(ctx, i, cut.Disks[i])
	})
	if err == nil {
		err = a.flush(ctx, all)
	}
	if err != nil {
		return nil, err
	}
	manifests, costs, err := a.manifests(ctx, cut)
	if err != nil {
		return nil, err
	}
	ids := map[*part]cbt.PointID{}
	for i, m := range manifests {
		id, err := m.ID()
		if err != nil {
			return nil, err
		}
		ids[a.parts[i]] = cbt.PointID(id)
	}
	candidates := make([]cbt.PointID, len(a.plans))
	for i, p := range a.plans {
		candidates[i] = ids[p.part]
	}
	if err := cut.Prepare(candidates); err != nil {
		return nil, err
	}
	a.t.Detail("publishing")
	now := a.e.o.Now()
	terms := recoverypoint.Terms{At: now.At, Proven: now.Proven, Retain: a.req.Retain, Actor: a.req.Actor}
	return a.h.Points.PublishOnTerms(ctx, a.batch, manifests, costs, terms, a.h.Site.Key)
}

// flush makes durable what the point will hold of the disks. The map forgets it with
// the commit, so a disk must not lose it afterwards and keep its map: that is what
// happens when its file system dies and comes back under a living kernel.
func (a *attemptState) flush(ctx context.Context, plans []int) error {
	a.t.Detail("syncing the disks")
	return a.each(ctx, plans, func(_ context.Context, i int) error { return a.plans[i].disk.Tracker().Flush() })
}

// capture ingests the changes of one frozen disk over its base.
func (a *attemptState) capture(ctx context.Context, i int, s *snapshot.Snapshot) error {
	p := a.plans[i]
	base := a.roots[i]
	if p.tracking == recoverypoint.TrackingEnabled {
		base = p.base
	}
	pass, err := ingest.NewPass(a.h.Store, a.batch, base, s.Size(), a.options())
	if err != nil {
		return err
	}
	defer pass.Abort()
	err = s.Capture(ctx, cbt.Sink{
		Write: func(off int64, data []byte) error {
			a.t.AddDone(int64(len(data)))
			return pass.Write(ctx, off, data)
		},
		Zero: func(off, n int64) error {
			a.t.AddDone(n)
			return pass.Zero(ctx, off, n)
		},
	})
	if err != nil {
		return err
	}
	return a.finish(ctx, i, pass)
}

// finish takes the tree of a pass, what it cost, and which grains it changed.
func (a *attemptState) finish(ctx context.Context, i int, pass *ingest.Pass) error {
	root, s, err := pass.Finish(ctx)
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.roots[i] = root
	cost := &a.plans[i].part.cost
	cost.ReadBytes += s.ReadBytes
	cost.NewBytes += s.NewBytes
	cost.StoredBytes += s.StoredBytes
	a.sets[i].Or(pass.Changes())
	return nil
}

// since is how long ago t was, never negative.
func since(t time.Time) time.Duration { return max(time.Since(t), 0) }
