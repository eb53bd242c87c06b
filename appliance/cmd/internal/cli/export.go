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
	var name, since string
	var listing bool
	cmd := &cobra.Command{
		Use:   "export (P[:DISK] --as NAME [--since Q] | --list)",
		Short: "export a disk of a point over NBD, read-only; prints its address",
		Long: `Exports a disk of a point over NBD, read-only, until unexport or a stop of the daemon.

With --since Q, an older or newer point of the same disk, the export has the metadata
context qemu:dirty-bitmap:since-ID, ID being the full id of Q: the ranges in which the
two differ, to 4 KiB where the points between have kept their lists of changes, else to
the vault's block.

QEMU's tools show a dirty range as one without data. So "qemu-img convert" of an export
with x-dirty-bitmap copies what did not change; ask "qemu-img map" for the ranges, and
copy each: into a raw copy of Q, or into a qcow2 file that holds the increment alone
(with a copy of Q as its backing file it is P, and "qemu-img convert" makes one image):

  nbd=server.type=unix,server.path=/var/lib/keelblock/run/nbd.sock,export=inc
  qemu-img create -f qcow2 -F raw -b "$uri" inc.qcow2
  qemu-img map --output=json --image-opts driver=nbd,$nbd,x-dirty-bitmap=qemu:dirty-bitmap:since-$id |
    jq -r '.[] | select(.data | not) | "\(.start) \(.length)"' | while read start length; do
      qemu-io -C -f qcow2 -c "read $start $length" inc.qcow2                # the increment
      part=driver=raw,offset=$start,size=$length
      qemu-img convert -n --image-opts $part,file.driver=nbd,file.${nbd//,/,file.} \
        --target-image-opts $part,file.driver=file,file.filename=old.raw    # or the copy
    done
  qemu-img rebase -u -F raw -b old.raw inc.qcow2`,
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
			r, err := c.points.Export(cmd.Context(), connect.NewRequest(&kb.ExportRequest{Point: p.GetId(), Disk: d.GetName(), Name: name, Since: since}))
			if err != nil {
				return err
			}
			return a.print(toExport(r.Msg), func(w io.Writer) { fmt.Fprintln(w, r.Msg.GetUri()) })
		},
		ValidArgsFunction: a.completing(false, completePoints),
	}
	cmd.Flags().StringVar(&name, "as", "", "name of the export")
	cmd.Flags().StringVar(&since, "since", "", "offer what differs from this point of the same disk as a dirty bitmap")
	_ = cmd.RegisterFlagCompletionFunc("since", a.completing(true, completePoints))
	cmd.Flags().BoolVar(&listing, "list", false, "list the exports of points")
	return cmd
}

func toExport(m *kb.ExportResponse) exportShape {
	return exportShape{Name: m.GetName(), URI: m.GetUri(), PointID: m.GetPointId(), DiskName: m.GetDisk(), SizeBytes: m.GetSizeBytes(),
		ReadOnly: true, SincePointID: m.GetSincePointId(), DirtyBitmaps: list(m.GetDirtyBitmaps())}
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
