package cli

import (
	"fmt"
	"io"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	kb "github.com/keelblock/keelblock/appliance/api/keelblockv1"
)

// ranks of consistency, lowest first.
var ranks = map[string]int{"crash": 1, "filesystem": 2, "application": 3}

func (a *app) backupCommand() *cobra.Command {
	var consistency, note string
	var noWait bool
	cmd := &cobra.Command{
		Use:   "backup MACHINE [--consistency C] [--note TEXT] [--no-wait]",
		Short: "cut a recovery point of a machine; prints its id",
		Long: `Cuts all disks of a machine at one instant, while it runs, and keeps what changed since
its last point as a new recovery point. Prints the point's id on one line.

Without --consistency the best label that can be had is taken; one that was asked for
and could not be had is exit status 3, and the point is there all the same.`,
		Example: "  keelblock backup web\n  id=$(keelblock backup web --note 'before the upgrade')",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if consistency != "" && ranks[consistency] == 0 {
				return usageError{fmt.Errorf("--consistency %s: known are application, filesystem and crash", consistency)}
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			ctx := cmd.Context()
			r, err := c.machines.Backup(ctx, connect.NewRequest(&kb.BackupRequest{Machine: args[0], Consistency: consistency, Note: note}))
			if err != nil {
				return suggest(err, args[0], func() []string { return c.machineNames(ctx) })
			}
			if noWait {
				return a.printJobID(r.Msg)
			}
			j, err := a.follow(ctx, c, r.Msg)
			if err != nil {
				return err
			}
			if s := j.GetState(); s == jobFailed || s == jobCancelled {
				return jobError(j)
			}
			if len(j.GetResult()) == 0 {
				return fmt.Errorf("backup %s: %w", args[0], errNothing)
			}
			return a.printBackup(cmd, c, j, consistency)
		},
		ValidArgsFunction: a.completing(false, completeMachines),
	}
	cmd.Flags().StringVar(&consistency, "consistency", "", "ask for application, filesystem or crash")
	cmd.Flags().StringVar(&note, "note", "", "a text kept with the point")
	cmd.Flags().BoolVar(&noWait, "no-wait", false, "print the job's id and return at once")
	_ = cmd.RegisterFlagCompletionFunc("consistency", cobra.FixedCompletions([]string{"application", "filesystem", "crash"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// printBackup prints the point that a backup made, and compares its label with the
// one asked for.
func (a *app) printBackup(cmd *cobra.Command, c *client, j *kb.Job, asked string) error {
	id := j.GetResult()[0]
	var p *kb.RecoveryPoint
	if a.json || asked != "" {
		r, err := c.points.Get(cmd.Context(), connect.NewRequest(&kb.GetPointRequest{Selector: id}))
		if err != nil {
			return fmt.Errorf("point %s was made: %w", id, err)
		}
		p = r.Msg.GetPoint()
	}
	if err := a.print(toPoint(p), func(w io.Writer) { fmt.Fprintln(w, id) }); err != nil {
		return err
	}
	if asked != "" && ranks[p.GetConsistency()] < ranks[asked] {
		why := strings.TrimPrefix(p.GetReason(), "asked for "+asked+": ")
		return partialError{fmt.Sprintf("point %s is %s-consistent and %s was asked for: %s", a.shortID(id), p.GetConsistency(), asked, why)}
	}
	return nil
}

func (a *app) printJobID(j *kb.Job) error {
	return a.print(toJob(j), func(w io.Writer) { fmt.Fprintln(w, j.GetJobId()) })
}
