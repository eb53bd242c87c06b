package guestfiles

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/keelblock/keelblock/appliance/fusemount"
	"github.com/keelblock/keelblock/blockdev/filesystem"
)

// Options of a Tree.
type Options struct {
	// Deadline of one operation on a guest's file system. 0: 30 s.
	Deadline time.Duration
}

// Tree finds files below points.
type Tree struct {
	points   fusemount.Directory
	deadline time.Duration

	mu      sync.Mutex
	volumes map[string]*volume // by the identity of the entry
}

// New makes a tree of files over the tree of points.
func New(points fusemount.Directory, o Options) *Tree {
	if o.Deadline == 0 {
		o.Deadline = defaultDeadline
	}
	return &Tree{points: points, deadline: o.Deadline, volumes: make(map[string]*volume)}
}

func (t *Tree) volume(e fusemount.Entry) *volume {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.volumes[e.ID] == nil {
		t.volumes[e.ID] = &volume{open: e.Volume, deadline: t.deadline}
	}
	return t.volumes[e.ID]
}

// Point names a recovery point.
type Point struct{ Machine, ID string }

// Found is a node with its path below the point, as a mount shows it: without a slash
// at the beginning, "" for the point itself.
type Found struct {
	*Node
	Path string
}

// Base is the name under which the node is copied.
func (f Found) Base() string { return f.Path[strings.LastIndexByte(f.Path, '/')+1:] }

// NotFoundError says what is there instead.
type NotFoundError struct {
	Dir   string   // as far as the path exists
	Name  string   // what Dir does not have
	Names []string // that Dir has, sorted; at most maxNames
	More  bool     // there are more
	Hint  string   // the next step, if there is one
}

const maxNames = 20

// Error names what was sought and what is there.
func (e *NotFoundError) Error() string {
	dir := e.Dir
	if dir == "" {
		dir = "the point"
	} else {
		dir = Escape([]byte(dir))
	}
	text := fmt.Sprintf("%s has no %s", dir, Escape([]byte(e.Name)))
	if e.Hint != "" {
		return text + "; " + e.Hint
	}
	if len(e.Names) == 0 {
		return text + "; it is empty"
	}
	var names []string
	for _, n := range e.Names {
		names = append(names, Escape([]byte(n)))
	}
	text += "; it has " + strings.Join(names, ", ")
	if e.More {
		text += ", …"
	}
	return text
}

// Unwrap is filesystem.ErrNotExist.
func (e *NotFoundError) Unwrap() error { return filesystem.ErrNotExist }

// Root is the folder of a point.
func (t *Tree) Root(ctx context.Context, p Point) (Found, error) {
	m, err := t.points.Lookup(ctx, p.Machine)
	if err != nil {
		return Found{}, fmt.Errorf("machine %q: %w", p.Machine, err)
	}
	e, err := m.Directory.Lookup(ctx, p.ID)
	if err != nil {
		return Found{}, fmt.Errorf("recovery point %s: %w", p.ID, err)
	}
	n, err := t.ours(ctx, e)
	return Found{Node: n}, err
}

const (
	volumesDir = "volumes"
	statusFile = "STATUS"
)

// locker is a tree of points that knows of volumes whose files are hidden: why, an error
// for each.
type locker interface {
	Locked(ctx context.Context, machine, point string) []error
}

// Locked says of each encrypted volume of a point that could not be opened why not.
func (t *Tree) Locked(ctx context.Context, p Point) []error {
	if l, ok := t.points.(locker); ok {
		return l.Locked(ctx, p.Machine, p.ID)
	}
	return nil
}

// HiddenError is a file that was not found where a locked volume may have it.
type HiddenError struct {
	Missing error // what was found instead
	Locked  []error
}

// Error names the volumes and what to do.
func (e *HiddenError) Error() string {
	return fmt.Sprintf("%v; it may lie in what is locked: %v", e.Missing, errors.Join(e.Locked...))
}

// Find resolves a path below a point: volumes/DISK-N/…, DISK-N/… or, from a slash on,
// a path of the guest, which one volume only may have, or which is looked for in the tree as
// the guest saw it where there is one. Symbolic links in the path are
// resolved inside their volume; the last name is not followed, save with follow or a
// slash at the end.
func (t *Tree) Find(ctx context.Context, p Point, path string, follow bool) (Found, error) {
	f, err := t.find(ctx, p, path, follow)
	if !errors.Is(err, filesystem.ErrNotExist) {
		return f, err
	}
	var missing *NotFoundError
	inVolume := errors.As(err, &missing) && strings.HasPrefix(missing.Dir, volumesDir+"/")
	if inVolume && !strings.HasPrefix(path, "/") { // that volume is open, and the only one that was meant
		return f, err
	}
	if locked := t.Locked(ctx, p); len(locked) > 0 {
		return f, &HiddenError{err, locked}
	}
	return f, err
}

func (t *Tree) find(ctx context.Context, p Point, path string, follow bool) (Found, error) {
	root, err := t.Root(ctx, p)
	if err != nil {
		return Found{}, err
	}
	names := split(path)
	follow = follow || strings.HasSuffix(path, "/")
	if len(names) == 0 && !strings.HasPrefix(path, "/") {
		return root, nil
	}
	top, err := t.top(ctx, root)
	if err != nil {
		return Found{}, err
	}
	switch {
	case len(names) > 0 && top.has(names[0]):
		return t.walk(ctx, root, names, follow)
	case len(names) > 0 && top.isVolume(names[0]):
		return t.walk(ctx, root, append([]string{volumesDir}, names...), follow)
	case strings.HasPrefix(path, "/"):
		return t.guestPath(ctx, root, top, names, follow)
	}
	return Found{}, top.missing(names[0], path)
}

// split cuts a path into names; empty ones and "." mean nothing.
func split(path string) []string {
	return slices.DeleteFunc(strings.Split(path, "/"), func(s string) bool { return s == "" || s == "." })
}

// top is what can stand first in a path.
type top struct {
	names   []string // of the point's folder
	guests  []string // those of them that are trees as guests saw them
	volumes []fusemount.Entry
	err     error // why volumes could not be listed
}

func (t *Tree) top(ctx context.Context, root Found) (*top, error) {
	entries, err := root.entry.Directory.List(ctx)
	if err != nil {
		return nil, err
	}
	tp := &top{}
	for _, e := range entries {
		tp.names = append(tp.names, e.Name)
		if e.Volume != nil {
			tp.guests = append(tp.guests, e.Name)
		}
		if e.Name == volumesDir {
			tp.volumes, tp.err = e.Directory.List(ctx)
		}
	}
	return tp, nil
}

func (tp *top) has(name string) bool { return slices.Contains(tp.names, name) }

func (tp *top) isVolume(name string) bool {
	return slices.ContainsFunc(tp.volumes, func(e fusemount.Entry) bool { return e.Name == name })
}

// readable are the names of the volumes that have files.
func (tp *top) readable() []string {
	var out []string
	for _, e := range tp.volumes {
		if e.Volume != nil {
			out = append(out, e.Name)
		}
	}
	return out
}

// roots are where a path of the guest may begin, as names below the point.
func (tp *top) roots() [][]string {
	var out [][]string
	for _, name := range tp.guests {
		out = append(out, []string{name})
	}
	if len(out) > 0 {
		return out
	}
	for _, name := range tp.readable() {
		out = append(out, []string{volumesDir, name})
	}
	return out
}

// missing explains a first name that means nothing.
func (tp *top) missing(name, path string) error {
	e := &NotFoundError{Name: name, Names: append(tp.readable(), tp.names...)}
	slices.Sort(e.Names)
	switch {
	case tp.isVolume(name + ".raw"):
		e.Hint = fmt.Sprintf("volume %s cannot be read as files, and is %s/%s.raw; %s says why", name, volumesDir, name, statusFile)
	case tp.err != nil:
		e.Hint = fmt.Sprintf("its disks cannot be read: %v", tp.err)
	case len(tp.readable()) > 0:
		e.Hint = fmt.Sprintf("it has %s; /%s is looked for in all volumes", strings.Join(e.Names, ", "), strings.TrimPrefix(path, "/"))
	}
	return e
}

// guestPath finds a path that begins at the root of a volume, in the only one that has
// it.
func (t *Tree) guestPath(ctx context.Context, root Found, tp *top, names []string, follow bool) (Found, error) {
	var found []Found
	var failed, missing error
	for _, top := range tp.roots() {
		f, err := t.walk(ctx, root, append(top, names...), follow)
		switch {
		case err == nil:
			found = append(found, f)
		case !errors.Is(err, filesystem.ErrNotExist):
			failed = errors.Join(failed, err)
		case missing == nil || deeper(err, missing):
			missing = err
		}
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		var paths []string
		for _, f := range found {
			paths = append(paths, strings.TrimPrefix(f.Path, volumesDir+"/"))
		}
		return Found{}, fmt.Errorf("/%s is in several volumes; name one: %s", strings.Join(names, "/"), strings.Join(paths, ", "))
	case failed != nil:
		return Found{}, failed
	case missing != nil:
		return Found{}, missing
	case tp.err != nil:
		return Found{}, tp.err
	}
	return Found{}, &NotFoundError{Name: "/" + strings.Join(names, "/"),
		Hint: "it has no volume that can be read as files; " + statusFile + " says why"}
}

// deeper says that more of the path existed for a than for b.
func deeper(a, b error) bool {
	var x, y *NotFoundError
	return errors.As(a, &x) && errors.As(b, &y) && strings.Count(x.Dir, "/") > strings.Count(y.Dir, "/")
}

// maxLinks is how many symbolic links a path may lead through, as in the kernel.
const maxLinks = 40

// walk follows names from a folder. The path that it gives is that of the file itself,
// not of the links that led to it.
func (t *Tree) walk(ctx context.Context, from Found, names []string, follow bool) (Found, error) {
	at := from
	links := 0
	for len(names) > 0 {
		name := names[0]
		names = names[1:]
		if name == ".." {
			var err error
			if at, err = t.up(ctx, at); err != nil {
				return Found{}, err
			}
			continue
		}
		n, err := at.lookup(ctx, name)
		if err != nil {
			return Found{}, at.explain(ctx, name, err)
		}
		next := Found{n, join(at.Path, name)}
		if n.attr.Type != filesystem.TypeSymlink || len(names) == 0 && !follow {
			at = next
			continue
		}
		if links++; links > maxLinks {
			return Found{}, fmt.Errorf("%s: more than %d symbolic links", Escape([]byte(next.Path)), maxLinks)
		}
		target, err := n.Readlink(ctx)
		if err != nil {
			return Found{}, fmt.Errorf("%s: %w", Escape([]byte(next.Path)), err)
		}
		if bytes.HasPrefix(target, []byte("/")) {
			if at.Node, err = n.root(ctx); err != nil {
				return Found{}, err
			}
			at.Path = volumePath(at.Path)
		}
		names = append(split(string(target)), names...)
	}
	return at, nil
}

// up is the folder above; of a volume's root it is the root.
func (t *Tree) up(ctx context.Context, at Found) (Found, error) {
	if at.vol == nil {
		return Found{}, fmt.Errorf("%q: .. is for paths inside a volume", at.Path)
	}
	n, err := at.parent(ctx)
	if err != nil {
		return Found{}, err
	}
	path := at.Path
	if path != volumePath(path) {
		path = path[:strings.LastIndexByte(path, '/')]
	}
	return Found{n, path}, nil
}

// volumePath is the beginning of a path that names the volume: volumes/DISK-N, or the tree
// as a guest saw it.
func volumePath(path string) string {
	parts := strings.SplitN(path, "/", 3)
	if parts[0] != volumesDir {
		return parts[0]
	}
	return strings.Join(parts[:min(2, len(parts))], "/")
}

func join(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}

// explain says what is there instead of a name that is not.
func (f Found) explain(ctx context.Context, name string, err error) error {
	switch {
	case errors.Is(err, filesystem.ErrNotDir):
		return &NotFoundError{Dir: f.Path, Name: name, Hint: "it is no folder"}
	case !errors.Is(err, filesystem.ErrNotExist):
		return fmt.Errorf("%s: %w", Escape([]byte(join(f.Path, name))), err)
	}
	e := &NotFoundError{Dir: f.Path, Name: name}
	var all []string
	if err := f.List(ctx, false, func(list []Child) bool {
		for _, c := range list {
			all = append(all, string(c.Name))
		}
		return len(all) < 1<<16
	}); err != nil {
		return fmt.Errorf("%s: %w", Escape([]byte(f.Path)), err)
	}
	slices.Sort(all)
	if f.Path == volumesDir && slices.Contains(all, name+".raw") {
		e.Hint = fmt.Sprintf("it cannot be read as files, and is %s/%s.raw; %s says why", volumesDir, name, statusFile)
	}
	for _, n := range all {
		if strings.EqualFold(n, name) || similar(n, name) {
			e.Hint = "did you mean " + Escape([]byte(n)) + "?"
			break
		}
	}
	e.More = len(all) > maxNames
	e.Names = all[:min(len(all), maxNames)]
	return e
}
