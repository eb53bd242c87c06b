package blockstore

import (
	"context"
	"math/rand/v2"
	"testing"

	"github.com/keelblock/keelblock/dedupe"
)

func TestSmoke(t *testing.T) {
	dir := t.TempDir()
	if err := Create(dir, Options{}); err != nil {
		t.Fatal(err)
	}
	s, err := Open(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	b, err := s.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	p := make([]byte, s.BlockSize())
	r := rand.New(rand.NewPCG(1, 2))
	var ds []dedupe.Digest
	for range 1000 {
		for i := range p {
			p[i] = byte(r.Uint32())
		}
		put, err := b.PutBlock(ctx, p)
		if err != nil {
			t.Fatal(err)
		}
		ds = append(ds, put.Digest)
	}
	ids, err := b.Commit(ctx, dedupe.Publication{Manifests: [][]byte{[]byte("hello")}, Notes: []dedupe.Note{{Type: 1, Body: []byte("x")}}})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		for _, d := range ds {
			if _, err := s.Get(ctx, dedupe.KindBlock, d, p); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := s.Get(ctx, dedupe.KindManifest, ids[0], nil); err != nil {
			t.Fatal(err)
		}
		n := 0
		if err := s.Notes(ctx, func(dedupe.Note) bool { n++; return true }); err != nil || n != 1 {
			t.Fatal(err, n)
		}
		t.Logf("%+v", s.Stats())
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if s, err = Open(dir, Options{}); err != nil {
			t.Fatal(err)
		}
	}
	s.Close()
}
