package hashtree

import (
	"context"
	"fmt"

	"github.com/keelblock/keelblock/blockdev"
	"github.com/keelblock/keelblock/dedupe"
)

// Entry is one present node or block of a tree.
type Entry struct {
	// Level of a node; -1 for a block.
	Level  int
	Digest dedupe.Digest
	// Offset and Length of the range of the disk that it covers, in bytes, cut off
	// at the end of the disk.
	Offset, Length int64
	// Err is why the node could not be read, in the second call for it.
	Err error
}

// Visit calls visit for every present node and block that touches [off, off+n), a
// node before what is below it, in ascending order of offset. visit says whether to
// go below a node; its error ends the walk and is returned. When a node cannot be
// read, visit is called for it a second time with Err set, and the walk goes on
// behind it if that call returns no error. Absent children cost nothing, so the
// time is linear in what is present in the range.
func Visit(ctx context.Context, nodes Nodes, r Root, off, n int64, visit func(Entry) (descend bool, err error)) error {
	if r.IsZero() || n == 0 {
		return nil
	}
	if err := r.Validate(); err != nil {
		return err
	}
	if err := blockdev.CheckRange(off, n, r.SizeBytes); err != nil {
		return fmt.Errorf("walk %d+%d of a tree of %d bytes: %w", off, n, r.SizeBytes, err)
	}
	w := visitor{nodes: nodes, root: r, visit: visit,
		first: off / int64(r.BlockSize), end: blockCount(off+n, r.BlockSize)}
	return w.walk(ctx, r.Depth-1, r.Top, 0)
}

type visitor struct {
	nodes      Nodes
	root       Root
	first, end int64 // blocks
	visit      func(Entry) (bool, error)
}

// walk visits d, which stands at the given level and covers blocks from at on.
func (w *visitor) walk(ctx context.Context, level int, d dedupe.Digest, at int64) error {
	if d.IsZero() {
		return nil
	}
	e := w.root.entry(level, d, at)
	descend, err := w.visit(e)
	if err != nil || !descend || level < 0 {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	node, err := w.root.load(ctx, w.nodes, level, d, at)
	if err != nil {
		e.Err = err
		_, err = w.visit(e)
		return err
	}
	span := blocksBelow(level)
	for i := max(0, (w.first-at)/span); i < dedupe.FanOut && at+i*span < w.end; i++ {
		if err := w.walk(ctx, level-1, node[i], at+i*span); err != nil {
			return err
		}
	}
	return nil
}

// entry describes d, which stands at the given level (-1: block) from block at on.
func (r Root) entry(level int, d dedupe.Digest, at int64) Entry {
	off := at * int64(r.BlockSize)
	return Entry{Level: level, Digest: d, Offset: off,
		Length: min(blocksBelow(level+1)*int64(r.BlockSize), r.SizeBytes-off)}
}

// load reads the node d of r, which covers blocks from at on, and refuses one with
// children behind the end of the disk.
func (r Root) load(ctx context.Context, nodes Nodes, level int, d dedupe.Digest, at int64) (*Node, error) {
	e := r.entry(level, d, at)
	node, err := nodes.Node(ctx, level, d)
	if err != nil {
		if ne, ok := err.(*NodeError); ok {
			err = ne.Err
		}
		return nil, &NodeError{Level: level, Digest: d, Offset: e.Offset, Length: e.Length, Err: err}
	}
	span := blocksBelow(level)
	for i := (max(r.Blocks()-at, 0) + span - 1) / span; i < dedupe.FanOut; i++ {
		if !node[i].IsZero() {
			return nil, &NodeError{Level: level, Digest: d, Offset: e.Offset, Length: e.Length,
				Err: fmt.Errorf("child %d lies behind the end of the disk: %w", i, dedupe.ErrCorrupt)}
		}
	}
	return node, nil
}

// Lookup is the digest of one block, zero for a hole or behind the end of the disk.
func Lookup(ctx context.Context, nodes Nodes, r Root, index int64) (dedupe.Digest, error) {
	if index < 0 || index >= r.Blocks() {
		return dedupe.Digest{}, nil
	}
	d := r.Top
	for level := r.Depth - 1; level >= 0 && !d.IsZero(); level-- {
		at := index &^ (blocksBelow(level+1) - 1)
		node, err := r.load(ctx, nodes, level, d, at)
		if err != nil {
			return dedupe.Digest{}, err
		}
		d = node[(index-at)/blocksBelow(level)]
	}
	return d, nil
}

// Walk calls yield with index and digest of every present block that touches
// [off, off+n), ascending, until yield returns false. A node that cannot be read
// ends it with a *NodeError.
func Walk(ctx context.Context, nodes Nodes, r Root, off, n int64, yield func(index int64, d dedupe.Digest) bool) error {
	err := Visit(ctx, nodes, r, off, n, func(e Entry) (bool, error) {
		if e.Err != nil {
			return false, e.Err
		}
		if e.Level < 0 && !yield(e.Offset/int64(r.BlockSize), e.Digest) {
			return false, errStop
		}
		return true, nil
	})
	return ignoreStop(err)
}

// Runs calls yield with consecutive extents that cover [off, off+n) without gaps,
// ascending, neighbours of a kind merged: data, or hole. Time is linear in the
// data present, not in the range.
func Runs(ctx context.Context, nodes Nodes, r Root, off, n int64, yield func(e blockdev.Extent, data bool) bool) error {
	at, end := off, off+n // [off, at) has been yielded, [at, dataEnd) is known data
	dataEnd := off
	flush := func(until int64) bool { // yields the data run, then the hole up to until
		if dataEnd > at && !yield(blockdev.Extent{Offset: at, Length: dataEnd - at}, true) {
			return false
		}
		at = max(at, dataEnd)
		if until > at && !yield(blockdev.Extent{Offset: at, Length: until - at}, false) {
			return false
		}
		at, dataEnd = until, until
		return true
	}
	stopped := false
	err := Walk(ctx, nodes, r, off, n, func(index int64, _ dedupe.Digest) bool {
		first := max(index*int64(r.BlockSize), off)
		if first > dataEnd && !flush(first) {
			stopped = true
			return false
		}
		dataEnd = min((index+1)*int64(r.BlockSize), end)
		return true
	})
	if err == nil && !stopped {
		flush(end)
	}
	return err
}
