package blockstore

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/keelblock/keelblock/dedupe"
)

// DefaultCollectMemory bounds the filter of live blocks of a collection: 2 bytes for
// each block, so that 128 Mi blocks, 8 TiB of 64 KiB, are marked in one pass.
const DefaultCollectMemory = 256 << 20

// ErrCollecting: a collection of this vault is under way.
var ErrCollecting = errors.New("the vault is being collected already")

// CollectOptions of a Collection. The zero value frees all that can be freed.
type CollectOptions struct {
	// DryRun changes nothing and only counts.
	DryRun bool
	// IndexOnly removes entries from the index and touches no pack: the end of a
	// rebuild.
	IndexOnly bool
	// MemoryBytes bounds the filter of live blocks; 0 is DefaultCollectMemory. When it
	// does not hold all blocks, blocks are marked and swept in several passes. The set
	// of live nodes, some 6 MiB for each TiB of distinct blocks of 64 KiB, comes on
	// top.
	MemoryBytes int64
	// Freeing says that there is something to free, so that Options.Relieve is asked for the
	// room that a full disk lacks for that.
	Freeing bool
	// MinAge leaves alone what is in packs written to less than that ago. A vault that
	// receives from a peer sets 24 h: what came before a stop of either site is not
	// in an open batch any more, and the peer goes on where it was.
	MinAge time.Duration
}

// CollectReport says what a Collection found and did.
type CollectReport struct {
	DryRun bool
	Points int64 // that were marked
	// Live is what entries of the index name and something needs, in records with
	// their headers; Dead is what nothing needs.
	LiveBlocks, LiveNodes, LiveBytes int64
	DeadBlocks, DeadNodes, DeadBytes int64
	DeadPoints                       int64 // whose manifests and notes go
	// DroppedPacks held nothing that is needed, RewrittenPacks too little; CopiedBytes
	// of them were written again.
	DroppedPacks, RewrittenPacks int64
	CopiedBytes                  int64
	// FreedBytes of packs, less CopiedBytes; of a dry run: an estimate.
	FreedBytes int64
	// PackBytes are in packs afterwards.
	PackBytes int64
	Passes    int
	// Problems are packs that were kept although they should go, and why.
	Problems []string
	// NoSpace: packs were dropped, but there was no room to write others again.
	NoSpace bool
}

// Collection is one collection under way: mark, then sweep. Package collection has
// the essay. Its methods are called by one goroutine.
type Collection struct {
	s *Store
	o CollectOptions
	// old are the packs that the collection may take from: sealed when it began, and no
	// batch was open that had written to them.
	old     map[uint32]bool
	rows    map[uint32]packRow
	windows []*seen // of the batches that were open when it began

	nodes   map[dedupe.Digest]struct{} // live ones, of this pass
	blocks  *filter                    // live ones whose digests begin with [low, high)
	low     uint32
	high    uint32
	passes  int
	tally   map[uint32]*packTally
	bundles map[uint64]struct{} // pack and offset of those with a live patch
	bases   *filter             // of all patches in the index; nil without patches
	lone    loneBases           // those that nothing else needs; nil while nobody asks
	repack  repacking
	outData *openPack // what it writes
	outMeta *openPack
	report  CollectReport

	mu       sync.Mutex
	hits     seen                       // digests that were said to be held since it began
	taking   map[entry]struct{}         // being removed from the index: not held
	queue    []dedupe.Digest            // nodes that were hit and not yet followed
	followed map[dedupe.Digest]struct{} // nodes that were hit
}

// packTally is what the index says of one pack.
type packTally struct {
	live, dead int64 // entries
	liveBytes  int64 // of records, each once
}

// BeginCollection begins a collection. From now until End everything that is said to be
// held is live, whatever reaches it. ErrCollecting when one is under way.
func (s *Store) BeginCollection(ctx context.Context, o CollectOptions) (*Collection, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if s.o.ReadOnly && !o.DryRun {
		return nil, dedupe.ErrReadOnly
	}
	if err := s.enter(); err != nil {
		return nil, err
	}
	defer s.leave()
	c := &Collection{s: s, o: o, old: make(map[uint32]bool), rows: make(map[uint32]packRow),
		taking: make(map[entry]struct{}), followed: make(map[dedupe.Digest]struct{}), tally: make(map[uint32]*packTally), bundles: make(map[uint64]struct{})}
	c.report.DryRun = o.DryRun
	if !o.DryRun {
		if err := s.settleCommit(); err != nil {
			return nil, fmt.Errorf("begin collection: %w", err)
		}
	}
	if !o.DryRun && !o.IndexOnly {
		if err := s.sealIdle(o.Freeing); err != nil {
			return nil, fmt.Errorf("begin collection: %w", err)
		}
	}
	if err := c.install(); err != nil {
		return nil, fmt.Errorf("begin collection: %w", err)
	}
	var left []packRow // of a collection that was cut off
	for _, row := range c.rows {
		if row.state == packDropped {
			left = append(left, row)
		}
	}
	if !o.DryRun && len(left) > 0 {
		if err := s.removePacks(left); err != nil {
			c.End()
			return nil, fmt.Errorf("begin collection: %w", err)
		}
	}
	c.plan()
	return c, nil
}

// install makes c the Store's collection and remembers what is old, in one instant.
func (c *Collection) install() error {
	s := c.s
	s.gate.Lock()
	defer s.gate.Unlock()
	if s.collection != nil {
		return ErrCollecting
	}
	mine := make(map[uint32]bool) // packs of open batches
	s.mu.Lock()
	broken := s.broken
	for b := range s.batches {
		c.windows = append(c.windows, &b.window)
		b.mu.Lock()
		for _, n := range b.packs {
			mine[n] = true
		}
		b.mu.Unlock()
	}
	s.mu.Unlock()
	if broken != nil {
		return broken
	}
	err := s.index.scan(prefixPack, func(key, val []byte) error {
		if len(key) != 5 {
			return fmt.Errorf("index key %x: %w", key, dedupe.ErrCorrupt)
		}
		row, err := decodePackRow(binary.BigEndian.Uint32(key[1:]), val)
		if err != nil {
			return err
		}
		c.rows[row.number] = row
		// A dry run takes nothing, and counts what a collection would seal first.
		if row.state != packOpen || c.o.DryRun || s.o.bugs.takeFresh {
			c.old[row.number] = !mine[row.number] || s.o.bugs.takeFresh
		}
		return nil
	})
	if err != nil {
		return err
	}
	c.leaveYoung()
	if c.o.DryRun && s.o.ReadOnly {
		return nil // nobody writes
	}
	s.collection = c
	return nil
}

// leaveYoung spares packs that were written to less than MinAge ago.
func (c *Collection) leaveYoung() {
	if c.o.MinAge <= 0 {
		return
	}
	now := c.s.o.Now()
	for n := range c.old {
		st, err := os.Stat(c.s.packPath(c.rows[n].id))
		if err == nil && now.Sub(st.ModTime()) < c.o.MinAge {
			delete(c.old, n)
		}
	}
}

// plan chooses the number of passes.
func (c *Collection) plan() {
	memory := c.o.MemoryBytes
	if memory <= 0 {
		memory = DefaultCollectMemory
	}
	blocks := c.s.Stats().Blocks
	c.passes = int(max(1, (blocks*filterBits/8+memory-1)/memory))
	c.passes = min(c.passes, 1<<16)
	c.report.Passes = c.passes
}

// End ends the collection, wherever it is. What it has not done is left to the next
// one, which begins anew: a mark that is resumed would have to know every hit since.
func (c *Collection) End() {
	if err := c.s.enter(); err == nil {
		if err := c.closeOut(); err != nil {
			c.s.log.Error("packs of a collection stay as they are", "vault", c.s.dir, "err", err)
		}
		c.s.leave()
	}
	c.s.gate.Lock()
	if c.s.collection == c {
		c.s.collection = nil
	}
	c.s.gate.Unlock()
}

// Passes is how often marking and SweepBlocks are needed; see StartPass.
func (c *Collection) Passes() int { return c.passes }

// StartPass begins pass n, from 0. In each of them everything is marked, then nodes, in
// the first, and the blocks of one range of digests are swept.
func (c *Collection) StartPass(n int) {
	c.nodes = make(map[dedupe.Digest]struct{})
	c.low, c.high = uint32(n*1<<16/c.passes), uint32((n+1)*1<<16/c.passes)
	c.blocks = newFilter(int(c.s.Stats().Blocks)/c.passes*5/4 + minFilter)
}

// Report is what the collection found and did so far.
func (c *Collection) Report() CollectReport { return c.report }

// isOld reports whether the record at p was in a sealed pack when the collection began.
func (c *Collection) isOld(p place) bool { return c.old[p.pack] }

// spared reports whether a batch was told that it is held.
func (c *Collection) spared(d dedupe.Digest) bool {
	if c.hits.has(d) {
		return true
	}
	if c.s.o.bugs.skipWindow {
		return false
	}
	return slices.ContainsFunc(c.windows, func(w *seen) bool { return w.has(d) })
}

// count adds an entry to the figures of its pack.
func (c *Collection) count(p place, dead bool) {
	t := c.tally[p.pack]
	if t == nil {
		t = new(packTally)
		c.tally[p.pack] = t
	}
	if dead {
		t.dead++
		c.report.DeadBytes += p.account()
		return
	}
	t.live++
	c.report.LiveBytes += p.account()
	if p.isPatch() && c.s.rebundles() {
		t.liveBytes += p.account()
		return
	}
	if p.isPatch() { // its bundle stays whole
		at := uint64(p.pack)<<32 | uint64(p.offset)
		if _, ok := c.bundles[at]; ok {
			return
		}
		c.bundles[at] = struct{}{}
	}
	t.liveBytes += p.size()
}
