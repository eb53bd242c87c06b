package recoverypoint

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/keelblock/keelblock/dedupe"
)

// Point is one recovery point and what its notes say. A Point that was handed out
// never changes: a note makes a new one.
type Point struct {
	ID         dedupe.Digest
	Manifest   *Manifest
	Accounting Accounting
	Signatures []Signature
	// Deleted: soft-deleted at DeletedAt; it may be swept after DeletedUntil and
	// can be undeleted before, as long as collection has not come by.
	Deleted      bool
	DeletedAt    time.Time
	DeletedUntil time.Time
	// Held: neither deleted nor purged until released.
	Held bool
	// RetainUntil of a point that was made for a time; zero: the rules decide.
	RetainUntil time.Time
	// LockedUntil is what an immutable vault promised when the point was made, at the
	// trusted time LockedAt; zero in both: none. LockEnd says what counts.
	LockedUntil time.Time
	LockedAt    time.Time

	// How far proven time was behind the time stated when it was made, and when it was
	// deleted.
	lag, deletedLag time.Duration

	purged   bool
	statedAt time.Time // of its newest event
}

// Problem is something in the store that the Index could not read.
type Problem struct {
	// ID of the point, zero when it is not known.
	ID  dedupe.Digest
	Err error
}

// Sentinel errors of Index.
var (
	// ErrNotFound: no point, or no point of this name, is listed.
	ErrNotFound = errors.New("no such recovery point")
	// ErrAmbiguous: more than one point answers to the selector.
	ErrAmbiguous = errors.New("more than one recovery point")
	// ErrBadSelector: the text is not a way to name a point.
	ErrBadSelector = errors.New("not a recovery point's name")
	// ErrHeld: the point is under a hold.
	ErrHeld = errors.New("recovery point is held")
)

// UnreadableError: the manifest of a point cannot be read.
type UnreadableError struct {
	ID  dedupe.Digest
	Err error
}

// Error names the point.
func (e *UnreadableError) Error() string { return fmt.Sprintf("recovery point %v: %v", e.ID, e.Err) }

// Unwrap is why.
func (e *UnreadableError) Unwrap() error { return e.Err }

// Index holds all points of a store in memory, a few KiB each. All methods may be
// called from any number of goroutines.
type Index struct {
	store   dedupe.Store
	entries int // censusEntries; tests have less

	publishing sync.Mutex // held over the commit of a note, so that notes take effect in order; before mu

	counting sync.Mutex              // held over a count of unique bytes, so that it is done once; before mu
	counted  *count                  // the count before; nil: none. Guarded by counting
	bounded  map[dedupe.Digest]bound // the upper bounds before, by the point's id. Guarded by counting

	mu       sync.RWMutex // guards what follows; not held over I/O
	points   map[dedupe.Digest]*Point
	broken   map[dedupe.Digest]*Point // whose manifests cannot be read: what their notes say
	ordered  []*Point                 // oldest first, purged ones included; nil when out of date
	problems []Problem
	unique   map[dedupe.Digest]Unique // of the points as they are; nil when out of date
	// collected: records may lie in other forms than when they were counted.
	collected bool
	settings  Settings
	statedAt  time.Time // the newest time that a note of ours states
}

// OpenIndex reads all manifests and notes of s. A manifest that cannot be read is no
// error: the other points must stay usable. It is listed by Problems, naming it is an
// UnreadableError, and by its id it can be deleted and purged. Nor is a note: it may have said anything, so points that were deleted may
// be back, and no point can be deleted. Without the key of an encrypted store all notes
// are such, and points have neutral names: the id of the machine, disk-1.
func OpenIndex(ctx context.Context, s dedupe.Store) (*Index, error) {
	x := &Index{store: s, entries: censusEntries, points: make(map[dedupe.Digest]*Point), broken: make(map[dedupe.Digest]*Point), settings: DefaultSettings()}
	names := &textLoader{store: s}
	err := s.Manifests(ctx, func(id dedupe.Digest) bool {
		p, err := loadPoint(ctx, s, id)
		if err != nil {
			x.broken[id] = &Point{ID: id, Manifest: &Manifest{}}
			x.problems = append(x.problems, Problem{ID: id, Err: err})
			return ctx.Err() == nil
		}
		x.points[id] = p
		if err := p.reveal(ctx, names); err != nil {
			x.problems = append(x.problems, Problem{ID: id, Err: err})
		}
		return ctx.Err() == nil
	})
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return nil, fmt.Errorf("list recovery points: %w", err)
	}
	err = s.Notes(ctx, func(n dedupe.Note) bool { x.replay(n); return true })
	if errors.Is(err, dedupe.ErrCorrupt) || errors.Is(err, dedupe.ErrNoKey) {
		x.problems = append(x.problems, Problem{Err: fmt.Errorf("recovery points are held, as a note is not readable: %w", err)})
		x.holdAll()
		x.settings = x.settings.inDoubt()
	} else if err != nil {
		return nil, fmt.Errorf("read notes of recovery points: %w", err)
	}
	return x, nil
}

// holdAll holds every point: a hold may be among the notes that are not readable.
func (x *Index) holdAll() {
	for _, m := range []map[dedupe.Digest]*Point{x.points, x.broken} {
		for id, old := range m {
			p := *old
			p.Held = true
			m[id] = &p
		}
	}
}

// reveal puts the names into a point's manifest. Without them the point is as good.
func (p *Point) reveal(ctx context.Context, names *textLoader) error {
	err := p.Manifest.reveal(func(c Content) (*texts, error) { return names.load(ctx, c) })
	if err == nil || errors.Is(err, dedupe.ErrNoKey) {
		return nil
	}
	return fmt.Errorf("recovery point %v has neutral names: %w", p.ID, err)
}

func loadPoint(ctx context.Context, s dedupe.Store, id dedupe.Digest) (*Point, error) {
	b, err := s.Get(ctx, dedupe.KindManifest, id, nil)
	if err != nil {
		return nil, fmt.Errorf("read manifest %v: %w", id, err)
	}
	m, err := Decode(b)
	if err != nil {
		return nil, fmt.Errorf("recovery point %v: %w", id, err)
	}
	return &Point{ID: id, Manifest: m}, nil
}

// replay applies one note; the caller holds mu or is alone.
func (x *Index) replay(n dedupe.Note) {
	if n.Type == NoteSettings {
		x.replaySettings(n)
		return
	}
	in := x.points
	if in[n.Subject] == nil {
		in = x.broken
	}
	old := in[n.Subject]
	if old == nil {
		return // about something else, or about a point that was collected
	}
	p := *old
	if err := p.apply(n); err != nil {
		x.problems = append(x.problems, Problem{ID: n.Subject, Err: fmt.Errorf("recovery point %v, note %d: %w", n.Subject, n.Sequence, err)})
		switch n.Type {
		case NoteHold, NoteRelease, NoteExpiry, NoteLock:
			p.Held = true // an unreadable word about a hold or a lock must not end one
		}
	}
	x.statedAt = later(x.statedAt, p.statedAt)
	in[n.Subject] = &p
	x.ordered, x.unique = nil, nil
}

func (p *Point) apply(n dedupe.Note) error {
	switch n.Type {
	case NoteSignatures:
		list, err := DecodeSignatures(n.Body)
		if err == nil {
			p.Signatures = append(slices.Clip(p.Signatures), list...)
		}
		return err
	case NoteAccounting:
		a, err := DecodeAccounting(n.Body)
		if err == nil {
			p.Accounting = a
		}
		return err
	case NoteDelete, NoteUndelete, NotePurge, NoteHold, NoteRelease, NoteExpiry, NoteLock:
		e, err := DecodeEvent(n.Type, n.Body)
		if err != nil {
			return err
		}
		p.statedAt = later(p.statedAt, e.At)
		switch n.Type {
		case NoteDelete:
			p.Deleted, p.DeletedAt, p.DeletedUntil, p.deletedLag = true, e.At, e.Until, e.lag()
		case NoteUndelete:
			p.Deleted, p.DeletedAt, p.DeletedUntil = false, time.Time{}, time.Time{}
		case NotePurge:
			p.purged = true
		case NoteExpiry:
			p.RetainUntil, p.lag = e.Until, e.lag()
		case NoteLock: // a lock only grows
			if e.Until.After(p.LockedUntil) {
				p.LockedUntil, p.LockedAt, p.lag = e.Until, e.At, e.lag()
			}
		default:
			p.Held = n.Type == NoteHold
		}
	}
	return nil
}

// Problems lists what could not be read when the Index was opened, but for points that
// were purged since, or that Reread could read.
func (x *Index) Problems() []Problem {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return slices.DeleteFunc(slices.Clone(x.problems), func(b Problem) bool {
		p := x.broken[b.ID]
		return p != nil && p.purged
	})
}

// List is the points of a machine, by name or id, oldest first; "" is all machines.
// Soft-deleted points are among them only when asked for, purged ones never.
func (x *Index) List(machine string, withDeleted bool) []*Point {
	var list []*Point
	for _, p := range x.all() {
		if !p.purged && (withDeleted || !p.Deleted) && (machine == "" || p.isOf(machine)) {
			list = append(list, p)
		}
	}
	return list
}

func (p *Point) isOf(machine string) bool {
	return p.Manifest.MachineName == machine || p.Manifest.MachineID.String() == machine
}

// Newest is the newest point of a machine, by name or id, that is not deleted; nil
// when there is none.
func (x *Index) Newest(machine string) *Point {
	list := x.List(machine, false)
	if len(list) == 0 {
		return nil
	}
	return list[len(list)-1]
}

// Get is the point of this id, soft-deleted or not, or nil.
func (x *Index) Get(id dedupe.Digest) *Point {
	x.mu.RLock()
	defer x.mu.RUnlock()
	if p := x.points[id]; p != nil && !p.purged {
		return p
	}
	return nil
}

// NextSequence is one more than the greatest sequence of any point of this machine
// and generation that the store still knows, deleted and purged ones included.
func (x *Index) NextSequence(machine, generation ID) uint64 {
	x.mu.RLock()
	defer x.mu.RUnlock()
	next := uint64(1)
	for _, p := range x.points {
		if p.Manifest.MachineID == machine && p.Manifest.Generation.ID == generation {
			next = max(next, p.Manifest.Sequence+1)
		}
	}
	return next
}

// all is every point, oldest first. The result is shared: it must not be changed.
func (x *Index) all() []*Point {
	x.mu.RLock()
	list := x.ordered
	x.mu.RUnlock()
	if list != nil {
		return list
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.ordered == nil {
		list := make([]*Point, 0, len(x.points))
		for _, p := range x.points {
			list = append(list, p)
		}
		sortPoints(list)
		x.ordered = list
	}
	return x.ordered
}

// sortPoints sorts oldest first. Within a machine (generation, sequence) decides.
// Between machines the freeze time does, where a point whose clock was set back
// counts as frozen no earlier than the point before it.
func sortPoints(list []*Point) {
	line := func(a, b *Point) int {
		return cmp.Or(bytes.Compare(a.Manifest.MachineID[:], b.Manifest.MachineID[:]),
			cmp.Compare(a.Manifest.Generation.Number, b.Manifest.Generation.Number),
			cmp.Compare(a.Manifest.Sequence, b.Manifest.Sequence),
			a.Manifest.FrozenAt.Compare(b.Manifest.FrozenAt),
			bytes.Compare(a.ID[:], b.ID[:]))
	}
	slices.SortFunc(list, line)
	at := make(map[*Point]time.Time, len(list))
	for i, p := range list {
		at[p] = p.Manifest.FrozenAt
		if i > 0 && list[i-1].Manifest.MachineID == p.Manifest.MachineID && at[list[i-1]].After(at[p]) {
			at[p] = at[list[i-1]]
		}
	}
	slices.SortStableFunc(list, func(a, b *Point) int { return at[a].Compare(at[b]) })
}

// Publish commits b with the manifests of one cut, each signed by signer (unless it
// is nil) and with its accounting (acc is nil or as long as ms), all or none. The
// ids are those of Manifest.ID; in an encrypted store, of the manifests after
// Manifest.PutPrivate, which Publish does for those that it gets.
func (x *Index) Publish(ctx context.Context, b dedupe.Batch, ms []*Manifest, acc []Accounting, signer ed25519.PrivateKey) ([]*Point, error) {
	return x.PublishOnTerms(ctx, b, ms, acc, Terms{}, signer)
}

// PublishOnTerms is Publish of points that are kept for a time, or locked: what Terms say
// is part of the same commit.
func (x *Index) PublishOnTerms(ctx context.Context, b dedupe.Batch, ms []*Manifest, acc []Accounting, terms Terms, signer ed25519.PrivateKey) ([]*Point, error) {
	if acc != nil && len(acc) != len(ms) {
		return nil, errors.Join(fmt.Errorf("publish recovery points: %d manifests with %d accounts", len(ms), len(acc)), b.Abort())
	}
	ms, err := x.putPrivate(ctx, b, ms)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("publish recovery points: %w", err), b.Abort())
	}
	pub, points, err := x.publication(ms, acc, terms, signer)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("publish recovery points: %w", err), b.Abort())
	}
	x.publishing.Lock()
	defer x.publishing.Unlock()
	if err := x.checkNew(points); err != nil {
		return nil, errors.Join(fmt.Errorf("publish recovery points: %w", err), b.Abort())
	}
	ids, err := b.Commit(ctx, pub)
	if err != nil {
		return nil, fmt.Errorf("publish recovery points: %w", err)
	}
	for i := range ids {
		if len(ids) != len(points) || ids[i] != points[i].ID {
			return nil, fmt.Errorf("publish recovery points: the store gave manifest %v the id %v: %w", points[i].ID, ids[i], dedupe.ErrCorrupt)
		}
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, p := range points {
		x.points[p.ID] = p
		x.statedAt = later(x.statedAt, p.statedAt)
	}
	x.ordered, x.unique = nil, nil
	return points, nil
}

// putPrivate is ms with their texts in blocks of the batch, where the store is encrypted.
func (x *Index) putPrivate(ctx context.Context, b dedupe.Batch, ms []*Manifest) ([]*Manifest, error) {
	if !x.store.Encrypted() {
		return ms, nil
	}
	list := make([]*Manifest, len(ms))
	for i, m := range ms {
		own := *m // the caller keeps m
		if err := own.PutPrivate(ctx, b, x.store.BlockSize()); err != nil {
			return nil, err
		}
		list[i] = &own
	}
	return list, nil
}

func (x *Index) publication(ms []*Manifest, acc []Accounting, terms Terms, signer ed25519.PrivateKey) (pub dedupe.Publication, points []*Point, err error) {
	for i, m := range ms {
		b, err := m.Encode()
		if err != nil {
			return pub, nil, err
		}
		own, err := Decode(b) // the caller keeps m
		if err == nil && !m.Private.IsZero() {
			err = own.setTexts(m.texts())
		}
		if err != nil {
			return pub, nil, err
		}
		p := &Point{ID: dedupe.Sum(b), Manifest: own}
		pub.Manifests = append(pub.Manifests, b)
		if signer != nil {
			p.Signatures = []Signature{Sign(b, RoleOrigin, signer)}
			body, err := EncodeSignatures(p.Signatures)
			if err != nil {
				return pub, nil, err
			}
			pub.Notes = append(pub.Notes, dedupe.Note{Type: NoteSignatures, Subject: p.ID, Body: body})
		}
		if acc != nil {
			p.Accounting = acc[i]
			body, err := EncodeAccounting(acc[i])
			if err != nil {
				return pub, nil, err
			}
			pub.Notes = append(pub.Notes, dedupe.Note{Type: NoteAccounting, Subject: p.ID, Body: body})
		}
		notes, err := terms.notes(p, x.Settings())
		if err != nil {
			return pub, nil, err
		}
		pub.Notes = append(pub.Notes, notes...)
		points = append(points, p)
	}
	return pub, points, nil
}

// checkNew refuses a second point of the same machine, generation and sequence: it
// would leave the order of the machine's points open.
func (x *Index) checkNew(points []*Point) error {
	type place struct {
		machine, generation ID
		sequence            uint64
	}
	at := func(p *Point) place {
		return place{p.Manifest.MachineID, p.Manifest.Generation.ID, p.Manifest.Sequence}
	}
	x.mu.RLock()
	defer x.mu.RUnlock()
	taken := make(map[place]bool, len(points))
	for _, p := range points {
		if taken[at(p)] {
			return invalid("machine %q twice at sequence %d", p.Manifest.MachineName, p.Manifest.Sequence)
		}
		taken[at(p)] = true
	}
	for _, p := range x.points {
		if taken[at(p)] {
			return invalid("machine %q has a point at sequence %d already", p.Manifest.MachineName, p.Manifest.Sequence)
		}
	}
	return nil
}
