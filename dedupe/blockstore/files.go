package blockstore

import (
	"container/list"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/pack"
)

// openFiles bounds the packs that are open for reading.
const openFiles = 256

// packName is the name of a pack in the folder packs.
func packName(id pack.ID) string { return id.String() + ".pack" }

// packFile is a pack's file opened for writing. The hook sees each change of it.
type packFile struct {
	*os.File
	hook func(op, name string) error
}

func (f packFile) call(op string, fn func() error) error {
	if err := f.hook(op, f.Name()); err != nil {
		return fmt.Errorf("%s %s: %w", op, f.Name(), noSpace(err))
	}
	return noSpace(fn())
}

func (f packFile) WriteAt(p []byte, off int64) (n int, err error) {
	err = f.call("write", func() error {
		n, err = f.File.WriteAt(p, off)
		return err
	})
	return n, err
}

func (f packFile) Truncate(size int64) error {
	return f.call("truncate", func() error { return f.File.Truncate(size) })
}

func (f packFile) Sync() error { return f.call("sync", f.File.Sync) }

// allocate makes room for the file's bytes from off to end, as zeros. On a file
// system that cannot, nothing is allocated, and a full disk shows in WriteAt or Sync.
func (f packFile) allocate(off, end int64) error {
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

// noSpace adds dedupe.ErrNoSpace to a full disk's error.
func noSpace(err error) error {
	if errors.Is(err, dedupe.ErrNoSpace) {
		return err
	}
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fmt.Errorf("%w: %w", dedupe.ErrNoSpace, err)
	}
	return err
}

// syncDir makes names in a folder durable.
func syncDir(dir string, hook func(op, name string) error) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return packFile{d, hook}.Sync()
}

// writeFile replaces a small file, durably, all or nothing.
func writeFile(path string, b []byte, hook func(op, name string) error) error {
	tmp := path + ".new"
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return noSpace(err)
	}
	pf := packFile{f, hook}
	if _, err = pf.WriteAt(b, 0); err == nil {
		err = pf.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	if err := hook("rename", path); err != nil {
		return noSpace(err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return noSpace(err)
	}
	return syncDir(filepath.Dir(path), hook)
}

// fileCache keeps packs open for reading, the most recently used ones.
type fileCache struct {
	mu    sync.Mutex
	files map[uint32]*list.Element // of *cachedFile
	order *list.List               // least recently used first
}

// cachedFile is an open pack with the number of its readers; the cache is one.
type cachedFile struct {
	number uint32
	id     pack.ID
	f      *os.File
	refs   int
}

func newFileCache() *fileCache {
	return &fileCache{files: make(map[uint32]*list.Element), order: list.New()}
}

// acquire opens a pack for reading, or takes it from the cache; release must follow.
// open is called with the lock held: it looks up a name and opens it, and two readers
// of one pack must not open it twice.
func (c *fileCache) acquire(number uint32, open func() (*os.File, pack.ID, error)) (*cachedFile, pack.ID, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if el := c.files[number]; el != nil {
		c.order.MoveToBack(el)
		cf := el.Value.(*cachedFile)
		cf.refs++
		return cf, cf.id, nil
	}
	f, id, err := open()
	if err != nil {
		return nil, id, err
	}
	cf := &cachedFile{number: number, id: id, f: f, refs: 2}
	c.files[number] = c.order.PushBack(cf)
	if c.order.Len() > openFiles {
		c.removeLocked(c.order.Front())
	}
	return cf, id, nil
}

func (c *fileCache) release(cf *cachedFile) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.unref(cf)
}

// unref closes a file, opened for reading only, with its last reader.
func (c *fileCache) unref(cf *cachedFile) {
	if cf.refs--; cf.refs == 0 {
		_ = cf.f.Close() // nothing was written
	}
}

func (c *fileCache) removeLocked(el *list.Element) {
	cf := c.order.Remove(el).(*cachedFile)
	delete(c.files, cf.number)
	c.unref(cf)
}

// drop forgets a pack whose file is gone.
func (c *fileCache) drop(number uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if el := c.files[number]; el != nil {
		c.removeLocked(el)
	}
}

func (c *fileCache) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.order.Len() > 0 {
		c.removeLocked(c.order.Front())
	}
}
