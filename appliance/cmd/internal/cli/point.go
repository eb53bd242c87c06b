package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	kb "github.com/keelblock/keelblock/appliance/api/keelblockv1"
)

func (a *app) pointCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "recovery-point", Aliases: []string{"point", "rp"}, Short: "recovery points: list, show, verify, delete, undelete, hold, release, diff",
		Long: "Recovery points. How they are named: keelblock help points."}
	cmd.AddCommand(a.pointList(), a.pointShow(), a.pointVerify(), a.pointDelete(), a.pointUndelete(), a.pointHold(), a.pointRelease(), a.pointDiff())
	return cmd
}

// point resolves a selector, with the disk behind it.
func (a *app) point(ctx context.Context, c *client, selector string) (*kb.RecoveryPoint, string, error) {
	return a.findPoint(ctx, c, &kb.GetPointRequest{Selector: selector})
}

// findPoint is point for a request.
func (a *app) findPoint(ctx context.Context, c *client, request *kb.GetPointRequest) (*kb.RecoveryPoint, string, error) {
	selector := request.GetSelector()
	r, err := c.points.Get(ctx, connect.NewRequest(request))
	if err != nil {
		machine, rest, ok := strings.Cut(selector, "@")
		if !ok || connect.CodeOf(err) != connect.CodeNotFound {
			return nil, "", err
		}
		for _, n := range c.machineNames(ctx) {
			if alike(machine, n) {
				return nil, "", notFoundError{fmt.Errorf("%s; did you mean %s@%s?", plain(err), n, rest)}
			}
		}
		return nil, "", err
	}
	if r.Msg.GetPoint() == nil {
		return nil, "", fmt.Errorf("point %s: %w", selector, errNothing)
	}
	return r.Msg.GetPoint(), r.Msg.GetDisk(), nil
}

// holdsDisk is an error when what stands behind a point is a disk that it does not have. A
// path has a slash.
func holdsDisk(selector string, p *kb.RecoveryPoint, rest string) error {
	names := mapped(p.GetDisks(), (*kb.PointDisk).GetName)
	if rest == "" || strings.Contains(rest, "/") || slices.Contains(names, rest) {
		return nil
	}
	return notFoundError{fmt.Errorf("point %s has no disk %q; it has %s", selector, rest, strings.Join(names, ", "))}
}

// pointDisk resolves P[:DISK]. Without a disk the point must have one only. What has to be
// counted for a point is not in it.
func (a *app) pointDisk(ctx context.Context, c *client, selector string) (*kb.RecoveryPoint, *kb.PointDisk, error) {
	p, name, err := a.findPoint(ctx, c, &kb.GetPointRequest{Selector: selector, Brief: true})
	if err != nil {
		return nil, nil, err
	}
	names := mapped(p.GetDisks(), (*kb.PointDisk).GetName)
	if name == "" {
		if len(p.GetDisks()) == 1 {
			return p, p.GetDisks()[0], nil
		}
		return nil, nil, usageError{fmt.Errorf("point %s has %d disks (%s); name one, as in %s:%s",
			selector, len(names), strings.Join(names, ", "), selector, firstOr(names, "DISK"))}
	}
	for _, d := range p.GetDisks() {
		if d.GetName() == name {
			return p, d, nil
		}
	}
	return nil, nil, notFoundError{fmt.Errorf("point %s has no disk %q; it has %s", selector, name, strings.Join(names, ", "))}
}

func firstOr(s []string, or string) string {
	if len(s) == 0 {
		return or
	}
	return s[0]
}

func (a *app) pointList() *cobra.Command {
	var deleted bool
	cmd := &cobra.Command{
		Use: "list [MACHINE | GROUP] [--deleted]", Aliases: []string{"ls"}, Short: "list recovery points, oldest first", Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			machine := strings.Join(args, "")
			r, err := c.points.List(cmd.Context(), connect.NewRequest(&kb.ListPointsRequest{Machine: machine, Deleted: deleted}))
			if err != nil {
				return suggest(err, machine, func() []string { return completeMachinesAndGroups(cmd.Context(), c) })
			}
			return a.print(mapped(r.Msg.GetPoints(), toPoint), func(w io.Writer) { a.pointTable(w, r.Msg.GetPoints()) })
		},
		ValidArgsFunction: a.completing(false, completeMachinesAndGroups),
	}
	cmd.Flags().BoolVar(&deleted, "deleted", false, "show soft-deleted points too")
	return cmd
}

func (a *app) pointShow() *cobra.Command {
	return &cobra.Command{
		Use: "show P", Short: "show a recovery point", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			p, rest, err := a.point(cmd.Context(), c, args[0])
			if err == nil {
				err = holdsDisk(args[0], p, rest)
			}
			if err != nil {
				return err
			}
			return a.print(toPoint(p), func(w io.Writer) { describePoint(w, p) })
		},
		ValidArgsFunction: a.completing(false, completePoints),
	}
}

// pointName is the name of a point by its time, or "".
func pointName(p *kb.RecoveryPoint) string {
	if p.GetTimeName() == "" {
		return ""
	}
	return p.GetMachineName() + "@" + p.GetTimeName()
}

func describePoint(w io.Writer, p *kb.RecoveryPoint) {
	label := p.GetConsistency()
	if r := p.GetReason(); r != "" {
		label += " (" + r + ")"
	}
	describe(w, pair{"id", p.GetId()}, pair{"machine", p.GetMachineName()}, pair{"name", pointName(p)}, pair{"sequence", fmt.Sprint(p.GetSequence())},
		pair{"frozen at", at(p.GetFrozenAt())}, pair{"freeze took", fmt.Sprintf("%d µs", p.GetFreezeMicros())},
		pair{"consistency", label}, pair{"tracking", p.GetTracking()}, pair{"state", p.GetState()},
		pair{"can be undeleted until", at(p.GetDeletedUntil())}, pair{"held", held(p)},
		pair{"retained until", at(p.GetRetainUntil())}, pair{"locked until", at(p.GetLockedUntil())}, pair{"note", p.GetNote()},
		pair{"read", human(p.GetReadBytes())}, pair{"changed", human(p.GetChangedBytes())},
		pair{"new after dedupe", human(p.GetNewBytes())}, pair{"stored", human(p.GetStoredBytes())},
		pair{"held by it alone", human(p.GetUniqueBytes())}, pair{"cut", p.GetCutId()},
		pair{"left out", strings.Join(p.GetExcludedDisks(), ", ")})
	for _, d := range p.GetDisks() {
		fmt.Fprintf(w, "disk %s: %s, root %s\n", d.GetName(), human(d.GetSizeBytes()), d.GetRootDigest())
	}
	if def := p.GetDefinition(); def != "" {
		fmt.Fprintf(w, "definition:\n%s\n", strings.TrimRight(def, "\n"))
	}
}

func held(p *kb.RecoveryPoint) string {
	if p.GetHeld() {
		return "yes"
	}
	return ""
}

func (a *app) pointVerify() *cobra.Command {
	var all, noWait bool
	cmd := &cobra.Command{
		Use: "verify (P | --all)", Short: "read every block of a point and compare it with its digest", Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if all == (len(args) == 1) {
				return usageError{errors.New("recovery-point verify needs a point, or --all")}
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			r := &kb.VerifyRequest{}
			if !all {
				p, rest, err := a.point(cmd.Context(), c, args[0])
				if err == nil {
					err = holdsDisk(args[0], p, rest)
				}
				if err != nil {
					return err
				}
				r.Point = p.GetId()
			}
			return a.verify(cmd.Context(), c, r, noWait)
		},
		ValidArgsFunction: a.completing(false, completePoints),
	}
	cmd.Flags().BoolVar(&all, "all", false, "verify every point")
	cmd.Flags().BoolVar(&noWait, "no-wait", false, "print the job's id and return at once")
	return cmd
}

// verify starts a job that reads blocks, and prints what it found.
func (a *app) verify(ctx context.Context, c *client, r *kb.VerifyRequest, noWait bool) error {
	j, err := c.points.Verify(ctx, connect.NewRequest(r))
	if err != nil {
		return err
	}
	return a.finish(ctx, c, j.Msg, noWait, a.printLines)
}

func (a *app) pointDelete() *cobra.Command {
	var purge bool
	cmd := &cobra.Command{
		Use: "delete P [--purge]", Aliases: []string{"rm"}, Short: "delete a point; undelete brings it back while soft delete protects it", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			selector := args[0]
			soon := false // softly, but with no time to undelete it
			if !purge {
				if soon, err = a.deletesAtOnce(cmd.Context(), c); err != nil {
					return err
				}
			}
			if purge || soon { // what is shown in the question is what is deleted
				p, rest, err := a.point(cmd.Context(), c, selector)
				if err != nil {
					return err
				}
				if err := a.confirm("delete point %s (%s) for good", a.shortID(p.GetId()), pointName(p)); err != nil {
					return err
				}
				if selector = p.GetId(); rest != "" {
					selector += ":" + rest // the daemon refuses it
				}
			}
			r, err := c.points.Delete(cmd.Context(), connect.NewRequest(&kb.DeletePointRequest{Point: selector, Purge: purge}))
			if err != nil {
				return err
			}
			return a.print(toPoint(r.Msg), func(w io.Writer) {
				if !purge && !soon {
					a.say("deleted; keelblock recovery-point undelete %s brings it back", a.shortID(r.Msg.GetId()))
				}
			})
		},
		ValidArgsFunction: a.completing(false, completePoints),
	}
	cmd.Flags().BoolVar(&purge, "purge", false, "skip soft delete: the point cannot be brought back")
	return cmd
}

// deletesAtOnce says that a vault has no soft delete, so that deleting has to be asked for.
func (a *app) deletesAtOnce(ctx context.Context, c *client) (bool, error) {
	r, err := c.vaults.List(ctx, connect.NewRequest(&kb.ListVaultsRequest{}))
	if err != nil {
		return false, err
	}
	for _, v := range r.Msg.GetVaults() {
		if v.GetState() == vaultOpen && v.GetSoftDeleteSeconds() == 0 {
			return true, nil
		}
	}
	return false, nil
}

func (a *app) pointUndelete() *cobra.Command {
	return &cobra.Command{
		Use: "undelete P", Short: "bring a soft-deleted point back", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			before, _, err := a.point(cmd.Context(), c, args[0])
			if err != nil {
				return err
			}
			r, err := c.points.Undelete(cmd.Context(), connect.NewRequest(&kb.UndeletePointRequest{Point: args[0]}))
			if err != nil {
				return err
			}
			if before.GetDeletedUntil() == nil { // MACHINE@latest never names a deleted one
				a.say("point %s (%s) was not deleted; keelblock recovery-point list --deleted shows those that are", a.shortID(before.GetId()), pointName(before))
			}
			return a.print(toPoint(r.Msg), nil)
		},
		ValidArgsFunction: a.completing(false, completeDeleted),
	}
}

func (a *app) pointDiff() *cobra.Command {
	return &cobra.Command{
		Use:   "diff P[:DISK] Q",
		Short: "list the ranges that differ between two points",
		Long: `Lists the ranges in which two points differ, by their trees: bytes, ascending, merged,
to the vault's block. One "disk offset length" per line, or "offset length" when a disk
is named.`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			p, disk, err := a.point(cmd.Context(), c, args[0])
			if err != nil {
				return err
			}
			q, disk2, err := a.point(cmd.Context(), c, args[1])
			if err != nil {
				return err
			}
			if disk == "" {
				disk = disk2
			}
			if disk2 != "" && disk2 != disk {
				return usageError{fmt.Errorf("disks %q and %q are not the same", disk, disk2)}
			}
			r, err := c.points.Diff(cmd.Context(), connect.NewRequest(&kb.DiffPointsRequest{From: p.GetId(), To: q.GetId(), Disk: disk}))
			if err != nil {
				return err
			}
			return a.print(mapped(r.Msg.GetDisks(), toDiskDiff), func(w io.Writer) {
				for _, d := range r.Msg.GetDisks() {
					prefix := d.GetDisk() + " "
					if disk != "" {
						prefix = ""
					}
					printExtents(w, prefix, d.GetExtents())
				}
			})
		},
		ValidArgsFunction: a.completing(false, completePoints, completePoints),
	}
}
