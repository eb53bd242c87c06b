package btrfs

import (
	"bytes"
	"compress/zlib"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"

	"github.com/keelblock/keelblock/blockdev/filesystem/lru"
)

// Compressions (BTRFS_COMPRESS_*).
const (
	compressionZlib = 1
	compressionLZO  = 2
	compressionZstd = 3
	compressionMax  = compressionZstd
)

// whole is the whole of an inline or compressed extent, decompressed. It must not be
// changed, and reads as zeros behind its end.
func (f *FS) whole(e *extent, sums bool) ([]byte, error) {
	if e.kind == extentInline {
		if e.compression == 0 {
			return e.inline[:e.ram], nil
		}
		return f.decompress(e.compression, e.inline, int(e.ram), true)
	}
	k := lru.Key{Class: classExtent, A: e.disk, B: e.diskLen<<32 | e.ram}
	if !sums {
		k.Class++ // what was verified is not taken from what was not
	}
	if whole, ok := lru.Get[[]byte](f.data, k); ok {
		return whole, nil
	}
	p := make([]byte, e.diskLen)
	if _, err := f.readSectors(e.disk, p, sums); err != nil {
		return nil, err
	}
	whole, err := f.decompress(e.compression, p, int(e.ram), false)
	if err != nil {
		return nil, err
	}
	f.data.Put(k, whole, len(whole))
	return whole, nil
}

// decompress gives at most ram bytes. The last sector of an extent may end with the
// file that was compressed.
func (f *FS) decompress(compression uint8, p []byte, ram int, inline bool) (out []byte, err error) {
	switch compression {
	case compressionZlib:
		out, err = decompressZlib(p, ram)
	case compressionLZO:
		out, err = decompressLZO(p, ram, f.super.sectorSize)
	case compressionZstd:
		out, err = f.decompressZstd(p, ram)
	default:
		return nil, unsupportedf("compression %d", compression)
	}
	if err != nil {
		return nil, err
	}
	if !inline && len(out) <= ram-f.super.sectorSize {
		return nil, corruptf("%d bytes are compressed to decompress to %d", len(out), ram)
	}
	return out, nil
}

func decompressZlib(p []byte, ram int) ([]byte, error) {
	r, err := zlib.NewReader(bytes.NewReader(p))
	if err != nil {
		return nil, corruptf("zlib: %s", err)
	}
	out := make([]byte, ram)
	n, err := io.ReadFull(r, out)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && err != io.EOF {
		return nil, corruptf("zlib: %s", err)
	}
	// The stream must have ended there; a cut one is an error too.
	if err != nil {
		var one [1]byte
		if _, err := r.Read(one[:]); err != io.EOF {
			return nil, corruptf("zlib: stream of %d bytes is cut short", n)
		}
	}
	return out[:n], nil
}

// newZstd makes the decoder of a volume. It holds what it needs for as many blocks at
// once as are decompressed at once.
func newZstd() (*zstd.Decoder, error) {
	return zstd.NewReader(nil, zstd.WithDecoderConcurrency(4), zstd.WithDecoderMaxWindow(maxCompressed<<3),
		zstd.WithDecoderMaxMemory(maxCompressed<<3), zstd.WithDecodeAllCapLimit(true), zstd.WithDecoderLowmem(true))
}

func (f *FS) decompressZstd(p []byte, ram int) ([]byte, error) {
	n, err := zstdFrame(p)
	if err != nil {
		return nil, err
	}
	out, err := f.zstd.DecodeAll(p[:n], make([]byte, 0, ram))
	if err != nil {
		return nil, corruptf("zstd: %s", err)
	}
	return out, nil
}

// zstdFrame is the length of the frame at the front of p, behind which there may be
// anything up to the end of the sector (RFC 8878, section 3.1.1).
func zstdFrame(p []byte) (int, error) {
	var h zstd.Header
	if err := h.Decode(p); err != nil {
		return 0, corruptf("zstd: %s", err)
	}
	if h.Skippable {
		return 0, corruptf("zstd: frame without data")
	}
	for at := h.HeaderSize; at+3 <= len(p); {
		b := uint32(p[at]) | uint32(p[at+1])<<8 | uint32(p[at+2])<<16
		size := int(b >> 3)
		if b>>1&3 == 1 { // one byte, repeated
			size = 1
		}
		at += 3 + size
		if b&1 == 0 {
			continue
		}
		if h.HasCheckSum {
			at += 4
		}
		if at <= len(p) {
			return at, nil
		}
	}
	return 0, corruptf("zstd: frame is cut short")
}

// decompressLZO reads the pieces into which btrfs cuts what LZO compresses: the
// length of all, then the length of each and its bytes, which give a sector or less.
// A length does not cross the end of a sector (fs/btrfs/lzo.c).
func decompressLZO(p []byte, ram, sector int) ([]byte, error) {
	le := binary.LittleEndian
	if len(p) < 8 {
		return nil, corruptf("lzo: %d bytes", len(p))
	}
	total := int(le.Uint32(p))
	if total < 8 || total > len(p) {
		return nil, corruptf("lzo: %d of %d bytes", total, len(p))
	}
	p = p[:total]
	out := make([]byte, 0, ram)
	for at := 4; at < total && len(out) < ram; {
		if left := sector - at%sector; left < 4 {
			if at += left; at >= total {
				break
			}
		}
		if at+4 > total {
			return nil, corruptf("lzo: cut short")
		}
		n := int(le.Uint32(p[at:]))
		at += 4
		if n <= 0 || n > total-at {
			return nil, corruptf("lzo: piece of %d bytes", n)
		}
		var err error
		if out, err = lzo1x(out, p[at:at+n], min(sector, ram-len(out))); err != nil {
			return nil, fmt.Errorf("lzo: %w", err)
		}
		at += n
	}
	return out, nil
}
