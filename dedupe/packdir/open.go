package packdir

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/pack"
)

// Create prepares the folders of a new vault, which exist or are made, and are empty
// but for what an interrupted Create left. The first has no superblock yet: the vault
// exists when its creator has written that.
func Create(dir string, others []string, o Options) error {
	o = o.withDefaults()
	dirs, err := folders(dir, others)
	if err != nil {
		return err
	}
	for _, d := range dirs {
		names, err := os.ReadDir(filepath.Join(d, PacksName))
		if err == nil && len(names) > 0 {
			return fmt.Errorf("folder %q has packs: %w", d, fs.ErrExist)
		}
		if err := os.MkdirAll(filepath.Join(d, PacksName), 0o700); err != nil {
			return NoSpace(err)
		}
		if d == dir {
			continue
		}
		if err := checkUnused(d); err != nil {
			return err
		}
	}
	if len(dirs) == 1 {
		return nil
	}
	s := &Set{o: o, generation: 1}
	for _, d := range dirs {
		l := &location{dir: d, mountPoint: isMountPoint(d)}
		rand.Read(l.id[:]) // never fails
		s.locs = append(s.locs, l)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.locs[1:] {
		if err := s.writeSuperblock(l); err != nil {
			return err
		}
		if err := SyncDir(filepath.Dir(l.dir), o.Hook); err != nil {
			return err
		}
	}
	if err := s.save(); err != nil {
		return err
	}
	if !s.Whole() {
		return fmt.Errorf("make locations: %w", errors.New(s.firstReason()))
	}
	return nil
}

// checkUnused refuses a folder that belongs to a vault. A location without packs whose
// first one is gone is what an interrupted Create left.
func checkUnused(dir string) error {
	if _, err := os.Lstat(filepath.Join(dir, superblockName)); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	r, err := readRecord(dir)
	if err != nil || r.self == r.members[0].id {
		return fmt.Errorf("folder %q is another vault: %w", dir, fs.ErrExist)
	}
	if _, err := os.Lstat(filepath.Join(r.members[0].path, superblockName)); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return fmt.Errorf("folder %q is a location of the vault in %q: %w", dir, r.members[0].path, fs.ErrExist)
}

func (s *Set) firstReason() string {
	for _, l := range s.locs {
		if l.is() == out {
			return l.reason
		}
	}
	return ""
}

// writeSuperblock writes the vault's superblock and its copy at a location.
func (s *Set) writeSuperblock(l *location) error {
	for _, name := range []string{superblockCopyName, superblockName} {
		if err := WriteFile(filepath.Join(l.dir, name), s.o.Superblock, s.o.Hook); err != nil {
			return err
		}
	}
	return nil
}

// folders are the vault's folder and the others, absolute, each once.
func folders(dir string, others []string) ([]string, error) {
	list := []string{dir}
	seen := map[string]bool{clean(dir): true}
	for _, d := range others {
		if d == "" {
			return nil, errors.New("a location has an empty name")
		}
		if seen[clean(d)] {
			continue
		}
		seen[clean(d)] = true
		list = append(list, clean(d))
	}
	if len(list) > MaxLocations {
		return nil, fmt.Errorf("%d locations, at most %d", len(list), MaxLocations)
	}
	return list, nil
}

func clean(dir string) string {
	if abs, err := filepath.Abs(dir); err == nil {
		return abs
	}
	return filepath.Clean(dir)
}

// isMountPoint reports whether a folder is on another file system than its parent.
func isMountPoint(dir string) bool {
	var a, b unix.Stat_t
	if unix.Stat(dir, &a) != nil || unix.Stat(filepath.Join(dir, ".."), &b) != nil {
		return false
	}
	return a.Dev != b.Dev
}

// Open opens the locations of a vault: its folder dir and others. With nil others they
// are those of the list in dir, if the list says that dir is where it was. A location
// that is missing, of another vault, or behind is out; an error is only what makes it
// wrong to open the vault at all. The caller has locked dir.
func Open(dir string, others []string, o Options) (_ *Set, err error) {
	s := &Set{o: o.withDefaults()}
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	own, err := readRecord(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		if errors.Is(err, dedupe.ErrUnknownFormat) {
			return nil, err
		}
		s.o.Logger.Error("list of locations is not readable", "location", dir, "err", err)
	}
	if own != nil && own.vault != s.o.Vault {
		s.o.Logger.Error("list of locations is of another vault", "location", dir)
		own = nil
	}
	if others == nil {
		others = listed(dir, own)
	}
	dirs, err := folders(dir, others)
	if err != nil {
		return nil, err
	}
	if len(dirs) == 1 && own == nil {
		s.locs = []*location{{dir: dir}}
		return s, s.removeUnfinished()
	}
	if err := s.join(dirs, own); err != nil {
		return nil, err
	}
	return s, s.removeUnfinished()
}

// readRecord is the list in a location; fs.ErrNotExist when there is none.
func readRecord(dir string) (*record, error) {
	b, err := os.ReadFile(filepath.Join(dir, recordName))
	if err != nil {
		return nil, err
	}
	return decodeRecord(b)
}

// listed are the other locations of a list that was written in this folder as the first.
func listed(dir string, r *record) []string {
	if r == nil || r.members[0].id != r.self || clean(r.members[0].path) != clean(dir) {
		return nil
	}
	var dirs []string
	for _, m := range r.members[1:] {
		dirs = append(dirs, m.path)
	}
	return dirs
}

// join finds out which of the folders are in.
func (s *Set) join(dirs []string, own *record) error {
	records := make([]*record, len(dirs)) // of this vault
	problems := make([]error, len(dirs))  // why a location cannot be in
	records[0] = own
	for i, d := range dirs[1:] {
		records[i+1], problems[i+1] = s.inspect(d)
	}
	truth := own
	for _, r := range records[1:] {
		if r != nil && (truth == nil || r.newer(truth)) {
			truth = r
		}
	}
	if err := s.checkFirst(dirs[0], own, truth); err != nil {
		return err
	}
	for i, d := range dirs {
		s.locs = append(s.locs, s.place(d, i == 0, records[i], truth, problems[i]))
	}
	changed := truth == nil
	if truth != nil {
		s.generation, s.serial = truth.generation, truth.serial
		if s.o.Promote && truth.members[0].id != s.locs[0].id {
			s.generation, s.serial, changed = s.generation+1, 0, true
		}
	} else {
		s.generation = 1
	}
	if s.o.ReadOnly {
		return nil
	}
	for _, l := range s.locs[1:] {
		if l.is() == out { // a repair takes its lock: it may be anybody's folder
			continue
		}
		if err := s.takeLock(l); err != nil {
			return err
		}
	}
	if !slices.ContainsFunc(s.locs, func(l *location) bool { return l.is() == in }) {
		if !s.o.Promote || truth.members[0].id == s.locs[0].id {
			return s.noneIn(truth)
		}
		s.o.Logger.Warn("location becomes the first though commits went on without it", "location", dirs[0], "last_commit", s.locs[0].lastCommit)
		s.locs[0].state.Store(int32(in))
		s.locs[0].reason = ""
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if changed || s.differs(truth) || s.behind(records, truth) {
		return s.save()
	}
	return nil
}

// noneIn says where the complete copies are.
func (s *Set) noneIn(truth *record) error {
	var where []string
	for _, m := range truth.members {
		if m.in {
			where = append(where, fmt.Sprintf("%q", m.path))
		}
	}
	return fmt.Errorf("no location has all packs: bring back %s", strings.Join(where, " or "))
}

// inspect reads the record of a location that is not the first. The problem says why it
// cannot be in.
func (s *Set) inspect(dir string) (*record, error) {
	if _, err := os.Stat(dir); err != nil {
		return nil, fmt.Errorf("missing: %w", err)
	}
	if err := s.checkSuperblock(dir); err != nil {
		return nil, err
	}
	r, err := readRecord(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errors.New("empty: it has no packs of this vault yet")
	}
	if err != nil {
		return nil, err
	}
	if r.vault != s.o.Vault {
		return nil, fmt.Errorf("it belongs to vault %x, this is vault %x: use another folder", r.vault, s.o.Vault)
	}
	if _, err := os.Stat(filepath.Join(dir, PacksName)); err != nil {
		return r, fmt.Errorf("missing: %w", err)
	}
	return r, nil
}

// checkSuperblock refuses a folder with another vault's superblock.
func (s *Set) checkSuperblock(dir string) error {
	for _, name := range []string{superblockName, superblockCopyName} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		sb, err := pack.DecodeSuperblock(b)
		if err != nil {
			continue // the record tells, and a repair writes it again
		}
		if sb.Vault != s.o.Vault {
			return fmt.Errorf("folder %q belongs to vault %x, this is vault %x: use another folder", dir, sb.Vault, s.o.Vault)
		}
	}
	return nil
}

// checkFirst refuses a folder that is not the first location, or not any more.
func (s *Set) checkFirst(dir string, own, truth *record) error {
	if truth == nil || s.o.Promote || s.o.ReadOnly {
		return nil
	}
	self := own
	if self == nil {
		return nil // damaged or new: the index says whether it is the vault's
	}
	if truth.members[0].id == self.self {
		return nil
	}
	if clean(dir) == clean(truth.members[0].path) {
		return fmt.Errorf("%q is the first location as it was before another folder took its place: what was written since is in the other locations, and the index here does not know it", dir)
	}
	return fmt.Errorf("%q is not the first location of the vault, %q is: open that one, or rebuild the index here, which makes this one the first",
		dir, truth.members[0].path)
}

// place is a location as the list, its own record and its folder tell.
func (s *Set) place(dir string, first bool, r, truth *record, problem error) *location {
	l := &location{dir: dir, mountPoint: isMountPoint(dir)}
	now := s.o.Now().UTC().Truncate(time.Second)
	var m *member
	switch {
	case truth == nil:
	case r != nil:
		m = truth.member(r.self)
	case first && s.o.Promote: // new here: the folder that was the first may come back, and must not be taken for it
	default: // a folder without a record: the one that was at this path
		if i := slices.IndexFunc(truth.members, func(m member) bool { return clean(m.path) == clean(dir) }); i >= 0 {
			m = &truth.members[i]
		} else if first {
			m = &truth.members[0]
		}
	}
	switch {
	case m != nil:
		l.id, l.reason, l.since, l.lastCommit, l.otherPast = m.id, m.reason, m.since, m.lastCommit, m.otherPast
	case r != nil:
		l.id, l.otherPast = r.self, true
	default:
		rand.Read(l.id[:]) // never fails
	}
	if first {
		if m != nil && !m.in {
			l.state.Store(int32(out))
		}
		return l // what else it lacks shows in its packs
	}
	mountGone := m != nil && m.mountPoint && !l.mountPoint
	switch {
	case mountGone && r == nil:
		problem = errors.New("missing: nothing is mounted there")
	case problem != nil:
	case m == nil && r != nil:
		problem = errors.New("it belonged to this vault at another time, and is behind")
	case m != nil && !m.in:
		l.state.Store(int32(out))
		return l
	case r == nil || truth == nil || r.generation != truth.generation || r.serial+1 < truth.serial:
		// One serial back, and in by the true list, is where a kill interrupted the
		// writing of that list: had it failed here, a third list would say so.
		problem = errors.New("behind: writes went on without it")
	}
	if mountGone {
		l.mountPoint = true // the folder waits for its file system
	}
	if problem == nil {
		return l
	}
	l.state.Store(int32(out))
	l.term.Add(1)
	if m == nil || m.in || l.reason == "" {
		l.since, l.lastCommit = now, s.o.LastCommit()
	}
	l.reason = reason(problem)
	s.o.Logger.Error("location is out", "location", dir, "err", problem)
	return l
}

// differs reports whether what was found is not what the list says.
func (s *Set) differs(truth *record) bool {
	if truth == nil || len(truth.members) != len(s.locs) {
		return true
	}
	for i, l := range s.locs {
		m := &truth.members[i]
		if m.id != l.id || m.in != (l.is() == in) || m.path != clean(l.dir) || m.mountPoint != l.mountPoint || m.reason != l.reason {
			return true
		}
	}
	return false
}

// behind reports whether a location that is in has another list than the true one.
func (s *Set) behind(records []*record, truth *record) bool {
	for i, r := range records {
		if s.locs[i].is() == in && (r == nil || r.serial != truth.serial || r.generation != truth.generation) {
			return true
		}
	}
	return false
}

// takeLock keeps a second process from writing to a location with another first one.
func (s *Set) takeLock(l *location) error {
	if l.lock != nil {
		return nil
	}
	f, err := os.OpenFile(filepath.Join(l.dir, lockName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		if l.is() != out {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.markOut(l, err)
		}
		return nil
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		return fmt.Errorf("location %q: %w", l.dir, dedupe.ErrLocked)
	}
	l.lock = f
	return nil
}

// removeUnfinished removes what copying packs left when it was killed.
func (s *Set) removeUnfinished() error {
	if s.o.ReadOnly || len(s.locs) == 1 {
		return nil
	}
	for _, l := range s.locs {
		names, err := filepath.Glob(filepath.Join(escape(l.dir), PacksName, "*"+suffix+newSuffix))
		if err != nil {
			return err
		}
		for _, name := range names {
			if err := os.Remove(name); err != nil {
				s.o.Logger.Warn("unfinished copy of a pack stays", "file", name, "err", err)
			}
		}
	}
	return nil
}

// escape makes a folder's name stand for itself in a pattern.
func escape(dir string) string {
	return strings.NewReplacer(`*`, `\*`, `?`, `\?`, `[`, `\[`, `\`, `\\`).Replace(dir)
}
