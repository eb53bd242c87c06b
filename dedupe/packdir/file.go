package packdir

import (
	"errors"
	"os"
	"sync"

	"github.com/keelblock/keelblock/dedupe/pack"
)

// File is a pack's file, open for writing at every location. It is a pack.File. Writes
// may come from any number of goroutines; Truncate, Sync, Close and Allocate from one.
type File struct {
	set    *Set
	id     pack.ID
	copies []*copyFile
}

// copyFile is one copy of an open pack.
type copyFile struct {
	loc *location
	f   file
}

var _ pack.File = (*File)(nil)

// each does one operation on all copies at once.
func (f *File) each(fn func(c *copyFile) error) error {
	switch len(f.copies) {
	case 0: // Create failed at the first
		return nil
	case 1:
		return fn(f.copies[0])
	}
	errs := make([]error, len(f.copies))
	var wg sync.WaitGroup
	for i, c := range f.copies[1:] {
		wg.Go(func() { errs[i+1] = fn(c) })
	}
	errs[0] = fn(f.copies[0])
	wg.Wait()
	return errors.Join(errs...)
}

// WriteAt implements pack.File.
func (f *File) WriteAt(p []byte, off int64) (int, error) {
	err := f.each(func(c *copyFile) error {
		_, err := c.f.WriteAt(p, off)
		return err
	})
	if err != nil {
		return 0, err
	}
	return len(p), nil
}

// ReadAt implements pack.File.
func (f *File) ReadAt(p []byte, off int64) (int, error) { return f.copies[0].f.ReadAt(p, off) }

// Truncate implements pack.File.
func (f *File) Truncate(size int64) error {
	return f.each(func(c *copyFile) error { return c.f.Truncate(size) })
}

// Sync implements pack.File: what was written before is durable at every location.
func (f *File) Sync() error { return f.each(func(c *copyFile) error { return c.f.Sync() }) }

// Allocate makes room for the file's bytes from off to end, as zeros, so that a full
// disk is an error of this call and not of a later one. A file system that cannot
// allocate takes no notice.
func (f *File) Allocate(off, end int64) error {
	return f.each(func(c *copyFile) error { return c.f.allocate(off, end) })
}

// Close implements pack.File.
func (f *File) Close() error { return f.each(func(c *copyFile) error { return c.f.Close() }) }

// File is the copy at the first location, for reading.
func (f *File) File() *os.File { return f.copies[0].f.File }

// removeFiles removes what Create made.
func (f *File) removeFiles() error {
	return f.each(func(c *copyFile) error { return os.Remove(c.f.Name()) })
}
