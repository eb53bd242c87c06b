package cli

import (
	"context"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	kb "github.com/keelblock/keelblock/appliance/api/keelblockv1"
)

func (a *app) vaultCollect() *cobra.Command {
	r := &kb.CollectRequest{}
	cmd := &cobra.Command{
		Use: "gc [--dry-run] [--vault V]", Short: "free what no recovery point needs",
		Long: `Frees the space of what no recovery point needs any more: what only purged points had, and
what aborted backups left. Backups, restores and readers go on meanwhile. A soft-deleted point
still needs what it has; keelblock recovery-point delete --purge ends that.

The daemon does this once a day by itself, see the key collect-every, and at once when a backup
meets a full vault or little room is left, if points were purged since.

With --dry-run nothing is changed: a line for each point says what it alone needs, which is what
purging it would free, and the last line what a collection would free now.`,
		Example: "  keelblock vault gc --dry-run",
	}
	cmd.Flags().BoolVar(&r.DryRun, "dry-run", false, "say what would be freed, and change nothing")
	return a.startsJob(cmd, &r.Vault, func(ctx context.Context, c *client) (*connect.Response[kb.Job], error) {
		return c.vaults.Collect(ctx, connect.NewRequest(r))
	})
}
