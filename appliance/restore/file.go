package restore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/keelblock/keelblock/appliance/job"
	"github.com/keelblock/keelblock/blockdev"
	"github.com/keelblock/keelblock/dedupe/recoverypoint"
)

// ErrUnsuitable: the daemon does not write to such a file; the client reads the disk
// through an export and writes it himself.
var ErrUnsuitable = errors.New("the daemon does not write to this file")

// File is what ToFile fills.
type File struct {
	*os.File
	// Progress is told bytes of data done, and of how many, from any goroutine; it must
	// not block. nil: none.
	Progress func(done, total int64)
}

// localFS are the file systems, by statfs(2), that a daemon's thread may wait for: those
// of a process of the user or of another machine could keep it for ever.
var localFS = map[uint32]bool{unix.EXT4_SUPER_MAGIC: true, unix.XFS_SUPER_MAGIC: true, unix.BTRFS_SUPER_MAGIC: true,
	unix.TMPFS_MAGIC: true, unix.F2FS_SUPER_MAGIC: true}

// nbdMajor is the major number of /dev/nbdN: a file system there may be on a disk that
// this daemon serves.
const nbdMajor = 43

// suitable looks at a file before a byte of it is written.
func suitable(f *os.File) error {
	fd := int(f.Fd())
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil {
		return err
	}
	var st unix.Stat_t
	var fs unix.Statfs_t
	if err := errors.Join(unix.Fstat(fd, &st), unix.Fstatfs(fd, &fs)); err != nil {
		return err
	}
	writes := flags&unix.O_ACCMODE == unix.O_WRONLY || flags&unix.O_ACCMODE == unix.O_RDWR
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFREG, st.Size != 0, !writes, flags&(unix.O_APPEND|unix.O_PATH) != 0:
		return fmt.Errorf("%w: it is not an empty file that is open for writing", ErrUnsuitable)
	case !localFS[uint32(fs.Type)], unix.Major(st.Dev) == nbdMajor:
		return fmt.Errorf("%w: its file system may wait for others", ErrUnsuitable)
	}
	return nil
}

// ToFile writes a disk of a point to an empty file of a caller who is of the daemon's own
// user, sparse, and returns what was written. The caller syncs it, and removes it after
// an error. ErrUnsuitable before anything was written; it is not closed.
//
// It is what a client does who reads an export, without the way through a socket: each
// worker decodes a piece and writes it from where it stands, in the cache of its core.
// Measured on two cores, both builds in turn, 1.2 GB with 64 MiB of scattered patches, the
// first restore of a daemon and its second: through the socket 4.8 s and 2.5 s, 3.1 s and
// 2.5 s; so 2.5 s and 1.8 s, 2.5 s and 1.9 s (2026-11-22).
func (e *Engine) ToFile(ctx context.Context, point, disk string, f File) (sizeBytes, written int64, err error) {
	if err := suitable(f.File); err != nil {
		return 0, 0, err
	}
	h, p, d, err := e.o.Vaults.FindDisk(ctx, point, disk)
	if err != nil {
		return 0, 0, err
	}
	op := fmt.Sprintf("restore disk %q of recovery point %s to a file", d.Name, p.ID)
	unpin, err := e.o.Vaults.Pin(p.ID, op)
	if err != nil {
		return 0, 0, err
	}
	defer unpin()
	src, err := recoverypoint.OpenDisk(ctx, h.Store, h.Cache, p.Manifest, d.Name)
	if err == nil {
		c := &fileCopier{src: src, f: f}
		err = errors.Join(c.run(ctx, e.o.Workers), src.Close())
		sizeBytes, written = src.Size(), c.written.Load()
	}
	if err != nil {
		return 0, 0, fmt.Errorf("%s: %w", op, err)
	}
	return sizeBytes, written, nil
}

// fileCopier fills a file.
type fileCopier struct {
	src           *recoverypoint.Device
	f             File
	total         int64
	done, written atomic.Int64
}

func (c *fileCopier) run(ctx context.Context, workers int) error {
	if err := c.f.Truncate(c.src.Size()); err != nil {
		return fmt.Errorf("make it %d bytes long: %w", c.src.Size(), err)
	}
	list, err := c.pieces(ctx)
	if err != nil {
		return err
	}
	c.src.Copying()
	var next atomic.Int64
	g, ctx := errgroup.WithContext(ctx)
	for range workers {
		g.Go(func() error {
			job.Background() // as in copy
			buf := make([]byte, pieceBytes)
			for {
				i := int(next.Add(1)) - 1
				if i >= len(list) || ctx.Err() != nil {
					return context.Cause(ctx)
				}
				x := list[i]
				if err := c.piece(x, buf[:x.Length]); err != nil {
					return err
				}
				if done := c.done.Add(x.Length); c.f.Progress != nil {
					c.f.Progress(done, c.total)
				}
			}
		})
	}
	return g.Wait()
}

// pieces are parts of the disk from data to data, each within one MiB: blocks that lie
// scattered are read together, with the holes between them.
func (c *fileCopier) pieces(ctx context.Context) (list []blockdev.Extent, err error) {
	err = c.src.Extents(0, c.src.Size(), func(x blockdev.Extent, s blockdev.ExtentStatus) bool {
		for !s.Zero && x.Length > 0 {
			n := min(x.Length, pieceBytes-x.Offset%pieceBytes)
			if last := len(list) - 1; last >= 0 && list[last].Offset/pieceBytes == x.Offset/pieceBytes {
				list[last].Length = x.Offset + n - list[last].Offset
			} else {
				list = append(list, blockdev.Extent{Offset: x.Offset, Length: n})
			}
			x.Offset, x.Length = x.Offset+n, x.Length-n
		}
		return ctx.Err() == nil
	})
	for _, x := range list {
		c.total += x.Length
	}
	return list, errors.Join(err, ctx.Err())
}

// piece writes what is not zeros of one piece.
func (c *fileCopier) piece(x blockdev.Extent, buf []byte) error {
	if _, err := c.src.ReadAt(buf, x.Offset); err != nil {
		return err
	}
	for from := 0; from < len(buf); {
		to := from
		for to < len(buf) && !isZero(grain(buf, to)) {
			to += len(grain(buf, to))
		}
		if to > from {
			off := x.Offset + int64(from)
			if _, err := c.f.WriteAt(buf[from:to], off); err != nil {
				return fmt.Errorf("write %d bytes at %d: %w", to-from, off, err)
			}
			c.written.Add(int64(to - from))
		}
		for to < len(buf) && isZero(grain(buf, to)) {
			to += len(grain(buf, to))
		}
		from = to
	}
	// The disk begins to write while the rest is being decoded. A hint: errors show in
	// the caller's sync.
	_ = unix.SyncFileRange(int(c.f.Fd()), x.Offset, x.Length, unix.SYNC_FILE_RANGE_WRITE)
	return nil
}
