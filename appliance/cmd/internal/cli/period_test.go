package cli

import (
	"testing"
	"time"
)

func TestPeriods(t *testing.T) {
	for s, want := range map[string]time.Duration{"0": 0, "90s": 90 * time.Second, "12h": 12 * time.Hour, "14d": 14 * 24 * time.Hour, "6w": 42 * 24 * time.Hour,
		"1y": 365 * 24 * time.Hour, "1d12h": 36 * time.Hour, "2w1d1h1m1s": 15*24*time.Hour + time.Hour + time.Minute + time.Second, "0d": 0} {
		if got, err := parsePeriod(s); err != nil || got != want {
			t.Errorf("%s: %v %v, want %v", s, got, err, want)
		}
		if again, err := parsePeriod(period(want)); err != nil || again != want {
			t.Errorf("%v is printed as %s, which reads as %v %v", want, period(want), again, err)
		}
	}
	for _, s := range []string{"", "d", "14", "-1d", "1.5d", "12h1d", "1d1d", "14 d", "1M", "99999999999999999999d", "300y", "0x1d"} {
		if got, err := parsePeriod(s); err == nil {
			t.Errorf("%q is taken for %v", s, got)
		}
	}
}
