package cli

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	kb "github.com/keelblock/keelblock/appliance/api/keelblockv1"
)

func (a *app) diskCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "disk", Short: "live disks: create, list, show, map, resize, edit, attach, import, export, delete"}
	cmd.AddCommand(a.diskCreate(), a.diskList(), a.diskShow(), a.diskDelete(), a.diskMap(), a.diskImport(), a.diskExport(),
		a.diskResize(), a.diskEdit(), a.diskAttach(), a.diskDetach())
	return cmd
}

func (a *app) diskCreate() *cobra.Command {
	var size sizeValue
	var backing string
	var temporary bool
	cmd := &cobra.Command{
		Use:   "create NAME --size S [--backing PATH] [--temporary]",
		Short: "create a disk and export it over NBD; prints its address",
		Long: `Creates a disk and exports it over NBD at once. It is a sparse file in the daemon's
folder, or with --backing a raw file or block device that exists already and is used
as it is. A temporary disk (swap, scratch) is served like any other and left out of
recovery points.`,
		Example: "  keelblock disk create web0 --size 2GiB\n  keelblock disk create db0 --backing /dev/vg0/db0",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if size == 0 && backing == "" {
				return usageError{fmt.Errorf("disk create %s needs --size (for example --size 20GiB), or --backing", args[0])}
			}
			if backing != "" {
				abs, err := filepath.Abs(backing)
				if err != nil {
					return err
				}
				backing = abs
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			role := "data"
			if temporary {
				role = "temporary"
			}
			r, err := c.disks.Create(cmd.Context(), connect.NewRequest(&kb.CreateDiskRequest{
				Name: args[0], SizeBytes: int64(size), Backing: backing, Role: role}))
			if err != nil {
				return err
			}
			return a.print(toDisk(r.Msg), func(w io.Writer) { fmt.Fprintln(w, r.Msg.GetUri()) })
		},
		ValidArgsFunction: a.completing(false, completeNothing),
	}
	cmd.Flags().Var(&size, "size", "size: 64MiB, 8GiB, 1TiB or plain bytes")
	cmd.Flags().StringVar(&backing, "backing", "", "use this raw file or block device")
	cmd.Flags().BoolVar(&temporary, "temporary", false, "leave this disk out of recovery points")
	return cmd
}

func (a *app) diskList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "list disks by name", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			r, err := c.disks.List(cmd.Context(), connect.NewRequest(&kb.ListDisksRequest{}))
			if err != nil {
				return err
			}
			return a.print(mapped(r.Msg.GetDisks(), toDisk), func(w io.Writer) { a.diskTable(w, r.Msg.GetDisks()) })
		},
	}
}

func (a *app) diskShow() *cobra.Command {
	var client string
	cmd := &cobra.Command{
		Use:   "show NAME [--for qemu|libvirt|nbd-client]",
		Short: "show a disk, or the text that attaches it to a client",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			d, err := a.disk(cmd.Context(), c, args[0])
			if err != nil {
				return err
			}
			if client != "" {
				text, err := attachText(client, d)
				if err != nil {
					return err
				}
				return a.print(toDisk(d), func(w io.Writer) { fmt.Fprintln(w, text) })
			}
			return a.print(toDisk(d), func(w io.Writer) {
				describe(w, pair{"name", d.GetName()}, pair{"size", fmt.Sprintf("%s (%d bytes)", human(d.GetSizeBytes()), d.GetSizeBytes())},
					pair{"allocated", human(d.GetAllocatedBytes())}, pair{"role", d.GetRole()}, pair{"machine", d.GetMachineName()},
					pair{"state", d.GetState()}, pair{"reason", d.GetReason()}, pair{"address", d.GetUri()}, pair{"backing", d.GetBacking()},
					pair{"attached to", d.GetDevice()},
					pair{"allowed over TCP", strings.Join(d.GetAllow(), ", ")}, pair{"exclusive", map[bool]string{true: "yes"}[d.GetExclusive()]},
					pair{"connections", fmt.Sprint(d.GetConnections())},
					pair{"next backup", nextBackup(d)}, pair{"changed since", d.GetLastPointId()})
				for _, b := range d.GetDirtyBitmaps() {
					fmt.Fprintf(w, "dirty bitmap: %s\n", b)
				}
			})
		},
		ValidArgsFunction: a.completing(false, completeDisks),
	}
	cmd.Flags().StringVar(&client, "for", "", "print what attaches the disk to qemu, libvirt or nbd-client")
	_ = cmd.RegisterFlagCompletionFunc("for", cobra.FixedCompletions([]string{"qemu", "libvirt", "nbd-client"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// nextBackup says what the tracker will make the next backup do.
func nextBackup(d *kb.Disk) string {
	switch {
	case d.GetRole() == "temporary":
		return "leaves it out"
	case d.GetMachineName() == "":
		return "none (it belongs to no machine)"
	}
	switch d.GetTracking() {
	case "enabled":
		return "reads " + human(d.GetChangedBytes()) + " of changes"
	case "compare":
		return "compares what is in doubt with the last point: " + d.GetReason()
	case "none":
		return "reads the whole disk (there is no point yet)"
	}
	return ""
}

// attachText is what a user pastes to attach a disk.
func attachText(client string, d *kb.Disk) (string, error) {
	_, socket, _ := strings.Cut(d.GetUri(), "socket=")
	name := d.GetName()
	switch client {
	case "qemu":
		return fmt.Sprintf("-blockdev driver=nbd,node-name=%s,server.type=unix,server.path=%s,export=%s,reconnect-delay=60,discard=unmap,cache.direct=off -device virtio-blk-pci,drive=%s,serial=%.20s",
			node(name), strings.ReplaceAll(socket, ",", ",,"), name, node(name), name), nil
	case "libvirt":
		return fmt.Sprintf(`<disk type='network' device='disk'>
  <driver name='qemu' type='raw' discard='unmap'/>
  <source protocol='nbd' name='%s'>
    <host transport='unix' socket='%s'/>
    <reconnect delay='60'/>
  </source>
  <target dev='vda' bus='virtio'/>
  <serial>%.20s</serial>
</disk>`, name, xmlEscape(socket), name), nil
	case "nbd-client":
		return fmt.Sprintf("nbd-client -unix %s /dev/nbd0 -name %s -persist -connections 4", socket, name), nil
	}
	return "", usageError{fmt.Errorf("--for %s: known are qemu, libvirt and nbd-client", client)}
}

// node is a QEMU node name made of a disk's name: letters, digits, - . _ and a letter
// first, 31 at most.
func node(name string) string {
	s := "kb-" + name
	return s[:min(len(s), 31)]
}

func xmlEscape(s string) string {
	return strings.NewReplacer("&", "&amp;", "<", "&lt;", "'", "&apos;").Replace(s)
}

func (a *app) diskDelete() *cobra.Command {
	return &cobra.Command{
		Use: "delete NAME", Aliases: []string{"rm"}, Short: "delete a disk and its data; recovery points stay", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			d, err := a.disk(cmd.Context(), c, args[0])
			if err != nil {
				return err
			}
			if err := a.confirm("delete disk %q with %s of data", d.GetName(), human(d.GetAllocatedBytes())); err != nil {
				return err
			}
			if _, err := c.disks.Delete(cmd.Context(), connect.NewRequest(&kb.DeleteDiskRequest{Name: args[0]})); err != nil {
				return err
			}
			return a.print(toDisk(d), nil)
		},
		ValidArgsFunction: a.completing(false, completeDisks),
	}
}

func (a *app) diskMap() *cobra.Command {
	var since, cursor string
	cmd := &cobra.Command{
		Use:   "map NAME [--since POINT | --cursor C]",
		Short: "list what changed since the last recovery point: one 'offset length' per line",
		Long: `Lists the ranges of the disk that differ, or may differ, from its last recovery point,
from POINT, or from the point of a cursor: bytes, ascending, merged, one "offset length"
per line. After a power cut that is what the next backup has to compare.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if since != "" && cursor != "" {
				return usageError{errors.New("disk map takes --since or --cursor, not both")}
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			r, err := c.disks.Map(cmd.Context(), connect.NewRequest(&kb.MapDiskRequest{Name: args[0], SincePoint: since, Cursor: cursor}))
			if err != nil {
				err = suggest(err, args[0], func() []string { return c.diskNames(cmd.Context()) })
				return suggest(err, cursor, func() []string { return c.cursorNames(cmd.Context()) })
			}
			return a.print(mapped(r.Msg.GetExtents(), toExtent), func(w io.Writer) { printExtents(w, "", r.Msg.GetExtents()) })
		},
		ValidArgsFunction: a.completing(false, completeDisks),
	}
	cmd.Flags().StringVar(&since, "since", "", "what changed since this recovery point")
	cmd.Flags().StringVar(&cursor, "cursor", "", "what changed since the point of this cursor")
	_ = cmd.RegisterFlagCompletionFunc("since", a.completing(true, completePoints))
	_ = cmd.RegisterFlagCompletionFunc("cursor", a.completing(true, completeCursors))
	return cmd
}

func printExtents(w io.Writer, prefix string, extents []*kb.Extent) {
	var b strings.Builder
	for _, e := range extents {
		fmt.Fprintf(&b, "%s%d %d\n", prefix, e.GetOffset(), e.GetLength())
	}
	_, _ = io.WriteString(w, b.String())
}
