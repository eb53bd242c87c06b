package filerestore

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/keelblock/keelblock/appliance/fusemount"
	"github.com/keelblock/keelblock/blockdev/filesystem"
)

// Latest is the name under which the newest point of a machine is found.
const Latest = "latest"

// listFor is how long a list of points is used. It is far below the time that a
// person, or a script that waits for a backup to return, needs for the next command,
// and spares the daemon a question per file of a long copy.
const listFor = 20 * time.Millisecond

// Options of a Tree. The zero value shows everything.
type Options struct {
	// Machine and PointID narrow what is listed; paths stay the same.
	Machine string
	PointID string
	// CacheBytes bounds the cache of small reads. 0: 64 MiB.
	CacheBytes int64
	// IdleAfter is when an unused disk is closed. 0: 2 min.
	IdleAfter time.Duration
	// AsMounted shows beside the volumes the tree as the guest saw it by its fstab.
	AsMounted bool
	// Keys are tried on encrypted volumes. They stay in this process. nil: none.
	Keys *Keyring
	// Logger; nil: nothing is logged.
	Logger *slog.Logger
}

func (o Options) withDefaults() Options {
	if o.CacheBytes == 0 {
		o.CacheBytes = 64 << 20
	}
	if o.IdleAfter == 0 {
		o.IdleAfter = 2 * time.Minute
	}
	if o.Keys == nil {
		o.Keys = NewKeyring(nil)
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o
}

// Tree is the tree of points.
type Tree struct {
	source Source
	o      Options
	cache  *blockCache
	keys   *Keyring

	mu       sync.Mutex
	listed   time.Time
	machines map[string]*machine
	disks    map[diskKey]*disk
	points   map[string]*pointVolumes // by the point's id
}

type diskKey struct{ point, name string }

// machine is a machine with the points that it has now.
type machine struct {
	points []Point
}

// New makes a tree. It opens nothing yet.
func New(source Source, o Options) *Tree {
	o = o.withDefaults()
	return &Tree{source: source, o: o, cache: newBlockCache(o.CacheBytes), keys: o.Keys,
		disks: make(map[diskKey]*disk), points: make(map[string]*pointVolumes)}
}

// Run closes disks that are not used any more, until ctx is done; then it closes all.
func (t *Tree) Run(ctx context.Context) {
	tick := time.NewTicker(t.o.IdleAfter / 4)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			t.closeIdle(0)
			return
		case <-tick.C:
			t.closeIdle(t.o.IdleAfter)
		}
	}
}

func (t *Tree) closeIdle(after time.Duration) {
	t.mu.Lock()
	disks := make([]*disk, 0, len(t.disks))
	for _, d := range t.disks {
		disks = append(disks, d)
	}
	t.mu.Unlock()
	for _, d := range disks {
		if !d.closeIdle(after) {
			continue
		}
		t.mu.Lock()
		p := t.points[d.key.point]
		t.mu.Unlock()
		if p != nil {
			p.forget()
		}
	}
}

// list is the machines and their points as of now.
func (t *Tree) list(ctx context.Context) (map[string]*machine, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.machines != nil && time.Since(t.listed) < listFor {
		return t.machines, nil
	}
	began := time.Now()
	// The lock is held over the call on purpose: whoever comes meanwhile wants the
	// same answer.
	points, err := t.source.Points(ctx)
	if err != nil {
		return nil, err
	}
	machines := make(map[string]*machine)
	for _, p := range points {
		if t.o.Machine != "" && p.Machine != t.o.Machine || t.o.PointID != "" && p.ID != t.o.PointID {
			continue
		}
		m := machines[p.Machine]
		if m == nil {
			m = &machine{}
			machines[p.Machine] = m
		}
		m.points = append(m.points, p)
	}
	for _, m := range machines {
		slices.SortStableFunc(m.points, func(a, b Point) int { return a.FrozenAt.Compare(b.FrozenAt) })
		unique(m.points)
	}
	t.machines, t.listed = machines, began
	return machines, nil
}

// disk returns the disk of a point, the same one each time.
func (t *Tree) disk(p Point, d Disk) *disk {
	t.mu.Lock()
	defer t.mu.Unlock()
	key := diskKey{p.ID, d.Name}
	if t.disks[key] == nil {
		t.disks[key] = &disk{tree: t, key: key, size: d.SizeBytes, problems: problemLog{tree: t, machine: p.Machine, point: p.ID, disk: d.Name}}
	}
	return t.disks[key]
}

// Lookup finds a machine.
func (t *Tree) Lookup(ctx context.Context, name string) (fusemount.Entry, error) {
	machines, err := t.list(ctx)
	if err != nil {
		return fusemount.Entry{}, err
	}
	if machines[name] == nil {
		return fusemount.Entry{}, filesystem.ErrNotExist
	}
	return t.machineEntry(name, machines[name]), nil
}

// List lists the machines.
func (t *Tree) List(ctx context.Context) ([]fusemount.Entry, error) {
	machines, err := t.list(ctx)
	if err != nil {
		return nil, err
	}
	var out []fusemount.Entry
	for name, m := range machines {
		out = append(out, t.machineEntry(name, m))
	}
	slices.SortFunc(out, func(a, b fusemount.Entry) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

func (t *Tree) machineEntry(name string, m *machine) fusemount.Entry {
	return fusemount.Entry{Name: name, Time: m.points[len(m.points)-1].FrozenAt, Directory: machineDir{t, name}}
}

// machineDir lists the points of a machine, and the newest again.
type machineDir struct {
	tree *Tree
	name string
}

func (d machineDir) machine(ctx context.Context) (*machine, error) {
	machines, err := d.tree.list(ctx)
	if err != nil {
		return nil, err
	}
	if m := machines[d.name]; m != nil {
		return m, nil
	}
	return nil, filesystem.ErrNotExist
}

// Lookup finds a point by its time or id, or the latest.
func (d machineDir) Lookup(ctx context.Context, name string) (fusemount.Entry, error) {
	m, err := d.machine(ctx)
	if err != nil {
		return fusemount.Entry{}, err
	}
	if name == Latest {
		return d.latest(m), nil
	}
	p, ok := findPoint(m.points, name)
	if !ok {
		return fusemount.Entry{}, filesystem.ErrNotExist
	}
	return d.entry(name, p), nil
}

// List lists the points by time.
func (d machineDir) List(ctx context.Context) ([]fusemount.Entry, error) {
	m, err := d.machine(ctx)
	if err != nil {
		return nil, err
	}
	var out []fusemount.Entry
	for _, p := range m.points {
		out = append(out, d.entry(p.Name, p))
	}
	return append(out, d.latest(m)), nil
}

func (d machineDir) entry(name string, p Point) fusemount.Entry {
	return fusemount.Entry{Name: name, ID: "point:" + p.ID, Time: p.FrozenAt, Directory: pointDir{d.tree, p, false}}
}

func (d machineDir) latest(m *machine) fusemount.Entry {
	p := m.points[len(m.points)-1]
	return fusemount.Entry{Name: Latest, ID: "latest:" + p.ID, Time: p.FrozenAt, Moving: true, Directory: pointDir{d.tree, p, true}}
}

// fixed is a directory whose entries are known.
type fixed func(ctx context.Context) ([]fusemount.Entry, error)

// Lookup finds an entry.
func (f fixed) Lookup(ctx context.Context, name string) (fusemount.Entry, error) {
	list, err := f(ctx)
	if err != nil {
		return fusemount.Entry{}, err
	}
	for _, e := range list {
		if e.Name == name {
			return e, nil
		}
	}
	return fusemount.Entry{}, filesystem.ErrNotExist
}

// List lists the entries.
func (f fixed) List(ctx context.Context) ([]fusemount.Entry, error) { return f(ctx) }

// pointDir is what a point holds.
type pointDir struct {
	tree   *Tree
	point  Point
	latest bool // reached through latest
}

// Lookup finds a raw disk, volumes or STATUS.
func (d pointDir) Lookup(ctx context.Context, name string) (fusemount.Entry, error) {
	return fixed(d.List).Lookup(ctx, name)
}

// List opens nothing: what it needs is in the list of points. Only for the tree as the guest
// saw it the volumes are looked at.
func (d pointDir) List(ctx context.Context) ([]fusemount.Entry, error) {
	when := d.point.FrozenAt
	var out []fusemount.Entry
	for _, disk := range d.point.Disks {
		out = append(out, fusemount.Entry{Name: disk.Name + ".raw", ID: "image:" + d.point.ID + ":" + disk.Name, Time: when,
			Image: diskImage{d.tree.disk(d.point, disk), 0, disk.SizeBytes}})
	}
	if d.tree.o.AsMounted {
		for _, g := range d.tree.volumes(d.point).guestTrees(ctx, d.point) {
			out = append(out, fusemount.Entry{Name: g.name, ID: "guest:" + d.point.ID + ":" + g.name, Time: when, Second: d.latest, Volume: g})
		}
	}
	return append(out,
		fusemount.Entry{Name: "STATUS", Time: when, Text: statusText{d.tree, d.point}},
		fusemount.Entry{Name: "volumes", Time: when, Directory: fixed(d.volumes)}), nil
}

// volumes lists the volumes of all disks. A disk that cannot be read takes nothing
// from the others: STATUS says what is missing. When none can be read, that is an
// error.
func (d pointDir) volumes(context.Context) ([]fusemount.Entry, error) {
	found := d.tree.volumes(d.point).find(d.point)
	var out []fusemount.Entry
	for _, v := range found.vols {
		e := fusemount.Entry{Time: d.point.FrozenAt, Second: d.latest}
		id := d.point.ID + ":" + v.name
		switch {
		case v.readable:
			e.Name, e.ID, e.Volume = v.name, "volume:"+id, v
		case v.raw:
			disk := d.tree.disk(d.point, d.point.Disks[v.node.Disk])
			e.Name, e.ID, e.Image = v.name+".raw", "rawvolume:"+id, diskImage{disk, v.node.Volume.Offset, v.node.Volume.Size}
		default:
			continue
		}
		out = append(out, e)
	}
	if len(found.failed) > 0 && !slices.Contains(found.failed, nil) {
		return nil, errors.Join(found.failed...)
	}
	return out, nil
}
