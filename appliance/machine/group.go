package machine

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/keelblock/keelblock/appliance"
)

const (
	// MaxGroupMachines of one group: the points of a cut are published together.
	MaxGroupMachines = 256
	// MaxGroups bounds the groups of a Set.
	MaxGroups = 1024
)

// Group is a set of machines that are cut at one instant. A machine is in at most one,
// and no group has the name of a machine: a name says what is backed up.
type Group struct {
	// ID is random, 32 hexadecimal digits.
	ID   string `json:"id"`
	Name string `json:"name"`
	// Machines by name, in the order of their names.
	Machines  []string  `json:"machines"`
	CreatedAt time.Time `json:"createdAt"`
}

func (g Group) clone() Group {
	g.Machines = slices.Clone(g.Machines)
	return g
}

// groupStore is the part of catalog.Collection[Group] that a Set needs.
type groupStore interface {
	Put(name string, g Group) error
	Delete(name string) error
	Each(ctx context.Context, yield func(name string, g Group) bool) error
}

// CreateGroup puts machines together.
func (s *Set) CreateGroup(name string, machines []string) (Group, error) {
	op := fmt.Sprintf("create group %q", name)
	if err := appliance.CheckName("group", name); err != nil {
		return Group{}, err
	}
	g := Group{ID: s.newID(), Name: name, Machines: slices.Sorted(slices.Values(machines)), CreatedAt: time.Now().UTC().Truncate(time.Second)}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed != nil {
		return Group{}, fmt.Errorf("%s: %w", op, s.closed)
	}
	if err := s.checkGroup(op, g); err != nil {
		return Group{}, err
	}
	if err := s.groupStore.Put(name, g); err != nil {
		return Group{}, fmt.Errorf("%s: %w", op, err)
	}
	s.groups[name] = g
	return g.clone(), nil
}

// checkGroup holds the rules of a new group; s.mu is held.
func (s *Set) checkGroup(op string, g Group) error {
	bad := func(kind error, hint, format string, args ...any) error {
		return &appliance.Error{Op: op, Kind: kind, Text: fmt.Sprintf(format, args...), Hint: hint}
	}
	if _, ok := s.groups[g.Name]; ok {
		return bad(appliance.ErrExists, "choose another name, or keelblock group delete "+g.Name, "a group of this name exists")
	}
	if _, ok := s.all[g.Name]; ok {
		return bad(appliance.ErrExists, "choose another name: a group and a machine share none", "a machine of this name exists")
	}
	switch n := len(g.Machines); {
	case n == 0:
		return bad(appliance.ErrInvalid, "give them with --machine", "a group has at least one machine")
	case n > MaxGroupMachines:
		return bad(appliance.ErrInvalid, "", "%d machines; a group has at most %d", n, MaxGroupMachines)
	case len(s.groups) >= MaxGroups:
		return bad(appliance.ErrInUse, "", "there are %d groups already, the limit", MaxGroups)
	}
	for i, m := range g.Machines {
		if i > 0 && m == g.Machines[i-1] {
			return bad(appliance.ErrInvalid, "", "machine %q is given twice", m)
		}
		if _, ok := s.all[m]; !ok {
			return appliance.NotFound(op, "machine", m)
		}
		if other := s.groupOf(m); other != "" {
			return bad(appliance.ErrInUse, "a machine is in one group; keelblock group delete "+other, "machine %q is in group %q", m, other)
		}
	}
	return nil
}

// groupOf is the group of a machine, or ""; s.mu is held.
func (s *Set) groupOf(machine string) string {
	for _, g := range s.groups {
		if slices.Contains(g.Machines, machine) {
			return g.Name
		}
	}
	return ""
}

// GroupOf is the group that the machine is in, or "".
func (s *Set) GroupOf(machine string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.groupOf(machine)
}

// Group returns the group of this name.
func (s *Set) Group(name string) (Group, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.group(name)
}

// group is Group; s.mu is held.
func (s *Set) group(name string) (Group, error) {
	op := fmt.Sprintf("find group %q", name)
	if s.closed != nil {
		return Group{}, fmt.Errorf("%s: %w", op, s.closed)
	}
	g, ok := s.groups[name]
	if !ok {
		return Group{}, appliance.NotFound(op, "group", name)
	}
	return g.clone(), nil
}

// Groups returns all groups by name.
func (s *Set) Groups() ([]Group, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed != nil {
		return nil, fmt.Errorf("list groups: %w", s.closed)
	}
	out := make([]Group, 0, len(s.groups))
	for _, g := range s.groups {
		out = append(out, g.clone())
	}
	slices.SortFunc(out, func(a, b Group) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// DeleteGroup takes a group apart that no job works on. Machines and points stay.
func (s *Set) DeleteGroup(name string) (Group, error) {
	op := fmt.Sprintf("delete group %q", name)
	s.mu.Lock()
	defer s.mu.Unlock()
	g, err := s.group(name)
	if err != nil {
		return Group{}, err
	}
	if s.busyGroups[name] > 0 {
		return Group{}, &appliance.Error{Op: op, Kind: appliance.ErrInUse, Text: "a job works on it", Hint: "see keelblock job list"}
	}
	if err := s.groupStore.Delete(name); err != nil {
		return Group{}, fmt.Errorf("%s: %w", op, err)
	}
	delete(s.groups, name)
	return g, nil
}

// HoldGroup keeps a group and its machines, by name, from being deleted until release
// is called.
func (s *Set) HoldGroup(name string) (machines []Machine, release func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	g, err := s.group(name)
	if err != nil {
		return nil, nil, err
	}
	for _, n := range g.Machines {
		m, ok := s.all[n]
		if !ok { // a machine in a group is not deleted, so the catalog lost it
			return nil, nil, appliance.NotFound(fmt.Sprintf("find the machines of group %q", name), "machine", n)
		}
		machines = append(machines, m.clone())
	}
	for _, n := range g.Machines {
		s.busy[n]++
	}
	s.busyGroups[name]++
	return machines, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, n := range g.Machines {
			s.unbusy(s.busy, n)
		}
		s.unbusy(s.busyGroups, name)
	}, nil
}

// unbusy takes one job from a counter; s.mu is held.
func (s *Set) unbusy(jobs map[string]int, name string) {
	if jobs[name]--; jobs[name] == 0 {
		delete(jobs, name)
	}
}
