package cli

import (
	"errors"
	"fmt"
	"io"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	kb "github.com/keelblock/keelblock/appliance/api/keelblockv1"
)

func (a *app) vaultEdit() *cobra.Command {
	var softDelete, minimum periodValue
	r := &kb.EditVaultRequest{}
	cmd := &cobra.Command{
		Use:   "edit NAME [--soft-delete D] [--immutability disabled|unlocked|locked] [--minimum-retention D] [--redundancy R] [--compression C]",
		Short: "change how a vault forgets, its redundancy or its compression",
		Long: `Changes the settings of a vault. They are kept in the vault itself.

--soft-delete is how long a deleted point can be undeleted; 0 purges it at once.
--immutability unlocked refuses that a point is deleted before its time; locked does, too,
and cannot be taken back by anybody while the time of any point lasts. That asks, or needs
--yes. What a point's time is: keelblock help retention.
--compression is that of new blocks: s2, the default, or zstd, which stores about an eighth
less and takes three times as long, or none. Blocks that are there stay as they are.`,
		Example: "  keelblock vault edit default --soft-delete 30d\n  keelblock vault edit default --immutability locked --minimum-retention 90d",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			r.Name, r.SoftDeleteSeconds, r.MinimumRetentionSeconds = args[0], softDelete.seconds(), minimum.seconds()
			switch r.Immutability {
			case "", "disabled", "unlocked", "locked":
			default:
				return usageError{fmt.Errorf("--immutability %s: known are disabled, unlocked and locked", r.Immutability)}
			}
			if !softDelete.set && !minimum.set && r.Immutability == "" && r.Redundancy == "" && r.Compression == "" {
				return usageError{errors.New("vault edit needs --soft-delete, --immutability, --minimum-retention, --redundancy or --compression")}
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			old, err := a.findVault(cmd.Context(), c, args[0])
			if err != nil {
				return err
			}
			if r.Immutability == "locked" && old.GetImmutability() != "locked" {
				if err := a.confirm("lock vault %s, which nobody can take back while any point's time lasts", args[0]); err != nil {
					return err
				}
			}
			v, err := c.vaults.Edit(cmd.Context(), connect.NewRequest(r))
			if err != nil {
				return err
			}
			return a.print(toVaultDetails(v.Msg), nil)
		},
		ValidArgsFunction: a.completing(false, completeVaults),
	}
	f := cmd.Flags()
	f.Var(&softDelete, "soft-delete", "how long a deleted point can be undeleted: 14d, 0 for not at all")
	f.StringVar(&r.Immutability, "immutability", "", "disabled, unlocked or locked")
	f.Var(&minimum, "minimum-retention", "how long an immutable vault keeps every point (default with --immutability: 30d)")
	f.StringVar(&r.Redundancy, "redundancy", "", "LRS, GRS or RA-GRS; fixed once the vault holds a point")
	f.StringVar(&r.Compression, "compression", "", "of new blocks: s2, zstd or none")
	_ = cmd.RegisterFlagCompletionFunc("compression", cobra.FixedCompletions(compressions, cobra.ShellCompDirectiveNoFileComp))
	_ = cmd.RegisterFlagCompletionFunc("immutability", cobra.FixedCompletions([]string{"disabled", "unlocked", "locked"}, cobra.ShellCompDirectiveNoFileComp))
	_ = cmd.RegisterFlagCompletionFunc("redundancy", cobra.FixedCompletions([]string{"LRS", "GRS", "RA-GRS"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

type clockShape struct {
	Before *string `json:"before"`
	Now    *string `json:"now"`
	Proven *string `json:"proven"`
}

func (a *app) vaultAcceptClock() *cobra.Command {
	return &cobra.Command{
		Use: "accept-clock", Short: "take the wall clock for right after it was in doubt",
		Long: `Says that the wall clock is right, after an alert said that it is in doubt. Expiry and
purging go on by it. Locks do not: they go on by the time that this appliance has counted,
so that a clock set forward unlocks nothing. See keelblock help retention.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			if err := a.confirm("take the clock of the daemon's host for right, and let points expire by it"); err != nil {
				return err
			}
			r, err := c.appliance.AcceptClock(cmd.Context(), connect.NewRequest(&kb.AcceptClockRequest{}))
			if err != nil {
				return err
			}
			m := r.Msg
			return a.print(clockShape{stamp(m.GetBefore()), stamp(m.GetNow()), stamp(m.GetProven())}, func(w io.Writer) {
				describe(w, pair{"it was", at(m.GetBefore())}, pair{"it is", at(m.GetNow())}, pair{"locks go by", at(m.GetProven())})
			})
		},
	}
}
