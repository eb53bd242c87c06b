package recoverypoint_test

import (
	"context"
	"testing"

	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/dedupetest"
	"github.com/keelblock/keelblock/dedupe/recoverypoint"
)

// dyingStore dies in its next commit: before it is durable, or when it is and nobody has
// heard of it.
type dyingStore struct {
	dedupe.Store
	after bool
}

type dyingBatch struct {
	dedupe.Batch
	after bool
}

type death struct{}

// Begin is dedupe.Store.Begin.
func (s dyingStore) Begin(ctx context.Context) (dedupe.Batch, error) {
	b, err := s.Store.Begin(ctx)
	return dyingBatch{b, s.after}, err
}

// Commit is dedupe.Batch.Commit.
func (b dyingBatch) Commit(ctx context.Context, p dedupe.Publication) ([]dedupe.Digest, error) {
	if b.after {
		if _, err := b.Batch.Commit(ctx, p); err != nil {
			return nil, err
		}
	} else if err := b.Abort(); err != nil {
		return nil, err
	}
	panic(death{})
}

// TestKillBetweenNoteAndEffect: a note that was durable when the process died has its
// effect after the next start, one that was not has none, and doing it again completes it.
func TestKillBetweenNoteAndEffect(t *testing.T) {
	for _, noteType := range []uint16{recoverypoint.NoteDelete, recoverypoint.NotePurge, recoverypoint.NoteHold, recoverypoint.NoteExpiry, recoverypoint.NoteLock} {
		for _, after := range []bool{false, true} {
			s := dedupetest.NewMemory(64 << 10)
			id := publish(t, s, openIndex(t, s), point("web", 1, 1, day, recoverypoint.Crash))[0].ID
			e := recoverypoint.Event{At: day, Until: day.Add(days)}
			func() {
				defer func() {
					if p := recover(); p != (death{}) {
						t.Fatalf("note %d: %v", noteType, p)
					}
				}()
				_, err := openIndex(t, dyingStore{s, after}).Note(t.Context(), id, noteType, e)
				t.Fatalf("note %d: it lives on: %v", noteType, err)
			}()
			effective := func(x *recoverypoint.Index) bool {
				p := x.Get(id)
				return p == nil || p.Deleted || p.Held || !p.RetainUntil.IsZero() || !p.LockedUntil.IsZero()
			}
			x := openIndex(t, s)
			if effective(x) != after {
				t.Errorf("note %d, durable %v: effective %v", noteType, after, !after)
			}
			if noteType == recoverypoint.NotePurge && after {
				continue // it is gone
			}
			if _, err := x.Note(t.Context(), id, noteType, e); err != nil || !effective(x) || !effective(openIndex(t, s)) {
				t.Errorf("note %d, durable %v: again: %v", noteType, after, err)
			}
		}
	}
}
