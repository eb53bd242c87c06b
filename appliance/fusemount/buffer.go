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

const (
	// bufferBytes is the largest read of the kernel.
	bufferBytes = 1 << 20
	// maxFree is how many buffers are kept.
	maxFree = 16
)

// buffers are the ones that nobody uses, the last one on top: it is still in the
// processor's cache. A sync.Pool loses them at each collection, and a new one costs as
// much as filling it.
var buffers struct {
	mu   sync.Mutex
	free []*buffer
}

func getBuffer(n int) *buffer {
	if n > bufferBytes {
		return &buffer{p: make([]byte, n)}
	}
	buffers.mu.Lock()
	defer buffers.mu.Unlock()
	b := &buffer{}
	if last := len(buffers.free) - 1; last >= 0 {
		b, buffers.free = buffers.free[last], buffers.free[:last]
	} else {
		b.full = make([]byte, bufferBytes)
	}
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
	if b.full == nil {
		return
	}
	buffers.mu.Lock()
	defer buffers.mu.Unlock()
	if len(buffers.free) < maxFree {
		buffers.free = append(buffers.free, b)
	}
}

var _ fuse.ReadResult = (*buffer)(nil)
