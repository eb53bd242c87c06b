package recoverypoint

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/keelblock/keelblock/dedupe"
)

// maxNamed is how many candidates an error names.
const maxNamed = 8

const (
	selLatest            = "latest"
	selLatestApplication = "latest-application"
)

// Selector is a parsed name of a point.
type Selector struct {
	// Prefix of the point's id, in lower case; "" when Machine is set. It may be a
	// word that no id begins with: that is a point that does not exist.
	Prefix string
	// Machine is a name or an id.
	Machine string
	// Which is "latest", "latest-application" or a time in UTC ending in Z.
	Which string
	// Rest is what stands behind the ':' after the point: a disk or a path.
	Rest string
}

// ParseSelector reads one of
//
//	ID[:REST]                                   the id or a prefix of it that no other id has
//	MACHINE@latest[:REST]                       the newest point
//	MACHINE@latest-application[:REST]           the newest with that consistency
//	MACHINE@2026-11-21T19:30:00[.123]Z[:REST]   the newest at or before that time
//
// A time ends at its Z, so the ':' inside it are not taken for the one before REST.
func ParseSelector(s string) (Selector, error) {
	bad := func(why string) (Selector, error) {
		return Selector{}, fmt.Errorf("%q: %s (a point is named by its id, or as MACHINE@latest, MACHINE@latest-application or MACHINE@2026-11-21T19:30:00Z): %w", s, why, ErrBadSelector)
	}
	head, _, _ := strings.Cut(s, ":")
	machine, _, isMachine := strings.Cut(head, "@")
	if !isMachine {
		prefix, rest, _ := strings.Cut(s, ":")
		prefix = strings.ToLower(prefix)
		if prefix == "" || len(prefix) > 2*dedupe.DigestSize || strings.Trim(prefix, "0123456789abcdefghijklmnopqrstuvwxyz._-") != "" {
			return bad("this is neither an id nor MACHINE@…")
		}
		return Selector{Prefix: prefix, Rest: rest}, nil
	}
	if machine == "" {
		return bad("the machine's name is missing")
	}
	which := s[len(machine)+1:]
	end := -1
	for _, word := range []string{selLatestApplication, selLatest} {
		if after, ok := strings.CutPrefix(which, word); ok && (after == "" || after[0] == ':') {
			end = len(word)
			break
		}
	}
	if end < 0 {
		z := strings.IndexByte(which, 'Z')
		if z < 0 || (z+1 < len(which) && which[z+1] != ':') {
			return bad("what follows @ is neither latest nor a time in UTC that ends in Z")
		}
		end = z + 1
		if _, _, err := parseTime(which[:end]); err != nil {
			return bad("the time does not read as 2026-11-21T19:30:00Z")
		}
	}
	return Selector{Machine: machine, Which: which[:end], Rest: strings.TrimPrefix(which[end:], ":")}, nil
}

// parseTime reads a time that ends in Z and says to what it is exact.
func parseTime(s string) (t time.Time, exact time.Duration, err error) {
	t, err = time.Parse(time.RFC3339Nano, s)
	exact = time.Second
	if _, fraction, ok := strings.Cut(strings.TrimSuffix(s, "Z"), "."); ok {
		for range fraction {
			exact /= 10
		}
	}
	return t.UTC(), max(exact, 1), err
}

// Resolve finds the one point that a selector names, and what stands behind it. By
// id it finds soft-deleted points too (look at Point.Deleted); by machine only
// listed ones, of several in the time given the newest. It never picks one of several
// ids: ErrAmbiguous names them. ErrNotFound says what there is instead. The bare name
// of a machine is ErrBadSelector even where ids begin with it: who forgot "@latest"
// must not get some point.
func (x *Index) Resolve(selector string) (p *Point, rest string, err error) {
	sel, err := ParseSelector(selector)
	if err != nil {
		return nil, "", err
	}
	if sel.Machine == "" {
		p, err = x.byPrefix(sel.Prefix)
	} else {
		p, err = x.byMachine(sel)
	}
	return p, sel.Rest, err
}

func (x *Index) byPrefix(prefix string) (*Point, error) {
	var found []*Point
	for _, p := range x.List("", true) {
		if p.Manifest.MachineName == prefix {
			return nil, fmt.Errorf("%q is a machine; a point of it is %s@latest or %s: %w", prefix, prefix, x.Name(p), ErrBadSelector)
		}
	}
	for _, p := range x.all() {
		if !p.purged && strings.HasPrefix(p.ID.String(), prefix) {
			found = append(found, p)
		}
	}
	var broken []Problem
	for _, b := range x.Problems() {
		if !b.ID.IsZero() && strings.HasPrefix(b.ID.String(), prefix) && !slices.ContainsFunc(found, func(p *Point) bool { return p.ID == b.ID }) && x.Get(b.ID) == nil {
			broken = append(broken, b)
		}
	}
	switch {
	case len(found)+len(broken) > 1:
		names := make([]string, 0, len(found)+len(broken))
		for _, p := range found {
			names = append(names, fmt.Sprintf("%v (%s)", p.ID, x.Name(p)))
		}
		for _, b := range broken {
			names = append(names, fmt.Sprintf("%v (unreadable)", b.ID))
		}
		return nil, fmt.Errorf("%q is the beginning of %s: %w", prefix, joinNames(names), ErrAmbiguous)
	case len(found) == 1:
		return found[0], nil
	case len(broken) == 1:
		if x.unreadable(broken[0].ID) != nil {
			return nil, &UnreadableError{broken[0].ID, broken[0].Err}
		}
		return nil, broken[0].Err
	}
	return nil, fmt.Errorf("%q: %w", prefix, ErrNotFound)
}

func (x *Index) byMachine(sel Selector) (*Point, error) {
	list := x.List(sel.Machine, false)
	if len(list) == 0 {
		if deleted := x.List(sel.Machine, true); len(deleted) > 0 {
			return nil, fmt.Errorf("machine %q: all of its %d points are deleted; undelete one by its id: %w", sel.Machine, len(deleted), ErrNotFound)
		}
		return nil, fmt.Errorf("machine %q has no recovery points; %s: %w", sel.Machine, x.machines(), ErrNotFound)
	}
	newest := list[len(list)-1]
	switch sel.Which {
	case selLatest:
		return newest, nil
	case selLatestApplication:
		for _, p := range slices.Backward(list) {
			if p.Manifest.Consistency == Application {
				return p, nil
			}
		}
		return nil, fmt.Errorf("machine %q: none of its %d points is application-consistent; the newest is %s (%s): %w",
			sel.Machine, len(list), x.Name(newest), newest.Manifest.Consistency, ErrNotFound)
	}
	t, exact, err := parseTime(sel.Which)
	if err != nil {
		return nil, fmt.Errorf("%q: %w: %w", sel.Which, err, ErrBadSelector)
	}
	// A name shows a point's time cut off to the digits shown; so does this
	// comparison, else a point would not answer to its own name. "Newest at or
	// before" goes by the clock, as the user does; of equal times the later in order.
	var best *Point
	for _, p := range list {
		if !p.Manifest.FrozenAt.Truncate(exact).After(t) && (best == nil || !p.Manifest.FrozenAt.Before(best.Manifest.FrozenAt)) {
			best = p
		}
	}
	if best == nil {
		return nil, fmt.Errorf("machine %q has no point at or before %s; the oldest is %s: %w",
			sel.Machine, sel.Which, x.Name(list[0]), ErrNotFound)
	}
	return best, nil
}

// machines says which machines have points, for errors.
func (x *Index) machines() string {
	var names []string
	for _, p := range x.List("", false) {
		names = append(names, p.Manifest.MachineName)
	}
	slices.Sort(names)
	if names = slices.Compact(names); len(names) == 0 {
		return "there are none at all"
	}
	return "there are points of " + joinNames(names)
}

func joinNames(names []string) string {
	if more := len(names) - maxNamed; more > 0 {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:maxNamed], ", "), more)
	}
	return strings.Join(names, ", ")
}

// Name is MACHINE@TIME, which Resolve finds the point by as long as it is listed.
func (x *Index) Name(p *Point) string { return p.Manifest.MachineName + "@" + x.TimeName(p) }

// TimeName is the point's freeze time in UTC with as many digits as tell it from all
// other points of the machine's name: seconds, milliseconds, or nanoseconds.
func (x *Index) TimeName(p *Point) string {
	exact, layout := time.Second, "2006-01-02T15:04:05Z"
	t := p.Manifest.FrozenAt
	for _, o := range x.List(p.Manifest.MachineName, true) {
		if o.ID == p.ID {
			continue
		}
		if exact == time.Second && o.Manifest.FrozenAt.Truncate(exact).Equal(t.Truncate(exact)) {
			exact, layout = time.Millisecond, "2006-01-02T15:04:05.000Z"
		}
		if exact == time.Millisecond && o.Manifest.FrozenAt.Truncate(exact).Equal(t.Truncate(exact)) {
			exact, layout = 1, "2006-01-02T15:04:05.000000000Z"
		}
	}
	return t.Truncate(cmp.Or(exact, 1)).UTC().Format(layout)
}
