package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	kb "github.com/keelblock/keelblock/appliance/api/keelblockv1"
	"github.com/keelblock/keelblock/appliance/filerestore"
	"github.com/keelblock/keelblock/appliance/guestfiles"
	"github.com/keelblock/keelblock/blockdev/filesystem"
)

// filesPaths is how the verbs of files name files.
const filesPaths = `P names a recovery point (keelblock help points), PATH a file in it:

  volumes/DISK-N/…   the files of partition N of a disk, 0 for a disk without partitions
  DISK-N/…           the same
  /…                 a path as the guest has it, looked for in all volumes
  DISK.raw, STATUS   the whole disk; what could not be read, and why

Symbolic links within PATH are resolved inside their volume. Volumes that LUKS encrypts are
opened with --key-file, as by keelblock mount. With --as-mounted a path that begins with a
slash is one of the tree that the guest's own /etc/fstab describes, through all its volumes.`

func (a *app) filesCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "files", Short: "single files of recovery points: ls, cp, find, diff, tar, zip, versions",
		Long: "Lists, copies and compares files of recovery points, without a mount and without root.\n\n" + filesPaths,
		Example: `  keelblock files versions web:/etc/hostname
  keelblock files cp web@2026-11-21T19:30:00Z:/etc/hostname .
  keelblock files ls web@latest:web0-1/home
  keelblock files diff web@2026-11-21T19:30:00Z:/etc web@latest:/etc`}
	addKeyFiles(cmd.PersistentFlags(), &a.files.keyFiles)
	addAsMounted(cmd.PersistentFlags(), &a.files.asMounted)
	cmd.AddCommand(a.filesList(), a.filesCopy(), a.filesFind(), a.filesDiff(), a.filesTar(), a.filesZip(), a.filesVersions())
	return cmd
}

// filesFlags are the flags of all verbs of files.
type filesFlags struct {
	asMounted bool
	keyFiles  []string
	keys      *filerestore.Keyring // what they hold, once it was read
}

// volumeKeys reads the key files, once: a person types a passphrase once for all points.
func (a *app) volumeKeys() (*filerestore.Keyring, error) {
	if a.files.keys == nil {
		secrets, err := a.volumeSecrets(a.files.keyFiles)
		if err != nil {
			return nil, err
		}
		a.files.keys = filerestore.NewKeyring(secrets)
	}
	return a.files.keys, nil
}

// fileReader reads files of points in this process.
type fileReader struct {
	*guestfiles.Tree
	stop func()
}

// fixedPoints is the daemon, with a list of points that stays as it is.
type fixedPoints struct {
	pointSource
	points []filerestore.Point
}

// Points lists the points.
func (f fixedPoints) Points(context.Context) ([]filerestore.Point, error) { return f.points, nil }

// readFiles makes a reader for files of these points, with the limits of a mount. close
// must follow.
func (a *app) readFiles(ctx context.Context, c *client, points ...*kb.RecoveryPoint) (*fileReader, error) {
	keys, err := a.volumeKeys()
	if err != nil {
		return nil, err
	}
	debug.SetMemoryLimit(mountMemory)
	_ = unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{})
	seen := make(map[string]bool)
	points = slices.DeleteFunc(slices.Clone(points), func(p *kb.RecoveryPoint) bool {
		twice := seen[p.GetId()]
		seen[p.GetId()] = true
		return twice
	})
	tree := filerestore.New(fixedPoints{pointSource{c}, mapped(points, toTreePoint)}, filerestore.Options{Keys: keys, AsMounted: a.files.asMounted})
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		tree.Run(ctx)
	}()
	return &fileReader{Tree: guestfiles.New(tree, guestfiles.Options{}), stop: func() { cancel(); <-done }}, nil
}

// close ends the connections, so that the points are not pinned any more.
func (r *fileReader) close() { r.stop() }

// fileArg is P:PATH on the command line.
type fileArg struct {
	selector, path string
}

// at is the argument for another path in the same point.
func (f fileArg) at(path string) string {
	return f.selector + ":" + guestfiles.Escape([]byte(path))
}

// cutFileArg cuts P:PATH. PATH is bytes, which the daemon never sees.
func cutFileArg(s string) (f fileArg, ok bool) {
	head, rest, found := strings.Cut(s, ":")
	_, which, byMachine := strings.Cut(head, "@")
	if !byMachine || which == "latest" || which == "latest-application" || strings.HasSuffix(which, "Z") {
		return fileArg{head, rest}, found
	}
	// A time has colons and ends at its Z.
	if z := strings.Index(s, "Z:"); z >= 0 {
		return fileArg{s[:z+1], s[z+2:]}, true
	}
	return fileArg{s, ""}, false
}

// filePoint resolves the point of P:PATH.
func (a *app) filePoint(ctx context.Context, c *client, arg string) (fileArg, *kb.RecoveryPoint, error) {
	f, _ := cutFileArg(arg)
	p, _, err := a.point(ctx, c, f.selector)
	if err == nil {
		return f, p, nil
	}
	if !strings.Contains(f.selector, "@") && slices.Contains(completeMachines(ctx, c), f.selector) {
		err = usageError{fmt.Errorf("%q is a machine and names no point; the newest is %s@latest:%s, and keelblock files versions %s:%s lists all",
			f.selector, f.selector, cmp.Or(f.path, "PATH"), f.selector, cmp.Or(f.path, "PATH"))}
	}
	return f, nil, err
}

// findFile resolves P:PATH to a file.
func (a *app) findFile(ctx context.Context, r *fileReader, f fileArg, p *kb.RecoveryPoint, follow bool) (guestfiles.Found, error) {
	found, err := r.Find(ctx, treePoint(p), f.path, follow)
	if err != nil {
		return found, fileError(f.selector, err)
	}
	return found, nil
}

// lockedIn tells of the volumes of a point that are missing in what was asked for, as they
// are locked. When a key was given for them, that is work undone.
func (a *app) lockedIn(ctx context.Context, r *fileReader, found guestfiles.Found, p *kb.RecoveryPoint) error {
	if found.Path != "" && found.Path != "volumes" {
		return nil
	}
	locked := r.Locked(ctx, treePoint(p))
	for _, err := range locked {
		a.say("keelblock: left out: %v", err)
	}
	if len(locked) == 0 || len(a.files.keyFiles) == 0 {
		return nil
	}
	return partialError{fmt.Sprintf("%d volumes are still locked; they are named above", len(locked))}
}

func treePoint(p *kb.RecoveryPoint) guestfiles.Point {
	return guestfiles.Point{Machine: p.GetMachineName(), ID: p.GetId()}
}

// fileError names the point with what went wrong in it.
func fileError(selector string, err error) error {
	err = fmt.Errorf("%s: %w", selector, err)
	if errors.Is(err, filesystem.ErrNotExist) {
		return notFoundError{err}
	}
	return err
}

// oneFile is what a verb with one P:PATH begins with.
func (a *app) oneFile(ctx context.Context, arg string, follow bool, do func(r *fileReader, f fileArg, found guestfiles.Found) error) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	f, p, err := a.filePoint(ctx, c, arg)
	if err != nil {
		return err
	}
	r, err := a.readFiles(ctx, c, p)
	if err != nil {
		return err
	}
	defer r.close()
	found, err := a.findFile(ctx, r, f, p, follow)
	if err != nil {
		return err
	}
	return errors.Join(do(r, f, found), a.lockedIn(ctx, r, found, p))
}

// unreadable tells about a file that could not be read, and goes on.
type unreadable struct {
	a     *app
	count int
}

func (u *unreadable) add(path string, err error) {
	u.count++
	u.a.say("keelblock: %s: %v", guestfiles.Escape([]byte(path)), err)
}

// err says that not all was done.
func (u *unreadable) err(done string) error {
	if u.count == 0 {
		return nil
	}
	return partialError{fmt.Sprintf("%d files could not be %s; they are named above", u.count, done)}
}

// guestFileShape is a file in --json.
type guestFileShape struct {
	Path       string  `json:"path"`
	PathBase64 string  `json:"pathBase64"` // when the path is not UTF-8
	Type       string  `json:"type"`
	Mode       string  `json:"mode"` // octal, the low 12 bits
	UID        int64   `json:"uid"`
	GID        int64   `json:"gid"`
	SizeBytes  int64   `json:"sizeBytes"`
	ModifiedAt *string `json:"modifiedAt"`
	Links      int64   `json:"links"`
	Inode      uint64  `json:"inode"`
	Target     string  `json:"target"`
	Error      string  `json:"error"`
}

func toFile(path, target string, n *guestfiles.Node, err error) guestFileShape {
	s := guestFileShape{Path: strings.ToValidUTF8(path, "\uFFFD"), PathBase64: base64Unless(path), Target: strings.ToValidUTF8(target, "\uFFFD")}
	if err != nil {
		s.Error = err.Error()
	}
	if n == nil {
		return s
	}
	at := n.Attr()
	s.Type, s.Mode, s.UID, s.GID = typeNames[at.Type], fmt.Sprintf("%04o", at.Perm&0o7777), int64(at.UID), int64(at.GID)
	s.SizeBytes, s.Links, s.Inode = at.Size, int64(at.Nlink), uint64(at.Inode)
	if !at.Mtime.IsZero() {
		t := at.Mtime.UTC().Format(time.RFC3339Nano)
		s.ModifiedAt = &t
	}
	return s
}

var typeNames = map[filesystem.Type]string{filesystem.TypeRegular: "file", filesystem.TypeDir: "directory", filesystem.TypeSymlink: "symlink",
	filesystem.TypeFifo: "fifo", filesystem.TypeSocket: "socket", filesystem.TypeChar: "character", filesystem.TypeBlock: "block"}

var typeLetters = map[filesystem.Type]byte{filesystem.TypeRegular: '-', filesystem.TypeDir: 'd', filesystem.TypeSymlink: 'l',
	filesystem.TypeFifo: 'p', filesystem.TypeSocket: 's', filesystem.TypeChar: 'c', filesystem.TypeBlock: 'b'}

// modeText is the mode as ls shows it.
func modeText(at filesystem.Attr) string {
	b := []byte("?rwxrwxrwx")
	if l := typeLetters[at.Type]; l != 0 {
		b[0] = l
	}
	for i := range 9 {
		if at.Perm&(0o400>>i) == 0 {
			b[1+i] = '-'
		}
	}
	for i, special := range []struct {
		at   int
		with byte
		bare byte
	}{{3, 's', 'S'}, {6, 's', 'S'}, {9, 't', 'T'}} {
		switch {
		case at.Perm&(0o4000>>i) == 0:
		case b[special.at] == 'x':
			b[special.at] = special.with
		default:
			b[special.at] = special.bare
		}
	}
	return string(b)
}

// machinePoints are the points of a machine, oldest first.
func (a *app) machinePoints(ctx context.Context, c *client, machine string) ([]*kb.RecoveryPoint, error) {
	r, err := c.points.List(ctx, connect.NewRequest(&kb.ListPointsRequest{Machine: machine}))
	if err != nil {
		return nil, suggest(err, machine, func() []string { return c.machineNames(ctx) })
	}
	return r.Msg.GetPoints(), nil
}

// completeFile completes P:PATH: first the point, then names in its folders.
func (a *app) completeFile(repeat bool) completion {
	return func(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
		const quiet = cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
		if len(args) > 0 && !repeat {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		c, err := a.client()
		if err != nil {
			return nil, quiet
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), 2*time.Second)
		defer cancel()
		f, inPoint := cutFileArg(word)
		if !inPoint {
			var out []string
			for _, s := range completePoints(ctx, c) {
				name, text, described := strings.Cut(s, "\t")
				if !strings.HasPrefix(name, word) {
					continue
				}
				if name += ":"; described {
					name += "\t" + text
				}
				out = append(out, name)
			}
			if len(args) > 0 {
				return out, cobra.ShellCompDirectiveNoSpace // or a file of this machine
			}
			return out, quiet
		}
		p, _, err := a.point(ctx, c, f.selector)
		if err != nil {
			return nil, quiet
		}
		a.files.keyFiles = nil // nobody is asked for a passphrase here, nor waits for its key
		r, err := a.readFiles(ctx, c, p)
		if err != nil {
			return nil, quiet
		}
		defer r.close()
		dir, begin := f.path[:strings.LastIndexByte(f.path, '/')+1], f.path[strings.LastIndexByte(f.path, '/')+1:]
		found, err := r.Find(ctx, treePoint(p), dir, true)
		if err != nil {
			return nil, quiet
		}
		var out []string
		_ = found.List(ctx, false, func(list []guestfiles.Child) bool {
			for _, child := range list {
				if name := string(child.Name); child.Err == nil && strings.HasPrefix(name, begin) && guestfiles.Escape(child.Name) == name {
					if child.Node.IsDir() {
						name += "/"
					}
					out = append(out, f.selector+":"+dir+name)
				}
			}
			return len(out) < 1000
		})
		return out, quiet
	}
}

// lineEnd ends a line, or a name as it is.
func lineEnd(nul bool) string {
	if nul {
		return "\x00"
	}
	return "\n"
}

// nameText is a name as it is printed.
func nameText(name string, nul bool) string {
	if nul {
		return name
	}
	return guestfiles.Escape([]byte(name))
}

// writeAll is fmt.Fprint whose error ends the command: a reader that closed the pipe
// has enough.
func writeAll(w io.Writer, s string) error {
	_, err := io.WriteString(w, s)
	return err
}
