package hashtree

import (
	"context"
	"errors"
	"fmt"

	"github.com/keelblock/keelblock/blockdev"
	"github.com/keelblock/keelblock/dedupe"
)

// nodePutter is the part of dedupe.Batch that a Writer needs.
type nodePutter interface {
	PutNode(ctx context.Context, level int, children *[dedupe.FanOut]dedupe.Digest) (dedupe.Put, error)
}

// Writer makes the tree of a disk out of a base tree and a stream of changes in
// ascending order. It holds one open node per level, so memory does not depend on
// the disk, and writes only nodes on the paths to changed blocks, each when the
// stream has passed it, children before parents.
//
// A base node that cannot be read is not an error while the stream supplies all of
// its children; this is how a damaged tree heals from the disk. If it does not,
// the error is a *NodeError with the range that must be supplied. A store that takes
// such a node for held when it is put again is refused.
type Writer struct {
	nodes Nodes
	put   nodePutter
	base  Root // zero when nothing is known
	root  Root // under construction; Top is set by Finish
	next  int64

	err     error // the first failure; the Writer does nothing after it
	started bool
	low     int // level of the lowest open frame; root.Depth when none is open
	frames  [dedupe.MaxDepth]frame
	top     dedupe.Digest // what the parent of the top node would hold
}

// frame is one open node.
type frame struct {
	at       int64         // the first block below it
	was      dedupe.Digest // what it is in the base tree; zero = absent
	children Node
	count    int  // children present
	dirty    bool // differs from the base tree
	lost     error
	supplied [dedupe.FanOut / 64]uint64 // only kept when lost
}

// NewWriter starts a tree for a disk of sizeBytes over base, whose nodes are read
// from nodes. The size may differ from the base's: what lies behind the new end is
// dropped, what is new is a hole. base may be the zero Root.
func NewWriter(nodes Nodes, put nodePutter, base Root, sizeBytes int64, blockSize int) (*Writer, error) {
	root := Root{SizeBytes: sizeBytes, BlockSize: blockSize, Depth: DepthFor(sizeBytes, max(blockSize, 1))}
	if err := root.Validate(); err != nil {
		return nil, err
	}
	if !base.IsZero() {
		if err := base.Validate(); err != nil {
			return nil, fmt.Errorf("base %w", err)
		}
		if base.BlockSize != blockSize {
			return nil, fmt.Errorf("base tree has blocks of %d bytes, not %d: %w", base.BlockSize, blockSize, blockdev.ErrNotSupported)
		}
	}
	return &Writer{nodes: nodes, put: put, base: base, root: root, low: root.Depth}, nil
}

// Set gives block index the digest d; zero makes it a hole. Indexes ascend. changed
// is false when the base has the same.
func (w *Writer) Set(ctx context.Context, index int64, d dedupe.Digest) (changed bool, err error) {
	if index < w.next || index >= w.root.Blocks() {
		return false, fmt.Errorf("set block %d: want %d .. %d", index, w.next, w.root.Blocks()-1)
	}
	if err := w.start(ctx); err != nil {
		return false, err
	}
	if _, err := w.open(ctx, 0, index, false); err != nil {
		w.err = err
		return false, err
	}
	w.next = index + 1
	return w.frames[0].set(index-w.frames[0].at, d), nil
}

// Zero makes blocks [first, first+count) holes. It drops whole subtrees, so its time
// depends on the depth and not on count. For each block or subtree that the base
// had there dropped is called, if it is not nil, with its place and digest.
func (w *Writer) Zero(ctx context.Context, first, count int64, dropped func(Entry)) error {
	if first < w.next || count < 0 || count > w.root.Blocks()-first {
		return fmt.Errorf("zero blocks %d+%d: want %d .. %d", first, count, w.next, w.root.Blocks()-1)
	}
	if err := w.start(ctx); err != nil {
		return err
	}
	end := first + count
	if end == w.root.Blocks() {
		end = blocksBelow(w.root.Depth) // the capacity: whole subtrees up to the right edge
	}
	w.err = w.zero(ctx, first, end, dropped)
	w.next = first + count
	return w.err
}

// zero is Zero for any range of the tree's capacity.
func (w *Writer) zero(ctx context.Context, first, end int64, dropped func(Entry)) error {
	for first < end {
		if err := ctx.Err(); err != nil {
			return err
		}
		level := 0 // of the node one of whose children is dropped
		for level+1 < w.root.Depth && first&(blocksBelow(level+1)-1) == 0 && end-first >= blocksBelow(level+1) {
			level++
		}
		hole, err := w.open(ctx, level, first, true)
		if err != nil {
			return err
		}
		if hole > first { // [first, hole) is absent already
			first = hole
			continue
		}
		f := &w.frames[level]
		i := (first - f.at) / blocksBelow(level)
		if d := f.children[i]; !d.IsZero() && dropped != nil && first < w.root.Blocks() {
			dropped(w.root.entry(level-1, d, first))
		}
		f.set(i, dedupe.Digest{})
		first += blocksBelow(level)
	}
	return nil
}

// Finish closes the tree and returns its root. The Writer is used up.
func (w *Writer) Finish(ctx context.Context) (Root, error) {
	if w.err != nil {
		return Root{}, w.err
	}
	resized := w.base.Depth != w.root.Depth || w.base.SizeBytes > w.root.SizeBytes
	if !w.started && !resized {
		w.root.Top = w.base.Top // not a single node was looked at
		return w.root, nil
	}
	if err := w.start(ctx); err != nil {
		return Root{}, err
	}
	if w.base.SizeBytes > w.root.SizeBytes { // drop what lies behind the new end
		if err := w.zero(ctx, w.root.Blocks(), blocksBelow(w.root.Depth), nil); err != nil {
			return Root{}, err
		}
	}
	for w.low < w.root.Depth {
		if err := w.closeLowest(ctx); err != nil {
			return Root{}, err
		}
	}
	w.root.Top = w.top
	return w.root, nil
}

// start brings the base to the depth of the new tree: a deeper one is entered by
// child 0, a shallower one becomes child 0 of new nodes, which are left open.
func (w *Writer) start(ctx context.Context) error {
	if w.started || w.err != nil {
		return w.err
	}
	w.started, w.top = true, w.base.Top
	for level := w.base.Depth - 1; level > w.root.Depth-1 && !w.top.IsZero(); level-- {
		node, err := w.base.load(ctx, w.nodes, level, w.top, 0)
		if err != nil {
			w.err = err
			return err
		}
		w.top = node[0]
	}
	if w.base.Depth < w.root.Depth && !w.base.Top.IsZero() {
		w.top = dedupe.Digest{}
		for level := w.root.Depth - 1; level >= w.base.Depth; level-- {
			f := &w.frames[level]
			*f = frame{dirty: true}
			if level == w.base.Depth {
				f.children[0], f.count = w.base.Top, 1
			}
		}
		w.low = w.base.Depth
	}
	return nil
}

// open closes what the stream has passed and opens nodes down to the given level on
// the path to block. With stopAtHole it goes no further than an absent child, and
// returns the first block behind that child.
func (w *Writer) open(ctx context.Context, level int, block int64, stopAtHole bool) (hole int64, err error) {
	for w.low < w.root.Depth && (w.low < level || w.frames[w.low].at != block&^(blocksBelow(w.low+1)-1)) {
		if err := w.closeLowest(ctx); err != nil {
			return 0, err
		}
	}
	for w.low > level {
		d := w.top
		at := block &^ (blocksBelow(w.low) - 1) // of the node to open, one level below low
		if w.low < w.root.Depth {
			parent := &w.frames[w.low]
			i := (at - parent.at) / blocksBelow(w.low)
			d = parent.children[i]
			if stopAtHole && d.IsZero() && parent.lost == nil {
				return at + blocksBelow(w.low), nil
			}
		} else if stopAtHole && d.IsZero() {
			return blocksBelow(w.root.Depth), nil
		}
		f := &w.frames[w.low-1]
		*f = frame{at: at, was: d}
		if !d.IsZero() {
			if err := w.fill(ctx, f, w.low-1); err != nil {
				return 0, err
			}
		} else if w.low < w.root.Depth && w.frames[w.low].lost != nil {
			f.lost, f.dirty = w.frames[w.low].lost, true
		}
		w.low--
	}
	return 0, nil
}

// fill reads the base's children into f. A node that is damaged or missing leaves f
// lost: all of its children must come from the stream.
func (w *Writer) fill(ctx context.Context, f *frame, level int) error {
	node, err := w.base.load(ctx, w.nodes, level, f.was, f.at)
	switch {
	case err == nil:
		f.children = *node
		for i := range node {
			if !node[i].IsZero() {
				f.count++
			}
		}
		return nil
	case errors.Is(err, dedupe.ErrCorrupt) || errors.Is(err, dedupe.ErrNotFound):
		f.lost, f.dirty = err, true
		return nil
	default:
		return err
	}
}

// set replaces child i.
func (f *frame) set(i int64, d dedupe.Digest) (changed bool) {
	f.supplied[i/64] |= 1 << (i % 64)
	old := f.children[i]
	if old == d {
		return f.lost != nil
	}
	switch {
	case old.IsZero():
		f.count++
	case d.IsZero():
		f.count--
	}
	f.children[i], f.dirty = d, true
	return true
}

// closeLowest writes the lowest open node, if it changed, and tells its parent.
func (w *Writer) closeLowest(ctx context.Context) error {
	level := w.low
	f := &w.frames[level]
	if f.lost != nil {
		e := w.root.entry(level, f.was, f.at)
		for i := range dedupe.FanOut {
			behind := f.at+int64(i)*blocksBelow(level) >= w.root.Blocks()
			if !behind && f.supplied[i/64]&(1<<(i%64)) == 0 {
				return &NodeError{Level: level, Digest: f.was, Offset: e.Offset, Length: e.Length, Err: f.lost}
			}
		}
	}
	d := f.was
	if f.dirty {
		d = dedupe.Digest{}
		if f.count > 0 {
			p, err := w.put.PutNode(ctx, level, (*[dedupe.FanOut]dedupe.Digest)(&f.children))
			if err != nil {
				return fmt.Errorf("store node of level %d: %w", level, err)
			}
			if d = p.Digest; f.lost != nil && d == f.was && !p.New {
				// All of it was supplied again, and it came out as the node that
				// cannot be read. A root over it would be known to be broken.
				return fmt.Errorf("store node %v of level %d: the store says that it holds it and cannot read it: %w", d, level, f.lost)
			}
		}
	}
	w.low++
	if w.low == w.root.Depth {
		w.top = d
		return nil
	}
	parent := &w.frames[w.low]
	parent.set((f.at-parent.at)/blocksBelow(w.low), d)
	return nil
}
