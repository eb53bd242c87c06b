package cli

import (
	"context"
	"errors"
	"fmt"
	"io"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	kb "github.com/keelblock/keelblock/appliance/api/keelblockv1"
)

func (a *app) exportCommand() *cobra.Command {
	var name string
	var listing bool
	cmd := &cobra.Command{
		Use:     "export (P[:DISK] --as NAME | --list)",
		Short:   "export a disk of a point over NBD, read-only; prints its address",
		Example: "  keelblock export web@latest:web0 --as look\n  qemu-img info \"$(keelblock export web@latest --as look)\"",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if listing {
				return a.listExports(cmd.Context())
			}
			if name == "" || len(args) != 1 {
				return usageError{errors.New("export needs a point and --as NAME, as in: keelblock export web@latest:web0 --as look")}
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
			return a.print(toExport(r.Msg), func(w io.Writer) { fmt.Fprintln(w, r.Msg.GetUri()) })
		},
		ValidArgsFunction: a.completing(false, completePoints),
	}
	cmd.Flags().StringVar(&name, "as", "", "name of the export")
	cmd.Flags().BoolVar(&listing, "list", false, "list the exports of points")
	return cmd
}

func toExport(m *kb.ExportResponse) exportShape {
	return exportShape{m.GetName(), m.GetUri(), m.GetPointId(), m.GetDisk(), m.GetSizeBytes(), true}
}

func (c *client) listExports(ctx context.Context) ([]*kb.ExportResponse, error) {
	r, err := c.points.ListExports(ctx, connect.NewRequest(&kb.ListExportsRequest{}))
	if err != nil {
		return nil, err
	}
	return r.Msg.GetExports(), nil
}

func (a *app) listExports(ctx context.Context) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	exports, err := c.listExports(ctx)
	if err != nil {
		return err
	}
	return a.print(mapped(exports, toExport), func(w io.Writer) {
		a.table(w, "NAME POINT DISK URI", mapped(exports, func(e *kb.ExportResponse) []string {
			return []string{e.GetName(), a.shortID(e.GetPointId()), e.GetDisk(), e.GetUri()}
		}))
	})
}

func completeExports(ctx context.Context, c *client) []string {
	exports, _ := c.listExports(ctx)
	return mapped(exports, (*kb.ExportResponse).GetName)
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
		ValidArgsFunction: a.completing(false, completeExports),
	}
}
