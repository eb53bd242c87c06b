package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	kb "github.com/keelblock/keelblock/appliance/api/keelblockv1"
)

// ranks of consistency, lowest first.
var ranks = map[string]int{"crash": 1, "filesystem": 2, "application": 3}

func (a *app) backupCommand() *cobra.Command {
	var consistency, note, into string
	var noWait bool
	var retain periodValue
	cmd := &cobra.Command{
		Use:   "backup (MACHINE | GROUP) [--consistency C] [--retain-for D] [--note TEXT] [--vault V] [--no-wait]",
		Short: "cut a recovery point of a machine, or of each machine of a group; prints ids",
		Long: `Cuts all disks of a machine at one instant, while it runs, and keeps what changed since
its last point as a new recovery point. Prints the point's id on one line.

The disks of all machines of a group are cut at the same instant; there is one point of
each machine, all or none. Prints "MACHINE ID" for each, by name.

Without --consistency the best label that can be had is taken; one that was asked for
and could not be had is exit status 3, and the points are there all the same.

--retain-for keeps the points for that long, and no longer: they expire by themselves, and
take no place of those that the machine's rules keep.`,
		Example: "  keelblock backup web\n  id=$(keelblock backup web --note 'before the upgrade')",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if consistency != "" && ranks[consistency] == 0 {
				return usageError{fmt.Errorf("--consistency %s: known are application, filesystem and crash", consistency)}
			}
			if retain.set && retain.d <= 0 {
				return usageError{errors.New("--retain-for 0: a point is kept for some time")}
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			ctx := cmd.Context()
			j, group, err := a.startBackup(ctx, c, &kb.BackupRequest{Machine: args[0], Consistency: consistency, Note: note, Vault: into, RetainSeconds: int64(retain.d / time.Second)})
			if err != nil {
				return err
			}
			if noWait {
				return a.printJobID(j)
			}
			if j, err = a.follow(ctx, c, j); err != nil {
				return err
			}
			if s := j.GetState(); s == jobFailed || s == jobCancelled {
				return jobError(j)
			}
			if len(j.GetResult()) == 0 {
				return fmt.Errorf("backup %s: %w", args[0], errNothing)
			}
			return a.printBackup(ctx, c, j.GetResult(), group, consistency)
		},
		ValidArgsFunction: a.completing(false, completeMachinesAndGroups),
	}
	cmd.Flags().StringVar(&consistency, "consistency", "", "ask for application, filesystem or crash")
	cmd.Flags().Var(&retain, "retain-for", "keep the points for this long: 12h, 30d, 1y (default: as long as the machine's rules do)")
	cmd.Flags().StringVar(&note, "note", "", "a text kept with the points")
	cmd.Flags().StringVar(&into, "vault", "", "the vault that the points go to (default: that of the machine)")
	_ = cmd.RegisterFlagCompletionFunc("vault", a.completing(true, completeVaults))
	cmd.Flags().BoolVar(&noWait, "no-wait", false, "print the job's id and return at once")
	_ = cmd.RegisterFlagCompletionFunc("consistency", cobra.FixedCompletions([]string{"application", "filesystem", "crash"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// startBackup starts the backup of a machine, or of a group when no machine has the name:
// the two share one space of names.
func (a *app) startBackup(ctx context.Context, c *client, r *kb.BackupRequest) (j *kb.Job, group bool, err error) {
	name := r.GetMachine()
	m, err := c.machines.Backup(ctx, connect.NewRequest(r))
	if err == nil {
		return m.Msg, false, nil
	}
	if connect.CodeOf(err) != connect.CodeNotFound || !strings.Contains(err.Error(), fmt.Sprintf("machine %q does not exist", name)) {
		return nil, false, err
	}
	g, groupErr := c.groups.Backup(ctx, connect.NewRequest(&kb.GroupBackupRequest{Group: name, Consistency: r.GetConsistency(),
		Note: r.GetNote(), RetainSeconds: r.GetRetainSeconds(), Vault: r.GetVault()}))
	if groupErr == nil {
		return g.Msg, true, nil
	}
	if connect.CodeOf(groupErr) != connect.CodeNotFound || !strings.Contains(groupErr.Error(), fmt.Sprintf("group %q does not exist", name)) {
		return nil, true, groupErr
	}
	return nil, false, suggest(err, name, func() []string { return completeMachinesAndGroups(ctx, c) })
}

// printBackup prints the points that a backup made, and compares their labels with the
// one asked for.
func (a *app) printBackup(ctx context.Context, c *client, result []string, group bool, asked string) error {
	var points []*kb.RecoveryPoint
	if a.json || asked != "" {
		for _, line := range result {
			id := line[strings.LastIndex(line, " ")+1:]
			r, err := c.points.Get(ctx, connect.NewRequest(&kb.GetPointRequest{Selector: id}))
			if err != nil {
				return fmt.Errorf("point %s was made: %w", id, err)
			}
			points = append(points, r.Msg.GetPoint())
		}
	}
	var shape any = mapped(points, toPoint)
	if !group && len(points) > 0 {
		shape = toPoint(points[0])
	}
	if err := a.print(shape, func(w io.Writer) { fmt.Fprintln(w, strings.Join(result, "\n")) }); err != nil {
		return err
	}
	for _, p := range points {
		if asked != "" && ranks[p.GetConsistency()] < ranks[asked] {
			why := strings.TrimPrefix(p.GetReason(), "asked for "+asked+": ")
			return partialError{fmt.Sprintf("point %s of %s is %s-consistent and %s was asked for: %s", a.shortID(p.GetId()), p.GetMachineName(), p.GetConsistency(), asked, why)}
		}
	}
	return nil
}

func (a *app) printJobID(j *kb.Job) error {
	return a.print(toJob(j), func(w io.Writer) { fmt.Fprintln(w, j.GetJobId()) })
}
