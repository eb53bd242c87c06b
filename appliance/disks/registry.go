package disks

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/keelblock/keelblock/appliance"
	"github.com/keelblock/keelblock/appliance/statefile"
	"github.com/keelblock/keelblock/blockdev/cbt"
	"github.com/keelblock/keelblock/blockdev/localdisk"
	"github.com/keelblock/keelblock/blockdev/nbd/server"
)

const (
	listFile = "disks.json"
	listKind = "disks"
	// partialSuffix and deletedSuffix mark files that are not, or no longer, disks.
	partialSuffix = ".partial"
	deletedSuffix = ".deleted"
	// MaxDisks bounds the list.
	MaxDisks = 4096
)

// Options of a Registry. Dir, SpillDir, MapDir and Server are required.
type Options struct {
	Dir      string // disk files, the list, saved maps
	SpillDir string
	MapDir   string
	// SpillBytes bounds each spill. 0: a tenth of the disk, at least 1 GiB.
	SpillBytes int64
	// ReserveBytes of free space that disk files never take.
	ReserveBytes int64
	// Clock is shared by all disks of the daemon.
	Clock *cbt.Clock
	// Server serves the disks. The Registry adds and removes exports; the caller
	// listens and shuts it down.
	Server *server.Server
	// Logger; nil: silent.
	Logger *slog.Logger
}

// Registry is the set of live disks. All methods may be called from any number of
// goroutines.
type Registry struct {
	o      Options
	damage error // of the list, found at open

	change  sync.Mutex      // see package comment
	serial  uint64          // of the list; guarded by change
	keeping context.Context // of KeepAttached, nil before; guarded by change
	keepers sync.WaitGroup  // one for each attached disk

	mu          sync.RWMutex
	closed      bool
	contexts    func(disk string) server.ContextSource // of SetContexts
	disks       map[string]*Disk
	owners      map[string]string      // disk → machine
	ownersKnown bool                   // the catalog has been read
	exports     map[string]bool        // named exports of points
	pending     map[string]bool        // names of disks that are being made
	attached    map[string]*hostDevice // by the disk's id
}

type list struct {
	Disks []Entry `json:"disks"`
}

// Open reads the list, makes good what a kill left, opens every disk and exports
// it. Only a list that cannot be read is an error; a disk that cannot be opened is
// offline.
func Open(o Options) (*Registry, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	r := &Registry{o: o, disks: map[string]*Disk{}, owners: map[string]string{},
		exports: map[string]bool{}, pending: map[string]bool{}, attached: map[string]*hostDevice{}}
	for _, dir := range []string{o.Dir, o.SpillDir} {
		if err := os.MkdirAll(dir, 0o750); err != nil {
			return nil, fmt.Errorf("open disks: %w", err)
		}
	}
	if err := os.MkdirAll(o.MapDir, 0o700); err != nil {
		return nil, fmt.Errorf("open disks: map directory: %w", err)
	}
	var l list
	loaded, err := statefile.Load(filepath.Join(o.Dir, listFile), listKind, &l)
	if err != nil {
		return nil, &appliance.Error{Op: "read the list of disks", Err: err,
			Hint: "put a good copy of disks.json back; the disk files are untouched"}
	}
	r.serial, r.damage = loaded.Serial, loaded.Damage
	if r.damage != nil {
		o.Logger.Error("one of the two lists of disks is damaged; the other one is used", "error", r.damage)
	}
	if err := r.recoverFiles(l.Disks); err != nil {
		return nil, err
	}
	for _, e := range l.Disks {
		r.remember(e)
		e.Attached = nil // from now on it is in r.attached
		d := r.open(e)
		if d.reason != nil {
			o.Logger.Error("disk is offline", "disk", e.Name, "error", d.reason)
		}
		r.disks[e.Name] = d
	}
	r.settleSizes()
	return r, nil
}

// Damage of the list that was found at Open, or nil.
func (r *Registry) Damage() error { return r.damage }

// recoverFiles finishes or forgets creations and deletions that a kill left.
func (r *Registry) recoverFiles(entries []Entry) error {
	ids := map[string]bool{}
	for _, e := range entries {
		ids[e.ID] = true
		if e.File == "" {
			continue
		}
		path := filepath.Join(r.o.Dir, e.File)
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			continue
		}
		for _, suffix := range []string{partialSuffix, deletedSuffix} {
			if err := os.Rename(path+suffix, path); err == nil {
				r.o.Logger.Warn("finished what a kill left", "disk", e.Name, "file", path+suffix)
				break
			}
		}
	}
	remove := func(dir string, unwanted func(name string) bool) error {
		names, err := os.ReadDir(dir)
		if err != nil {
			return fmt.Errorf("open disks: %w", err)
		}
		for _, n := range names {
			if !n.Type().IsRegular() && !n.IsDir() || !unwanted(n.Name()) {
				continue
			}
			if err := localdisk.Remove(filepath.Join(dir, n.Name())); err != nil {
				return fmt.Errorf("open disks: remove what a kill left: %w", err)
			}
			r.o.Logger.Info("removed what a kill left", "file", filepath.Join(dir, n.Name()))
		}
		return nil
	}
	foreign := func(suffix string) func(string) bool {
		return func(name string) bool {
			id, ok := strings.CutSuffix(name, suffix)
			return ok && isID(id) && !ids[id]
		}
	}
	maps, intents := foreign(mapSuffix), foreign(intentSuffix)
	return errors.Join(
		remove(r.o.Dir, func(n string) bool {
			return strings.HasSuffix(n, ".raw"+partialSuffix) || strings.HasSuffix(n, ".raw"+deletedSuffix) || maps(n) || intents(n)
		}),
		remove(r.o.SpillDir, foreign(spillSuffix)),
		remove(r.o.MapDir, maps),
		statefile.SyncDir(r.o.Dir))
}

// open opens and exports one disk of the list.
func (r *Registry) open(e Entry) *Disk {
	d := &Disk{entry: e, path: e.Backing}
	if e.File != "" {
		d.path = filepath.Join(r.o.Dir, e.File)
	}
	d.reason = r.start(d)
	if d.reason == nil {
		d.reason = r.export(d)
	}
	return d
}

// start opens the file and the tracker of d.
func (r *Registry) start(d *Disk) error {
	f, err := localdisk.Open(d.path, localdisk.Options{ReserveBytes: r.o.ReserveBytes})
	if err != nil {
		return err
	}
	if err := d.settleSize(f.Size()); err != nil {
		return errors.Join(err, f.Close())
	}
	if d.entry.Role == Temporary {
		err = r.doubt(d.entry, f) // of the time when it was tracked
	} else if d.tracker, err = r.track(d.entry, f); errors.Is(err, unix.ENOSPC) {
		d.untracked, err = err, r.doubt(d.entry, f)
		r.o.Logger.Error("disk is served untracked", "disk", d.entry.Name, "error", d.untracked)
	}
	if err != nil {
		return errors.Join(err, f.Close())
	}
	d.file = f
	return nil
}

// export puts d on the server.
func (r *Registry) export(d *Disk) error {
	err := r.o.Server.Add(r.exportOf(d))
	if err != nil {
		err = errors.Join(err, d.close())
		d.file, d.tracker = nil, nil
	}
	return err
}

// Get returns the disk of this name.
func (r *Registry) Get(name string) (*Disk, error) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if d := r.disks[name]; d != nil {
		return d, nil
	}
	return nil, appliance.NotFound(fmt.Sprintf("find disk %q", name), "disk", name)
}

// List returns all disks by name.
func (r *Registry) List() []*Disk {
	r.mu.RLock()
	defer r.mu.RUnlock()
	out := make([]*Disk, 0, len(r.disks))
	for _, d := range r.disks {
		out = append(out, d)
	}
	slices.SortFunc(out, func(a, b *Disk) int { return strings.Compare(a.entry.Name, b.entry.Name) })
	return out
}

// Connections that are open to a disk or export now.
func (r *Registry) Connections(name string) int { return r.o.Server.Connections(name) }

// save writes the list with e added or, when remove, taken out. change is held.
func (r *Registry) save(e Entry, remove bool) error {
	var l list
	for _, d := range r.List() {
		if d.entry.ID != e.ID {
			l.Disks = append(l.Disks, r.withDevice(d.entry))
		}
	}
	if !remove {
		l.Disks = append(l.Disks, r.withDevice(e))
	}
	if err := statefile.Save(filepath.Join(r.o.Dir, listFile), listKind, r.serial+1, l); err != nil {
		return err
	}
	r.serial++
	return nil
}

// Close closes every disk; maps are saved. The server must have been shut down. A
// second Close is harmless.
func (r *Registry) Close() error {
	r.change.Lock()
	defer r.change.Unlock()
	r.mu.Lock()
	closed := r.closed
	r.closed = true
	r.mu.Unlock()
	if closed {
		return nil
	}
	var errs []error
	for _, d := range r.List() {
		if err := d.close(); err != nil {
			errs = append(errs, fmt.Errorf("close disk %q: %w", d.entry.Name, err))
		}
	}
	_ = os.Remove(r.o.MapDir) // empty after a clean stop; else it stays
	return errors.Join(errs...)
}
