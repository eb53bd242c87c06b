package cli

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	kb "github.com/keelblock/keelblock/appliance/api/keelblockv1"
	"github.com/keelblock/keelblock/appliance/guestfiles"
	"github.com/keelblock/keelblock/blockdev/filesystem"
)

type copyShape struct {
	Files                  int64 `json:"files"`
	Folders                int64 `json:"folders"`
	Failed                 int64 `json:"failed"`
	Bytes                  int64 `json:"bytes"`
	SkippedAttributesCount int64 `json:"skippedAttributesCount"`
}

func (a *app) filesCopy() *cobra.Command {
	var force, follow bool
	cmd := &cobra.Command{
		Use:   "cp P:PATH... DEST",
		Short: "copy files and folders out of a recovery point",
		Long: `Copies files and folders to DEST, as cp -a does: into DEST if it is a folder, else under the
name DEST. Owners (as root), modes, times, extended attributes and ACLs, symbolic and hard
links, holes and devices (as root) are kept. For others than root the copies belong to who
makes them, without setuid bits, and attributes that only root may set are left out.

Nothing is written outside of DEST, and no symbolic link below it is followed. A file that
exists is not touched without --force, a folder that exists is filled up. A file appears
under its name when it is whole.

What cannot be copied is named, the rest is copied, and the exit status is 3 then.

` + filesPaths,
		Example: "  keelblock files cp web@latest:/etc/hostname .\n  keelblock files cp web@2026-11-21T19:30:00Z:web0-1/home /mnt/back",
		Args:    cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			sources, dest := args[:len(args)-1], args[len(args)-1]
			return a.copyFiles(cmd.Context(), c, sources, dest, guestfiles.CopyOptions{Force: force}, follow)
		},
	}
	file := a.completeFile(true)
	cmd.ValidArgsFunction = func(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 && (strings.HasPrefix(word, ".") || strings.HasPrefix(word, "/")) {
			return nil, cobra.ShellCompDirectiveDefault // DEST
		}
		out, directive := file(cmd, args, word)
		if len(args) > 0 && len(out) == 0 {
			return nil, cobra.ShellCompDirectiveDefault
		}
		return out, directive
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "replace files that exist")
	cmd.Flags().BoolVarP(&follow, "follow", "L", false, "copy what a symbolic link named as PATH leads to")
	return cmd
}

func (a *app) copyFiles(ctx context.Context, c *client, args []string, dest string, o guestfiles.CopyOptions, follow bool) error {
	for _, arg := range args {
		if _, isFile := cutFileArg(arg); !isFile {
			return usageError{fmt.Errorf("%q is no P:PATH; files are copied out of a recovery point, as in %s", arg, copyExample(arg))}
		}
	}
	into, name, err := copyTarget(dest, len(args))
	if err != nil {
		return err
	}
	var points []*kb.RecoveryPoint
	for _, arg := range args {
		_, p, err := a.filePoint(ctx, c, arg)
		if err != nil {
			return err
		}
		points = append(points, p)
	}
	r, err := a.readFiles(ctx, c, points...)
	if err != nil {
		return err
	}
	defer r.close()
	nodes := make(map[string]guestfiles.Found)
	var locked error
	for i, arg := range args {
		f, _ := cutFileArg(arg)
		found, err := a.findFile(ctx, r, f, points[i], follow)
		if err != nil {
			return err
		}
		to := name
		if to == "" {
			to = copyName(found, points[i])
		}
		if _, twice := nodes[to]; twice {
			return usageError{fmt.Errorf("two of the files are named %s; copy them to different folders", guestfiles.Escape([]byte(to)))}
		}
		nodes[to] = found
		if found.Attr().Type == filesystem.TypeSymlink {
			a.linkHint(ctx, f, found)
		}
		locked = cmp.Or(locked, a.lockedIn(ctx, r, found, points[i]))
	}
	bad := unreadable{a: a}
	bar := a.newProgress("copying", 0)
	o.Failed, o.Progress = bad.add, bar.add
	stats, err := guestfiles.Copy(ctx, into, nodes, o)
	bar.end()
	if err != nil {
		return err
	}
	shape := copyShape{stats.Files, stats.Folders, stats.Failed, stats.Bytes, stats.SkippedAttributes}
	if err := a.print(shape, nil); err != nil {
		return err
	}
	if n := stats.SkippedAttributes; n > 0 {
		a.say("%d extended attributes that only root may set were left out", n)
	}
	if stats.Failed > 0 && stats.Files+stats.Folders == 0 {
		return errors.New("nothing was copied; the reasons are above")
	}
	return cmp.Or(bad.err("copied"), locked)
}

// copyName is the name under which a file appears in a target folder.
func copyName(found guestfiles.Found, p *kb.RecoveryPoint) string {
	if found.Path == "" { // the whole point, under the name that a mount gives it
		return p.GetTimeName()
	}
	return found.Base()
}

// linkHint tells who copied a link, and may have wanted a file, how to get that.
func (a *app) linkHint(ctx context.Context, f fileArg, found guestfiles.Found) {
	if target, err := found.Readlink(ctx); err == nil {
		a.say("%s is a symbolic link to %s; --follow copies what it leads to", f.at(found.Path), guestfiles.Escape(target))
	}
}

func copyExample(arg string) string {
	if !strings.Contains(arg, "@") {
		return "keelblock files cp MACHINE@latest:" + arg + " DEST"
	}
	return "keelblock files cp " + arg + ":/etc/hostname DEST"
}

// copyTarget is the folder to copy into, and the name in it unless the files keep
// theirs.
func copyTarget(dest string, count int) (into, name string, err error) {
	info, err := os.Stat(dest)
	switch {
	case err == nil && info.IsDir():
		return dest, "", nil
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return "", "", err
	case count > 1:
		return "", "", usageError{fmt.Errorf("%s is no folder; several files are copied into one that exists: mkdir %s", dest, dest)}
	case strings.HasSuffix(dest, "/"):
		return "", "", fmt.Errorf("the folder %s does not exist; make it first: mkdir -p %s", dest, dest)
	}
	into, name = filepath.Split(dest)
	if into == "" {
		into = "."
	}
	if info, err := os.Stat(into); err != nil || !info.IsDir() {
		return "", "", fmt.Errorf("the folder %s does not exist; make it first: mkdir -p %s", into, into)
	}
	return into, name, nil
}

func (a *app) filesTar() *cobra.Command {
	var follow bool
	cmd := &cobra.Command{
		Use:   "tar P:PATH",
		Short: "write a file or folder of a recovery point to standard output, as a tar archive",
		Long: `Writes a file, or a folder with all that is below it, as a tar archive in pax format: times
to the nanosecond, extended attributes and ACLs, hard links, holes, devices, names of any
bytes. GNU tar restores all of it with --xattrs --xattrs-include='*'.

A file that cannot be read is left out and named, and the exit status is 3. If that shows
in the middle of a large file, the archive ends there, is not whole, and the exit status is
1: use files cp then.

` + filesPaths,
		Example: "  keelblock files tar web@latest:/home | gzip > home.tar.gz\n  keelblock files tar web@latest:web0-1/etc | tar -xC /mnt --xattrs --xattrs-include='*'",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := a.archiveGoes("tar"); err != nil {
				return err
			}
			return a.oneFile(cmd.Context(), args[0], follow, func(_ *fileReader, f fileArg, found guestfiles.Found) error {
				return a.writeArchive(cmd.Context(), f, found, guestfiles.Archive)
			})
		},
		ValidArgsFunction: a.completeFile(false),
	}
	cmd.Flags().BoolVarP(&follow, "follow", "L", false, "archive what a symbolic link named as PATH leads to")
	return cmd
}

func (a *app) filesZip() *cobra.Command {
	var follow bool
	cmd := &cobra.Command{
		Use:   "zip P:PATH",
		Short: "write a file or folder of a recovery point to standard output, as a zip archive",
		Long: `Writes a file, or a folder with all that is below it, as a zip archive: modes, owners as
numbers, times to the second, symbolic links. Such an archive has no extended attributes,
hard links, holes or devices; files tar keeps them.

A file that cannot be read, or cannot stand in a zip archive, is left out and named, and the
exit status is 3. If it shows in the middle of its data that a file cannot be read, the
archive ends there, is not whole, and the exit status is 1.

` + filesPaths,
		Example: "  keelblock files zip web@latest:/home/ann > ann.zip",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := a.archiveGoes("zip"); err != nil {
				return err
			}
			return a.oneFile(cmd.Context(), args[0], follow, func(_ *fileReader, f fileArg, found guestfiles.Found) error {
				return a.writeArchive(cmd.Context(), f, found, guestfiles.Zip)
			})
		},
		ValidArgsFunction: a.completeFile(false),
	}
	cmd.Flags().BoolVarP(&follow, "follow", "L", false, "archive what a symbolic link named as PATH leads to")
	return cmd
}

// archiveGoes refuses to write an archive where it helps nobody.
func (a *app) archiveGoes(verb string) error {
	switch {
	case a.outTerminal:
		return usageError{fmt.Errorf("an archive does not go to a terminal; write it to a file: keelblock files %s … > FILE.%s", verb, verb)}
	case a.json:
		return usageError{fmt.Errorf("files %s prints an archive and has no --json", verb)}
	}
	return nil
}

// archive is guestfiles.Archive or guestfiles.Zip.
type archive func(ctx context.Context, w io.Writer, from guestfiles.Found, name string, o guestfiles.ArchiveOptions) error

func (a *app) writeArchive(ctx context.Context, f fileArg, found guestfiles.Found, write archive) error {
	bad := unreadable{a: a}
	bar := a.newProgress("archiving", 0)
	out := bufio.NewWriterSize(a.Out, 256<<10)
	name := found.Base()
	if name == "" {
		name = "point"
	}
	err := write(ctx, out, found, name, guestfiles.ArchiveOptions{Failed: bad.add, Progress: bar.add})
	bar.end()
	if err = errors.Join(err, out.Flush()); err != nil {
		return fmt.Errorf("%s: %w", f.selector, err)
	}
	return bad.err("archived")
}
