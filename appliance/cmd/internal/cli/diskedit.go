package cli

import (
	"errors"
	"fmt"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	kb "github.com/keelblock/keelblock/appliance/api/keelblockv1"
)

func (a *app) diskResize() *cobra.Command {
	var size sizeValue
	cmd := &cobra.Command{
		Use:   "resize NAME --size S",
		Short: "give a disk another size while it is served",
		Long: `Gives a disk another size while guests use it. It waits while a backup works on the disk.
Connections that are open keep the size that they began with: QEMU's block_resize, or a
new connection, shows the guest the new one. What a disk gains reads as zeros. A disk that
shrinks loses what lies behind its new end; requests there get errors.

Recovery points keep the size that the disk had. A disk over a block device takes the size
that the device has by now.`,
		Example: "  keelblock disk resize web0 --size 40GiB",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if size == 0 {
				return usageError{fmt.Errorf("disk resize %s needs --size, as in --size 40GiB", args[0])}
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			d, err := a.disk(cmd.Context(), c, args[0])
			if err != nil {
				return err
			}
			shrink := int64(size) < d.GetSizeBytes()
			if shrink {
				err := a.confirm("shrink disk %q from %s to %s and lose what lies behind its new end", d.GetName(), human(d.GetSizeBytes()), human(int64(size)))
				if err != nil {
					return err
				}
			}
			r, err := c.disks.Resize(cmd.Context(), connect.NewRequest(&kb.ResizeDiskRequest{Name: args[0], SizeBytes: int64(size), Shrink: shrink}))
			if err != nil {
				return err
			}
			return a.print(toDisk(r.Msg), nil)
		},
		ValidArgsFunction: a.completing(false, completeDisks),
	}
	cmd.Flags().Var(&size, "size", "the new size: 64MiB, 8GiB, 1TiB or plain bytes")
	return cmd
}

func (a *app) diskEdit() *cobra.Command {
	var allow, disallow []string
	var exclusive bool
	var role string
	cmd := &cobra.Command{
		Use:   "edit NAME [--allow CN]... [--disallow CN]... [--exclusive=BOOL] [--role data|temporary]",
		Short: "change who may use a disk, and its role",
		Long: `Changes who may use a disk, and whether recovery points hold it.

--allow names the common name of a client certificate. As soon as one is named, only
clients with such a certificate may use the disk over TCP; that holds for connections made
from then on. Unix sockets are guarded by their permissions.

--exclusive has a client that opens the disk cut the one before it: a fence against a host
that was thought dead, for guests with one connection.

--role temporary (swap, scratch) leaves the disk out of recovery points. A disk that is
made data again is compared as a whole by the next backup.

--exclusive and --role need a disk that no client is connected to.`,
		Example: "  keelblock disk edit web0 --allow host-a.example --allow host-b.example",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			r := &kb.EditDiskRequest{Name: args[0], Allow: allow, Disallow: disallow, Role: role}
			if cmd.Flags().Changed("exclusive") {
				r.Exclusive = &exclusive
			}
			if len(allow)+len(disallow) == 0 && r.Exclusive == nil && role == "" {
				return usageError{errors.New("disk edit needs --allow, --disallow, --exclusive or --role")}
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			d, err := c.disks.Edit(cmd.Context(), connect.NewRequest(r))
			if err != nil {
				return suggest(err, args[0], func() []string { return c.diskNames(cmd.Context()) })
			}
			return a.print(toDisk(d.Msg), nil)
		},
		ValidArgsFunction: a.completing(false, completeDisks),
	}
	f := cmd.Flags()
	f.StringArrayVar(&allow, "allow", nil, "allow clients whose certificate has this common name; may be repeated")
	f.StringArrayVar(&disallow, "disallow", nil, "take a common name back; may be repeated")
	f.BoolVar(&exclusive, "exclusive", false, "let a new client cut the one before it")
	f.StringVar(&role, "role", "", "data or temporary")
	_ = cmd.RegisterFlagCompletionFunc("role", cobra.FixedCompletions([]string{"data", "temporary"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}
