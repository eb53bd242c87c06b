package lru

import (
	"container/list"
	"sync"
)

// overhead is what an entry takes beside its value, in bytes: list element, map slot.
const overhead = 160

// Key addresses a value. The reader gives the classes their meaning.
type Key struct {
	Class uint8
	A, B  uint64
}

type entry struct {
	key   Key
	value any
	bytes int
}

// Cache is the values that were used most recently.
type Cache struct {
	mu      sync.Mutex
	entries map[Key]*list.Element
	order   list.List // front: most recently used
	bytes   int
	limit   int
}

// New makes a cache of at most limit bytes, or of one value that is larger.
func New(limit int) *Cache {
	return &Cache{entries: make(map[Key]*list.Element), limit: limit}
}

// Get is the value of k, which must be a T, if it is kept.
func Get[T any](c *Cache, k Key) (value T, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.entries[k]
	if !ok {
		return value, false
	}
	c.order.MoveToFront(e)
	return e.Value.(*entry).value.(T), true
}

// Put keeps value, whose size in memory is about bytes. The value must not be changed
// any more.
func (c *Cache) Put(k Key, value any, bytes int) {
	bytes += overhead
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.entries[k]; ok {
		return // another goroutine was first; the volume does not change
	}
	c.entries[k] = c.order.PushFront(&entry{k, value, bytes})
	c.bytes += bytes
	for c.bytes > c.limit && c.order.Len() > 1 {
		last := c.order.Back()
		old := last.Value.(*entry)
		c.order.Remove(last)
		delete(c.entries, old.key)
		c.bytes -= old.bytes
	}
}
