package backup

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"

	"github.com/keelblock/keelblock/blockdev"
	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/hashtree"
	"github.com/keelblock/keelblock/dedupe/recoverypoint"
)

// The audit
//
// A list of changes is believed, and a change that is not on it is missing in every
// point from then on, without a sign. So each backup looks at a few blocks that are
// not listed, and compares them with the base that they are said to equal. That finds
// who wrote the disk's file behind our back, a file that was put back from a copy, a
// kernel or a disk that lost writes, and our own mistakes.
//
// The guest writes meanwhile. A write sets its bits before its data, so whoever sees
// the data finds the bits set afterwards: a block that differs counts only if, after
// the read, none of its grains is listed in either map. Nothing takes bits away in
// between, as the backup holds the disk's slot.
//
// Of n blocks that were drawn, with a part f of the disk's blocks changed unlisted,
// the chance to meet one is 1-(1-f)^n: with the 256 that are read of a disk of 16 GiB or
// more, 92 % when one block of 100 differs and 23 % when one of 1000 does; each backup
// draws anew. A disk of no more blocks than may be read is looked at as a whole.
const (
	// auditBlocks and auditPart: so many blocks are read at least, and such a part of the
	// disk, but no more than auditBytes.
	auditBlocks = 64
	auditPart   = 1000
	auditBytes  = 16 << 20
	// auditDraws: so many blocks are drawn for each that may be read. Where disk and base
	// both have a hole, nothing has to be read to see that they are equal.
	auditDraws = 4
	// auditUnwitnessed: so many times more for a block device after a clean stop, since
	// it has no times that would show who wrote it.
	auditUnwitnessed = 16
)

// audited is the part of cbt.Tracker that an audit needs.
type audited interface {
	blockdev.Device
	blockdev.ExtentLister
	// Listed reports whether a grain of the range is listed.
	Listed(off, n int64) bool
}

// auditor looks at one disk.
type auditor struct {
	dev   audited
	nodes hashtree.Nodes
	base  hashtree.Root
	// digest makes the ids of the base's blocks.
	digest func([]byte) dedupe.Digest
	// skip are ascending ranges that are compared anyhow.
	skip []blockdev.Extent
	// draws and reads bound the sample, in blocks.
	draws, reads int64
	seed         uint64

	buf                []byte
	drawn, clean, read int64
}

// auditError: a block that no map lists differs from the base.
type auditError struct {
	offset int64
	point  dedupe.Digest
	seed   uint64
}

func (e *auditError) Error() string {
	return fmt.Sprintf("audit: the block at %d differs from recovery point %s, and no change of it is listed", e.offset, e.point)
}

// sizes sets the bounds of the sample.
func (a *auditor) sizes(times int64) {
	blocks, most := a.blocks(), auditBytes/int64(a.base.BlockSize)
	a.reads = max(min(max(blocks/auditPart, auditBlocks), most), 1) * times
	a.draws = a.reads * auditDraws
}

// blocks is the number of blocks that disk and base have in common.
func (a *auditor) blocks() int64 {
	size, bs := min(a.dev.Size(), a.base.SizeBytes), int64(a.base.BlockSize)
	return (size + bs - 1) / bs
}

// run returns the offset of a block that differs, or -1.
func (a *auditor) run(ctx context.Context) (int64, error) {
	blocks := a.blocks()
	a.buf = make([]byte, a.base.BlockSize)
	r := rand.New(rand.NewPCG(a.seed, 0))
	whole := blocks <= a.reads
	draws := a.draws
	if whole {
		draws = blocks
	}
	for a.drawn = 0; a.drawn < draws && a.read < a.reads; a.drawn++ {
		if ctx.Err() != nil {
			return -1, context.Cause(ctx)
		}
		i := a.drawn
		if !whole {
			i = r.Int64N(blocks)
		}
		differs, err := a.block(ctx, i)
		if err != nil || differs {
			return i * int64(a.base.BlockSize), err
		}
	}
	return -1, nil
}

// block looks at one block.
func (a *auditor) block(ctx context.Context, i int64) (differs bool, err error) {
	off := i * int64(a.base.BlockSize)
	e := blockdev.Extent{Offset: off, Length: min(int64(a.base.BlockSize), a.dev.Size()-off)}
	if e.Length <= 0 || a.skipped(e) || a.dev.Listed(e.Offset, e.Length) {
		return false, nil
	}
	want, err := hashtree.Lookup(ctx, a.nodes, a.base, i)
	if err != nil {
		return false, err
	}
	a.clean++
	if want.IsZero() && a.hole(e) {
		return false, nil
	}
	a.read++
	clear(a.buf[e.Length:])
	if _, err := a.dev.ReadAt(a.buf[:e.Length], e.Offset); err != nil {
		return false, err
	}
	if want.IsZero() {
		differs = slices.ContainsFunc(a.buf, func(b byte) bool { return b != 0 })
	} else {
		differs = a.digest(a.buf) != want
	}
	// After the read; see above.
	return differs && !a.dev.Listed(e.Offset, e.Length), nil
}

func (a *auditor) skipped(e blockdev.Extent) bool {
	i, _ := slices.BinarySearchFunc(a.skip, e, func(x, e blockdev.Extent) int {
		if x.End() <= e.Offset {
			return -1
		}
		return 1
	})
	return i < len(a.skip) && a.skip[i].Offset < e.End()
}

// hole reports whether a range is known to be zeros without being read.
func (a *auditor) hole(e blockdev.Extent) bool {
	zeros := int64(0)
	err := a.dev.Extents(e.Offset, e.Length, func(x blockdev.Extent, s blockdev.ExtentStatus) bool {
		if s.Zero {
			zeros += x.Length
		}
		return s.Zero
	})
	return err == nil && zeros == e.Length
}

// audit looks at a sample of what the maps of the disks call unchanged. A disk that
// fails is distrusted, and the attempt begins anew and compares it.
func (a *attemptState) audit(ctx context.Context) error {
	var with []int
	for i, p := range a.plans {
		if p.tracking == recoverypoint.TrackingEnabled || p.narrow {
			with = append(with, i)
		}
	}
	return a.each(ctx, with, a.auditDisk)
}

func (a *attemptState) auditDisk(ctx context.Context, i int) error {
	p := a.plans[i]
	t := p.disk.Tracker()
	au := &auditor{dev: t, nodes: hashtree.Cached(a.h.Store, 64), base: p.base, digest: a.h.Store.BlockDigest, seed: rand.Uint64()}
	times := int64(1)
	if t.Unwitnessed() {
		times = auditUnwitnessed
	}
	au.sizes(times)
	if n := a.e.o.AuditBlocks; n > 0 {
		au.reads, au.draws = n, n
	}
	t.Doubtful(func(e blockdev.Extent) bool { au.skip = append(au.skip, e); return true })
	at, err := au.run(ctx)
	log := a.e.o.Logger.With("disk", p.disk.Name(), "seed", au.seed, "drawn", au.drawn, "clean", au.clean, "read", au.read)
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil && t.Unwitnessed():
		return fmt.Errorf("audit at %d, before the disk is trusted: %w", at, err)
	case err != nil:
		// Whoever needs the block meets the error again.
		log.Warn("audit of unchanged blocks was cut short", "offset", at, "error", err)
		return nil
	case at < 0:
		log.Debug("audit of unchanged blocks")
		return nil
	}
	found := &auditError{offset: at, point: p.point, seed: au.seed}
	log.Error("audit of unchanged blocks found one that differs: the disk was changed behind the daemon's back, or a change was lost",
		"offset", at, "point", p.point)
	t.Distrust(found.Error())
	a.t.Warn(fmt.Sprintf("disk %s: %v; the whole disk is compared", p.disk.Name(), found))
	if a.e.o.Alert != nil {
		a.e.o.Alert(p.disk.Name(), found.Error()+"; the whole disk is compared; points since that one may lack changes")
	}
	return fmt.Errorf("%w: %w", errAgain, found)
}
