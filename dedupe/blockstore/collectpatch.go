package blockstore

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/pack"
)

// What a collection does for patches: half-dead bundles are put together anew, and a
// patch that alone keeps its base is stored whole when that takes less.

// maxLoneBases bounds the bases that one pass looks at; what is beyond waits for the next
// collection.
const maxLoneBases = 1 << 18

// rebundles reports whether what lives in a bundle can be taken out of it: without the
// key, or in a vault with records of other sites, bundles stay whole.
func (s *Store) rebundles() bool {
	return len(s.sb.Domains) == 1 && s.missingKey() == nil && !s.o.bugs.bundlesWhole
}

// repacking is the patches of one pack's bundles that are being put together anew.
type repacking struct {
	bundle
	moves []move // of its members, in their order, without the new places
}

// copyBundle takes the patches that live out of a bundle with dead ones. They are
// verified by the blocks that they make, and written by flushBundle.
func (c *Collection) copyBundle(f io.ReaderAt, e *pack.Entry, live []move) (done []move, err error) {
	s := c.s
	scratch := s.codec.buffer(int(e.StoredLength))
	rec, dir, grown, err := pack.ReadBundle(f, e.Offset, e.StoredLength, *scratch)
	*scratch = grown
	defer s.codec.put(scratch)
	if err != nil {
		return nil, err
	}
	if rec.Domain != s.Domain() {
		return live, c.copyRecord(f, e, live)
	}
	bu, err := s.decodeBundle(&rec, dir, slices.Clone(grown)) // which keeps what it is given
	if err != nil {
		return nil, err
	}
	slices.SortFunc(live, func(a, b move) int { return int(a.from.slot) - int(b.from.slot) })
	layers := make([]layer, len(live))
	for i, m := range live {
		d := dedupe.Digest(m.key[1:])
		l, ok := bu.patch(int(m.from.slot), d, m.from.base)
		if !ok {
			return nil, fmt.Errorf("bundle has no patch of %v over %v: %w", d, m.from.base, dedupe.ErrCorrupt)
		}
		if err := s.verifyLayer(l, m.from.base, d); err != nil {
			return nil, err
		}
		layers[i] = l
	}
	for i, m := range live {
		r := &c.repack
		member := bu.Members[m.from.slot]
		member.Depth = m.from.depth // a rebuilt index may have found its base deeper than it was
		r.members = append(r.members, member)
		r.grains = append(r.grains, layers[i].grains...)
		r.moves = append(r.moves, m)
		if len(r.grains) < bundleBytes && len(r.members) < pack.MaxBundleMembers {
			continue
		}
		moved, err := c.flushBundle()
		if err != nil {
			return nil, err
		}
		done = append(done, moved...)
	}
	return done, nil
}

// verifyLayer compares the block that a patch makes with its digest.
func (s *Store) verifyLayer(l layer, base, d dedupe.Digest) error {
	buf := s.codec.buffer(s.sb.BlockSize)
	defer s.codec.put(buf)
	var r fetched
	if err := s.fetchBase(&r, base, (*buf)[:0], 1); err != nil {
		return s.atBase(base, err)
	}
	l.over(r.content)
	return checkSum(l.digester, dedupe.KindBlock, 0, r.content, d)
}

// flushBundle writes the patches that were taken out of bundles as one, and returns their
// moves.
func (c *Collection) flushBundle() ([]move, error) {
	r := c.repack
	c.repack = repacking{}
	if len(r.members) == 0 {
		return nil, nil
	}
	dir := pack.Bundle{BlockSize: c.s.sb.BlockSize, Members: r.members}
	directory := dir.Append(nil)
	rec := pack.Record{Kind: pack.KindBundle, Encoding: pack.EncodingPatch, GrainSize: pack.GrainSize,
		Digest: pack.BundleDigest(directory), HeadLength: uint32(len(directory))}
	e, number, err := c.appendNew(rec, directory, r.grains)
	if err != nil {
		return nil, err
	}
	for i := range r.moves {
		r.moves[i].to = patchPlace(number, c.s.Epoch(), &e, i)
		if c.s.o.bugs.keepSlots {
			r.moves[i].to.slot = r.moves[i].from.slot
		}
	}
	return r.moves, nil
}

// appendNew compresses and seals content, with what stands before it, and appends it to a
// pack of the collection.
func (c *Collection) appendNew(rec pack.Record, head, content []byte) (e pack.Entry, number uint32, err error) {
	s := c.s
	buf := s.codec.buffer(len(head) + len(content))
	defer s.codec.put(buf)
	rec.Domain, rec.LogicalLength = s.Domain(), uint32(len(content))
	*buf, rec.Codec = s.codec.appendPayload(append(*buf, head...), content, rec.Kind == pack.KindBundle)
	if *buf, err = s.seal(&rec, *buf); err != nil {
		return e, 0, err
	}
	return c.appendOut(&rec, *buf)
}

// appendOut appends a record to the collection's pack of its class.
func (c *Collection) appendOut(rec *pack.Record, stored []byte) (pack.Entry, uint32, error) {
	class := pack.ClassOf(rec.Kind)
	for {
		p, err := c.out(class, int64(len(stored))+int64(rec.HeadLength)) // a bundle's footer is as long as its directory
		if err != nil {
			return pack.Entry{}, 0, err
		}
		placed, err := p.w.Append(rec, stored, nil)
		if err == nil {
			return placed, p.number, nil
		}
		if errors.Is(err, pack.ErrFull) {
			err = c.sealOut(class)
		}
		if err != nil {
			return pack.Entry{}, 0, noSpace(err)
		}
	}
}

// loneBases are blocks that only patches keep, by their digests, with who lies over
// them.
type loneBases map[dedupe.Digest]*loneBase

type loneBase struct {
	place place
	users int           // patches directly over it
	user  dedupe.Digest // one of them
	over  place         // its place
}

// noteLone notes a block that nothing needs but patches over it.
func (c *Collection) noteLone(e deadEntry) {
	if c.lone != nil && len(c.lone) < maxLoneBases {
		c.lone[e.digest] = &loneBase{place: e.place}
	}
}

// storeLoneWhole stores patches whole that alone keep their bases, when that takes less
// than keepPercent of what they and their bases take, and returns how many. Each is durable
// as a whole block before its entry says so; its bases are swept after that. On a full disk
// they stay as they are.
//
// Patches lay at most a quarter of a block over a whole one, so this is for those that
// come near it. A base that several patches need is worth keeping: without it each of
// them would be a whole block.
func (c *Collection) storeLoneWhole(ctx context.Context) (n int, err error) {
	if len(c.lone) == 0 || !c.s.rebundles() {
		return 0, nil
	}
	err = c.s.index.scan(prefixBlock, func(key, val []byte) error {
		e, err := decodeEntry(dedupe.KindBlock, key, val)
		if err != nil || !e.place.hasBase() {
			return errors.Join(err, ctx.Err())
		}
		if l := c.lone[e.place.base]; l != nil {
			l.users++
			l.user, l.over = e.digest, e.place
		}
		return ctx.Err()
	})
	if err != nil {
		return 0, err
	}
	var moves []move
	for _, l := range c.lone {
		if l.users != 1 || c.lone[l.user] != nil || !c.inPass(l.user) {
			continue // several need it, the one that does is a base like it, or may be dead
		}
		m, ok, err := c.storeWhole(l)
		if err != nil {
			return 0, c.noRoom(err)
		}
		if ok {
			moves = append(moves, m)
		}
		if err := ctx.Err(); err != nil {
			return 0, err
		}
	}
	if len(moves) == 0 {
		return 0, nil
	}
	for _, m := range moves {
		c.report.CopiedBytes += m.to.account()
		c.report.FreedBytes -= m.to.account()
	}
	if err := c.move(moves); err != nil {
		return 0, c.noRoom(err)
	}
	return len(moves), nil
}

// noRoom reports that there was no room to write, and lets the collection go on: what it
// drops makes room. Another error is returned.
func (c *Collection) noRoom(err error) error {
	if !errors.Is(err, dedupe.ErrNoSpace) {
		return err
	}
	c.report.NoSpace = true
	c.report.Problems = append(c.report.Problems, err.Error())
	return c.closeOut()
}

// inPass reports whether a block belongs to this pass: if it is in the index it is live,
// once the pass has swept.
func (c *Collection) inPass(d dedupe.Digest) bool {
	p := uint32(binary.BigEndian.Uint16(d[:]))
	return p >= c.low && p < c.high
}

// freed is what the patch over l and the bases that it alone keeps take, and the whole
// block that they end at; nil when somebody else needs that.
func (c *Collection) freed(l *loneBase) (bytes int64, root *loneBase) {
	bytes = l.over.account()
	for b := l; b != nil && b.users == 1; b = c.lone[b.place.base] {
		bytes += b.place.account()
		if !b.place.isPatch() {
			return bytes, b
		}
	}
	return bytes, nil
}

// storeWhole stores the patch over l whole if that pays. What cannot be read stays as it
// is: a rewrite of its pack, or a verification, reports it.
func (c *Collection) storeWhole(l *loneBase) (m move, ok bool, err error) {
	freed, root := c.freed(l)
	// As long as what it lies over, most likely; reading it on each collection is too much.
	if root == nil || root.place.size()*100 >= freed*keepPercent {
		return m, false, nil
	}
	s := c.s
	buf := s.codec.buffer(s.sb.BlockSize)
	defer s.codec.put(buf)
	content, err := s.read(l.over, dedupe.KindBlock, l.user, (*buf)[:0])
	if err != nil || s.BlockDigest(content) != l.user {
		return m, false, nil
	}
	rec := pack.Record{Kind: dedupe.KindBlock, Digest: l.user}
	payload, _ := s.codec.appendPayload(make([]byte, pack.RecordHeaderSize, pack.RecordHeaderSize+len(content)), content, false)
	if int64(len(payload))*100 >= freed*keepPercent {
		return m, false, nil
	}
	head := s.withList(&rec, s.listOf(content))
	e, number, err := c.appendNew(rec, head, content)
	if err != nil {
		return m, false, err
	}
	return move{key: contentKey(dedupe.KindBlock, l.user), from: l.over, to: placeOf(number, s.Epoch(), &e)}, true, nil
}
