package xfs

import (
	"container/list"
	"sync"
)

// cacheBytes bounds the metadata that an FS keeps. 20 000 entries of one directory
// with their inodes are about 6 MiB.
const cacheBytes = 16 << 20

// class says what a cache entry holds.
type class uint8

const (
	classInode  class = iota // a = inode number: *inode
	classChunk               // a = first block: []byte, a chunk of inodes, not verified
	classMap                 // a = inode number, b = block: []byte, verified node of a map of extents
	classDir                 // a = inode number, b = logical block: []byte, verified
	classDA                  // a = inode number, b = logical block: []byte, verified
	classXattrs              // a = inode number: []xattr
)

type cacheKey struct {
	class class
	a, b  uint64
}

type cacheEntry struct {
	key   cacheKey
	value any
	bytes int
}

// cache keeps the most recently used values up to a number of bytes. Values are
// not changed once they are in.
type cache struct {
	mu      sync.Mutex
	entries map[cacheKey]*list.Element
	order   list.List // front: most recently used
	bytes   int
	limit   int
}

func newCache(limit int) *cache {
	return &cache{entries: make(map[cacheKey]*list.Element), limit: limit}
}

func (c *cache) get(k cacheKey) (any, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.entries[k]
	if !ok {
		return nil, false
	}
	c.order.MoveToFront(e)
	return e.Value.(*cacheEntry).value, true
}

// put keeps value, whose size in memory is about bytes.
func (c *cache) put(k cacheKey, value any, bytes int) {
	const overhead = 160 // list element, map slot, entry
	bytes += overhead
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.entries[k]; ok {
		return // another goroutine was first; the image does not change
	}
	c.entries[k] = c.order.PushFront(&cacheEntry{k, value, bytes})
	c.bytes += bytes
	for c.bytes > c.limit && c.order.Len() > 1 {
		last := c.order.Back()
		old := last.Value.(*cacheEntry)
		c.order.Remove(last)
		delete(c.entries, old.key)
		c.bytes -= old.bytes
	}
}

// cached is get for a value of type T.
func cached[T any](c *cache, k cacheKey) (T, bool) {
	v, ok := c.get(k)
	if !ok {
		var none T
		return none, false
	}
	return v.(T), true
}
