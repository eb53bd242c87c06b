package cli

import (
	"fmt"
	"io"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	kb "github.com/keelblock/keelblock/appliance/api/keelblockv1"
)

func (a *app) vaultCollect() *cobra.Command {
	r := &kb.CollectRequest{}
	var noWait bool
	cmd := &cobra.Command{
		Use: "gc [--dry-run] [--vault V]", Short: "free what no recovery point needs", Args: cobra.NoArgs,
		Long: `Frees the space of what no recovery point needs any more: what only purged points had, and
what aborted backups left. Backups, restores and readers go on meanwhile. A soft-deleted point
still needs what it has; keelblock recovery-point delete --purge ends that.

The daemon does this once a day by itself, see the key collect-every, and at once when a backup
meets a full vault or little room is left, if points were purged since.

With --dry-run nothing is changed: a line for each point says what it alone needs, which is what
purging it would free, and the last line what a collection would free now.`,
		Example: "  keelblock vault gc --dry-run",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			j, err := c.vaults.Collect(cmd.Context(), connect.NewRequest(r))
			if err != nil {
				return err
			}
			return a.finish(cmd.Context(), c, j.Msg, noWait, func(j *kb.Job) error {
				return a.print(toJob(j), func(w io.Writer) {
					for _, line := range j.GetResult() {
						fmt.Fprintln(w, line)
					}
				})
			})
		},
		ValidArgsFunction: a.completing(false, completeNothing),
	}
	cmd.Flags().BoolVar(&r.DryRun, "dry-run", false, "say what would be freed, and change nothing")
	cmd.Flags().StringVar(&r.Vault, "vault", "", "the vault (default: the one named default)")
	cmd.Flags().BoolVar(&noWait, "no-wait", false, "print the job's id and return at once")
	_ = cmd.RegisterFlagCompletionFunc("vault", a.completing(false, completeVaults))
	return cmd
}
