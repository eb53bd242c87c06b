package hashtree

import (
	"context"
	"errors"
	"fmt"

	"github.com/keelblock/keelblock/blockdev"
	"github.com/keelblock/keelblock/dedupe"
)

// errStop ends a walk whose caller has seen enough.
var errStop = errors.New("stop")

func ignoreStop(err error) error {
	if errors.Is(err, errStop) {
		return nil
	}
	return err
}

// Diff calls yield with the ranges in which a and b differ, ascending, merged, in
// whole blocks cut off at the end of the larger disk, until yield returns false.
// What lies behind the end of the smaller disk counts as zeros, and so does all of
// the zero Root. It reads only nodes on paths to differences: two equal roots cost
// nothing, n changed blocks at most 2·n·depth node reads.
func Diff(ctx context.Context, g Getter, a, b Root, yield func(blockdev.Extent) bool) error {
	var run blockdev.Extent
	blockSize, size := int64(max(a.BlockSize, b.BlockSize)), max(a.SizeBytes, b.SizeBytes)
	err := DiffBlocks(ctx, Direct(g), a, b, func(index int64, _, _ dedupe.Digest) bool {
		e := blockdev.Extent{Offset: index * blockSize, Length: min(blockSize, size-index*blockSize)}
		if run.End() == e.Offset && run.Length > 0 {
			run.Length += e.Length
			return true
		}
		ok := run.Length == 0 || yield(run)
		run = e
		if !ok {
			run.Length = 0
		}
		return ok
	})
	if err == nil && run.Length > 0 {
		yield(run)
	}
	return err
}

// DiffBlocks calls yield for every block that is not the same in a and b, ascending,
// with both digests (zero: a hole), until yield returns false.
func DiffBlocks(ctx context.Context, nodes Nodes, a, b Root, yield func(index int64, a, b dedupe.Digest) bool) error {
	for _, r := range []Root{a, b} {
		if r.IsZero() {
			continue
		}
		if err := r.Validate(); err != nil {
			return err
		}
	}
	if a.BlockSize != b.BlockSize && !a.IsZero() && !b.IsZero() {
		return fmt.Errorf("compare trees with blocks of %d and of %d bytes: %w", a.BlockSize, b.BlockSize, blockdev.ErrNotSupported)
	}
	d := differ{nodes: nodes, a: a, b: b, yield: yield}
	level := max(a.Depth, b.Depth) - 1
	if level < 0 {
		return nil
	}
	return ignoreStop(d.compare(ctx, level, a.ref(level), b.ref(level), 0))
}

// DiffEntries calls yield for every present node and block of a that b does not have in
// the same place, with inB false, and for those of b that a does not have there, with inB
// true, a node before what is below it. What is said of a subtree that two places share
// is said of each place. It reads the nodes that DiffBlocks reads.
func DiffEntries(ctx context.Context, nodes Nodes, a, b Root, yield func(e Entry, inB bool) error) error {
	if a.BlockSize != b.BlockSize && !a.IsZero() && !b.IsZero() {
		return fmt.Errorf("compare trees with blocks of %d and of %d bytes: %w", a.BlockSize, b.BlockSize, blockdev.ErrNotSupported)
	}
	for _, r := range []Root{a, b} {
		if r.IsZero() {
			continue
		}
		if err := r.Validate(); err != nil {
			return err
		}
	}
	d := differ{nodes: nodes, a: a, b: b, yield: func(int64, dedupe.Digest, dedupe.Digest) bool { return true }}
	d.entry = func(level int, a, b ref, at int64) error {
		if !a.above && !a.digest.IsZero() {
			if err := yield(d.a.entry(level, a.digest, at), false); err != nil {
				return err
			}
		}
		if !b.above && !b.digest.IsZero() {
			return yield(d.b.entry(level, b.digest, at), true)
		}
		return nil
	}
	level := max(a.Depth, b.Depth) - 1
	if level < 0 {
		return nil
	}
	return d.compare(ctx, level, a.ref(level), b.ref(level), 0)
}

// ref is a place in one of the trees: a digest, or a node above the top of the
// shallower tree, whose only child is child 0.
type ref struct {
	digest dedupe.Digest
	above  bool
}

// ref is the place that covers block 0 at the given level, top or above.
func (r Root) ref(level int) ref {
	return ref{digest: r.Top, above: !r.Top.IsZero() && level > r.Depth-1}
}

type differ struct {
	nodes Nodes
	a, b  Root
	yield func(int64, dedupe.Digest, dedupe.Digest) bool
	entry func(level int, a, b ref, at int64) error // nil: not asked for
}

func (d *differ) compare(ctx context.Context, level int, a, b ref, at int64) error {
	if a.above == b.above && a.digest == b.digest {
		return nil
	}
	if d.entry != nil {
		if err := d.entry(level, a, b, at); err != nil {
			return err
		}
	}
	if level < 0 {
		if !d.yield(at, a.digest, b.digest) {
			return errStop
		}
		return nil
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	na, err := d.a.children(ctx, d.nodes, level, a, at)
	if err != nil {
		return err
	}
	nb, err := d.b.children(ctx, d.nodes, level, b, at)
	if err != nil {
		return err
	}
	for i := range int64(dedupe.FanOut) {
		ra, rb := ref{digest: na[i]}, ref{digest: nb[i]}
		if i == 0 && a.above {
			ra = d.a.ref(level - 1)
		}
		if i == 0 && b.above {
			rb = d.b.ref(level - 1)
		}
		if err := d.compare(ctx, level-1, ra, rb, at+i*blocksBelow(level)); err != nil {
			return err
		}
	}
	return nil
}

// children of the node at p; of an absent node and of one above the top, none. The
// caller puts child 0 of the latter in.
func (r Root) children(ctx context.Context, nodes Nodes, level int, p ref, at int64) (*Node, error) {
	if p.above || p.digest.IsZero() {
		return &noChildren, nil
	}
	return r.load(ctx, nodes, level, p.digest, at)
}

// noChildren is only read.
var noChildren Node
