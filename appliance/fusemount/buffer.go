package fusemount

import (
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// buffer is a read's result. It belongs to the operation that fills it, then to
// go-fuse until Done. An operation that outlives its deadline keeps its buffer, so it
// cannot scribble over another's.
type buffer struct {
	p    []byte // the content
	full []byte
}

var buffers = sync.Pool{New: func() any { return &buffer{full: make([]byte, 1<<20)} }}

func getBuffer(n int) *buffer {
	if n > 1<<20 {
		return &buffer{p: make([]byte, n)}
	}
	b := buffers.Get().(*buffer)
	b.p = b.full[:n]
	return b
}

// Bytes is the content.
func (b *buffer) Bytes([]byte) ([]byte, fuse.Status) { return b.p, fuse.OK }

// Slices is the content for writev(2); with it go-fuse calls Done only after the
// write.
func (b *buffer) Slices() ([][]byte, fuse.Status) { return [][]byte{b.p}, fuse.OK }

// Size is the length of the content.
func (b *buffer) Size() int { return len(b.p) }

// Done gives the buffer back.
func (b *buffer) Done() {
	b.p = nil
	if b.full != nil {
		buffers.Put(b)
	}
}

var _ fuse.ReadResult = (*buffer)(nil)
