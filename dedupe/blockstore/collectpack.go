package blockstore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/pack"
)

// keepPercent: a pack is written again when it would then take less than this of what
// it takes now. What stays is at most 1/0.85 = 1.18 of what is live.
const keepPercent = 85

// Dead says which manifests and notes go. Both are asked while no commit is under way.
type Dead struct {
	// Manifest is asked with the digest of a published manifest.
	Manifest func(d dedupe.Digest) bool
	// Subject is the manifest that a note is about, by the note's sequence, and zero for
	// one that is about none or is not known. A note goes when its subject is not
	// published any more.
	Subject func(sequence uint64) dedupe.Digest
}

// SweepPacks ends a collection: it drops the packs in which nothing is needed, removes
// dead manifests and notes, and writes what is left in packs with much room to new
// ones. It follows the last pass. A full disk is no error: what needs room is left
// undone.
func (c *Collection) SweepPacks(ctx context.Context, dead Dead) (err error) {
	if c.o.IndexOnly {
		return nil
	}
	if err := c.s.enter(); err != nil {
		return err
	}
	defer c.s.leave()
	if err := c.countPublished(ctx, dead); err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, c.closeOut())
		c.report.PackBytes = c.s.Stats().PackBytes
		if errors.Is(err, dedupe.ErrNoSpace) && ctx.Err() == nil {
			c.report.NoSpace = true
			c.report.Problems = append(c.report.Problems, err.Error())
			err = nil
		}
	}()
	if err := c.dropDead(ctx, pack.ClassData); err != nil {
		return fmt.Errorf("drop packs: %w", err)
	}
	metaRewrite := c.worthRewriting(pack.ClassMetadata)
	if c.report.DeadPoints > 0 || len(metaRewrite) > 0 || len(c.deadPacks(pack.ClassMetadata)) > 0 {
		if err := c.forget(ctx, dead); err != nil {
			return fmt.Errorf("remove deleted points: %w", err)
		}
		if err := c.dropDead(ctx, pack.ClassMetadata); err != nil {
			return fmt.Errorf("drop packs: %w", err)
		}
	}
	for _, row := range append(c.worthRewriting(pack.ClassData), metaRewrite...) {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := c.rewrite(ctx, row); err != nil {
			return fmt.Errorf("rewrite pack %v: %w", row.id, err)
		}
	}
	return nil
}

// published is dead for what is old: what was published, or published again, since the
// collection began stays.
func (c *Collection) published(dead Dead) deadPublished {
	return deadPublished{
		manifest: func(d dedupe.Digest, p place) bool {
			return c.isOld(p) && dead.Manifest != nil && dead.Manifest(d)
		},
		note: func(sequence uint64, p place, stays map[dedupe.Digest]bool) bool {
			if !c.isOld(p) || dead.Subject == nil {
				return false
			}
			subject := dead.Subject(sequence)
			return !subject.IsZero() && (!stays[subject] || c.s.o.bugs.notesAlone)
		},
	}
}

// countPublished adds manifests and notes to the figures of their packs.
func (c *Collection) countPublished(ctx context.Context, dead Dead) error {
	is := c.published(dead)
	_, gone, err := c.s.listPublished(ctx, deadPublished{
		manifest: func(d dedupe.Digest, p place) bool {
			gone := is.manifest(d, p)
			c.count(p, gone)
			return gone
		},
		note: func(sequence uint64, p place, stays map[dedupe.Digest]bool) bool {
			gone := is.note(sequence, p, stays)
			c.count(p, gone)
			return gone
		},
	})
	if err == nil {
		c.report.DeadPoints = int64(len(gone.manifests))
	}
	return err
}

// forget writes a checkpoint without the dead points and removes their entries: first
// the manifests, durably, then their notes, of which one says that the point is purged.
func (c *Collection) forget(ctx context.Context, dead Dead) error {
	if c.o.DryRun {
		return nil
	}
	isDead := c.published(dead)
	var gone *forgotten
	var err error
	if c.s.o.bugs.noCheckpoint {
		_, gone, err = c.s.listPublished(ctx, isDead)
	} else {
		gone, err = c.s.checkpoint(ctx, isDead)
	}
	if err != nil {
		return err
	}
	first, second := gone.manifests, gone.notes
	if c.s.o.bugs.notesFirst {
		first, second = second, first
	}
	if err := c.removeEntries(first); err != nil {
		return err
	}
	return c.removeEntries(second)
}

// candidates are the packs of a class that may go, with what is live in them.
func (c *Collection) candidates(class pack.Class, fn func(row packRow, t *packTally)) {
	for n, row := range c.rows {
		if row.class != class || !c.old[n] || row.state == packDropped {
			continue
		}
		t := c.tally[n]
		if t == nil {
			t = new(packTally)
		}
		fn(row, t)
	}
}

// deadPacks are those in which nothing is live, and no publication of use.
func (c *Collection) deadPacks(class pack.Class) []packRow {
	var list []packRow
	c.candidates(class, func(row packRow, t *packTally) {
		if t.live > 0 {
			return
		}
		if class == pack.ClassMetadata && !c.wastes(row, t, c.publicationBytes(row)) {
			return
		}
		list = append(list, row)
	})
	slices.SortFunc(list, func(a, b packRow) int { return cmp.Compare(a.number, b.number) })
	return list
}

// wastes reports whether a pack would take much less if it were written again.
func (c *Collection) wastes(row packRow, t *packTally, more int64) bool {
	after := more
	if t.live > 0 {
		after += pack.HeaderSize + t.liveBytes + pack.SealSize(int(t.live)) + pack.PageSize
	}
	return after*100 < row.end*keepPercent
}

// Packs that are smaller than this part of a full one are joined when there are as many:
// each collection and each stop of the store seals what is open.
const (
	smallPack  = 4
	smallPacks = 16
)

// worthRewriting are the packs with something live and much room, and small ones when
// there are many, the emptiest first.
func (c *Collection) worthRewriting(class pack.Class) []packRow {
	var list, small []packRow
	c.candidates(class, func(row packRow, t *packTally) {
		if t.live == 0 || row.state == packRetired {
			return
		}
		if row.end < c.s.o.PackBytes/smallPack {
			small = append(small, row)
		}
		if !c.wastes(row, t, 0) {
			return
		}
		if class == pack.ClassMetadata && !c.wastes(row, t, c.publicationBytes(row)) {
			return
		}
		list = append(list, row)
	})
	if len(small) >= smallPacks {
		for _, row := range small {
			if !slices.Contains(list, row) {
				list = append(list, row)
			}
		}
	}
	slices.SortFunc(list, func(a, b packRow) int {
		return cmp.Or(cmp.Compare(c.tally[a.number].liveBytes, c.tally[b.number].liveBytes), cmp.Compare(a.number, b.number))
	})
	return list
}

// publicationBytes is what publications that still count take in a pack: nothing, when
// this collection writes a checkpoint for other reasons.
func (c *Collection) publicationBytes(row packRow) (bytes int64) {
	if c.report.DeadPoints > 0 {
		return 0
	}
	f, content, err := c.s.openContent(row.id, true)
	if err != nil || content == nil {
		return 0
	}
	defer f.Close()
	found, err := c.s.publications(f, content.entries)
	if err != nil {
		return 0
	}
	c.s.index.mu.Lock()
	checkpoint := c.s.index.m.checkpoint
	c.s.index.mu.Unlock()
	for _, p := range found {
		if p.pub.Serial > checkpoint || p.pub.Checkpoint && p.pub.Serial == checkpoint {
			bytes += pack.RecordHeaderSize + int64(len(pack.EncodePublication(p.pub)))
		}
	}
	if bytes > 0 {
		bytes += pack.HeaderSize + pack.SealSize(len(found)) + pack.PageSize
	}
	return bytes
}

// dropDead drops the packs of a class in which nothing is live.
func (c *Collection) dropDead(ctx context.Context, class pack.Class) error {
	list := c.deadPacks(class)
	for len(list) > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		n := min(len(list), 64)
		if err := c.drop(list[:n]); err != nil {
			return err
		}
		c.report.DroppedPacks += int64(n)
		list = list[n:]
	}
	return nil
}

// drop drops packs that no entry names, and counts what that frees.
func (c *Collection) drop(rows []packRow) error {
	if !c.o.DryRun {
		if err := c.s.removePacks(rows); err != nil {
			return err
		}
	}
	for _, row := range rows {
		c.report.FreedBytes += row.end
	}
	return nil
}
