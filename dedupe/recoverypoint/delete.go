package recoverypoint

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/keelblock/keelblock/dedupe"
)

// Delete marks the point as deleted: it leaves the ordinary lists, still pins its
// blocks, and can be undeleted. Deleting twice is harmless. ErrHeld, ErrNotFound.
func (x *Index) Delete(ctx context.Context, id dedupe.Digest, now time.Time) (*Point, error) {
	return x.Note(ctx, id, NoteDelete, Event{At: now})
}

// Undelete takes a Delete back. It is harmless on a point that is not deleted.
func (x *Index) Undelete(ctx context.Context, id dedupe.Digest, now time.Time) (*Point, error) {
	return x.Note(ctx, id, NoteUndelete, Event{At: now})
}

// Purge takes the point out of every list, for good. Its manifest stays in the store
// until collection. ErrHeld, ErrNotFound.
func (x *Index) Purge(ctx context.Context, id dedupe.Digest, now time.Time) (*Point, error) {
	return x.Note(ctx, id, NotePurge, Event{At: now})
}

// Hold refuses Delete and Purge of the point until Release.
func (x *Index) Hold(ctx context.Context, id dedupe.Digest, now time.Time) (*Point, error) {
	return x.Note(ctx, id, NoteHold, Event{At: now})
}

// Release ends a Hold.
func (x *Index) Release(ctx context.Context, id dedupe.Digest, now time.Time) (*Point, error) {
	return x.Note(ctx, id, NoteRelease, Event{At: now})
}

// Note makes an event of type NoteDelete .. NoteLock durable and then applies it; the
// named methods are short forms of it. It returns the point as it is afterwards. What
// changes nothing writes nothing. A NoteDelete without Until gets the soft-delete period
// of Settings. ErrNotFound, ErrHeld; ErrLocked as a *LockedError.
func (x *Index) Note(ctx context.Context, id dedupe.Digest, noteType uint16, e Event) (*Point, error) {
	x.publishing.Lock() // over the commit: notes take effect in the order of their sequence
	defer x.publishing.Unlock()
	n, err := x.prepare(id, noteType, e)
	if err != nil {
		return nil, err
	}
	if n != nil {
		if err := x.commit(ctx, *n); err != nil {
			return nil, fmt.Errorf("recovery point %v: write note: %w", id, err)
		}
	}
	return x.known(id), nil
}

// known is the point of this id, a purged one too, or what is known of an unreadable one.
func (x *Index) known(id dedupe.Digest) *Point {
	x.mu.RLock()
	defer x.mu.RUnlock()
	if p := x.points[id]; p != nil {
		return p
	}
	return x.broken[id]
}

// maxNotes bounds the notes of one commit.
const maxNotes = 1024

// NoteAll is Note for many points with few commits. A point that refuses is left out,
// and its error is part of the error; done are the others, as they are afterwards.
func (x *Index) NoteAll(ctx context.Context, ids []dedupe.Digest, noteType uint16, e Event) (done []*Point, err error) {
	var refused []error
	for part := range slices.Chunk(ids, maxNotes) {
		points, errs, err := x.noteSome(ctx, part, noteType, e)
		done, refused = append(done, points...), append(refused, errs...)
		if err != nil {
			return done, errors.Join(append(refused, err)...)
		}
	}
	return done, errors.Join(refused...)
}

func (x *Index) noteSome(ctx context.Context, ids []dedupe.Digest, noteType uint16, e Event) (done []*Point, refused []error, err error) {
	x.publishing.Lock()
	defer x.publishing.Unlock()
	var notes []dedupe.Note
	for _, id := range ids {
		n, err := x.prepare(id, noteType, e)
		if err != nil {
			refused = append(refused, err)
			continue
		}
		if n != nil {
			notes = append(notes, *n)
		}
		done = append(done, x.known(id))
	}
	if len(notes) > 0 {
		if err := x.commit(ctx, notes...); err != nil {
			return nil, refused, fmt.Errorf("write %d notes of recovery points: %w", len(notes), err)
		}
	}
	for i, p := range done {
		done[i] = x.known(p.ID)
	}
	return done, refused, nil
}

// prepare checks an event of a point and encodes its note, nil when it would change
// nothing. publishing is held.
func (x *Index) prepare(id dedupe.Digest, noteType uint16, e Event) (*dedupe.Note, error) {
	p := x.Get(id)
	switch noteType {
	case NoteDelete, NoteUndelete, NotePurge, NoteRelease: // the ways out for one that cannot be read
		if p == nil {
			p = x.unreadable(id)
		}
	}
	if p == nil {
		return nil, fmt.Errorf("recovery point %v: %w", id, ErrNotFound)
	}
	s := x.Settings()
	if err := p.refuses(s, noteType, e); err != nil {
		return nil, err
	}
	if p.has(noteType, e) {
		return nil, nil
	}
	if noteType == NoteDelete && e.Until.IsZero() {
		e.Until = e.At.Add(s.SoftDelete)
	}
	body, err := EncodeEvent(noteType, e)
	if err != nil {
		return nil, fmt.Errorf("recovery point %v: %w", id, err)
	}
	return &dedupe.Note{Type: noteType, Subject: id, Body: body}, nil
}

// refuses says why the point cannot have this event: a hold, or immutability.
func (p *Point) refuses(s Settings, noteType uint16, e Event) error {
	switch noteType {
	case NoteDelete, NotePurge:
		if p.Held {
			return fmt.Errorf("recovery point %v: %w", p.ID, ErrHeld)
		}
		if noteType == NoteDelete && p.Deleted {
			return nil
		}
		if end, locked := p.Locked(s, e.proven()); locked {
			return &LockedError{ID: p.ID, Until: end}
		}
		if noteType == NotePurge {
			return p.refusesPurge(s, e)
		}
	case NoteExpiry:
		if s.Immutability != Disabled && e.proven().Add(p.lag).Before(p.RetainUntil) && e.Until.Before(p.RetainUntil) {
			return &LockedError{ID: p.ID, Until: p.RetainUntil}
		}
	}
	return nil
}

// refusesPurge says that an immutable vault does not purge the point yet: a deletion has
// to run its whole soft-delete period first.
func (p *Point) refusesPurge(s Settings, e Event) error {
	switch {
	case s.Immutability == Disabled:
	case p.Deleted && p.softDeleted(e.proven()):
		return &LockedError{ID: p.ID, Until: p.DeletedUntil}
	case !p.Deleted && s.SoftDelete > 0:
		return &LockedError{ID: p.ID, Until: e.At.Add(s.SoftDelete)}
	}
	return nil
}

// softDeleted says that the point is deleted and its soft-delete period, by proven time,
// is not over.
func (p *Point) softDeleted(proven time.Time) bool {
	return p.Deleted && proven.Add(p.deletedLag).Before(p.DeletedUntil)
}

// has says that the event would change nothing.
func (p *Point) has(noteType uint16, e Event) bool {
	switch noteType {
	case NoteDelete:
		return p.Deleted
	case NoteUndelete:
		return !p.Deleted
	case NoteHold, NoteRelease:
		return p.Held == (noteType == NoteHold)
	case NoteExpiry:
		return p.RetainUntil.Equal(e.Until)
	case NoteLock:
		return !e.Until.After(p.LockedUntil)
	}
	return false
}

// commit makes notes durable and then applies them. publishing is held.
func (x *Index) commit(ctx context.Context, notes ...dedupe.Note) error {
	b, err := x.store.Begin(ctx)
	if err != nil {
		return err
	}
	if _, err := b.Commit(ctx, dedupe.Publication{Notes: notes}); err != nil {
		return errors.Join(err, b.Abort())
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, n := range notes {
		x.replay(n)
	}
	return nil
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
