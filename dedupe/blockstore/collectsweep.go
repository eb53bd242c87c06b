package blockstore

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/keelblock/keelblock/dedupe"
)

// deadEntry is an entry of the index that nothing needs.
type deadEntry struct {
	kind   dedupe.Kind // of a block or node
	digest dedupe.Digest
	key    string // of a manifest or note
	place  place
}

func (e *deadEntry) indexKey() []byte {
	if e.key != "" {
		return []byte(e.key)
	}
	return contentKey(e.kind, e.digest)
}

// SweepNodes removes the entries of dead nodes, parents before their children, each
// level durably before the next. It follows the mark of the first pass.
func (c *Collection) SweepNodes(ctx context.Context) error {
	if err := c.s.enter(); err != nil {
		return err
	}
	defer c.s.leave()
	if err := c.follow(ctx); err != nil {
		return err
	}
	var dead []deadEntry
	err := c.s.index.scan(prefixNode, func(key, val []byte) error {
		e, err := decodeEntry(dedupe.KindNode, key, val)
		if err != nil {
			return err
		}
		_, live := c.nodes[e.digest]
		if !live && !c.isOld(e.place) {
			// It stays, whatever needs it, so what is below it must. After a crash its
			// pack is read again, and a node in the index without its children would
			// be there.
			c.enqueue(e.digest)
			live = true
		}
		if !live && !c.spared(e.digest) {
			dead = append(dead, e)
			return ctx.Err()
		}
		c.report.LiveNodes++
		c.count(e.place, false)
		return ctx.Err()
	})
	if err != nil {
		return fmt.Errorf("sweep nodes: %w", err)
	}
	slices.SortStableFunc(dead, func(a, b deadEntry) int {
		if c.s.o.bugs.childrenLast {
			a, b = b, a
		}
		return cmp.Compare(b.place.level, a.place.level)
	})
	for len(dead) > 0 {
		n := 1
		for n < min(len(dead), sweepEntries) && dead[n].place.level == dead[0].place.level {
			n++
		}
		if _, err := c.take(ctx, dead[:n], &c.report.DeadNodes, &c.report.LiveNodes, true); err != nil {
			return fmt.Errorf("sweep nodes: %w", err)
		}
		dead = dead[n:]
	}
	return nil
}

// sweepEntries are taken from the index at once.
const sweepEntries = 2048

// decodeEntry reads an index entry of a block or node.
func decodeEntry(kind dedupe.Kind, key, val []byte) (deadEntry, error) {
	if len(key) != 1+dedupe.DigestSize {
		return deadEntry{}, fmt.Errorf("index key %x: %w", key, dedupe.ErrCorrupt)
	}
	p, err := decodePlace(val)
	return deadEntry{kind: kind, digest: dedupe.Digest(key[1:]), place: p}, err
}

// SweepBlocks removes the entries of dead blocks of this pass.
//
// A patch needs its base, so while it is in the index the base stays, and the sweep is
// repeated as long as patches went: once for each patch that lies over another. Then
// patches that alone keep their bases may be stored whole, once, and the sweep goes on.
// Bases that belong to another pass are left to the next collection.
func (c *Collection) SweepBlocks(ctx context.Context) error {
	if err := c.s.enter(); err != nil {
		return err
	}
	defer c.s.leave()
	whole := c.o.DryRun || c.o.IndexOnly // no patch is stored whole, or all that are have been
	for {
		if err := c.findBases(ctx); err != nil {
			return fmt.Errorf("sweep blocks: %w", err)
		}
		c.lone = nil
		if !whole {
			c.lone = make(loneBases)
		}
		last := c.bases == nil || c.o.DryRun
		patches, err := c.sweepBlocks(ctx, last)
		if err == nil && !last && patches == 0 && !whole {
			n, rerr := c.storeLoneWhole(ctx)
			if whole = true; n > 0 {
				continue
			}
			err = rerr
		}
		if err == nil && !last && patches == 0 {
			_, err = c.sweepBlocks(ctx, true)
			last = true
		}
		if err != nil {
			return fmt.Errorf("sweep blocks: %w", err)
		}
		if last {
			return nil
		}
	}
}

// sweepBlocks goes through the blocks of this pass once. It returns how many patches
// went, and counts what is live when asked to.
func (c *Collection) sweepBlocks(ctx context.Context, countLive bool) (patches int, err error) {
	var dead []deadEntry
	flush := func() error {
		n, err := c.take(ctx, dead, &c.report.DeadBlocks, &c.report.LiveBlocks, countLive)
		patches += n
		dead = dead[:0]
		return err
	}
	from := binary.BigEndian.AppendUint16([]byte{prefixBlock}, uint16(c.low))
	err = c.s.index.scanFrom(from, func(key, val []byte) error {
		e, err := decodeEntry(dedupe.KindBlock, key, val)
		if err != nil {
			return err
		}
		if uint32(binary.BigEndian.Uint16(e.digest[:])) >= c.high {
			return errStop
		}
		live := c.blocks.has(e.digest) || !c.isOld(e.place) || c.spared(e.digest)
		if !live && c.bases != nil && c.bases.has(e.digest) && !c.s.o.bugs.basesGo {
			c.noteLone(e)
			live = true
		}
		if live {
			if countLive {
				c.report.LiveBlocks++
				c.count(e.place, false)
			}
			return ctx.Err()
		}
		if dead = append(dead, e); len(dead) >= sweepEntries {
			return flush()
		}
		return nil
	})
	if err == nil || errors.Is(err, errStop) {
		err = flush()
	}
	return patches, err
}

// findBases finds what patches lie over.
func (c *Collection) findBases(ctx context.Context) error {
	c.bases = nil
	return c.s.index.scan(prefixBlock, func(_, val []byte) error {
		p, err := decodePlace(val)
		if err == nil && p.hasBase() {
			if c.bases == nil {
				c.bases = newFilter(int(c.s.Stats().Blocks))
			}
			c.bases.add(p.base)
		}
		return errors.Join(err, ctx.Err())
	})
}

// take removes entries from the index unless a batch has claimed them meanwhile. While
// their removal is under way they are not held; afterwards they are not there. It
// returns how many patches went.
func (c *Collection) take(ctx context.Context, list []deadEntry, dead, live *int64, countLive bool) (patches int, err error) {
	if err := ctx.Err(); err != nil || len(list) == 0 {
		return 0, err
	}
	taken, err := c.choose(ctx, list)
	if err != nil {
		return 0, err
	}
	next := 0 // taken is a part of list, in its order
	for _, e := range list {
		switch {
		case next < len(taken) && taken[next].digest == e.digest:
			next++
			*dead++
			c.count(e.place, true)
			if e.place.isPatch() {
				patches++
			}
		case countLive:
			*live++
			c.count(e.place, false)
		}
	}
	if c.o.DryRun || len(taken) == 0 {
		return patches, nil
	}
	defer c.releaseTaken()
	if err := c.s.o.hook("collect", "taken"); err != nil {
		return 0, noSpace(err)
	}
	return patches, c.removeEntries(taken)
}

// choose puts those of list that nobody claimed into c.taking.
func (c *Collection) choose(ctx context.Context, list []deadEntry) ([]deadEntry, error) {
	for {
		if err := c.follow(ctx); err != nil {
			return nil, err
		}
		c.s.gate.Lock()
		if len(c.queue) > 0 { // a node was hit just now: first what is below it
			c.s.gate.Unlock()
			continue
		}
		taken := make([]deadEntry, 0, len(list))
		for _, e := range list {
			if !c.spared(e.digest) {
				taken = append(taken, e)
				if !c.o.DryRun {
					c.taking[entry{e.kind, e.digest}] = struct{}{}
				}
			}
		}
		c.s.gate.Unlock()
		return taken, nil
	}
}

func (c *Collection) releaseTaken() {
	c.s.gate.Lock()
	defer c.s.gate.Unlock()
	clear(c.taking)
}

// removeEntries removes entries that still name the same record, durably.
func (c *Collection) removeEntries(list []deadEntry) error {
	if len(list) > 0 {
		c.s.relieve(c.s.indexRoomNow()) // the index is written to before a byte is freed
	}
	for len(list) > 0 {
		n := min(len(list), sweepEntries)
		if err := c.s.o.hook("collect", "remove entries"); err != nil {
			return noSpace(err)
		}
		err := c.s.index.update(func(ch *change) error {
			for i := range list[:n] {
				if _, err := ch.removeAt(list[i].indexKey(), list[i].place); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		list = list[n:]
	}
	return noSpace(c.s.o.hook("collect", "entries are removed"))
}
