package blockstore

import (
	"errors"
	"fmt"
	"os"

	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/pack"
)

// layer is the grains that one patch lays over its base.
type layer struct {
	set      dedupe.Grains
	grains   []byte // only read: others look at them too
	digester dedupe.Digester
}

// over lays the grains over a block.
func (l *layer) over(block []byte) {
	rest := l.grains
	for i := range len(block) / pack.GrainSize {
		if l.set.Has(i) {
			copy(block[i*pack.GrainSize:][:pack.GrainSize], rest)
			rest = rest[pack.GrainSize:]
		}
	}
}

// fetchPatch is fetch of a block that is a patch: the whole block that its bases end at,
// and over it the grains of one patch after the other. depth is how many patches lie
// above. Only the outcome is compared with a digest, by the caller; see blame.
func (s *Store) fetchPatch(r *fetched, p place, d dedupe.Digest, buf []byte, depth int) error {
	if depth == pack.MaxPatchDepth {
		return fmt.Errorf("more than %d patches over one another: %w", depth, dedupe.ErrCorrupt)
	}
	l, err := s.layer(r, p, d)
	if err != nil {
		return err
	}
	if err := s.fetchBase(r, p.base, buf, depth+1); err != nil {
		return s.atBase(p.base, err)
	}
	l.over(r.content)
	r.digester = l.digester
	return nil
}

// baseTries bounds how often the base of a patch may move while it is read.
const baseTries = 8

// fetchBase fetches the base of a patch, without comparing it with its digest; zeros when
// it has none.
func (s *Store) fetchBase(r *fetched, d dedupe.Digest, buf []byte, depth int) (err error) {
	if d.IsZero() {
		r.content = s.zeros(buf)
		return nil
	}
	for range baseTries {
		p, ok, ferr := s.find(dedupe.KindBlock, d)
		if ferr != nil {
			return ferr
		}
		if !ok {
			return dedupe.ErrNotFound
		}
		if p.isPatch() {
			err = s.fetchPatch(r, p, d, buf, depth)
		} else {
			err = s.fetchWhole(r, p, d, buf)
		}
		if err == nil || !s.moved(p, dedupe.KindBlock, d) {
			return err
		}
	}
	return err
}

// zeros is a block of zeros, in buf's storage if there is room.
func (s *Store) zeros(buf []byte) []byte {
	n := s.sb.BlockSize
	if cap(buf) < n {
		return make([]byte, n)
	}
	clear(buf[:n])
	return buf[:n]
}

// fetchWhole fetches the whole block at the end of a patch's bases.
func (s *Store) fetchWhole(r *fetched, p place, d dedupe.Digest, buf []byte) error {
	whole, err := s.fetch(p, dedupe.KindBlock, d, buf)
	if err != nil {
		return fmt.Errorf("in pack %v at %d: %w", whole.pack, p.offset, err)
	}
	r.content, r.digester = whole.content, whole.digester
	return nil
}

// moved reports whether the index, or an open batch, knows another place than p.
func (s *Store) moved(p place, kind dedupe.Kind, d dedupe.Digest) bool {
	again, ok, err := s.find(kind, d)
	return err == nil && ok && !again.same(p)
}

// atBase says that the base of a block, and not the block's own record, is what cannot
// be read; it is not believed any more. The block is damaged, also when its base is
// missing.
func (s *Store) atBase(base dedupe.Digest, err error) error {
	switch {
	case errors.Is(err, dedupe.ErrCorrupt):
		s.suspect.add(entry{dedupe.KindBlock, base})
	case errors.Is(err, dedupe.ErrNotFound):
		err = fmt.Errorf("%w: %w", err, dedupe.ErrCorrupt)
	}
	return fmt.Errorf("its base, block %v: %w", base, err)
}

// layer is the grains of the patch of d at p. Set in r is the pack, if r has none yet.
func (s *Store) layer(r *fetched, p place, d dedupe.Digest) (layer, error) {
	if p.memory != nil {
		return layer{p.memory.set, p.memory.grains, s.ownDigester()}, nil
	}
	f, id, err := s.openPackFile(p.pack)
	if r.pack == (pack.ID{}) {
		r.pack = id
	}
	if err != nil {
		return layer{}, err
	}
	defer s.files.release(f)
	key := bundleKey{p.pack, p.offset}
	for range 2 {
		bu, err := s.bundles.get(key, func() (*openBundle, error) { return s.readBundle(f.f, p) })
		if err != nil {
			return layer{}, err
		}
		if l, ok := bu.patch(int(p.slot), d, p.base); ok {
			return l, nil
		}
		s.bundles.drop(key) // it may be that of a batch that was aborted
	}
	return layer{}, fmt.Errorf("bundle has no patch of %v over %v: %w", d, p.base, dedupe.ErrCorrupt)
}

// openBundle is a bundle that was read and decoded. It is never changed.
type openBundle struct {
	pack.Bundle
	at       []int // where the grains of each patch begin
	grains   []byte
	digester dedupe.Digester // which the digests of its patches were made by
}

// patch is the patch of d over base in a slot.
func (bu *openBundle) patch(slot int, d, base dedupe.Digest) (layer, bool) {
	if slot >= len(bu.Members) || bu.Members[slot].Digest != d || bu.Members[slot].Base != base {
		return layer{}, false
	}
	return layer{bu.Members[slot].Grains, bu.grains[bu.at[slot]:bu.at[slot+1]], bu.digester}, true
}

// readBundle reads the bundle at p from a file of its pack. Of its grains nothing is
// verified: the digests of the blocks that are made of them will say all.
func (s *Store) readBundle(f *os.File, p place) (*openBundle, error) {
	scratch := s.codec.buffer(int(p.stored))
	rec, dir, grown, err := pack.ReadBundle(f, int64(p.offset), p.stored, *scratch)
	*scratch = grown
	if err != nil {
		s.codec.put(scratch)
		return nil, err
	}
	bu, err := s.decodeBundle(&rec, dir, grown)
	if err != nil || rec.Codec != pack.CodecRaw {
		s.codec.put(scratch)
	} // else the bundle goes on with what was read
	return bu, err
}

// decodeBundle decodes the grains of a bundle. record becomes theirs when they are raw.
func (s *Store) decodeBundle(rec *pack.Record, dir *pack.Bundle, record []byte) (_ *openBundle, err error) {
	if dir.BlockSize != s.sb.BlockSize {
		return nil, fmt.Errorf("bundle of blocks of %d bytes in a vault with blocks of %d: %w", dir.BlockSize, s.sb.BlockSize, dedupe.ErrCorrupt)
	}
	bu := &openBundle{Bundle: *dir, at: make([]int, len(dir.Members)+1)}
	for i := range dir.Members {
		bu.at[i+1] = bu.at[i] + dir.Members[i].Grains.Count()*pack.GrainSize
	}
	if bu.digester, err = s.digester(rec); err != nil {
		return nil, err
	}
	payload, err := s.payload(rec, record, nil)
	if err != nil {
		return nil, err
	}
	if rec.Codec == pack.CodecRaw && len(payload) == int(rec.LogicalLength) {
		bu.grains = payload
		return bu, nil
	}
	bu.grains, err = s.codec.decode(rec, payload, nil)
	return bu, err
}

// blame looks for what is wrong with a patch whose content has another digest: the
// first of its bases, from the whole block on, that does not verify itself, or else the
// patch. Without it a damaged base would go on being believed.
func (s *Store) blame(p place, d dedupe.Digest, err error) error {
	var bases []dedupe.Digest
	for n := 0; p.isPatch() && n < pack.MaxPatchDepth; n++ {
		s.bundles.drop(bundleKey{p.pack, p.offset})
		if !p.hasBase() {
			break
		}
		bases = append(bases, p.base)
		var ok bool
		var ferr error
		if p, ok, ferr = s.find(dedupe.KindBlock, p.base); !ok || ferr != nil {
			return err
		}
	}
	for i := len(bases) - 1; i >= 0; i-- {
		var r fetched
		berr := s.fetchBase(&r, bases[i], nil, 0)
		if berr == nil {
			berr = checkContent(&r, dedupe.KindBlock, bases[i])
		}
		if berr != nil {
			return s.atBase(bases[i], berr)
		}
	}
	return err
}
