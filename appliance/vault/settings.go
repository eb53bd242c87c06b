package vault

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/keelblock/keelblock/appliance"
	"github.com/keelblock/keelblock/appliance/clock"
	"github.com/keelblock/keelblock/dedupe/recoverypoint"
)

// Change is what Configure does to a vault's settings; what is not given stays.
type Change struct {
	SoftDelete       *time.Duration
	MinimumRetention *time.Duration
	Immutability     recoverypoint.Immutability // "": as it is
}

// Configure changes how a vault forgets. A vault that becomes immutable without a minimum
// retention gets 30 days. ErrRefused for what immutability forbids.
func (s *Set) Configure(ctx context.Context, name string, c Change, actor string, now clock.Time) error {
	v, err := s.Get(name)
	if err != nil {
		return err
	}
	h, err := v.Use(ctx)
	if err != nil {
		return err
	}
	op := fmt.Sprintf("edit vault %q", v.Name())
	old := h.Points.Settings()
	want := old
	if c.SoftDelete != nil {
		want.SoftDelete = *c.SoftDelete
	}
	if c.Immutability != "" {
		want.Immutability = c.Immutability
	}
	if c.MinimumRetention != nil {
		want.MinimumRetention = *c.MinimumRetention
	} else if old.Immutability == recoverypoint.Disabled && want.Immutability != recoverypoint.Disabled && old.MinimumRetention == 0 {
		want.MinimumRetention = recoverypoint.DefaultMinimumRetention
	}
	if want == old {
		return nil
	}
	want.At, want.Actor, want.Text = now.At, actor, ""
	err = h.Points.SetSettings(ctx, want, now.Proven)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, recoverypoint.ErrLocked):
		e := &appliance.Error{Op: op, Kind: appliance.ErrRefused, Err: err, Hint: "nobody can before; see keelblock help retention"}
		if old.Immutability == recoverypoint.Unlocked {
			e.Hint = fmt.Sprintf("keelblock vault edit %s --immutability disabled, if you may", v.Name())
		}
		return e
	case errors.Is(err, recoverypoint.ErrInvalid):
		return &appliance.Error{Op: op, Kind: appliance.ErrInvalid, Err: err, Hint: "see keelblock help retention"}
	}
	return fmt.Errorf("%s: %w", op, err)
}
