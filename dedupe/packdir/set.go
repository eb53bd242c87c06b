package packdir

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/pack"
)

const (
	// PacksName is the folder of the packs in each location.
	PacksName = "packs"
	asideName = "packs.aside"
	suffix    = ".pack"
	newSuffix = ".new"

	superblockName     = "superblock"
	superblockCopyName = "superblock.copy"
	lockName           = "lock"
)

// Options of Open.
type Options struct {
	// Vault that the locations belong to, and its superblock's bytes, of which each
	// location has a copy.
	Vault      pack.VaultID
	Superblock []byte
	// ReadOnly changes nothing in any location.
	ReadOnly bool
	// Promote makes the folder the first location when it was another one: its
	// packs are then what the vault holds.
	Promote bool
	// LastCommit is the serial of the last commit; nil: not known.
	LastCommit func() uint64
	// Changed is called after a location was marked out or is in again; nil: nobody
	// wants to know.
	Changed func()
	// Hook, nil for none.
	Hook Hook
	// Logger gets what an operator should know; nil is silent.
	Logger *slog.Logger
	// Now is the clock; nil is time.Now.
	Now func() time.Time
}

func (o Options) withDefaults() Options {
	if o.LastCommit == nil {
		o.LastCommit = func() uint64 { return 0 }
	}
	if o.Changed == nil {
		o.Changed = func() {}
	}
	if o.Hook == nil {
		o.Hook = func(string, string) error { return nil }
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return o
}

// state of a location.
type state int32

const (
	in      state = iota // written, read first
	joining              // written; its older packs are complete, but that is not durable yet
	out                  // not written; read when no other copy verifies
)

func (s state) String() string {
	switch s {
	case in:
		return StateIn
	case joining:
		return StateRepairing
	}
	return StateOut
}

// What State.State says.
const (
	// StateIn: every acknowledged write is there.
	StateIn = "in"
	// StateRepairing: it is being made complete.
	StateRepairing = "repairing"
	// StateOut: it lacks writes; State.Reason says why.
	StateOut = "out"
)

// Set is the locations of one vault. Its methods may be called from any number of
// goroutines.
type Set struct {
	o    Options
	locs []*location // fixed after Open; the first has the index

	mu sync.Mutex // guards what follows and the mutable fields of locations
	// generation and serial of the list; a serial of 0: there is none on disk, as the
	// vault has only ever had one location.
	generation, serial uint64
	unsaved            bool // the list on disk lacks that a location is out
	open               map[*File]struct{}

	// copying is held while a pack is copied to a location, so that none comes back
	// that is being removed.
	copying sync.Mutex
}

// location is one folder with packs.
type location struct {
	dir   string
	id    LocationID
	state atomic.Int32
	// term grows whenever the location goes out: a file opened before lacks writes.
	term atomic.Int64
	lock *os.File

	// Guarded by Set.mu.
	reason     string
	since      time.Time
	lastCommit uint64
	otherPast  bool
	mountPoint bool
	repairing  bool
}

func (l *location) is() state { return state(l.state.Load()) }

func (l *location) path(id pack.ID) string {
	return filepath.Join(l.dir, PacksName, id.String()+suffix)
}

// State is what an operator may know about a location.
type State struct {
	Path   string
	State  string // StateIn, StateRepairing or StateOut
	Reason string // why it is out
	Since  time.Time
	// LastCommit is the serial of the last commit that it holds whole, when it is out.
	LastCommit uint64
	// Packs at the location, and those that it lacks.
	Packs, MissingPacks int64
	// FreeBytes of its file system, 0 when it cannot be asked.
	FreeBytes int64
}

// Len is the number of locations.
func (s *Set) Len() int { return len(s.locs) }

// States is the state of every location. It reads the folders when there are several;
// the packs of a single one are not counted.
func (s *Set) States() []State {
	list := make([]State, len(s.locs))
	if len(s.locs) == 1 { // the index knows as much
		list[0] = State{Path: s.locs[0].dir, State: StateIn}
		list[0].FreeBytes, _ = freeBytes(s.locs[0].dir)
		return list
	}
	have := make([]map[pack.ID]bool, len(s.locs))
	all := make(map[pack.ID]bool)
	for i, l := range s.locs {
		have[i] = make(map[pack.ID]bool)
		ids, _ := s.listAt(l) // what cannot be listed is not there
		for _, id := range ids {
			have[i][id] = true
			if l.is() == in {
				all[id] = true
			}
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, l := range s.locs {
		st := State{Path: l.dir, State: l.is().String(), Reason: l.reason, Since: l.since, LastCommit: l.lastCommit}
		if l.repairing {
			st.State = StateRepairing
		}
		for id := range all {
			if have[i][id] {
				st.Packs++
			} else {
				st.MissingPacks++
			}
		}
		if free, err := freeBytes(l.dir); err == nil && st.State != StateOut {
			st.FreeBytes = free
		}
		list[i] = st
	}
	return list
}

func freeBytes(dir string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, fmt.Errorf("free space of %q: %w", dir, err)
	}
	return int64(st.Bavail) * st.Bsize, nil
}

// Whole reports whether every location is in.
func (s *Set) Whole() bool {
	for _, l := range s.locs {
		if l.is() != in {
			return false
		}
	}
	return true
}

// CheckRoom marks out the locations but the first that have less than bytes free above
// reserve, unless that is all that are in. The first is its user's to check: the index
// is there, and without room for that nothing can be stored.
func (s *Set) CheckRoom(reserve, bytes int64) error {
	if len(s.locs) == 1 {
		return nil
	}
	errs := make([]error, len(s.locs))
	for i, l := range s.locs[1:] {
		if l.is() == out {
			continue
		}
		free, err := freeBytes(l.dir)
		if err == nil && free-bytes < reserve {
			err = fmt.Errorf("%d bytes free at %q, %d needed with a reserve of %d: %w", free, l.dir, bytes, reserve, dedupe.ErrNoSpace)
		}
		errs[i+1] = err
	}
	return s.settle(s.locs, errs)
}

// Path is the file of a pack: at the first location that has it and is in, else where
// it should be.
func (s *Set) Path(id pack.ID) string {
	for _, l := range s.reading() {
		if _, err := os.Lstat(l.path(id)); err == nil {
			return l.path(id)
		}
	}
	return s.locs[0].path(id)
}

// writing are the locations that writes go to.
func (s *Set) writing() []*location {
	list := make([]*location, 0, len(s.locs))
	for _, l := range s.locs {
		if l.is() != out {
			list = append(list, l)
		}
	}
	return list
}

// reading are all locations, those that are in first.
func (s *Set) reading() []*location {
	if len(s.locs) == 1 || s.Whole() {
		return s.locs
	}
	list := slices.Clone(s.locs)
	slices.SortStableFunc(list, func(a, b *location) int { return int(a.is()) - int(b.is()) })
	return list
}

// settle decides about an operation that ran at several locations: when it failed at
// some and at others not, it has happened, and those where it failed are out. When it
// failed at all of them it has failed, and nothing is known about a location.
func (s *Set) settle(locs []*location, errs []error) error {
	failed := errors.Join(errs...)
	if failed == nil {
		return nil
	}
	good := false
	for i, l := range locs {
		good = good || errs[i] == nil && l.is() == in
	}
	if !good {
		return failed
	}
	for i, l := range locs {
		if errs[i] != nil {
			if err := s.fail(l, errs[i]); err != nil {
				return err
			}
		}
	}
	return nil
}

// fail marks a location out, durably at those that are in. It is an error when no
// other one is in, or when the list can be written nowhere: then the write must not be
// acknowledged.
func (s *Set) fail(l *location, cause error) error {
	s.mu.Lock()
	err := s.failLocked(l, cause)
	s.mu.Unlock()
	s.o.Changed()
	return err
}

func (s *Set) failLocked(l *location, cause error) error {
	if l.is() == out {
		if l.repairing {
			l.repairing, l.reason = false, reason(cause)
		}
		return s.saved()
	}
	if l.is() == in && !slices.ContainsFunc(s.locs, func(o *location) bool { return o != l && o.is() == in }) {
		return cause
	}
	s.markOut(l, cause)
	if s.o.ReadOnly {
		return nil
	}
	s.unsaved = true
	if err := s.saved(); err != nil {
		return errors.Join(cause, err)
	}
	return nil
}

// markOut changes a location's state in memory. mu is held.
func (s *Set) markOut(l *location, cause error) {
	if l.is() == in {
		l.lastCommit = s.o.LastCommit()
	}
	l.term.Add(1)
	l.state.Store(int32(out))
	l.repairing = false
	l.reason, l.since = reason(cause), s.o.Now().UTC().Truncate(time.Second)
	s.o.Logger.Error("location is out: writes go on without it", "location", l.dir, "last_commit", l.lastCommit, "err", cause)
}

// saved returns when the list on disk says which locations are out. mu is held.
func (s *Set) saved() error {
	if !s.unsaved {
		return nil
	}
	if err := s.save(); err != nil {
		return err
	}
	s.unsaved = false
	return nil
}

// barrier is between a write that left a location out and its acknowledgement: the list
// that says so is durable.
func (s *Set) barrier() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.saved()
}

// reason is what an operator reads about a location.
func reason(err error) string {
	if errors.Is(err, dedupe.ErrNoSpace) {
		return "full: " + err.Error()
	}
	return err.Error()
}

// save writes the list to every location that is in. One where that fails is out, too.
// mu is held.
func (s *Set) save() error {
	for {
		s.serial++
		var errs []error
		var failed *location
		written := false
		for _, l := range s.locs {
			if l.is() != in {
				continue
			}
			if err := WriteFile(filepath.Join(l.dir, recordName), s.recordOf(l).encode(), s.o.Hook); err != nil {
				errs = append(errs, fmt.Errorf("write the list of locations: %w", err))
				failed = l
				continue
			}
			written = true
		}
		if failed == nil {
			return nil
		}
		if !written {
			return errors.Join(errs...)
		}
		s.markOut(failed, errs[len(errs)-1])
	}
}

// recordOf is the list as a location has it. mu is held.
func (s *Set) recordOf(l *location) *record {
	r := &record{vault: s.o.Vault, self: l.id, generation: s.generation, serial: s.serial}
	for _, m := range s.locs {
		r.members = append(r.members, member{id: m.id, in: m.is() == in, otherPast: m.otherPast, mountPoint: m.mountPoint,
			since: m.since, lastCommit: m.lastCommit, path: clean(m.dir), reason: m.reason})
	}
	return r
}

// Create makes a pack's empty file of size preallocated bytes at every location. Its
// name is durable after SyncNames.
func (s *Set) Create(id pack.ID, size int64) (*File, error) {
	f := &File{set: s, id: id}
	// A location that joins at this moment attaches to all files that it finds, so this
	// one must be among them before it has chosen its locations.
	f.mu.Lock()
	defer f.mu.Unlock()
	s.track(f, true)
	err := f.create()
	if err == nil {
		err = f.each(func(c *copyFile) error { return c.f.allocate(0, size) })
	}
	if err != nil {
		s.track(f, false)
		return nil, errors.Join(err, f.closeFiles(), f.removeFiles())
	}
	return f, nil
}

func (f *File) create() error {
	locs := f.set.writing()
	errs := make([]error, len(locs))
	for i, l := range locs {
		path := l.path(f.id)
		if err := f.set.o.Hook("create", path); err != nil {
			errs[i] = NoSpace(err)
			continue
		}
		c, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			errs[i] = NoSpace(err)
			continue
		}
		f.copies = append(f.copies, newCopy(l, c, f.set.o.Hook))
	}
	return f.set.settle(locs, errs)
}

func (s *Set) track(f *File, open bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open == nil {
		s.open = make(map[*File]struct{})
	}
	if open {
		s.open[f] = struct{}{}
	} else {
		delete(s.open, f)
	}
}

// SyncNames makes the names of packs durable at every location.
func (s *Set) SyncNames() error {
	locs := s.writing()
	errs := make([]error, len(locs))
	for i, l := range locs {
		if err := SyncDir(filepath.Join(l.dir, PacksName), s.o.Hook); err != nil {
			errs[i] = fmt.Errorf("sync packs folder: %w", err)
		}
	}
	return s.settle(locs, errs)
}

// OpenRead opens a pack for reading, at the first location that has it. complete is
// false when one that is in does not. It is fs.ErrNotExist when none has it.
func (s *Set) OpenRead(id pack.ID) (f *os.File, complete bool, err error) {
	complete = true
	var first error
	for _, l := range s.reading() {
		f, err := os.Open(l.path(id))
		if err == nil {
			return f, complete, nil
		}
		complete = complete && l.is() != in
		if first == nil || errors.Is(first, fs.ErrNotExist) {
			first = err
		}
	}
	return nil, complete, first
}

// Size is the length of a pack's file, in bytes.
func (s *Set) Size(id pack.ID) (int64, error) {
	st, err := os.Stat(s.Path(id))
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}

// Remove removes a pack at every location that is in, the first at last. One that is
// not there is no error.
func (s *Set) Remove(id pack.ID) error {
	s.copying.Lock()
	defer s.copying.Unlock()
	locs := s.writing()
	slices.Reverse(locs)
	errs := make([]error, len(locs))
	for i, l := range locs {
		if err := s.o.Hook("remove", l.path(id)); err != nil {
			errs[i] = err
			continue
		}
		if err := os.Remove(l.path(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs[i] = err
		}
	}
	for _, l := range s.locs { // its copy may have been made before
		if l.is() == out && s.isRepairing(l) {
			_ = os.Remove(l.path(id))
		}
	}
	return s.settle(locs, errs)
}

// List is the packs of all locations that are in, in order of their ids.
func (s *Set) List() ([]pack.ID, error) {
	seen := make(map[pack.ID]bool)
	var ids []pack.ID
	var first error
	listed := false
	locs := slices.DeleteFunc(slices.Clone(s.locs), func(l *location) bool { return l.is() != in })
	if len(locs) == 0 { // only a reader goes on then
		locs = s.locs
	}
	for _, l := range locs {
		list, err := s.listAt(l)
		if err != nil {
			first = errors.Join(first, err)
			continue
		}
		listed = true
		for _, id := range list {
			if !seen[id] {
				seen[id] = true
				ids = append(ids, id)
			}
		}
	}
	if !listed {
		return nil, first
	}
	if first != nil {
		s.o.Logger.Error("packs of a location cannot be listed", "err", first)
	}
	slices.SortFunc(ids, func(a, b pack.ID) int { return slices.Compare(a[:], b[:]) })
	return ids, nil
}

// listAt is the packs of one location.
func (s *Set) listAt(l *location) ([]pack.ID, error) {
	dir, err := os.Open(filepath.Join(l.dir, PacksName))
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	var ids []pack.ID
	for _, name := range names {
		base, ok := strings.CutSuffix(name, suffix)
		id, err := pack.ParseID(base)
		switch {
		case ok && err == nil:
			ids = append(ids, id)
		case !strings.HasSuffix(name, suffix+newSuffix):
			s.o.Logger.Warn("not a pack, left alone", "location", l.dir, "file", name)
		}
	}
	return ids, nil
}

// Close lets go of the locations.
func (s *Set) Close() {
	for _, l := range s.locs {
		if l.lock != nil {
			_ = unix.Flock(int(l.lock.Fd()), unix.LOCK_UN) // closing it does the same, later
			_ = l.lock.Close()
			l.lock = nil
		}
	}
}
