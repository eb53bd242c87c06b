package api

import (
	"context"

	"connectrpc.com/connect"

	kb "github.com/keelblock/keelblock/appliance/api/keelblockv1"
	"github.com/keelblock/keelblock/appliance/usage"
)

// Usage says what protection takes.
func (s vaultsService) Usage(ctx context.Context, r *connect.Request[kb.UsageRequest]) (*connect.Response[kb.UsageResponse], error) {
	report, err := usage.Make(ctx, s.Machines, s.Vaults, r.Msg.Machine, r.Msg.Vault)
	if err != nil {
		return nil, err
	}
	out := &kb.UsageResponse{Exact: report.Exact}
	for _, m := range report.Machines {
		out.Machines = append(out.Machines, machineUsage(m))
	}
	for _, v := range report.Vaults {
		out.Vaults = append(out.Vaults, &kb.VaultUsage{Vault: v.Name, LiveBytes: v.Live, DeletedBytes: v.Deleted, PackBytes: v.PackBytes,
			IndexBytes: v.IndexBytes, Copies: int64(v.Copies), UniqueBytes: v.Unique, SharedBytes: v.Shared})
	}
	return connect.NewResponse(out), nil
}

func machineUsage(m usage.Machine) *kb.MachineUsage {
	out := &kb.MachineUsage{MachineName: m.Name, Vault: m.Vault, ProtectionState: string(m.Protection), BillingState: string(m.Billing),
		ProtectedBytes: m.ProtectedBytes, UniqueBytes: m.Unique, SharedBytes: m.Shared, TotalBytes: m.Unique + m.Shared, InstanceWeight: m.Weight}
	for _, p := range m.Points {
		out.Points = append(out.Points, &kb.PointUsage{PointId: p.Point.ID.String(), TimeName: m.In.Points.TimeName(p.Point),
			UniqueBytes: p.Unique, SharedBytes: p.Shared, TotalBytes: p.Total, IncrementBytes: p.Point.Accounting.StoredBytes, Deleted: p.Point.Deleted})
	}
	return out
}
