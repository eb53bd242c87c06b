package diskimage

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/keelblock/keelblock/blockdev"
)

// fileExtents yields where a file holds data, by SEEK_DATA and SEEK_HOLE.
func fileExtents(f Source, size int64, progress Progress) func(yield func(blockdev.Extent) bool) error {
	fd := int(f.Fd())
	return func(yield func(blockdev.Extent) bool) error {
		for off := int64(0); off < size; {
			data, err := unix.Seek(fd, off, unix.SEEK_DATA)
			switch {
			case errors.Is(err, unix.ENXIO): // only a hole is left
				data = size
			case errors.Is(err, unix.EINVAL): // a device, or no support
				data = off
			case err != nil:
				return fmt.Errorf("find data: %w", err)
			}
			data = min(data, size)
			if progress != nil && data > off {
				progress(data - off)
			}
			if data == size {
				return nil
			}
			hole, err := unix.Seek(fd, data, unix.SEEK_HOLE)
			if err != nil {
				hole = size
			}
			hole = min(hole, size)
			if !yield(blockdev.Extent{Offset: data, Length: hole - data}) {
				return nil
			}
			off = hole
		}
		return nil
	}
}

// Output is a file being made. Until Commit there is nothing under its name.
type Output struct {
	*os.File
	path  string
	force bool
	done  bool
}

// ErrExists: there is a file of that name already.
var ErrExists = errors.New("exists already")

// Create begins the file at path, with mode 0600: a disk holds everything its guest
// kept private. With force Commit replaces a file that exists.
func Create(path string, force bool) (*Output, error) {
	switch st, err := os.Lstat(path); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, err
	case st.IsDir():
		return nil, fmt.Errorf("%q is a folder", path)
	case !st.Mode().IsRegular():
		return nil, fmt.Errorf("%q is not a regular file", path)
	case !force:
		return nil, fmt.Errorf("%q %w", path, ErrExists)
	}
	if _, err := os.Stat(filepath.Dir(path)); err != nil {
		return nil, fmt.Errorf("the folder of %q: %w", path, err)
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".keelblock-*")
	if err != nil {
		return nil, err
	}
	return &Output{File: f, path: path, force: force}, nil
}

// Commit makes the file durable and gives it its name.
func (o *Output) Commit() error {
	if err := o.Sync(); err != nil {
		return fmt.Errorf("sync %q: %w", o.path, err)
	}
	if err := o.File.Close(); err != nil {
		return fmt.Errorf("close %q: %w", o.path, err)
	}
	flags := uint(unix.RENAME_NOREPLACE)
	if o.force {
		flags = 0
	}
	err := unix.Renameat2(unix.AT_FDCWD, o.Name(), unix.AT_FDCWD, o.path, flags)
	if errors.Is(err, unix.EINVAL) && !o.force { // a file system without the flag
		if _, serr := os.Lstat(o.path); serr == nil {
			err = unix.EEXIST
		} else {
			err = os.Rename(o.Name(), o.path)
		}
	}
	if errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("%q %w", o.path, ErrExists)
	}
	if err != nil {
		return fmt.Errorf("rename to %q: %w", o.path, err)
	}
	o.done = true
	dir, err := os.Open(filepath.Dir(o.path))
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := dir.Sync(); err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("sync the folder of %q: %w", o.path, err)
	}
	return nil
}

// Discard removes what was written, unless Commit succeeded.
func (o *Output) Discard() {
	if o.done {
		return
	}
	o.done = true
	_ = o.File.Close()
	_ = os.Remove(o.Name())
}
