package cli

import (
	"fmt"
	"io"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	kb "github.com/keelblock/keelblock/appliance/api/keelblockv1"
)

func (a *app) vaultCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "vault", Short: "the vault, where recovery points live: status, verify, rebuild-index"}
	cmd.AddCommand(&cobra.Command{
		Use: "status", Short: "show what the vault holds and how much room is left", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			r, err := c.appliance.VaultStatus(cmd.Context(), connect.NewRequest(&kb.VaultStatusRequest{}))
			if err != nil {
				return err
			}
			v := r.Msg
			return a.print(toVault(v), func(w io.Writer) {
				describe(w, pair{"vault", v.GetName()}, pair{"state", v.GetState()}, pair{"reason", v.GetReason()},
					pair{"points", fmt.Sprint(v.GetPoints())}, pair{"soft-deleted", fmt.Sprint(v.GetDeletedPoints())},
					pair{"protected", human(v.GetProtectedBytes())},
					pair{"packs", fmt.Sprintf("%d, %s", v.GetPacks(), human(v.GetPackBytes()))},
					pair{"blocks", fmt.Sprintf("%d of %s", v.GetBlocks(), human(v.GetBlockSizeBytes()))},
					pair{"corrupt blocks", fmt.Sprint(v.GetCorruptBlocks())}, pair{"free", human(v.GetFreeBytes())})
			})
		},
	})
	cmd.AddCommand(a.vaultVerify(), a.vaultRebuild())
	return cmd
}

func (a *app) vaultVerify() *cobra.Command {
	var noWait bool
	cmd := &cobra.Command{
		Use: "verify", Short: "read every block of every point and compare it with its digest", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			return a.verify(cmd.Context(), c, &kb.VerifyRequest{}, noWait)
		},
	}
	cmd.Flags().BoolVar(&noWait, "no-wait", false, "print the job's id and return at once")
	return cmd
}

func (a *app) vaultRebuild() *cobra.Command {
	var noWait bool
	cmd := &cobra.Command{
		Use: "rebuild-index", Short: "make the index of a closed vault anew from its packs, and open it", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			r, err := c.appliance.RebuildIndex(cmd.Context(), connect.NewRequest(&kb.RebuildIndexRequest{}))
			if err != nil {
				return err
			}
			return a.finish(cmd.Context(), c, r.Msg, noWait, func(j *kb.Job) error {
				return a.print(toJob(j), func(w io.Writer) {
					for _, line := range j.GetResult() {
						fmt.Fprintln(w, line)
					}
				})
			})
		},
	}
	cmd.Flags().BoolVar(&noWait, "no-wait", false, "print the job's id and return at once")
	return cmd
}
