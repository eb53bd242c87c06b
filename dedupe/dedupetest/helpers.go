package dedupetest

import (
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/keelblock/keelblock/dedupe"
)

// Block is a block whose content follows from seed: half of it compressible.
func Block(s dedupe.Store, seed uint64) []byte {
	p := make([]byte, s.BlockSize())
	FillBlock(p, seed)
	return p
}

// FillBlock fills p as Block does.
func FillBlock(p []byte, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 0x6b65656c))
	half := len(p) / 2
	for i := 0; i+8 <= half; i += 8 {
		binary.LittleEndian.PutUint64(p[i:], r.Uint64())
	}
	for i := half; i < len(p); i++ {
		p[i] = byte(seed) | 1
	}
}

// Begin begins a batch that is aborted when the test ends.
func Begin(t testing.TB, s dedupe.Store) dedupe.Batch {
	t.Helper()
	b, err := s.Begin(context.Background())
	if err != nil {
		t.Fatalf("begin: %v", err)
	}
	t.Cleanup(func() {
		if err := b.Abort(); err != nil {
			t.Errorf("abort: %v", err)
		}
	})
	return b
}

// PutBlock puts a block that must be taken; its digest is Store.BlockDigest, which
// reading it back shows.
func PutBlock(t testing.TB, b dedupe.Batch, p []byte) dedupe.Put {
	t.Helper()
	put, err := b.PutBlock(context.Background(), p)
	if err != nil {
		t.Fatalf("put block: %v", err)
	}
	if put.Digest.IsZero() {
		t.Fatal("put block: the digest is zero")
	}
	if put.New != (put.StoredBytes > 0) {
		t.Fatalf("put block: new %v with %d stored bytes", put.New, put.StoredBytes)
	}
	return put
}

// Commit commits manifests given as strings, which must succeed.
func Commit(t testing.TB, b dedupe.Batch, manifests ...string) []dedupe.Digest {
	t.Helper()
	var p dedupe.Publication
	for _, m := range manifests {
		p.Manifests = append(p.Manifests, []byte(m))
	}
	ids, err := b.Commit(context.Background(), p)
	if err != nil {
		t.Fatalf("commit: %v", err)
	}
	if len(ids) != len(manifests) {
		t.Fatalf("commit: %d ids of %d manifests", len(ids), len(manifests))
	}
	for i, m := range manifests {
		if ids[i] != dedupe.Sum([]byte(m)) {
			t.Fatalf("commit: id %d is %v, not the manifest's digest", i, ids[i])
		}
	}
	return ids
}

func manifests(t testing.TB, s dedupe.Store) map[dedupe.Digest]int {
	t.Helper()
	got := make(map[dedupe.Digest]int)
	if err := s.Manifests(context.Background(), func(d dedupe.Digest) bool { got[d]++; return true }); err != nil {
		t.Fatalf("manifests: %v", err)
	}
	return got
}

func notes(t testing.TB, s dedupe.Store) []dedupe.Note {
	t.Helper()
	var got []dedupe.Note
	if err := s.Notes(context.Background(), func(n dedupe.Note) bool { got = append(got, n); return true }); err != nil {
		t.Fatalf("notes: %v", err)
	}
	return got
}

func wantErr(t testing.TB, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: error %v, want %v", what, err, want)
	}
}

func wantBlock(t testing.TB, s dedupe.Store, seed uint64) {
	t.Helper()
	want := Block(s, seed)
	got, err := s.Get(context.Background(), dedupe.KindBlock, s.BlockDigest(want), nil)
	if err != nil {
		t.Errorf("get block %d: %v", seed, err)
	} else if string(got) != string(want) {
		t.Errorf("get block %d: other bytes than were put", seed)
	}
}

// FlipBit flips one bit of the byte at off of a file. Twice is as before.
func FlipBit(path string, off int64) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	var b [1]byte
	if _, err = f.ReadAt(b[:], off); err == nil {
		b[0] ^= 4
		_, err = f.WriteAt(b[:], off)
	}
	return errors.Join(err, f.Close())
}

// Flip is FlipBit for a test that ends when it fails.
func Flip(t testing.TB, path string, off int64) {
	t.Helper()
	if err := FlipBit(path, off); err != nil {
		t.Fatal(err)
	}
}
