package recoverypoint

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/keelblock/keelblock/blockdev"
	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/hashtree"
)

// maxSteps bounds the points between two whose change sets are joined. Beyond, trees
// alone tell.
const maxSteps = 4096

// Difference lists what may differ between a disk as it is in two points, in either
// order of time: never too little. Trees tell the blocks that differ. Within those, the
// change sets of the points between tell the grains, where they were kept; else whole
// blocks are listed. from and to are one disk: of the same id, or one of them was
// restored from the other. What lies behind the end of the smaller one counts as zeros.
func (x *Index) Difference(ctx context.Context, from *Point, fromDisk *Disk, to *Point, toDisk *Disk) (*ChangeSet, error) {
	out := NewChangeSet()
	if err := x.addBlocks(ctx, out, fromDisk.Root, toDisk.Root); err != nil {
		return nil, fmt.Errorf("compare disk %q of recovery points %s and %s: %w", toDisk.Name, from.ID, to.ID, err)
	}
	if out.grains.IsEmpty() {
		return out, nil
	}
	a, b := x.lineage(from, fromDisk), x.lineage(to, toDisk)
	na, nb := meet(a, b)
	if na < 0 || na+nb > maxSteps {
		return out, nil
	}
	for _, side := range [][]step{a[:na], b[:nb]} {
		if last := len(side) - 1; last >= 0 && side[last].base == nil { // restored from where the two meet
			side[last].base = cmp.Or(a[na].disk, b[nb].disk)
		}
	}
	grains := NewChangeSet()
	for _, s := range slices.Concat(a[:na], b[:nb]) {
		if err := x.addStep(ctx, grains, s); err != nil {
			return nil, fmt.Errorf("changes of disk %q in recovery point %s: %w", s.disk.Name, s.point, err)
		}
	}
	out.grains.And(grains.grains)
	return out, nil
}

// step is a disk in a point. Its change set leads to the next step of the lineage.
type step struct {
	point dedupe.Digest
	disk  *Disk // nil in the last step when the point has it under another id
	base  *Disk // the disk of the next step
}

// lineage is a disk of a point and what each point was made relative to, back to one
// that was read in full or whose base is gone.
func (x *Index) lineage(p *Point, d *Disk) []step {
	var out []step
	for len(out) <= maxSteps {
		out = append(out, step{point: p.ID, disk: d})
		if d.Base.IsZero() {
			break
		}
		base := x.Get(d.Base)
		if base == nil {
			break
		}
		i := slices.IndexFunc(base.Manifest.Disks, func(b Disk) bool { return b.ID == d.ID })
		if i < 0 { // it was restored from that point: the last that can be told
			return append(out, step{point: base.ID})
		}
		p, d = base, &base.Manifest.Disks[i]
		out[len(out)-1].base = d
	}
	return out
}

// meet finds the nearest step that both lineages have, and how many steps lead to it in
// each, or -1.
func meet(a, b []step) (na, nb int) {
	at := make(map[dedupe.Digest]int, len(b))
	for i, s := range b {
		at[s.point] = i
	}
	for i, s := range a {
		j, ok := at[s.point]
		if !ok {
			continue
		}
		// A point may have several disks. It is the same one by its id, or since it is one
		// of the two that were asked for, which are one disk.
		if i == 0 || j == 0 || s.disk != nil && b[j].disk != nil && s.disk.ID == b[j].disk.ID {
			return i, j
		}
	}
	return -1, -1
}

// addStep lists what a point changed of its base: by its change set, else by the trees.
// A set does not tell what a shrinking disk lost, and need not list what a growing one
// won, so what lies between the two sizes is listed.
func (x *Index) addStep(ctx context.Context, out *ChangeSet, s step) error {
	size, baseSize := s.disk.Root.SizeBytes, s.base.Root.SizeBytes
	out.Add(blockdev.Extent{Offset: min(size, baseSize), Length: max(size, baseSize) - min(size, baseSize)})
	set, kept, err := LoadChangeSet(ctx, x.store, s.disk.ChangeSet)
	switch {
	case err == nil && kept:
		out.Or(set)
		return nil
	case err == nil && s.disk.ChangedBytes == 0: // nothing to keep
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	}
	return x.addBlocks(ctx, out, s.disk.Root, s.base.Root)
}

func (x *Index) addBlocks(ctx context.Context, out *ChangeSet, a, b hashtree.Root) error {
	return hashtree.Diff(ctx, x.store, a, b, func(e blockdev.Extent) bool { out.Add(e); return true })
}
