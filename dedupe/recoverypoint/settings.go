package recoverypoint

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/keelblock/keelblock/dedupe"
)

// Immutability of a vault.
type Immutability string

// The modes. Unlocked and Locked refuse the same: that a point is deleted before its
// time, purged before its soft-delete period is over, or that these times get shorter.
// Unlocked can be taken back. Locked cannot, by anybody, while any point's time lasts.
const (
	Disabled Immutability = "disabled"
	Unlocked Immutability = "unlocked"
	Locked   Immutability = "locked"
)

var immutabilities = [...]Immutability{1: Disabled, 2: Unlocked, 3: Locked}

func (m Immutability) code() byte { return byte(max(slices.Index(immutabilities[1:], m)+1, 0)) }

// Limits and defaults of Settings.
const (
	DefaultSoftDelete = 14 * 24 * time.Hour
	// DefaultMinimumRetention of a vault that becomes immutable without one being named,
	// or whose notes are damaged.
	DefaultMinimumRetention = 30 * 24 * time.Hour
	// MaxPeriod bounds every period.
	MaxPeriod = 100 * 365 * 24 * time.Hour
)

// Settings of a vault, kept as a note so that they survive a rebuild of the index.
// Periods are whole seconds.
type Settings struct {
	// SoftDelete is how long a deleted point can be undeleted. 0: not at all.
	SoftDelete   time.Duration
	Immutability Immutability
	// MinimumRetention is how long after it was made a point of an immutable vault can
	// be neither deleted nor expire.
	MinimumRetention time.Duration

	// Who changed them, when and why; zero for the defaults.
	At    time.Time
	Actor string
	Text  string
}

// DefaultSettings are those of a vault that was never edited.
func DefaultSettings() Settings {
	return Settings{SoftDelete: DefaultSoftDelete, Immutability: Disabled}
}

// inDoubt are the settings that count while a note cannot be read: it may have been the
// one that made the vault immutable.
func (s Settings) inDoubt() Settings {
	if s.Immutability == Disabled {
		s.Immutability = Unlocked
	}
	s.MinimumRetention = max(s.MinimumRetention, DefaultMinimumRetention)
	return s
}

// ErrLocked: immutability forbids it.
var ErrLocked = errors.New("refused by the vault's immutability")

// LockedError says until when immutability forbids to delete, expire or purge a point.
type LockedError struct {
	ID    dedupe.Digest
	Until time.Time
}

// Error names the point and the time.
func (e *LockedError) Error() string {
	return fmt.Sprintf("recovery point %v: %v until %s", e.ID, ErrLocked, e.Until.UTC().Format(time.RFC3339))
}

// Unwrap is ErrLocked.
func (e *LockedError) Unwrap() error { return ErrLocked }

// LockEnd is the time before which a vault with these settings neither deletes nor
// expires the point; zero when it is not immutable. It is the latest of: the promise
// made when the point was made; the minimum retention after that, or after the freeze of
// a point that was made before the vault was immutable; and the point's own RetainUntil.
func (p *Point) LockEnd(s Settings) time.Time {
	if s.Immutability == Disabled {
		return time.Time{}
	}
	made := p.LockedAt
	if made.IsZero() {
		made = p.Manifest.FrozenAt
	}
	return later(later(p.LockedUntil, p.RetainUntil), made.Add(s.MinimumRetention))
}

// Locked says that a vault with these settings neither deletes nor expires the point at
// this proven time, and until when, by the time that was stated when it was made.
func (p *Point) Locked(s Settings, proven time.Time) (until time.Time, locked bool) {
	until = p.LockEnd(s)
	return until, proven.Add(p.lag).Before(until)
}

// Purgeable says that the point is deleted and its soft-delete period over, by trusted
// time and, in an immutable vault, by proven time too.
func (p *Point) Purgeable(s Settings, at, proven time.Time) bool {
	return p.Deleted && !p.DeletedUntil.IsZero() && !at.Before(p.DeletedUntil) &&
		(s.Immutability == Disabled || !p.softDeleted(proven))
}

// Terms are what is stated about points when they are published.
type Terms struct {
	// At is the trusted time; it is required when the other is given, or when the
	// vault is immutable: zero takes the freeze time of each point.
	At time.Time
	// Proven: see Event.
	Proven time.Time
	// Retain keeps the points for this long, whatever the rules say. 0: the rules decide.
	Retain time.Duration
	Actor  string
}

// notes are what the terms state about p in a vault with settings s. They are applied
// to p, which nobody else knows yet.
func (t Terms) notes(p *Point, s Settings) ([]dedupe.Note, error) {
	e := Event{At: t.At, Proven: t.Proven, Actor: t.Actor}
	if e.At.IsZero() {
		e.At = p.Manifest.FrozenAt
	}
	var out []dedupe.Note
	state := func(noteType uint16, until time.Time) error {
		e.Until = until
		body, err := EncodeEvent(noteType, e)
		if err != nil {
			return err
		}
		n := dedupe.Note{Type: noteType, Subject: p.ID, Body: body}
		out = append(out, n)
		return p.apply(n)
	}
	if t.Retain < 0 || t.Retain > MaxPeriod {
		return nil, invalid("retention of %v", t.Retain)
	}
	if t.Retain > 0 {
		if err := state(NoteExpiry, e.At.Add(t.Retain)); err != nil {
			return nil, err
		}
	}
	if keep := max(t.Retain, s.MinimumRetention); s.Immutability != Disabled && keep > 0 {
		if err := state(NoteLock, e.At.Add(keep)); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// Settings of the vault, as they count.
func (x *Index) Settings() Settings {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.settings
}

// StatedAt is the newest time that a note about a deletion, hold, lock, expiry or the
// settings states; zero when there is none. Trusted time has surely reached it.
func (x *Index) StatedAt() time.Time {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.statedAt
}

// SetSettings makes new settings durable and then applies them. proven is the time that
// locks are compared with. ErrInvalid; ErrLocked when they take back what an immutable
// vault promised.
func (x *Index) SetSettings(ctx context.Context, s Settings, proven time.Time) error {
	x.publishing.Lock()
	defer x.publishing.Unlock()
	if err := x.checkSettings(s, proven); err != nil {
		return fmt.Errorf("change the vault's settings: %w", err)
	}
	body, err := EncodeSettings(s)
	if err != nil {
		return fmt.Errorf("change the vault's settings: %w", err)
	}
	if err := x.commit(ctx, dedupe.Note{Type: NoteSettings, Body: body}); err != nil {
		return fmt.Errorf("change the vault's settings: write note: %w", err)
	}
	return nil
}

func (x *Index) checkSettings(s Settings, proven time.Time) error {
	old := x.Settings()
	if old.Immutability == Disabled {
		return nil
	}
	if s.Immutability == Disabled || s.Immutability == Unlocked && old.Immutability == Locked {
		if old.Immutability == Unlocked {
			return nil
		}
		return x.checkTakeBack(old, proven)
	}
	switch {
	case s.SoftDelete < old.SoftDelete:
		return fmt.Errorf("a soft-delete period of %v is shorter than %v: %w", s.SoftDelete, old.SoftDelete, ErrLocked)
	case s.MinimumRetention < old.MinimumRetention:
		return fmt.Errorf("a minimum retention of %v is shorter than %v: %w", s.MinimumRetention, old.MinimumRetention, ErrLocked)
	}
	return nil
}

// checkTakeBack lets Locked go only when there is nothing left that it protects.
func (x *Index) checkTakeBack(s Settings, proven time.Time) error {
	count, end := 0, time.Time{}
	for _, p := range x.List("", true) {
		until, locked := p.Locked(s, proven)
		if p.softDeleted(proven) {
			locked, until = true, later(until, p.DeletedUntil)
		}
		if locked {
			count, end = count+1, later(end, until)
		}
	}
	if count > 0 {
		return fmt.Errorf("%d recovery points are locked, the last until %s: %w", count, end.UTC().Format(time.RFC3339), ErrLocked)
	}
	if problems := x.Problems(); len(problems) > 0 {
		return fmt.Errorf("what is locked is not known, as something in the vault cannot be read (%w): %w", problems[0].Err, ErrLocked)
	}
	return nil
}

// replaySettings applies a settings note; the caller holds mu or is alone.
func (x *Index) replaySettings(n dedupe.Note) {
	s, err := DecodeSettings(n.Body)
	if err != nil {
		x.problems = append(x.problems, Problem{Err: fmt.Errorf("the vault's settings, note %d: %w", n.Sequence, err)})
		x.settings = x.settings.inDoubt()
		return
	}
	x.settings, x.statedAt = s, later(x.statedAt, s.At)
}

// EncodeSettings is the body of a NoteSettings.
func EncodeSettings(s Settings) ([]byte, error) {
	for _, d := range []time.Duration{s.SoftDelete, s.MinimumRetention} {
		if d < 0 || d > MaxPeriod || d%time.Second != 0 {
			return nil, invalid("period of %v", d)
		}
	}
	if s.Immutability.code() == 0 {
		return nil, invalid("immutability %q", s.Immutability)
	}
	if s.At.Unix() <= 0 || s.At.Year() > 2261 || len(s.Actor) > MaxNameBytes {
		return nil, invalid("settings at %v by %q", s.At, s.Actor)
	}
	if err := errors.Join(checkText("settings' actor", s.Actor), checkText("settings' text", s.Text)); err != nil {
		return nil, err
	}
	w := newNote(NoteSettings)
	w.u64(uint64(s.At.UnixNano()))
	w.u64(uint64(s.SoftDelete / time.Second))
	w.u64(uint64(s.MinimumRetention / time.Second))
	w.raw([]byte{s.Immutability.code()})
	w.zeros(31)
	w.text(s.Actor)
	w.text(s.Text)
	return w.seal(), nil
}

// DecodeSettings is the inverse of EncodeSettings.
func DecodeSettings(body []byte) (Settings, error) {
	r, err := openNote(NoteSettings, body)
	if err != nil {
		return Settings{}, err
	}
	s := Settings{At: time.Unix(0, int64(r.u64())).UTC(), SoftDelete: r.seconds(), MinimumRetention: r.seconds()}
	if c := r.u8(); int(c) < len(immutabilities) {
		s.Immutability = immutabilities[c]
	}
	r.skip(31)
	s.Actor, s.Text = r.text(), r.text()
	return s, r.close(body, func() ([]byte, error) { return EncodeSettings(s) })
}

// seconds is a period; one that is too long is negative, which no encoder accepts.
func (r *reader) seconds() time.Duration {
	n := r.u64()
	if n > uint64(MaxPeriod/time.Second) {
		return -1
	}
	return time.Duration(n) * time.Second
}
