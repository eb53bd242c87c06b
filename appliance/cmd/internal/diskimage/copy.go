package diskimage

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"sync"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/keelblock/keelblock/blockdev"
)

const (
	// pieceBytes is the size of one request.
	pieceBytes = 1 << 20
	// Workers is how many requests are in flight. A write to a file holds a thread, and
	// until the runtime notices, for 20 µs to 10 ms, the place of one that could go on
	// reading: a process that does nothing else does well to have GOMAXPROCS at least
	// this high.
	Workers = 8
	// zeroBytes is the grain in which zeros are looked for in data.
	zeroBytes = 4096
)

var zeros [zeroBytes]byte

// Progress is told the bytes that were done since it was last called; holes count.
type Progress func(bytes int64)

// Report says what a copy did.
type Report struct {
	SizeBytes    int64 // of the disk
	WrittenBytes int64 // that were not zeros
}

// copier sends the data of a source to a writer in pieces, many at once.
type copier struct {
	write    func(p []byte, off int64) error // of a run without zero grains
	progress Progress
	mu       sync.Mutex
	written  int64
}

// run calls read for each piece of each extent that extents yields.
func (c *copier) run(ctx context.Context, read func(p []byte, off int64) error, extents func(yield func(blockdev.Extent) bool) error) (int64, error) {
	outer := ctx
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(Workers)
	buffers := sync.Pool{New: func() any { b := make([]byte, pieceBytes); return &b }}
	err := extents(func(e blockdev.Extent) bool {
		for off := e.Offset; off < e.End(); {
			n := min(e.End(), (off/pieceBytes+1)*pieceBytes) - off
			at := off
			off += n
			if ctx.Err() != nil {
				return false
			}
			g.Go(func() error {
				if err := ctx.Err(); err != nil {
					return err
				}
				b := buffers.Get().(*[]byte)
				defer buffers.Put(b)
				p := (*b)[:n]
				if err := read(p, at); err != nil {
					return err
				}
				return c.piece(p, at)
			})
		}
		return true
	})
	if werr := g.Wait(); werr != nil {
		err = werr
	}
	if err == nil {
		err = outer.Err()
	}
	return c.written, err
}

// piece writes the runs of p that are not zero.
func (c *copier) piece(p []byte, off int64) error {
	var written int64
	for i := 0; i < len(p); {
		for i < len(p) && isZero(p[i:min(i+zeroBytes, len(p))]) {
			i = min(i+zeroBytes, len(p))
		}
		start := i
		for i < len(p) && !isZero(p[i:min(i+zeroBytes, len(p))]) {
			i = min(i+zeroBytes, len(p))
		}
		if i > start {
			if err := c.write(p[start:i], off+int64(start)); err != nil {
				return err
			}
			written += int64(i - start)
		}
	}
	c.mu.Lock()
	c.written += written
	c.mu.Unlock()
	if c.progress != nil {
		c.progress(int64(len(p)))
	}
	return nil
}

func isZero(p []byte) bool { return bytes.Equal(p, zeros[:len(p)]) }

// dataExtents yields what may hold something else than zeros, and tells progress of
// the rest.
func dataExtents(d blockdev.Device, progress Progress) func(yield func(blockdev.Extent) bool) error {
	size := d.Size()
	lister, ok := d.(blockdev.ExtentLister)
	return func(yield func(blockdev.Extent) bool) error {
		if !ok {
			yield(blockdev.Extent{Length: size})
			return nil
		}
		return lister.Extents(0, size, func(e blockdev.Extent, s blockdev.ExtentStatus) bool {
			if s.Zero {
				if progress != nil {
					progress(e.Length)
				}
				return true
			}
			return yield(e)
		})
	}
}

func readDevice(d blockdev.Device) func(p []byte, off int64) error {
	return func(p []byte, off int64) error {
		_, err := d.ReadAt(p, off)
		if err != nil {
			return fmt.Errorf("read %d bytes at %d: %w", len(p), off, err)
		}
		return nil
	}
}

// WriteRaw copies a disk to an empty file, sparse.
func WriteRaw(ctx context.Context, f File, d blockdev.Device, progress Progress) (Report, error) {
	if err := f.Truncate(d.Size()); err != nil {
		return Report{}, err
	}
	c := copier{progress: progress, write: func(p []byte, off int64) error {
		_, err := f.WriteAt(p, off)
		if o, ok := f.(interface{ Fd() uintptr }); ok {
			// The disk begins to write while the rest is still being read; the sync at
			// the end is then short. A hint: errors show there.
			_ = unix.SyncFileRange(int(o.Fd()), off, int64(len(p)), unix.SYNC_FILE_RANGE_WRITE)
		}
		return err
	}}
	n, err := c.run(ctx, readDevice(d), dataExtents(d, progress))
	return Report{SizeBytes: d.Size(), WrittenBytes: n}, err
}

// File is what is written to: *os.File.
type File interface {
	io.WriterAt
	Truncate(size int64) error
}

// Source is what is imported: *os.File.
type Source interface {
	io.ReaderAt
	Fd() uintptr
}

// ReadRaw copies size bytes of a raw file to a disk that holds only zeros.
func ReadRaw(ctx context.Context, d blockdev.Device, f Source, size int64, progress Progress) (Report, error) {
	if size > d.Size() {
		return Report{}, fmt.Errorf("file of %d bytes does not fit a disk of %d", size, d.Size())
	}
	c := copier{progress: progress, write: func(p []byte, off int64) error {
		_, err := d.WriteAt(p, off)
		return err
	}}
	read := func(p []byte, off int64) error {
		n, err := f.ReadAt(p, off)
		if err == io.EOF && n == len(p) {
			err = nil
		}
		if err != nil {
			return fmt.Errorf("read %d bytes at %d: %w", len(p), off, err)
		}
		return nil
	}
	n, err := c.run(ctx, read, fileExtents(f, size, progress))
	if err == nil {
		err = d.Flush()
	}
	return Report{SizeBytes: d.Size(), WrittenBytes: n}, err
}
