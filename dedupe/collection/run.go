package collection

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/blockstore"
	"github.com/keelblock/keelblock/dedupe/recoverypoint"
)

// Options of Run. The zero value frees all that can be freed.
type Options struct {
	// DryRun changes nothing: the Report says what would be freed.
	DryRun bool
	// IndexOnly drops from the index what no point reaches and touches no pack.
	IndexOnly bool
	// Pinned lists the points that somebody uses now, purged ones too. nil: none.
	Pinned func() []dedupe.Digest
	// MemoryBytes bounds the mark of blocks; 0: blockstore.DefaultCollectMemory.
	MemoryBytes int64
	// MinAge spares packs written to less than that ago; see blockstore.CollectOptions.
	MinAge time.Duration
	// Progress, when not nil, is told what is being done: a short line.
	Progress func(step string)
}

// Report says what Run found and did.
type Report struct {
	blockstore.CollectReport
	// Freeing says, in a dry run, what deleting each point would free, in the order of
	// the Index; nil otherwise.
	Freeing []PointBytes
}

// PointBytes is what one point needs alone.
type PointBytes struct {
	Point *recoverypoint.Point
	recoverypoint.Unique
}

// UnreadableError names the point that is ErrUnreadable.
type UnreadableError struct {
	Point dedupe.Digest
	Name  string // of its machine; "" when that is not known
	Err   error
}

// Error names the point.
func (e *UnreadableError) Error() string {
	of := ""
	if e.Name != "" {
		of = fmt.Sprintf(" of machine %q", e.Name)
	}
	return fmt.Sprintf("recovery point %v%s: %v: %v", e.Point, of, ErrUnreadable, e.Err)
}

// Unwrap is ErrUnreadable, and why.
func (e *UnreadableError) Unwrap() []error { return []error{ErrUnreadable, e.Err} }

// ErrUnreadable: a point's manifest or a node of its tree cannot be read, so what it
// needs is not known, and nothing was freed.
var ErrUnreadable = errors.New("what a recovery point needs is not readable, so nothing was freed")

// Run collects the vault s, whose points are x. It returns what it did also with an
// error; every point reads back as before, wherever it stopped.
func Run(ctx context.Context, s *blockstore.Store, x *recoverypoint.Index, o Options) (Report, error) {
	r := run{s: s, x: x, o: o}
	report, err := r.run(ctx)
	if err != nil {
		return report, fmt.Errorf("collect vault: %w", err)
	}
	return report, nil
}

type run struct {
	s *blockstore.Store
	x *recoverypoint.Index
	o Options
	c *blockstore.Collection

	roots map[dedupe.Digest]*recoverypoint.Manifest
	gone  map[dedupe.Digest]bool   // purged points whose manifests go
	about map[uint64]dedupe.Digest // subjects of notes, by their sequence
	// purged are the subjects of purge notes; the Index may not have been able to read
	// what they are about.
	purged map[dedupe.Digest]bool
}

func (r *run) tell(format string, args ...any) {
	if r.o.Progress != nil {
		r.o.Progress(fmt.Sprintf(format, args...))
	}
}

func (r *run) run(ctx context.Context) (report Report, err error) {
	r.c, err = r.s.BeginCollection(ctx, blockstore.CollectOptions{DryRun: r.o.DryRun, IndexOnly: r.o.IndexOnly,
		MemoryBytes: r.o.MemoryBytes, MinAge: r.o.MinAge, Freeing: len(r.x.Purged()) > 0})
	if err != nil {
		return report, err
	}
	defer r.c.End()
	defer func() {
		report.CollectReport = r.c.Report()
		report.Points = int64(len(r.roots))
	}()
	if err := r.readNotes(ctx); err != nil {
		return report, err
	}
	if err := r.findRoots(ctx); err != nil {
		return report, err
	}
	for n := range r.c.Passes() {
		if err := r.pass(ctx, n); err != nil {
			return report, err
		}
	}
	r.tell("dropping packs")
	err = r.c.SweepPacks(ctx, blockstore.Dead{
		Manifest: func(d dedupe.Digest) bool { return r.gone[d] },
		Subject:  func(sequence uint64) dedupe.Digest { return r.about[sequence] }})
	if err != nil {
		return report, err
	}
	if r.o.DryRun {
		report.Freeing, err = r.freeing(ctx)
		return report, err
	}
	if !r.o.IndexOnly {
		return report, r.forget(ctx)
	}
	return report, nil
}

// readNotes reads what the notes are about. A damaged one stays, in its pack.
func (r *run) readNotes(ctx context.Context) error {
	r.tell("reading points")
	r.about, r.purged = make(map[uint64]dedupe.Digest), make(map[dedupe.Digest]bool)
	err := r.s.Notes(ctx, func(n dedupe.Note) bool {
		if !n.Subject.IsZero() {
			r.about[n.Sequence] = n.Subject
		}
		if n.Type == recoverypoint.NotePurge {
			r.purged[n.Subject] = true
		}
		return true
	})
	if errors.Is(err, dedupe.ErrCorrupt) || errors.Is(err, dedupe.ErrNoKey) {
		return ctx.Err()
	}
	return err
}

// findRoots reads which points are published, from the store and not from the Index,
// where a point appears a moment later.
func (r *run) findRoots(ctx context.Context) error {
	r.roots, r.gone = make(map[dedupe.Digest]*recoverypoint.Manifest), make(map[dedupe.Digest]bool)
	newest := r.x.Purged()
	pinned := make(map[dedupe.Digest]bool)
	if r.o.Pinned != nil { // after the purged ones: who pins a point sees that it is not purged
		for _, id := range r.o.Pinned() {
			pinned[id] = true
		}
	}
	var published []dedupe.Digest
	if err := r.s.Manifests(ctx, func(d dedupe.Digest) bool { published = append(published, d); return true }); err != nil {
		return err
	}
	for _, id := range published {
		last, dead := newest[id]
		dead = (dead || r.purged[id]) && !pinned[id]
		if dead && !last {
			r.gone[id] = true
			continue
		}
		m, err := r.manifest(ctx, id)
		if err != nil && dead {
			r.gone[id] = true // nothing can be learnt from it
			continue
		}
		if err != nil {
			return err
		}
		if dead { // of the newest point only what says which it was
			m = &recoverypoint.Manifest{Private: m.Private}
		}
		r.roots[id] = m
	}
	return nil
}

// manifest is that of a point, as it is stored: the Index may have put names into its own.
func (r *run) manifest(ctx context.Context, id dedupe.Digest) (*recoverypoint.Manifest, error) {
	b, err := r.s.Get(ctx, dedupe.KindManifest, id, nil)
	if err != nil {
		return nil, &UnreadableError{Point: id, Err: err}
	}
	m, err := recoverypoint.Decode(b)
	if err != nil {
		return nil, &UnreadableError{Point: id, Err: err}
	}
	if len(m.Extensions) > 0 {
		return nil, &UnreadableError{Point: id, Err: fmt.Errorf("a later release made it: %w", dedupe.ErrUnknownFormat)}
	}
	return m, nil
}

// pass marks everything and sweeps a part.
func (r *run) pass(ctx context.Context, n int) error {
	r.tell("marking, pass %d of %d", n+1, r.c.Passes())
	r.c.StartPass(n)
	for id, m := range r.roots {
		if err := r.mark(ctx, m); err != nil {
			if ctx.Err() == nil {
				err = &UnreadableError{Point: id, Name: m.MachineName, Err: err}
			}
			return err
		}
	}
	r.tell("sweeping, pass %d of %d", n+1, r.c.Passes())
	if n == 0 {
		if err := r.c.SweepNodes(ctx); err != nil {
			return err
		}
	}
	return r.c.SweepBlocks(ctx)
}

// mark marks what a manifest refers to.
func (r *run) mark(ctx context.Context, m *recoverypoint.Manifest) error {
	for i := range m.Disks {
		root := m.Disks[i].Root
		if err := r.c.MarkTree(ctx, root.Depth-1, root.Top); err != nil {
			return fmt.Errorf("disk %q: %w", m.Disks[i].Name, err)
		}
	}
	for _, content := range m.Contents() {
		for _, d := range content.Blocks {
			r.c.MarkBlock(d)
		}
	}
	return nil
}

// forget drops the points whose manifests are gone from the Index.
func (r *run) forget(ctx context.Context) error {
	still := make(map[dedupe.Digest]bool)
	if err := r.s.Manifests(ctx, func(d dedupe.Digest) bool { still[d] = true; return true }); err != nil {
		return err
	}
	var ids []dedupe.Digest
	for id := range r.gone {
		if !still[id] {
			ids = append(ids, id)
		}
	}
	r.x.Forget(ids)
	return nil
}

// freeing counts what deleting each point would free.
func (r *run) freeing(ctx context.Context) ([]PointBytes, error) {
	r.tell("counting what each point needs alone")
	var list []PointBytes
	for _, p := range r.x.List("", true) {
		u, err := r.x.Unique(ctx, p.ID)
		if errors.Is(err, recoverypoint.ErrNotFound) {
			continue // purged meanwhile
		}
		if err != nil {
			return nil, err
		}
		list = append(list, PointBytes{Point: p, Unique: u})
	}
	return list, nil
}
