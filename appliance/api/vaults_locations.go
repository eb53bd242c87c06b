package api

import (
	"context"
	"fmt"

	"connectrpc.com/connect"

	kb "github.com/keelblock/keelblock/appliance/api/keelblockv1"
	"github.com/keelblock/keelblock/appliance/vault"
	"github.com/keelblock/keelblock/dedupe/packdir"
)

// RepairLocations starts a job that makes the copies of every pack complete at every
// location.
func (s vaultsService) RepairLocations(ctx context.Context, r *connect.Request[kb.RepairLocationsRequest]) (*connect.Response[kb.Job], error) {
	t, err := s.Verifier.StartRepair(ctx, r.Msg.Vault)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(jobMessage(t.Record())), nil
}

// locations are the folders of a vault. Of one that is closed only their names are known.
func (s service) locations(v *vault.Vault) []*kb.Location {
	var out []*kb.Location
	if h := v.Peek(); h != nil {
		for _, l := range h.Store.Locations() {
			out = append(out, &kb.Location{Path: l.Path, State: l.State, Reason: l.Reason, Packs: l.Packs, MissingPacks: l.MissingPacks, FreeBytes: l.FreeBytes})
		}
		if len(out) == 1 {
			out[0].Packs = h.Store.Stats().Packs
		}
		return out
	}
	state, _ := v.State()
	spec := v.Spec()
	for _, dir := range append([]string{spec.Dir}, spec.Locations...) {
		l := &kb.Location{Path: dir, State: string(state)}
		if space, err := vault.SpaceOf(dir); err == nil {
			l.FreeBytes = space.Free
		}
		out = append(out, l)
	}
	return out
}

// locationAlerts are one alert for each location that is not in, and one for each vault
// with damage that nothing could heal.
func (s service) locationAlerts() []Alert {
	var out []Alert
	for _, h := range s.Vaults.Handles() {
		name := h.Vault.Name()
		for _, l := range h.Store.Locations() {
			text := ""
			switch {
			case l.State != packdir.StateIn:
				text = fmt.Sprintf("location of vault %s is %s: %s; mount it again, or put an empty folder in its place: its repair begins by itself, or by keelblock vault repair --vault %s",
					name, l.State, l.Reason, name)
			case l.MissingPacks > 0:
				text = fmt.Sprintf("location of vault %s lacks %d packs; run keelblock vault repair --vault %s", name, l.MissingPacks, name)
			default:
				continue
			}
			out = append(out, Alert{Severity: "critical", Object: l.Path, Text: text, Since: l.Since})
		}
		out = append(out, s.damageAlert(h)...)
	}
	return out
}

func (s service) damageAlert(h *vault.Handle) []Alert {
	quarantined, err := h.Store.Quarantined()
	damaged := s.Verifier.Damaged(h.Vault.Name())
	if err != nil || len(quarantined) == 0 && len(damaged) == 0 {
		return nil
	}
	text := fmt.Sprintf("%d blocks or nodes are damaged at every location", len(quarantined))
	for i, d := range damaged {
		if i == 0 {
			text += "; recovery points that need them:"
		}
		if i == maxPointsNamed {
			text += fmt.Sprintf(" and %d more", len(damaged)-i)
			break
		}
		text += " " + d.Point.String()[:12]
	}
	return []Alert{{Severity: "critical", Object: h.Vault.Name(), Text: text + "; the next backup stores again what it still finds"}}
}

// maxPointsNamed bounds the points that one alert names.
const maxPointsNamed = 10
