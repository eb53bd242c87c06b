package dedupetest

import (
	"context"
	"fmt"
	"testing"

	"github.com/keelblock/keelblock/dedupe"
)

func testNotes(t *testing.T, s dedupe.Store) {
	var want []dedupe.Note
	for i := range uint64(3) {
		b := Begin(t, s)
		p := dedupe.Publication{Manifests: [][]byte{fmt.Appendf(nil, "m%d", i)}}
		for j := range i + 1 {
			n := dedupe.Note{Type: uint16(10 + j), Subject: dedupe.Sum(p.Manifests[0]), Body: fmt.Appendf(nil, "note %d of %d", j, i)}
			p.Notes = append(p.Notes, n)
			n.Sequence = uint64(len(want) + 1)
			want = append(want, n)
		}
		if _, err := b.Commit(context.Background(), p); err != nil {
			t.Fatalf("commit: %v", err)
		}
	}
	b := Begin(t, s) // notes alone, one with an empty body
	if _, err := b.Commit(context.Background(), dedupe.Publication{Notes: []dedupe.Note{{Sequence: 99, Type: 1}}}); err != nil {
		t.Fatalf("commit of a note: %v", err)
	}
	want = append(want, dedupe.Note{Sequence: 7, Type: 1})
	got := notes(t, s)
	if len(got) != len(want) {
		t.Fatalf("%d notes, want %d", len(got), len(want))
	}
	for i := range want {
		if g, w := got[i], want[i]; g.Sequence != w.Sequence || g.Type != w.Type || g.Subject != w.Subject || string(g.Body) != string(w.Body) {
			t.Errorf("note %d is %+v, want %+v", i, g, w)
		}
	}
}

func testPublication(t *testing.T, s dedupe.Store) {
	b := Begin(t, s)
	PutBlock(t, b, Block(s, 1))
	p := dedupe.Publication{Manifests: [][]byte{[]byte("good"), make([]byte, dedupe.MaxMetadataSize+1)}}
	if _, err := b.Commit(context.Background(), p); err == nil {
		t.Error("a manifest beyond the limit was taken")
	}
	_, err := b.PutBlock(context.Background(), Block(s, 2))
	wantErr(t, "put after a failed commit", err, dedupe.ErrClosed)
	b = Begin(t, s)
	p = dedupe.Publication{Manifests: [][]byte{[]byte("good")}, Notes: []dedupe.Note{{Body: make([]byte, dedupe.MaxMetadataSize+1)}}}
	if _, err := b.Commit(context.Background(), p); err == nil {
		t.Error("a note beyond the limit was taken")
	}
	if m := manifests(t, s); len(m) != 0 {
		t.Errorf("%d manifests after failed commits", len(m))
	}
	b = Begin(t, s)
	largest := make([]byte, dedupe.MaxMetadataSize)
	largest[0] = 1
	ids, err := b.Commit(context.Background(), dedupe.Publication{Manifests: [][]byte{largest}, Notes: []dedupe.Note{{Body: largest}}})
	if err != nil {
		t.Fatalf("commit at the limit: %v", err)
	}
	if got, err := s.Get(context.Background(), dedupe.KindManifest, ids[0], nil); err != nil || string(got) != string(largest) {
		t.Errorf("get of the largest manifest: %v", err)
	}
	if n := notes(t, s); len(n) != 1 || string(n[0].Body) != string(largest) {
		t.Errorf("the largest note is not what was committed")
	}
}

func testArguments(t *testing.T, s dedupe.Store) {
	b := Begin(t, s)
	ctx := context.Background()
	for _, n := range []int{0, 1, s.BlockSize() - 1, s.BlockSize() + 1} {
		if _, err := b.PutBlock(ctx, make([]byte, n)); err == nil {
			t.Errorf("a block of %d bytes was taken", n)
		}
	}
	var children [dedupe.FanOut]dedupe.Digest
	children[0] = dedupe.Sum([]byte("x"))
	for _, level := range []int{-1, dedupe.MaxDepth} {
		if _, err := b.PutNode(ctx, level, &children); err == nil {
			t.Errorf("a node of level %d was taken", level)
		}
	}
	if _, err := b.Commit(ctx, dedupe.Publication{}); err != nil {
		t.Errorf("commit of nothing: %v", err)
	}
}

func testDone(t *testing.T, s dedupe.Store) {
	ctx := context.Background()
	b := Begin(t, s)
	Commit(t, b, "one")
	_, err := b.PutBlock(ctx, Block(s, 1))
	wantErr(t, "put after commit", err, dedupe.ErrClosed)
	_, err = b.Commit(ctx, dedupe.Publication{Manifests: [][]byte{[]byte("two")}})
	wantErr(t, "second commit", err, dedupe.ErrClosed)
	if err := b.Abort(); err != nil {
		t.Errorf("abort after commit: %v", err)
	}
	if m := manifests(t, s); len(m) != 1 {
		t.Errorf("%d manifests, want 1", len(m))
	}
}

func testContext(t *testing.T, s dedupe.Store) {
	ctx, cancel := context.WithCancel(context.Background())
	b := Begin(t, s)
	PutBlock(t, b, Block(s, 1))
	cancel()
	_, err := s.Begin(ctx)
	wantErr(t, "begin", err, context.Canceled)
	_, err = b.PutBlock(ctx, Block(s, 2))
	wantErr(t, "put", err, context.Canceled)
	_, err = s.Get(ctx, dedupe.KindBlock, s.BlockDigest(Block(s, 1)), nil)
	wantErr(t, "get", err, context.Canceled)
	_, err = b.Commit(ctx, dedupe.Publication{Manifests: [][]byte{[]byte("one")}})
	wantErr(t, "commit", err, context.Canceled)
	if m := manifests(t, s); len(m) != 0 {
		t.Errorf("%d manifests after a cancelled commit", len(m))
	}
}

func testClose(t *testing.T, s dedupe.Store) {
	ctx := context.Background()
	b := Begin(t, s)
	PutBlock(t, b, Block(s, 1))
	for range 2 {
		if err := s.Close(); err != nil {
			t.Fatalf("close: %v", err)
		}
	}
	_, err := b.PutBlock(ctx, Block(s, 2))
	wantErr(t, "put", err, dedupe.ErrClosed)
	_, err = b.Commit(ctx, dedupe.Publication{Manifests: [][]byte{[]byte("one")}})
	wantErr(t, "commit", err, dedupe.ErrClosed)
	_, err = s.Begin(ctx)
	wantErr(t, "begin", err, dedupe.ErrClosed)
	_, err = s.Get(ctx, dedupe.KindBlock, s.BlockDigest(Block(s, 1)), nil)
	wantErr(t, "get", err, dedupe.ErrClosed)
	wantErr(t, "manifests", s.Manifests(ctx, func(dedupe.Digest) bool { return true }), dedupe.ErrClosed)
	wantErr(t, "notes", s.Notes(ctx, func(dedupe.Note) bool { return true }), dedupe.ErrClosed)
	if err := b.Abort(); err != nil {
		t.Errorf("abort: %v", err)
	}
}

func testNodes(t *testing.T, s dedupe.Store) {
	ctx := context.Background()
	b := Begin(t, s)
	var children [dedupe.FanOut]dedupe.Digest
	for i := 0; i < dedupe.FanOut; i += 3 {
		children[i] = PutBlock(t, b, Block(s, uint64(i))).Digest
	}
	digests := make(map[dedupe.Digest]bool)
	for level := range dedupe.MaxDepth {
		put, err := b.PutNode(ctx, level, &children)
		if err != nil {
			t.Fatalf("put node of level %d: %v", level, err)
		}
		if want := dedupe.NodeSum(level, &children); put.Digest != want || !put.New {
			t.Errorf("put node of level %d: %+v, want digest %v, new", level, put, want)
		}
		if again, err := b.PutNode(ctx, level, &children); err != nil || again.New {
			t.Errorf("second put of the node: %+v, %v", again, err)
		}
		digests[put.Digest] = true
	}
	if len(digests) != dedupe.MaxDepth {
		t.Errorf("%d digests of the same children at %d levels", len(digests), dedupe.MaxDepth)
	}
	Commit(t, b, "one")
	for d := range digests {
		got, err := s.Get(ctx, dedupe.KindNode, d, nil)
		if err != nil {
			t.Errorf("get node: %v", err)
			continue
		}
		if len(got) != dedupe.FanOut*dedupe.DigestSize {
			t.Fatalf("node of %d bytes", len(got))
		}
		for i := range children {
			if dedupe.Digest(got[i*dedupe.DigestSize:][:dedupe.DigestSize]) != children[i] {
				t.Fatalf("child %d is not what was put", i)
			}
		}
	}
}

func testStop(t *testing.T, s dedupe.Store) {
	b := Begin(t, s)
	if _, err := b.Commit(context.Background(), dedupe.Publication{Manifests: [][]byte{[]byte("a"), []byte("b")},
		Notes: []dedupe.Note{{Type: 1}, {Type: 2}}}); err != nil {
		t.Fatalf("commit: %v", err)
	}
	n := 0
	if err := s.Manifests(context.Background(), func(dedupe.Digest) bool { n++; return false }); err != nil || n != 1 {
		t.Errorf("manifests went on %d times after false: %v", n, err)
	}
	n = 0
	if err := s.Notes(context.Background(), func(dedupe.Note) bool { n++; return false }); err != nil || n != 1 {
		t.Errorf("notes went on %d times after false: %v", n, err)
	}
}
