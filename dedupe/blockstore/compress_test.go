package blockstore_test

import (
	"bytes"
	"context"
	"os"
	"testing"

	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/blockstore"
	"github.com/keelblock/keelblock/dedupe/dedupetest"
	"github.com/keelblock/keelblock/dedupe/pack"
)

// The names of the compressions are read as they are written, and others are refused.
func TestCompressionNames(t *testing.T) {
	for _, c := range []blockstore.Compression{blockstore.CompressionS2, blockstore.CompressionZstd, blockstore.CompressionNone} {
		if got, err := blockstore.ParseCompression(c.String()); err != nil || got != c {
			t.Errorf("%v is read as %v, %v", c, got, err)
		}
	}
	if got, err := blockstore.ParseCompression(""); err != nil || got != (blockstore.Options{}).Compression {
		t.Errorf("no name is read as %v, %v", got, err)
	}
	for _, name := range []string{"lz4", "S2", "zstd ", "compression 9"} {
		if got, err := blockstore.ParseCompression(name); err == nil {
			t.Errorf("%q is read as %v", name, got)
		}
	}
}

// A vault's compression is changed while it is open: what comes next is stored by the new
// one, and all that was stored by the others is read, also when the vault is opened again.
func TestCompressionChanges(t *testing.T) {
	dir := newVault(t, blockstore.Options{})
	s := openVault(t, dir, blockstore.Options{})
	want := map[dedupe.Digest][]byte{}
	for i, c := range []struct {
		kind  blockstore.Compression
		codec pack.Codec
	}{{blockstore.CompressionS2, pack.CodecS2}, {blockstore.CompressionZstd, pack.CodecZstd}, {blockstore.CompressionNone, pack.CodecRaw}, {blockstore.CompressionS2, pack.CodecS2}} {
		if err := s.SetCompression(c.kind); err != nil {
			t.Fatal(err)
		}
		b := dedupetest.Begin(t, s)
		block := bytes.Repeat(testBlock(s, uint64(i)*versions)[:s.BlockSize()/64], 64)
		for j := range block {
			block[j] &= 15 // it looks as if it compresses wherever one looks
		}
		dedupetest.PutBlock(t, b, block)
		dedupetest.Commit(t, b, c.kind.String())
		d := s.BlockDigest(block)
		want[d] = block
		if got := codecOf(t, s, d); got != c.codec {
			t.Errorf("after %v a block is stored with codec %d, want %d", c.kind, got, c.codec)
		}
	}
	if err := s.SetCompression(blockstore.CompressionNone + 1); err == nil {
		t.Error("a compression that there is not was taken")
	}
	read := func(s *blockstore.Store) {
		t.Helper()
		for d, block := range want {
			if got, err := s.Get(context.Background(), dedupe.KindBlock, d, nil); err != nil || !bytes.Equal(got, block) {
				t.Errorf("block %v is read as %d bytes, %v", d, len(got), err)
			}
		}
	}
	read(s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	read(openVault(t, dir, blockstore.Options{Compression: blockstore.CompressionZstd}))
}

// codecOf is the codec of a block's record, from its pack.
func codecOf(t *testing.T, s *blockstore.Store, d dedupe.Digest) pack.Codec {
	t.Helper()
	path, off, length, err := s.Locate(d)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close() // only read
	r, _, _, err := pack.ReadRecord(f, off, uint32(length-pack.RecordHeaderSize), nil)
	if err != nil {
		t.Fatal(err)
	}
	return r.Codec
}
