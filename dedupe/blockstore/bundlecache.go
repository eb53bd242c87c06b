package blockstore

import (
	"container/list"
	"sync"
)

// bundleCacheBytes bounds the grains of bundles that are kept decoded: neighbours on a
// disk are patches of one bundle, and a reader goes from one to the next. A sequential
// one needs as many bundles as its blocks have patches over one another.
const bundleCacheBytes = 8 << 20

// bundleKey is where a bundle is.
type bundleKey struct {
	pack, offset uint32
}

// bundleCache keeps the bundles that were used last. It is safe for concurrent use.
type bundleCache struct {
	mu    sync.Mutex // not held over a read
	bytes int
	m     map[bundleKey]*list.Element // of *cachedBundle
	order *list.List                  // used last at the back
}

// cachedBundle is a bundle in the cache, or on its way there.
type cachedBundle struct {
	key  bundleKey
	done chan struct{} // closed when bu or err is set
	bu   *openBundle
	err  error
}

func newBundleCache() *bundleCache {
	return &bundleCache{m: make(map[bundleKey]*list.Element), order: list.New()}
}

// get is the bundle at k, which load reads unless it is there. Those who ask while it is
// read wait for it. What could not be read is not kept.
func (c *bundleCache) get(k bundleKey, load func() (*openBundle, error)) (*openBundle, error) {
	c.mu.Lock()
	if el := c.m[k]; el != nil {
		c.order.MoveToBack(el)
		c.mu.Unlock()
		cb := el.Value.(*cachedBundle)
		<-cb.done
		return cb.bu, cb.err
	}
	cb := &cachedBundle{key: k, done: make(chan struct{})}
	el := c.order.PushBack(cb)
	c.m[k] = el
	c.mu.Unlock()
	bu, err := load()
	c.mu.Lock()
	cb.bu, cb.err = bu, err
	if err != nil {
		c.removeLocked(el)
	} else if c.m[k] == el {
		c.bytes += len(cb.bu.grains)
		c.evictLocked(el)
	}
	c.mu.Unlock()
	close(cb.done)
	return bu, err
}

// evictLocked drops what was not used for longest, but not keep, which is counted just
// now, nor what is still being read, which is not counted.
func (c *bundleCache) evictLocked(keep *list.Element) {
	for el := c.order.Front(); el != nil && c.bytes > bundleCacheBytes; {
		next := el.Next()
		if el != keep && el.Value.(*cachedBundle).bu != nil {
			c.removeLocked(el)
		}
		el = next
	}
}

// removeLocked drops an element that may be dropped already.
func (c *bundleCache) removeLocked(el *list.Element) {
	cb := el.Value.(*cachedBundle)
	if c.m[cb.key] != el {
		return
	}
	delete(c.m, cb.key)
	c.order.Remove(el)
	if cb.bu != nil {
		c.bytes -= len(cb.bu.grains)
	}
}

// drop forgets a bundle: the next reader reads it anew.
func (c *bundleCache) drop(k bundleKey) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if el := c.m[k]; el != nil {
		c.removeLocked(el)
	}
}
