package guestfiles

import (
	"context"
	"fmt"
	"sync"

	"github.com/keelblock/keelblock/blockdev"
)

// chunks are buffers for pieces of large files.
var chunks = sync.Pool{New: func() any { return new([chunkBytes]byte) }}

// chunk is a piece of a file that is being read until ready is closed.
type chunk struct {
	at    blockdev.Extent
	buf   *[chunkBytes]byte
	err   error
	ready chan struct{}
}

// stream reads ranges of a file in their order, a few pieces ahead, and yields them.
// What yield gets is valid until it returns.
func (n *Node) stream(ctx context.Context, data []blockdev.Extent, yield func(p []byte, off int64) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	window := make(chan *chunk, chunksAtOnce)
	go func() {
		defer close(window)
		for _, e := range data {
			for ; e.Length > 0; e.Offset, e.Length = e.Offset+chunkBytes, e.Length-chunkBytes {
				c := &chunk{at: blockdev.Extent{Offset: e.Offset, Length: min(e.Length, chunkBytes)},
					buf: chunks.Get().(*[chunkBytes]byte), ready: make(chan struct{})}
				select {
				case window <- c:
				case <-ctx.Done():
					return
				}
				go func() {
					defer close(c.ready)
					c.err = n.readAt(ctx, c.buf[:c.at.Length], c.at.Offset)
				}()
			}
		}
	}()
	for c := range window {
		<-c.ready
		if c.err != nil {
			return fmt.Errorf("read %d bytes at %d: %w", c.at.Length, c.at.Offset, c.err)
		}
		if err := yield(c.buf[:c.at.Length], c.at.Offset); err != nil {
			return err
		}
		chunks.Put(c.buf)
	}
	return ctx.Err()
}

// allData lists all ranges of data. More than maxRanges become one.
func (n *Node) allData(ctx context.Context, in contents) ([]blockdev.Extent, error) {
	const maxRanges = 1 << 20
	data := in.data
	for in.end < n.attr.Size {
		if len(data) >= maxRanges {
			return append(data, blockdev.Extent{Offset: in.end, Length: n.attr.Size - in.end}), nil
		}
		var err error
		if in, err = n.moreData(ctx, in.end); err != nil {
			return nil, err
		}
		data = append(data, in.data...)
	}
	return data, nil
}
