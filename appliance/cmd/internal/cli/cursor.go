package cli

import (
	"context"
	"fmt"
	"io"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	kb "github.com/keelblock/keelblock/appliance/api/keelblockv1"
)

func (a *app) cursorCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "cursor", Short: "places in a disk's history: create, list, advance, delete",
		Long: `A cursor is one consumer's place in the history of a disk: it names a recovery point and
keeps it from being purged. What changed since is disk map --cursor, or the NBD metadata
context qemu:dirty-bitmap:CURSOR of the live disk. Any number of consumers have a cursor
each. An increment of a disk web0 of machine web:

  keelblock cursor create offsite --disk web0        # and copy the point it prints in full
  p=$(keelblock backup web)
  since=$(keelblock cursor list --disk web0 --json | jq -r '.[] | select(.name=="offsite").pointId')
  keelblock export $p:web0 --as increment --since $since
  nbdinfo --map=qemu:dirty-bitmap:since-$since "$uri"    # copy these ranges, then
  keelblock cursor advance offsite --to $p`}
	cmd.AddCommand(a.cursorCreate(), a.cursorList(), a.cursorAdvance(), a.cursorDelete())
	return cmd
}

func (c *client) listCursors(ctx context.Context, disk string) ([]*kb.Cursor, error) {
	r, err := c.cursors.List(ctx, connect.NewRequest(&kb.ListCursorsRequest{Disk: disk}))
	if err != nil {
		return nil, err
	}
	return r.Msg.GetCursors(), nil
}

func (c *client) cursorNames(ctx context.Context) []string {
	cursors, _ := c.listCursors(ctx, "")
	return mapped(cursors, (*kb.Cursor).GetName)
}

func completeCursors(ctx context.Context, c *client) []string { return c.cursorNames(ctx) }

func (a *app) cursorCreate() *cobra.Command {
	var disk string
	cmd := &cobra.Command{
		Use:     "create NAME --disk D",
		Short:   "make a cursor at the newest point of a disk; prints the point's id",
		Example: "  keelblock cursor create offsite --disk web0\n  keelblock disk map web0 --cursor offsite",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if disk == "" {
				return usageError{fmt.Errorf("cursor create %s needs --disk", args[0])}
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			r, err := c.cursors.Create(cmd.Context(), connect.NewRequest(&kb.CreateCursorRequest{Name: args[0], Disk: disk}))
			if err != nil {
				return suggest(err, disk, func() []string { return c.diskNames(cmd.Context()) })
			}
			return a.print(toCursor(r.Msg), func(w io.Writer) { fmt.Fprintln(w, r.Msg.GetPointId()) })
		},
		ValidArgsFunction: a.completing(false, completeNothing),
	}
	cmd.Flags().StringVar(&disk, "disk", "", "the disk")
	_ = cmd.RegisterFlagCompletionFunc("disk", a.completing(true, completeDisks))
	return cmd
}

func (a *app) cursorList() *cobra.Command {
	var disk string
	cmd := &cobra.Command{
		Use: "list [--disk D]", Aliases: []string{"ls"}, Short: "list cursors by name", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			cursors, err := c.listCursors(cmd.Context(), disk)
			if err != nil {
				return suggest(err, disk, func() []string { return c.diskNames(cmd.Context()) })
			}
			return a.print(mapped(cursors, toCursor), func(w io.Writer) {
				a.table(w, "NAME DISK POINT FROZEN ADVANCED", mapped(cursors, func(c *kb.Cursor) []string {
					return []string{c.GetName(), c.GetDiskName(), a.shortID(c.GetPointId()), at(c.GetFrozenAt()), at(c.GetAdvancedAt())}
				}))
			})
		},
	}
	cmd.Flags().StringVar(&disk, "disk", "", "only the cursors of this disk")
	_ = cmd.RegisterFlagCompletionFunc("disk", a.completing(true, completeDisks))
	return cmd
}

func (a *app) cursorAdvance() *cobra.Command {
	var to string
	cmd := &cobra.Command{
		Use:   "advance NAME [--to POINT]",
		Short: "move a cursor to the newest point of its disk, or to POINT; prints the point's id",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			r, err := c.cursors.Advance(cmd.Context(), connect.NewRequest(&kb.AdvanceCursorRequest{Name: args[0], Point: to}))
			if err != nil {
				return suggest(err, args[0], func() []string { return c.cursorNames(cmd.Context()) })
			}
			return a.print(toCursor(r.Msg), func(w io.Writer) { fmt.Fprintln(w, r.Msg.GetPointId()) })
		},
		ValidArgsFunction: a.completing(false, completeCursors),
	}
	cmd.Flags().StringVar(&to, "to", "", "the point up to which the consumer has everything")
	_ = cmd.RegisterFlagCompletionFunc("to", a.completing(true, completePoints))
	return cmd
}

func (a *app) cursorDelete() *cobra.Command {
	return &cobra.Command{
		Use: "delete NAME", Aliases: []string{"rm"}, Short: "forget a cursor and give its point free", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			cursors, err := c.listCursors(cmd.Context(), "")
			if err != nil {
				return err
			}
			if err := a.confirm("delete cursor %q", args[0]); err != nil {
				return err
			}
			if _, err := c.cursors.Delete(cmd.Context(), connect.NewRequest(&kb.DeleteCursorRequest{Name: args[0]})); err != nil {
				return suggest(err, args[0], func() []string { return c.cursorNames(cmd.Context()) })
			}
			for _, cu := range cursors {
				if cu.GetName() == args[0] {
					return a.print(toCursor(cu), nil)
				}
			}
			return a.print(nameShape{args[0]}, nil)
		},
		ValidArgsFunction: a.completing(false, completeCursors),
	}
}
