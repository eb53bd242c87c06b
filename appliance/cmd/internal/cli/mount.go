package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	kb "github.com/keelblock/keelblock/appliance/api/keelblockv1"
	"github.com/keelblock/keelblock/appliance/filerestore"
	"github.com/keelblock/keelblock/appliance/fusemount"
)

// mountMemory is the soft limit of a mount's heap, in bytes: a reader of guest file
// systems works on hostile images.
const mountMemory = 256 << 20

func (a *app) mountCommand() *cobra.Command {
	var machine, point string
	var detach, others, verbose bool
	var ready int
	var keyFiles []string
	var asMounted bool
	cmd := &cobra.Command{
		Use:   "mount DIR [--machine M] [--point P] [--key-file F] [--as-mounted] [-d]",
		Short: "show recovery points as files",
		Long: `Mounts the recovery points at DIR, read-only:

  MACHINE/TIME/DISK.raw            the disk, sparse
  MACHINE/TIME/volumes/DISK-N/…    the files of partition N, 0 for a disk without partitions
  MACHINE/TIME/volumes/VG-LV/…     the files of a logical volume of LVM
  MACHINE/TIME/volumes/md-NAME/…   the files of an md array (RAID0, RAID1)
  MACHINE/TIME/STATUS              what could not be read, and why
  MACHINE/latest/…                 the same for the newest point

Volumes that LUKS encrypts are opened with what --key-file gives: the content of FILE, or
with - the passphrase, which is asked for at a terminal and else read from standard input.
It may be given several times; each is tried on each volume. It stays in this process.

With --as-mounted there is MACHINE/TIME/as-mounted, too: the tree that the guest saw, its
volumes put together by its own /etc/fstab. Devices are found by UUID, LABEL, PARTUUID and
PARTLABEL, by names of LVM, md and /etc/crypttab, and as /dev/sdXN or /dev/vdXN by the order
of the machine's disks. STATUS names each line, and what could not be mounted.

A point is also found by its id, as MACHINE/ID/…, which is not listed.

DIR is made if it does not exist. --machine and --point narrow what is listed; paths stay
the same. An ordinary user who may reach the daemon's folder can mount too. The process
stays in the foreground until the mount ends, or with -d returns when it works.`,
		Example: "  keelblock mount /mnt/points -d\n  cp -a /mnt/points/web/latest/volumes/web0-1/etc .\n  keelblock umount /mnt/points",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			dir, err := a.mountPoint(args[0])
			if err != nil {
				return err
			}
			if detach {
				typed, err := a.typedSecret(keyFiles)
				if err != nil {
					return err
				}
				return a.mountDetached(cmd.Context(), dir, typed)
			}
			secrets, err := a.volumeSecrets(keyFiles)
			if err != nil {
				return err
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			return a.mount(cmd.Context(), c, dir, filerestore.Options{Machine: machine, AsMounted: asMounted, Keys: filerestore.NewKeyring(secrets)}, point, others || os.Geteuid() == 0, verbose, ready)
		},
		ValidArgsFunction: a.completing(false, nil),
	}
	f := cmd.Flags()
	f.StringVar(&machine, "machine", "", "list this machine only")
	f.StringVar(&point, "point", "", "list this recovery point only")
	addKeyFiles(f, &keyFiles)
	addAsMounted(f, &asMounted)
	f.BoolVarP(&detach, "detach", "d", false, "return when the mount works, and leave it")
	f.BoolVar(&others, "allow-other", false, "let other users in, with the guest's permissions (root: always)")
	f.BoolVarP(&verbose, "verbose", "v", false, "log what cannot be read")
	f.IntVar(&ready, "ready-fd", 0, "")
	_ = f.MarkHidden("ready-fd")
	_ = cmd.RegisterFlagCompletionFunc("machine", a.completing(true, completeMachines))
	_ = cmd.RegisterFlagCompletionFunc("point", a.completing(true, completePoints))
	return cmd
}

// mountPoint makes the folder if need be, and refuses one that is mounted already.
func (a *app) mountPoint(dir string) (string, error) {
	if _, mounted, err := fusemount.Find(dir); err == nil && mounted {
		return "", fmt.Errorf("%s is mounted already; end it with keelblock umount %s", dir, dir)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("mount: %w", err)
	}
	path, _, err := fusemount.Find(dir)
	if err != nil {
		return "", fmt.Errorf("mount: %w", err)
	}
	return path, nil
}

// mount serves the mount in this process until it ends. With readyFD it is the child
// of mount -d.
func (a *app) mount(ctx context.Context, c *client, dir string, o filerestore.Options, selector string, others, verbose bool, readyFD int) error {
	if readyFD > 0 { // a detached mount must not keep a folder busy
		if err := os.Chdir("/"); err != nil {
			return err
		}
	}
	debug.SetMemoryLimit(mountMemory)
	// A crash must not leave the guest's files in a core dump.
	_ = unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{})
	o.Logger = slog.New(slog.DiscardHandler)
	if verbose {
		o.Logger = slog.New(slog.NewTextHandler(a.Err, nil))
	}
	if o.Machine != "" {
		if _, err := a.machineOrPoints(ctx, c, o.Machine); err != nil {
			return err
		}
	}
	if selector != "" {
		p, _, err := a.point(ctx, c, selector)
		if err != nil {
			return err
		}
		o.PointID = p.GetId()
	}
	tree := filerestore.New(pointSource{c}, o)
	if _, err := tree.List(ctx); err != nil {
		return err
	}
	m, err := fusemount.Start(dir, tree, fusemount.Options{AllowOther: others, Logger: o.Logger})
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	idle := make(chan struct{})
	go func() {
		defer close(idle)
		tree.Run(ctx)
	}()
	err = a.mounted(dir, readyFD)
	if err == nil {
		select {
		case <-m.Done():
		case <-ctx.Done():
		}
	}
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	err = errors.Join(err, m.Unmount(end))
	stop()
	<-idle
	return err
}

// mounted tells whoever waits that the mount works.
func (a *app) mounted(dir string, readyFD int) error {
	shape := directoryShape{dir, os.Getpid()}
	if readyFD == 0 {
		a.say("mounted at %s; end it with Ctrl-C or keelblock umount %s", dir, dir)
		return a.print(shape, nil)
	}
	pipe := os.NewFile(uintptr(readyFD), "ready")
	defer pipe.Close()
	_, err := fmt.Fprintln(pipe, dir)
	return err
}

// machineOrPoints accepts a machine that exists, or one that is gone and left points.
func (a *app) machineOrPoints(ctx context.Context, c *client, name string) (bool, error) {
	r, err := c.points.List(ctx, connect.NewRequest(&kb.ListPointsRequest{Machine: name}))
	if err == nil && len(r.Msg.GetPoints()) > 0 {
		return true, nil
	}
	_, err = a.machine(ctx, c, name)
	return err == nil, err
}

// mountDetached mounts in the background and returns when the mount works. secret is for
// the child's standard input.
func (a *app) mountDetached(ctx context.Context, dir string, secret []byte) error {
	args := slices.DeleteFunc(slices.Clone(a.args), func(s string) bool { return s == "-d" || s == "--detach" || s == "--detach=true" })
	args = append(args, fmt.Sprintf("--ready-fd=%d", childFD))
	// What the child says before the mount works is the user's to read. Afterwards
	// nobody listens, so it goes to a file without a name.
	said, err := os.CreateTemp("", "keelblock-mount-*")
	if err != nil {
		return err
	}
	defer said.Close()
	_ = os.Remove(said.Name())
	_, pid, err := detached(ctx, args, bytes.NewReader(secret), said)
	if err != nil {
		return childFailed(err, said, 0, "")
	}
	return a.print(directoryShape{dir, pid}, func(io.Writer) { a.say("mounted at %s; end it with keelblock umount %s", dir, dir) })
}

func (a *app) umountCommand() *cobra.Command {
	var lazy bool
	cmd := &cobra.Command{
		Use: "umount DIR", Aliases: []string{"unmount"}, Short: "end a mount; returns when it is gone", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			dir := args[0]
			if _, err := os.Lstat(filepath.Dir(dir)); err != nil {
				return fmt.Errorf("umount: %w", err)
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), 30*time.Second)
			defer cancel()
			err := fusemount.Unmount(ctx, dir, lazy)
			switch {
			case errors.Is(err, fusemount.ErrNotMounted):
				return notFoundError{err}
			case errors.Is(err, unix.EBUSY):
				return fmt.Errorf("%s is in use (a shell may stand in it); leave it, or take it out of the way at once with --lazy", dir)
			case err != nil:
				return err
			}
			if dir, err = filepath.Abs(dir); err != nil {
				return err
			}
			return a.print(directoryShape{dir, 0}, nil)
		},
	}
	cmd.Flags().BoolVar(&lazy, "lazy", false, "take it away at once, even when it is in use")
	return cmd
}

// pointSource is the daemon as the source of points.
type pointSource struct{ c *client }

// Points lists the points.
func (s pointSource) Points(ctx context.Context) ([]filerestore.Point, error) {
	r, err := s.c.points.List(ctx, connect.NewRequest(&kb.ListPointsRequest{}))
	if err != nil {
		return nil, err
	}
	return mapped(r.Msg.GetPoints(), toTreePoint), nil
}

// toTreePoint is a point as the tree of files has it.
func toTreePoint(p *kb.RecoveryPoint) filerestore.Point {
	return filerestore.Point{ID: p.GetId(), Machine: p.GetMachineName(), FrozenAt: p.GetFrozenAt().AsTime(), Name: p.GetTimeName(),
		Consistency: p.GetConsistency(), Note: p.GetNote(),
		Disks: mapped(p.GetDisks(), func(d *kb.PointDisk) filerestore.Disk {
			return filerestore.Disk{Name: d.GetName(), SizeBytes: d.GetSizeBytes()}
		})}
}

// Open opens a disk of a point.
func (s pointSource) Open(ctx context.Context, point, disk string) (filerestore.Reader, error) {
	r, err := s.c.openReader(ctx, point, disk, readerTTL)
	if err != nil {
		return nil, err
	}
	return r, nil
}
