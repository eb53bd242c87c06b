package filerestore

import (
	"context"
	"fmt"
	"io"
	"sort"
	"time"

	"github.com/keelblock/keelblock/blockdev"
	"github.com/keelblock/keelblock/blockdev/filesystem"
)

const (
	// allocatedWait is how long stat(2) of a raw disk waits for its extents.
	allocatedWait = 200 * time.Millisecond
	// maxExtents bounds the list of a disk: 16 MiB of memory.
	maxExtents = 1 << 20
)

// extents are the ranges of a disk that hold data, ascending, being listed until
// ready is closed.
type extents struct {
	ready chan struct{}
	data  []blockdev.Extent
	err   error
}

// listExtents lists where the disk holds data, once, and waits for it as long as ctx
// allows.
func (d *disk) listExtents(ctx context.Context) (*extents, error) {
	d.mu.Lock()
	x := d.extents
	if x == nil {
		x = &extents{ready: make(chan struct{})}
		d.extents = x
		go func() {
			x.err = d.with(func(r Reader) error { return x.fill(r, d.size) })
			if x.err != nil { // the next caller tries again
				d.problems.add(fmt.Sprintf("find the holes of disk %q: %v", d.key.name, x.err))
				d.mu.Lock()
				if d.extents == x {
					d.extents = nil
				}
				d.mu.Unlock()
			}
			close(x.ready)
		}()
	}
	d.mu.Unlock()
	select {
	case <-x.ready:
		return x, x.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// fill asks the disk for its extents. When there are too many, holes between them that
// are small count as data: data may be reported where there is none, not the other
// way round.
func (x *extents) fill(r Reader, size int64) error {
	x.data = nil
	gap := int64(0)
	return r.Extents(0, size, func(e blockdev.Extent, s blockdev.ExtentStatus) bool {
		if s.Zero || e.Length <= 0 {
			return true
		}
		if n := len(x.data); n > 0 && e.Offset-x.data[n-1].End() <= gap {
			x.data[n-1].Length = e.End() - x.data[n-1].Offset
			return true
		}
		if len(x.data) == maxExtents {
			for len(x.data) > maxExtents/2 {
				gap = max(4096, gap*2)
				x.data = merge(x.data, gap)
			}
		}
		x.data = append(x.data, e)
		return true
	})
}

// merge joins extents that are at most gap apart.
func merge(data []blockdev.Extent, gap int64) []blockdev.Extent {
	out := data[:0]
	for _, e := range data {
		if n := len(out); n > 0 && e.Offset-out[n-1].End() <= gap {
			out[n-1].Length = e.End() - out[n-1].Offset
			continue
		}
		out = append(out, e)
	}
	return out
}

// from is the index of the first extent that ends behind off.
func (x *extents) from(off int64) int {
	return sort.Search(len(x.data), func(i int) bool { return x.data[i].End() > off })
}

// nextData is the first data at or after off in the part [start, start+size) of the
// disk; offsets count from start.
func (x *extents) nextData(start, size, off int64) (int64, error) {
	i := x.from(start + off)
	if i == len(x.data) || x.data[i].Offset >= start+size {
		return 0, filesystem.ErrNoData
	}
	return max(off, x.data[i].Offset-start), nil
}

// nextHole is the first hole at or after off; the end is one.
func (x *extents) nextHole(start, size, off int64) int64 {
	at := start + off
	for i := x.from(at); i < len(x.data) && x.data[i].Offset <= at; i++ {
		at = x.data[i].End()
	}
	return min(at-start, size)
}

// allocated is how many bytes of the part are data.
func (x *extents) allocated(start, size int64) int64 {
	var n int64
	for i := x.from(start); i < len(x.data) && x.data[i].Offset < start+size; i++ {
		n += min(x.data[i].End(), start+size) - max(x.data[i].Offset, start)
	}
	return n
}

// ioEOF is the error of a read that passes the end: io.ReaderAt has it.
func ioEOF(off int64) error {
	if off < 0 {
		return blockdev.ErrOutOfRange
	}
	return io.EOF
}
