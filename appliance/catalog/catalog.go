package catalog

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"log/slog"
	"os"
	"strings"
	"sync"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"
	"golang.org/x/sys/unix"

	"github.com/keelblock/keelblock/dedupe/blockstore/badgerfiles"
)

const (
	magic0, magic1 = 'K', 'c'
	version        = 1
	headerSize     = 8
	// MaxNameLength bounds a key in a collection, in bytes.
	MaxNameLength = 255
)

var (
	// ErrDamaged: a stored document is not what its checksum says.
	ErrDamaged = errors.New("catalog entry is damaged")
	// ErrClosed: the catalog was closed.
	ErrClosed = errors.New("catalog is closed")
	// ErrNoSpace: less than Options.ReserveBytes are free. Badger writes to mapped
	// files and would die by SIGBUS on a full file system. It is an ENOSPC.
	ErrNoSpace = fmt.Errorf("catalog: %w", unix.ENOSPC)
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Options of a catalog.
type Options struct {
	// Logger receives Badger's warnings. nil: none.
	Logger *slog.Logger
	// ReserveBytes must be free on the file system, or Open and Update are
	// ErrNoSpace. 0: DefaultReserve.
	ReserveBytes int64
}

// DefaultReserve is what a memory table can take in its log.
const DefaultReserve = memTableSize

// memTableSize is small, as the catalog holds a few megabytes, but a transaction of
// Badger must fit a sixth of it.
const memTableSize = 8 << 20

// MaxDocumentBytes bounds an encoded document: Badger's value log stays empty.
const MaxDocumentBytes = 1<<20 - 1<<10

// DB is an open catalog.
type DB struct {
	mu     sync.RWMutex // held for reading during each call, so that Close waits
	closed bool
	b      *badger.DB

	dir     string
	reserve int64
}

// Open opens or creates the catalog in dir. One process at a time may hold it.
func Open(dir string, o Options) (*DB, error) {
	bo := badger.DefaultOptions(dir)
	bo.SyncWrites = true
	bo.ValueThreshold = 1 << 20
	bo.DetectConflicts = false
	bo.Compression = options.None
	bo.ChecksumVerificationMode = options.OnTableAndBlockRead
	bo.VerifyValueChecksum = true
	bo.CompactL0OnClose = true
	// Small tables and logs keep it small on disk and in memory.
	bo.MemTableSize = memTableSize
	bo.ValueLogFileSize = 16 << 20
	bo.BlockCacheSize = 8 << 20
	bo.IndexCacheSize = 8 << 20
	bo.NumMemtables = 2
	bo.NumLevelZeroTables = 2
	bo.NumLevelZeroTablesStall = 6
	bo.NumCompactors = 2
	bo.MetricsEnabled = false
	bo.Logger = nil
	if o.Logger != nil {
		bo.Logger = badgerLog{o.Logger}
	}
	d := &DB{dir: dir, reserve: o.ReserveBytes}
	if d.reserve == 0 {
		d.reserve = DefaultReserve
	}
	err := os.MkdirAll(dir, 0o700)
	if err == nil {
		err = d.checkSpace()
	}
	if err == nil {
		err = checkFiles(dir)
	}
	if err == nil {
		err = badgerfiles.RemoveEmptyLogs(dir)
	}
	if err == nil {
		d.b, err = openBadger(bo)
	}
	if err != nil {
		return nil, fmt.Errorf("open catalog %s: %w", dir, err)
	}
	return d, nil
}

// checkSpace is ErrNoSpace when less than the reserve is free.
func (d *DB) checkSpace() error {
	var st unix.Statfs_t
	if err := unix.Statfs(d.dir, &st); err != nil {
		return err
	}
	// What the superuser may use counts: it is the daemon that would die.
	if free := int64(st.Bfree) * st.Bsize; free < d.reserve {
		return fmt.Errorf("%d bytes are free and %d needed: %w", free, d.reserve, ErrNoSpace)
	}
	return nil
}

// openBadger turns Badger's panics on damaged tables into errors.
func openBadger(o badger.Options) (b *badger.DB, err error) {
	defer func() {
		if p := recover(); p != nil {
			b, err = nil, fmt.Errorf("%w: %v", ErrDamaged, p)
		}
	}()
	return badger.Open(o)
}

// Close waits for calls under way and closes the database. A second Close is
// harmless.
func (d *DB) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil
	}
	d.closed = true
	if err := d.b.Close(); err != nil {
		return fmt.Errorf("close catalog: %w", err)
	}
	return nil
}

// enter keeps the database open until leave is called.
func (d *DB) enter() (leave func(), err error) {
	d.mu.RLock()
	if d.closed {
		d.mu.RUnlock()
		return nil, ErrClosed
	}
	return d.mu.RUnlock, nil
}

// Collection is a set of documents of one type, by name.
type Collection[T any] struct {
	db     *DB
	prefix string
}

// NewCollection returns the collection of db with this name, which has no 0 byte.
func NewCollection[T any](db *DB, name string) *Collection[T] {
	return &Collection[T]{db: db, prefix: name + "\x00"}
}

// Put stores v under name, durably, in place of what was there.
func (c *Collection[T]) Put(name string, v T) error {
	return c.Update(map[string]*T{name: &v})
}

// Update stores the values and deletes names whose value is nil, all or none.
func (c *Collection[T]) Update(changes map[string]*T) error {
	leave, err := c.db.enter()
	if err != nil {
		return fmt.Errorf("update catalog: %w", err)
	}
	defer leave()
	if err := c.db.checkSpace(); err != nil {
		return fmt.Errorf("update catalog: %w", err)
	}
	err = c.db.b.Update(func(txn *badger.Txn) error {
		for name, v := range changes {
			if name == "" || len(name) > MaxNameLength {
				return fmt.Errorf("name of %d bytes, want 1 to %d", len(name), MaxNameLength)
			}
			key := []byte(c.prefix + name)
			if v == nil {
				if err := txn.Delete(key); err != nil {
					return err
				}
				continue
			}
			value, err := encode(key, v)
			if err != nil {
				return err
			}
			if err := txn.Set(key, value); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("update catalog: %w", err)
	}
	return nil
}

// Get returns what is stored under name, and whether there is anything.
func (c *Collection[T]) Get(name string) (v T, ok bool, err error) {
	leave, err := c.db.enter()
	if err != nil {
		return v, false, fmt.Errorf("read catalog: %w", err)
	}
	defer leave()
	key := []byte(c.prefix + name)
	err = c.db.b.View(func(txn *badger.Txn) error {
		item, err := txn.Get(key)
		if errors.Is(err, badger.ErrKeyNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		ok = true
		return item.Value(func(value []byte) error { return decode(key, value, &v) })
	})
	if err != nil {
		return v, false, fmt.Errorf("read catalog: %w", err)
	}
	return v, ok, nil
}

// Delete removes name, durably. An absent name is no error.
func (c *Collection[T]) Delete(name string) error {
	return c.Update(map[string]*T{name: nil})
}

// Each calls yield for every document in ascending order of names until it returns
// false. It sees one instant of the collection.
func (c *Collection[T]) Each(ctx context.Context, yield func(name string, v T) bool) error {
	leave, err := c.db.enter()
	if err != nil {
		return fmt.Errorf("list catalog: %w", err)
	}
	defer leave()
	err = c.db.b.View(func(txn *badger.Txn) error {
		it := txn.NewIterator(badger.IteratorOptions{Prefix: []byte(c.prefix), PrefetchValues: true, PrefetchSize: 64})
		defer it.Close()
		for it.Rewind(); it.Valid(); it.Next() {
			if err := ctx.Err(); err != nil {
				return err
			}
			var v T
			key := it.Item().KeyCopy(nil)
			if err := it.Item().Value(func(value []byte) error { return decode(key, value, &v) }); err != nil {
				return err
			}
			if !yield(strings.TrimPrefix(string(key), c.prefix), v) {
				return nil
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("list catalog: %w", err)
	}
	return nil
}

func encode(key []byte, v any) ([]byte, error) {
	var text bytes.Buffer
	enc := json.NewEncoder(&text)
	enc.SetEscapeHTML(false) // a definition is mostly XML
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	doc := text.Bytes()
	if len(doc) > MaxDocumentBytes {
		return nil, fmt.Errorf("document of %d bytes, at most %d", len(doc), MaxDocumentBytes)
	}
	out := make([]byte, headerSize, headerSize+len(doc))
	out[0], out[1], out[2] = magic0, magic1, version
	binary.LittleEndian.PutUint32(out[4:], sum(key, doc))
	return append(out, doc...), nil
}

func decode(key, value []byte, v any) error {
	if len(value) <= headerSize || value[0] != magic0 || value[1] != magic1 || value[2] != version || value[3] != 0 {
		return fmt.Errorf("key %q: %w: header", key, ErrDamaged)
	}
	doc := value[headerSize:]
	if binary.LittleEndian.Uint32(value[4:]) != sum(key, doc) {
		return fmt.Errorf("key %q: %w: checksum mismatch", key, ErrDamaged)
	}
	if err := json.Unmarshal(doc, v); err != nil {
		return fmt.Errorf("key %q: %w: %w", key, ErrDamaged, err)
	}
	return nil
}

func sum(key, doc []byte) uint32 {
	return crc32.Update(crc32.Checksum(key, castagnoli), castagnoli, doc)
}

// badgerLog hands Badger's lines to slog. Its information is for its developers.
type badgerLog struct{ l *slog.Logger }

func (b badgerLog) Errorf(f string, a ...any)   { b.l.Error(line(f, a), "part", "catalog") }
func (b badgerLog) Warningf(f string, a ...any) { b.l.Warn(line(f, a), "part", "catalog") }
func (b badgerLog) Infof(f string, a ...any)    { b.l.Debug(line(f, a), "part", "catalog") }
func (b badgerLog) Debugf(f string, a ...any)   { b.l.Debug(line(f, a), "part", "catalog") }

func line(f string, a []any) string { return strings.TrimSpace(fmt.Sprintf(f, a...)) }
