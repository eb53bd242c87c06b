package pagecache

import (
	"fmt"
	"io"

	"github.com/keelblock/keelblock/blockdev/filesystem/lru"
)

// PageSize is how much is read at once, in bytes: large enough that a directory or a
// chain is a few reads, small enough that one of 32 bytes is not expensive.
const PageSize = 64 << 10

// Key addresses a value. The reader gives the classes their meaning; class 0 is that
// of the pages.
type Key = lru.Key

// classPage: A = page number: []byte.
const classPage = 0

// Cache is a volume with its most recently used metadata.
type Cache struct {
	r    io.ReaderAt
	size int64
	kept *lru.Cache
}

// New makes a cache of at most limit bytes over the volume r of size bytes.
func New(r io.ReaderAt, size int64, limit int) *Cache {
	return &Cache{r: r, size: size, kept: lru.New(limit)}
}

// Read fills p from offset off, by pages.
func (c *Cache) Read(p []byte, off int64) error {
	for len(p) > 0 {
		page, err := c.Page(off)
		if err != nil {
			return err
		}
		n := copy(p, page)
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// Page is what the volume holds from off up to the end of the page in which off lies:
// at least one byte. The caller must not change it.
func (c *Cache) Page(off int64) ([]byte, error) {
	if off < 0 || off >= c.size {
		return nil, fmt.Errorf("read at %d of %d bytes: %w", off, c.size, io.ErrUnexpectedEOF)
	}
	number, within := uint64(off)/PageSize, off%PageSize
	if page, ok := Get[[]byte](c, Key{Class: classPage, A: number}); ok {
		return page[within:], nil
	}
	page := make([]byte, min(PageSize, c.size-(off-within)))
	if err := c.ReadDirect(page, off-within); err != nil {
		return nil, err
	}
	c.Put(Key{Class: classPage, A: number}, page, len(page))
	return page[within:], nil
}

// ReadDirect fills p from offset off and keeps nothing: for the contents of files.
func (c *Cache) ReadDirect(p []byte, off int64) error {
	n, err := c.r.ReadAt(p, off)
	if n == len(p) {
		return nil // io.ReaderAt may say io.EOF with the last byte
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("read %d bytes at %d: %w", len(p), off, err)
}

// Get is the value of k, which must be a T, if it is kept.
func Get[T any](c *Cache, k Key) (value T, ok bool) { return lru.Get[T](c.kept, k) }

// Put keeps value, whose size in memory is about bytes. The value must not be changed
// any more.
func (c *Cache) Put(k Key, value any, bytes int) { c.kept.Put(k, value, bytes) }
