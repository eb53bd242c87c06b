package blockstore

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/pack"
)

// WithHook calls fn before each system call that changes or syncs a file, and fails
// the call with its error.
func (o Options) WithHook(fn func(op, name string) error) Options {
	o.hook = fn
	return o
}

// LastSequence is the sequence of the last published note, or 0.
func (s *Store) LastSequence() uint64 {
	s.index.mu.Lock()
	defer s.index.mu.Unlock()
	return s.index.m.nextSequence - 1
}

// IndexEntry is an index entry for comparison: where a digest is.
type IndexEntry struct {
	Pack         string
	Offset, Size int64
}

// DumpIndex is every block, node, manifest and note of the index; keys begin with
// their prefix.
func (s *Store) DumpIndex() (map[string]IndexEntry, error) {
	got := make(map[string]IndexEntry)
	for _, prefix := range []byte{prefixBlock, prefixNode, prefixManifest, prefixNote} {
		err := s.index.scan(prefix, func(key, val []byte) error {
			p, err := decodePlace(val)
			if err != nil {
				return err
			}
			row, _, err := s.index.pack(p.pack)
			if err != nil {
				return err
			}
			got[string(key)] = IndexEntry{Pack: row.id.String(), Offset: int64(p.offset), Size: p.size()}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return got, nil
}

// DumpAccounts is what each entry of the index is counted as.
func (s *Store) DumpAccounts() (map[string]int64, error) {
	got := make(map[string]int64)
	for _, prefix := range []byte{prefixBlock, prefixNode, prefixManifest, prefixNote} {
		err := s.index.scan(prefix, func(key, val []byte) error {
			p, err := decodePlace(val)
			got[string(key)] = p.account()
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return got, nil
}

// PendingPlaces is the number of places that the open batches keep in memory.
func (s *Store) PendingPlaces() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for b := range s.batches {
		for i := range b.shards {
			sh := &b.shards[i]
			sh.mu.Lock()
			n += len(sh.places)
			sh.mu.Unlock()
		}
	}
	return n
}

// PatchOf says whether a block is a patch, over how many others, and how many grains
// they lay over a whole one.
func (s *Store) PatchOf(d dedupe.Digest) (depth, total int, ok bool) {
	p, _, err := s.find(dedupe.KindBlock, d)
	return int(p.depth), int(p.total), err == nil && p.isPatch()
}

// PatchDepths counts the blocks of the index by the patches that they are made of.
func (s *Store) PatchDepths() (n []int) {
	err := s.index.scan(prefixBlock, func(_, val []byte) error {
		p, err := decodePlace(val)
		for len(n) <= int(p.depth) {
			n = append(n, 0)
		}
		n[p.depth]++
		return err
	})
	if err != nil {
		panic(err)
	}
	return n
}

// Row is an index entry's value, for comparison with its bytes.
type Row struct {
	Pack, Offset, Stored, Epoch uint32
	Encoding, Level, Flags      uint8
	Base                        dedupe.Digest
	Depth, Total, Slot          uint8
	Share                       uint32
}

// DecodeRow reads an index entry's value, and encodes it again.
func DecodeRow(b []byte) (Row, []byte, error) {
	p, err := decodePlace(b)
	return Row{p.pack, p.offset, p.stored, p.epoch, uint8(p.encoding), p.level, p.flags, p.base, p.depth, p.total, p.slot, p.share}, p.append(nil), err
}

// The mistakes that a test of collection can seed, by name.
var Bugs = map[string]bugs{
	"skip hit":                    {skipHit: true},
	"skip window":                 {skipWindow: true},
	"window holds only hits":      {skipPatch: true, skipStored: true},
	"deeper patches replace":      {deeper: true},
	"skip taking":                 {skipTaking: true},
	"children before their nodes": {childrenLast: true},
	"touch what has moved":        {touchAnyway: true},
	"remove before the move":      {removeFirst: true},
	"take fresh packs":            {takeFresh: true},
	"no checkpoint":               {noCheckpoint: true},
	"notes without manifests":     {notesAlone: true},
	"notes before manifests":      {notesFirst: true},
	"bases of patches go":         {basesGo: true},
	"patches keep their slots":    {keepSlots: true},
	"bundles stay whole":          {bundlesWhole: true},
	"bases not claimed":           {skipBase: true},
	"packs at one location":       {removeOnce: true},
	"packs of a lost location":    {keepSurplus: true},
}

// WithBug makes the mistake of this name.
func (o Options) WithBug(name string) Options {
	o.bugs = Bugs[name]
	return o
}

// WithoutStoredInWindow makes mistakes that TestPatchOfWhatAnotherBatchStores and
// TestBlockThatAnotherBatchStores find.
func (o Options) WithoutStoredInWindow() Options {
	o.bugs.skipPatch, o.bugs.skipStored = true, true
	return o
}

// WithWholeDigests makes an unencrypted vault with the id scheme of the first ones.
func (o Options) WithWholeDigests() Options {
	o.wholeDigests = true
	return o
}

// WithPackBytes is PackBytes, also below its limit, so that a few records fill a pack.
func (o Options) WithPackBytes(n int64) Options {
	o.packBytes = n
	return o
}

// OnIndexWrite calls fn before each transaction of the index and fails it with its error;
// nil: no more.
func (s *Store) OnIndexWrite(fn func() error) {
	s.index.mu.Lock()
	defer s.index.mu.Unlock()
	s.index.room = func(n int64) error {
		if fn != nil {
			if err := fn(); err != nil {
				return err
			}
		}
		return s.checkRoom(n)
	}
}

// PatchOverRoot makes a patch of content over a whole block at the end of a chain of bases.
func PatchOverRoot(b dedupe.Batch, content []byte, root dedupe.Digest) (bool, error) {
	own := b.(*Batch)
	p, _, err := own.s.index.lookup(dedupe.KindBlock, root)
	if err != nil {
		return false, err
	}
	_, ok, err := own.patchOverRoot(own.s.BlockDigest(content), content, chain{root: root, place: p})
	return ok, err
}

// Indexed reports whether a block is in the index, and not only in a batch.
func (s *Store) Indexed(d dedupe.Digest) bool {
	_, ok, err := s.index.lookup(dedupe.KindBlock, d)
	return ok && err == nil
}

// CheckIndex reads the record of every entry, compares the depth of every patch with that of
// its base, and looks for the children of every node, but for those that a start after a
// crash found: of a batch that was not committed the children may be lost.
func (s *Store) CheckIndex() error {
	var errs []error
	found := make(map[entry]bool)
	for _, kind := range []dedupe.Kind{dedupe.KindBlock, dedupe.KindNode, dedupe.KindManifest} {
		err := s.index.scan(contentKey(kind, dedupe.Digest{})[0], func(key, val []byte) error {
			d := dedupe.Digest(key[1:])
			p, err := decodePlace(val)
			if err != nil {
				return err
			}
			if len(errs) > 5 {
				return errStop // enough
			}
			content, err := s.read(p, kind, d, nil)
			if err != nil {
				errs = append(errs, fmt.Errorf("index entry: %w", err))
				return nil
			}
			if kind == dedupe.KindNode && p.epoch > 0 {
				err = s.checkChildren(d, int(p.level), content, found)
			} else if p.hasBase() {
				err = s.checkBase(d, p)
			}
			if err != nil {
				errs = append(errs, err)
			}
			return nil
		})
		if err != nil {
			errs = append(errs, err)
		}
	}
	errs = append(errs, s.Notes(context.Background(), func(dedupe.Note) bool { return true }))
	return errors.Join(errs...)
}

// checkBase is of a patch, which a rebuild enters after what it lies over.
func (s *Store) checkBase(d dedupe.Digest, p place) error {
	base, ok, err := s.index.lookup(dedupe.KindBlock, p.base)
	if err != nil || !ok || base.depth >= p.depth {
		return fmt.Errorf("block %v at depth %d lies over block %v, in the index %v, at depth %d: %w", d, p.depth, p.base, ok, base.depth, errors.Join(err, dedupe.ErrCorrupt))
	}
	return nil
}

func (s *Store) checkChildren(d dedupe.Digest, level int, content []byte, found map[entry]bool) error {
	children, err := pack.DecodeNode(content)
	if err != nil {
		return err
	}
	kind := dedupe.KindNode
	if level == 0 {
		kind = dedupe.KindBlock
	}
	for _, child := range children {
		if child.IsZero() || found[entry{kind, child}] {
			continue
		}
		_, ok, err := s.find(kind, child)
		if found[entry{kind, child}] = ok; !ok {
			return fmt.Errorf("node %v of level %d is in the index, its child %v is not: %w", d, level, child, errors.Join(err, dedupe.ErrNotFound))
		}
	}
	return nil
}

// PackIDs are the packs that the index knows.
func (s *Store) PackIDs() (ids []string, err error) {
	err = s.index.scan(prefixPack, func(key, val []byte) error {
		row, err := decodePackRow(binary.BigEndian.Uint32(key[1:]), val)
		ids = append(ids, row.id.String())
		return err
	})
	return ids, err
}

// PackFileBytes are the sizes of all pack files.
func (s *Store) PackFileBytes() (total int64, err error) {
	ids, err := s.packIDs()
	return s.packSizes(ids), err
}
