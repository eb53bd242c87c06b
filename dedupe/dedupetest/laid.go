package dedupetest

import (
	"bytes"
	"context"
	"fmt"

	"github.com/keelblock/keelblock/dedupe"
)

// PutOver puts a block for which the store has an earlier version, which it may keep as a
// patch. Where patches can be made of lists of grains, about half of all blocks, which the
// content decides, are put by those: with the grains that differ and a few more at hand,
// and the others overwritten with something else.
func PutOver(ctx context.Context, s dedupe.Store, p dedupe.Patches, now, was []byte) (dedupe.Put, error) {
	if grains, ok := p.(dedupe.GrainPatches); ok && sumOf(now)%2 == 0 {
		put, ok, err := putLaid(ctx, s, grains, now, was)
		if ok || err != nil {
			return put, err
		}
	}
	return p.PutPatch(ctx, now, s.BlockDigest(was), func() ([]byte, error) { return was, nil })
}

func sumOf(p []byte) (n int) {
	for i := 0; i < len(p); i += 509 {
		n += int(p[i])
	}
	return n
}

func putLaid(ctx context.Context, s dedupe.Store, p dedupe.GrainPatches, now, was []byte) (dedupe.Put, bool, error) {
	e := EditBetween(s.BlockDigest(was), was, now)
	edits := []dedupe.Edit{e}
	p.Lay(ctx, edits)
	if edits[0].Err != nil || !edits[0].Laid() {
		return dedupe.Put{}, false, nil // its base is damaged, or of the first id scheme
	}
	if want := s.BlockDigest(now); edits[0].Digest() != want {
		return dedupe.Put{}, false, fmt.Errorf("an edit makes block %v, want %v", edits[0].Digest(), want)
	}
	return p.PutLaid(ctx, &edits[0])
}

// EditBetween is the edit that makes one block of another: of its content only the grains
// in which they differ are there, and every fifth of the others.
func EditBetween(base dedupe.Digest, was, now []byte) dedupe.Edit {
	e := dedupe.Edit{Base: base, Content: bytes.Repeat([]byte{0xa5}, len(now))}
	for i := range len(now) / dedupe.GrainSize {
		at := i * dedupe.GrainSize
		if i%5 == 4 || !bytes.Equal(now[at:at+dedupe.GrainSize], was[at:at+dedupe.GrainSize]) {
			copy(e.Content[at:], now[at:at+dedupe.GrainSize])
			e.Given.Add(i)
		}
	}
	return e
}
