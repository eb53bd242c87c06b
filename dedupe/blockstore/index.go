package blockstore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"

	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/pack"
)

// index is Badger, with the counts that go with its entries.
type index struct {
	db   *badger.DB
	room func(bytes int64) error // asked before each write; nil: no limit
	bugs bugs                    // that tests seed

	mu sync.Mutex // serializes writers: a count belongs to the transaction that changes it
	m  meta
}

var errNoIndex = errors.New("no index")

// badgerOptions are those of an index. Measured on 4.9.6: db.Sync is no durability
// barrier, a power cut right after a memtable's rotation loses what it acknowledged,
// hence SyncWrites; values stay out of the value log, whose collection loses live
// ones; digests do not compress; there is one writer, so no conflicts.
func badgerOptions(dir string) badger.Options {
	o := badger.DefaultOptions(dir)
	o.SyncWrites = true
	o.ValueThreshold = 1 << 20
	o.DetectConflicts = false
	o.Compression = options.None
	o.ChecksumVerificationMode = options.OnTableAndBlockRead
	o.VerifyValueChecksum = true
	o.CompactL0OnClose = true
	o.IndexCacheSize = 256 << 20
	o.Logger = nil
	// The vault's own lock guards the index. Badger's is released by closing a file,
	// which a child process that is just being started keeps open a little longer.
	o.BypassLockGuard = true
	return o
}

// openBadger opens Badger and turns a panic, which is how some damage shows, into
// an error.
func openBadger(o badger.Options) (db *badger.DB, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%v: %w", p, dedupe.ErrCorrupt)
		}
	}()
	return badger.Open(o)
}

// openIndex opens an index and reads its meta; errNoIndex when there is none.
func openIndex(o badger.Options) (*index, error) {
	db, err := openBadger(o)
	if err != nil {
		return nil, err
	}
	x := &index{db: db}
	if err := x.loadMeta(); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return x, nil
}

func (x *index) loadMeta() error {
	b, err := x.get([]byte{prefixMeta})
	if err != nil {
		return err
	}
	if b == nil {
		return errNoIndex
	}
	x.m, err = decodeMeta(b)
	return err
}

// newIndex makes an empty index.
func newIndex(o badger.Options, vault pack.VaultID, epoch uint32) (*index, error) {
	db, err := openBadger(o)
	if err != nil {
		return nil, err
	}
	x := &index{db: db, m: meta{vault: vault, nextSerial: 1, nextSequence: 1, nextPack: 1, epoch: epoch}}
	if err := x.update(nil); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return x, nil
}

// get is a copy of the value of a key, or nil.
func (x *index) get(key []byte) (val []byte, err error) {
	err = x.db.View(func(txn *badger.Txn) error {
		item, err := txn.Get(key)
		if err != nil {
			return err
		}
		val, err = item.ValueCopy(nil)
		return err
	})
	if errors.Is(err, badger.ErrKeyNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read index: %w", err)
	}
	return val, nil
}

// lookup is the place of a block, node or published manifest.
func (x *index) lookup(kind dedupe.Kind, d dedupe.Digest) (p place, ok bool, err error) {
	err = x.db.View(func(txn *badger.Txn) error {
		p, ok, err = lookupIn(txn, kind, d)
		return err
	})
	return p, ok, err
}

// lookups is lookup of several blocks, but for those that are found already. Beginning and
// ending a transaction takes longer than looking up, and it is one for all of them.
func (x *index) lookups(digests []dedupe.Digest, places []place, ok []bool, errs []error) {
	err := x.db.View(func(txn *badger.Txn) error {
		for i, d := range digests {
			if !ok[i] {
				places[i], ok[i], errs[i] = lookupIn(txn, dedupe.KindBlock, d)
			}
		}
		return nil
	})
	for i := range digests {
		if err != nil && !ok[i] {
			errs[i] = fmt.Errorf("read index: %w", err)
		}
	}
}

func lookupIn(txn *badger.Txn, kind dedupe.Kind, d dedupe.Digest) (p place, ok bool, err error) {
	item, err := txn.Get(contentKey(kind, d))
	if err == nil {
		err = item.Value(func(val []byte) (err error) {
			p, err = decodePlace(val)
			return err
		})
	}
	if errors.Is(err, badger.ErrKeyNotFound) {
		return place{}, false, nil
	}
	if err != nil {
		return place{}, false, fmt.Errorf("read index: %w", err)
	}
	return p, true, nil
}

// pack is the row of a pack by its number.
func (x *index) pack(number uint32) (packRow, bool, error) {
	b, err := x.get(packKey(number))
	if b == nil || err != nil {
		return packRow{}, false, err
	}
	r, err := decodePackRow(number, b)
	return r, err == nil, err
}

// packByID is the row of a pack by its id.
func (x *index) packByID(id pack.ID) (packRow, bool, error) {
	b, err := x.get(append([]byte{prefixPackID}, id[:]...))
	if b == nil || err != nil {
		return packRow{}, false, err
	}
	if len(b) != 4 {
		return packRow{}, false, fmt.Errorf("index row of pack %v: %w", id, dedupe.ErrCorrupt)
	}
	return x.pack(binary.BigEndian.Uint32(b))
}

// numberPack takes the next pack number. It is durable with the pack's first row.
func (x *index) numberPack() (uint32, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.m.nextPack == math.MaxUint32 {
		return 0, errors.New("the vault has used all pack numbers: rebuild its index")
	}
	n := x.m.nextPack
	x.m.nextPack++
	return n, nil
}

// useSerial lets the next commit have another serial than one that was cancelled: should
// it publish the same again, its publication would else be the same record, and cancelled.
func (x *index) useSerial(serial uint64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.m.nextSerial = max(x.m.nextSerial, serial+1)
}

// change is one transaction being made.
type change struct {
	txn  *badger.Txn
	m    meta
	bugs bugs
}

// update runs fn and commits what it set, durably and all or nothing, together with
// the counts. Nil fn writes the counts alone.
func (x *index) update(fn func(c *change) error) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.room != nil {
		if err := x.room(txnEntries * entryBytes); err != nil {
			return err
		}
	}
	c := change{txn: x.db.NewTransaction(true), m: x.m, bugs: x.bugs}
	defer c.txn.Discard()
	if fn != nil {
		if err := fn(&c); err != nil {
			return err
		}
	}
	if err := c.txn.Set([]byte{prefixMeta}, c.m.encode()); err != nil {
		return fmt.Errorf("write index: %w", err)
	}
	if err := c.txn.Commit(); err != nil {
		return fmt.Errorf("write index: %w", err)
	}
	x.m = c.m
	return nil
}

func (c *change) set(key, val []byte) error {
	if err := c.txn.Set(key, val); err != nil {
		return fmt.Errorf("write index: %w", err)
	}
	return nil
}

// lookup is the place of a block, node or manifest, as the transaction has it.
func (c *change) lookup(kind dedupe.Kind, d dedupe.Digest) (p place, ok bool, err error) {
	item, err := c.txn.Get(contentKey(kind, d))
	if errors.Is(err, badger.ErrKeyNotFound) {
		return p, false, nil
	}
	if err == nil {
		err = item.Value(func(val []byte) (err error) {
			p, err = decodePlace(val)
			return err
		})
	}
	if errors.Is(err, dedupe.ErrCorrupt) {
		return p, true, nil // whatever it says, it is replaced like another place
	}
	if err != nil {
		return p, false, fmt.Errorf("read index: %w", err)
	}
	return p, true, nil
}

// setPlace enters a block, node or manifest, replacing an entry unless keep is set. A
// patch replaces only a deeper one: what is in the index may be the base of others, and
// then only gets closer to a whole block. So a base always has a smaller depth than what
// lies over it, also when two batches store the same block over different ones.
func (c *change) setPlace(kind dedupe.Kind, d dedupe.Digest, p place, keep bool) error {
	old, had, err := c.lookup(kind, d)
	deeper := p.depth >= old.depth && p.isPatch() && !p.same(old) && !c.bugs.deeper
	if err != nil || had && (keep || deeper) {
		return err
	}
	return c.putPlace(kind, d, p, had)
}

// putPlace sets an entry; had says whether there is one.
func (c *change) putPlace(kind dedupe.Kind, d dedupe.Digest, p place, had bool) error {
	if !had {
		switch kind {
		case dedupe.KindBlock:
			c.m.blocks++
		case dedupe.KindNode:
			c.m.nodes++
		}
	}
	return c.set(contentKey(kind, d), p.append(make([]byte, 0, patchSize)))
}

// setPack enters a pack's row and counts its bytes.
func (c *change) setPack(r packRow) error {
	item, err := c.txn.Get(packKey(r.number))
	switch {
	case errors.Is(err, badger.ErrKeyNotFound):
		c.m.packs++
		c.m.nextPack = max(c.m.nextPack, r.number+1)
		if err := c.set(append([]byte{prefixPackID}, r.id[:]...), binary.BigEndian.AppendUint32(nil, r.number)); err != nil {
			return err
		}
	case err != nil:
		return fmt.Errorf("read index: %w", err)
	default:
		b, err := item.ValueCopy(nil)
		if err != nil {
			return fmt.Errorf("read index: %w", err)
		}
		old, err := decodePackRow(r.number, b)
		if err != nil {
			return err
		}
		c.m.packBytes -= old.end
	}
	c.m.packBytes += r.end
	return c.set(packKey(r.number), r.encode())
}

// value is a copy of the value of a key, or nil.
func (c *change) value(key []byte) ([]byte, error) {
	item, err := c.txn.Get(key)
	if errors.Is(err, badger.ErrKeyNotFound) {
		return nil, nil
	}
	if err == nil {
		var b []byte
		if b, err = item.ValueCopy(nil); err == nil {
			return b, nil
		}
	}
	return nil, fmt.Errorf("read index: %w", err)
}

// isAt reports whether an entry exists and still names the record at p.
func (c *change) isAt(key []byte, p place) (val []byte, ok bool, err error) {
	if val, err = c.value(key); val == nil || err != nil {
		return nil, false, err
	}
	now, err := decodePlace(val)
	return val, err == nil && now.same(p), err
}

// removeAt removes an entry if it still names the record at p.
func (c *change) removeAt(key []byte, p place) (bool, error) {
	_, ok, err := c.isAt(key, p)
	if !ok || err != nil {
		return false, err
	}
	switch key[0] {
	case prefixBlock:
		c.m.blocks--
	case prefixNode:
		c.m.nodes--
	}
	return true, c.remove(key)
}

// moveTo lets an entry name the record at to, if it still names the one at from. What is
// behind the place, the digest of a note, stays.
func (c *change) moveTo(key []byte, from, to place) (bool, error) {
	val, ok, err := c.isAt(key, from)
	if !ok || err != nil {
		return false, err
	}
	now, err := decodePlace(val)
	if err != nil {
		return false, err
	}
	return true, c.set(key, append(to.append(nil), val[now.encodedSize():]...))
}

func (c *change) remove(key []byte) error {
	if err := c.txn.Delete(key); err != nil {
		return fmt.Errorf("write index: %w", err)
	}
	return nil
}

// removePack removes a pack's row.
func (c *change) removePack(r packRow) error {
	b, err := c.value(packKey(r.number))
	if b == nil || err != nil {
		return err
	}
	old, err := decodePackRow(r.number, b)
	if err != nil {
		return err
	}
	c.m.packs--
	c.m.packBytes -= old.end
	if err := c.remove(append([]byte{prefixPackID}, r.id[:]...)); err != nil {
		return err
	}
	return c.remove(packKey(r.number))
}

// addEntries enters records of one pack, durably, in transactions of bounded size;
// the pack's row goes into each of them. Kinds that are published otherwise are
// left out.
func (x *index) addEntries(row packRow, epoch uint32, entries []pack.Entry, keep bool) error {
	return x.addRows(row, rowsOf(row.number, epoch, entries), func(c *change, r *indexRow) error {
		return c.setPlace(r.kind, r.digest, r.place, keep)
	})
}

// addRows calls set for each row, in transactions that enter the pack's row too.
func (x *index) addRows(row packRow, rows []indexRow, set func(c *change, r *indexRow) error) error {
	for first := true; first || len(rows) > 0; first = false {
		n := min(len(rows), txnEntries)
		err := x.update(func(c *change) error {
			if err := c.setPack(row); err != nil {
				return err
			}
			for i := range rows[:n] {
				if err := set(c, &rows[i]); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		rows = rows[n:]
	}
	return nil
}

// addFound enters what was found in a pack, without being believed, and keeps what
// the index has: whole blocks and nodes when depth is 0, else the patches of that
// depth. Called for all packs with one depth after the other it takes a whole record
// of a block before its patches, and a patch only over a base that the index has, and
// counts it as deeper than that, so that following bases always ends. What has no base
// is left out: it could not be read. Of two records of one content, of the same depth, the
// one that the index has is kept if f.intact says so: the other one was stored to heal it.
func (x *index) addFound(row packRow, entries []pack.Entry, depth uint8, f *finding) error {
	rows := rowsOf(row.number, 0, entries)
	return x.addRows(row, slices.DeleteFunc(rows, func(r indexRow) bool { return r.place.depth != depth || f.left[r.patchAt()] }),
		func(c *change, r *indexRow) error {
			if r.place.hasBase() {
				base, ok, err := c.lookup(dedupe.KindBlock, r.place.base)
				if err != nil || !ok || base.depth >= pack.MaxPatchDepth {
					return err
				}
				r.place.depth = max(depth, base.depth+1)
			}
			old, had, err := c.lookup(r.kind, r.digest)
			if err != nil || had && f.keeps(indexRow{r.kind, r.digest, old}, *r) {
				return err
			}
			return c.putPlace(r.kind, r.digest, r.place, had)
		})
}

// finding decides which of several records of one content the index has.
type finding struct {
	// intact says whether the record of an entry is there and its checksums are right.
	intact func(indexRow) bool
	// hiding gets the patches that are damaged and in the index, and would give way to one
	// that is not, but lies deeper; nil: nobody asks. It must not come instead of them at
	// once, since others may lie over them already.
	hiding map[patchAt]bool
	left   map[patchAt]bool // those that are not entered
}

// patchAt is where the patch of a block lies.
type patchAt struct {
	digest       dedupe.Digest
	pack, offset uint32
	slot         uint8
}

func (r indexRow) patchAt() patchAt {
	return patchAt{r.digest, r.place.pack, r.place.offset, r.place.slot}
}

// keeps reports whether the index keeps old though r was found.
func (f *finding) keeps(old, r indexRow) bool {
	switch {
	case old.place.same(r.place):
		return true
	case old.place.depth < r.place.depth:
		if f.hiding != nil && old.place.isPatch() && !f.intact(old) && f.intact(r) {
			f.hiding[old.patchAt()] = true
		}
		return true
	case old.place.depth == r.place.depth:
		return f.intact(old)
	default:
		return r.place.isPatch() && !f.intact(r)
	}
}

// dropPatches removes the entries of all patches.
func (x *index) dropPatches() error {
	for from := []byte{prefixBlock}; from != nil; {
		var rows []deadEntry
		next := []byte(nil)
		err := x.scanFrom(from, func(key, val []byte) error {
			e, err := decodeEntry(dedupe.KindBlock, key, val)
			if err != nil || !e.place.isPatch() {
				return err
			}
			if len(rows) == txnEntries {
				next = slices.Clone(key)
				return errStop
			}
			rows = append(rows, e)
			return nil
		})
		if err != nil && !errors.Is(err, errStop) {
			return err
		}
		err = x.update(func(c *change) error {
			for i := range rows {
				if _, err := c.removeAt(rows[i].indexKey(), rows[i].place); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		from = next
	}
	return nil
}

// hideDamaged removes the entries of whole blocks that are not intact and have an intact
// patch among entries, so that addFound takes that, and returns them. No patch may be in
// the index yet: one could lie over what goes.
func (x *index) hideDamaged(number uint32, entries []pack.Entry, intact func(indexRow) bool) (hidden []indexRow, err error) {
	for _, r := range rowsOf(number, 0, entries) {
		if !r.place.isPatch() {
			continue
		}
		old, had, err := x.lookup(r.kind, r.digest)
		if err != nil {
			return hidden, err
		}
		whole := indexRow{r.kind, r.digest, old}
		if !had || old.isPatch() || intact(whole) || !intact(r) {
			continue
		}
		err = x.update(func(c *change) error {
			_, err := c.removeAt(contentKey(r.kind, r.digest), old)
			return err
		})
		if err != nil {
			return hidden, err
		}
		hidden = append(hidden, whole)
	}
	return hidden, nil
}

// restore enters again what hideDamaged removed and nothing came instead of.
func (x *index) restore(hidden []indexRow) error {
	for _, r := range hidden {
		if err := x.update(func(c *change) error { return c.setPlace(r.kind, r.digest, r.place, true) }); err != nil {
			return err
		}
	}
	return nil
}

// patchDepths is a set of depths of patches: bit i is depth i.
func patchDepths(entries []pack.Entry) (set uint32) {
	for i := range entries {
		for j := range entries[i].Patches {
			set |= 1 << entries[i].Patches[j].Depth
		}
	}
	return set
}

// scan calls yield with each key and value under a prefix, in order of keys, until
// it returns an error, which scan returns. Both are only valid during the call.
func (x *index) scan(prefix byte, yield func(key, val []byte) error) error {
	return x.scanFrom([]byte{prefix}, yield)
}

// scanFrom is scan of the keys with from's first byte, from the key from on.
func (x *index) scanFrom(from []byte, yield func(key, val []byte) error) error {
	return x.db.View(func(txn *badger.Txn) error {
		o := badger.DefaultIteratorOptions
		o.Prefix = from[:1]
		it := txn.NewIterator(o)
		defer it.Close()
		for it.Seek(from); it.Valid(); it.Next() {
			item := it.Item()
			if err := item.Value(func(val []byte) error { return yield(item.Key(), val) }); err != nil {
				return err
			}
		}
		return nil
	})
}

func (x *index) close() (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("close index: %v: %w", p, dedupe.ErrCorrupt)
		}
	}()
	if err := x.db.Close(); err != nil {
		return fmt.Errorf("close index: %w", err)
	}
	return nil
}
