package cli

import (
	"errors"
	"fmt"
	"io"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	kb "github.com/keelblock/keelblock/appliance/api/keelblockv1"
)

// keepFlags are the rules of retention as flags.
type keepFlags struct{ r kb.KeepRules }

var keepNames = []string{"keep-last", "keep-hourly", "keep-daily", "keep-weekly", "keep-monthly", "keep-yearly"}

func (k *keepFlags) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.Int64Var(&k.r.Last, "keep-last", 0, "keep the N newest points")
	f.Int64Var(&k.r.Hourly, "keep-hourly", 0, "keep the newest point of each of the N newest hours with one")
	f.Int64Var(&k.r.Daily, "keep-daily", 0, "… of days")
	f.Int64Var(&k.r.Weekly, "keep-weekly", 0, "… of ISO weeks")
	f.Int64Var(&k.r.Monthly, "keep-monthly", 0, "… of months")
	f.Int64Var(&k.r.Yearly, "keep-yearly", 0, "… of years")
	f.StringVar(&k.r.TimeZone, "time-zone", "", "whose days, weeks, months and years, as Europe/Berlin (default: UTC)")
}

// given says that the command line has rules.
func (k *keepFlags) given(cmd *cobra.Command) bool {
	for _, name := range append(keepNames, "time-zone") {
		if cmd.Flags().Changed(name) {
			return true
		}
	}
	return false
}

// some says that a rule keeps anything.
func (k *keepFlags) some() bool {
	return k.r.Last != 0 || k.r.Hourly != 0 || k.r.Daily != 0 || k.r.Weekly != 0 || k.r.Monthly != 0 || k.r.Yearly != 0
}

// describeKeep is rules as they are given, or "".
func describeKeep(k *kb.KeepRules) string {
	out := ""
	for i, n := range []int64{k.GetLast(), k.GetHourly(), k.GetDaily(), k.GetWeekly(), k.GetMonthly(), k.GetYearly()} {
		if n != 0 {
			out += fmt.Sprintf(" --%s %d", keepNames[i], n)
		}
	}
	if out == "" {
		return ""
	}
	if z := k.GetTimeZone(); z != "" {
		out += " --time-zone " + z
	}
	return out[1:]
}

type pruneShape struct {
	PointID     string `json:"pointId"`
	MachineName string `json:"machineName"`
	TimeName    string `json:"timeName"`
	Keep        bool   `json:"keep"`
	Reason      string `json:"reason"`
	UniqueBytes int64  `json:"uniqueBytes"`
}

func (a *app) pruneCommand() *cobra.Command {
	var keep keepFlags
	var dryRun bool
	r := &kb.PruneRequest{}
	cmd := &cobra.Command{
		Use:   "prune MACHINE --keep-last N ... [--dry-run]",
		Short: "delete the points of a machine that no rule keeps",
		Long: `Deletes the recovery points of a machine that none of the given rules keeps, softly: they
can be undeleted for the vault's soft-delete period. Prints one line for each point, with
the rules that keep it or why it goes. What the rules mean: keelblock help retention.

The newest point, points that are held, locked or in use, and points that were made for a
time with backup --retain-for are kept.`,
		Example: "  keelblock prune web --keep-last 3 --keep-daily 7 --keep-weekly 4 --keep-yearly 10 --dry-run",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !keep.some() {
				return usageError{errors.New("prune needs a rule: --keep-last, --keep-hourly, --keep-daily, --keep-weekly, --keep-monthly or --keep-yearly")}
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			ctx := cmd.Context()
			r.Machine, r.Keep, r.DryRun = args[0], &keep.r, true
			plan, err := c.points.Prune(ctx, connect.NewRequest(r))
			if err != nil {
				return suggest(err, args[0], func() []string { return c.machineNames(ctx) })
			}
			goes := int64(0)
			for _, d := range plan.Msg.GetDecisions() {
				if !d.GetKeep() {
					goes++
				}
			}
			if !dryRun && goes > 0 {
				if err := a.confirm("delete %s of %s", count(goes, "point"), args[0]); err != nil {
					return err
				}
				r.DryRun = false
				if plan, err = c.points.Prune(ctx, connect.NewRequest(r)); err != nil {
					return err
				}
			}
			return a.printPruned(args[0], plan.Msg.GetDecisions(), dryRun)
		},
		ValidArgsFunction: a.completing(false, completeMachines),
	}
	keep.add(cmd)
	cmd.Flags().BoolVarP(&dryRun, "dry-run", "n", false, "only say what would be deleted")
	cmd.Flags().StringVar(&r.Vault, "vault", "", "the vault with the points (default: that of the machine)")
	_ = cmd.RegisterFlagCompletionFunc("vault", a.completing(true, completeVaults))
	return cmd
}

func (a *app) printPruned(machine string, decisions []*kb.PruneDecision, dryRun bool) error {
	shapes := mapped(decisions, func(d *kb.PruneDecision) pruneShape {
		return pruneShape{PointID: d.GetPointId(), MachineName: machine, TimeName: d.GetTimeName(), Keep: d.GetKeep(), Reason: d.GetReason(), UniqueBytes: d.GetUniqueBytes()}
	})
	var goes, bytes int64
	err := a.print(shapes, func(w io.Writer) {
		a.table(w, "ID FROZEN WHAT UNIQUE WHY", mapped(decisions, func(d *kb.PruneDecision) []string {
			what := "keep"
			if !d.GetKeep() {
				what = "delete"
				goes, bytes = goes+1, bytes+d.GetUniqueBytes()
			}
			row := spaceless([][]string{{a.shortID(d.GetPointId()), d.GetTimeName(), what, human(d.GetUniqueBytes())}})[0]
			return append(row, d.GetReason())
		}))
	})
	if err != nil || a.json {
		return err
	}
	verb := "deleted"
	if dryRun {
		verb = "would be deleted"
	}
	a.say("%s of %d %s; at least %s, once purged and collected", count(goes, "point"), len(decisions), verb, human(bytes))
	return nil
}
