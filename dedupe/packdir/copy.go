package packdir

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/keelblock/keelblock/dedupe/pack"
)

// copyBuffer is how much of a pack is in memory at a time.
const copyBuffer = 1 << 20

// Copy is a pack's file at one location, or the place where it is missing.
type Copy struct {
	// File is open for reading; nil when the location does not have the pack.
	File *os.File
	// In: the location is in, or is being made complete.
	In bool
	// Repairing: it is being made complete, and may be behind.
	Repairing bool
	Path      string

	loc *location
}

// Copies are a pack at every location, those that are in first. CloseCopies ends their
// use.
func (s *Set) Copies(id pack.ID) []Copy {
	list := make([]Copy, 0, len(s.locs))
	for _, l := range s.reading() {
		repairing := s.isRepairing(l)
		c := Copy{Path: l.path(id), In: l.is() != out || repairing, Repairing: repairing, loc: l}
		if f, err := os.Open(c.Path); err == nil {
			c.File = f
		}
		list = append(list, c)
	}
	return list
}

func (s *Set) isRepairing(l *location) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return l.repairing
}

// CloseCopies closes what Copies opened.
func CloseCopies(copies []Copy) {
	for _, c := range copies {
		if c.File != nil {
			_ = c.File.Close() // only read
		}
	}
}

// Write opens a copy for writing.
func (s *Set) Write(c Copy) (pack.File, error) {
	f, err := os.OpenFile(c.Path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	return file{f, s.o.Hook}, nil
}

// Sync makes a copy durable: whoever wrote it may have been killed before that.
func (s *Set) Sync(c Copy) error { return file{c.File, s.o.Hook}.Sync() }

// Settle is Sync, after which the copy reads as its disk has it. What the page cache has of
// a location whose writes failed may never have arrived there.
func (s *Set) Settle(c Copy) error {
	err := s.Sync(c)
	_ = unix.Fadvise(int(c.File.Fd()), 0, 0, unix.FADV_DONTNEED) // advice
	return err
}

// Fail marks the location of a copy out. It is an error when it is the last one.
func (s *Set) Fail(c Copy, cause error) error { return s.fail(c.loc, cause) }

// Equal reports whether two copies have the same bytes.
func Equal(a, b *os.File) (bool, error) {
	x, err := a.Stat()
	if err != nil {
		return false, err
	}
	y, err := b.Stat()
	if err != nil || x.Size() != y.Size() {
		return false, err
	}
	p, q := make([]byte, copyBuffer), make([]byte, copyBuffer)
	for off := int64(0); off < x.Size(); off += copyBuffer {
		n := min(copyBuffer, x.Size()-off)
		if _, err := a.ReadAt(p[:n], off); err != nil {
			return false, err
		}
		if _, err := b.ReadAt(q[:n], off); err != nil {
			return false, err
		}
		if !bytes.Equal(p[:n], q[:n]) {
			return false, nil
		}
	}
	return true, nil
}

func copyRange(to io.WriterAt, from io.ReaderAt, size int64) error {
	buf := make([]byte, min(copyBuffer, max(size, 1)))
	for off := int64(0); off < size; off += int64(len(buf)) {
		p := buf[:min(int64(len(buf)), size-off)]
		if _, err := from.ReadAt(p, off); err != nil {
			return err
		}
		if _, err := to.WriteAt(p, off); err != nil {
			return err
		}
	}
	return nil
}

// Patch is a range of a pack and the bytes that belong there.
type Patch struct {
	Off   int64
	Bytes []byte
}

// Replace makes a copy equal to another one with patches applied: a new file beside the
// old one, synced, read back, and renamed. The old one stays when anything fails. A
// pack that was removed meanwhile at the other location is left alone.
func (s *Set) Replace(to, from Copy, patches []Patch) error {
	s.copying.Lock()
	defer s.copying.Unlock()
	var st unix.Stat_t
	if err := unix.Fstat(int(from.File.Fd()), &st); err != nil {
		return err
	}
	if st.Nlink == 0 {
		return fmt.Errorf("pack was removed meanwhile: %w", fs.ErrNotExist)
	}
	if err := s.verifyIdentity(to.loc); err != nil {
		return err
	}
	tmp := to.Path + newSuffix
	if err := s.o.Hook("create", tmp); err != nil {
		return NoSpace(err)
	}
	f, err := os.OpenFile(tmp, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return NoSpace(err)
	}
	err = s.fill(file{f, s.o.Hook}, from.File, st.Size, patches)
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	if err := s.keepOther(to); err != nil {
		return err
	}
	if err := s.o.Hook("rename", to.Path); err != nil {
		return NoSpace(err)
	}
	if err := os.Rename(tmp, to.Path); err != nil {
		return NoSpace(err)
	}
	return SyncDir(filepath.Dir(to.Path), s.o.Hook)
}

// keepOther puts the old file of a copy aside when it may hold commits of another history.
func (s *Set) keepOther(c Copy) error {
	s.mu.Lock()
	aside := c.loc.otherPast
	s.mu.Unlock()
	if !aside {
		return nil
	}
	err := s.putAside(c.loc, c.Path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// putAside moves a pack of another history out of the way.
func (s *Set) putAside(l *location, path string) error {
	dir := filepath.Join(l.dir, asideName)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return NoSpace(err)
	}
	if err := os.Rename(path, filepath.Join(dir, filepath.Base(path))); err != nil {
		return err
	}
	s.o.Logger.Warn("pack of another history is put aside", "location", l.dir, "file", filepath.Base(path), "folder", dir)
	return nil
}

func (s *Set) fill(to file, from *os.File, size int64, patches []Patch) error {
	if err := to.allocate(0, max(size, 1)); err != nil {
		return err
	}
	if err := copyRange(to, from, size); err != nil {
		return err
	}
	for _, p := range patches {
		if _, err := to.WriteAt(p.Bytes, p.Off); err != nil {
			return err
		}
	}
	if err := to.Truncate(size); err != nil {
		return err
	}
	if err := to.Sync(); err != nil {
		return err
	}
	// What the disk has, and not the page cache.
	_ = unix.Fadvise(int(to.Fd()), 0, 0, unix.FADV_DONTNEED) // advice
	if len(patches) > 0 {
		for _, p := range patches {
			if err := same(to, p); err != nil {
				return err
			}
		}
		return nil
	}
	equal, err := Equal(to.File, from)
	if err == nil && !equal {
		err = fmt.Errorf("%s does not read back as it was written", to.Name())
	}
	return err
}

// Rewrite writes bytes into a copy where they belong, syncs them and reads them back.
func (s *Set) Rewrite(c Copy, p Patch) error {
	if err := s.verifyIdentity(c.loc); err != nil {
		return err
	}
	o, err := os.OpenFile(c.Path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer o.Close()
	f := file{o, s.o.Hook}
	if _, err := f.WriteAt(p.Bytes, p.Off); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	_ = unix.Fadvise(int(f.Fd()), p.Off, int64(len(p.Bytes)), unix.FADV_DONTNEED) // advice
	return same(f, p)
}

func same(f file, p Patch) error {
	got := make([]byte, len(p.Bytes))
	if _, err := f.ReadAt(got, p.Off); err != nil {
		return err
	}
	if !bytes.Equal(got, p.Bytes) {
		return fmt.Errorf("%s does not read back at %d as it was written", f.Name(), p.Off)
	}
	return nil
}

// verifyIdentity makes sure that a folder still is its location: what is copied into the
// folder of a file system that is not mounted any more would hide there.
func (s *Set) verifyIdentity(l *location) error {
	if len(s.locs) == 1 {
		return nil
	}
	r, err := readRecord(l.dir)
	if err != nil {
		return fmt.Errorf("location %q: %w", l.dir, err)
	}
	if r.vault != s.o.Vault || r.self != l.id {
		return fmt.Errorf("location %q is not the one it was: it is %v of vault %x", l.dir, r.self, r.vault)
	}
	return nil
}

// CheckPresence marks out the locations whose folder has gone, or has become another
// one, since they were last looked at, or where a pack that is being written was removed. With it a location is known to be out also when
// nothing is written.
func (s *Set) CheckPresence() error {
	if len(s.locs) == 1 {
		return nil
	}
	errs := make([]error, len(s.locs))
	for i, l := range s.locs {
		if l.is() != out {
			errs[i] = s.verifyIdentity(l)
		}
	}
	if err := s.settle(s.locs, errs); err != nil {
		return err
	}
	s.mu.Lock()
	files := slices.Collect(maps.Keys(s.open))
	s.mu.Unlock()
	for _, f := range files {
		if err := f.do((*copyFile).named); err != nil && !errors.Is(err, os.ErrClosed) && !errors.Is(err, unix.EBADF) {
			return err
		}
	}
	return nil
}

// Repairable are the numbers of locations that are out, or lack packs, and that a repair
// could make complete: their folder is there, is this vault's or empty, and can be
// written.
func (s *Set) Repairable() (list []int) {
	for i, st := range s.States() {
		l := s.locs[i]
		switch {
		case st.State == StateRepairing:
		case l.is() == in:
			if st.MissingPacks > 0 {
				list = append(list, i)
			}
		case s.canRepair(l) == nil:
			list = append(list, i)
		}
	}
	return list
}

// repairRoom must be free at a full location before it is tried again.
const repairRoom = 256 << 20

// canRepair says why a location that is out cannot be repaired.
func (s *Set) canRepair(l *location) error {
	st, err := os.Stat(l.dir)
	if err != nil {
		return fmt.Errorf("location %q: %w", l.dir, err)
	}
	if !st.IsDir() {
		return fmt.Errorf("location %q is not a folder", l.dir)
	}
	s.mu.Lock()
	mountPoint, full := l.mountPoint, bytes.HasPrefix([]byte(l.reason), []byte("full: "))
	s.mu.Unlock()
	if mountPoint && !isMountPoint(l.dir) {
		return fmt.Errorf("location %q: nothing is mounted there", l.dir)
	}
	if err := s.checkSuperblock(l.dir); err != nil {
		return fmt.Errorf("location %q: %w", l.dir, err)
	}
	r, err := readRecord(l.dir)
	if err == nil && r.vault != s.o.Vault {
		return fmt.Errorf("location %q belongs to vault %x, this is vault %x: use another folder", l.dir, r.vault, s.o.Vault)
	}
	if err == nil && s.newerThanUs(r) {
		return fmt.Errorf("location %q was in use without this vault's first location, and is ahead: open it, or empty the folder", l.dir)
	}
	if unix.Access(l.dir, unix.W_OK) != nil {
		return fmt.Errorf("location %q cannot be written", l.dir)
	}
	free, err := freeBytes(l.dir)
	if err != nil {
		return err
	}
	if full && free < repairRoom {
		return fmt.Errorf("location %q: %d bytes free, %d needed", l.dir, free, int64(repairRoom))
	}
	return nil
}

func (s *Set) newerThanUs(r *record) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return r.newer(&record{generation: s.generation, serial: s.serial})
}

// BeginRepair prepares a location, by its number, for copies of packs: Copies lists it
// among those that are in, and Replace writes to it. EndRepair must follow.
func (s *Set) BeginRepair(i int) error {
	l := s.locs[i]
	if l.is() == in {
		return nil
	}
	if err := s.canRepair(l); err != nil {
		s.mu.Lock()
		l.reason = reason(err)
		s.mu.Unlock()
		return err
	}
	if err := s.takeLockNow(l); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(l.dir, PacksName), 0o700); err != nil {
		return NoSpace(err)
	}
	if err := s.writeSuperblock(l); err != nil {
		return fmt.Errorf("location %q: %w", l.dir, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	// Its own list says that it is out: whatever happens now, it is.
	if err := WriteFile(filepath.Join(l.dir, recordName), s.recordOf(l).encode(), s.o.Hook); err != nil {
		return fmt.Errorf("location %q: %w", l.dir, err)
	}
	l.repairing = true
	return nil
}

func (s *Set) takeLockNow(l *location) error {
	if l == s.locs[0] { // its user has locked it
		return nil
	}
	if l.lock != nil { // it may be of a file system that is gone
		_ = l.lock.Close()
		l.lock = nil
	}
	if err := s.takeLock(l); err != nil {
		return err
	}
	if l.lock == nil {
		return fmt.Errorf("location %q cannot be written", l.dir)
	}
	return nil
}

// Join lets writes go to a location under repair: new packs, and those that are open,
// which get a copy there. What was sealed meanwhile may still be missing: the repair
// looks again, and then calls Complete.
func (s *Set) Join(i int) error {
	l := s.locs[i]
	if l.is() == in {
		return nil
	}
	s.mu.Lock()
	if !l.repairing {
		defer s.mu.Unlock()
		return fmt.Errorf("location %q: %s", l.dir, l.reason)
	}
	l.state.Store(int32(joining))
	files := make([]*File, 0, len(s.open))
	for f := range s.open {
		files = append(files, f)
	}
	s.mu.Unlock()
	for _, f := range files {
		if err := f.attach(l); err != nil && !errors.Is(err, errNoCopy) && !errors.Is(err, os.ErrClosed) {
			return s.EndRepair(i, err)
		}
	}
	return nil
}

// Complete makes a joined location one that is in, durably.
func (s *Set) Complete(i int) error {
	l := s.locs[i]
	s.mu.Lock()
	if l.is() == out {
		err := errors.New(l.reason)
		s.mu.Unlock()
		return fmt.Errorf("location %q went out during its repair: %w", l.dir, err)
	}
	if l.is() == in {
		l.repairing = false
		s.mu.Unlock()
		return nil
	}
	l.state.Store(int32(in))
	l.reason, l.since, l.lastCommit, l.otherPast = "", s.o.Now().UTC(), 0, false
	l.mountPoint = isMountPoint(l.dir)
	l.repairing = false
	err := s.save()
	if err == nil && l.is() != in {
		err = errors.New(l.reason)
	}
	s.mu.Unlock()
	s.o.Changed()
	if err != nil {
		return fmt.Errorf("location %q: %w", l.dir, err)
	}
	s.o.Logger.Info("location is in again", "location", l.dir)
	return nil
}

// EndRepair ends a repair that did not come to Complete, for the reason given, which it
// returns.
func (s *Set) EndRepair(i int, cause error) error {
	l := s.locs[i]
	s.mu.Lock()
	l.repairing = false
	if l.is() == joining {
		s.markOut(l, cause)
	} else if l.is() == out && cause != nil {
		l.reason = "repair: " + reason(cause)
		if bytes.HasPrefix([]byte(reason(cause)), []byte("full: ")) {
			l.reason = reason(cause)
		}
	}
	s.mu.Unlock()
	s.o.Changed()
	return cause
}

// Surplus are the packs of a location under repair that no location that is in has.
func (s *Set) Surplus(i int) ([]pack.ID, error) {
	all, err := s.List()
	if err != nil {
		return nil, err
	}
	own, err := s.listAt(s.locs[i])
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(own, func(id pack.ID) bool { return slices.Contains(all, id) }), nil
}

// RemoveSurplus removes a pack of a location under repair that the vault does not have
// any more. When the location may hold commits of another history, it is put aside.
func (s *Set) RemoveSurplus(i int, id pack.ID) error {
	s.copying.Lock()
	defer s.copying.Unlock()
	l := s.locs[i]
	s.mu.Lock()
	aside := l.otherPast
	s.mu.Unlock()
	if !aside {
		return os.Remove(l.path(id))
	}
	return s.putAside(l, l.path(id))
}
