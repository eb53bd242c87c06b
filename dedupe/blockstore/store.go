package blockstore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/dgraph-io/badger/v4"
	"golang.org/x/sys/unix"

	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/blockstore/badgerfiles"
	"github.com/keelblock/keelblock/dedupe/pack"
	"github.com/keelblock/keelblock/dedupe/packdir"
)

// Names in a vault's folder.
const (
	superblockName     = "superblock"
	superblockCopyName = "superblock.copy"
	stateName          = "state"
	lockName           = "lock"
	packsName          = packdir.PacksName
	indexName          = "index"
	newIndexName       = "index.new"
)

// Store is a vault's store in a folder of a local file system.
type Store struct {
	dir     string
	o       Options
	sb      *pack.Superblock
	lock    *os.File
	index   *index
	codec   *codec
	keys    keys
	packs   *packdir.Set
	files   *fileCache
	log     *slog.Logger
	scratch string // the folder of a read-only Store's own index
	writing writingPacks
	suspect suspects
	bundles *bundleCache
	missing missingPacks
	// healing is held while copies are made equal again, and repairing while
	// RepairLocations or VerifyCopies goes through all packs.
	healing, repairing sync.Mutex

	// publishing is held by a commit from its first note to its transaction of
	// the index, so that serials and sequences ascend in the order of publication.
	publishing sync.Mutex

	// gate lets a collection decide against all answers of "held" at once: they hold
	// it for reading from the lookup to the claim, the collection for writing while it
	// chooses a few entries to take. No I/O but lookups of the index happens under it.
	gate       sync.RWMutex
	collection *Collection // the one under way, or nil; changed with gate held

	mu      sync.Mutex
	closed  bool
	batches map[*Batch]struct{}
	pool    map[pack.Class][]*openPack // packs that the next batch goes on with
	broken  error                      // set while a commit's fate is not known
	// unsettled is that commit; see settleCommit.
	unsettled *unsettled
	active    sync.WaitGroup // calls under way

	counts counters

	zeroList []dedupe.Digest // the list of the grains of zeros; only read
}

// counters since the Store was opened.
type counters struct {
	putBlocks, newBlocks, newRawBytes, newBytes, readBlocks, corruptBlocks, repairedBlocks, freeBytes atomic.Int64
}

// countPut counts a block that was put.
func (c *counters) countPut(put dedupe.Put) {
	c.putBlocks.Add(1)
	if put.New {
		c.newBlocks.Add(1)
		c.newRawBytes.Add(put.RawBytes)
		c.newBytes.Add(put.StoredBytes)
	}
}

var (
	_ dedupe.Store        = (*Store)(nil)
	_ dedupe.BlocksGetter = (*Store)(nil)
)

// Open opens the vault in the folder dir. dedupe.ErrLocked when another process has
// it open for writing; fs.ErrNotExist when there is none; dedupe.ErrCorrupt when
// the index is damaged or missing, and then RebuildIndex helps; dedupe.ErrNoKey and
// dedupe.ErrWrongKey when it is encrypted and its keys are not among Options.Keys.
func Open(dir string, o Options) (*Store, error) {
	if err := o.Validate(); err != nil {
		return nil, fmt.Errorf("open vault %q: %w", dir, err)
	}
	s, err := open(dir, o.withDefaults())
	if err != nil {
		return nil, fmt.Errorf("open vault %q: %w", dir, err)
	}
	return s, nil
}

// ReadSuperblock reads what never changes about the vault in the folder dir: whether
// it is encrypted, and in which key domains.
func ReadSuperblock(dir string) (*pack.Superblock, error) {
	sb, err := readSuperblock(dir, Options{})
	if err != nil {
		return nil, fmt.Errorf("vault %q: %w", dir, err)
	}
	return sb, nil
}

// readSuperblock reads a vault's superblock and compares it with the options.
func readSuperblock(dir string, o Options) (*pack.Superblock, error) {
	sb, err := decodeSuperblock(dir, superblockName)
	if err != nil {
		// Without packs it may be what an interrupted Create left.
		packs, _ := os.ReadDir(filepath.Join(dir, packsName))
		spare, spareErr := decodeSuperblock(dir, superblockCopyName)
		if spareErr != nil || len(packs) == 0 {
			return nil, err
		}
		sb = spare
	}
	if o.BlockSize != 0 && o.BlockSize != sb.BlockSize {
		return nil, fmt.Errorf("block size is %d, not %d", sb.BlockSize, o.BlockSize)
	}
	if o.Domain != (dedupe.DomainID{}) && !slices.ContainsFunc(sb.Domains, func(d pack.Domain) bool { return d.ID == o.Domain }) {
		return nil, fmt.Errorf("key domain %x is not one of the vault's", o.Domain)
	}
	return sb, nil
}

func decodeSuperblock(dir, name string) (*pack.Superblock, error) {
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return nil, err
	}
	sb, err := pack.DecodeSuperblock(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return sb, nil
}

// healSuperblock writes the superblock, or its copy, again when it cannot be read.
// What fails here can wait: the other one is good.
func (s *Store) healSuperblock() {
	for _, name := range []string{superblockName, superblockCopyName} {
		if _, err := decodeSuperblock(s.dir, name); err == nil {
			continue
		} else if werr := writeFile(filepath.Join(s.dir, name), s.sb.Encode(), s.o.hook); werr != nil {
			s.log.Error("superblock cannot be written again", "vault", s.dir, "file", name, "err", errors.Join(err, werr))
		} else {
			s.log.Warn("superblock is written again from its other copy", "vault", s.dir, "file", name, "err", err)
		}
	}
}

// newStore is a Store without an index.
func newStore(dir string, o Options) (*Store, error) {
	sb, err := readSuperblock(dir, o)
	if err != nil {
		return nil, err
	}
	k, err := newKeys(sb, o.Keys)
	if err != nil {
		return nil, err
	}
	c, err := newCodec(o.Compression)
	if err != nil {
		return nil, err
	}
	s := &Store{dir: dir, o: o, sb: sb, zeroList: dedupe.ZeroList(sb.BlockSize / pack.GrainSize), codec: c, keys: k, files: newFileCache(), bundles: newBundleCache(), log: o.Logger,
		batches: make(map[*Batch]struct{}), pool: make(map[pack.Class][]*openPack)}
	s.keys.own = k.domains[s.Domain()]
	return s, nil
}

func open(dir string, o Options) (_ *Store, err error) {
	s, err := newStore(dir, o)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			s.releaseAll()
		}
	}()
	if err := s.missingKey(); err != nil && !o.Keyless {
		return nil, err
	}
	if o.ReadOnly {
		return s, s.openReadOnly()
	}
	if s.lock, err = takeLock(dir, unix.LOCK_EX); err != nil {
		return nil, err
	}
	if err := s.checkRoom(indexRoom); err != nil {
		return nil, err
	}
	s.healSuperblock()
	if err := s.openPacks(false); err != nil {
		return nil, err
	}
	if err := os.RemoveAll(filepath.Join(dir, newIndexName)); err != nil {
		return nil, fmt.Errorf("remove an unfinished index: %w", err)
	}
	if err := s.openOwnIndex(badgerOptions(filepath.Join(dir, indexName))); err != nil {
		return nil, err
	}
	s.index.room, s.index.bugs = s.checkRoom, s.o.bugs
	if err := s.loadQuarantine(); err != nil {
		return nil, err
	}
	state, err := s.beginEpoch()
	if err != nil {
		return nil, err
	}
	if state.Clean {
		return s, nil
	}
	if err := s.recover(); err != nil {
		return nil, fmt.Errorf("recover from an unclean stop: %w", err)
	}
	return s, nil
}

// openPacks opens the locations of the packs. promote makes the vault's folder the
// first of them when it was another one.
func (s *Store) openPacks(promote bool) (err error) {
	s.packs, err = packdir.Open(s.dir, s.o.Locations, packdir.Options{Vault: s.sb.Vault, Superblock: s.sb.Encode(),
		ReadOnly: s.o.ReadOnly, Promote: promote, LastCommit: s.lastCommit, Changed: s.files.clear,
		Hook: s.o.hook, Logger: s.log, Now: s.o.Now})
	if err != nil {
		return fmt.Errorf("open locations: %w", err)
	}
	return nil
}

// lastCommit is the serial of the last publication in the index, 0 before there is one.
func (s *Store) lastCommit() uint64 {
	if s.index == nil {
		return 0
	}
	s.index.mu.Lock()
	defer s.index.mu.Unlock()
	return s.index.m.nextSerial - 1
}

// openOwnIndex opens the vault's index.
func (s *Store) openOwnIndex(o badger.Options) (err error) {
	if _, err := os.Stat(o.Dir); errors.Is(err, fs.ErrNotExist) { // Badger would make an empty one
		return s.indexError(errNoIndex)
	}
	if err := checkIndexFiles(o.Dir, s.isClean()); err != nil {
		return s.indexError(err)
	}
	if !o.ReadOnly {
		if err := badgerfiles.RemoveEmptyLogs(o.Dir); err != nil {
			return s.indexError(err)
		}
	}
	if s.index, err = openIndex(o); err != nil {
		return s.indexError(err)
	}
	if s.index.m.vault != s.sb.Vault {
		return fmt.Errorf("index is of vault %x, not %x: %w", s.index.m.vault, s.sb.Vault, dedupe.ErrCorrupt)
	}
	return nil
}

// beginEpoch marks the vault as open and returns how it was left. The epoch that
// begins now is in the index.
func (s *Store) beginEpoch() (pack.State, error) {
	path := filepath.Join(s.dir, stateName)
	var state pack.State
	b, err := os.ReadFile(path)
	if err == nil {
		state, err = pack.DecodeState(b)
	}
	switch {
	case errors.Is(err, dedupe.ErrUnknownFormat):
		return state, err
	case err != nil: // missing or damaged: as after an unclean stop
		s.log.Warn("vault state is not readable, treated as an unclean stop", "vault", s.dir, "err", err)
	}
	epoch := max(state.Epoch, s.index.m.epoch, 1)
	if !state.Clean {
		epoch++
	}
	if err := writeFile(path, pack.State{Epoch: epoch}.Encode(), s.o.hook); err != nil {
		return state, err
	}
	if epoch == s.index.m.epoch {
		return state, nil
	}
	return state, s.index.update(func(c *change) error {
		c.m.epoch = epoch
		return nil
	})
}

// indexError says that an index cannot be opened, and RebuildIndex helps.
func (s *Store) indexError(err error) error {
	if errors.Is(err, errNoIndex) {
		return fmt.Errorf("index is missing: %w", dedupe.ErrCorrupt)
	}
	if err := noSpace(err); errors.Is(err, dedupe.ErrNoSpace) {
		return err
	}
	if !errors.Is(err, dedupe.ErrCorrupt) {
		err = fmt.Errorf("%w: %w", err, dedupe.ErrCorrupt)
	}
	return fmt.Errorf("index is damaged: %w", err)
}

// releaseAll lets go of what an open Store holds, as it is.
func (s *Store) releaseAll() {
	if s.index != nil {
		if err := s.index.close(); err != nil {
			s.log.Warn("close index", "vault", s.dir, "err", err)
		}
	}
	s.files.clear()
	s.closePacks()
	s.codec.close()
	if s.scratch != "" {
		if err := os.RemoveAll(s.scratch); err != nil {
			s.log.Warn("remove scratch index", "vault", s.dir, "err", err)
		}
	}
	if s.lock != nil {
		releaseLock(s.lock)
	}
}

// releaseFiles lets go of all but the index.
func (s *Store) releaseFiles() {
	s.files.clear()
	s.closePacks()
	s.codec.close()
	releaseLock(s.lock)
}

func (s *Store) closePacks() {
	if s.packs != nil {
		s.packs.Close()
	}
}

// lockForever keeps the vault locked until the process ends.
func (s *Store) lockForever() {
	if _, err := unix.Dup(int(s.lock.Fd())); err != nil { // never closed, on purpose
		s.log.Error("keep vault locked", "vault", s.dir, "err", err)
	}
}

// enter begins a call; leave ends it. Close waits for calls under way.
func (s *Store) enter() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return dedupe.ErrClosed
	}
	s.active.Add(1)
	return nil
}

func (s *Store) leave() { s.active.Done() }

// BlockSize implements dedupe.Store.
func (s *Store) BlockSize() int { return s.sb.BlockSize }

// SetCompression is how records are compressed from now on. Those that are there stay as
// they are; all are read.
func (s *Store) SetCompression(c Compression) error {
	if err := (Options{Compression: c}).Validate(); err != nil {
		return err
	}
	s.codec.kind.Store(uint32(c))
	return nil
}

// Domain implements dedupe.Store.
func (s *Store) Domain() dedupe.DomainID {
	if s.o.Domain != (dedupe.DomainID{}) {
		return s.o.Domain
	}
	return s.sb.Domains[0].ID
}

// Vault is the vault's own id, from its superblock.
func (s *Store) Vault() pack.VaultID { return s.sb.Vault }

// Epoch is one more than the number of unclean stops so far.
func (s *Store) Epoch() uint32 {
	s.index.mu.Lock()
	defer s.index.mu.Unlock()
	return s.index.m.epoch
}

// Stats are the Store's counters and sizes. Packs and PackBytes are of synced and
// indexed packs.
func (s *Store) Stats() dedupe.Stats {
	s.index.mu.Lock()
	m := s.index.m
	s.index.mu.Unlock()
	c := &s.counts
	return dedupe.Stats{
		Packs: m.packs, PackBytes: m.packBytes, Blocks: m.blocks, Nodes: m.nodes,
		PutBlocks: c.putBlocks.Load(), NewBlocks: c.newBlocks.Load(),
		NewRawBytes: c.newRawBytes.Load(), NewBytes: c.newBytes.Load(),
		ReadBlocks: c.readBlocks.Load(), CorruptBlocks: c.corruptBlocks.Load(),
		RepairedBlocks: c.repairedBlocks.Load(), FreeBytes: c.freeBytes.Load(),
	}
}

// IndexBytes is what the index takes on disk.
func (s *Store) IndexBytes() int64 {
	dir := s.scratch
	if dir == "" {
		dir = filepath.Join(s.dir, indexName)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0
	}
	var sum int64
	for _, e := range entries {
		var st unix.Stat_t
		if unix.Stat(filepath.Join(dir, e.Name()), &st) == nil { // it may have been compacted away
			sum += st.Blocks * 512
		}
	}
	return sum
}

// Begin implements dedupe.Store.
func (s *Store) Begin(ctx context.Context) (dedupe.Batch, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := s.enter(); err != nil {
		return nil, err
	}
	defer s.leave()
	if err := s.settleCommit(); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return nil, dedupe.ErrClosed
	case s.o.ReadOnly:
		return nil, dedupe.ErrReadOnly
	case s.broken != nil:
		return nil, s.broken
	}
	b := newBatch(s)
	s.batches[b] = struct{}{}
	return b, nil
}

// Close implements dedupe.Store: it waits for calls under way, aborts open batches,
// seals the packs and leaves the vault clean. After an error the vault is as after a
// kill: nothing committed is lost, and the next Open finds out the rest.
func (s *Store) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	batches := make([]*Batch, 0, len(s.batches))
	for b := range s.batches {
		batches = append(batches, b)
	}
	s.mu.Unlock()
	s.active.Wait()
	if s.o.ReadOnly {
		s.releaseAll()
		return nil
	}
	var errs []error
	for _, b := range batches {
		errs = append(errs, b.abort())
	}
	if err := s.closeClean(); err != nil {
		errs = append(errs, fmt.Errorf("close vault %q: %w", s.dir, err))
	}
	return errors.Join(errs...)
}

// closeClean seals what is open, closes the index and says so in the state, in
// this order.
func (s *Store) closeClean() error {
	sealErr := s.sealPool()
	// Badger writes its tables through a map of the file: on a full disk that is a
	// SIGBUS, so rather leave it as a kill would.
	if err := checkRoom(s.dir, 0, s.closeRoom()); err != nil {
		s.lockForever()
		return fmt.Errorf("index stays open, and the vault locked until this process ends: %w", err)
	}
	epoch := s.Epoch()
	closeErr := s.index.close()
	defer s.releaseFiles()
	if err := errors.Join(sealErr, closeErr); err != nil {
		return err
	}
	if s.broken != nil {
		return nil // its commit's fate is found out by the next Open
	}
	return writeFile(filepath.Join(s.dir, stateName), pack.State{Clean: true, Epoch: epoch}.Encode(), s.o.hook)
}
