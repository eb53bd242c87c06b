package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"runtime"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	kb "github.com/keelblock/keelblock/appliance/api/keelblockv1"
	"github.com/keelblock/keelblock/appliance/cmd/internal/diskimage"
	"github.com/keelblock/keelblock/blockdev"
)

func (a *app) restoreCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "restore", Short: "bring back a whole disk: to a new disk, or to a file"}
	cmd.AddCommand(a.restoreDisk(), a.restoreFile())
	return cmd
}

func (a *app) restoreDisk() *cobra.Command {
	var noWait bool
	cmd := &cobra.Command{
		Use:     "disk P[:DISK] NAME",
		Short:   "restore to a new disk of this appliance; prints its address",
		Example: "  keelblock restore disk web@latest:web0 web0-back",
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			ctx := cmd.Context()
			p, d, err := a.pointDisk(ctx, c, args[0])
			if err != nil {
				return err
			}
			r, err := c.points.RestoreDisk(ctx, connect.NewRequest(&kb.RestoreDiskRequest{Point: p.GetId(), Disk: d.GetName(), Name: args[1]}))
			if err != nil {
				return err
			}
			if noWait {
				return a.printJobID(r.Msg)
			}
			j, err := a.follow(ctx, c, r.Msg)
			if err != nil {
				return err
			}
			if s := j.GetState(); s == jobFailed || s == jobCancelled {
				return jobError(j)
			}
			disk, err := a.disk(ctx, c, args[1])
			if err != nil {
				return err
			}
			if err := a.print(toDisk(disk), func(w io.Writer) { fmt.Fprintln(w, disk.GetUri()) }); err != nil {
				return err
			}
			return jobError(j)
		},
		ValidArgsFunction: a.completing(false, completePoints, completeNothing),
	}
	cmd.Flags().BoolVar(&noWait, "no-wait", false, "print the job's id and return at once")
	return cmd
}

func (a *app) restoreFile() *cobra.Command {
	var force bool
	var format string
	cmd := &cobra.Command{
		Use:   "file P[:DISK] FILE",
		Short: "restore to a file of yours: raw and sparse, or qcow2 by suffix",
		Long: `Writes a disk of a point to a file: qcow2 when its name ends in .qcow2, else raw and
sparse. The file belongs to you, mode 0600, and appears under its name only when it is
whole and durable. Every block is compared with its digest on the way.`,
		Example: "  keelblock restore file web@latest:web0 back.raw\n  keelblock restore file web@2026-11-21T19:30:00Z back.qcow2",
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			format, err := writeFormat(format, args[1])
			if err != nil {
				return err
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			ctx := cmd.Context()
			p, d, err := a.pointDisk(ctx, c, args[0])
			if err != nil {
				return err
			}
			out, err := create(args[1], force)
			if err != nil {
				return err
			}
			defer out.Discard()
			shape := fileShape{File: args[1], Format: format, PointID: p.GetId(), DiskName: d.GetName()}
			if format == "raw" {
				if done, err := a.writtenByDaemon(ctx, c, out, shape, d.GetSizeBytes()); done || err != nil {
					return err
				}
			}
			device, err := c.openReader(ctx, p.GetId(), d.GetName(), readerTTL)
			if err != nil {
				return err
			}
			defer device.Close()
			return a.writeImage(ctx, out, device, shape)
		},
		ValidArgsFunction: a.completing(false, completePoints, nil),
	}
	cmd.Flags().BoolVar(&force, "force", false, "replace FILE if it exists")
	cmd.Flags().StringVar(&format, "format", "", "raw or qcow2, whatever the suffix")
	return cmd
}

// writeFormat is the format in which FILE is written.
func writeFormat(asked, path string) (string, error) {
	switch asked {
	case "raw", "qcow2":
		return asked, nil
	case "":
	default:
		return "", usageError{fmt.Errorf("--format %s: files are written as raw or qcow2", asked)}
	}
	switch s := strings.ToLower(filepath.Ext(path)); s {
	case ".qcow2":
		return "qcow2", nil
	case ".vmdk", ".vhd", ".vhdx", ".vdi":
		return "", usageError{fmt.Errorf("%q: files are written as raw or qcow2; write .qcow2 and convert it: qemu-img convert -O %s, or force raw with --format raw", path, s[1:])}
	}
	return "raw", nil
}

func create(path string, force bool) (*diskimage.Output, error) {
	out, err := diskimage.Create(path, force)
	if errors.Is(err, diskimage.ErrExists) {
		return nil, fmt.Errorf("%w; --force replaces it", err)
	}
	return out, err
}

// writeImage copies a disk to a file and prints what was done.
func (a *app) writeImage(ctx context.Context, out *diskimage.Output, d blockdev.Device, shape fileShape) error {
	bar := a.newProgress("write "+filepath.Base(shape.File), d.Size())
	// Measured on two cores: 1.2 GiB in 2.28 s for 2.57 s, medians of five in turn.
	runtime.GOMAXPROCS(max(runtime.GOMAXPROCS(0), diskimage.Workers))
	write := diskimage.WriteRaw
	if shape.Format == "qcow2" {
		write = diskimage.WriteQCOW2
	}
	r, err := write(ctx, out, d, bar.add)
	bar.end()
	if err != nil {
		return fmt.Errorf("write %q: %w", shape.File, err)
	}
	return a.commitImage(out, shape, r)
}

// commitImage gives the file its name and prints what was done.
func (a *app) commitImage(out *diskimage.Output, shape fileShape, r diskimage.Report) error {
	if err := out.Commit(); err != nil {
		return err
	}
	shape.SizeBytes, shape.WrittenBytes = r.SizeBytes, r.WrittenBytes
	return a.print(shape, func(io.Writer) {
		a.say("%s: %s disk, %s of data, %s", shape.File, human(r.SizeBytes), human(r.WrittenBytes), shape.Format)
	})
}
