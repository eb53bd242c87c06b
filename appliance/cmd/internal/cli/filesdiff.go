package cli

import (
	"bufio"
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	kb "github.com/keelblock/keelblock/appliance/api/keelblockv1"
	"github.com/keelblock/keelblock/appliance/guestfiles"
	"github.com/keelblock/keelblock/blockdev"
)

// changes are the ranges of disks that differ between two points, by their trees; nil
// when they are not known: the points are in different vaults, or of different disks.
func (c *client) changes(ctx context.Context, from, to string) guestfiles.Changes {
	r, err := c.points.Diff(ctx, connect.NewRequest(&kb.DiffPointsRequest{From: from, To: to}))
	if err != nil {
		return nil
	}
	out := make(guestfiles.Changes)
	for _, d := range r.Msg.GetDisks() {
		out[d.GetDisk()] = mapped(d.GetExtents(), func(e *kb.Extent) blockdev.Extent {
			return blockdev.Extent{Offset: e.GetOffset(), Length: e.GetLength()}
		})
	}
	return out
}

type fileChangeShape struct {
	Path       string          `json:"path"` // below PATH
	PathBase64 string          `json:"pathBase64"`
	Change     string          `json:"change"`
	What       []string        `json:"what"`
	Old        *guestFileShape `json:"old"`
	New        *guestFileShape `json:"new"`
}

var changeNames = map[guestfiles.Kind]string{guestfiles.Added: "added", guestfiles.Removed: "removed", guestfiles.Modified: "modified",
	guestfiles.Attributes: "attributes", guestfiles.OtherType: "type", 0: "same"}

func toFileChange(c guestfiles.Change) fileChangeShape {
	s := fileChangeShape{Path: strings.ToValidUTF8(c.Path, "\uFFFD"), PathBase64: base64Unless(c.Path), Change: changeNames[c.Kind], What: list(c.What)}
	if c.Old != nil {
		f := toFile(c.Path, "", c.Old, nil)
		s.Old = &f
	}
	if c.New != nil {
		f := toFile(c.Path, "", c.New, nil)
		s.New = &f
	}
	return s
}

func (a *app) filesDiff() *cobra.Command {
	var contents, nul bool
	cmd := &cobra.Command{
		Use:   "diff P[:PATH] Q[:PATH]",
		Short: "list files that differ between two recovery points",
		Long: `Compares a file, or a folder with all that is below it, between two points. One line for
each name that differs, sorted, a letter and what is different:

  + path    is new in Q             - path    is not in Q any more
  M path    other contents (size, content, target, device), maybe other attributes too
  U path    other attributes only (mode, owner, time of modification, extended attributes)
  T path    is something else: a file became a folder

Times of access and of change (ctime) and the number of links are not compared. Contents
are compared so: other sizes are other contents. Where the trees of the two points say that
the blocks of a file are the same ones, its contents are; of others, only the parts that
lie on changed or other blocks are read. Where the file system cannot tell the blocks of a
file (now: all but ext), files whose inode, size, mtime and ctime are equal are taken as
equal, unless --contents asks to read them; others are read.

Without PATH, Q is compared at the path of P, and P in all its volumes.

` + filesPaths,
		Example: "  keelblock files diff web@2026-11-21T19:30:00Z:/etc web@latest",
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.diffFiles(cmd.Context(), args[0], args[1], contents, nul)
		},
		ValidArgsFunction: a.completeFile(true),
	}
	cmd.Flags().BoolVar(&contents, "contents", false, "read contents wherever blocks do not prove that they are equal")
	cmd.Flags().BoolVarP(&nul, "null", "0", false, "names as they are, each line ended by a NUL byte")
	return cmd
}

func (a *app) diffFiles(ctx context.Context, old, new string, contents, nul bool) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	f, p, err := a.filePoint(ctx, c, old)
	if err != nil {
		return err
	}
	g, q, err := a.filePoint(ctx, c, new)
	if err != nil {
		return err
	}
	f.path = cmp.Or(f.path, "volumes")
	g.path = cmp.Or(g.path, f.path)
	r, err := a.readFiles(ctx, c, p, q)
	if err != nil {
		return err
	}
	defer r.close()
	was, err := a.findFile(ctx, r, f, p, false)
	if err != nil {
		return err
	}
	is, err := a.findFile(ctx, r, g, q, false)
	if err != nil {
		return err
	}
	out := bufio.NewWriterSize(a.Out, 64<<10)
	var array *jsonArray
	if a.json {
		array = &jsonArray{w: out}
	}
	bad := unreadable{a: a}
	o := guestfiles.CompareOptions{Changes: c.changes(ctx, p.GetId(), q.GetId()), Contents: contents, Failed: bad.add}
	err = guestfiles.Compare(ctx, was, is, o, func(change guestfiles.Change) error {
		if array != nil {
			array.add(toFileChange(change))
			return nil
		}
		path := change.Path
		if path == "" {
			path = is.Base()
		}
		line := string(byte(change.Kind)) + " " + nameText(path, nul)
		if len(change.What) > 0 && !nul {
			line += "  (" + strings.Join(change.What, ", ") + ")"
		}
		return writeAll(out, line+lineEnd(nul))
	})
	return errors.Join(err, array.end(), out.Flush(), bad.err("compared"), a.lockedIn(ctx, r, is, q))
}

type fileVersionShape struct {
	PointID  string          `json:"pointId"`
	TimeName string          `json:"timeName"`
	FrozenAt *string         `json:"frozenAt"`
	State    string          `json:"state"` // present, absent, unreadable
	Change   string          `json:"change"`
	What     []string        `json:"what"`
	Sha256   string          `json:"sha256"`
	File     *guestFileShape `json:"file"`
	Error    string          `json:"error"`
}

func (a *app) filesVersions() *cobra.Command {
	var changed, follow bool
	cmd := &cobra.Command{
		Use:   "versions MACHINE:PATH",
		Short: "list the versions of a file over all recovery points of a machine",
		Long: `Shows a file as it is in each recovery point, newest first: the point, the change against
the point before, time of modification, size, the beginning of the SHA-256 of its contents
(all of it with --json or to a file) and the path. The change is

  new    is not in the point before      gone     was in the point before
  M      other contents                  U        other attributes only
  T      was something else              =        the same

The file comes back with keelblock files cp POINT:PATH DEST.

` + filesPaths,
		Example: "  keelblock files versions web:/etc/hostname\n  keelblock files versions web:web0-1/etc/hostname --changed",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			machine, path, _ := strings.Cut(args[0], ":")
			if at := strings.IndexByte(machine, '@'); at >= 0 { // who pasted a point means its machine
				f, _ := cutFileArg(args[0])
				machine, path = machine[:at], f.path
			}
			if path == "" {
				return usageError{fmt.Errorf("%q has no path; it is MACHINE:PATH, as in %s:/etc/hostname", args[0], machine)}
			}
			return a.versions(cmd.Context(), machine, path, changed, follow)
		},
		ValidArgsFunction: func(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
			return a.completeVersions(cmd, args, word)
		},
	}
	cmd.Flags().BoolVar(&changed, "changed", false, "only points in which it differs from the point before")
	cmd.Flags().BoolVarP(&follow, "follow", "L", false, "follow a symbolic link to what it leads to in each point")
	return cmd
}

// completeVersions completes MACHINE:PATH by what the newest point has.
func (a *app) completeVersions(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
	const quiet = cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
	machine, path, inMachine := strings.Cut(word, ":")
	if len(args) > 0 {
		return nil, quiet
	}
	if !inMachine {
		out, _ := a.completing(false, completeMachines)(cmd, args, word)
		return mapped(out, func(s string) string { return s + ":" }), quiet
	}
	out, directive := a.completeFile(false)(cmd, nil, machine+"@latest:"+path)
	return mapped(out, func(s string) string { return machine + ":" + strings.TrimPrefix(s, machine+"@latest:") }), directive
}

// versionSource opens the points of a machine for Versions, one tree each.
type versionSource struct {
	a      *app
	c      *client
	points map[string]*kb.RecoveryPoint
}

// Open opens a point.
func (v versionSource) Open(ctx context.Context, p guestfiles.Point) (*guestfiles.Tree, func(), error) {
	r, err := v.a.readFiles(ctx, v.c, v.points[p.ID])
	if err != nil {
		return nil, nil, err
	}
	return r.Tree, r.close, nil
}

// Changes are those of the disks.
func (v versionSource) Changes(ctx context.Context, from, to guestfiles.Point) guestfiles.Changes {
	return v.c.changes(ctx, from.ID, to.ID)
}

func (a *app) versions(ctx context.Context, machine, path string, changed, follow bool) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	if _, err := a.volumeKeys(); err != nil {
		return err
	}
	points, err := a.machinePoints(ctx, c, machine)
	if err != nil {
		return err
	}
	if len(points) == 0 {
		return notFoundError{fmt.Errorf("machine %q has no recovery points; keelblock backup %s makes one", machine, machine)}
	}
	slices.Reverse(points)
	source := versionSource{a, c, make(map[string]*kb.RecoveryPoint)}
	var order []guestfiles.Point
	for _, p := range points {
		source.points[p.GetId()] = p
		order = append(order, treePoint(p))
	}
	v := versionList{a: a, points: source.points, changed: changed}
	if a.json {
		v.json = &jsonArray{w: a.Out}
	}
	err = errors.Join(guestfiles.Versions(ctx, source, order, path, follow, v.add), v.json.end())
	if err != nil {
		return err
	}
	if v.present == 0 && v.bad == 0 {
		return a.neverThere(ctx, c, points[0], machine, path)
	}
	if v.bad > 0 {
		return partialError{fmt.Sprintf("the file could not be read in %d points", v.bad)}
	}
	return nil
}

// neverThere says what is there instead of a path that no point has.
func (a *app) neverThere(ctx context.Context, c *client, newest *kb.RecoveryPoint, machine, path string) error {
	r, err := a.readFiles(ctx, c, newest)
	if err != nil {
		return err
	}
	defer r.close()
	_, err = r.Find(ctx, treePoint(newest), path, false)
	if err == nil {
		return nil
	}
	return notFoundError{fmt.Errorf("no recovery point of %s has it; in the newest, %w", machine, err)}
}

// versionList prints versions.
type versionList struct {
	a            *app
	points       map[string]*kb.RecoveryPoint
	changed      bool
	json         *jsonArray
	present, bad int
}

var versionLetters = map[guestfiles.Kind]string{guestfiles.Added: "new", guestfiles.Removed: "gone", guestfiles.Modified: "M",
	guestfiles.Attributes: "U", guestfiles.OtherType: "T", 0: "="}

func (l *versionList) add(v guestfiles.Version) error {
	p := l.points[v.Point.ID]
	state := "present"
	switch {
	case v.Err != nil:
		state = "unreadable"
		l.bad++
	case v.Found == nil:
		state = "absent"
	default:
		l.present++
	}
	if l.json == nil && state == "absent" && v.Kind == 0 || l.changed && v.Kind == 0 && v.Err == nil {
		return nil
	}
	if l.json != nil {
		l.json.add(toVersion(p, v, state))
		return l.json.err
	}
	name := pointName(p)
	if name == "" {
		name = p.GetId()
	}
	if v.Err != nil {
		l.a.say("keelblock: %s: %v", name, v.Err)
		return nil
	}
	if v.Found == nil {
		_, err := fmt.Fprintf(l.a.Out, "%s  %-4s\n", name, versionLetters[v.Kind])
		return err
	}
	at := v.Found.Attr()
	digest := hex.EncodeToString(v.Digest)
	if l.a.outTerminal && len(digest) > 12 {
		digest = digest[:12]
	}
	if digest == "" {
		digest = "-"
	}
	_, err := fmt.Fprintf(l.a.Out, "%s  %-4s  %s  %10d  %s  %s\n", name, versionLetters[v.Kind], fileTime(at.Mtime), at.Size, digest,
		guestfiles.Escape([]byte(v.Found.Path)))
	return err
}

func toVersion(p *kb.RecoveryPoint, v guestfiles.Version, state string) fileVersionShape {
	s := fileVersionShape{PointID: p.GetId(), TimeName: p.GetTimeName(), FrozenAt: stamp(p.GetFrozenAt()), State: state,
		Change: changeNames[v.Kind], What: list(v.What), Sha256: hex.EncodeToString(v.Digest)}
	if v.Err != nil {
		s.Error = v.Err.Error()
	}
	if v.Found != nil {
		f := toFile(v.Found.Path, "", v.Found.Node, nil)
		s.File = &f
	}
	return s
}
