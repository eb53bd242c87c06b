package retention

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/keelblock/keelblock/dedupe"
)

// Point is what retention has to know of a recovery point.
type Point struct {
	ID       dedupe.Digest
	FrozenAt time.Time
	// RetainUntil of a point with a time of its own; zero: the rules decide.
	RetainUntil time.Time
	// Protection says why nothing may delete the point now, "held" or "used by export x";
	// "" when nothing forbids it.
	Protection string
}

// Decision is what becomes of one point.
type Decision struct {
	Point
	Keep bool
	// Reasons that it is kept, at least one; or the one why it goes.
	Reasons []string
	// Spared: only its Protection keeps it.
	Spared bool
}

// Reason is the reasons in one line.
func (d Decision) Reason() string { return strings.Join(d.Reasons, ", ") }

// Reasons of decisions. Those of rules are their names: last, hourly, daily, …
const (
	ReasonNewest  = "newest"           // of its machine
	ReasonNoRules = "no rules"         // so everything is kept
	ReasonExpired = "no rule keeps it" // it goes
)

// Apply decides about the points of one machine, oldest first in their order of
// (generation, sequence), at the time now. The decisions are in the same order.
// ErrInvalid.
func Apply(points []Point, rules Rules, now time.Time) ([]Decision, error) {
	if err := rules.Validate(); err != nil {
		return nil, err
	}
	out := make([]Decision, len(points))
	for i, p := range points {
		out[i].Point = p
	}
	if len(out) > 0 {
		out[len(out)-1].keep(ReasonNewest)
	}
	if err := keepByRules(out, rules); err != nil {
		return nil, err
	}
	for i := range out {
		out[i].settle(now)
	}
	return out, nil
}

func (d *Decision) keep(reason string) { d.Keep, d.Reasons = true, append(d.Reasons, reason) }

// keepByRules marks what the rules keep among the points that they decide about.
func keepByRules(out []Decision, rules Rules) error {
	loc, err := rules.location()
	if err != nil {
		return err
	}
	for _, r := range rules.list() {
		seen := make(map[string]bool, min(r.count, len(out)))
		for i := len(out) - 1; i >= 0 && len(seen) < r.count; i-- {
			if !out[i].RetainUntil.IsZero() {
				continue
			}
			key := fmt.Sprint(i) // of last: each point is a period of its own
			if r.name != "last" {
				key = period(r.name, out[i].FrozenAt.In(loc))
			}
			if !seen[key] {
				seen[key] = true
				out[i].keep(r.name)
			}
		}
	}
	if !rules.IsZero() {
		return nil
	}
	for i := range out {
		if out[i].RetainUntil.IsZero() {
			out[i].keep(ReasonNoRules)
		}
	}
	return nil
}

// period names the hour, day, ISO week, month or year of t.
func period(rule string, t time.Time) string {
	switch rule {
	case "hourly":
		return t.Format("2006-01-02T15 -07:00:00")
	case "daily":
		return t.Format(time.DateOnly)
	case "weekly":
		year, week := t.ISOWeek()
		return fmt.Sprintf("%d-W%02d", year, week)
	case "monthly":
		return t.Format("2006-01")
	default:
		return t.Format("2006")
	}
}

// settle completes a decision that the rules and the order have begun.
func (d *Decision) settle(now time.Time) {
	if u := d.RetainUntil; !u.IsZero() && now.Before(u) {
		d.keep("retained until " + stamp(u))
	}
	if d.Keep {
		if d.Protection != "" {
			d.keep(d.Protection)
		}
		return
	}
	why := ReasonExpired
	if u := d.RetainUntil; !u.IsZero() {
		why = "retained until " + stamp(u) + ", which has passed"
	}
	d.Reasons = []string{why}
	if d.Protection != "" {
		d.Keep, d.Spared = true, true
		d.Reasons = []string{d.Protection, why}
	}
}

func stamp(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05Z") }

// Expired are the decisions that let a point go.
func Expired(all []Decision) []Decision {
	return slices.DeleteFunc(slices.Clone(all), func(d Decision) bool { return d.Keep })
}
