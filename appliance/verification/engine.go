package verification

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/keelblock/keelblock/appliance"
	"github.com/keelblock/keelblock/appliance/job"
	"github.com/keelblock/keelblock/appliance/vault"
	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/recoverypoint"
	"github.com/keelblock/keelblock/dedupe/verify"
)

// Kinds of jobs.
const (
	Kind       = "Verify"
	RepairKind = "RepairLocations"
)

// DefaultEvery is the period in which each point is verified.
const DefaultEvery = 7 * 24 * time.Hour

// Options of an Engine. Vaults, Jobs and Dir are required.
type Options struct {
	Vaults *vault.Set
	Jobs   *job.Manager
	// Dir has verify.json.
	Dir string
	// Every is the period in which each point is verified; 0: DefaultEvery; negative:
	// only when somebody asks.
	Every time.Duration
	// LiveBlock fills p from the live disk with this id; nil: there are none.
	LiveBlock func(disk recoverypoint.ID, off int64, p []byte) error
	// Look is how often Run looks for what is due; 0: a minute.
	Look time.Duration
	// Now is the clock; nil: time.Now.
	Now func() time.Time
	// Logger; nil: silent.
	Logger *slog.Logger
}

// Engine verifies points and repairs locations. All methods may be called from any
// number of goroutines.
type Engine struct {
	o Options

	mu     sync.Mutex
	serial uint64
	last   map[dedupe.Digest]pointDoc
	// job that verifies by schedule, and those that repair a vault; nil: none yet.
	scheduled *job.Task
	repairs   map[string]*job.Task
}

// New returns an Engine that knows what was verified before.
func New(o Options) *Engine {
	if o.Every == 0 {
		o.Every = DefaultEvery
	}
	if o.Look == 0 {
		o.Look = time.Minute
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	e := &Engine{o: o, repairs: map[string]*job.Task{}}
	e.load()
	return e
}

// stored is a point and the vault that holds it.
type stored struct {
	in *vault.Handle
	*recoverypoint.Point
}

// Start starts a job that verifies one point, or with "" all points of all vaults and
// every copy of their packs.
func (e *Engine) Start(ctx context.Context, selector string) (*job.Task, error) {
	if selector != "" {
		h, p, _, err := e.o.Vaults.Find(ctx, selector)
		if err != nil {
			return nil, err
		}
		r := &run{e: e, points: []stored{{h, p}}, problems: []*vault.Handle{h}}
		return e.o.Jobs.Start(Kind, p.ID.String(), r.do)
	}
	handles, err := e.o.Vaults.Each(ctx)
	if err != nil {
		return nil, err
	}
	r := &run{e: e, problems: handles, whole: handles}
	for _, h := range handles {
		for _, p := range h.Points.List("", true) {
			r.points = append(r.points, stored{h, p})
		}
	}
	return e.o.Jobs.Start(Kind, "all", r.do)
}

// run is one verification.
type run struct {
	e        *Engine
	points   []stored
	problems []*vault.Handle // whose index is asked for points that cannot be read
	whole    []*vault.Handle // of which every copy of every pack is read, too

	seen    map[*vault.Handle]*verify.Seen
	damaged int
	bad     int64
	first   error
}

// do verifies points one after the other. Damage fails the job, after all of them.
func (r *run) do(ctx context.Context, t *job.Task) error {
	t.Detail("counting blocks")
	for _, p := range r.points {
		n, err := verify.Bytes(ctx, p.in.Store, p.Manifest)
		if err != nil {
			return fmt.Errorf("verify recovery point %s: %w", p.ID, err)
		}
		t.AddTotal(n)
	}
	r.seen = map[*vault.Handle]*verify.Seen{}
	for i, p := range r.points {
		t.Detail(fmt.Sprintf("point %d of %d", i+1, len(r.points)))
		if err := r.point(ctx, t, p); err != nil {
			return fmt.Errorf("verify recovery point %s: %w", p.ID, err)
		}
	}
	r.unreadable(ctx, t)
	for _, h := range r.whole {
		if err := r.copies(ctx, t, h); err != nil {
			return err
		}
	}
	if r.first != nil {
		return fmt.Errorf("verify: %d of %d recovery points are damaged, %d blocks and nodes: %w", r.damaged, len(r.points), r.bad, r.first)
	}
	return nil
}

// point verifies one point, heals what it can, and reports the rest.
func (r *run) point(ctx context.Context, t *job.Task, p stored) error {
	if r.seen[p.in] == nil {
		r.seen[p.in] = &verify.Seen{}
	}
	unpin, err := r.e.o.Vaults.Pin(p.ID, "a verification")
	if err != nil {
		return nil // it was purged since the points were listed
	}
	defer unpin()
	end, last := t.Begin(Kind), int64(0)
	rep, err := verify.PointOnce(ctx, p.in.Store, p.Manifest, r.seen[p.in], func(done int64) { t.AddDone(done - last); last = done })
	if err != nil {
		end(err)
		return err
	}
	healed := r.e.heal(ctx, p, &rep)
	r.e.record(Outcome{Point: p.ID, Vault: p.in.Vault.Name(), At: r.e.o.Now(), Bad: rep.BadCount})
	end(rep.Err())
	if healed > 0 {
		t.Result(fmt.Sprintf("%s healed %d blocks from the live disks", p.ID, healed))
	}
	if rep.OK() {
		t.Result(fmt.Sprintf("%s ok %d blocks %d nodes %d bytes", p.ID, rep.Blocks, rep.Nodes, rep.Bytes))
		return nil
	}
	r.damage(rep.BadCount, rep.Err())
	for _, b := range rep.Bad {
		t.Result(fmt.Sprintf("%s damaged %s", p.ID, b))
	}
	return nil
}

func (r *run) damage(bad int64, err error) {
	r.damaged++
	r.bad += bad
	if r.first == nil {
		r.first = err
	}
}

// unreadable reports points whose manifests cannot be read.
func (r *run) unreadable(ctx context.Context, t *job.Task) {
	for _, h := range r.problems {
		if err := h.Reread(ctx); err != nil { // a copy may have come back
			r.e.o.Logger.Warn("points that could not be read were not read again", "vault", h.Vault.Name(), "error", err)
		}
		for _, pr := range h.Points.Problems() {
			if len(r.whole) > 0 || r.points[0].ID == pr.ID {
				t.Result(fmt.Sprintf("%s damaged %v", pr.ID, pr.Err))
				r.damage(0, pr.Err)
			}
		}
	}
}

// copies verifies every copy of a vault's packs when there are several.
func (r *run) copies(ctx context.Context, t *job.Task, h *vault.Handle) error {
	if len(h.Store.Locations()) < 2 {
		return nil
	}
	t.Detail("copies of vault " + h.Vault.Name())
	end := t.Begin("VerifyCopies")
	var counted, last int64
	rep, err := h.Store.VerifyCopies(ctx, func(done, total int64) {
		t.AddTotal(total - counted)
		t.AddDone(done - last)
		counted, last = total, done
	})
	end(err)
	if err != nil {
		return err
	}
	t.Result(fmt.Sprintf("vault %s: %d packs at %d locations, %d copies written again", h.Vault.Name(), rep.Packs, len(h.Store.Locations()), rep.Replaced))
	for _, text := range rep.Problems {
		t.Warn(text)
	}
	for _, l := range rep.Lost { // points that need it say so above
		if err := h.Store.Quarantine(l.Kind, l.Digest); err != nil {
			return err
		}
		t.Warn(fmt.Sprintf("%v in %s at %d verifies at no location", l.Digest, l.Pack, l.Offset))
	}
	return nil
}

// heal stores bad blocks of a machine's newest point again from its live disks, and puts
// the others into quarantine. It takes what is healed out of the report and counts it.
func (e *Engine) heal(ctx context.Context, p stored, rep *verify.Report) (healed int64) {
	_, newest := e.o.Vaults.Newest(p.Manifest.MachineID.String())
	live := e.o.LiveBlock != nil && newest != nil && newest.ID == p.ID
	left := rep.Bad[:0]
	for _, b := range rep.Bad {
		if live && e.healBlock(ctx, p, b) {
			healed++
			continue
		}
		left = append(left, b)
		if err := p.in.Store.Quarantine(b.Kind, b.Digest); err != nil {
			e.o.Logger.Error("damaged block is not put into quarantine", "vault", p.in.Vault.Name(), "digest", b.Digest, "error", err)
		}
	}
	rep.Bad = left
	rep.BadCount -= healed
	rep.Blocks += healed
	return healed
}

// errChanged: the disk has other content there by now.
var errChanged = errors.New("the disk has changed there since")

func (e *Engine) healBlock(ctx context.Context, p stored, b verify.Bad) bool {
	d := p.Manifest.Disk(b.Disk)
	if d == nil || b.Kind != dedupe.KindBlock || b.Part != "data" {
		return false
	}
	content := make([]byte, p.in.Store.BlockSize())
	err := e.o.LiveBlock(d.ID, b.Offset, content[:b.Length])
	if err == nil {
		err = storeAgain(ctx, p.in.Store, content, b.Digest)
	}
	if err != nil {
		e.o.Logger.Warn("damaged block is not healed from the live disk", "disk", b.Disk, "offset", b.Offset, "error", err)
		return false
	}
	e.o.Logger.Warn("damaged block is healed from the live disk", "disk", b.Disk, "offset", b.Offset, "digest", b.Digest)
	return true
}

func storeAgain(ctx context.Context, s dedupe.Store, content []byte, want dedupe.Digest) error {
	b, err := s.Begin(ctx)
	if err != nil {
		return err
	}
	put, err := b.PutBlock(ctx, content)
	if err == nil && put.Digest != want {
		err = errChanged
	}
	if err != nil {
		return errors.Join(err, b.Abort())
	}
	_, err = b.Commit(ctx, dedupe.Publication{})
	return err
}

// StartRepair starts a job that makes the copies of a vault complete at every location.
func (e *Engine) StartRepair(ctx context.Context, name string) (*job.Task, error) {
	h, err := e.o.Vaults.Use(ctx, name)
	if err != nil {
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if r := e.repairs[h.Vault.Name()]; r != nil && !r.Record().State.Ended() {
		return nil, &appliance.Error{Op: "repair locations of vault " + h.Vault.Name(), Kind: appliance.ErrInUse,
			Text: "job " + r.ID() + " does it already", Hint: "keelblock job wait " + r.ID()}
	}
	t, err := e.o.Jobs.Start(RepairKind, h.Vault.Name(), func(ctx context.Context, t *job.Task) error {
		last := int64(0)
		rep, err := h.Store.RepairLocations(ctx, func(done, total int64) {
			t.SetTotal(total)
			t.AddDone(done - last)
			last = done
		})
		t.Result(fmt.Sprintf("vault %s: %d packs at %d locations, %d copies written", h.Vault.Name(), rep.Packs, len(h.Store.Locations()), rep.Replaced))
		for _, text := range rep.Problems {
			t.Warn(text)
		}
		for _, l := range rep.Lost {
			t.Warn(fmt.Sprintf("%v in %s at %d verifies at no location", l.Digest, l.Pack, l.Offset))
		}
		return err
	})
	if err == nil {
		e.repairs[h.Vault.Name()] = t
	}
	return t, err
}
