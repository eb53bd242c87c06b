package cli

import (
	"errors"
	"fmt"
	"io"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	kb "github.com/keelblock/keelblock/appliance/api/keelblockv1"
)

func (a *app) exportCommand() *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use:     "export P[:DISK] --as NAME",
		Short:   "export a disk of a point over NBD, read-only; prints its address",
		Example: "  keelblock export web@latest:web0 --as look\n  qemu-img info \"$(keelblock export web@latest --as look)\"",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if name == "" {
				return usageError{errors.New("export needs --as NAME")}
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			p, d, err := a.pointDisk(cmd.Context(), c, args[0])
			if err != nil {
				return err
			}
			r, err := c.points.Export(cmd.Context(), connect.NewRequest(&kb.ExportRequest{Point: p.GetId(), Disk: d.GetName(), Name: name}))
			if err != nil {
				return err
			}
			m := r.Msg
			return a.print(exportShape{m.GetName(), m.GetUri(), m.GetPointId(), m.GetDisk(), m.GetSizeBytes(), true},
				func(w io.Writer) { fmt.Fprintln(w, m.GetUri()) })
		},
		ValidArgsFunction: a.completing(false, completePoints),
	}
	cmd.Flags().StringVar(&name, "as", "", "name of the export")
	return cmd
}

func (a *app) unexportCommand() *cobra.Command {
	return &cobra.Command{
		Use: "unexport NAME", Short: "end an export of a point", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			if _, err := c.points.Unexport(cmd.Context(), connect.NewRequest(&kb.UnexportRequest{Name: args[0]})); err != nil {
				return err
			}
			return a.print(nameShape{args[0]}, nil)
		},
		ValidArgsFunction: a.completing(false, completeNothing),
	}
}
