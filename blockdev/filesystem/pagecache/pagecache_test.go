package pagecache_test

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/keelblock/keelblock/blockdev/filesystem/pagecache"
)

// counter counts the reads below.
type counter struct {
	*bytes.Reader
	reads int
}

func (c *counter) ReadAt(p []byte, off int64) (int, error) {
	c.reads++
	return c.Reader.ReadAt(p, off)
}

func TestReadsAreKeptUpToTheLimit(t *testing.T) {
	image := make([]byte, 3*pagecache.PageSize+100)
	for i := range image {
		image[i] = byte(i * 7 / 5)
	}
	r := &counter{Reader: bytes.NewReader(image)}
	c := pagecache.New(r, int64(len(image)), 2*pagecache.PageSize+400)
	read := func(n, off int) {
		t.Helper()
		p := make([]byte, n)
		if err := c.Read(p, int64(off)); err != nil || !bytes.Equal(p, image[off:off+n]) {
			t.Errorf("%d bytes at %d: %v", n, off, err)
		}
	}
	read(200, pagecache.PageSize-100) // pages 0 and 1
	read(pagecache.PageSize, 0)
	if r.reads != 2 {
		t.Errorf("%d reads of two pages", r.reads)
	}
	read(100, 3*pagecache.PageSize) // page 3 drives out page 1
	read(1, 0)
	if r.reads != 3 {
		t.Errorf("%d reads, page 0 should be kept", r.reads)
	}
	read(1, pagecache.PageSize)
	if r.reads != 4 {
		t.Errorf("%d reads, page 1 should have gone", r.reads)
	}
	for _, off := range []int64{-1, int64(len(image)), 1 << 62} {
		if err := c.Read(make([]byte, 1), off); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("read at %d: %v", off, err)
		}
	}
	if err := c.Read(make([]byte, 101), 3*pagecache.PageSize); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("read over the end: %v", err)
	}
}

func TestValuesAreKept(t *testing.T) {
	c := pagecache.New(bytes.NewReader(nil), 0, 1000)
	k := pagecache.Key{Class: 1, A: 2, B: 3}
	c.Put(k, "first", 10)
	c.Put(k, "second", 10)
	if v, ok := pagecache.Get[string](c, k); !ok || v != "first" {
		t.Errorf("%q, %v", v, ok)
	}
	c.Put(pagecache.Key{Class: 1}, "large", 900)
	if _, ok := pagecache.Get[string](c, k); ok {
		t.Error("the limit does not hold")
	}
}
