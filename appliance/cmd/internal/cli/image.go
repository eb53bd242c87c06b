package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	kb "github.com/keelblock/keelblock/appliance/api/keelblockv1"
	"github.com/keelblock/keelblock/appliance/cmd/internal/diskimage"
	"github.com/keelblock/keelblock/blockdev"
	nbd "github.com/keelblock/keelblock/blockdev/nbd/client"
)

// qemuFormats are the formats that qemu-img reads for us, by the name of the user's.
var qemuFormats = map[string]string{"qcow2": "qcow2", "vmdk": "vmdk", "vhd": "vpc", "vpc": "vpc", "vhdx": "vhdx"}

func (a *app) diskImport() *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use:   "import NAME FILE [--format raw|qcow2|vmdk|vhd|vhdx]",
		Short: "make a disk of an image file; prints its address",
		Long: `Creates disk NAME with the size of the image and copies the image to it. What is sparse
stays sparse. The format is taken from the suffix; a raw file needs no suffix. Formats
other than raw are read by qemu-img (Debian package qemu-utils), a qcow2 overlay with all
the files of its backing chain.`,
		Example: "  keelblock disk import web0 debian-12.qcow2",
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			name, path := args[0], args[1]
			im, err := openImage(cmd.Context(), path, format)
			if err != nil {
				return err
			}
			defer im.file.Close()
			c, err := a.client()
			if err != nil {
				return err
			}
			return a.importImage(cmd.Context(), c, name, im)
		},
		ValidArgsFunction: a.completing(false, completeNothing, nil),
	}
	cmd.Flags().StringVar(&format, "format", "", "format of FILE, whatever its suffix")
	_ = cmd.RegisterFlagCompletionFunc("format", cobra.FixedCompletions([]string{"raw", "qcow2", "vmdk", "vhd", "vhdx"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// image is a file to be imported.
type image struct {
	path   string
	file   *os.File
	format string // "raw", or a name in qemuFormats
	size   int64  // of the disk in it
}

// openImage opens an image and finds its format. Probing the content alone would let
// a guest that wrote the header of another format into its raw disk choose which files
// are read as its backing, so that case must be decided by the user.
func openImage(ctx context.Context, path, format string) (im *image, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("import: %w", err)
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	im = &image{path: path, file: f, format: format}
	if format == "" {
		im.format = "raw"
		suffix := strings.TrimPrefix(strings.ToLower(filepath.Ext(path)), ".")
		if qemuFormats[suffix] != "" {
			im.format = suffix
		} else if seen := looksLike(f); seen != "" && suffix != "raw" {
			return nil, usageError{fmt.Errorf("import %q: the content looks like %s and the name does not say so; add --format %s, or --format raw if it is a raw disk", path, seen, seen)}
		}
	}
	if im.format == "raw" {
		im.size, err = f.Seek(0, io.SeekEnd)
		if err == nil && im.size == 0 {
			err = usageError{fmt.Errorf("import %q: the file is empty", path)}
		}
		return im, err
	}
	if qemuFormats[im.format] == "" {
		return nil, usageError{fmt.Errorf("--format %s: known are raw, qcow2, vmdk, vhd and vhdx", im.format)}
	}
	im.size, err = qemuInfo(ctx, path, qemuFormats[im.format])
	return im, err
}

// looksLike names the format whose magic the file begins with, or "".
func looksLike(f io.ReaderAt) string {
	var p [8]byte
	n, _ := f.ReadAt(p[:], 0)
	for magic, format := range map[string]string{"QFI\xfb": "qcow2", "KDMV": "vmdk", "vhdxfile": "vhdx", "conectix": "vhd"} {
		if strings.HasPrefix(string(p[:n]), magic) {
			return format
		}
	}
	return ""
}

// qemuInfo is the size of the disk in an image.
func qemuInfo(ctx context.Context, path, format string) (int64, error) {
	qemu, err := findQEMU(format)
	if err != nil {
		return 0, err
	}
	out, err := run(ctx, qemu, "info", "--backing-chain", "--output=json", "-f", format, path)
	if err != nil {
		return 0, fmt.Errorf("import %q: %w", path, err)
	}
	var chain []chainLink
	if err := json.Unmarshal(out, &chain); err != nil || len(chain) == 0 {
		return 0, fmt.Errorf("import %q: what qemu-img says about it is not understood: %w", path, errors.Join(err, errNothing))
	}
	return chain[0].Size, checkChain(path, chain)
}

// maxChain bounds the files of a backing chain.
const maxChain = 64

// chainLink is an image of a backing chain, as qemu-img describes it.
type chainLink struct {
	File          string `json:"filename"`
	Size          int64  `json:"virtual-size"`
	Backing       string `json:"backing-filename"`
	BackingFormat string `json:"backing-filename-format"`
}

// checkChain refuses what the user has not said. An overlay that does not name the format
// of what lies below it leaves that to a look at the content, which a guest may have
// written; and one that names something else than a file would be read over the network.
func checkChain(path string, chain []chainLink) error {
	if len(chain) > maxChain {
		return fmt.Errorf("import %q: its backing chain has %d images, the limit is %d; flatten it first: qemu-img convert -O qcow2 %s flat.qcow2", path, len(chain), maxChain, path)
	}
	for _, link := range chain {
		switch {
		case link.Backing == "":
		case link.BackingFormat == "":
			return fmt.Errorf("import %q: %s is an overlay over %q and does not say in which format that is; say it: qemu-img rebase -u -b %s -F FORMAT %s",
				path, link.File, link.Backing, link.Backing, link.File)
		case strings.Contains(link.Backing, "://") || strings.HasPrefix(link.Backing, "json:") || strings.HasPrefix(link.Backing, "nbd:"):
			return fmt.Errorf("import %q: %s is an overlay over %q, which is no file; flatten it first: qemu-img convert -O qcow2 %s flat.qcow2",
				path, link.File, link.Backing, path)
		}
	}
	return nil
}

func findQEMU(format string) (string, error) {
	path, err := exec.LookPath("qemu-img")
	if err != nil {
		return "", fmt.Errorf("format %s needs qemu-img, which is not installed: apt install qemu-utils", format)
	}
	return path, nil
}

func run(ctx context.Context, name string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		text := strings.TrimSpace(stderr.String())
		if text == "" {
			text = err.Error()
		}
		return nil, errors.New(text)
	}
	return out, nil
}

// importImage creates the disk, fills it, and removes it again when that fails.
func (a *app) importImage(ctx context.Context, c *client, name string, im *image) (err error) {
	size := (im.size + blockdev.SectorSize - 1) / blockdev.SectorSize * blockdev.SectorSize
	if size != im.size {
		a.say("the image has %d bytes; the disk is filled up to %d, a whole sector", im.size, size)
	}
	r, err := c.disks.Create(ctx, connect.NewRequest(&kb.CreateDiskRequest{Name: name, SizeBytes: size, Role: "data"}))
	if err != nil {
		return err
	}
	defer func() {
		if err == nil {
			return
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
		defer cancel()
		if _, derr := c.disks.Delete(ctx, connect.NewRequest(&kb.DeleteDiskRequest{Name: name})); derr != nil {
			a.say("disk %s holds a part of the image and could not be removed: %s", name, plain(derr))
		}
	}()
	if im.format == "raw" {
		err = a.importRaw(ctx, r.Msg, im)
	} else {
		err = a.importQEMU(ctx, r.Msg, im)
	}
	if err != nil {
		return fmt.Errorf("import %q: %w", im.path, err)
	}
	d, err := a.disk(ctx, c, name)
	if err != nil {
		return err
	}
	return a.print(toDisk(d), func(w io.Writer) { fmt.Fprintln(w, d.GetUri()) })
}

func (a *app) importRaw(ctx context.Context, d *kb.Disk, im *image) error {
	device, err := nbd.Dial(ctx, d.GetUri())
	if err != nil {
		return err
	}
	defer device.Close()
	bar := a.newProgress("import "+filepath.Base(im.path), im.size)
	defer bar.end()
	_, err = diskimage.ReadRaw(ctx, device, im.file, im.size, bar.add)
	return err
}

func (a *app) importQEMU(ctx context.Context, d *kb.Disk, im *image) error {
	qemu, err := findQEMU(im.format)
	if err != nil {
		return err
	}
	bar := a.newProgress("import "+filepath.Base(im.path), 0)
	defer bar.end()
	_, err = run(ctx, qemu, "convert", "-n", "--target-is-zero", "-W", "-m", "8", "-f", qemuFormats[im.format], "-O", "raw", im.path, d.GetUri())
	return err
}

func (a *app) diskExport() *cobra.Command {
	var force bool
	var format string
	cmd := &cobra.Command{
		Use:   "export NAME FILE",
		Short: "copy a live disk to a file: raw and sparse, or qcow2 by suffix",
		Long: `Copies a live disk to a file. What is written to the disk meanwhile may be in the file
or not: for a copy of one instant make a backup and restore it to a file.`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			format, err := writeFormat(format, args[1])
			if err != nil {
				return err
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			d, err := a.disk(cmd.Context(), c, args[0])
			if err != nil {
				return err
			}
			out, err := create(args[1], force)
			if err != nil {
				return err
			}
			defer out.Discard()
			device, err := nbd.Dial(cmd.Context(), d.GetUri())
			if err != nil {
				return fmt.Errorf("export disk %q: %w", args[0], err)
			}
			defer device.Close()
			if d.GetConnections() > 0 {
				a.say("disk %s is in use: the file is not of one instant", args[0])
			}
			return a.writeImage(cmd.Context(), out, device, fileShape{File: args[1], Format: format, DiskName: args[0]})
		},
		ValidArgsFunction: a.completing(false, completeDisks, nil),
	}
	cmd.Flags().BoolVar(&force, "force", false, "replace FILE if it exists")
	cmd.Flags().StringVar(&format, "format", "", "raw or qcow2, whatever the suffix")
	return cmd
}
