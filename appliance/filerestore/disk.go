package filerestore

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/keelblock/keelblock/blockdev"
	"github.com/keelblock/keelblock/blockdev/nbd"
)

const (
	// openTimeout bounds how long a read waits for a disk to be opened.
	openTimeout = 20 * time.Second
	// smallRead and larger reads go past the cache: they are file contents.
	smallRead = 64 << 10
)

// disk is a disk of a point, opened when it is used.
type disk struct {
	tree     *Tree
	key      diskKey
	size     int64
	problems problemLog

	openMu sync.Mutex // held while opening; taken before mu

	mu      sync.Mutex
	conn    *conn
	used    time.Time
	extents *extents
}

// conn is an open reader with its users. It is closed when it was dropped and the last
// user has left.
type conn struct {
	reader  Reader
	users   int
	dropped bool
}

// acquire returns the open reader, opening it if need be. release must follow.
func (d *disk) acquire() (*conn, error) {
	if c := d.current(); c != nil {
		return c, nil
	}
	d.openMu.Lock()
	defer d.openMu.Unlock()
	if c := d.current(); c != nil {
		return c, nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), openTimeout)
	defer cancel()
	r, err := d.tree.source.Open(ctx, d.key.point, d.key.name)
	if err != nil {
		return nil, fmt.Errorf("open disk %q: %w", d.key.name, err)
	}
	if r.Size() != d.size {
		err := fmt.Errorf("open disk %q: it has %d bytes and should have %d", d.key.name, r.Size(), d.size)
		r.Close()
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.conn = &conn{reader: r, users: 1}
	d.used = time.Now()
	return d.conn, nil
}

func (d *disk) current() *conn {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.conn == nil {
		return nil
	}
	d.conn.users++
	d.used = time.Now()
	return d.conn
}

func (d *disk) release(c *conn) {
	d.mu.Lock()
	c.users--
	last := c.dropped && c.users == 0
	d.mu.Unlock()
	if last {
		c.reader.Close()
	}
}

// drop makes the next acquire open anew; the caller is a user of c.
func (d *disk) drop(c *conn) {
	d.mu.Lock()
	defer d.mu.Unlock()
	c.dropped = true
	if d.conn == c {
		d.conn = nil
	}
}

// with runs fn on the open disk. When it fails and not because the daemon said so, the
// connection has broken: it is made anew and fn runs once more.
func (d *disk) with(fn func(r Reader) error) error {
	for try := 0; ; try++ {
		c, err := d.acquire()
		if err != nil {
			return err
		}
		err = fn(c.reader)
		broken := err != nil && !answered(err)
		if broken {
			d.drop(c)
		}
		d.release(c)
		if !broken || try == 1 {
			return err
		}
	}
}

// answered says whether an error is the daemon's answer to a request, and not the loss
// of the connection. A daemon that ends answers too, and the next one may do better.
func answered(err error) bool {
	var errno nbd.Errno
	if errors.As(err, &errno) {
		return errno != nbd.ESHUTDOWN
	}
	return errors.Is(err, blockdev.ErrCorrupt) || errors.Is(err, blockdev.ErrOutOfRange)
}

// closeIdle closes a disk that nobody used for that long, forgets what was read, and says
// whether it did.
func (d *disk) closeIdle(after time.Duration) bool {
	d.mu.Lock()
	c := d.conn
	if c == nil || c.users > 0 || time.Since(d.used) < after {
		d.mu.Unlock()
		return false
	}
	d.conn, d.extents = nil, nil
	d.mu.Unlock()
	c.reader.Close()
	d.tree.cache.forget(d)
	return true
}

// ReadAt is what file system readers read through: small reads are cached.
func (d *disk) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off >= d.size {
		return 0, ioEOF(off)
	}
	short := int64(len(p)) > d.size-off
	if short {
		p = p[:d.size-off]
	}
	var err error
	if len(p) >= smallRead {
		err = d.read(p, off)
	} else {
		err = d.tree.cache.read(d, p, off)
	}
	if err != nil {
		return 0, err
	}
	if short {
		return len(p), ioEOF(off)
	}
	return len(p), nil
}

// read fills p, which lies inside the disk.
func (d *disk) read(p []byte, off int64) error {
	return d.with(func(r Reader) error {
		if _, err := r.ReadAt(p, off); err != nil {
			return fmt.Errorf("read %d bytes at %d of disk %q: %w", len(p), off, d.key.name, err)
		}
		return nil
	})
}

// diskImage is a disk, or a part of it, as a raw file.
type diskImage struct {
	disk   *disk
	offset int64
	size   int64
}

// Size is the number of bytes.
func (i diskImage) Size() int64 { return i.size }

// ReadAt fills p.
func (i diskImage) ReadAt(_ context.Context, p []byte, off int64) error {
	err := i.disk.read(p, i.offset+off)
	if err != nil {
		i.disk.problems.add(err.Error())
	}
	return err
}

// NextData finds data.
func (i diskImage) NextData(ctx context.Context, off int64) (int64, error) {
	x, err := i.disk.listExtents(ctx)
	if err != nil {
		return 0, err
	}
	return x.nextData(i.offset, i.size, off)
}

// NextHole finds a hole.
func (i diskImage) NextHole(ctx context.Context, off int64) (int64, error) {
	x, err := i.disk.listExtents(ctx)
	if err != nil {
		return 0, err
	}
	return x.nextHole(i.offset, i.size, off), nil
}

// AllocatedBytes is exact when the extents could be listed quickly. Until then it is
// a little less than all: programs that copy sparse files look for holes only in a
// file that takes less room than its size, and take one that takes none for empty.
func (i diskImage) AllocatedBytes(ctx context.Context) (int64, bool) {
	ctx, cancel := context.WithTimeout(ctx, allocatedWait)
	defer cancel()
	x, err := i.disk.listExtents(ctx)
	if err != nil {
		return max(i.size-4096, min(i.size, blockdev.SectorSize)), false
	}
	return x.allocated(i.offset, i.size), true
}
