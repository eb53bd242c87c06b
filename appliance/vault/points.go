package vault

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/keelblock/keelblock/appliance"
	"github.com/keelblock/keelblock/appliance/clock"
	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/recoverypoint"
)

// Find resolves a selector to a point, in whichever vault, and what stands behind it, a
// disk or path. A machine with points in several vaults has as its latest the one that
// was cut last.
func (s *Set) Find(ctx context.Context, selector string) (*Handle, *recoverypoint.Point, string, error) {
	handles, err := s.Each(ctx)
	if err != nil {
		return nil, nil, "", err
	}
	var in *Handle
	var found *recoverypoint.Point
	var rest string
	var failure error
	for _, h := range handles {
		p, behind, err := h.Points.Resolve(selector)
		switch {
		case err != nil:
			if failure == nil || errors.Is(failure, recoverypoint.ErrNotFound) {
				failure = err
			}
		case found == nil || p.ID == found.ID:
			in, found, rest = h, p, behind
		case !strings.Contains(selector, "@"):
			return nil, nil, "", pointError(fmt.Errorf("%s is in vault %q and %s in vault %q: %w", found.ID, in.Vault.Name(), p.ID, h.Vault.Name(), recoverypoint.ErrAmbiguous))
		case p.Manifest.FrozenAt.After(found.Manifest.FrozenAt):
			in, found, rest = h, p, behind
		}
	}
	if errors.Is(failure, recoverypoint.ErrAmbiguous) || errors.Is(failure, recoverypoint.ErrBadSelector) || found == nil {
		return nil, nil, "", pointError(failure)
	}
	return in, found, rest, nil
}

// findAnyhow is Find, also of a point that cannot be read, named by its id: of such a one
// only the id is known. It can be given up, and nothing else.
func (s *Set) findAnyhow(ctx context.Context, selector string) (*Handle, *recoverypoint.Point, string, error) {
	h, p, rest, err := s.Find(ctx, selector)
	var unreadable *recoverypoint.UnreadableError
	if !errors.As(err, &unreadable) {
		return h, p, rest, err
	}
	for _, h := range s.Handles() {
		if slices.ContainsFunc(h.Points.Problems(), func(b recoverypoint.Problem) bool { return b.ID == unreadable.ID }) {
			return h, &recoverypoint.Point{ID: unreadable.ID, Manifest: &recoverypoint.Manifest{}}, "", nil
		}
	}
	return nil, nil, "", err
}

// pointError gives an error of a selector its class and next step.
func pointError(err error) error {
	e := &appliance.Error{Op: "find recovery point", Err: err}
	var unreadable *recoverypoint.UnreadableError
	switch {
	case errors.Is(err, recoverypoint.ErrNotFound):
		e.Kind, e.Hint = appliance.ErrNotFound, "see keelblock recovery-point list"
	case errors.Is(err, recoverypoint.ErrAmbiguous):
		e.Kind, e.Hint = appliance.ErrInvalid, "give more of the id, or of the time"
	case errors.Is(err, recoverypoint.ErrBadSelector):
		e.Kind, e.Hint = appliance.ErrInvalid, "see keelblock help points"
	case errors.As(err, &unreadable):
		e.Hint = unreadableHint(unreadable.ID, errors.Is(err, dedupe.ErrUnknownFormat))
	}
	if e.Kind != nil {
		e.Text, e.Err = explanation(err), nil
	}
	return e
}

// explanation is the text of a selector's error without the class at its end, where the
// text says as much by itself.
func explanation(err error) string {
	text := err.Error()
	for _, class := range []error{recoverypoint.ErrNotFound, recoverypoint.ErrAmbiguous, recoverypoint.ErrBadSelector} {
		if short, ok := strings.CutSuffix(text, ": "+class.Error()); ok && strings.Contains(short, " ") {
			return short
		}
	}
	return text
}

// FindDisk resolves a selector and the disk of the point: the one given, else the
// one behind the selector, else the only one.
func (s *Set) FindDisk(ctx context.Context, selector, disk string) (*Handle, *recoverypoint.Point, *recoverypoint.Disk, error) {
	h, p, rest, err := s.Find(ctx, selector)
	if err != nil {
		return nil, nil, nil, err
	}
	op := fmt.Sprintf("find disk of recovery point %s", p.ID)
	if disk == "" {
		disk = rest
	}
	if disk != "" {
		if d := p.Manifest.Disk(disk); d != nil {
			return h, p, d, nil
		}
		return nil, nil, nil, &appliance.Error{Op: op, Kind: appliance.ErrNotFound,
			Text: fmt.Sprintf("it has no disk %q", disk), Hint: "it has " + diskNames(p.Manifest)}
	}
	switch len(p.Manifest.Disks) {
	case 0:
		return nil, nil, nil, &appliance.Error{Op: op, Kind: appliance.ErrNotFound, Text: "it has no disks"}
	case 1:
		return h, p, &p.Manifest.Disks[0], nil
	}
	return nil, nil, nil, &appliance.Error{Op: op, Kind: appliance.ErrInvalid, Text: "it has several disks",
		Hint: "add :DISK, one of " + diskNames(p.Manifest)}
}

func diskNames(m *recoverypoint.Manifest) string {
	var names []string
	for _, d := range m.Disks {
		names = append(names, d.Name)
	}
	return strings.Join(names, ", ")
}

// pins are the points in use, in whichever vault they are.
type pins struct {
	mu      sync.Mutex
	users   map[dedupe.Digest]map[string]int // point → who → how often
	purging map[dedupe.Digest]chan struct{}  // points about which a purge is being noted; closed when that has ended
}

func newPins() *pins {
	return &pins{users: map[dedupe.Digest]map[string]int{}, purging: map[dedupe.Digest]chan struct{}{}}
}

// Pin keeps a point from being purged until release is called. who is what the
// refusal says: "export web-copy". ErrNotFound when the point was purged since its caller
// looked it up; a purge under way is waited for.
func (s *Set) Pin(id dedupe.Digest, who string) (release func(), err error) {
	release, purging := s.pins.pin(id, who)
	for purging != nil {
		<-purging
		release, purging = s.pins.pin(id, who)
	}
	// A purge that was before has taken effect, one that begins later sees the pin.
	if _, there := s.Holder(id); there != nil {
		return release, nil
	}
	release()
	return nil, &appliance.Error{Op: who, Kind: appliance.ErrNotFound, Text: fmt.Sprintf("recovery point %s was purged", id),
		Hint: "see keelblock recovery-point list"}
}

// Keep is Pin of a point whose vault may not be open yet, and which may be gone.
func (s *Set) Keep(id dedupe.Digest, who string) (release func()) {
	s.pins.mu.Lock()
	defer s.pins.mu.Unlock()
	return s.pins.addLocked(id, who)
}

// pin pins a point, or returns the end of the purge that is being noted about it.
func (p *pins) pin(id dedupe.Digest, who string) (release func(), purging <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if end := p.purging[id]; end != nil {
		return nil, end
	}
	return p.addLocked(id, who), nil
}

func (p *pins) addLocked(id dedupe.Digest, who string) (release func()) {
	if p.users[id] == nil {
		p.users[id] = map[string]int{}
	}
	p.users[id][who]++
	return sync.OnceFunc(func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.users[id][who]--; p.users[id][who] == 0 {
			delete(p.users[id], who)
		}
		if len(p.users[id]) == 0 {
			delete(p.users, id)
		}
	})
}

// pinnedBy lists who uses a point now.
func (p *pins) pinnedBy(id dedupe.Digest) []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.usersLocked(id)
}

func (p *pins) usersLocked(id dedupe.Digest) (who []string) {
	for w := range p.users[id] {
		who = append(who, w)
	}
	slices.Sort(who)
	return who
}

// purge calls note with those of ids that nobody uses. Until it returns nobody can pin
// them, so that none is in use when its purge takes effect. used says who uses the others.
func (p *pins) purge(ids []dedupe.Digest, note func(free []dedupe.Digest) error) (used map[dedupe.Digest][]string, err error) {
	used = make(map[dedupe.Digest][]string)
	var free []dedupe.Digest
	end := make(chan struct{})
	p.mu.Lock()
	for _, id := range ids {
		switch {
		case len(p.users[id]) > 0:
			used[id] = p.usersLocked(id)
		case p.purging[id] != nil:
			used[id] = []string{"another purge"}
		default:
			p.purging[id] = end
			free = append(free, id)
		}
	}
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		for _, id := range free {
			delete(p.purging, id)
		}
		close(end)
	}()
	if len(free) == 0 {
		return used, nil
	}
	return used, note(free)
}

// Purge takes points of a vault out of every list, for good, except those that are in
// use; used says by whom. done are the points that were purged. Points that refuse are
// left out, and their errors, as of recoverypoint.Index.NoteAll, are part of the error.
func (s *Set) Purge(ctx context.Context, h *Handle, ids []dedupe.Digest, e recoverypoint.Event) (done []*recoverypoint.Point, used map[dedupe.Digest][]string, err error) {
	used, err = s.pins.purge(ids, func(free []dedupe.Digest) (err error) {
		done, err = h.Points.NoteAll(ctx, free, recoverypoint.NotePurge, e)
		return err
	})
	return done, used, err
}

// Pinned lists the points in use now, of this vault and of the others of its Set.
func (v *Vault) Pinned() []dedupe.Digest {
	v.pins.mu.Lock()
	defer v.pins.mu.Unlock()
	list := make([]dedupe.Digest, 0, len(v.pins.users))
	for id := range v.pins.users {
		list = append(list, id)
	}
	return list
}

// PinnedBy lists who uses a point now.
func (s *Set) PinnedBy(id dedupe.Digest) []string { return s.pins.pinnedBy(id) }

// Delete deletes a point: softly, so that Undelete brings it back within the vault's
// soft-delete period, or for good with purge. A point in use is not purged. ErrRefused
// for a point that is held, or that the vault's immutability protects.
func (s *Set) Delete(ctx context.Context, selector string, purge bool, actor string, now clock.Time) (*recoverypoint.Point, error) {
	h, p, rest, err := s.findAnyhow(ctx, selector)
	if err != nil {
		return nil, err
	}
	op := fmt.Sprintf("delete recovery point %s", p.ID)
	if rest != "" {
		return nil, &appliance.Error{Op: op, Kind: appliance.ErrInvalid, Text: fmt.Sprintf("a point is deleted as a whole, not %q of it", rest)}
	}
	if !purge {
		return note(ctx, h, op, p.ID, recoverypoint.NoteDelete, event(now, actor, ""))
	}
	used, err := s.pins.purge([]dedupe.Digest{p.ID}, func([]dedupe.Digest) (err error) {
		p, err = note(ctx, h, op, p.ID, recoverypoint.NotePurge, event(now, actor, ""))
		return err
	})
	if err != nil {
		return nil, err
	}
	if who := used[p.ID]; len(who) > 0 {
		return nil, &appliance.Error{Op: op, Kind: appliance.ErrInUse, Text: "it is used by " + strings.Join(who, ", "),
			Hint: "end that first, or delete it without --purge"}
	}
	return p, nil
}

func event(now clock.Time, actor, text string) recoverypoint.Event {
	return recoverypoint.Event{At: now.At, Proven: now.Proven, Actor: actor, Text: text}
}

// Undelete brings a soft-deleted point back.
func (s *Set) Undelete(ctx context.Context, selector, actor string, now clock.Time) (*recoverypoint.Point, error) {
	return s.state(ctx, "undelete", selector, recoverypoint.NoteUndelete, event(now, actor, ""))
}

// Hold keeps a point from being deleted, expired and purged until Release. text says why.
func (s *Set) Hold(ctx context.Context, selector, actor, text string, now clock.Time) (*recoverypoint.Point, error) {
	return s.state(ctx, "hold", selector, recoverypoint.NoteHold, event(now, actor, text))
}

// Release ends a Hold.
func (s *Set) Release(ctx context.Context, selector, actor, text string, now clock.Time) (*recoverypoint.Point, error) {
	return s.state(ctx, "release", selector, recoverypoint.NoteRelease, event(now, actor, text))
}

// maxText bounds what an operator says about a hold, in bytes.
const maxText = 4096

// state notes an event of a whole point.
func (s *Set) state(ctx context.Context, verb, selector string, kind uint16, e recoverypoint.Event) (*recoverypoint.Point, error) {
	find := s.Find
	if kind != recoverypoint.NoteHold {
		find = s.findAnyhow
	}
	h, p, rest, err := find(ctx, selector)
	if err != nil {
		return nil, err
	}
	op := fmt.Sprintf("%s recovery point %s", verb, p.ID)
	switch {
	case rest != "":
		return nil, &appliance.Error{Op: op, Kind: appliance.ErrInvalid, Text: fmt.Sprintf("that is done to a point as a whole, not to %q of it", rest)}
	case len(e.Text) > maxText:
		return nil, &appliance.Error{Op: op, Kind: appliance.ErrInvalid, Text: fmt.Sprintf("a text of %d bytes; at most %d", len(e.Text), maxText)}
	}
	return note(ctx, h, op, p.ID, kind, e)
}

// locked is the refusal of an immutable vault, with what can be done.
func locked(op string, h *Handle, err error) error {
	mode := h.Points.Settings().Immutability
	e := &appliance.Error{Op: op, Kind: appliance.ErrRefused, Text: fmt.Sprintf("vault %s is immutable (%s)", h.Vault.Name(), mode),
		Hint: "nobody can before; see keelblock help retention"}
	var until *recoverypoint.LockedError
	if errors.As(err, &until) {
		e.Text = fmt.Sprintf("vault %s is immutable (%s) and keeps it until %s", h.Vault.Name(), mode, until.Until.UTC().Format("2006-01-02T15:04:05Z"))
	}
	if mode == recoverypoint.Unlocked {
		e.Hint = fmt.Sprintf("keelblock vault edit %s --immutability disabled, if you may", h.Vault.Name())
	}
	return e
}

func note(ctx context.Context, h *Handle, op string, id dedupe.Digest, kind uint16, e recoverypoint.Event) (*recoverypoint.Point, error) {
	p, err := h.Points.Note(ctx, id, kind, e)
	switch {
	case err == nil:
		return p, nil
	case errors.Is(err, recoverypoint.ErrHeld):
		return nil, &appliance.Error{Op: op, Kind: appliance.ErrRefused, Text: "it is under a hold",
			Hint: "keelblock recovery-point release " + id.String() + ", if you may"}
	case errors.Is(err, recoverypoint.ErrLocked):
		return nil, locked(op, h, err)
	case errors.Is(err, recoverypoint.ErrNotFound):
		return nil, appliance.NotFound(op, "recovery-point", id.String())
	case errors.Is(err, dedupe.ErrNoSpace):
		return nil, &appliance.Error{Op: op, Kind: appliance.ErrNoSpace, Err: err,
			Hint: "free a few MiB on the file system of " + h.Dir + " and try again: deleting needs a little room, too"}
	}
	return nil, fmt.Errorf("%s: %w", op, err)
}
