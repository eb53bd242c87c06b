package vault

import (
	"context"
	"errors"
	"testing"

	"github.com/keelblock/keelblock/appliance"
)

// How the last collection went is known after a restart, also of one that a kill ended.
func TestLastCollection(t *testing.T) {
	dir := t.TempDir()
	reopen := func(s *Set) *Set {
		t.Helper()
		if s != nil {
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
		}
		s = newTestSet(t, dir)
		if err := s.Default().Open(t.Context()); err != nil {
			t.Fatal(err)
		}
		return s
	}
	s := reopen(nil)
	if l := s.Default().LastCollection(); l.Outcome != "" {
		t.Errorf("before the first one: %+v", l)
	}
	if _, err := s.Default().Peek().Collect(t.Context(), CollectOptions{DryRun: true}); err != nil || s.Default().LastCollection().Outcome != "" {
		t.Errorf("after a dry run: %+v, %v", s.Default().LastCollection(), err)
	}
	publish(t, s, 1)
	if _, err := s.Default().Peek().Collect(t.Context(), CollectOptions{Reason: "on request"}); err != nil {
		t.Fatal(err)
	}
	want := s.Default().LastCollection()
	if want.Outcome != CollectionCompleted || want.Reason != "on request" || want.EndedAt.Before(want.StartedAt) || want.KeptBytes == 0 {
		t.Errorf("%+v", want)
	}
	s = reopen(s)
	if got := s.Default().LastCollection(); got != want {
		t.Errorf("after a restart %+v, want %+v", got, want)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Default().Peek().Collect(ended, CollectOptions{Reason: "in its turn"}); err == nil {
		t.Error("a collection whose context has ended")
	}
	s = reopen(s)
	if got := s.Default().LastCollection(); got.Outcome != CollectionCancelled || got.Error == "" {
		t.Errorf("cancelled: %+v", got)
	}
	if _, err := s.Default().beginCollection("in its turn"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Default().Peek().Collect(t.Context(), CollectOptions{}); !errors.Is(err, appliance.ErrInUse) {
		t.Errorf("a second collection: %v", err)
	}
	s = reopen(s) // as a kill leaves it
	if got := s.Default().LastCollection(); got.Outcome != CollectionInterrupted || got.Error == "" {
		t.Errorf("interrupted: %+v", got)
	}
	if _, err := s.Default().Peek().Collect(t.Context(), CollectOptions{}); err != nil {
		t.Error(err)
	}
}
