package blockstore

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/pack"
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

// bugs are mistakes that tests seed, to see that they would be found.
type bugs struct {
	skipHit      bool // a hit does not keep what was hit
	skipWindow   bool // what open batches were told to be held does not count
	skipPatch    bool // a patch that another batch stores, too, is not in the window
	skipStored   bool // nor is what is stored whole
	deeper       bool // a deeper patch replaces a shallower one of the same block
	skipTaking   bool // what is being taken is still held
	childrenLast bool // false: right. true: the sweep takes children before their nodes
	touchAnyway  bool // an entry that was verified is written back though it has moved
	removeFirst  bool // a pack goes before its entries have moved
	takeFresh    bool // records written since the mark began are not spared
	noCheckpoint bool // dead points are dropped without a checkpoint
	notesAlone   bool // a note goes though the manifest that it is about stays
	notesFirst   bool // purge notes go before the manifests they purge
	basesGo      bool // what only patches need goes
	bundlesWhole bool // no bundle is put together anew: no loss, only bytes
	keepSlots    bool // a patch in a new bundle is looked for where it was in the old one
	skipBase     bool // who puts a patch does not claim its base
	removeOnce   bool // a pack goes at one location only
	keepSurplus  bool // a location that comes back keeps the packs that went meanwhile
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

// MarkBlock marks one block.
func (c *Collection) MarkBlock(d dedupe.Digest) {
	if !d.IsZero() && c.inPass(d) {
		c.blocks.add(d)
	}
}

// MarkTree marks the node d of the given level and all below it. A node that was marked
// before is not gone through again. A node that cannot be read ends the collection:
// what is below it is needed and not known.
func (c *Collection) MarkTree(ctx context.Context, level int, d dedupe.Digest) error {
	if d.IsZero() {
		return nil
	}
	if level < 0 {
		c.MarkBlock(d)
		return nil
	}
	if _, ok := c.nodes[d]; ok {
		return nil
	}
	c.nodes[d] = struct{}{}
	children, err := c.node(ctx, level, d)
	if err != nil {
		return err
	}
	for i := range children {
		if err := c.MarkTree(ctx, level-1, children[i]); err != nil {
			return err
		}
	}
	return nil
}

// node reads a node and compares it with the level at which it is named; -1 is any.
func (c *Collection) node(ctx context.Context, level int, d dedupe.Digest) (*[dedupe.FanOut]dedupe.Digest, error) {
	content, err := c.s.Get(ctx, dedupe.KindNode, d, make([]byte, 0, pack.NodeSize))
	if err != nil {
		return nil, err
	}
	children, err := pack.DecodeNode(content)
	if err == nil && level >= 0 && dedupe.NodeSum(level, children) != d {
		err = fmt.Errorf("node %v is not of level %d: %w", d, level, dedupe.ErrCorrupt)
	}
	return children, err
}

// hit says that an entry is needed, and whether it is still there. Store.gate is held.
func (c *Collection) hit(kind dedupe.Kind, d dedupe.Digest) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.taking[entry{kind, d}]; ok && !c.s.o.bugs.skipTaking {
		return false
	}
	if c.s.o.bugs.skipHit {
		return true
	}
	c.hits.add(d)
	if kind == dedupe.KindNode {
		c.enqueueLocked(d)
	}
	return true
}

// enqueue puts a node into the queue of those to be followed, once.
func (c *Collection) enqueue(d dedupe.Digest) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.enqueueLocked(d)
}

func (c *Collection) enqueueLocked(d dedupe.Digest) {
	if _, ok := c.followed[d]; !ok {
		c.followed[d] = struct{}{}
		c.queue = append(c.queue, d)
	}
}

// follow marks what is below nodes that were hit. The batch has put their children
// itself, or has them from a point that its user pinned; this is for whoever will not.
func (c *Collection) follow(ctx context.Context) error {
	for {
		c.mu.Lock()
		list := c.queue
		c.queue = nil
		c.mu.Unlock()
		if len(list) == 0 {
			return nil
		}
		for _, d := range list {
			if err := c.followNode(ctx, -1, d); err != nil {
				return err
			}
		}
	}
}

func (c *Collection) followNode(ctx context.Context, level int, d dedupe.Digest) error {
	if _, ok := c.nodes[d]; ok {
		return nil // all below it is marked
	}
	children, err := c.node(ctx, level, d)
	if errors.Is(err, dedupe.ErrNotFound) || errors.Is(err, dedupe.ErrCorrupt) {
		return nil // it was hit in its batch, or what it names is gone: it proves nothing
	}
	if err != nil {
		return err
	}
	below, err := c.levelOf(d)
	if err != nil {
		return err
	}
	for _, child := range children {
		if child.IsZero() {
			continue
		}
		c.hits.add(child)
		if below > 0 {
			c.mu.Lock()
			_, known := c.followed[child]
			c.followed[child] = struct{}{}
			c.mu.Unlock()
			if !known {
				if err := c.followNode(ctx, below-1, child); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// levelOf is the level of a node, as the index knows it.
func (c *Collection) levelOf(d dedupe.Digest) (int, error) {
	p, ok, err := c.s.find(dedupe.KindNode, d)
	if !ok {
		return 0, err
	}
	return int(p.level), err
}

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
		if err == nil && p.isPatch() {
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
