package packdir

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/keelblock/keelblock/dedupe"
)

// Hook is called before each system call that changes or syncs a file, with its name
// and the file's, and may fail it: tests cut the power and fill the disk here. Files of
// several locations call it from several goroutines.
type Hook func(op, name string) error

// file is one file opened for writing. The hook sees each change of it.
type file struct {
	*os.File
	hook Hook
}

func (f file) call(op string, fn func() error) error {
	if err := f.hook(op, f.Name()); err != nil {
		return fmt.Errorf("%s %s: %w", op, f.Name(), NoSpace(err))
	}
	return NoSpace(fn())
}

func (f file) WriteAt(p []byte, off int64) (n int, err error) {
	err = f.call("write", func() error {
		n, err = f.File.WriteAt(p, off)
		return err
	})
	return n, err
}

func (f file) Truncate(size int64) error {
	return f.call("truncate", func() error { return f.File.Truncate(size) })
}

func (f file) Sync() error { return f.call("sync", f.File.Sync) }

// allocate makes room for the file's bytes from off to end, as zeros. On a file
// system that cannot, nothing is allocated, and a full disk shows in WriteAt or Sync.
func (f file) allocate(off, end int64) error {
	return f.call("allocate", func() error {
		err := unix.Fallocate(int(f.Fd()), 0, off, end-off)
		if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) {
			return nil
		}
		if err != nil {
			return &fs.PathError{Op: "fallocate", Path: f.Name(), Err: err}
		}
		return nil
	})
}

// NoSpace adds dedupe.ErrNoSpace to a full disk's error.
func NoSpace(err error) error {
	if errors.Is(err, dedupe.ErrNoSpace) {
		return err
	}
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fmt.Errorf("%w: %w", dedupe.ErrNoSpace, err)
	}
	return err
}

// SyncDir makes names in a folder durable.
func SyncDir(dir string, hook Hook) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return file{d, hook}.Sync()
}

// WriteFile replaces a small file, durably, all or nothing.
func WriteFile(path string, b []byte, hook Hook) error {
	tmp := path + ".new"
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return NoSpace(err)
	}
	pf := file{f, hook}
	if _, err = pf.WriteAt(b, 0); err == nil {
		err = pf.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	if err := hook("rename", path); err != nil {
		return NoSpace(err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return NoSpace(err)
	}
	return SyncDir(filepath.Dir(path), hook)
}
