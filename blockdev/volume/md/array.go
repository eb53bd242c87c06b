package md

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"sort"
)

// Array is an array that was put together from its members. It reads as one range of
// Size bytes.
type Array struct {
	Name string
	UUID string
	// Level is 0 or 1; another is named in Err.
	Level   int
	Version string
	Size    int64
	// Err says why it cannot be read: ErrMissing, ErrUnsupported or ErrCorrupt.
	Err error
	// Notes are what one should know of what is read, in a sentence each.
	Notes []string
	// Members are those that were found, read or not.
	Members []*Member

	zones []zone
	chunk int64
	orig  bool      // layoutOriginal
	leg   []*Member // of RAID1: those that may be read
}

// zone is a range of a RAID0 that is striped over the same members.
type zone struct {
	start, end int64 // in the array
	memberAt   int64 // where it begins on each member
	members    []*Member
}

// Assemble makes the arrays that the members belong to, in the order in which they were
// first met.
func Assemble(members []*Member) []*Array {
	arrays := map[string]*Array{}
	var out []*Array
	for _, m := range members {
		a := arrays[m.ArrayUUID]
		if a == nil {
			a = &Array{UUID: m.ArrayUUID}
			arrays[m.ArrayUUID] = a
			out = append(out, a)
		}
		a.Members = append(a.Members, m)
	}
	for _, a := range out {
		a.Err = a.assemble()
	}
	return out
}

// Complete: every place of the array is taken by a member, so that a later find can add
// nothing.
func (a *Array) Complete() bool {
	if len(a.Members) == 0 {
		return false
	}
	newest := a.newest()
	taken := map[int]bool{}
	for _, m := range a.Members {
		taken[m.role] = m.role >= 0
	}
	for i := range newest.disks {
		if !taken[i] {
			return false
		}
	}
	return true
}

func (a *Array) newest() *Member {
	return slices.MaxFunc(a.Members, func(x, y *Member) int {
		switch {
		case x.Events < y.Events:
			return -1
		case x.Events > y.Events:
			return 1
		}
		return 0
	})
}

func (a *Array) assemble() error {
	n := a.newest()
	a.Name, a.Level, a.Version = n.ArrayName, n.Level, n.Version
	for _, m := range a.Members {
		if m.Level != n.Level && m.Events == n.Events || m.Version != n.Version {
			return fmt.Errorf("members of one md array disagree: RAID%d by %s and RAID%d by %s: %w", m.Level, m.Version, n.Level, n.Version, ErrCorrupt)
		}
		if m.err != nil {
			return m.err
		}
	}
	switch {
	case n.Level != 0 && n.Level != 1:
		return fmt.Errorf("md %s is %w", levelName(n.Level), ErrUnsupported)
	case n.disks < 1:
		return fmt.Errorf("an md array of %d members: %w", n.disks, ErrCorrupt)
	case n.Level == 0:
		return a.raid0(n)
	}
	return a.raid1(n)
}

func levelName(level int) string {
	switch level {
	case -1:
		return "linear"
	case -4:
		return "multipath"
	case -5:
		return "faulty"
	}
	return fmt.Sprintf("RAID%d", level)
}

// place gives the member at each place of the array. Two at one place cannot be told
// apart.
func (a *Array) place(n *Member, current func(m *Member) bool) ([]*Member, error) {
	out := make([]*Member, n.disks)
	for _, m := range a.Members {
		if m.role < 0 || m.role >= n.disks || !current(m) {
			continue
		}
		if out[m.role] != nil {
			return nil, fmt.Errorf("member %d is there twice, and which is right is not known: %w", m.role, ErrCorrupt)
		}
		out[m.role] = m
	}
	return out, nil
}

// raid0 makes the zones: as long as all members have room, the data are striped over all
// of them; behind the end of the smallest over those that are larger; and so on.
func (a *Array) raid0(n *Member) error {
	members, err := a.place(n, func(*Member) bool { return true })
	if err != nil {
		return err
	}
	a.chunk = n.chunk
	if n.chunk < sectorSize || n.chunk%sectorSize != 0 {
		return fmt.Errorf("chunks of %d bytes: %w", n.chunk, ErrCorrupt)
	}
	room := make([]int64, len(members))
	for i, m := range members {
		if m == nil {
			return fmt.Errorf("member %d of %d is not there: %w", i, n.disks, ErrMissing)
		}
		if m.chunk != n.chunk || m.layout != n.layout || m.disks != n.disks {
			return fmt.Errorf("the members disagree about chunks, layout or number: %w", ErrCorrupt)
		}
		if m.dataOffset > m.size || m.dataSize > m.size-m.dataOffset {
			return fmt.Errorf("member %d has %d bytes, %d at %d are used: %w", i, m.size, m.dataSize, m.dataOffset, ErrMissing)
		}
		room[i] = m.dataSize / n.chunk * n.chunk
		if room[i] == 0 {
			return fmt.Errorf("member %d has no room: %w", i, ErrCorrupt)
		}
	}
	for done := int64(0); ; {
		z := zone{start: a.Size, memberAt: done}
		next := int64(0)
		for i, m := range members {
			if room[i] > done {
				z.members = append(z.members, m)
				if next == 0 || room[i] < next {
					next = room[i]
				}
			}
		}
		if len(z.members) == 0 {
			break
		}
		if next-done > (1<<62-a.Size)/int64(len(z.members)) {
			return fmt.Errorf("an array of that size: %w", ErrCorrupt)
		}
		a.Size += (next - done) * int64(len(z.members))
		z.end, done = a.Size, next
		a.zones = append(a.zones, z)
	}
	if len(a.zones) > 1 {
		switch n.layout {
		case layoutOriginal:
			a.orig = true
		case layoutAlternate:
		case layoutUnknown:
			return fmt.Errorf("a RAID0 of members that differ in size, whose superblock does not say by which layout (kernels before and after 3.14 differ), is %w", ErrUnsupported)
		default:
			return fmt.Errorf("layout %d of a RAID0 is %w", n.layout, ErrUnsupported)
		}
	}
	return nil
}

// raid1 finds the members that may be read.
func (a *Array) raid1(n *Member) error {
	if n.arraySize <= 0 {
		return fmt.Errorf("a RAID1 of %d bytes: %w", n.arraySize, ErrCorrupt)
	}
	a.Size = n.arraySize
	old := 0
	members, err := a.place(n, func(m *Member) bool {
		if m.Events != n.Events {
			old++
		}
		return m.Events == n.Events
	})
	if err != nil {
		return err
	}
	for i, m := range members {
		switch {
		case m == nil && !a.expected(n, i):
			continue // the others know that it has failed
		case m == nil && old > 0:
			a.Notes = append(a.Notes, fmt.Sprintf("member %d has an older event count and is not read", i))
		case m == nil:
			a.Notes = append(a.Notes, fmt.Sprintf("member %d is not there; if it was the last one in use, what is shown is older", i))
		case m.rebuilding:
			a.Notes = append(a.Notes, fmt.Sprintf("member %d was being rebuilt and is not read", i))
		case m.dataOffset > m.size || a.Size > m.size-m.dataOffset:
			a.Notes = append(a.Notes, fmt.Sprintf("member %d has %d bytes, too few, and is not read", i, m.size))
		default:
			a.leg = append(a.leg, m)
		}
	}
	if len(a.leg) == 0 {
		return fmt.Errorf("no member is up to date and whole: %w", ErrMissing)
	}
	if n.dirty {
		a.Notes = append(a.Notes, fmt.Sprintf("the array was in use or being brought in step; member %d is read", a.leg[0].role))
	}
	return nil
}

// expected: by the newest superblock, place i of the array is taken and in step.
func (a *Array) expected(n *Member, i int) bool { return slices.Contains(n.roles, i) }

// ReadAt reads the array.
func (a *Array) ReadAt(p []byte, off int64) (int, error) {
	if a.Err != nil {
		return 0, a.Err
	}
	if off < 0 {
		return 0, fmt.Errorf("read md array %s at %d: negative offset", a.Name, off)
	}
	done := 0
	for done < len(p) {
		at := off + int64(done)
		if at >= a.Size {
			return done, io.EOF
		}
		part := p[done:min(int64(len(p)), int64(done)+a.Size-at)]
		var n int
		var err error
		if a.Level == 1 {
			n, err = a.readMirror(part, at)
		} else {
			n, err = a.readStripe(part, at)
		}
		done += n
		if err != nil {
			return done, err
		}
	}
	return done, nil
}

// readStripe reads at most p, as far as it lies in one chunk.
func (a *Array) readStripe(p []byte, at int64) (int, error) {
	z := a.zones[sort.Search(len(a.zones), func(i int) bool { return a.zones[i].end > at })]
	members := int64(len(z.members))
	inZone := at - z.start
	chunk, inChunk := inZone/a.chunk, inZone%a.chunk
	// Which member has a chunk was once counted from the start of the array.
	turn := chunk
	if a.orig {
		turn = at / a.chunk
	}
	m := z.members[turn%members]
	p = p[:min(int64(len(p)), a.chunk-inChunk)]
	return m.read(p, z.memberAt+chunk/members*a.chunk+inChunk)
}

// errBad: the member has lost the range.
var errBad = errors.New("md has the range in its list of bad blocks")

// readMirror reads the first member, and another where that one has lost a range.
func (a *Array) readMirror(p []byte, at int64) (int, error) {
	var first error
	for _, m := range a.leg {
		n, err := m.read(p, at)
		if !errors.Is(err, errBad) {
			return n, err
		}
		first = err
	}
	return 0, first
}

// read reads from the member's data.
func (m *Member) read(p []byte, at int64) (int, error) {
	for _, b := range m.bad {
		if at < b.offset+b.length && b.offset < at+int64(len(p)) {
			return 0, fmt.Errorf("member %d, %d bytes at %d: %w: %w", m.role, len(p), at, errBad, ErrCorrupt)
		}
	}
	if err := readFull(m.r, p, m.dataOffset+at); err != nil {
		return 0, err
	}
	return len(p), nil
}
