package blockstore_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/blockstore"
	"github.com/keelblock/keelblock/dedupe/dedupetest"
)

// Of blocks that are read together, one that is damaged is an error of its own with its
// digest and pack, counted once, and the others are as they were stored: at each place in
// the group, in records that are compressed and in raw ones, in header and in payload.
func TestGetBlocksDamaged(t *testing.T) {
	for _, compression := range []blockstore.Compression{blockstore.CompressionS2, blockstore.CompressionZstd, blockstore.CompressionNone} {
		t.Run(fmt.Sprint("compression ", compression), func(t *testing.T) {
			dir := newVault(t, blockstore.Options{})
			s := openVault(t, dir, blockstore.Options{Compression: compression})
			b := dedupetest.Begin(t, s)
			const n = 11
			var want [n][]byte
			digests, bufs, errs := make([]dedupe.Digest, n), make([][]byte, n), make([]error, n)
			for i := range n {
				want[i] = bytes.Repeat(testBlock(s, uint64(i)*versions)[:s.BlockSize()/64], 64) // compresses
				dedupetest.PutBlock(t, b, want[i])
				digests[i], bufs[i] = s.BlockDigest(want[i]), make([]byte, s.BlockSize())
			}
			dedupetest.Commit(t, b, "blocks")
			counted := s.Stats().CorruptBlocks
			for bad := range n {
				path, off, length, err := s.Locate(digests[bad])
				if err != nil {
					t.Fatal(err)
				}
				at := off + length - 10
				if bad%3 == 0 {
					at = off + 60 // the digest in the header
				}
				flip(t, path, at)
				s.GetBlocks(context.Background(), digests, bufs, errs)
				for i := range n {
					switch err := errs[i]; {
					case i != bad && (err != nil || !bytes.Equal(bufs[i], want[i])):
						t.Errorf("block %d beside the damaged %d: %v", i, bad, err)
					case i == bad && (!errors.Is(err, dedupe.ErrCorrupt) || !strings.Contains(err.Error(), digests[i].String()) ||
						!strings.Contains(err.Error(), "in pack ")):
						t.Errorf("the damaged block %d: %v", i, err)
					}
				}
				if counted++; s.Stats().CorruptBlocks != counted {
					t.Errorf("%d damaged blocks are counted, want %d", s.Stats().CorruptBlocks, counted)
				}
				flip(t, path, at)
			}
		})
	}
}
