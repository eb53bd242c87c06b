package blockstore

import (
	"context"
	"errors"
	"fmt"

	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/pack"
)

// What is done with lists of grains: the digest of a block is that of the list of its
// grains' digests, which stands in its record before the content. So to lay a few new
// grains over a block one reads half a KiB of it.

// errNoList: the record of a block has no list of its grains. It is of a key domain with
// an id scheme of the first vaults.
var errNoList = errors.New("no list of grains")

// withList gives the record of a new block the list of its grains, as what stands before
// its content, with room for the seal. Without a list there is none.
func (s *Store) withList(rec *pack.Record, list []dedupe.Digest) (head []byte) {
	if list == nil {
		return nil
	}
	c := pack.CipherNone
	if s.Encrypted() {
		c = pack.CipherXAES
	}
	n := pack.ListLength(s.sb.BlockSize, c)
	rec.HasGrainList, rec.HeadLength = true, uint32(n)
	return pack.AppendList(make([]byte, 0, n), list)[:n]
}

// listOf is the list of a block that is to be stored, nil in a domain without.
func (s *Store) listOf(content []byte) []dedupe.Digest {
	var summed [1]dedupe.Summed
	s.ownDigester().SumBlocks(summed[:], [][]byte{content})
	return summed[0].List()
}

// grainListAt is the list of the grains of a block, in whatever form it is stored, compared
// with its digest. The index has it at p.
func (s *Store) grainListAt(p place, d dedupe.Digest) (list []dedupe.Digest, err error) {
	for range baseTries {
		list = make([]dedupe.Digest, s.sb.BlockSize/pack.GrainSize)
		if err = s.readList(p, d, list, 0); err == nil {
			return list, nil
		}
		again, ok, ferr := s.find(dedupe.KindBlock, d)
		if ferr != nil || !ok || again.same(p) {
			break
		}
		p = again // a collection moved it meanwhile
	}
	return nil, fmt.Errorf("list of block %v: %w", d, err)
}

// readList reads the list of a block at p, below depth patches.
func (s *Store) readList(p place, d dedupe.Digest, list []dedupe.Digest, depth int) error {
	if !p.isPatch() {
		return s.readWholeList(p, d, list)
	}
	if depth == pack.MaxPatchDepth {
		return fmt.Errorf("more than %d patches over one another: %w", depth, dedupe.ErrCorrupt)
	}
	var r fetched
	l, err := s.layer(&r, p, d)
	if err != nil {
		return err
	}
	if !l.digester.Grains() {
		return errNoList
	}
	if err := s.readBaseList(p.base, list, depth+1); err != nil {
		return fmt.Errorf("its base, block %v: %w", p.base, err)
	}
	l.overList(list)
	return compareSum(l.digester.List(list), d)
}

// readBaseList reads the list of the base of a patch, which lies below depth patches.
func (s *Store) readBaseList(d dedupe.Digest, list []dedupe.Digest, depth int) error {
	if d.IsZero() {
		copy(list, s.zeroList)
		return nil
	}
	p, ok, err := s.find(dedupe.KindBlock, d)
	if err == nil && !ok {
		err = dedupe.ErrNotFound
	}
	if err != nil {
		return err
	}
	return s.readList(p, d, list, depth)
}

// overList lays the digests of the grains over a list.
func (l *layer) overList(list []dedupe.Digest) {
	rest := l.grains
	for i := range list {
		if l.set.Has(i) {
			list[i] = dedupe.GrainDigest(rest[:pack.GrainSize])
			rest = rest[pack.GrainSize:]
		}
	}
}

// readWholeList reads the list from the record of a whole block.
func (s *Store) readWholeList(p place, d dedupe.Digest, list []dedupe.Digest) error {
	f, _, err := s.openPackFile(p.pack)
	if err != nil {
		return err
	}
	defer s.files.release(f)
	c := pack.CipherNone
	if s.Encrypted() {
		c = pack.CipherXAES
	}
	n := min(pack.ListLength(s.sb.BlockSize, c), int(p.stored))
	buf := s.codec.buffer(n)
	defer s.codec.put(buf)
	rec, record, err := pack.ReadHead(f.f, int64(p.offset), n, (*buf)[:cap(*buf)])
	if err != nil {
		return err
	}
	if err := s.checkRecord(&rec, p, dedupe.KindBlock, d); err != nil {
		return err
	}
	if !rec.HasGrainList || int(rec.HeadLength) != n { // or it is of a domain that is not this vault's own
		return errNoList
	}
	g, err := s.digester(&rec)
	if err != nil {
		return err
	}
	stored := record[pack.RecordHeaderSize:]
	if rec.Cipher != pack.CipherNone {
		if stored, err = s.keys.domains[rec.Domain].OpenList(&rec, record); err != nil {
			return err
		}
	}
	return checkList(g, list, stored, d)
}

// checkList decodes a list into the room given, and compares it with the block's digest.
func checkList(g dedupe.Digester, list []dedupe.Digest, stored []byte, d dedupe.Digest) error {
	if err := pack.DecodeList(list, stored); err != nil {
		return err
	}
	if g.List(list) != d {
		return fmt.Errorf("list of grains has digest %v: %w", g.List(list), dedupe.ErrCorrupt)
	}
	return nil
}

// Lay implements dedupe.GrainPatches.
func (w grainPatches) Lay(ctx context.Context, edits []dedupe.Edit) {
	s := w.b.s
	err := w.b.enter(ctx)
	if err == nil {
		defer s.leave()
		err = s.missingKey()
	}
	for i := range edits {
		edits[i].Err = err
	}
	if err == nil {
		for i := 0; i < len(edits); i += getGroup {
			s.lay(edits[i:min(i+getGroup, len(edits))])
		}
	}
}

// lay is Lay of up to getGroup edits.
func (s *Store) lay(edits []dedupe.Edit) {
	var (
		digests [getGroup]dedupe.Digest
		places  [getGroup]place
		found   [getGroup]bool
		failed  [getGroup]error
		lists   [getGroup][]dedupe.Digest
	)
	n := len(edits)
	for i := range edits {
		digests[i] = edits[i].Base
	}
	s.findBlocks(digests[:n], places[:n], found[:n], failed[:n])
	for i := range edits {
		e := &edits[i]
		switch {
		case len(e.Content) != s.sb.BlockSize:
			e.Err = fmt.Errorf("edit of a block of %d bytes, want %d", len(e.Content), s.sb.BlockSize)
		case e.Base.IsZero():
			lists[i] = s.zeroList
		case failed[i] != nil:
			e.Err = failed[i]
		case !found[i]:
			e.Err = fmt.Errorf("list of block %v: %w", e.Base, dedupe.ErrNotFound)
		default:
			lists[i], e.Err = s.grainListAt(places[i], e.Base)
		}
	}
	s.ownDigester().Lay(edits, lists[:n])
}

// PutLaid implements dedupe.GrainPatches.
func (w grainPatches) PutLaid(ctx context.Context, e *dedupe.Edit) (dedupe.Put, bool, error) {
	b := w.b
	if err := b.enter(ctx); err != nil {
		return dedupe.Put{}, false, fmt.Errorf("put block: %w", err)
	}
	defer b.s.leave()
	if !e.Laid() {
		return dedupe.Put{}, false, nil
	}
	put, ok, err := w.putLaid(ctx, e)
	if err != nil {
		return put, false, fmt.Errorf("put block %v: %w", e.Digest(), err)
	}
	if ok {
		b.s.counts.countPut(put)
	}
	return put, ok, nil
}

// putLaid is put of a block of which only the grains that differ are at hand.
func (w grainPatches) putLaid(ctx context.Context, e *dedupe.Edit) (put dedupe.Put, ok bool, err error) {
	b, d := w.b, e.Digest()
	put.Digest = d
	sh := b.shard(d)
	sh.digest.Lock()
	defer sh.digest.Unlock()
	h, err := b.hold(dedupe.KindBlock, d, 0)
	if h.held || h.known || err != nil {
		return put, h.held, err
	}
	if !b.s.o.bugs.skipPatch {
		b.window.add(d) // see put
	}
	p, ok, err := b.patchOfLaid(e)
	if !ok || err != nil {
		return put, false, err
	}
	put.New, put.RawBytes = true, int64(p.member.Grains.Count())*pack.GrainSize
	return put, true, w.add(ctx, p)
}

// patchOfLaid is patchOf by the lists of grains.
func (b *Batch) patchOfLaid(e *dedupe.Edit) (p *newPatch, ok bool, err error) {
	d, base := e.Digest(), e.Base
	c, ok, err := b.patchable(d, base)
	if !ok || err != nil {
		return nil, false, err
	}
	if m, ok := c.patch(d, base, e.Differ(), b.s.sb.BlockSize); ok {
		return patchWith(m, e.Content), true, nil
	}
	differ := e.Differ()
	if n := differ.Count(); n == 0 || n > maxPatchGrains(b.s.sb.BlockSize) {
		return nil, false, nil
	}
	list := b.s.zeroList
	if !c.root.IsZero() {
		if h, err := b.holdsBase(c.root); !h.held || err != nil {
			return nil, false, err
		}
		if list, err = b.s.grainListAt(c.place, c.root); err != nil {
			return nil, false, nil // who reads the content will say what is wrong
		}
	}
	differ = dedupe.DifferingGrains(e.List(), list)
	m, ok := overRoot(d, c.root, differ, b.s.sb.BlockSize)
	if !ok {
		return nil, false, nil
	}
	p = &newPatch{member: m}
	return p, b.gather(p, e), nil
}

// gather fills in the grains of a patch over the block at the end of a chain: those that were given, and
// of the others those that the patches in between have. Not ok: one cannot be read.
func (b *Batch) gather(p *newPatch, e *dedupe.Edit) (ok bool) {
	var layers []layer // the one that counts first
	for d := e.Base; d != p.member.Base; {
		at, ok, err := b.s.find(dedupe.KindBlock, d)
		if !ok || err != nil || !at.isPatch() || len(layers) == pack.MaxPatchDepth {
			return false
		}
		var r fetched
		l, err := b.s.layer(&r, at, d)
		if err != nil {
			return false
		}
		layers, d = append(layers, l), at.base
	}
	for i, sum := range e.List() {
		if !p.member.Grains.Has(i) {
			continue
		}
		grain := e.Content[i*pack.GrainSize:][:pack.GrainSize]
		if !e.Given.Has(i) {
			grain = grainOf(layers, i)
		}
		if grain == nil || dedupe.GrainDigest(grain) != sum {
			return false
		}
		p.grains = append(p.grains, grain)
	}
	return true
}

// grainOf is a grain as the first of the layers that have it has it.
func grainOf(layers []layer, i int) []byte {
	for _, l := range layers {
		rest := l.grains
		for j := range i {
			if l.set.Has(j) {
				rest = rest[pack.GrainSize:]
			}
		}
		if l.set.Has(i) {
			return rest[:pack.GrainSize]
		}
	}
	return nil
}
