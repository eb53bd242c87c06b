package retention

import (
	"errors"
	"fmt"
	"strings"
	"time"
	_ "time/tzdata" // a rule must mean the same on a host without zone files
)

// MaxCount bounds each number of Rules.
const MaxCount = 1 << 20

// ErrInvalid: a rule is negative or too large, or its time zone is not known.
var ErrInvalid = errors.New("invalid retention rules")

// Rules say how many points of each kind are kept. The zero value keeps everything.
// They are part of policies, and kept as JSON.
type Rules struct {
	Last    int `json:"last,omitempty"`    // the newest points
	Hourly  int `json:"hourly,omitempty"`  // the newest of an hour
	Daily   int `json:"daily,omitempty"`   // … of a day
	Weekly  int `json:"weekly,omitempty"`  // … of an ISO week, which begins on Monday
	Monthly int `json:"monthly,omitempty"` // … of a month
	Yearly  int `json:"yearly,omitempty"`  // … of a year
	// TimeZone that hours, days, weeks, months and years are of, by its IANA name. "": UTC.
	TimeZone string `json:"timeZone,omitempty"`
}

// rule is one of the numbers with its name.
type rule struct {
	name  string
	count int
}

func (r Rules) list() []rule {
	return []rule{{"last", r.Last}, {"hourly", r.Hourly}, {"daily", r.Daily}, {"weekly", r.Weekly},
		{"monthly", r.Monthly}, {"yearly", r.Yearly}}
}

// IsZero says that there are no rules, so that everything is kept.
func (r Rules) IsZero() bool {
	for _, x := range r.list() {
		if x.count != 0 {
			return false
		}
	}
	return true
}

// Validate names the first rule that is not possible. ErrInvalid.
func (r Rules) Validate() error {
	for _, x := range r.list() {
		if x.count < 0 || x.count > MaxCount {
			return fmt.Errorf("keep-%s %d is not within 0 and %d: %w", x.name, x.count, MaxCount, ErrInvalid)
		}
	}
	_, err := r.location()
	return err
}

func (r Rules) location() (*time.Location, error) {
	if r.TimeZone == "" || r.TimeZone == "UTC" {
		return time.UTC, nil
	}
	// "Local" would mean something else on each host.
	if loc, err := time.LoadLocation(r.TimeZone); err == nil && r.TimeZone != "Local" {
		return loc, nil
	}
	return nil, fmt.Errorf("time zone %q is not known: %w", r.TimeZone, ErrInvalid)
}

// Covers says that r keeps every point that old keeps, whatever the points are: no
// number is lower, and the periods are the same.
func (r Rules) Covers(old Rules) bool {
	if r.IsZero() {
		return true
	}
	if old.IsZero() {
		return false
	}
	own := r.list()
	periods := false
	for i, x := range old.list() {
		if own[i].count < x.count {
			return false
		}
		periods = periods || i > 0 && x.count > 0
	}
	return !periods || zone(r) == zone(old)
}

func zone(r Rules) string {
	if r.TimeZone == "" {
		return "UTC"
	}
	return r.TimeZone
}

// String is the rules as prune takes them: "keep-last 3, keep-daily 7".
func (r Rules) String() string {
	var parts []string
	for _, x := range r.list() {
		if x.count != 0 {
			parts = append(parts, fmt.Sprintf("keep-%s %d", x.name, x.count))
		}
	}
	if len(parts) == 0 {
		return "keep everything"
	}
	if zone(r) != "UTC" {
		parts = append(parts, "in "+r.TimeZone)
	}
	return strings.Join(parts, ", ")
}
