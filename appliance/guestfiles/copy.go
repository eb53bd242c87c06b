package guestfiles

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/keelblock/keelblock/blockdev"
	"github.com/keelblock/keelblock/blockdev/filesystem"
)

const (
	// copyWorkers are how many files are copied at once. They wait for the daemon and
	// for the disk more than they compute.
	copyWorkers = 8
	// chunkBytes is how much of a large file is read at once, and chunksAtOnce how
	// many chunks of it are under way.
	chunkBytes   = 1 << 20
	chunksAtOnce = 3
)

// CopyOptions of a copy.
type CopyOptions struct {
	// Force replaces files that exist. A folder is never replaced by a file, nor a
	// file by a folder.
	Force bool
	// Failed is told of each file that could not be copied, from several goroutines,
	// one at a time.
	Failed func(path string, err error)
	// Progress, when not nil, is told of bytes as they are written, from several
	// goroutines.
	Progress func(bytes int64)
}

// CopyStats count what a copy did.
type CopyStats struct {
	Files, Folders, Failed int64
	Bytes                  int64 // of data, without holes
	// SkippedAttributes are extended attributes that only root may set.
	SkippedAttributes int64
}

// ErrExists is the reason why a file that is there already was not copied.
var ErrExists = errors.New("it exists")

// copier is a copy under way.
type copier struct {
	o      CopyOptions
	root   bool // we may give files away
	jobs   chan copyJob
	buffer sync.Pool
	temp   atomic.Uint64 // counts temporary names

	failMu sync.Mutex

	linkMu sync.Mutex
	links  map[key]*firstLink

	files, folders, failed, bytes, skipped atomic.Int64
}

// firstLink is the copy of a file that has more names.
type firstLink struct {
	mu   sync.Mutex // held while the file is copied
	left uint32     // names not met yet
	dir  *destDir   // nil until it is copied
	name string
}

type copyJob struct {
	from Found
	dir  *destDir
	name string
}

// Copy copies nodes, folders with all that is below, to names in the folder dest, which
// exists. It keeps owners (as root), modes, times to the nanosecond, extended
// attributes and ACLs, symbolic and hard links, holes, and devices (as root). Links
// between several nodes of one call are kept too. A node that is a folder whose name
// exists as a folder is merged into it.
//
// The error is of the copy as a whole: dest cannot be opened, or ctx ended. What could
// not be copied is told to Failed and counted.
func Copy(ctx context.Context, dest string, nodes map[string]Found, o CopyOptions) (CopyStats, error) {
	fd, err := openDir(unix.AT_FDCWD, dest, 0)
	if err != nil {
		return CopyStats{}, &os.PathError{Op: "open folder", Path: dest, Err: err}
	}
	c := &copier{o: o, root: os.Geteuid() == 0, jobs: make(chan copyJob, 64), links: make(map[key]*firstLink)}
	c.buffer.New = func() any { return new([chunkBytes]byte) }
	top := &destDir{copier: c, fd: fd}
	top.refs.Store(1)
	var workers sync.WaitGroup
	for range copyWorkers {
		workers.Go(func() {
			for j := range c.jobs {
				if err := c.file(ctx, j); err != nil {
					c.fail(ctx, j.from.Path, err)
				}
				j.dir.release(ctx)
			}
		})
	}
	for name, n := range nodes {
		c.enqueue(ctx, n, top, name, NewVisits(), 0)
	}
	close(c.jobs)
	workers.Wait()
	top.release(ctx)
	return CopyStats{Files: c.files.Load(), Folders: c.folders.Load(), Failed: c.failed.Load(), Bytes: c.bytes.Load(), SkippedAttributes: c.skipped.Load()}, ctx.Err()
}

func (c *copier) fail(ctx context.Context, path string, err error) {
	if ctx.Err() != nil {
		return // the whole copy ends
	}
	c.failed.Add(1)
	c.failMu.Lock()
	defer c.failMu.Unlock()
	if c.o.Failed != nil {
		c.o.Failed(path, err)
	}
}

// enqueue copies a folder, and hands other files to the workers.
func (c *copier) enqueue(ctx context.Context, from Found, dir *destDir, name string, visits Visits, depth int) {
	if ctx.Err() != nil {
		return
	}
	if !from.IsDir() {
		dir.refs.Add(1)
		c.jobs <- copyJob{from, dir, name}
		return
	}
	err := visits.Enter(from.Node)
	if err == nil && depth >= maxDepth {
		err = errDepth
	}
	if err != nil {
		c.fail(ctx, from.Path, err)
		return
	}
	sub, err := dir.folder(from, name)
	if err != nil {
		c.fail(ctx, from.Path, err)
		return
	}
	defer sub.release(ctx)
	err = from.List(ctx, true, func(list []Child) bool {
		for _, child := range list {
			path := join(from.Path, string(child.Name))
			if child.Err != nil {
				c.fail(ctx, path, child.Err)
				continue
			}
			c.enqueue(ctx, Found{child.Node, path}, sub, string(child.Name), visits, depth+1)
		}
		return ctx.Err() == nil
	})
	if err != nil {
		c.fail(ctx, from.Path, err)
	}
}

// file copies what is no folder. With several names it is copied once and linked then.
func (c *copier) file(ctx context.Context, j copyJob) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if !validName([]byte(j.name)) {
		return errName
	}
	if err := j.dir.vacant(j.name, c.o.Force); err != nil {
		return err
	}
	if j.from.attr.Nlink <= 1 || j.from.vol == nil {
		return c.fresh(ctx, j)
	}
	c.linkMu.Lock()
	l := c.links[j.from.key()]
	if l == nil {
		l = &firstLink{left: j.from.attr.Nlink}
		c.links[j.from.key()] = l
	}
	if l.left--; l.left == 0 {
		delete(c.links, j.from.key())
	}
	c.linkMu.Unlock()

	l.mu.Lock()
	defer l.mu.Unlock()
	if l.dir != nil {
		if err := c.link(l, j); err != nil {
			return fmt.Errorf("link to the file that was copied under another name: %w", err)
		}
		c.files.Add(1)
		return nil
	}
	if err := c.fresh(ctx, j); err != nil {
		return err
	}
	l.dir, l.name = j.dir, j.name
	return nil
}

// link gives the file another name.
func (c *copier) link(l *firstLink, j copyJob) error {
	from, err := l.dir.reopen()
	if err != nil {
		return err
	}
	defer unix.Close(from)
	temp := c.tempName()
	if err := unix.Linkat(from, l.name, j.dir.fd, temp, 0); err != nil {
		return err
	}
	return j.dir.appear(temp, j.name, c.o.Force)
}

// tempName is a name that a file has until it is whole.
func (c *copier) tempName() string {
	return fmt.Sprintf(".keelblock-%d-%d", os.Getpid(), c.temp.Add(1))
}

// fresh makes the file.
func (c *copier) fresh(ctx context.Context, j copyJob) error {
	in, err := j.from.load(ctx)
	if err != nil {
		return err
	}
	temp := c.tempName()
	switch at := j.from.attr; at.Type {
	case filesystem.TypeRegular:
		err = c.regular(ctx, j, temp, in)
	case filesystem.TypeSymlink:
		if err = unix.Symlinkat(string(in.target), j.dir.fd, temp); err == nil {
			err = c.attributesByName(j, temp, in)
		}
	case filesystem.TypeFifo, filesystem.TypeSocket, filesystem.TypeChar, filesystem.TypeBlock:
		mode := uint32(at.Type)<<12 | 0o600
		if err = unix.Mknodat(j.dir.fd, temp, mode, int(unix.Mkdev(at.RdevMajor, at.RdevMinor))); err == nil {
			err = c.attributesByName(j, temp, in)
		} else if errors.Is(err, unix.EPERM) && !c.root {
			err = errors.New("only root can make a device")
		}
	default:
		err = fmt.Errorf("unknown type %d: %w", at.Type, filesystem.ErrUnsupported)
	}
	if err == nil {
		err = j.dir.appear(temp, j.name, c.o.Force)
	}
	if err != nil {
		_ = unix.Unlinkat(j.dir.fd, temp, 0)
		return err
	}
	c.files.Add(1)
	return nil
}

// regular writes a file with its attributes under a temporary name.
func (c *copier) regular(ctx context.Context, j copyJob, temp string, in contents) (err error) {
	fd, err := unix.Openat(j.dir.fd, temp, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return fmt.Errorf("create: %w", err)
	}
	defer func() { err = errors.Join(err, unix.Close(fd)) }()
	if err := c.data(ctx, fd, j.from.Node, in); err != nil {
		return err
	}
	at := j.from.attr
	if at.Size > 0 {
		if err := unix.Ftruncate(fd, at.Size); err != nil {
			return fmt.Errorf("set the size of %d bytes: %w", at.Size, err)
		}
	}
	return c.attributes(fd, j.from.Node, in.xattrs)
}

// data writes the ranges that hold data; the rest stays a hole.
func (c *copier) data(ctx context.Context, fd int, n *Node, in contents) error {
	if in.small != nil {
		for _, e := range in.data {
			if err := c.write(fd, in.small[e.Offset:e.End()], e.Offset); err != nil {
				return err
			}
		}
		return nil
	}
	for {
		if err := c.ranges(ctx, fd, n, in.data); err != nil {
			return err
		}
		if in.end >= n.attr.Size {
			return nil
		}
		var err error
		if in, err = n.moreData(ctx, in.end); err != nil {
			return err
		}
	}
}

// ranges copies ranges of a file, a few pieces at once.
func (c *copier) ranges(ctx context.Context, fd int, n *Node, data []blockdev.Extent) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	var once sync.Once
	var failed error
	stop := func(err error) {
		once.Do(func() { failed = err; cancel() })
	}
	pieces := make(chan blockdev.Extent)
	var total int64
	for _, e := range data {
		total += e.Length
	}
	for range min(chunksAtOnce, int((total+chunkBytes-1)/chunkBytes)) {
		wg.Go(func() {
			for e := range pieces {
				if err := c.piece(ctx, fd, n, e); err != nil {
					stop(err)
				}
			}
		})
	}
	func() {
		defer close(pieces)
		for _, e := range data {
			for ; e.Length > 0; e.Offset, e.Length = e.Offset+chunkBytes, e.Length-chunkBytes {
				select {
				case pieces <- blockdev.Extent{Offset: e.Offset, Length: min(e.Length, chunkBytes)}:
				case <-ctx.Done():
					return
				}
			}
		}
	}()
	wg.Wait()
	stop(ctx.Err())
	return failed
}

func (c *copier) piece(ctx context.Context, fd int, n *Node, e blockdev.Extent) error {
	buf := c.buffer.Get().(*[chunkBytes]byte)
	p := buf[:e.Length]
	if err := n.readAt(ctx, p, e.Offset); err != nil {
		if !lost(ctx, err) {
			c.buffer.Put(buf)
		}
		return fmt.Errorf("read %d bytes at %d: %w", e.Length, e.Offset, err)
	}
	err := c.write(fd, p, e.Offset)
	c.buffer.Put(buf)
	return err
}

func (c *copier) write(fd int, p []byte, off int64) error {
	c.bytes.Add(int64(len(p)))
	if c.o.Progress != nil {
		c.o.Progress(int64(len(p)))
	}
	for len(p) > 0 {
		n, err := unix.Pwrite(fd, p, off)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("write %d bytes at %d: %w", len(p), off, err)
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}
