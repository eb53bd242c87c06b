package recoverypoint_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/dedupetest"
	"github.com/keelblock/keelblock/dedupe/recoverypoint"
)

var day = time.Date(2026, 11, 21, 19, 30, 0, 0, time.UTC)

// point is the manifest of a machine without disks.
func point(machine string, mid byte, sequence uint64, at time.Time, c recoverypoint.Consistency) *recoverypoint.Manifest {
	return &recoverypoint.Manifest{MachineID: id(mid), MachineName: machine, CutID: id(4), CutMachines: []recoverypoint.ID{id(mid)},
		Generation: recoverypoint.Generation{Number: 1, ID: id(5)}, Sequence: sequence, FrozenAt: at,
		Consistency: c, Tracking: recoverypoint.TrackingFull}
}

func publish(t *testing.T, s dedupe.Store, x *recoverypoint.Index, ms ...*recoverypoint.Manifest) []*recoverypoint.Point {
	t.Helper()
	ps, err := x.Publish(t.Context(), batchOf(t, s), ms, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	return ps
}

func openIndex(t *testing.T, s dedupe.Store) *recoverypoint.Index {
	t.Helper()
	x, err := recoverypoint.OpenIndex(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	return x
}

// ids in the order of a list, each as the letter under which names has it.
func letters(list []*recoverypoint.Point, names map[dedupe.Digest]string) string {
	var b strings.Builder
	for _, p := range list {
		b.WriteString(names[p.ID])
	}
	return b.String()
}

// TestIndexLife takes points through every note and looks at them again through an
// index opened anew, as after a restart or a rebuild.
func TestIndexLife(t *testing.T) {
	s := dedupetest.NewMemory(64 << 10)
	x := openIndex(t, s)
	acc := recoverypoint.Accounting{ReadBytes: 10, ChangedBytes: 9, NewBytes: 8, StoredBytes: 7}
	ps, err := x.Publish(t.Context(), batchOf(t, s), []*recoverypoint.Manifest{point("web", 1, 1, day, recoverypoint.Crash), point("db", 2, 1, day, recoverypoint.Application)},
		[]recoverypoint.Accounting{acc, {}}, testKey())
	if err != nil {
		t.Fatal(err)
	}
	web := ps[0].ID
	ps = append(ps, publish(t, s, x, point("web", 1, 2, day.Add(time.Hour), recoverypoint.Crash))...)
	names := map[dedupe.Digest]string{ps[0].ID: "a", ps[1].ID: "b", ps[2].ID: "c"}

	both := func(what, machine string, withDeleted bool, want string) {
		t.Helper()
		for i, x := range []*recoverypoint.Index{x, openIndex(t, s)} {
			if got := letters(x.List(machine, withDeleted), names); len(got) != len(want) || strings.Trim(got, want) != "" || machine != "" && got != want {
				t.Errorf("%s, index %d: list is %q, want %q", what, i, got, want)
			}
		}
	}
	both("new", "", false, "abc")
	both("new", "web", false, "ac")
	both("new", id(2).String(), false, "b")
	for _, x := range []*recoverypoint.Index{x, openIndex(t, s)} {
		p := x.Get(web)
		if p.Accounting != acc || len(p.Signatures) != 1 {
			t.Errorf("accounting %+v, %d signatures", p.Accounting, len(p.Signatures))
		}
		m, err := p.Manifest.Encode()
		if err != nil || dedupe.Sum(m) != web || p.Signatures[0].KeyID.IsZero() {
			t.Errorf("manifest of %v: %v", web, err)
		}
		if n := x.NextSequence(id(1), id(5)); n != 3 {
			t.Errorf("next sequence %d", n)
		}
		if x.Newest("web").ID != ps[2].ID || x.Newest("none") != nil {
			t.Error("newest is another one")
		}
	}
	now := day.Add(2 * time.Hour)
	do := func(p *recoverypoint.Point, err error) *recoverypoint.Point {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	if p := do(x.Delete(t.Context(), web, now)); !p.Deleted || !p.DeletedAt.Equal(now) {
		t.Errorf("deleted: %+v", p)
	}
	do(x.Delete(t.Context(), web, now))
	both("deleted", "web", false, "c")
	both("deleted", "web", true, "ac")
	do(x.Undelete(t.Context(), web, now))
	both("undeleted", "web", false, "ac")
	do(x.Hold(t.Context(), web, now))
	if _, err := x.Delete(t.Context(), web, now); !errors.Is(err, recoverypoint.ErrHeld) {
		t.Errorf("delete of a held point: %v", err)
	}
	if _, err := openIndex(t, s).Purge(t.Context(), web, now); !errors.Is(err, recoverypoint.ErrHeld) {
		t.Errorf("purge of a held point: %v", err)
	}
	do(x.Release(t.Context(), web, now))
	do(x.Purge(t.Context(), web, now))
	both("purged", "web", true, "c")
	if x.Get(web) != nil {
		t.Error("a purged point is still got")
	}
	for name, fn := range map[string]func() error{
		"undelete": func() error { _, err := x.Undelete(t.Context(), web, now); return err },
		"purge":    func() error { _, err := x.Purge(t.Context(), web, now); return err },
		"delete":   func() error { _, err := x.Delete(t.Context(), digest("none"), now); return err },
		"resolve":  func() error { _, _, err := x.Resolve(web.String()); return err },
		"unique":   func() error { _, err := x.UniqueBytes(t.Context(), web); return err },
	} {
		if err := fn(); !errors.Is(err, recoverypoint.ErrNotFound) {
			t.Errorf("%s of a purged or unknown point: %v", name, err)
		}
	}
	if n := x.NextSequence(id(1), id(5)); n != 3 {
		t.Errorf("next sequence after a purge: %d", n)
	}
	if _, err := x.Publish(t.Context(), batchOf(t, s), []*recoverypoint.Manifest{point("web", 1, 2, day.Add(3*time.Hour), recoverypoint.Crash)}, nil, nil); err == nil {
		t.Error("a second point of one sequence is published")
	}
}

// TestIndexOrder: a clock that was set back does not change the order of a machine.
func TestIndexOrder(t *testing.T) {
	s := dedupetest.NewMemory(64 << 10)
	x := openIndex(t, s)
	names := make(map[dedupe.Digest]string)
	for i, m := range []*recoverypoint.Manifest{
		point("web", 1, 1, day, recoverypoint.Crash),
		point("web", 1, 2, day.Add(-time.Hour), recoverypoint.Crash), // set back
		point("db", 2, 1, day.Add(-30*time.Minute), recoverypoint.Crash),
		point("web", 1, 3, day.Add(time.Minute), recoverypoint.Crash),
	} {
		names[publish(t, s, x, m)[0].ID] = string("abcd"[i])
	}
	next := point("web", 1, 1, day.Add(-2*time.Hour), recoverypoint.Crash) // after a failover
	next.Generation = recoverypoint.Generation{Number: 2, ID: id(6), GrewFrom: id(5), SequenceAtFork: 3}
	names[publish(t, s, x, next)[0].ID] = "e"
	if got := letters(x.List("web", false), names); got != "abde" {
		t.Errorf("web: %q", got)
	}
	if got := letters(x.List("", false), names); got != "cabde" {
		t.Errorf("all: %q", got)
	}
	if got := names[x.Newest("web").ID]; got != "e" {
		t.Errorf("newest: %q", got)
	}
}

func TestSelector(t *testing.T) {
	s := dedupetest.NewMemory(64 << 10)
	x := openIndex(t, s)
	names := make(map[dedupe.Digest]string)
	all := []*recoverypoint.Manifest{
		point("web", 1, 1, day, recoverypoint.Application),
		point("web", 1, 2, day.Add(time.Hour+200*time.Millisecond), recoverypoint.Crash),
		point("web", 1, 3, day.Add(time.Hour+700*time.Millisecond), recoverypoint.Filesystem),
		point("web", 1, 4, day.Add(2*time.Hour+999*time.Millisecond), recoverypoint.Crash),
		point("latest", 2, 1, day, recoverypoint.Crash),
		point("site-b/web", 3, 1, day, recoverypoint.Crash),
		point("gone", 4, 1, day, recoverypoint.Crash),
	}
	var ids []dedupe.Digest
	for i, m := range all {
		ids = append(ids, publish(t, s, x, m)[0].ID)
		names[ids[i]] = string("abcdefg"[i])
	}
	if _, err := x.Delete(t.Context(), ids[6], day); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		selector, want, rest string
		err                  error
	}{
		{ids[0].String(), "a", "", nil},
		{ids[0].String()[:10] + ":web0", "a", "web0", nil},
		{strings.ToUpper(ids[0].String()[:10]), "a", "", nil},
		{ids[6].String()[:12], "g", "", nil}, // by id also when it is deleted
		{"web@latest", "d", "", nil},
		{"web@latest:web0", "d", "web0", nil},
		{"web@latest:/etc/a@b:c", "d", "/etc/a@b:c", nil},
		{"web@latest-application", "a", "", nil},
		{"web@latest-application:d", "a", "d", nil},
		{id(1).String() + "@latest", "d", "", nil},
		{"latest@latest", "e", "", nil},
		{"site-b/web@latest:x", "f", "x", nil},
		{"web@2026-11-21T19:30:00Z", "a", "", nil},
		{"web@2026-11-21T19:30:00Z:web0", "a", "web0", nil},
		{"web@2026-11-21T20:29:59Z", "a", "", nil},
		{"web@2026-11-21T20:30:00.2Z", "b", "", nil},
		{"web@2026-11-21T20:30:00.700Z:x", "c", "x", nil},
		{"web@2026-11-21T20:30:00.699Z", "b", "", nil},
		{"web@2026-11-21T20:30:01Z", "c", "", nil},
		{"web@2026-11-21T21:30:00Z", "d", "", nil}, // as the point is shown
		{"web@2030-01-01T00:00:00Z", "d", "", nil},
		{"web@2026-11-21T20:30:00Z", "c", "", nil}, // the newest of that second
		{"web@2026-11-21T19:29:59Z", "", "", recoverypoint.ErrNotFound},
		{"nosuch@latest", "", "", recoverypoint.ErrNotFound},
		{"gone@latest", "", "", recoverypoint.ErrNotFound},
		{"latest@latest-application", "", "", recoverypoint.ErrNotFound},
		{"0123456789abcdef", "", "", recoverypoint.ErrNotFound},
		{"", "", "", recoverypoint.ErrBadSelector},
		{"web", "", "", recoverypoint.ErrBadSelector}, // a machine, and no point of it
		{"web:web0", "", "", recoverypoint.ErrBadSelector},
		{"website", "", "", recoverypoint.ErrNotFound},
		{"website:web0", "", "", recoverypoint.ErrNotFound},
		{":web0", "", "", recoverypoint.ErrBadSelector},
		{"no such", "", "", recoverypoint.ErrBadSelector},
		{"@latest", "", "", recoverypoint.ErrBadSelector},
		{"web@", "", "", recoverypoint.ErrBadSelector},
		{"web@late", "", "", recoverypoint.ErrBadSelector},
		{"web@latestx", "", "", recoverypoint.ErrBadSelector},
		{"web@2026-11-21T19:30:00+01:00", "", "", recoverypoint.ErrBadSelector},
		{"web@2026-11-21T19:30:00Zx", "", "", recoverypoint.ErrBadSelector},
		{"web@2026-11-21Z", "", "", recoverypoint.ErrBadSelector},
		{ids[0].String() + "00", "", "", recoverypoint.ErrBadSelector},
	} {
		p, rest, err := x.Resolve(c.selector)
		if !errors.Is(err, c.err) || c.err == nil && (err != nil || names[p.ID] != c.want || rest != c.rest) {
			t.Errorf("%q: %v, %q, %v; want %s, %q, %v", c.selector, p, rest, err, c.want, c.rest, c.err)
		}
	}
	// Every prefix that one id has names the point, however short, and no other does.
	for n := 1; n < 8; n++ {
		count := make(map[string]int)
		for _, id := range ids {
			count[id.String()[:n]]++
		}
		for i, id := range ids {
			prefix := id.String()[:n]
			p, _, err := x.Resolve(prefix)
			if count[prefix] == 1 && (err != nil || p.ID != ids[i]) || count[prefix] > 1 && !errors.Is(err, recoverypoint.ErrAmbiguous) {
				t.Errorf("%s of %d points: %v", prefix, count[prefix], err)
			}
		}
	}
	// Every point answers to the name under which it is shown.
	for _, p := range x.List("", false) {
		if q, _, err := x.Resolve(x.Name(p)); err != nil || q.ID != p.ID {
			t.Errorf("%s: %v", x.Name(p), err)
		}
	}
	if got := x.TimeName(x.Get(ids[1])); got != "2026-11-21T20:30:00.200Z" {
		t.Errorf("one of two in a second is shown as %s", got)
	}
	if _, _, err := x.Resolve("nosuch@latest"); !strings.Contains(err.Error(), "site-b/web, web") {
		t.Errorf("error names no machines: %v", err)
	}
}

// TestSelectorPrefix: of many ids some share 4 digits; none is ever picked silently.
func TestSelectorPrefix(t *testing.T) {
	s := dedupetest.NewMemory(64 << 10)
	x := openIndex(t, s)
	var ms []*recoverypoint.Manifest
	for i := range 600 {
		ms = append(ms, point("web", 1, uint64(i+1), day.Add(time.Duration(i)*time.Minute), recoverypoint.Crash))
	}
	count := make(map[string]int)
	ps := publish(t, s, x, ms...)
	for _, p := range ps {
		count[p.ID.String()[:4]]++
	}
	ambiguous := 0
	for _, p := range ps {
		prefix := p.ID.String()[:4]
		q, _, err := x.Resolve(prefix)
		switch {
		case count[prefix] == 1 && (err != nil || q.ID != p.ID):
			t.Errorf("%s: %v", prefix, err)
		case count[prefix] > 1:
			ambiguous++
			if !errors.Is(err, recoverypoint.ErrAmbiguous) || !strings.Contains(err.Error(), p.ID.String()) {
				t.Errorf("%s of %d points: %v", prefix, count[prefix], err)
			}
		}
	}
	if ambiguous == 0 {
		t.Error("no two of 600 ids share 4 digits: the test shows nothing")
	}
}

func FuzzSelector(f *testing.F) {
	for _, s := range []string{"abcd", "web@latest:d", "web@2026-11-21T19:30:00.5Z:/a", "@", ":", "web@latest-application"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		sel, err := recoverypoint.ParseSelector(text)
		if err != nil {
			return
		}
		// What was read says the same when it is written again.
		again := sel.Prefix
		if sel.Machine != "" {
			again = sel.Machine + "@" + sel.Which
		}
		if sel.Rest != "" {
			again += ":" + sel.Rest
		}
		if sel.Prefix != "" {
			text = strings.ToLower(text[:len(sel.Prefix)]) + text[len(sel.Prefix):]
		}
		if again != text && again+":" != text {
			t.Fatalf("%q reads as %+v", text, sel)
		}
	})
}

// TestIndexProblems: a manifest that is damaged hides no other point, and naming it
// says why it cannot be had.
func TestIndexProblems(t *testing.T) {
	s := dedupetest.NewMemory(64 << 10)
	x := openIndex(t, s)
	good := publish(t, s, x, point("web", 1, 1, day, recoverypoint.Crash))[0].ID
	bad := publish(t, s, x, point("web", 1, 2, day, recoverypoint.Crash))[0].ID
	// A note of a later release, and one about nobody, are passed over.
	b := batchOf(t, s)
	if _, err := b.Commit(t.Context(), dedupe.Publication{Notes: []dedupe.Note{{Type: 900, Subject: good, Body: []byte("x")}, {Type: recoverypoint.NoteDelete, Subject: digest("nobody"), Body: []byte("x")}}}); err != nil {
		t.Fatal(err)
	}
	s.Corrupt(dedupe.KindManifest, bad)
	x = openIndex(t, s)
	if got := x.List("", true); len(got) != 1 || got[0].ID != good {
		t.Errorf("%d points are listed", len(got))
	}
	if problems := x.Problems(); len(problems) != 1 || problems[0].ID != bad {
		t.Errorf("problems: %v", problems)
	}
	if _, _, err := x.Resolve(bad.String()); !errors.Is(err, dedupe.ErrCorrupt) {
		t.Errorf("the bad point: %v", err)
	}
	// A note about a hold that cannot be read must not let the point go.
	b = batchOf(t, s)
	if _, err := b.Commit(t.Context(), dedupe.Publication{Notes: []dedupe.Note{{Type: recoverypoint.NoteRelease, Subject: good, Body: []byte("x")}}}); err != nil {
		t.Fatal(err)
	}
	if x = openIndex(t, s); !x.Get(good).Held || len(x.Problems()) != 2 {
		t.Errorf("held %v, problems %v", x.Get(good).Held, x.Problems())
	}
}

// A point whose manifest cannot be read is refused by an error that names it; it obeys its
// notes, can be given up by its id, and is there again when its manifest is.
func TestIndexUnreadable(t *testing.T) {
	s := dedupetest.NewMemory(64 << 10)
	x := openIndex(t, s)
	held := publish(t, s, x, point("web", 1, 1, day, recoverypoint.Crash))[0].ID
	lost := publish(t, s, x, point("web", 1, 2, day, recoverypoint.Crash))[0].ID
	back := publish(t, s, x, point("web", 1, 3, day, recoverypoint.Crash))[0].ID
	if _, err := x.Hold(t.Context(), held, day); err != nil {
		t.Fatal(err)
	}
	if _, err := x.Delete(t.Context(), back, day); err != nil {
		t.Fatal(err)
	}
	for _, id := range []dedupe.Digest{held, lost, back} {
		s.Corrupt(dedupe.KindManifest, id)
	}
	x = openIndex(t, s)
	_, _, err := x.Resolve(lost.String())
	var unreadable *recoverypoint.UnreadableError
	if !errors.As(err, &unreadable) || unreadable.ID != lost || !errors.Is(err, dedupe.ErrCorrupt) || len(x.Problems()) != 3 {
		t.Errorf("resolve: %v; problems %v", err, x.Problems())
	}
	if _, err := x.Purge(t.Context(), held, day); !errors.Is(err, recoverypoint.ErrHeld) {
		t.Errorf("purge of a held point: %v", err)
	}
	if _, err := x.Hold(t.Context(), lost, day); !errors.Is(err, recoverypoint.ErrNotFound) {
		t.Errorf("hold of an unreadable point: %v", err)
	}
	if p, err := x.Purge(t.Context(), lost, day); err != nil || p.ID != lost {
		t.Errorf("purge: %v, %v", p, err)
	}
	if len(x.Problems()) != 2 {
		t.Errorf("problems after the purge: %v", x.Problems())
	}
	if _, _, err := x.Resolve(lost.String()); !errors.Is(err, recoverypoint.ErrNotFound) {
		t.Errorf("resolve a purged one: %v", err)
	}
	if list, err := x.Reread(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("reread: %v, %v", list, err)
	}
	s.Corrupt(dedupe.KindManifest, back) // healed
	list, err := x.Reread(t.Context())
	if err != nil || len(list) != 1 || list[0].ID != back || !list[0].Deleted || list[0].Manifest.MachineName != "web" {
		t.Errorf("reread: %v, %v", list, err)
	}
	if p := x.Get(back); p == nil || len(x.Problems()) != 1 {
		t.Errorf("the point that is back: %v; problems %v", p, x.Problems())
	}
	x = openIndex(t, s)
	if len(x.Problems()) != 1 || x.Get(back) == nil {
		t.Errorf("after a restart: problems %v", x.Problems())
	}
}

// TestIndexConcurrent runs all methods at once; the race detector judges.
func TestIndexConcurrent(t *testing.T) {
	s := dedupetest.NewMemory(64 << 10)
	x := openIndex(t, s)
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			name := fmt.Sprintf("m%d", w)
			for i := range 20 {
				b, err := s.Begin(t.Context())
				if err != nil {
					t.Error(err)
					return
				}
				ps, err := x.Publish(t.Context(), b, []*recoverypoint.Manifest{point(name, byte(10+w), uint64(i+1), day.Add(time.Duration(i)*time.Second), recoverypoint.Crash)}, nil, nil)
				if err != nil {
					t.Error(err)
					return
				}
				if p, _, err := x.Resolve(name + "@latest"); err != nil || p.Manifest.Sequence != uint64(i+1) {
					t.Error(err)
				}
				x.List("", true)
				if _, err := x.UniqueBytes(t.Context(), ps[0].ID); err != nil {
					t.Error(err)
				}
				if i%2 == 0 {
					if _, err := x.Delete(t.Context(), ps[0].ID, day); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
	if got := len(openIndex(t, s).List("", false)); got != 40 {
		t.Errorf("%d points are left, want 40", got)
	}
}

// damagedNotes is a store one of whose notes is unreadable.
type damagedNotes struct {
	dedupe.Store
	skip uint64
}

func (s damagedNotes) Notes(ctx context.Context, yield func(dedupe.Note) bool) error {
	err := s.Store.Notes(ctx, func(n dedupe.Note) bool { return n.Sequence == s.skip || yield(n) })
	return errors.Join(err, fmt.Errorf("note %d: %w", s.skip, dedupe.ErrCorrupt))
}

// One damaged note must not keep all points from being read. It may have been a hold,
// so none can be deleted.
func TestDamagedNoteLeavesPointsReadableAndHeld(t *testing.T) {
	s := dedupetest.NewMemory(64 << 10)
	x := openIndex(t, s)
	ps := publish(t, s, x, point("web", 1, 1, day, recoverypoint.Crash), point("db", 2, 1, day, recoverypoint.Crash))
	if _, err := x.Delete(t.Context(), ps[1].ID, day); err != nil {
		t.Fatal(err)
	}
	last := uint64(0)
	if err := s.Notes(t.Context(), func(n dedupe.Note) bool { last = n.Sequence; return true }); err != nil {
		t.Fatal(err)
	}
	for skip := uint64(1); skip <= last; skip++ {
		x := openIndex(t, damagedNotes{s, skip})
		if n := len(x.List("", true)); n != 2 {
			t.Errorf("note %d: %d points, want 2", skip, n)
		}
		if p := x.Problems(); len(p) != 1 || !errors.Is(p[0].Err, dedupe.ErrCorrupt) {
			t.Errorf("note %d: problems %v", skip, p)
		}
		if _, err := x.Purge(t.Context(), ps[0].ID, day); !errors.Is(err, recoverypoint.ErrHeld) {
			t.Errorf("note %d: purge: %v, want ErrHeld", skip, err)
		}
	}
}
