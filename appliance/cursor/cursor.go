package cursor

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/keelblock/keelblock/appliance"
	"github.com/keelblock/keelblock/appliance/disks"
	"github.com/keelblock/keelblock/appliance/vault"
	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/recoverypoint"
)

// MaxCursors bounds a Set.
const MaxCursors = 4096

// Cursor is a consumer's place in the history of a disk.
type Cursor struct {
	Name string `json:"name"`
	// DiskID is that of disks.Entry: a disk that is made again with an old name is
	// another one.
	DiskID   string `json:"diskId"`
	DiskName string `json:"diskName"`
	// Point is the id in hexadecimal digits.
	Point      string    `json:"point"`
	FrozenAt   time.Time `json:"frozenAt"` // of the point
	CreatedAt  time.Time `json:"createdAt"`
	AdvancedAt time.Time `json:"advancedAt"`
}

// store is the part of catalog.Collection[Cursor] that a Set needs.
type store interface {
	Put(name string, c Cursor) error
	Delete(name string) error
	Each(ctx context.Context, yield func(name string, c Cursor) bool) error
}

// Set is all cursors of an appliance. All methods may be called from any number of
// goroutines.
type Set struct {
	disks  *disks.Registry
	vaults *vault.Set

	mu     sync.Mutex
	closed error // why it is not attached
	store  store
	all    map[string]*entry
}

type entry struct {
	Cursor
	unpin func()
}

// NewSet returns a Set that is not attached.
func NewSet(d *disks.Registry, v *vault.Set) *Set {
	return &Set{disks: d, vaults: v, all: map[string]*entry{},
		closed: &appliance.Error{Kind: appliance.ErrUnavailable, Text: "the catalog is being opened", Hint: "try again in a moment"}}
}

// Attach loads the cursors and pins their points.
func (s *Set) Attach(ctx context.Context, st store) error {
	all := map[string]*entry{}
	err := st.Each(ctx, func(name string, c Cursor) bool { all[name] = &entry{Cursor: c}; return true })
	if err != nil {
		return fmt.Errorf("load cursors: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.all {
		e.unpin()
	}
	for _, e := range all {
		s.pin(e)
	}
	s.store, s.all, s.closed = st, all, nil
	return nil
}

// Close makes the Set unavailable, for the reason given.
func (s *Set) Close(reason error) {
	s.mu.Lock()
	s.store, s.closed = nil, reason
	s.mu.Unlock()
}

func (s *Set) pin(e *entry) {
	e.unpin = func() {}
	if id, err := dedupe.ParseDigest(e.Point); err == nil {
		e.unpin = s.vaults.Keep(id, fmt.Sprintf("cursor %q", e.Name))
	}
}

// Create makes a cursor at the newest point of a disk.
func (s *Set) Create(ctx context.Context, name, disk string) (Cursor, error) {
	op := fmt.Sprintf("create cursor %q", name)
	if err := appliance.CheckName("cursor", name); err != nil {
		return Cursor{}, err
	}
	d, err := s.disks.Get(disk)
	if err != nil {
		return Cursor{}, err
	}
	if d.Entry().Role == disks.Temporary {
		return Cursor{}, &appliance.Error{Op: op, Kind: appliance.ErrInvalid, Text: fmt.Sprintf("disk %q is temporary: it is in no recovery point", disk),
			Hint: fmt.Sprintf("keelblock disk edit %s --role data", disk)}
	}
	p, err := s.newest(ctx, d.Entry())
	if err != nil {
		return Cursor{}, fmt.Errorf("%s: %w", op, err)
	}
	if p == nil {
		e := &appliance.Error{Op: op, Kind: appliance.ErrInUse, Text: fmt.Sprintf("disk %q is in no recovery point yet", disk)}
		if m := s.disks.Owner(disk); m != "" {
			e.Hint = "keelblock backup " + m + " makes one"
		} else {
			e.Hint = fmt.Sprintf("put it into a machine and make one: keelblock machine create NAME --disk %s", disk)
		}
		return Cursor{}, e
	}
	now := time.Now().UTC().Truncate(time.Millisecond)
	c := Cursor{Name: name, DiskID: d.Entry().ID, DiskName: disk, CreatedAt: now}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed != nil:
		return Cursor{}, fmt.Errorf("%s: %w", op, s.closed)
	case s.all[name] != nil:
		return Cursor{}, &appliance.Error{Op: op, Kind: appliance.ErrExists, Text: "a cursor of this name exists",
			Hint: fmt.Sprintf("choose another name, or keelblock cursor advance %s", name)}
	case len(s.all) >= MaxCursors:
		return Cursor{}, &appliance.Error{Op: op, Kind: appliance.ErrInUse, Text: fmt.Sprintf("there are %d cursors already, the limit", MaxCursors)}
	}
	return s.put(op, c, p, now)
}

// Advance moves a cursor to the newest point of its disk, or to the one that selector
// names.
func (s *Set) Advance(ctx context.Context, name, selector string) (Cursor, error) {
	op := fmt.Sprintf("advance cursor %q", name)
	c, err := s.Get(name)
	if err != nil {
		return Cursor{}, err
	}
	d, err := s.disk(op, c)
	if err != nil {
		return Cursor{}, err
	}
	p, err := s.target(ctx, op, d, selector)
	if err != nil {
		return Cursor{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed != nil {
		return Cursor{}, fmt.Errorf("%s: %w", op, s.closed)
	}
	if s.all[name] == nil {
		return Cursor{}, appliance.NotFound(op, "cursor", name)
	}
	return s.put(op, c, p, time.Now().UTC().Truncate(time.Millisecond))
}

// target is the point that a cursor of d moves to.
func (s *Set) target(ctx context.Context, op string, d *disks.Disk, selector string) (*recoverypoint.Point, error) {
	if selector != "" {
		p, _, err := FindDisk(ctx, s.vaults, op, selector, d.Entry())
		return p, err
	}
	p, err := s.newest(ctx, d.Entry())
	if err != nil {
		return nil, fmt.Errorf("%s: %w", op, err)
	}
	if p == nil {
		return nil, &appliance.Error{Op: op, Kind: appliance.ErrInUse, Text: fmt.Sprintf("disk %q is in no recovery point any more", d.Name()),
			Hint: "back its machine up"}
	}
	return p, nil
}

// put places c at p: pinned first, then durable. s.mu is held.
func (s *Set) put(op string, c Cursor, p *recoverypoint.Point, now time.Time) (Cursor, error) {
	c.Point, c.FrozenAt, c.AdvancedAt = p.ID.String(), p.Manifest.FrozenAt, now
	e := &entry{Cursor: c}
	s.pin(e)
	if _, there := s.vaults.Holder(p.ID); there == nil { // purged before it was pinned
		e.unpin()
		return Cursor{}, appliance.NotFound(op, "recovery-point", c.Point)
	}
	if err := s.store.Put(c.Name, c); err != nil {
		e.unpin()
		return Cursor{}, fmt.Errorf("%s: %w", op, err)
	}
	if old := s.all[c.Name]; old != nil {
		old.unpin()
	}
	s.all[c.Name] = e
	return c, nil
}

// Get returns the cursor of this name.
func (s *Set) Get(name string) (Cursor, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	op := fmt.Sprintf("find cursor %q", name)
	if s.closed != nil {
		return Cursor{}, fmt.Errorf("%s: %w", op, s.closed)
	}
	if e := s.all[name]; e != nil {
		return e.Cursor, nil
	}
	return Cursor{}, appliance.NotFound(op, "cursor", name)
}

// List returns all cursors by name, or those of one disk.
func (s *Set) List(disk string) ([]Cursor, error) {
	diskID := ""
	if disk != "" {
		d, err := s.disks.Get(disk)
		if err != nil {
			return nil, err
		}
		diskID = d.Entry().ID
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed != nil {
		return nil, fmt.Errorf("list cursors: %w", s.closed)
	}
	return s.of(diskID), nil
}

// of lists cursors of a disk, "" for all; s.mu is held.
func (s *Set) of(diskID string) []Cursor {
	var out []Cursor
	for _, e := range s.all {
		if diskID == "" || e.DiskID == diskID {
			out = append(out, e.Cursor)
		}
	}
	slices.SortFunc(out, func(a, b Cursor) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// Delete forgets a cursor and gives its point free.
func (s *Set) Delete(name string) error {
	op := fmt.Sprintf("delete cursor %q", name)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed != nil {
		return fmt.Errorf("%s: %w", op, s.closed)
	}
	e := s.all[name]
	if e == nil {
		return appliance.NotFound(op, "cursor", name)
	}
	if err := s.store.Delete(name); err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	e.unpin()
	delete(s.all, name)
	return nil
}

// disk is the live disk of a cursor.
func (s *Set) disk(op string, c Cursor) (*disks.Disk, error) {
	d, err := s.disks.Get(c.DiskName)
	if err != nil || d.Entry().ID != c.DiskID {
		return nil, &appliance.Error{Op: op, Kind: appliance.ErrNotFound, Text: fmt.Sprintf("its disk %q does not exist any more", c.DiskName),
			Hint: "keelblock cursor delete " + c.Name}
	}
	return d, nil
}
