package blockstore

import (
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/klauspost/compress"
	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"

	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/pack"
)

const (
	// probeBytes are looked at, at each of probes places, before a block is compressed.
	probeBytes = 512
	probes     = 4
	// minEstimate is compress.Estimate of content that is worth trying: 0 is
	// random, 1 is all the same.
	minEstimate = 0.02
)

// codec compresses and decompresses records. All methods may be called from any
// number of goroutines.
type codec struct {
	kind atomic.Uint32 // the Compression of new records
	enc  *zstd.Encoder
	dec  *zstd.Decoder
	bufs sync.Pool // of *[]byte, for a record's header and payload
}

func newCodec(kind Compression) (*codec, error) {
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderCRC(false),
		zstd.WithEncoderConcurrency(runtime.GOMAXPROCS(0)), zstd.WithWindowSize(dedupe.MaxBlockSize), zstd.WithSingleSegment(true))
	if err != nil {
		return nil, fmt.Errorf("make zstd encoder: %w", err)
	}
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecodeAllCapLimit(true),
		zstd.WithDecoderMaxMemory(2*pack.MaxPayloadSize))
	if err != nil {
		return nil, fmt.Errorf("make zstd decoder: %w", err)
	}
	c := &codec{enc: enc, dec: dec}
	c.kind.Store(uint32(kind))
	return c, nil
}

func (c *codec) close() {
	_ = c.enc.Close() // it has no writer
	c.dec.Close()
}

// buffer is a pooled record buffer with room for a header and n bytes. The caller
// owns it until it gives it back by put.
func (c *codec) buffer(n int) *[]byte {
	b, _ := c.bufs.Get().(*[]byte)
	if b == nil || cap(*b) < pack.RecordHeaderSize+n {
		s := make([]byte, 0, pack.RecordHeaderSize+n+n/8+64)
		b = &s
	}
	*b = (*b)[:pack.RecordHeaderSize]
	return b
}

func (c *codec) put(b *[]byte) { c.bufs.Put(b) }

// appendPayload appends content to a record buffer, compressed when that saves at
// least a sixteenth: a raw record is read with less work. Content of parts that may be
// alike, as the pages in a bundle are, is tried without a look at a few places first:
// that one place is like another does not show there.
func (c *codec) appendPayload(buf, content []byte, parts bool) ([]byte, pack.Codec) {
	kind := Compression(c.kind.Load())
	if kind == CompressionNone || !parts && !compressible(content) {
		return append(buf, content...), pack.CodecRaw
	}
	out, codec := buf, pack.CodecZstd
	if kind == CompressionS2 {
		n := len(buf)
		out = slices.Grow(out, s2.MaxEncodedLen(len(content)))
		out = out[:n+len(s2.Encode(out[n:cap(out)], content))]
		codec = pack.CodecS2
	} else {
		out = c.enc.EncodeAll(content, out)
	}
	if len(out)-len(buf) > len(content)-len(content)/16 {
		return append(out[:len(buf)], content...), pack.CodecRaw
	}
	return out, codec
}

// compressible looks at a few places of content.
func compressible(content []byte) bool {
	if len(content) < probes*probeBytes*2 {
		return true
	}
	step := len(content) / probes
	for i := range probes {
		if compress.Estimate(content[i*step:][:probeBytes]) >= minEstimate {
			return true
		}
	}
	return false
}

// decode returns a record's content, in dst's storage when it has the capacity.
// payload, opened if it was sealed, is not retained unless it stands in dst already.
func (c *codec) decode(r *pack.Record, payload, dst []byte) ([]byte, error) {
	if r.Encoding != pack.EncodingWhole && r.Kind != pack.KindBundle {
		return nil, fmt.Errorf("record with encoding %d: %w", r.Encoding, dedupe.ErrUnknownFormat)
	}
	n := int(r.LogicalLength)
	if cap(dst) < n {
		dst = make([]byte, n)
	}
	dst = dst[:0:n]
	var err error
	switch r.Codec {
	case pack.CodecRaw:
		if len(payload) != n {
			return nil, fmt.Errorf("raw record of %d bytes, want %d: %w", len(payload), n, dedupe.ErrCorrupt)
		}
		if n > 0 && &payload[0] == &dst[:1][0] { // it was decrypted to there
			return payload, nil
		}
		return append(dst, payload...), nil
	case pack.CodecZstd:
		dst, err = c.dec.DecodeAll(payload, dst)
	case pack.CodecS2:
		var got int
		if got, err = s2.DecodedLen(payload); err == nil && got == n {
			dst, err = s2.Decode(dst[:n], payload)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("decompress: %w: %w", err, dedupe.ErrCorrupt)
	}
	if len(dst) != n {
		return nil, fmt.Errorf("decompressed to %d bytes, want %d: %w", len(dst), n, dedupe.ErrCorrupt)
	}
	return dst, nil
}
