package blockstore_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/blockstore"
	"github.com/keelblock/keelblock/dedupe/dedupetest"
)

var errIndex = errors.New("the index fails here")

// failIndexAt fails the n-th transaction of the index from now on.
func failIndexAt(s *blockstore.Store, n int) {
	s.OnIndexWrite(func() error {
		if n--; n == 0 {
			return errIndex
		}
		return nil
	})
}

// small fills p, which compresses to next to nothing.
func small(p []byte, n uint64) []byte {
	clear(p)
	binary.LittleEndian.PutUint64(p, n+1)
	return p
}

// The entries of a pack are written in several transactions. When a later one fails, the
// index names records of a batch that has failed; nothing else may come to stand there.
func TestIndexEntriesThatFailHalfway(t *testing.T) {
	t.Parallel()
	s := openVault(t, newVault(t, crashOptions), crashOptions)
	points := []dedupe.Digest{writePoint(t, s, "its packs go on", []uint64{1, 2, 3})}
	const rows = 5000 // more than a transaction has
	failed := dedupetest.Begin(t, s)
	buf := make([]byte, s.BlockSize())
	for i := range uint64(rows) {
		dedupetest.PutBlock(t, failed, small(buf, i))
	}
	failIndexAt(s, 2)
	if _, err := failed.Commit(t.Context(), dedupe.Publication{Manifests: [][]byte{[]byte("never")}}); !errors.Is(err, errIndex) {
		t.Fatalf("commit: %v", err)
	}
	s.OnIndexWrite(nil)
	if !s.Indexed(s.BlockDigest(small(buf, 0))) || s.Indexed(s.BlockDigest(small(buf, rows-1))) {
		t.Fatal("the entries were not written by halves")
	}
	points = append(points, writePoint(t, s, "other content", seeds(newRand(1), 100, 1<<30)))
	b := dedupetest.Begin(t, s)
	for i := range uint64(rows) {
		dedupetest.PutBlock(t, b, small(buf, i))
	}
	if _, err := b.Commit(t.Context(), dedupe.Publication{}); err != nil {
		t.Fatal(err)
	}
	for i := range uint64(rows) {
		got, err := s.Get(t.Context(), dedupe.KindBlock, s.BlockDigest(small(buf, i)), nil)
		if err != nil || !bytes.Equal(got, buf) {
			t.Fatalf("block %d: %v", i, err)
		}
	}
	if err := checkStore(s, points); err != nil {
		t.Error(err)
	}
}

// After a commit that may have happened or not, no batch commits, also one that was open
// before: its publication would have the other's serial, and its notes the other's numbers.
func TestNoCommitAfterOneInDoubt(t *testing.T) {
	t.Parallel()
	var syncs atomic.Int64 // of packs, that go well; negative: all do
	syncs.Store(-1)
	dir := newVault(t, crashOptions)
	s := mustOpen(t, dir, crashOptions.WithHook(func(op, name string) error {
		if op == "sync" && strings.HasSuffix(name, ".pack") && syncs.Load() >= 0 && syncs.Add(-1) < 0 {
			syncs.Store(0)
			return syscall.EIO
		}
		return nil
	}))
	points := []dedupe.Digest{writePoint(t, s, "first", []uint64{1, 2})}
	doubt, other := dedupetest.Begin(t, s), dedupetest.Begin(t, s)
	dedupetest.PutBlock(t, doubt, dedupetest.Block(s, 10))
	dedupetest.PutBlock(t, other, dedupetest.Block(s, 11))
	syncs.Store(1) // the blocks', not the publication's
	if _, err := doubt.Commit(t.Context(), noteOf("in doubt")); !errors.Is(err, syscall.EIO) {
		t.Fatalf("commit: %v", err)
	}
	syncs.Store(-1)
	if _, err := other.Commit(t.Context(), noteOf("other")); err == nil {
		t.Error("a batch that was open has committed after one in doubt")
	}
	mustClose(t, s)
	s = mustOpen(t, dir, crashOptions)
	points = append(points, writePoint(t, s, "after", []uint64{3}))
	before := bodies(t, s)
	mustClose(t, s)
	if err := blockstore.RebuildIndex(t.Context(), dir, crashOptions, nil); err != nil {
		t.Fatal(err)
	}
	s = openVault(t, dir, crashOptions)
	if err := checkStore(s, points); err != nil {
		t.Error(err)
	}
	if after := bodies(t, s); !maps.Equal(after, before) {
		t.Errorf("notes of a rebuilt index are %v, want %v", after, before)
	}
}

// noteOf is a publication of one note.
func noteOf(body string) dedupe.Publication {
	return dedupe.Publication{Notes: []dedupe.Note{{Type: 2, Body: []byte(body)}}}
}

// bodies are what the notes of a vault say.
func bodies(t testing.TB, s dedupe.Store) map[uint64]string {
	t.Helper()
	got := make(map[uint64]string)
	if err := s.Notes(context.Background(), func(n dedupe.Note) bool { got[n.Sequence] = string(n.Body); return true }); err != nil {
		t.Fatal(err)
	}
	return got
}

// What was cancelled is published at the second try, the very same: it is there, also when
// the index is built anew.
func TestPublishedAgainAfterACancel(t *testing.T) {
	t.Parallel()
	dir := newVault(t, crashOptions)
	s := mustOpen(t, dir, crashOptions)
	try := func() error {
		_, err := dedupetest.Begin(t, s).Commit(t.Context(), noteOf("a hold"))
		return err
	}
	failed := 0
	for n := 1; ; n++ {
		failIndexAt(s, n)
		err := try()
		s.OnIndexWrite(nil)
		if err == nil {
			break
		}
		failed++
	}
	if failed == 0 {
		t.Fatal("no commit failed")
	}
	mustClose(t, s)
	if err := blockstore.RebuildIndex(t.Context(), dir, crashOptions, nil); err != nil {
		t.Fatal(err)
	}
	if got := bodies(t, openVault(t, dir, crashOptions)); len(got) != 1 {
		t.Errorf("notes of a rebuilt index: %v", got)
	}
}

// A commit that is cancelled stays so, also where its publication filled a pack and the
// cancellation is in the next one.
func TestCancelInTheNextPack(t *testing.T) {
	t.Parallel()
	o := crashOptions.WithPackBytes(64 << 10)
	dir := newVault(t, o)
	s := mustOpen(t, dir, o)
	manifest := make([]byte, 64<<10)
	kept, failed := make(map[dedupe.Digest]bool), 0
	for size := 55 << 10; size < 61<<10; size += 512 {
		for n := 1; ; n++ { // each transaction of a commit fails once, until one goes well
			randomContent(manifest, uint64(size*100+n))
			b := dedupetest.Begin(t, s)
			failIndexAt(s, n)
			ids, err := b.Commit(t.Context(), dedupe.Publication{Manifests: [][]byte{manifest[:size]}})
			s.OnIndexWrite(nil)
			if err == nil {
				kept[ids[0]] = true
				break
			}
			failed++
		}
	}
	mustClose(t, s)
	if err := blockstore.RebuildIndex(t.Context(), dir, o, nil); err != nil {
		t.Fatal(err)
	}
	s = openVault(t, dir, o)
	if err := s.Manifests(t.Context(), func(d dedupe.Digest) bool {
		if !kept[d] {
			t.Errorf("manifest %v of a cancelled commit is published in a rebuilt index", d)
		}
		delete(kept, d)
		return true
	}); err != nil || len(kept) > 0 || failed < 20 {
		t.Errorf("%d commits failed, %d manifests are missing, %v", failed, len(kept), err)
	}
}

// A kill comes between a publication and its transaction of the index, and another one at
// any step of the recovery: the point is there, and what is published next is beside it.
func TestRecoverPublicationTwice(t *testing.T) {
	t.Parallel()
	origin, killed := filepath.Join(memoryDir(t), "vault"), filepath.Join(memoryDir(t), "killed")
	if err := blockstore.Create(origin, crashOptions); err != nil {
		t.Fatal(err)
	}
	s := mustOpen(t, origin, crashOptions)
	writePoint(t, s, "first", []uint64{1, 2})
	b := dedupetest.Begin(t, s)
	point, err := putPoint(t.Context(), s, b, "second", []uint64{3, 4})
	if err != nil {
		t.Fatal(err)
	}
	s.OnIndexWrite(func() error { // of which the last one is the publication's
		if err := os.RemoveAll(killed); err != nil {
			return err
		}
		copyTree(t, origin, killed)
		return nil
	})
	second, err := commitPoint(t.Context(), b, point)
	s.OnIndexWrite(nil)
	if err != nil {
		t.Fatal(err)
	}
	mustClose(t, s)
	for n := 1; ; n++ {
		dir := filepath.Join(memoryDir(t), "again")
		copyTree(t, killed, dir)
		calls := 0
		s, err := blockstore.Open(dir, crashOptions.WithHook(func(op, name string) error {
			if calls++; calls == n {
				return fmt.Errorf("%s %s: %w", op, name, syscall.EIO)
			}
			return nil
		}))
		if err == nil {
			_ = s.Close() // whatever failed, failed now
		}
		last := calls < n
		s = mustOpen(t, dir, crashOptions)
		if err := checkPoint(s, second); err != nil {
			t.Errorf("call %d: %v", n, err)
		}
		third := writePoint(t, s, "third", []uint64{5})
		before := bodies(t, s)
		mustClose(t, s)
		if err := blockstore.RebuildIndex(t.Context(), dir, crashOptions, nil); err != nil {
			t.Fatal(err)
		}
		s = mustOpen(t, dir, crashOptions)
		if err := errors.Join(checkPoint(s, second), checkPoint(s, third)); err != nil {
			t.Errorf("call %d: rebuilt: %v", n, err)
		}
		if after := bodies(t, s); !maps.Equal(after, before) {
			t.Errorf("call %d: notes of a rebuilt index are %v, want %v", n, after, before)
		}
		mustClose(t, s)
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		if last || t.Failed() {
			break
		}
	}
}
