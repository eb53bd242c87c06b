package filerestore

import (
	"container/list"
	"sync"
)

// cacheBlock is the unit of the cache. File systems read inodes and directories in
// pieces of 1 to 4 KiB that lie together; 64 KiB is what the daemon decodes at once.
const cacheBlock = 64 << 10

type cacheKey struct {
	disk  *disk
	block int64
}

// blockCache keeps what was read in small pieces, least recently used out first.
type blockCache struct {
	limit int

	mu     sync.Mutex
	blocks map[cacheKey]*list.Element
	order  *list.List // of *cached, most recent in front
}

// cached is a block, being read until ready is closed. data is not changed afterwards.
type cached struct {
	key   cacheKey
	ready chan struct{}
	data  []byte
	err   error
}

func newBlockCache(limitBytes int64) *blockCache {
	return &blockCache{limit: max(16, int(limitBytes/cacheBlock)), blocks: make(map[cacheKey]*list.Element), order: list.New()}
}

// read fills p, which lies inside the disk.
func (c *blockCache) read(d *disk, p []byte, off int64) error {
	for len(p) > 0 {
		b := c.get(cacheKey{d, off / cacheBlock})
		if b.err != nil {
			return b.err
		}
		n := copy(p, b.data[off%cacheBlock:])
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// get returns a block, read by one caller for all that want it.
func (c *blockCache) get(key cacheKey) *cached {
	c.mu.Lock()
	if e := c.blocks[key]; e != nil {
		c.order.MoveToFront(e)
		b := e.Value.(*cached)
		c.mu.Unlock()
		<-b.ready
		return b
	}
	b := &cached{key: key, ready: make(chan struct{})}
	c.blocks[key] = c.order.PushFront(b)
	for c.order.Len() > c.limit {
		c.remove(c.order.Back())
	}
	c.mu.Unlock()

	start := key.block * cacheBlock
	b.data = make([]byte, min(cacheBlock, key.disk.size-start))
	b.err = key.disk.read(b.data, start)
	if b.err != nil {
		c.mu.Lock()
		if e := c.blocks[key]; e != nil && e.Value.(*cached) == b {
			c.remove(e)
		}
		c.mu.Unlock()
	}
	close(b.ready)
	return b
}

// remove takes an element out; mu is held.
func (c *blockCache) remove(e *list.Element) {
	delete(c.blocks, e.Value.(*cached).key)
	c.order.Remove(e)
}

// forget drops the blocks of a disk.
func (c *blockCache) forget(d *disk) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for key, e := range c.blocks {
		if key.disk == d {
			c.remove(e)
		}
	}
}
