package cli

import (
	"fmt"
	"io"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	kb "github.com/keelblock/keelblock/appliance/api/keelblockv1"
)

func (a *app) vaultCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "vault", Short: "the vault, where recovery points live: status"}
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
	return cmd
}
