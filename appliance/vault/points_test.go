package vault

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/keelblock/keelblock/appliance"
	"github.com/keelblock/keelblock/appliance/clock"
	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/dedupetest"
	"github.com/keelblock/keelblock/dedupe/recoverypoint"
)

var testSite = &Site{ID: strings.Repeat("0a", 16), Name: "here"}

func newTestSet(t *testing.T, dir string) *Set {
	t.Helper()
	s := NewSet(SetOptions{DataDir: dir, DefaultDir: dir + "/vault", Site: testSite})
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// publish makes one point of one machine in the default vault.
func publish(t *testing.T, s *Set, sequence uint64) *recoverypoint.Point {
	t.Helper()
	h := s.Default().Peek()
	b, err := h.Store.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	machine := recoverypoint.ID{1}
	list, err := h.Points.Publish(t.Context(), b, []*recoverypoint.Manifest{{MachineID: machine, MachineName: "web", CutID: recoverypoint.ID{2},
		CutMachines: []recoverypoint.ID{machine}, Generation: recoverypoint.Generation{Number: 1, ID: recoverypoint.ID{3}}, Sequence: sequence,
		FrozenAt: time.Unix(1e9+int64(sequence), 0), Consistency: recoverypoint.Crash, Tracking: recoverypoint.TrackingFull}}, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	return list[0]
}

// A pin comes before a purge, and then the point stays, or after it, and then it is
// refused; in the midst of the purge it waits for its end.
func TestPinAgainstPurge(t *testing.T) {
	s := newTestSet(t, t.TempDir())
	if err := s.Default().Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	h := s.Default().Peek()
	pinned, purged, refused := publish(t, s, 1), publish(t, s, 2), publish(t, s, 3)
	now := clock.Time{At: time.Unix(2e9, 0), Proven: time.Unix(2e9, 0)}

	release, err := s.Pin(pinned.ID, "a reader")
	if err != nil {
		t.Fatal(err)
	}
	done, used, err := s.Purge(t.Context(), h, []dedupe.Digest{pinned.ID}, event(now, "test", ""))
	if err != nil || len(done) != 0 || len(used[pinned.ID]) != 1 || h.Points.Get(pinned.ID) == nil {
		t.Errorf("purge of a pinned point: %v, used by %v, %v", done, used, err)
	}
	release()

	var late chan error
	pinLater := func(id dedupe.Digest) {
		if _, purging := s.pins.pin(id, "a reader"); purging == nil {
			t.Error("a point was pinned while its purge was being noted")
		}
		late = make(chan error, 1)
		go func() {
			_, err := s.Pin(id, "a reader")
			late <- err
		}()
	}
	_, err = s.pins.purge([]dedupe.Digest{purged.ID}, func(free []dedupe.Digest) error {
		pinLater(purged.ID) // between the check and the note
		_, err := h.Points.NoteAll(t.Context(), free, recoverypoint.NotePurge, event(now, "test", ""))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := <-late; !errors.Is(err, appliance.ErrNotFound) || !strings.Contains(err.Error(), purged.ID.String()) {
		t.Errorf("pin of a purged point: %v", err)
	}

	failure := errors.New("disk full")
	if _, err := s.pins.purge([]dedupe.Digest{refused.ID}, func([]dedupe.Digest) error { pinLater(refused.ID); return failure }); !errors.Is(err, failure) {
		t.Errorf("purge: %v", err)
	}
	if err := <-late; err != nil {
		t.Errorf("pin after a purge that failed: %v", err)
	}
	if _, err := s.Delete(t.Context(), refused.ID.String(), true, "test", now); !errors.Is(err, appliance.ErrInUse) {
		t.Errorf("delete --purge of a pinned point: %v", err)
	}
}

// A point whose manifest cannot be read stops a collection by name, and naming it says
// what to do; it is there again when its manifest is, and can be given up, after which the
// collection goes on.
func TestUnreadablePoint(t *testing.T) {
	dir := t.TempDir()
	s := newTestSet(t, dir)
	if err := s.Default().Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	p := publish(t, s, 1)
	publish(t, s, 2)
	path, off, n, err := s.Default().Peek().Store.Locate(p.ID)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	flip := func() { t.Helper(); dedupetest.Flip(t, path, off+n-1) }
	flip()
	s = newTestSet(t, dir)
	if err := s.Default().Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	h := s.Default().Peek()
	wayOut := "keelblock recovery-point delete " + p.ID.String() + " --purge"
	if _, err := h.Collect(t.Context(), CollectOptions{}); err == nil || !strings.Contains(err.Error(), wayOut) {
		t.Errorf("collect: %v", err)
	}
	if l := s.Default().LastCollection(); l.Outcome != CollectionFailed || !strings.Contains(l.Error, p.ID.String()) {
		t.Errorf("last collection: %+v", l)
	}
	if _, _, _, err := s.Find(t.Context(), p.ID.String()[:16]); err == nil || !strings.Contains(err.Error(), wayOut) {
		t.Errorf("find: %v", err)
	}

	flip()
	if err := h.Reread(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, found, _, err := s.Find(t.Context(), p.ID.String()); err != nil || found.ID != p.ID || len(h.Points.List("web", false)) != 2 {
		t.Errorf("find it when it can be read: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	flip()
	s = newTestSet(t, dir)
	if err := s.Default().Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	h = s.Default().Peek()
	now := clock.Time{At: time.Unix(2e9, 0), Proven: time.Unix(2e9, 0)}
	if _, err := s.Hold(t.Context(), p.ID.String(), "test", "", now); err == nil {
		t.Error("an unreadable point is held")
	}
	if gone, err := s.Delete(t.Context(), p.ID.String(), true, "test", now); err != nil || gone.ID != p.ID {
		t.Errorf("purge: %v", err)
	}
	if _, err := h.Collect(t.Context(), CollectOptions{}); err != nil || s.Default().LastCollection().Outcome != CollectionCompleted {
		t.Errorf("collect once it was purged: %v", err)
	}
	if len(h.Points.Problems()) != 0 || len(h.Points.List("web", true)) != 1 {
		t.Errorf("problems %v, %d points", h.Points.Problems(), len(h.Points.List("web", true)))
	}
}
