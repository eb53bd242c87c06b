package api

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"connectrpc.com/connect"

	"github.com/keelblock/keelblock/appliance"
	kb "github.com/keelblock/keelblock/appliance/api/keelblockv1"
	"github.com/keelblock/keelblock/appliance/machine"
	"github.com/keelblock/keelblock/appliance/vault"
	"github.com/keelblock/keelblock/dedupe/recoverypoint"
	"github.com/keelblock/keelblock/dedupe/retention"
)

// Hold keeps a point from being deleted and expired until it is released.
func (s pointsService) Hold(ctx context.Context, r *connect.Request[kb.HoldPointRequest]) (*connect.Response[kb.RecoveryPoint], error) {
	return s.restated(ctx)(s.Vaults.Hold(ctx, r.Msg.Point, actor(ctx), r.Msg.Text, s.Clock.Now()))
}

// Release ends a hold.
func (s pointsService) Release(ctx context.Context, r *connect.Request[kb.ReleasePointRequest]) (*connect.Response[kb.RecoveryPoint], error) {
	return s.restated(ctx)(s.Vaults.Release(ctx, r.Msg.Point, actor(ctx), r.Msg.Text, s.Clock.Now()))
}

// restated answers with a point that something was just stated about.
func (s pointsService) restated(ctx context.Context) func(*recoverypoint.Point, error) (*connect.Response[kb.RecoveryPoint], error) {
	return func(p *recoverypoint.Point, err error) (*connect.Response[kb.RecoveryPoint], error) {
		if err != nil {
			return nil, err
		}
		h, _ := s.Vaults.Holder(p.ID)
		if h == nil {
			return nil, appliance.NotFound("", "recovery-point", p.ID.String())
		}
		return connect.NewResponse(s.point(ctx, h, p)), nil
	}
}

// Prune deletes, softly, what the rules do not keep, or says what they would do.
func (s pointsService) Prune(ctx context.Context, r *connect.Request[kb.PruneRequest]) (*connect.Response[kb.PruneResponse], error) {
	h, err := s.prunedVault(ctx, r.Msg)
	if err != nil {
		return nil, err
	}
	unique := map[string]int64{} // before they go
	for _, p := range h.Points.List(r.Msg.Machine, false) {
		n, err := h.Points.UniqueBytes(ctx, p.ID)
		if err != nil {
			s.Logger.Warn("bytes that only this point needs are not counted", "recovery_point", p.ID, "error", err)
		}
		unique[p.ID.String()] = n
	}
	decisions, err := s.Expiry.Prune(ctx, h, r.Msg.Machine, rulesOf(r.Msg.Keep), r.Msg.DryRun, actor(ctx))
	if err != nil {
		return nil, err
	}
	out := &kb.PruneResponse{}
	for _, d := range decisions {
		name := ""
		if p := h.Points.Get(d.ID); p != nil {
			name = h.Points.TimeName(p)
		}
		out.Decisions = append(out.Decisions, &kb.PruneDecision{PointId: d.ID.String(), TimeName: name, Keep: d.Keep,
			Reason: d.Reason(), UniqueBytes: unique[d.ID.String()]})
	}
	return connect.NewResponse(out), nil
}

// prunedVault is the vault whose points a prune is about: the one named, else that of the
// machine.
func (s pointsService) prunedVault(ctx context.Context, r *kb.PruneRequest) (*vault.Handle, error) {
	m, err := s.Machines.Get(r.Machine)
	h, vaultErr := s.Vaults.Use(ctx, cmp.Or(r.Vault, m.Vault))
	if vaultErr != nil {
		return nil, vaultErr
	}
	if err != nil && len(h.Points.List(r.Machine, false)) == 0 { // points of a machine that was deleted can be pruned
		return nil, err
	}
	return h, nil
}

// retainFor is how long an on-demand point is kept; 0: the rules decide.
func retainFor(seconds int64) (time.Duration, error) {
	if seconds < 0 || seconds > int64(recoverypoint.MaxPeriod/time.Second) {
		return 0, &appliance.Error{Op: "back up", Kind: appliance.ErrInvalid, Text: fmt.Sprintf("a retention of %d seconds is not within 0 and 100 years", seconds)}
	}
	return time.Duration(seconds) * time.Second, nil
}

func rulesOf(k *kb.KeepRules) retention.Rules {
	return retention.Rules{Last: int(k.GetLast()), Hourly: int(k.GetHourly()), Daily: int(k.GetDaily()), Weekly: int(k.GetWeekly()),
		Monthly: int(k.GetMonthly()), Yearly: int(k.GetYearly()), TimeZone: k.GetTimeZone()}
}

func keepRules(r retention.Rules) *kb.KeepRules {
	return &kb.KeepRules{Last: int64(r.Last), Hourly: int64(r.Hourly), Daily: int64(r.Daily), Weekly: int64(r.Weekly),
		Monthly: int64(r.Monthly), Yearly: int64(r.Yearly), TimeZone: r.TimeZone}
}

// checkRules refuses rules that keep less, of a machine with points in an immutable vault.
func (s service) checkRules(m machine.Machine, rules retention.Rules) error {
	if rules.Covers(m.Retention) {
		return nil
	}
	for _, h := range s.Vaults.Handles() {
		if h.Points.Settings().Immutability == recoverypoint.Disabled || len(h.Points.List(m.ID, true)) == 0 {
			continue
		}
		return &appliance.Error{Op: fmt.Sprintf("edit machine %q", m.Name), Kind: appliance.ErrRefused,
			Text: fmt.Sprintf("%s keeps less than %s, and vault %s, which has points of it, is immutable", rules, m.Retention, h.Vault.Name()),
			Hint: "give rules that keep more; see keelblock help retention"}
	}
	return nil
}

// configure changes how a vault forgets.
func (s vaultsService) configure(ctx context.Context, r *kb.EditVaultRequest) error {
	c := vault.Change{Immutability: recoverypoint.Immutability(r.Immutability)}
	for _, f := range []struct {
		seconds *int64
		to      **time.Duration
		what    string
	}{{r.SoftDeleteSeconds, &c.SoftDelete, "soft-delete period"}, {r.MinimumRetentionSeconds, &c.MinimumRetention, "minimum retention"}} {
		if f.seconds == nil {
			continue
		}
		if *f.seconds < 0 || *f.seconds > int64(recoverypoint.MaxPeriod/time.Second) {
			return &appliance.Error{Op: fmt.Sprintf("edit vault %q", r.Name), Kind: appliance.ErrInvalid,
				Text: fmt.Sprintf("a %s of %d seconds is not within 0 and 100 years", f.what, *f.seconds)}
		}
		d := time.Duration(*f.seconds) * time.Second
		*f.to = &d
	}
	return s.Vaults.Configure(ctx, r.Name, c, actor(ctx), s.Clock.Now())
}

// forgetting fills in how a vault forgets.
func forgetting(out *kb.Vault, s recoverypoint.Settings) {
	out.SoftDeleteSeconds, out.MinimumRetentionSeconds = int64(s.SoftDelete/time.Second), int64(s.MinimumRetention/time.Second)
	out.Immutability = string(s.Immutability)
}

// AcceptClock takes the wall clock for right.
func (s applianceService) AcceptClock(context.Context, *connect.Request[kb.AcceptClockRequest]) (*connect.Response[kb.ClockStatus], error) {
	before, after, err := s.Clock.Accept()
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&kb.ClockStatus{Before: timestamp(before.At), Now: timestamp(after.At), Proven: timestamp(after.Proven)}), nil
}
