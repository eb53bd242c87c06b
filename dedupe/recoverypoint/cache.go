package recoverypoint

import (
	"context"
	"fmt"
	"sync"

	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/hashtree"
)

// DefaultCacheBytes is what NewCache(0) takes.
const DefaultCacheBytes = 64 << 20

// Cache keeps verified blocks in memory, shared by all readers of a store: a block
// that two points have in common, or two users of one mount read, is decoded once.
// It evicts what was not used for longest, and holds at most its size in blocks
// plus an eighth in tree nodes, plus what is being read at this moment. It is safe
// for concurrent use and needs no closing.
type Cache struct {
	limit int64
	nodes int // tree nodes per store

	mu      sync.Mutex // guards what follows; not held over a read
	bytes   int64
	blocks  map[cacheKey]*cacheBlock
	recent  cacheBlock // ring: recent.next was used last
	free    [][]byte   // buffers of evicted blocks
	sources map[dedupe.Store]*source
	stats   CacheStats
}

// source is one store whose blocks are in the cache.
type source struct {
	number int
	store  dedupe.Store
	blocks dedupe.BlocksGetter // nil when store is none
	nodes  hashtree.Nodes
}

// maxGroup is how many blocks are read from a store at once: what dedupe.SumAll takes.
const maxGroup = 8

// group is a list of up to maxGroup blocks to be read from a store, with what came of
// it.
type group struct {
	n       int
	digests [maxGroup]dedupe.Digest
	bufs    [maxGroup][]byte // each of a block's size
	errs    [maxGroup]error
}

func (g *group) add(d dedupe.Digest, buf []byte) {
	g.digests[g.n], g.bufs[g.n] = d, buf
	g.n++
}

// get reads the blocks of g. What is in the buffer of one that failed is nobody's.
func (src *source) get(ctx context.Context, g *group) {
	if src.blocks != nil && g.n > 1 {
		src.blocks.GetBlocks(ctx, g.digests[:g.n], g.bufs[:g.n], g.errs[:g.n])
		return
	}
	for i := range g.n {
		buf := g.bufs[i]
		b, err := src.store.Get(ctx, dedupe.KindBlock, g.digests[i], buf[:0])
		if err == nil && len(b) != len(buf) {
			err = fmt.Errorf("%d bytes, want %d: %w", len(b), len(buf), dedupe.ErrCorrupt)
		}
		if err == nil && &b[0] != &buf[0] {
			copy(buf, b)
		}
		g.errs[i] = err
	}
}

// CacheStats are a Cache's counters.
type CacheStats struct {
	Hits, Misses, Evictions int64
	Bytes                   int64 // held now
}

type cacheKey struct {
	source int
	digest dedupe.Digest
}

// cacheBlock is a block in the cache or on its way there. pins is how many readers
// look at it or wait for it; it is evicted, and its buffer used again, only at 0.
type cacheBlock struct {
	key        cacheKey
	data       []byte
	err        error
	done       chan struct{} // closed when data or err is set
	pins       int
	prev, next *cacheBlock
}

// NewCache holds up to bytes of blocks; 0 is DefaultCacheBytes.
func NewCache(bytes int64) *Cache {
	if bytes <= 0 {
		bytes = DefaultCacheBytes
	}
	c := &Cache{limit: bytes, nodes: int(bytes / 8 / hashtree.NodeSize), blocks: make(map[cacheKey]*cacheBlock),
		sources: make(map[dedupe.Store]*source)}
	c.recent.prev, c.recent.next = &c.recent, &c.recent
	return c
}

// Stats are the counters.
func (c *Cache) Stats() CacheStats {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.stats
	s.Bytes = c.bytes
	return s
}

// sourceOf is the one source for s.
func (c *Cache) sourceOf(s dedupe.Store) *source {
	c.mu.Lock()
	defer c.mu.Unlock()
	src := c.sources[s]
	if src == nil {
		src = &source{number: len(c.sources), store: s, nodes: hashtree.Cached(s, c.nodes)}
		src.blocks, _ = s.(dedupe.BlocksGetter)
		c.sources[s] = src
	}
	return src
}

// find pins the block if it is in the cache or on its way.
func (c *Cache) find(k cacheKey) *cacheBlock {
	c.mu.Lock()
	defer c.mu.Unlock()
	b := c.blocks[k]
	if b == nil {
		return nil
	}
	c.hit(b)
	return b
}

// hit pins b and makes it the one used last; c.mu is held.
func (c *Cache) hit(b *cacheBlock) {
	b.pins++
	c.stats.Hits++
	b.unlink()
	b.link(&c.recent)
}

// claim is find, or else makes the caller (mine) the one who loads the block.
func (c *Cache) claim(k cacheKey, size int) (b *cacheBlock, mine bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if b := c.blocks[k]; b != nil {
		c.hit(b)
		return b, false
	}
	c.stats.Misses++
	b = &cacheBlock{key: k, done: make(chan struct{}), pins: 1}
	c.bytes += int64(size)
	c.evict()
	if n := len(c.free); n > 0 && len(c.free[n-1]) == size {
		b.data, c.free = c.free[n-1], c.free[:n-1]
	} else {
		b.data = make([]byte, size)
	}
	c.blocks[k] = b
	b.link(&c.recent)
	return b, true
}

// evict drops blocks used longest ago until the cache fits; c.mu is held.
func (c *Cache) evict() {
	for b := c.recent.prev; b != &c.recent && c.bytes > c.limit; {
		victim := b
		b = b.prev
		if victim.pins > 0 {
			continue
		}
		victim.unlink()
		delete(c.blocks, victim.key)
		c.bytes -= int64(len(victim.data))
		c.stats.Evictions++
		if len(c.free) < 16 {
			c.free = append(c.free, victim.data)
		}
	}
}

// loaded ends the reading of a block for which claim made the caller responsible: its
// data is there, or err says why not.
func (c *Cache) loaded(b *cacheBlock, err error) {
	if err != nil {
		b.err = err
		c.mu.Lock()
		b.unlink()
		b.prev, b.next = b, b // so that a late unlink is harmless
		delete(c.blocks, b.key)
		c.bytes -= int64(len(b.data))
		c.mu.Unlock()
	}
	close(b.done)
}

// release unpins. used up: the reader took the block to its end in one pass, so it
// is the first to go.
func (c *Cache) release(b *cacheBlock, usedUp bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	b.pins--
	if usedUp && c.blocks[b.key] == b {
		b.unlink()
		b.link(c.recent.prev)
	}
}

func (b *cacheBlock) link(after *cacheBlock) {
	b.prev, b.next = after, after.next
	after.next.prev, after.next = b, b
}

func (b *cacheBlock) unlink() {
	b.prev.next, b.next.prev = b.next, b.prev
}
