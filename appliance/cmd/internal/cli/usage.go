package cli

import (
	"fmt"
	"io"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	kb "github.com/keelblock/keelblock/appliance/api/keelblockv1"
)

func (a *app) vaultUsage() *cobra.Command {
	r := &kb.UsageRequest{}
	cmd := &cobra.Command{
		Use:   "usage [MACHINE] [--vault V]",
		Short: "count what machines and their recovery points take",
		Long: `Counts what protection takes. PROTECTED is the storage that a machine's disks occupied at
its newest backup, temporary and excluded disks left out. UNIQUE is what no other machine
(of a point: no other point) needs, SHARED what others need too; both are bytes in packs.
Of a vault, LIVE is what all points need, each record once.

With a machine its points are listed: INCREMENT is what making the point added.`,
		Example: "  keelblock vault usage\n  keelblock vault usage web --json",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			r.Machine = strings.Join(args, "")
			u, err := c.vaults.Usage(cmd.Context(), connect.NewRequest(r))
			if err != nil {
				return suggest(err, r.GetMachine(), func() []string { return c.machineNames(cmd.Context()) })
			}
			return a.print(toUsage(u.Msg), func(w io.Writer) { a.usageTables(w, u.Msg, r.GetMachine() != "") })
		},
		ValidArgsFunction: a.completing(false, completeMachines),
	}
	cmd.Flags().StringVar(&r.Vault, "vault", "", "only this vault")
	_ = cmd.RegisterFlagCompletionFunc("vault", a.completing(true, completeVaults))
	return cmd
}

func (a *app) usageTables(w io.Writer, u *kb.UsageResponse, withPoints bool) {
	var rows [][]string
	for _, m := range u.GetMachines() {
		rows = append(rows, []string{m.GetMachineName(), m.GetVault(), m.GetProtectionState(), m.GetBillingState(), human(m.GetProtectedBytes()),
			fmt.Sprint(len(m.GetPoints())), human(m.GetUniqueBytes()), human(m.GetSharedBytes()), human(m.GetTotalBytes())})
	}
	a.table(w, "MACHINE\tVAULT\tPROTECTION\tBILLING\tPROTECTED\tPOINTS\tUNIQUE\tSHARED\tTOTAL", spaceless(rows))
	if withPoints {
		rows = nil
		for _, m := range u.GetMachines() {
			for _, p := range m.GetPoints() {
				state := ""
				if p.GetDeleted() {
					state = "deleted"
				}
				rows = append(rows, []string{a.shortID(p.GetPointId()), m.GetMachineName() + "@" + p.GetTimeName(), human(p.GetIncrementBytes()),
					human(p.GetUniqueBytes()), human(p.GetSharedBytes()), human(p.GetTotalBytes()), state})
			}
		}
		fmt.Fprintln(w)
		a.table(w, "POINT\tNAME\tINCREMENT\tUNIQUE\tSHARED\tTOTAL\tSTATE", spaceless(rows))
	}
	rows = nil
	for _, v := range u.GetVaults() {
		rows = append(rows, []string{v.GetVault(), human(v.GetLiveBytes()), human(v.GetDeletedBytes()), human(v.GetPackBytes()), human(v.GetIndexBytes()), fmt.Sprint(v.GetCopies())})
	}
	fmt.Fprintln(w)
	a.table(w, "VAULT\tLIVE\tSOFT-DELETED\tPACKS\tINDEX\tCOPIES", rows)
	if !u.GetExact() {
		fmt.Fprintln(w, "\nThe store is too large to count exactly: unique bytes are upper bounds.")
	}
}

type pointUsageShape struct {
	PointID        string `json:"pointId"`
	TimeName       string `json:"timeName"`
	UniqueBytes    int64  `json:"uniqueBytes"`
	SharedBytes    int64  `json:"sharedBytes"`
	TotalBytes     int64  `json:"totalBytes"`
	IncrementBytes int64  `json:"incrementBytes"`
	Deleted        bool   `json:"deleted"`
}

type machineUsageShape struct {
	MachineName     string            `json:"machineName"`
	Vault           string            `json:"vault"`
	ProtectionState string            `json:"protectionState"`
	BillingState    string            `json:"billingState"`
	ProtectedBytes  int64             `json:"protectedBytes"`
	InstanceWeight  float64           `json:"instanceWeight"`
	UniqueBytes     int64             `json:"uniqueBytes"`
	SharedBytes     int64             `json:"sharedBytes"`
	TotalBytes      int64             `json:"totalBytes"`
	Points          []pointUsageShape `json:"points"`
}

type vaultUsageShape struct {
	Vault        string `json:"vault"`
	LiveBytes    int64  `json:"liveBytes"`
	DeletedBytes int64  `json:"deletedBytes"`
	UniqueBytes  int64  `json:"uniqueBytes"`
	SharedBytes  int64  `json:"sharedBytes"`
	PackBytes    int64  `json:"packBytes"`
	IndexBytes   int64  `json:"indexBytes"`
	Copies       int64  `json:"copies"`
}

type usageShape struct {
	Machines []machineUsageShape `json:"machines"`
	Vaults   []vaultUsageShape   `json:"vaults"`
	Exact    bool                `json:"exact"`
}

func toUsage(u *kb.UsageResponse) usageShape {
	return usageShape{Exact: u.GetExact(),
		Machines: mapped(u.GetMachines(), func(m *kb.MachineUsage) machineUsageShape {
			return machineUsageShape{MachineName: m.GetMachineName(), Vault: m.GetVault(), ProtectionState: m.GetProtectionState(), BillingState: m.GetBillingState(),
				ProtectedBytes: m.GetProtectedBytes(), InstanceWeight: m.GetInstanceWeight(), UniqueBytes: m.GetUniqueBytes(), SharedBytes: m.GetSharedBytes(),
				TotalBytes: m.GetTotalBytes(), Points: mapped(m.GetPoints(), func(p *kb.PointUsage) pointUsageShape {
					return pointUsageShape{PointID: p.GetPointId(), TimeName: p.GetTimeName(), UniqueBytes: p.GetUniqueBytes(), SharedBytes: p.GetSharedBytes(),
						TotalBytes: p.GetTotalBytes(), IncrementBytes: p.GetIncrementBytes(), Deleted: p.GetDeleted()}
				})}
		}),
		Vaults: mapped(u.GetVaults(), func(v *kb.VaultUsage) vaultUsageShape {
			return vaultUsageShape{Vault: v.GetVault(), LiveBytes: v.GetLiveBytes(), DeletedBytes: v.GetDeletedBytes(), UniqueBytes: v.GetUniqueBytes(),
				SharedBytes: v.GetSharedBytes(), PackBytes: v.GetPackBytes(), IndexBytes: v.GetIndexBytes(), Copies: v.GetCopies()}
		})}
}
