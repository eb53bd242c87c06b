package cli

import (
	"context"
	"fmt"
	"io"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	kb "github.com/keelblock/keelblock/appliance/api/keelblockv1"
)

func (a *app) groupCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "group", Short: "machines that are cut together: create, list, show, delete",
		Long: `A group is machines that depend on each other: an application and its database. Its
backup cuts the disks of all of them at one instant and makes one recovery point of each
machine, all or none. A machine is in at most one group.`}
	cmd.AddCommand(a.groupCreate(), a.groupList(), a.groupShow(), a.groupDelete())
	return cmd
}

func (a *app) group(ctx context.Context, c *client, name string) (*kb.Group, error) {
	r, err := c.groups.Get(ctx, connect.NewRequest(&kb.GetGroupRequest{Name: name}))
	if err != nil {
		return nil, suggest(err, name, func() []string { return c.groupNames(ctx) })
	}
	return r.Msg, nil
}

func (c *client) groupNames(ctx context.Context) []string {
	r, err := c.groups.List(ctx, connect.NewRequest(&kb.ListGroupsRequest{}))
	if err != nil {
		return nil
	}
	return mapped(r.Msg.GetGroups(), (*kb.Group).GetName)
}

func completeGroups(ctx context.Context, c *client) []string { return c.groupNames(ctx) }

func completeMachinesAndGroups(ctx context.Context, c *client) []string {
	return append(c.machineNames(ctx), c.groupNames(ctx)...)
}

func (a *app) groupCreate() *cobra.Command {
	var machines []string
	cmd := &cobra.Command{
		Use:     "create NAME --machine M...",
		Short:   "cut machines together from now on",
		Example: "  keelblock group create shop --machine web db\n  keelblock backup shop",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(machines) == 0 {
				return usageError{fmt.Errorf("group create %s needs --machine, and all of its machines", args[0])}
			}
			machines := append(machines, args[1:]...) // --machine web db
			c, err := a.client()
			if err != nil {
				return err
			}
			r, err := c.groups.Create(cmd.Context(), connect.NewRequest(&kb.CreateGroupRequest{Name: args[0], Machines: machines}))
			if err != nil {
				for _, m := range machines {
					err = suggest(err, m, func() []string { return c.machineNames(cmd.Context()) })
				}
				return err
			}
			return a.print(toGroup(r.Msg), func(w io.Writer) { fmt.Fprintln(w, r.Msg.GetName()) })
		},
		ValidArgsFunction: a.completing(false, completeNothing),
	}
	cmd.Flags().StringArrayVar(&machines, "machine", nil, "a machine of the group; more may follow, or it is repeated")
	_ = cmd.RegisterFlagCompletionFunc("machine", a.completing(true, completeMachines))
	return cmd
}

func (a *app) groupList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "list groups by name", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			r, err := c.groups.List(cmd.Context(), connect.NewRequest(&kb.ListGroupsRequest{}))
			if err != nil {
				return err
			}
			return a.print(mapped(r.Msg.GetGroups(), toGroup), func(w io.Writer) {
				a.table(w, "NAME MACHINES", mapped(r.Msg.GetGroups(), func(g *kb.Group) []string {
					return []string{g.GetName(), strings.Join(mapped(g.GetMachines(), (*kb.Machine).GetName), ",")}
				}))
			})
		},
	}
}

func (a *app) groupShow() *cobra.Command {
	return &cobra.Command{
		Use: "show NAME", Short: "show a group and its machines", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			g, err := a.group(cmd.Context(), c, args[0])
			if err != nil {
				return err
			}
			return a.print(toGroup(g), func(w io.Writer) {
				describe(w, pair{"name", g.GetName()})
				for _, m := range g.GetMachines() {
					last := "no point yet"
					if id := m.GetLastPointId(); id != "" {
						last = "last point " + a.shortID(id)
					}
					fmt.Fprintf(w, "machine %s: disks %s, %s\n", m.GetName(), diskNames(m.GetDisks()), last)
				}
			})
		},
		ValidArgsFunction: a.completing(false, completeGroups),
	}
}

func (a *app) groupDelete() *cobra.Command {
	return &cobra.Command{
		Use: "delete NAME", Aliases: []string{"rm"}, Short: "take a group apart; its machines and recovery points stay", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			g, err := a.group(cmd.Context(), c, args[0])
			if err != nil {
				return err
			}
			if err := a.confirm("delete group %q", g.GetName()); err != nil {
				return err
			}
			if _, err := c.groups.Delete(cmd.Context(), connect.NewRequest(&kb.DeleteGroupRequest{Name: args[0]})); err != nil {
				return err
			}
			return a.print(toGroup(g), nil)
		},
		ValidArgsFunction: a.completing(false, completeGroups),
	}
}
