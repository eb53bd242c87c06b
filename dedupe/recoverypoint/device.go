package recoverypoint

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/keelblock/keelblock/blockdev"
	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/hashtree"
)

// Device is one disk of a recovery point, read-only. Every byte it returns was
// verified against its digest on the way from the store or when it came into the
// Cache; what does not verify is a *BlockError that is blockdev.ErrCorrupt.
//
// Reads run in parallel, over requests and within one; a request of several blocks
// is decoded by all cores, whole blocks straight into the caller's buffer.
// Sequential readers are noticed, up to eight at once, and read ahead for while
// there are cores that no request keeps busy.
type Device struct {
	name string
	root hashtree.Root
	c    *Cache
	src  *source

	ahead   readAhead
	active  atomic.Int32 // reads under way
	copying atomic.Bool  // see Copying
	closed  atomic.Bool
}

var (
	_ blockdev.Device       = (*Device)(nil)
	_ blockdev.ExtentLister = (*Device)(nil)
)

// BlockError says which block or node of a disk could not be read.
type BlockError struct {
	Disk   string
	Offset int64 // of the block, or of the range below the node
	Length int64
	Digest dedupe.Digest
	Kind   dedupe.Kind // KindBlock or KindNode
	Err    error       // the store's, with the pack when it knows it
}

func (e *BlockError) Error() string {
	what := "block"
	if e.Kind == dedupe.KindNode {
		what = "tree node"
	}
	return fmt.Sprintf("disk %q, bytes %d+%d: %s %v: %v", e.Disk, e.Offset, e.Length, what, e.Digest, e.Err)
}

// Unwrap is the store's error and, when content is damaged or missing,
// blockdev.ErrCorrupt: a committed point that lacks a block is damaged.
func (e *BlockError) Unwrap() []error {
	if errors.Is(e.Err, dedupe.ErrCorrupt) || errors.Is(e.Err, dedupe.ErrNotFound) {
		return []error{e.Err, blockdev.ErrCorrupt}
	}
	return []error{e.Err}
}

// directBlocks is from how many blocks on a request bypasses the cache for blocks
// that are not in it. Such a reader copies a disk and does not come back.
const directBlocks = 8

// OpenDisk opens the disk of the given name, or id, of a point of s.
func OpenDisk(ctx context.Context, s dedupe.Store, c *Cache, m *Manifest, disk string) (*Device, error) {
	var d *Disk
	names := make([]string, len(m.Disks))
	for i := range m.Disks {
		names[i] = m.Disks[i].Name
		if names[i] == disk || (d == nil && m.Disks[i].ID.String() == disk) {
			d = &m.Disks[i]
		}
	}
	if d == nil {
		return nil, fmt.Errorf("point of machine %q has no disk %q, only %s: %w", m.MachineName, disk, joinNames(names), ErrNotFound)
	}
	return OpenRoot(ctx, s, c, d.Name, d.Root)
}

// OpenRoot opens any tree of s as a disk; name is for errors. A nil Cache is a new
// one of the default size.
func OpenRoot(_ context.Context, s dedupe.Store, c *Cache, name string, root hashtree.Root) (*Device, error) {
	if err := root.Validate(); err != nil {
		return nil, fmt.Errorf("open disk %q: %w", name, err)
	}
	if root.BlockSize != s.BlockSize() {
		return nil, fmt.Errorf("open disk %q: blocks of %d bytes in a vault with blocks of %d: %w", name, root.BlockSize, s.BlockSize(), blockdev.ErrNotSupported)
	}
	if c == nil {
		c = NewCache(0)
	}
	d := &Device{name: name, root: root, c: c, src: c.sourceOf(s)}
	d.ahead.d = d
	return d, nil
}

// Copying says that the disk is read from end to end by a goroutine for each core, in
// requests of many blocks: nothing is read ahead then, and each request is decoded by
// the goroutine that makes it, straight into its buffer. So what is copied passes by the
// cache, and stays in that of the core that writes it next.
func (d *Device) Copying() { d.copying.Store(true) }

// cores is how many goroutines can compute at once. The daemon has more places for
// goroutines than cores, for those that wait in system calls.
func cores() int { return min(runtime.GOMAXPROCS(0), runtime.NumCPU()) }

// Size is the size of the disk at the cut.
func (d *Device) Size() int64 { return d.root.SizeBytes }

// Root is the tree that is read.
func (d *Device) Root() hashtree.Root { return d.root }

// WriteAt returns blockdev.ErrReadOnly.
func (d *Device) WriteAt(p []byte, off int64) (int, error) {
	if err := blockdev.CheckRange(off, int64(len(p)), d.root.SizeBytes); err != nil {
		return 0, fmt.Errorf("write %d+%d to disk %q of a recovery point: %w", off, len(p), d.name, err)
	}
	return 0, fmt.Errorf("write to disk %q of a recovery point: %w", d.name, blockdev.ErrReadOnly)
}

// Flush does nothing: there are no writes.
func (d *Device) Flush() error {
	if d.closed.Load() {
		return fmt.Errorf("flush disk %q: %w", d.name, blockdev.ErrClosed)
	}
	return nil
}

// Close ends reading ahead and waits for it. The Store and the Cache stay open.
func (d *Device) Close() error {
	d.closed.Store(true)
	d.ahead.stop()
	return nil
}

// Extents reports data and holes by the tree, skipping any hole in O(depth).
func (d *Device) Extents(off, n int64, yield func(blockdev.Extent, blockdev.ExtentStatus) bool) error {
	if err := d.check(off, n); err != nil {
		return fmt.Errorf("extents %d+%d of disk %q: %w", off, n, d.name, err)
	}
	err := hashtree.Runs(context.Background(), d.src.nodes, d.root, off, n, func(e blockdev.Extent, data bool) bool {
		return yield(e, blockdev.ExtentStatus{Hole: !data, Zero: !data})
	})
	return d.nodeError(err)
}

func (d *Device) check(off, n int64) error {
	if d.closed.Load() {
		return blockdev.ErrClosed
	}
	return blockdev.CheckRange(off, n, d.root.SizeBytes)
}

// nodeError adds the disk's name to the tree's errors.
func (d *Device) nodeError(err error) error {
	var ne *hashtree.NodeError
	if errors.As(err, &ne) {
		return &BlockError{Disk: d.name, Offset: ne.Offset, Length: ne.Length, Digest: ne.Digest, Kind: dedupe.KindNode, Err: ne.Err}
	}
	return err
}

// piece is the part of a request that lies in one present block.
type piece struct {
	dst    []byte
	from   int   // offset of dst in the block
	at     int64 // offset of the block on the disk
	digest dedupe.Digest
	err    error
}

// ReadAt fills p from off. On an error the first n bytes are good and the others are
// zeros or good, never anything else.
func (d *Device) ReadAt(p []byte, off int64) (int, error) {
	if err := d.check(off, int64(len(p))); err != nil {
		return 0, fmt.Errorf("read %d+%d of disk %q: %w", off, len(p), d.name, err)
	}
	if len(p) == 0 {
		return 0, nil
	}
	d.active.Add(1)
	defer d.active.Add(-1)
	bs := int64(d.root.BlockSize)
	if off/bs == (off+int64(len(p))-1)/bs {
		return d.readOne(p, off)
	}
	pieces := make([]piece, 0, int64(len(p))/bs+2)
	filled := off // p is set, or has a piece, up to here
	err := hashtree.Walk(context.Background(), d.src.nodes, d.root, off, int64(len(p)), func(index int64, digest dedupe.Digest) bool {
		at := index * bs
		first, end := max(at, off), min(at+bs, off+int64(len(p)))
		clear(p[filled-off : first-off])
		pieces = append(pieces, piece{dst: p[first-off : end-off : end-off], from: int(first - at), at: at, digest: digest})
		filled = end
		return true
	})
	clear(p[filled-off:])
	if err != nil {
		// What lies before the node could be read; but a reader who asked for this
		// range cannot use a part of it, so nothing is.
		clear(p)
		return 0, d.nodeError(err)
	}
	if !d.copying.Load() {
		d.ahead.read(off, int64(len(p)))
	}
	d.readPieces(pieces)
	n := len(p)
	for i := len(pieces) - 1; i >= 0; i-- {
		if pieces[i].err != nil {
			clear(pieces[i].dst)
			n, err = int(max(pieces[i].at, off)-off), d.blockError(&pieces[i])
		}
	}
	return n, err
}

// readOne is ReadAt within one block.
func (d *Device) readOne(p []byte, off int64) (int, error) {
	bs := int64(d.root.BlockSize)
	index := off / bs
	digest, err := hashtree.Lookup(context.Background(), d.src.nodes, d.root, index)
	if err != nil || digest.IsZero() {
		clear(p)
		if err != nil {
			return 0, d.nodeError(err)
		}
		return len(p), nil
	}
	d.ahead.read(off, int64(len(p)))
	one := piece{dst: p, from: int(off - index*bs), at: index * bs, digest: digest}
	d.readGroup([]*piece{&one}, false)
	if one.err != nil {
		clear(p)
		return 0, d.blockError(&one)
	}
	return len(p), nil
}

func (d *Device) blockError(p *piece) error {
	return &BlockError{Disk: d.name, Offset: p.at, Length: min(int64(d.root.BlockSize), d.root.SizeBytes-p.at),
		Digest: p.digest, Kind: dedupe.KindBlock, Err: p.err}
}

// readPieces fills all pieces, what is in memory first, the rest in groups on all
// cores.
func (d *Device) readPieces(pieces []piece) {
	direct := len(pieces) >= directBlocks
	var todo [64]*piece
	rest := todo[:0] // what is not in memory now
	for i := range pieces {
		if !d.readCached(&pieces[i]) {
			rest = append(rest, &pieces[i])
		}
	}
	procs := cores()
	if d.copying.Load() {
		procs = 1
	}
	size := maxGroup
	if int(d.active.Load()) < procs { // there are cores for smaller ones
		size = min((len(rest)+procs-1)/procs, maxGroup)
	}
	var next atomic.Int64
	work := func() {
		for {
			end := int(next.Add(int64(size)))
			if end-size >= len(rest) {
				return
			}
			d.readGroup(rest[end-size:min(end, len(rest))], direct)
		}
	}
	var wg sync.WaitGroup
	for n := size; n < len(rest) && n < size*procs; n += size {
		wg.Go(work)
	}
	work()
	wg.Wait()
}

// readCached fills the piece if its block is in memory now.
func (d *Device) readCached(p *piece) bool {
	b := d.c.find(cacheKey{d.src.number, p.digest})
	if b == nil {
		return false
	}
	select {
	case <-b.done:
		d.take(b, p)
		return p.err == nil
	default:
		d.c.release(b, false)
		return false
	}
}

// readGroup fills up to maxGroup pieces, through the cache or, direct, past it where
// a whole block is wanted. Only when it has read what is its own does it wait for
// others, so that two groups never wait for each other.
func (d *Device) readGroup(pieces []*piece, direct bool) {
	var (
		g       group
		mine    [maxGroup]*cacheBlock // of g, nil for one past the cache
		ours    [maxGroup]*piece      // of g
		theirs  [maxGroup]*cacheBlock // read by somebody else
		waiting [maxGroup]*piece
		n       int
	)
	for _, p := range pieces {
		p.err = nil
		key := cacheKey{d.src.number, p.digest}
		if direct && len(p.dst) == d.root.BlockSize {
			if b := d.c.find(key); b != nil {
				theirs[n], waiting[n] = b, p
				n++
				continue
			}
			ours[g.n] = p
			g.add(p.digest, p.dst)
			continue
		}
		b, own := d.c.claim(key, d.root.BlockSize)
		if !own {
			theirs[n], waiting[n] = b, p
			n++
			continue
		}
		ours[g.n], mine[g.n] = p, b
		g.add(p.digest, b.data)
	}
	d.src.get(context.Background(), &g)
	for i := range g.n {
		if mine[i] == nil {
			ours[i].err = g.errs[i]
			continue
		}
		d.c.loaded(mine[i], g.errs[i])
		d.take(mine[i], ours[i])
	}
	for i := range n {
		<-theirs[i].done
		d.take(theirs[i], waiting[i])
	}
}

// take copies from a finished cache block and lets go of it.
func (d *Device) take(b *cacheBlock, p *piece) {
	if p.err = b.err; p.err == nil {
		copy(p.dst, b.data[p.from:])
	}
	d.c.release(b, p.from+len(p.dst) == d.root.BlockSize && 2*len(p.dst) >= d.root.BlockSize)
}
