package blockstore

import (
	"container/list"
	"os"
	"sync"

	"github.com/keelblock/keelblock/dedupe/pack"
	"github.com/keelblock/keelblock/dedupe/packdir"
)

// openFiles bounds the packs that are open for reading.
const openFiles = 256

// noSpace adds dedupe.ErrNoSpace to a full disk's error.
func noSpace(err error) error { return packdir.NoSpace(err) }

// syncDir makes names in a folder durable.
func syncDir(dir string, hook packdir.Hook) error { return packdir.SyncDir(dir, hook) }

// writeFile replaces a small file, durably, all or nothing.
func writeFile(path string, b []byte, hook packdir.Hook) error {
	return packdir.WriteFile(path, b, hook)
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

// clear forgets all packs: at the end, or when a location's files are not to be read
// any more. Readers go on with what they have.
func (c *fileCache) clear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.order.Len() > 0 {
		c.removeLocked(c.order.Front())
	}
}
