package recoverypoint

import (
	"context"
	"fmt"

	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/hashtree"
)

// Content refers to bytes that are kept as blocks of the store: a definition, a
// change set. The zero Content is absent.
type Content struct {
	// Length of the bytes, at most MaxContentBytes.
	Length    int64
	BlockSize int
	// Blocks are their digests; a zero digest is a block of zeros.
	Blocks []dedupe.Digest
}

// IsZero reports whether c is absent.
func (c Content) IsZero() bool { return c.Length == 0 }

func (c Content) validate() error {
	if c.Length == 0 && c.BlockSize == 0 && len(c.Blocks) == 0 {
		return nil
	}
	if c.Length <= 0 || c.Length > MaxContentBytes || c.BlockSize < dedupe.MinBlockSize || c.BlockSize > dedupe.MaxBlockSize ||
		int64(len(c.Blocks)) != (c.Length+int64(c.BlockSize)-1)/int64(c.BlockSize) {
		return invalid("content of %d bytes in %d blocks of %d", c.Length, len(c.Blocks), c.BlockSize)
	}
	return nil
}

// blockPutter is the part of dedupe.Batch that PutContent needs.
type blockPutter interface {
	PutBlock(ctx context.Context, p []byte) (dedupe.Put, error)
}

// PutContent stores p as blocks of the batch, at most MaxContentBytes.
func PutContent(ctx context.Context, b blockPutter, blockSize int, p []byte) (Content, error) {
	if len(p) == 0 {
		return Content{}, nil
	}
	if len(p) > MaxContentBytes {
		return Content{}, invalid("content of %d bytes is longer than %d", len(p), MaxContentBytes)
	}
	c := Content{Length: int64(len(p)), BlockSize: blockSize}
	buf := make([]byte, blockSize)
	for len(p) > 0 {
		n := copy(buf, p)
		clear(buf[n:])
		p = p[n:]
		var d dedupe.Digest
		if !isZero(buf) {
			put, err := b.PutBlock(ctx, buf)
			if err != nil {
				return Content{}, fmt.Errorf("store content: %w", err)
			}
			d = put.Digest
		}
		c.Blocks = append(c.Blocks, d)
	}
	return c, c.validate()
}

// LoadContent reads back what PutContent stored.
func LoadContent(ctx context.Context, g hashtree.Getter, c Content) ([]byte, error) {
	if err := c.validate(); err != nil {
		return nil, err
	}
	out := make([]byte, 0, int64(len(c.Blocks))*int64(c.BlockSize))
	for i, d := range c.Blocks {
		at := len(out)
		out = out[:at+c.BlockSize]
		if d.IsZero() {
			continue
		}
		p, err := g.Get(ctx, dedupe.KindBlock, d, out[at:at:at+c.BlockSize])
		if err != nil {
			return nil, fmt.Errorf("read content block %d: %w", i, err)
		}
		if len(p) != c.BlockSize {
			return nil, fmt.Errorf("read content block %d: %d bytes, want %d: %w", i, len(p), c.BlockSize, dedupe.ErrCorrupt)
		}
		copy(out[at:], p)
	}
	return out[:c.Length], nil
}

func isZero(p []byte) bool {
	for _, v := range p {
		if v != 0 {
			return false
		}
	}
	return true
}
