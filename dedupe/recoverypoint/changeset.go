package recoverypoint

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math/bits"

	"github.com/RoaringBitmap/roaring/v2/roaring64"

	"github.com/keelblock/keelblock/blockdev"
	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/hashtree"
)

// Layout of a change set, see FORMAT.md.
const (
	changeSetMagic   = "KBCS"
	changeSetVersion = 1
	changeSetHeader  = 16
	// MaxChangeSetBytes bounds a stored change set: 512 random changes a second for
	// a day on one disk. A larger one is not kept; its trees are compared instead.
	MaxChangeSetBytes = 32 << 20
)

// ChangeSet is a finished set of changed grains of one disk. It may list too much,
// never too little. It is not safe for concurrent use.
type ChangeSet struct{ grains *roaring64.Bitmap }

// NewChangeSet is an empty set.
func NewChangeSet() *ChangeSet { return &ChangeSet{grains: roaring64.New()} }

// Add lists every grain that e touches. e must not be negative.
func (c *ChangeSet) Add(e blockdev.Extent) {
	if e.Length <= 0 {
		return
	}
	first, end := uint64(e.Offset/blockdev.GrainSize), uint64((e.End()-1)/blockdev.GrainSize)+1
	if end-first > 256 {
		c.grains.AddRange(first, end)
		return
	}
	// AddRange keeps containers as lists of runs, which it copies every time: 28 µs
	// per grain once there are thousands of short ones. Single adds make bitmaps.
	for g := first; g < end; g++ {
		c.grains.Add(g)
	}
}

// Or lists what o lists as well.
func (c *ChangeSet) Or(o *ChangeSet) { c.grains.Or(o.grains) }

// Bytes is the number of grains in bytes. The last grain of a disk counts whole.
func (c *ChangeSet) Bytes() int64 {
	return int64(c.grains.GetCardinality()) * blockdev.GrainSize
}

// Extents calls yield with the listed ranges of a disk of sizeBytes, ascending and
// merged, until it returns false.
func (c *ChangeSet) Extents(sizeBytes int64, yield func(blockdev.Extent) bool) {
	var run blockdev.Extent
	it := c.grains.ManyIterator()
	buf := make([]uint64, 4096)
	for n := it.NextMany(buf); n > 0; n = it.NextMany(buf) {
		first, last := int64(buf[0])*blockdev.GrainSize, int64(buf[n-1]+1)*blockdev.GrainSize
		if run.Length > 0 && run.End() == first && last-first == int64(n)*blockdev.GrainSize && last <= sizeBytes {
			run.Length += last - first // the inside of a long run
			continue
		}
		for _, g := range buf[:n] {
			off := int64(g) * blockdev.GrainSize
			if off >= sizeBytes {
				break
			}
			length := min(blockdev.GrainSize, sizeBytes-off)
			switch {
			case run.Length > 0 && run.End() == off:
				run.Length += length
			case run.Length > 0 && !yield(run):
				return
			default:
				run = blockdev.Extent{Offset: off, Length: length}
			}
		}
	}
	if run.Length > 0 {
		yield(run)
	}
}

// EncodeChangeSet stores c as blocks of the batch. An empty set, and one larger than
// MaxChangeSetBytes, gives the zero Content: not kept, compare the trees.
func EncodeChangeSet(ctx context.Context, b blockPutter, blockSize int, c *ChangeSet) (Content, error) {
	if c == nil || c.grains.IsEmpty() {
		return Content{}, nil
	}
	c.grains.RunOptimize()
	if c.grains.GetSerializedSizeInBytes() > MaxChangeSetBytes {
		return Content{}, nil
	}
	p, err := c.encode()
	if err != nil {
		return Content{}, err
	}
	return PutContent(ctx, b, blockSize, p)
}

func (c *ChangeSet) encode() ([]byte, error) {
	bitmap, err := c.grains.ToBytes()
	if err != nil {
		return nil, fmt.Errorf("encode change set: %w", err)
	}
	var w writer
	w.raw([]byte(changeSetMagic))
	w.u16(changeSetVersion)
	w.u16(uint16(bits.TrailingZeros(blockdev.GrainSize)))
	w.u64(uint64(len(bitmap)))
	w.raw(bitmap)
	return w.seal(), nil
}

// LoadChangeSet reads what EncodeChangeSet stored. kept is false when c is absent.
func LoadChangeSet(ctx context.Context, g hashtree.Getter, c Content) (set *ChangeSet, kept bool, err error) {
	if c.IsZero() {
		return nil, false, nil
	}
	p, err := LoadContent(ctx, g, c)
	if err != nil {
		return nil, false, fmt.Errorf("load change set: %w", err)
	}
	set, err = parseChangeSet(p)
	if err != nil {
		return nil, false, fmt.Errorf("load change set: %w", err)
	}
	return set, true, nil
}

func parseChangeSet(p []byte) (*ChangeSet, error) {
	if len(p) < changeSetHeader+4 || string(p[:4]) != changeSetMagic {
		return nil, fmt.Errorf("no magic %s: %w", changeSetMagic, dedupe.ErrUnknownFormat)
	}
	version, grain := binary.LittleEndian.Uint16(p[4:]), binary.LittleEndian.Uint16(p[6:])
	if version != changeSetVersion || 1<<grain != blockdev.GrainSize {
		return nil, fmt.Errorf("version %d with grains of 2^%d bytes: %w", version, grain, dedupe.ErrUnknownFormat)
	}
	body, err := unseal(p)
	if err != nil {
		return nil, err
	}
	if n := binary.LittleEndian.Uint64(p[8:]); n != uint64(len(body)-changeSetHeader) {
		return nil, fmt.Errorf("%d bytes, header says %d: %w", len(body)-changeSetHeader, n, dedupe.ErrCorrupt)
	}
	return parseBitmap(body[changeSetHeader:])
}

// parseBitmap decodes a Roaring bitmap. The library is written for bitmaps of its
// own making and may panic on others; that is caught here, in the one place where
// bytes from a disk or a peer reach it.
func parseBitmap(p []byte) (set *ChangeSet, err error) {
	defer func() {
		if r := recover(); r != nil {
			set, err = nil, fmt.Errorf("bitmap: %v: %w", r, dedupe.ErrCorrupt)
		}
	}()
	// It also believes the count of its parts of 2^32 grains and allocates for them;
	// the largest disk has 128.
	if len(p) < 8 || binary.LittleEndian.Uint64(p) > uint64(blockdev.MaxSize/blockdev.GrainSize)>>32 {
		return nil, fmt.Errorf("bitmap: %d bytes, or too many parts: %w", len(p), dedupe.ErrCorrupt)
	}
	b := roaring64.New()
	in := bytes.NewReader(p)
	if _, err := b.ReadFrom(in); err != nil {
		return nil, fmt.Errorf("bitmap: %w: %w", err, dedupe.ErrCorrupt)
	}
	if in.Len() != 0 {
		return nil, fmt.Errorf("bitmap: %d bytes behind its end: %w", in.Len(), dedupe.ErrCorrupt)
	}
	if err := b.Validate(); err != nil {
		return nil, fmt.Errorf("bitmap: %w: %w", err, dedupe.ErrCorrupt)
	}
	if !b.IsEmpty() && b.Maximum() >= uint64(blockdev.MaxSize/blockdev.GrainSize) {
		return nil, fmt.Errorf("bitmap: grain %d lies behind the largest disk: %w", b.Maximum(), dedupe.ErrCorrupt)
	}
	return &ChangeSet{grains: b}, nil
}

// Contains reports whether the grain at off is listed.
func (c *ChangeSet) Contains(off int64) bool {
	return c.grains.Contains(uint64(off / blockdev.GrainSize))
}
