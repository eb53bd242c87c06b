package cli

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// periodUnits of a period, longest first. A day is 24 hours, a year 365 days.
var periodUnits = []struct {
	name string
	long time.Duration
}{{"y", 365 * 24 * time.Hour}, {"w", 7 * 24 * time.Hour}, {"d", 24 * time.Hour}, {"h", time.Hour}, {"m", time.Minute}, {"s", time.Second}}

// periodValue is a flag that takes a period: 90s, 12h, 14d, 6w, 1y, 1d12h, or 0.
type periodValue struct {
	d   time.Duration
	set bool
}

// String implements pflag.Value.
func (v *periodValue) String() string {
	if !v.set {
		return ""
	}
	return period(v.d)
}

// Set implements pflag.Value.
func (v *periodValue) Set(s string) (err error) {
	v.d, err = parsePeriod(s)
	v.set = err == nil
	return err
}

// Type implements pflag.Value.
func (v *periodValue) Type() string { return "D" }

// seconds is the period for a request, nil when the flag was not given.
func (v *periodValue) seconds() *int64 {
	if !v.set {
		return nil
	}
	n := int64(v.d / time.Second)
	return &n
}

// maxPeriod keeps a period within a time.Duration.
const maxPeriod = 290 * 365 * 24 * time.Hour

// parsePeriod reads whole numbers with their units, longest unit first.
func parsePeriod(s string) (time.Duration, error) {
	bad := errors.New("a period is written as 90s, 12h, 14d, 6w, 1y or 1d12h")
	if s == "0" {
		return 0, nil
	}
	var sum time.Duration
	rest := s
	for _, u := range periodUnits {
		i := strings.IndexFunc(rest, func(r rune) bool { return r < '0' || r > '9' })
		if i <= 0 || rest[i:i+1] != u.name {
			continue
		}
		n, err := strconv.ParseInt(rest[:i], 10, 64)
		if err != nil || n > int64((maxPeriod-sum)/u.long) {
			return 0, fmt.Errorf("%q is too long; %w", s, bad)
		}
		sum, rest = sum+time.Duration(n)*u.long, rest[i+1:]
	}
	if rest != "" || s == "" {
		return 0, bad
	}
	return sum, nil
}

// period is a duration as parsePeriod reads it, in days at most: 14d, 1d12h.
func period(d time.Duration) string {
	var b strings.Builder
	for _, u := range periodUnits[2:] {
		if n := d / u.long; n > 0 {
			fmt.Fprintf(&b, "%d%s", n, u.name)
			d -= n * u.long
		}
	}
	if b.Len() == 0 {
		return "0"
	}
	return b.String()
}
