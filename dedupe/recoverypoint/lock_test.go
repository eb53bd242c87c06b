package recoverypoint_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/dedupetest"
	"github.com/keelblock/keelblock/dedupe/recoverypoint"
)

const days = 24 * time.Hour

// vaultLab is a store with its index.
type vaultLab struct {
	t *testing.T
	s dedupe.Store
	x *recoverypoint.Index
}

func newVaultLab(t *testing.T) *vaultLab {
	t.Helper()
	s := dedupetest.NewMemory(64 << 10)
	return &vaultLab{t: t, s: s, x: openIndex(t, s)}
}

func (l *vaultLab) publish(seq uint64, at time.Time, retain time.Duration) dedupe.Digest {
	l.t.Helper()
	ps, err := l.x.PublishOnTerms(l.t.Context(), batchOf(l.t, l.s), []*recoverypoint.Manifest{point("web", 1, seq, at, recoverypoint.Crash)}, nil,
		recoverypoint.Terms{At: at, Retain: retain, Actor: "uid 0"}, nil)
	if err != nil {
		l.t.Fatal(err)
	}
	return ps[0].ID
}

func (l *vaultLab) set(s recoverypoint.Settings, at time.Time) error {
	s.At = at
	return l.x.SetSettings(l.t.Context(), s, at)
}

func (l *vaultLab) mustSet(s recoverypoint.Settings, at time.Time) {
	l.t.Helper()
	if err := l.set(s, at); err != nil {
		l.t.Fatal(err)
	}
}

func (l *vaultLab) note(id dedupe.Digest, noteType uint16, e recoverypoint.Event) error {
	_, err := l.x.Note(l.t.Context(), id, noteType, e)
	return err
}

// reopen reads everything again, as after a restart or a rebuild.
func (l *vaultLab) reopen() { l.t.Helper(); l.x = openIndex(l.t, l.s) }

func (l *vaultLab) refused(what string, err error, until time.Time) {
	l.t.Helper()
	var locked *recoverypoint.LockedError
	switch {
	case !errors.Is(err, recoverypoint.ErrLocked):
		l.t.Errorf("%s: %v, want ErrLocked", what, err)
	case !until.IsZero() && (!errors.As(err, &locked) || !locked.Until.Equal(until)):
		l.t.Errorf("%s: %v, want until %v", what, err, until)
	}
}

func TestLockedPointSurvivesEverything(t *testing.T) {
	l := newVaultLab(t)
	locked := recoverypoint.Settings{SoftDelete: 14 * days, Immutability: recoverypoint.Locked, MinimumRetention: 30 * days}
	before := l.publish(1, day, 0) // made before the vault was immutable
	l.mustSet(locked, day.Add(days))
	id := l.publish(2, day.Add(days), 0)
	long := l.publish(3, day.Add(2*days), 90*days)
	for range 2 { // as it is, and read again
		at := day.Add(29 * days)
		l.refused("delete before", l.note(before, recoverypoint.NoteDelete, recoverypoint.Event{At: at}), day.Add(30*days))
		l.refused("delete", l.note(id, recoverypoint.NoteDelete, recoverypoint.Event{At: at}), day.Add(31*days))
		l.refused("delete long", l.note(long, recoverypoint.NoteDelete, recoverypoint.Event{At: at}), day.Add(92*days))
		l.refused("purge", l.note(id, recoverypoint.NotePurge, recoverypoint.Event{At: at}), time.Time{})
		l.refused("shorter retention", l.note(long, recoverypoint.NoteExpiry, recoverypoint.Event{At: at, Until: at.Add(days)}), day.Add(92*days))
		l.refused("no retention", l.note(long, recoverypoint.NoteExpiry, recoverypoint.Event{At: at}), day.Add(92*days))
		// The wall clock is ten years on, the trusted one is not.
		l.refused("clock forward", l.note(id, recoverypoint.NoteDelete, recoverypoint.Event{At: at.AddDate(10, 0, 0), Proven: at}), day.Add(31*days))
		for what, s := range map[string]recoverypoint.Settings{
			"disable":             {SoftDelete: 14 * days, Immutability: recoverypoint.Disabled, MinimumRetention: 30 * days},
			"unlock":              {SoftDelete: 14 * days, Immutability: recoverypoint.Unlocked, MinimumRetention: 30 * days},
			"shorter minimum":     {SoftDelete: 14 * days, Immutability: recoverypoint.Locked, MinimumRetention: 29 * days},
			"shorter soft delete": {SoftDelete: 0, Immutability: recoverypoint.Locked, MinimumRetention: 30 * days},
		} {
			l.refused(what, l.set(s, at), time.Time{})
		}
		if s := l.x.Settings(); s.Immutability != recoverypoint.Locked || s.MinimumRetention != 30*days {
			t.Fatalf("settings %+v", s)
		}
		l.reopen()
	}
	// Its time is over: it can be deleted, and is purged after the soft-delete period only.
	at := day.Add(31 * days)
	if err := l.note(id, recoverypoint.NoteDelete, recoverypoint.Event{At: at}); err != nil {
		t.Fatal(err)
	}
	l.refused("early purge", l.note(id, recoverypoint.NotePurge, recoverypoint.Event{At: at.Add(13 * days)}), at.Add(14*days))
	if err := l.note(id, recoverypoint.NotePurge, recoverypoint.Event{At: at.Add(14 * days)}); err != nil {
		t.Fatal(err)
	}
	// Longer is always allowed, shorter never; and the mode goes when all times are over.
	locked.MinimumRetention = 40 * days
	l.mustSet(locked, at)
	disabled := recoverypoint.DefaultSettings()
	l.refused("disable while long is locked", l.set(disabled, day.Add(91*days)), time.Time{})
	l.mustSet(disabled, day.Add(92*days))
	if err := l.note(long, recoverypoint.NotePurge, recoverypoint.Event{At: at}); err != nil {
		t.Errorf("purge in a vault that is not immutable: %v", err)
	}
}

// TestLocksGoByTheTimeThatPassed: a clock was accepted ten years ahead. What is made and
// deleted by it is locked for its time and not for ten years more.
func TestLocksGoByTheTimeThatPassed(t *testing.T) {
	l := newVaultLab(t)
	const ahead = 3652 * days
	l.mustSet(recoverypoint.Settings{SoftDelete: 14 * days, Immutability: recoverypoint.Locked, MinimumRetention: 30 * days}, day)
	at := func(passed time.Duration) recoverypoint.Event {
		return recoverypoint.Event{At: day.Add(passed + ahead), Proven: day.Add(passed)}
	}
	ps, err := l.x.PublishOnTerms(t.Context(), batchOf(t, l.s), []*recoverypoint.Manifest{point("web", 1, 1, day.Add(ahead), recoverypoint.Crash)}, nil,
		recoverypoint.Terms{At: day.Add(ahead), Proven: day}, nil)
	if err != nil {
		t.Fatal(err)
	}
	id := ps[0].ID
	l.reopen()
	l.refused("delete", l.note(id, recoverypoint.NoteDelete, at(29*days)), day.Add(30*days+ahead))
	if err := l.note(id, recoverypoint.NoteDelete, at(30*days)); err != nil {
		t.Fatal(err)
	}
	l.reopen()
	if p := l.x.Get(id); p.Purgeable(l.x.Settings(), day.Add(44*days+ahead), day.Add(43*days)) || !p.Purgeable(l.x.Settings(), day.Add(44*days+ahead), day.Add(44*days)) {
		t.Error("its soft-delete period is not that of proven time")
	}
	l.refused("purge", l.note(id, recoverypoint.NotePurge, at(43*days)), time.Time{})
	if err := l.note(id, recoverypoint.NotePurge, at(44*days)); err != nil {
		t.Fatal(err)
	}
}

func TestUnlockedCanBeTakenBack(t *testing.T) {
	l := newVaultLab(t)
	s := recoverypoint.Settings{SoftDelete: 14 * days, Immutability: recoverypoint.Unlocked, MinimumRetention: 30 * days}
	l.mustSet(s, day)
	id := l.publish(1, day, 0)
	l.refused("delete", l.note(id, recoverypoint.NoteDelete, recoverypoint.Event{At: day}), day.Add(30*days))
	shorter := s
	shorter.MinimumRetention = 0
	l.refused("shorter", l.set(shorter, day), time.Time{})
	l.mustSet(recoverypoint.DefaultSettings(), day)
	l.reopen()
	if err := l.note(id, recoverypoint.NotePurge, recoverypoint.Event{At: day}); err != nil {
		t.Error(err)
	}
}

func TestSoftDeletePeriodIsThatOfTheDeletion(t *testing.T) {
	l := newVaultLab(t)
	a, b := l.publish(1, day, 0), l.publish(2, day, 0)
	if err := l.note(a, recoverypoint.NoteDelete, recoverypoint.Event{At: day}); err != nil {
		t.Fatal(err)
	}
	l.mustSet(recoverypoint.Settings{SoftDelete: 3 * days, Immutability: recoverypoint.Disabled}, day)
	if err := l.note(b, recoverypoint.NoteDelete, recoverypoint.Event{At: day}); err != nil {
		t.Fatal(err)
	}
	l.reopen()
	if ua, ub := l.x.Get(a).DeletedUntil, l.x.Get(b).DeletedUntil; !ua.Equal(day.Add(14*days)) || !ub.Equal(day.Add(3*days)) {
		t.Errorf("until %v and %v", ua, ub)
	}
}

func TestRetainUntilIsANote(t *testing.T) {
	l := newVaultLab(t)
	id := l.publish(1, day, 7*days)
	for range 2 {
		if p := l.x.Get(id); !p.RetainUntil.Equal(day.Add(7*days)) || !p.LockedUntil.IsZero() {
			t.Errorf("%+v", p)
		}
		if at := l.x.StatedAt(); !at.Equal(day) {
			t.Errorf("stated at %v", at)
		}
		l.reopen()
	}
	if err := l.note(id, recoverypoint.NoteExpiry, recoverypoint.Event{At: day.Add(days)}); err != nil { // the rules decide again
		t.Fatal(err)
	}
	l.reopen()
	if p := l.x.Get(id); !p.RetainUntil.IsZero() || !l.x.StatedAt().Equal(day.Add(days)) {
		t.Errorf("%+v", p)
	}
}

// A damaged note may have been a hold, a lock, or the settings: whichever it was, nothing
// gets easier to delete, and the mode does not fall silently.
func TestDamagedNewNotesMakeNothingEasier(t *testing.T) {
	for _, mode := range []recoverypoint.Immutability{recoverypoint.Unlocked, recoverypoint.Locked} {
		l := newVaultLab(t)
		l.mustSet(recoverypoint.Settings{SoftDelete: 14 * days, Immutability: mode, MinimumRetention: 10 * days}, day)
		id := l.publish(1, day, 20*days) // expiry and lock
		last := uint64(0)
		if err := l.s.Notes(t.Context(), func(n dedupe.Note) bool { last = n.Sequence; return true }); err != nil {
			t.Fatal(err)
		}
		if last != 3 {
			t.Fatalf("%d notes, want settings, expiry and lock", last)
		}
		for skip := uint64(1); skip <= last; skip++ {
			l.x = openIndex(t, damagedNotes{l.s, skip})
			if !l.x.Get(id).Held {
				t.Errorf("note %d: not held", skip)
			}
			if s := l.x.Settings(); s.Immutability == recoverypoint.Disabled || s.MinimumRetention < recoverypoint.DefaultMinimumRetention {
				t.Errorf("note %d: settings %+v", skip, s)
			}
			if err := l.note(id, recoverypoint.NoteDelete, recoverypoint.Event{At: day.Add(100 * days)}); !errors.Is(err, recoverypoint.ErrHeld) {
				t.Errorf("note %d: delete: %v", skip, err)
			}
			if _, err := l.x.Release(t.Context(), id, day); err != nil {
				t.Fatal(err)
			}
			l.refused("delete after release", l.note(id, recoverypoint.NoteDelete, recoverypoint.Event{At: day.Add(15 * days)}), time.Time{})
			if skip != 1 && mode == recoverypoint.Locked {
				l.refused("take back", l.set(recoverypoint.DefaultSettings(), day.Add(1000*days)), time.Time{})
			}
		}
	}
}

func TestUndecodableSettingsCountAsImmutable(t *testing.T) {
	l := newVaultLab(t)
	id := l.publish(1, day, 0)
	b := batchOf(t, l.s)
	if _, err := b.Commit(t.Context(), dedupe.Publication{Notes: []dedupe.Note{{Type: recoverypoint.NoteSettings, Body: []byte("KBNT of a later release")}}}); err != nil {
		t.Fatal(err)
	}
	l.reopen()
	if p := l.x.Problems(); len(p) != 1 || !strings.Contains(p[0].Err.Error(), "the vault's settings, note 1") {
		t.Errorf("problems %v", p)
	}
	l.refused("delete", l.note(id, recoverypoint.NoteDelete, recoverypoint.Event{At: day}), time.Time{})
}

func TestNoteAllLeavesOutWhatRefuses(t *testing.T) {
	l := newVaultLab(t)
	var ids []dedupe.Digest
	for i := range 5 {
		ids = append(ids, l.publish(uint64(i+1), day.Add(time.Duration(i)*time.Hour), 0))
	}
	if _, err := l.x.Hold(t.Context(), ids[2], day); err != nil {
		t.Fatal(err)
	}
	ids = append(ids, dedupe.Sum([]byte("nothing")))
	done, err := l.x.NoteAll(t.Context(), ids, recoverypoint.NoteDelete, recoverypoint.Event{At: day})
	if len(done) != 4 || !errors.Is(err, recoverypoint.ErrHeld) || !errors.Is(err, recoverypoint.ErrNotFound) {
		t.Fatalf("%d done, %v", len(done), err)
	}
	for _, p := range done {
		if !p.Deleted {
			t.Errorf("%v is not deleted", p.ID)
		}
	}
	l.reopen()
	if n := len(l.x.List("web", false)); n != 1 {
		t.Errorf("%d points left, want the held one", n)
	}
	if p, err := l.x.Purge(t.Context(), ids[3], day); err != nil || p == nil || p.ID != ids[3] {
		t.Errorf("purge: %+v, %v", p, err)
	}
	if done, err = l.x.NoteAll(t.Context(), ids[:2], recoverypoint.NotePurge, recoverypoint.Event{At: day}); err != nil || len(done) != 2 || !done[0].Deleted {
		t.Errorf("purge: %+v, %v", done, err)
	}
}

func TestBadTermsAndSettings(t *testing.T) {
	l := newVaultLab(t)
	_, err := l.x.PublishOnTerms(t.Context(), batchOf(t, l.s), []*recoverypoint.Manifest{point("web", 1, 1, day, recoverypoint.Crash)}, nil,
		recoverypoint.Terms{At: day, Retain: recoverypoint.MaxPeriod + 1}, nil)
	if !errors.Is(err, recoverypoint.ErrInvalid) {
		t.Errorf("too long: %v", err)
	}
	for _, s := range []recoverypoint.Settings{{}, {Immutability: "maybe"}, {Immutability: recoverypoint.Locked, SoftDelete: -1},
		{Immutability: recoverypoint.Locked, MinimumRetention: recoverypoint.MaxPeriod + time.Second}, {Immutability: recoverypoint.Locked, SoftDelete: time.Millisecond}} {
		if err := l.set(s, day); !errors.Is(err, recoverypoint.ErrInvalid) {
			t.Errorf("%+v: %v", s, err)
		}
	}
}
