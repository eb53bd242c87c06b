package recoverypoint

import (
	"context"
	"fmt"
	"slices"

	"github.com/keelblock/keelblock/dedupe"
)

// unreadable is what the notes say of a point whose manifest cannot be read, or nil. Its
// own manifest is empty.
func (x *Index) unreadable(id dedupe.Digest) *Point {
	x.mu.RLock()
	defer x.mu.RUnlock()
	if p := x.broken[id]; p != nil && !p.purged {
		return p
	}
	return nil
}

// Reread tries again to read the manifests that could not be read: a copy may have come
// back. It returns the points that are there again.
func (x *Index) Reread(ctx context.Context) ([]*Point, error) {
	x.publishing.Lock() // no note meanwhile
	defer x.publishing.Unlock()
	x.mu.RLock()
	ids := make([]dedupe.Digest, 0, len(x.broken))
	for id, p := range x.broken {
		if !p.purged {
			ids = append(ids, id)
		}
	}
	x.mu.RUnlock()
	var back []*Point
	names := &textLoader{store: x.store}
	for _, id := range ids {
		p, err := loadPoint(ctx, x.store, id)
		if ctx.Err() != nil {
			return back, fmt.Errorf("read recovery points again: %w", ctx.Err())
		}
		if err != nil {
			continue // Problems has it
		}
		nameless := p.reveal(ctx, names)
		back = append(back, x.readAgain(p.Manifest, id, nameless))
	}
	return back, nil
}

// readAgain lists a point whose manifest was not readable before. What its notes say is
// known.
func (x *Index) readAgain(m *Manifest, id dedupe.Digest, nameless error) *Point {
	x.mu.Lock()
	defer x.mu.Unlock()
	p := *x.broken[id]
	p.Manifest = m
	delete(x.broken, id)
	x.points[id] = &p
	x.solved(id)
	if nameless != nil {
		x.problems = append(x.problems, Problem{ID: id, Err: nameless})
	}
	x.ordered, x.unique = nil, nil
	return &p
}

// solved takes a point out of the problems; the caller holds mu.
func (x *Index) solved(id dedupe.Digest) {
	x.problems = slices.DeleteFunc(x.problems, func(b Problem) bool { return b.ID == id })
}
