package machine

import (
	"context"
	"fmt"
	"slices"
	"sort"
	"strings"
	"sync"
	"time"

	"github.com/keelblock/keelblock/appliance"
	"github.com/keelblock/keelblock/dedupe/retention"
)

// Limits.
const (
	// MaxDisks of a machine.
	MaxDisks = 256
	// MaxDefinition bounds a definition, in bytes.
	MaxDefinition = 256 << 10
	// MaxMachines bounds the Set.
	MaxMachines = 4096
)

// Machine is a protected virtual machine: the unit of consistency.
type Machine struct {
	// ID is random, 32 hexadecimal digits, and never changes.
	ID   string `json:"id"`
	Name string `json:"name"`
	// Disks by name, in the order in which they were given.
	Disks []string `json:"disks"`
	// Excluded are those of Disks that points leave out.
	Excluded []string `json:"excluded,omitempty"`
	// Definition is any text: libvirt XML, QEMU arguments, JSON.
	Definition string `json:"definition,omitempty"`
	// Vault is the name of the vault that its points go to; "" is default.
	Vault string `json:"vault,omitempty"`
	// Retention says which of its points are kept; zero: all.
	Retention retention.Rules `json:"retention,omitzero"`
	// Generation and GenerationID fence: they change with a failover.
	Generation   uint64    `json:"generation"`
	GenerationID string    `json:"generationId"`
	CreatedAt    time.Time `json:"createdAt"`
}

// Excludes reports whether points of m leave the disk out.
func (m Machine) Excludes(disk string) bool { return slices.Contains(m.Excluded, disk) }

// store is the part of catalog.Collection[Machine] that a Set needs.
type store interface {
	Put(name string, m Machine) error
	Delete(name string) error
	Each(ctx context.Context, yield func(name string, m Machine) bool) error
}

// claims is the part of disks.Registry that a Set needs.
type claims interface {
	SetOwners(map[string]string)
	Claim(machine string, disks ...string) error
	Unclaim(machine string, disks ...string)
	Connections(disk string) int
}

// Identity is what an earlier machine of the same name left in its points.
type Identity struct {
	ID, GenerationID string
	Generation       uint64
}

// Set is all machines of an appliance.
type Set struct {
	disks claims
	newID func() string

	mu         sync.Mutex
	closed     error // why it is not attached
	store      store
	all        map[string]Machine
	busy       map[string]int // jobs by machine
	groupStore groupStore
	groups     map[string]Group
	busyGroups map[string]int // jobs by group
}

// NewSet returns a Set that is not attached. newID makes random ids of 32
// hexadecimal digits.
func NewSet(disks claims, newID func() string) *Set {
	return &Set{disks: disks, newID: newID, busy: map[string]int{}, busyGroups: map[string]int{},
		closed: &appliance.Error{Kind: appliance.ErrUnavailable, Text: "the catalog is being opened", Hint: "try again in a moment"}}
}

// Attach loads machines and groups, and claims the machines' disks.
func (s *Set) Attach(ctx context.Context, st store, gs groupStore) error {
	all, owners, groups := map[string]Machine{}, map[string]string{}, map[string]Group{}
	err := st.Each(ctx, func(name string, m Machine) bool {
		all[name] = m
		for _, d := range m.Disks {
			owners[d] = name
		}
		return true
	})
	if err != nil {
		return fmt.Errorf("load machines: %w", err)
	}
	if err := gs.Each(ctx, func(name string, g Group) bool { groups[name] = g; return true }); err != nil {
		return fmt.Errorf("load groups: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.store, s.all, s.groupStore, s.groups, s.closed = st, all, gs, groups, nil
	s.disks.SetOwners(owners)
	return nil
}

// Close makes the Set unavailable, for the reason given.
func (s *Set) Close(reason error) {
	s.mu.Lock()
	s.store, s.groupStore, s.closed = nil, nil, reason
	s.mu.Unlock()
}

// Create makes a machine of at least one disk. earlier, when not nil, is whose
// history it goes on with.
func (s *Set) Create(name string, disks []string, definition string, earlier *Identity) (Machine, error) {
	op := fmt.Sprintf("create machine %q", name)
	if err := appliance.CheckName("machine", name); err != nil {
		return Machine{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed != nil {
		return Machine{}, fmt.Errorf("%s: %w", op, s.closed)
	}
	if _, ok := s.all[name]; ok {
		return Machine{}, &appliance.Error{Op: op, Kind: appliance.ErrExists, Text: "a machine of this name exists",
			Hint: "choose another name, or keelblock machine edit " + name}
	}
	if _, ok := s.groups[name]; ok {
		return Machine{}, &appliance.Error{Op: op, Kind: appliance.ErrExists, Text: "a group of this name exists",
			Hint: "choose another name: a group and a machine share none"}
	}
	if len(s.all) >= MaxMachines {
		return Machine{}, &appliance.Error{Op: op, Kind: appliance.ErrInUse, Text: fmt.Sprintf("there are %d machines already, the limit", MaxMachines)}
	}
	m := Machine{ID: s.newID(), Name: name, Disks: disks, Definition: definition, Generation: 1, GenerationID: s.newID(),
		CreatedAt: time.Now().UTC().Truncate(time.Second)}
	if earlier != nil {
		m.ID, m.Generation, m.GenerationID = earlier.ID, earlier.Generation, earlier.GenerationID
	}
	if len(disks) == 0 {
		return Machine{}, &appliance.Error{Op: op, Kind: appliance.ErrInvalid, Text: "a machine has at least one disk", Hint: "give it with --disk"}
	}
	if err := check(op, m); err != nil {
		return Machine{}, err
	}
	if err := s.disks.Claim(name, m.Disks...); err != nil {
		return Machine{}, fmt.Errorf("%s: %w", op, err)
	}
	if err := s.store.Put(name, m); err != nil {
		s.disks.Unclaim(name, m.Disks...)
		return Machine{}, fmt.Errorf("%s: %w", op, err)
	}
	s.all[name] = m
	return m, nil
}

// check holds the rules of a machine that do not depend on others.
func check(op string, m Machine) error {
	bad := func(format string, args ...any) error {
		return &appliance.Error{Op: op, Kind: appliance.ErrInvalid, Text: fmt.Sprintf(format, args...)}
	}
	if len(m.Disks) > MaxDisks {
		return bad("%d disks; a machine has at most %d", len(m.Disks), MaxDisks)
	}
	if len(m.Definition) > MaxDefinition {
		return bad("a definition of %d bytes; at most %d", len(m.Definition), MaxDefinition)
	}
	if err := m.Retention.Validate(); err != nil {
		return bad("%v", err)
	}
	for i, d := range m.Disks {
		if slices.Contains(m.Disks[:i], d) {
			return bad("disk %q is given twice", d)
		}
	}
	for _, d := range m.Excluded {
		if !slices.Contains(m.Disks, d) {
			return bad("disk %q is excluded but not a disk of the machine", d)
		}
	}
	return nil
}

// Get returns the machine of this name.
func (s *Set) Get(name string) (Machine, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	op := fmt.Sprintf("find machine %q", name)
	if s.closed != nil {
		return Machine{}, fmt.Errorf("%s: %w", op, s.closed)
	}
	m, ok := s.all[name]
	if !ok {
		return Machine{}, appliance.NotFound(op, "machine", name)
	}
	return m.clone(), nil
}

// List returns all machines by name.
func (s *Set) List() ([]Machine, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed != nil {
		return nil, fmt.Errorf("list machines: %w", s.closed)
	}
	out := make([]Machine, 0, len(s.all))
	for _, m := range s.all {
		out = append(out, m.clone())
	}
	sort.Slice(out, func(i, j int) bool { return strings.Compare(out[i].Name, out[j].Name) < 0 })
	return out, nil
}

func (m Machine) clone() Machine {
	m.Disks, m.Excluded = slices.Clone(m.Disks), slices.Clone(m.Excluded)
	return m
}

// Change is what Edit does to a machine.
type Change struct {
	Add, Remove []string
	Exclude     []string // added to the excluded disks
	Definition  *string
	Vault       *string
	Retention   *retention.Rules
}

// Edit changes a machine, all or nothing.
func (s *Set) Edit(name string, c Change) (Machine, error) {
	op := fmt.Sprintf("edit machine %q", name)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed != nil {
		return Machine{}, fmt.Errorf("%s: %w", op, s.closed)
	}
	old, ok := s.all[name]
	if !ok {
		return Machine{}, appliance.NotFound(op, "machine", name)
	}
	m := old.clone()
	for _, d := range c.Remove {
		i := slices.Index(m.Disks, d)
		if i < 0 {
			return Machine{}, &appliance.Error{Op: op, Kind: appliance.ErrNotFound, Text: fmt.Sprintf("it has no disk %q", d)}
		}
		m.Disks = slices.Delete(m.Disks, i, i+1)
		m.Excluded = slices.DeleteFunc(m.Excluded, func(e string) bool { return e == d })
	}
	m.Disks = append(m.Disks, c.Add...)
	for _, d := range c.Exclude {
		if !slices.Contains(m.Excluded, d) {
			m.Excluded = append(m.Excluded, d)
		}
	}
	if c.Definition != nil {
		m.Definition = *c.Definition
	}
	if c.Vault != nil {
		m.Vault = *c.Vault
	}
	if c.Retention != nil {
		m.Retention = *c.Retention
	}
	if err := check(op, m); err != nil {
		return Machine{}, err
	}
	if err := s.disks.Claim(name, c.Add...); err != nil {
		return Machine{}, fmt.Errorf("%s: %w", op, err)
	}
	if err := s.store.Put(name, m); err != nil {
		s.disks.Unclaim(name, c.Add...)
		return Machine{}, fmt.Errorf("%s: %w", op, err)
	}
	s.disks.Unclaim(name, c.Remove...)
	s.all[name] = m
	return m.clone(), nil
}

// Delete removes a machine that no job and no guest uses. Its disks and points
// stay.
func (s *Set) Delete(name string) error {
	op := fmt.Sprintf("delete machine %q", name)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed != nil {
		return fmt.Errorf("%s: %w", op, s.closed)
	}
	m, ok := s.all[name]
	if !ok {
		return appliance.NotFound(op, "machine", name)
	}
	if s.busy[name] > 0 {
		return &appliance.Error{Op: op, Kind: appliance.ErrInUse, Text: "a job works on it", Hint: "see keelblock job list"}
	}
	if g := s.groupOf(name); g != "" {
		return &appliance.Error{Op: op, Kind: appliance.ErrInUse, Text: fmt.Sprintf("it is in group %q", g),
			Hint: "keelblock group delete " + g + " takes the group apart; machines and points stay"}
	}
	for _, d := range m.Disks {
		if n := s.disks.Connections(d); n > 0 {
			return &appliance.Error{Op: op, Kind: appliance.ErrInUse, Text: fmt.Sprintf("%d NBD connections to disk %q are open", n, d),
				Hint: "disconnect the guest first"}
		}
	}
	if err := s.store.Delete(name); err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	s.disks.Unclaim(name, m.Disks...)
	delete(s.all, name)
	return nil
}

// Hold keeps a machine from being deleted until release is called.
func (s *Set) Hold(name string) (m Machine, release func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	op := fmt.Sprintf("find machine %q", name)
	if s.closed != nil {
		return Machine{}, nil, fmt.Errorf("%s: %w", op, s.closed)
	}
	m, ok := s.all[name]
	if !ok {
		return Machine{}, nil, appliance.NotFound(op, "machine", name)
	}
	s.busy[name]++
	return m.clone(), func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.unbusy(s.busy, name)
	}, nil
}
