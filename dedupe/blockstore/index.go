package blockstore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
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
func (x *index) lookup(kind dedupe.Kind, d dedupe.Digest) (place, bool, error) {
	b, err := x.get(contentKey(kind, d))
	if b == nil || err != nil {
		return place{}, false, err
	}
	p, err := decodePlace(b)
	return p, err == nil, err
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

// change is one transaction being made.
type change struct {
	txn *badger.Txn
	m   meta
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
	c := change{txn: x.db.NewTransaction(true), m: x.m}
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

// has reports whether a key exists.
func (c *change) has(key []byte) (bool, error) {
	_, err := c.txn.Get(key)
	if errors.Is(err, badger.ErrKeyNotFound) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read index: %w", err)
	}
	return true, nil
}

// setPlace enters a block, node or manifest, replacing an entry unless keep is set.
func (c *change) setPlace(kind dedupe.Kind, d dedupe.Digest, p place, keep bool) error {
	key := contentKey(kind, d)
	had, err := c.has(key)
	if err != nil || (had && keep) {
		return err
	}
	if !had {
		switch kind {
		case dedupe.KindBlock:
			c.m.blocks++
		case dedupe.KindNode:
			c.m.nodes++
		}
	}
	return c.set(key, p.append(make([]byte, 0, placeSize)))
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

// addEntries enters records of one pack, durably, in transactions of bounded size;
// the pack's row goes into each of them. Kinds that are published otherwise are
// left out.
func (x *index) addEntries(row packRow, epoch uint32, entries []pack.Entry, keep bool) error {
	for first := true; first || len(entries) > 0; first = false {
		n := min(len(entries), txnEntries)
		err := x.update(func(c *change) error {
			if err := c.setPack(row); err != nil {
				return err
			}
			for i := range entries[:n] {
				e := &entries[i]
				if e.Kind != dedupe.KindBlock && e.Kind != dedupe.KindNode {
					continue
				}
				if err := c.setPlace(e.Kind, e.Digest, placeOf(row.number, epoch, e), keep); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		entries = entries[n:]
	}
	return nil
}

// scan calls yield with each key and value under a prefix, in order of keys, until
// it returns an error, which scan returns. Both are only valid during the call.
func (x *index) scan(prefix byte, yield func(key, val []byte) error) error {
	return x.db.View(func(txn *badger.Txn) error {
		o := badger.DefaultIteratorOptions
		o.Prefix = []byte{prefix}
		it := txn.NewIterator(o)
		defer it.Close()
		for it.Rewind(); it.Valid(); it.Next() {
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
