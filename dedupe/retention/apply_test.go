package retention_test

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/retention"
)

// at reads a time as RFC 3339, or as a date with hours and minutes in UTC.
func at(t testing.TB, s string) time.Time {
	t.Helper()
	for _, layout := range []string{time.RFC3339, "2006-01-02 15:04", time.DateOnly} {
		if v, err := time.Parse(layout, s); err == nil {
			return v
		}
	}
	t.Fatalf("not a time: %q", s)
	return time.Time{}
}

func idOf(n int) (d dedupe.Digest) {
	binary.BigEndian.PutUint64(d[:], uint64(n)+1)
	return d
}

func points(t testing.TB, times ...string) (out []retention.Point) {
	t.Helper()
	for i, s := range times {
		out = append(out, retention.Point{ID: idOf(i), FrozenAt: at(t, s)})
	}
	return out
}

func apply(t testing.TB, ps []retention.Point, r retention.Rules, now time.Time) []retention.Decision {
	t.Helper()
	ds, err := retention.Apply(ps, r, now)
	if err != nil {
		t.Fatal(err)
	}
	for i, d := range ds {
		if d.ID != ps[i].ID || len(d.Reasons) == 0 || d.Spared && !d.Keep {
			t.Fatalf("decision %d is about %v, %+v", i, ps[i].ID, d)
		}
	}
	return ds
}

// kept are the indexes of what is kept.
func kept(ds []retention.Decision) (out []int) {
	for i, d := range ds {
		if d.Keep {
			out = append(out, i)
		}
	}
	return out
}

func TestWhatRulesKeep(t *testing.T) {
	hours := []string{"2026-11-20 22:10", "2026-11-20 22:50", "2026-11-20 23:30", "2026-11-21 00:00", "2026-11-21 09:00", "2026-11-21 09:59", "2026-11-21 11:00"}
	for name, c := range map[string]struct {
		times []string
		rules retention.Rules
		want  []int
	}{
		"no rules keep everything":                     {hours, retention.Rules{}, []int{0, 1, 2, 3, 4, 5, 6}},
		"last keeps the newest":                        {hours, retention.Rules{Last: 2}, []int{5, 6}},
		"more than there are":                          {hours, retention.Rules{Last: 99}, []int{0, 1, 2, 3, 4, 5, 6}},
		"hourly keeps the newest of hours with points": {hours, retention.Rules{Hourly: 4}, []int{2, 3, 5, 6}},
		"daily":                                {hours, retention.Rules{Daily: 7}, []int{2, 6}},
		"rules add up and do not share":        {hours, retention.Rules{Last: 1, Hourly: 2, Daily: 2}, []int{2, 5, 6}},
		"a rule of one still keeps the newest": {hours, retention.Rules{Yearly: 1}, []int{6}},
		"days without a point do not count": {[]string{"2026-01-01", "2026-03-01", "2026-03-02", "2026-11-21"},
			retention.Rules{Daily: 3}, []int{1, 2, 3}},
		"ISO weeks begin on Monday and cross the year": { // 2026-12-31 and 2027-01-03 are in 2026-W53
			[]string{"2026-12-27", "2026-12-28", "2026-12-31", "2027-01-03", "2027-01-04"},
			retention.Rules{Weekly: 3}, []int{0, 3, 4}},
		"months":    {[]string{"2026-01-31", "2026-02-28", "2026-03-01", "2026-03-31 23:59"}, retention.Rules{Monthly: 2}, []int{1, 3}},
		"years":     {[]string{"2024-02-29", "2024-12-31 23:59", "2025-01-01", "2026-06-01"}, retention.Rules{Yearly: 3}, []int{1, 2, 3}},
		"no points": {nil, retention.Rules{Last: 1}, nil},
	} {
		ps := points(t, c.times...)
		if got := kept(apply(t, ps, c.rules, at(t, "2026-11-21 12:00"))); !slices.Equal(got, c.want) {
			t.Errorf("%s: kept %v, want %v", name, got, c.want)
		}
	}
}

// TestDaylightSaving: Berlin's clock goes back at 01:00 UTC on 2026-10-25 and forward at
// 01:00 UTC on 2026-03-29.
func TestDaylightSaving(t *testing.T) {
	berlin := func(r retention.Rules) retention.Rules { r.TimeZone = "Europe/Berlin"; return r }
	autumn := points(t, "2026-10-24T21:59:00Z", "2026-10-24T22:00:00Z", "2026-10-25T00:30:00Z", "2026-10-25T01:30:00Z", "2026-10-25T22:59:00Z", "2026-10-25T23:00:00Z")
	now := at(t, "2026-10-26")
	if got := kept(apply(t, autumn, berlin(retention.Rules{Daily: 3}), now)); !slices.Equal(got, []int{0, 4, 5}) {
		t.Errorf("days around the long day: %v", got)
	}
	if got := kept(apply(t, autumn, berlin(retention.Rules{Hourly: 4}), now)); !slices.Equal(got, []int{2, 3, 4, 5}) {
		t.Errorf("02:30 comes twice and is two hours: %v", got)
	}
	spring := points(t, "2026-03-29T00:59:00Z", "2026-03-29T01:00:00Z", "2026-03-29T21:59:00Z", "2026-03-29T22:00:00Z")
	if got := kept(apply(t, spring, berlin(retention.Rules{Hourly: 3, Daily: 2}), now)); !slices.Equal(got, []int{1, 2, 3}) {
		t.Errorf("the short day: %v", got)
	}
}

func TestClockThatWasWrongTakesOneSlot(t *testing.T) {
	ps := points(t, "2026-11-18", "2026-11-19", "2036-11-20", "2026-11-20", "1970-01-02", "2026-11-21")
	if got := kept(apply(t, ps, retention.Rules{Daily: 4}, at(t, "2026-11-21"))); !slices.Equal(got, []int{2, 3, 4, 5}) {
		t.Errorf("kept %v", got)
	}
}

// TestDemand05OwnExpiry is the deciding half of demand 5: a point made by hand with a
// time of its own takes no slot of the rules and outlives none of its time.
func TestDemand05OwnExpiry(t *testing.T) {
	ps := points(t, "2026-11-17", "2026-11-18", "2026-11-19", "2026-11-20", "2026-11-21")
	ps[3].RetainUntil = at(t, "2026-12-20")
	ps[0].RetainUntil = at(t, "2026-11-22")
	rules := retention.Rules{Last: 2}
	if got := kept(apply(t, ps, rules, at(t, "2026-11-21"))); !slices.Equal(got, []int{0, 2, 3, 4}) {
		t.Errorf("before: %v", got)
	}
	ds := apply(t, ps, rules, at(t, "2026-12-20"))
	if got := kept(ds); !slices.Equal(got, []int{2, 4}) {
		t.Errorf("after: %v", got)
	}
	if r := ds[3].Reason(); r != "retained until 2026-12-20T00:00:00Z, which has passed" {
		t.Errorf("reason %q", r)
	}
	// The rules keep everything, and its time has passed all the same.
	if got := kept(apply(t, ps, retention.Rules{}, at(t, "2026-12-20"))); !slices.Equal(got, []int{1, 2, 4}) {
		t.Errorf("without rules: %v", got)
	}
	ps[4].RetainUntil = at(t, "2026-11-22")
	if ds := apply(t, ps, rules, at(t, "2030-01-01")); !ds[4].Keep || ds[4].Reason() != retention.ReasonNewest {
		t.Errorf("the newest goes when its time has passed: %+v", ds[4])
	}
}

func TestProtectedPointsAreKept(t *testing.T) {
	ps := points(t, "2026-11-18", "2026-11-19", "2026-11-20", "2026-11-21")
	ps[0].Protection = "held"
	ps[2].Protection = "used by export x"
	ds := apply(t, ps, retention.Rules{Last: 2}, at(t, "2026-11-21"))
	if got := kept(ds); !slices.Equal(got, []int{0, 2, 3}) {
		t.Errorf("kept %v", got)
	}
	if !ds[0].Spared || ds[0].Reason() != "held, no rule keeps it" {
		t.Errorf("%+v", ds[0])
	}
	if ds[2].Spared || ds[2].Reason() != "last, used by export x" {
		t.Errorf("%+v", ds[2])
	}
	if ex := retention.Expired(ds); len(ex) != 1 || ex[0].ID != ps[1].ID {
		t.Errorf("expired %+v", ex)
	}
}

func TestBadRules(t *testing.T) {
	for _, r := range []retention.Rules{{Last: -1}, {Yearly: retention.MaxCount + 1}, {Daily: 1, TimeZone: "Mars/Olympus"}, {Daily: 1, TimeZone: "Local"}} {
		if _, err := retention.Apply(nil, r, time.Time{}); !errors.Is(err, retention.ErrInvalid) {
			t.Errorf("%+v: %v", r, err)
		}
	}
	if s := (retention.Rules{Last: 3, Daily: 7, TimeZone: "Europe/Berlin"}).String(); s != "keep-last 3, keep-daily 7, in Europe/Berlin" {
		t.Error(s)
	}
	if s := (retention.Rules{}).String(); s != "keep everything" {
		t.Error(s)
	}
}

// random is a history with gaps, bursts and a clock that is sometimes wrong.
func random(rng *rand.Rand, n int) []retention.Point {
	now := time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)
	var out []retention.Point
	for i := range n {
		now = now.Add(time.Duration(rng.Int64N(int64(1) << (30 + rng.IntN(22)))))
		p := retention.Point{ID: idOf(i), FrozenAt: now}
		switch rng.IntN(12) {
		case 0:
			p.RetainUntil = now.Add(time.Duration(rng.Int64N(int64(1000 * time.Hour))))
		case 1:
			p.Protection = "held"
		case 2:
			p.FrozenAt = now.AddDate(rng.IntN(20)-10, 0, 0)
		}
		out = append(out, p)
	}
	return out
}

func randomRules(rng *rand.Rand) retention.Rules {
	some := func() int { return max(rng.IntN(12)-4, 0) }
	return retention.Rules{Last: some(), Hourly: some(), Daily: some(), Weekly: some(), Monthly: some(), Yearly: some(),
		TimeZone: []string{"", "Europe/Berlin", "Australia/Lord_Howe", "America/St_Johns"}[rng.IntN(4)]}
}

func TestProperties(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	for range 400 {
		ps := random(rng, 1+rng.IntN(60))
		now := ps[len(ps)-1].FrozenAt.Add(time.Duration(rng.Int64N(int64(2000 * time.Hour))))
		rules := randomRules(rng)
		before := apply(t, ps, rules, now)
		if !before[len(ps)-1].Keep {
			t.Fatalf("the newest goes: %+v", rules)
		}
		more := rules // a higher number of any rule keeps what was kept
		for _, n := range []*int{&more.Last, &more.Hourly, &more.Daily, &more.Weekly, &more.Monthly, &more.Yearly} {
			*n += rng.IntN(3)
		}
		if !rules.IsZero() {
			subset(t, "more rules expire more", kept(before), kept(apply(t, ps, more, now)))
		}
		if !more.Covers(rules) && !rules.IsZero() || rules.Covers(more) && more != rules && !rules.IsZero() {
			t.Fatalf("%v covers %v: %v; the other way %v", more, rules, more.Covers(rules), rules.Covers(more))
		}
		var left []retention.Point // what is kept is kept again
		for i, d := range before {
			if d.Keep {
				left = append(left, ps[i])
			}
		}
		if again := kept(apply(t, left, rules, now)); len(again) != len(left) {
			t.Fatalf("not idempotent: %+v keeps %d of %d", rules, len(again), len(left))
		}
		newer := append(slices.Clone(ps), retention.Point{ID: idOf(len(ps)), FrozenAt: now.AddDate(0, 0, rng.IntN(40)-5)})
		after := kept(apply(t, newer, rules, now))
		subset(t, "a newer point resurrects", after[:len(after)-1], kept(before))
	}
}

// subset fails unless all of a is in b.
func subset(t *testing.T, what string, a, b []int) {
	t.Helper()
	for _, i := range a {
		if !slices.Contains(b, i) {
			t.Fatalf("%s: %d of %v is not in %v", what, i, a, b)
		}
	}
}

// TestDemand48TenYears lets a fake clock run for ten years of backups every six hours,
// with expiry after each, and compares what is left with what a person would name.
func TestDemand48TenYears(t *testing.T) {
	rules := retention.Rules{Last: 2, Daily: 7, Weekly: 4, Monthly: 12, Yearly: 10}
	begin := time.Date(2016, 11, 22, 3, 0, 0, 0, time.UTC)
	end := time.Date(2026, 11, 22, 3, 0, 0, 0, time.UTC)
	var ps []retention.Point
	for now, n := begin, 0; !now.After(end); now, n = now.Add(6*time.Hour), n+1 {
		ps = append(ps, retention.Point{ID: idOf(n), FrozenAt: now})
		var left []retention.Point
		for i, d := range apply(t, ps, rules, now) {
			if d.Keep {
				left = append(left, ps[i])
			}
		}
		ps = left
	}
	want := strings.Fields(`
		2017-12-31T21 2018-12-31T21 2019-12-31T21 2020-12-31T21 2021-12-31T21 2022-12-31T21 2023-12-31T21 2024-12-31T21
		2025-12-31T21 2026-01-31T21 2026-02-28T21 2026-03-31T21 2026-04-30T21 2026-05-31T21 2026-06-30T21 2026-07-31T21
		2026-08-31T21 2026-09-30T21 2026-10-31T21
		2026-11-01T21 2026-11-08T21 2026-11-15T21
		2026-11-16T21 2026-11-17T21 2026-11-18T21 2026-11-19T21 2026-11-20T21 2026-11-21T21
		2026-11-22T03`)
	var got []string
	for _, p := range ps {
		got = append(got, p.FrozenAt.Format("2006-01-02T15"))
	}
	if !slices.Equal(got, want) {
		t.Fatalf("kept\n%v\nwant\n%v", got, want)
	}
}

func BenchmarkApply(b *testing.B) {
	rng := rand.New(rand.NewPCG(1, 1))
	ps := random(rng, 20000)
	rules := retention.Rules{Last: 24, Hourly: 48, Daily: 31, Weekly: 52, Monthly: 120, Yearly: 50}
	for b.Loop() {
		apply(b, ps, rules, ps[len(ps)-1].FrozenAt)
	}
}
