package cli

import (
	"fmt"
	"io"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	kb "github.com/keelblock/keelblock/appliance/api/keelblockv1"
)

func (a *app) diskAttach() *cobra.Command {
	var connections int
	var readOnly bool
	cmd := &cobra.Command{
		Use:   "attach NAME /dev/nbdN [--connections N] [--read-only]",
		Short: "attach a disk to a block device of this host; prints the device",
		Long: `Attaches a disk to an nbd device of the daemon's own host, where it can be partitioned
and mounted like any other. The daemon must run as root, with the kernel's nbd driver
loaded (modprobe nbd). The disk stays attached until disk detach: while the daemon is away
I/O waits, and when it starts again the device goes on. Only a restart of the host
unmounts it; a mount in /etc/fstab wants the options
noauto,x-systemd.automount,x-systemd.requires=keelblock.service.

More connections are faster for many small requests. With more than one, a write that the
disk holds up for more than 30 seconds is repeated by the kernel on another connection,
and may then land after a newer write of the same block: leave it at one where the disk's
storage can stall that long.`,
		Example: "  modprobe nbd && keelblock disk attach web0 /dev/nbd0 && mount /dev/nbd0p1 /mnt",
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if connections < 1 {
				return usageError{fmt.Errorf("--connections %d: at least 1", connections)}
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			r, err := c.disks.Attach(cmd.Context(), connect.NewRequest(&kb.AttachDiskRequest{
				Name: args[0], Device: args[1], Connections: int64(connections), ReadOnly: readOnly}))
			if err != nil {
				return suggest(err, args[0], func() []string { return c.diskNames(cmd.Context()) })
			}
			return a.print(toDisk(r.Msg), func(w io.Writer) { fmt.Fprintln(w, r.Msg.GetDevice()) })
		},
		ValidArgsFunction: a.completing(false, completeDisks, nil),
	}
	cmd.Flags().IntVar(&connections, "connections", 1, "connections between the kernel and the daemon, at most 16")
	cmd.Flags().BoolVar(&readOnly, "read-only", false, "have the kernel refuse writes")
	return cmd
}

func (a *app) diskDetach() *cobra.Command {
	return &cobra.Command{
		Use: "detach NAME", Short: "free the block device that a disk is attached to",
		Long: `Writes out what the kernel has cached and frees the device. It refuses while a file
system on it is mounted, or something else holds it.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			r, err := c.disks.Detach(cmd.Context(), connect.NewRequest(&kb.DetachDiskRequest{Name: args[0]}))
			if err != nil {
				return suggest(err, args[0], func() []string { return c.diskNames(cmd.Context()) })
			}
			return a.print(toDisk(r.Msg), nil)
		},
		ValidArgsFunction: a.completing(false, completeDisks),
	}
}
