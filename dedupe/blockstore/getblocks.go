package blockstore

import (
	"context"
	"fmt"

	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/pack"
)

// getGroup is how many blocks are decoded before their digests are computed together:
// as many as dedupe.SumAll takes at once, and at 64 KiB still in the cache of the core
// that decoded them.
const getGroup = 8

// GetBlocks implements dedupe.BlocksGetter.
func (s *Store) GetBlocks(ctx context.Context, digests []dedupe.Digest, bufs [][]byte, errs []error) {
	err := ctx.Err()
	if err == nil {
		err = s.enter()
	}
	if err != nil {
		for i := range digests {
			errs[i] = err
		}
		return
	}
	defer s.leave()
	for i := 0; i < len(digests); i += getGroup {
		end := min(i+getGroup, len(digests))
		s.getBlocks(digests[i:end], bufs[i:end], errs[i:end])
	}
}

// getBlocks is GetBlocks of up to getGroup blocks: all are fetched, then all verified.
func (s *Store) getBlocks(digests []dedupe.Digest, bufs [][]byte, errs []error) {
	const kind = dedupe.KindBlock
	var (
		n        int // blocks that were fetched; what follows is theirs
		index    [getGroup]int
		places   [getGroup]place
		records  [getGroup]fetched
		contents [getGroup][]byte
		sums     [getGroup]dedupe.Digest
		at       [getGroup]place // of digests
		found    [getGroup]bool
		failed   [getGroup]error
	)
	s.findBlocks(digests, at[:], found[:], failed[:])
	for i, d := range digests {
		p, err := at[i], failed[i]
		if err == nil && !found[i] {
			err = dedupe.ErrNotFound
		}
		if err != nil {
			errs[i] = fmt.Errorf("get %s %v: %w", kindName(kind), d, err)
			continue
		}
		r, err := s.fetch(p, kind, d, bufs[i][:0])
		if err != nil {
			errs[i] = s.getFailed(p, d, bufs[i], r.pack, err)
			continue
		}
		index[n], places[n], records[n], contents[n] = i, p, r, r.content
		n++
	}
	sumAll(sums[:], records[:n], contents[:n])
	for k := range n {
		i, p := index[k], places[k]
		if err := compareSum(sums[k], digests[i]); err != nil {
			if p.isPatch() {
				err = s.blame(p, digests[i], err)
			}
			errs[i] = s.getFailed(p, digests[i], bufs[i], records[k].pack, err)
			continue
		}
		s.counts.readBlocks.Add(1)
		errs[i] = intoBuffer(bufs[i], contents[k])
	}
}

// sumAll computes the digests of what was fetched: together, as nearly always all is of
// one key domain.
func sumAll(sums []dedupe.Digest, records []fetched, contents [][]byte) {
	for i := range records {
		if records[i].digester != records[0].digester {
			for i := range records {
				sums[i] = records[i].digester.Block(contents[i])
			}
			return
		}
	}
	if len(records) > 0 {
		records[0].digester.Blocks(sums, contents)
	}
}

// getFailed is for a block that did not verify: another copy has it, or it has moved.
func (s *Store) getFailed(p place, d dedupe.Digest, buf []byte, id pack.ID, err error) error {
	if content, ok := s.readCopies(p, dedupe.KindBlock, d, buf[:0], err); ok {
		return intoBuffer(buf, content)
	}
	return s.getMoved(p, d, buf, s.counted(p, dedupe.KindBlock, d, id, err))
}

// getMoved is readMoved into buf.
func (s *Store) getMoved(p place, d dedupe.Digest, buf []byte, err error) error {
	content, err := s.readMoved(p, dedupe.KindBlock, d, buf[:0], err)
	if err != nil {
		return err
	}
	return intoBuffer(buf, content)
}

// intoBuffer moves content to buf, where it usually is.
func intoBuffer(buf, content []byte) error {
	if len(buf) != len(content) {
		return fmt.Errorf("buffer of %d bytes for a block of %d", len(buf), len(content))
	}
	if &buf[0] != &content[0] {
		copy(buf, content)
	}
	return nil
}
