package cli

import (
	"context"
	"fmt"
	"io"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	kb "github.com/keelblock/keelblock/appliance/api/keelblockv1"
)

func (a *app) vaultRepair() *cobra.Command {
	r := &kb.RepairLocationsRequest{}
	return a.startsJob(&cobra.Command{
		Use: "repair [--vault V]", Short: "make the copies of every pack complete at every location",
		Long: `Copies every pack that a location of the vault lacks or has damaged from another location
where it is whole. A location that is out is in again afterwards; its folder is there and is
this vault's, or empty. Backups go on meanwhile. The daemon does the same by itself when a
location comes back.`,
	}, &r.Vault, func(ctx context.Context, c *client) (*connect.Response[kb.Job], error) {
		return c.vaults.RepairLocations(ctx, connect.NewRequest(r))
	})
}

// describeLocations shows the folders of a vault with copies, and what is damaged.
func describeLocations(w io.Writer, v *kb.VaultStatusResponse) {
	if v.GetQuarantinedBlocks() > 0 || len(v.GetDamagedPoints()) > 0 {
		describe(w, pair{"damaged", fmt.Sprintf("%d blocks at every location", v.GetQuarantinedBlocks())})
		for _, id := range v.GetDamagedPoints() {
			describe(w, pair{"damaged point", id})
		}
	}
	if len(v.GetLocations()) < 2 {
		return
	}
	describe(w, pair{"repaired reads", fmt.Sprint(v.GetRepairedBlocks())})
	for _, l := range v.GetLocations() {
		text := fmt.Sprintf("%s, %s, %d packs", l.GetPath(), l.GetState(), l.GetPacks())
		if l.GetMissingPacks() > 0 {
			text += fmt.Sprintf(", %d missing", l.GetMissingPacks())
		}
		if l.GetReason() != "" {
			text += ": " + l.GetReason()
		}
		describe(w, pair{"location", text})
	}
}
