package recoverypoint

import (
	"context"
	"errors"
	"fmt"
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

// Note makes an event of type NoteDelete .. NoteRelease durable and then applies it;
// the named methods are short forms of it. It returns the point as it is afterwards.
// What changes nothing writes nothing.
func (x *Index) Note(ctx context.Context, id dedupe.Digest, noteType uint16, e Event) (*Point, error) {
	x.publishing.Lock() // over the commit: notes take effect in the order of their sequence
	defer x.publishing.Unlock()
	p := x.Get(id)
	if p == nil {
		return nil, fmt.Errorf("recovery point %v: %w", id, ErrNotFound)
	}
	switch noteType {
	case NoteDelete, NotePurge:
		if p.Held {
			return nil, fmt.Errorf("recovery point %v: %w", id, ErrHeld)
		}
		if noteType == NoteDelete && p.Deleted {
			return p, nil
		}
	case NoteUndelete:
		if !p.Deleted {
			return p, nil
		}
	case NoteHold, NoteRelease:
		if p.Held == (noteType == NoteHold) {
			return p, nil
		}
	}
	body, err := EncodeEvent(noteType, e)
	if err != nil {
		return nil, fmt.Errorf("recovery point %v: %w", id, err)
	}
	n := dedupe.Note{Type: noteType, Subject: id, Body: body}
	b, err := x.store.Begin(ctx)
	if err != nil {
		return nil, fmt.Errorf("recovery point %v: write note: %w", id, err)
	}
	if _, err := b.Commit(ctx, dedupe.Publication{Notes: []dedupe.Note{n}}); err != nil {
		return nil, errors.Join(fmt.Errorf("recovery point %v: write note: %w", id, err), b.Abort())
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.replay(n)
	return x.points[id], nil
}
