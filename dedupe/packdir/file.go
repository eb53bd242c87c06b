package packdir

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/keelblock/keelblock/dedupe/pack"
)

// File is a pack's file, open for writing at every location that is in. It is a
// pack.File. Its methods may be called from any number of goroutines.
type File struct {
	set *Set
	id  pack.ID

	mu     sync.RWMutex // held for writing while a copy is attached
	copies []*copyFile
}

// copyFile is one copy of an open pack.
type copyFile struct {
	loc  *location
	term int64 // of the location when the copy was opened
	f    file
}

func newCopy(l *location, f *os.File, hook Hook) *copyFile {
	return &copyFile{loc: l, term: l.term.Load(), f: file{f, hook}}
}

// live reports whether the copy has every write so far.
func (c *copyFile) live() bool { return c.loc.is() != out && c.loc.term.Load() == c.term }

var _ pack.File = (*File)(nil)

// errNoCopy: every copy of an open pack failed.
var errNoCopy = errors.New("no copy of the pack is left to write")

// do is each with f.mu.
func (f *File) do(fn func(c *copyFile) error) error {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.each(fn)
}

// each does one operation on all copies at once. f.mu is held.
func (f *File) each(fn func(c *copyFile) error) error {
	if len(f.set.locs) == 1 {
		if len(f.copies) == 0 { // it could not be made
			return nil
		}
		return fn(f.copies[0])
	}
	var copies [MaxLocations]*copyFile
	n := 0
	for _, c := range f.copies {
		if c.live() {
			copies[n] = c
			n++
		}
	}
	if n == 0 {
		return errNoCopy
	}
	if n < len(f.set.locs) {
		if err := f.set.barrier(); err != nil {
			return err
		}
	}
	var errs [MaxLocations]error
	var wg sync.WaitGroup
	for i, c := range copies[1:n] {
		wg.Go(func() { errs[i+1] = fn(c) })
	}
	errs[0] = fn(copies[0])
	wg.Wait()
	return f.settle(copies[:n], errs[:n])
}

func (f *File) settle(copies []*copyFile, errs []error) error {
	if errors.Join(errs...) == nil {
		return nil
	}
	locs := make([]*location, len(copies))
	for i, c := range copies {
		locs[i] = c.loc
	}
	return f.set.settle(locs, errs)
}

// WriteAt implements pack.File.
func (f *File) WriteAt(p []byte, off int64) (int, error) {
	err := f.do(func(c *copyFile) error {
		_, err := c.f.WriteAt(p, off)
		return err
	})
	if err != nil {
		return 0, err
	}
	return len(p), nil
}

// ReadAt implements pack.File. It reads one copy.
func (f *File) ReadAt(p []byte, off int64) (int, error) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	err := error(errNoCopy)
	for _, c := range f.copies {
		if !c.live() {
			continue
		}
		var n int
		if n, err = c.f.ReadAt(p, off); err == nil || err == io.EOF {
			return n, err
		}
	}
	return 0, err
}

// Truncate implements pack.File.
func (f *File) Truncate(size int64) error {
	return f.do(func(c *copyFile) error { return c.f.Truncate(size) })
}

// Sync implements pack.File: what was written before is durable at every location that
// is in. A copy whose name somebody removed meanwhile counts as failed.
func (f *File) Sync() error {
	return f.do(func(c *copyFile) error {
		if err := c.f.Sync(); err != nil || len(f.set.locs) == 1 {
			return err
		}
		return c.named()
	})
}

// named is an error when the file has no name any more.
func (c *copyFile) named() error {
	var st unix.Stat_t
	if err := unix.Fstat(int(c.f.Fd()), &st); err != nil {
		return err
	}
	if st.Nlink == 0 {
		return fmt.Errorf("%s was removed while it was written", c.f.Name())
	}
	return nil
}

// Allocate makes room for the file's bytes from off to end, as zeros, so that a full
// disk is an error of this call and not of a later one. A file system that cannot
// allocate takes no notice.
func (f *File) Allocate(off, end int64) error {
	return f.do(func(c *copyFile) error { return c.f.allocate(off, end) })
}

// Close implements pack.File. A copy that cannot be closed is like one that cannot be
// written.
func (f *File) Close() error {
	f.set.track(f, false)
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.closeFiles()
}

func (f *File) closeFiles() error {
	var errs []error
	live := 0
	for _, c := range f.copies {
		err := c.f.Close()
		if !c.live() {
			continue
		}
		live++
		if err != nil {
			errs = append(errs, err)
		}
	}
	if len(errs) < live || live == 0 { // everything was synced, and one copy is closed well
		return nil
	}
	return errors.Join(errs...)
}

// removeFiles removes what Create made.
func (f *File) removeFiles() error {
	var errs []error
	for _, c := range f.copies {
		if err := os.Remove(c.f.Name()); err != nil && !errors.Is(err, fs.ErrNotExist) && c.live() {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// attach gives an open pack a copy at a location that is joining.
func (f *File) attach(l *location) (err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var from *copyFile
	for _, c := range f.copies {
		if c.loc == l && c.live() {
			return nil
		}
		if from == nil && c.live() && c.loc.is() == in {
			from = c
		}
	}
	if from == nil {
		return fmt.Errorf("attach %s: %w", l.dir, errNoCopy)
	}
	st, err := from.f.Stat() // an error when the pack is closed, and so sealed or gone
	if err != nil {
		return err
	}
	// Not beside the name and renamed: the file is written on, so it must be this one.
	path := l.path(f.id)
	c, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return NoSpace(err)
	}
	to := newCopy(l, c, f.set.o.Hook)
	defer func() {
		if err != nil {
			err = errors.Join(err, c.Close())
		}
	}()
	if err := to.f.allocate(0, st.Size()); err != nil {
		return err
	}
	if err := copyRange(to.f, from.f, st.Size()); err != nil {
		return err
	}
	if err := to.f.Truncate(st.Size()); err != nil {
		return err
	}
	if err := to.f.Sync(); err != nil {
		return err
	}
	for i, old := range f.copies {
		if old.loc == l {
			_ = old.f.Close() // it lacks a write
			f.copies[i] = to
			return nil
		}
	}
	f.copies = append(f.copies, to)
	return nil
}
