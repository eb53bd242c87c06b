package retention_test

import (
	"testing"
	"time"

	"github.com/keelblock/keelblock/dedupe/retention"
)

// FuzzApply gives any rules any history: it never panics, and the newest point stays.
func FuzzApply(f *testing.F) {
	f.Add(3, 7, 4, 12, 10, "Europe/Berlin", []byte{1, 2, 3, 200, 255, 0})
	f.Fuzz(func(t *testing.T, last, daily, weekly, monthly, yearly int, zone string, gaps []byte) {
		now := time.Unix(1e9, 0)
		var ps []retention.Point
		for i, g := range gaps {
			now = now.Add(time.Duration(int8(g)) * 7 * time.Hour)
			ps = append(ps, retention.Point{ID: idOf(i), FrozenAt: now})
		}
		ds, err := retention.Apply(ps, retention.Rules{Last: last, Daily: daily, Weekly: weekly, Monthly: monthly, Yearly: yearly, TimeZone: zone}, now)
		if err == nil && len(ps) > 0 && !ds[len(ds)-1].Keep {
			t.Fatal("the newest point goes")
		}
	})
}
