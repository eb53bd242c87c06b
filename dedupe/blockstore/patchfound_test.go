package blockstore_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/blockstore"
	"github.com/keelblock/keelblock/dedupe/dedupetest"
)

func newRand(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 77)) }

// wantContent reads blocks back.
func wantContent(t testing.TB, s *blockstore.Store, when string, blocks ...[]byte) {
	t.Helper()
	for i, p := range blocks {
		if got, err := s.Get(t.Context(), dedupe.KindBlock, s.BlockDigest(p), nil); err != nil || !bytes.Equal(got, p) {
			t.Errorf("%s: block %d: %v", when, i, err)
		}
	}
}

// Two batches store one block, whole and as a patch, and the whole one is damaged: a rebuilt
// index has the patch, and what lies over the block.
func TestRebuildTakesPatchForDamagedBlock(t *testing.T) {
	t.Parallel()
	dir := newVault(t, blockstore.Options{})
	s := mustOpen(t, dir, blockstore.Options{})
	d := newDisk(t, s, 1)
	zero := bytes.Clone(d.blocks[0])
	d.write(0, 1)
	one := bytes.Clone(d.blocks[0])
	d.write(0, 2)
	two := bytes.Clone(d.blocks[0])

	whole, patch := dedupetest.Begin(t, s), dedupetest.Begin(t, s)
	dedupetest.PutBlock(t, whole, one)
	d.put(whole.(dedupe.PatchBatch).Patches(), 0, one)
	d.blocks[0] = one
	d.put(patch.(dedupe.PatchBatch).Patches(), 0, zero)
	dedupetest.Commit(t, patch, "patch")
	dedupetest.Commit(t, whole, "whole")
	path, off, length, err := s.Locate(s.BlockDigest(one))
	if err != nil {
		t.Fatal(err)
	}
	if _, _, ok := s.PatchOf(s.BlockDigest(one)); ok {
		t.Fatal("the block is a patch")
	}
	mustClose(t, s)
	flip(t, path, off+length-100)
	if err := blockstore.RebuildIndex(t.Context(), dir, blockstore.Options{}, nil); err != nil {
		t.Fatal(err)
	}
	s = openVault(t, dir, blockstore.Options{})
	wantContent(t, s, "rebuilt", zero, one, two)
	if err := s.CheckIndex(); err != nil {
		t.Error(err)
	}
	flip(t, path, off+length-100) // for the test's end, which closes it
}

// Without a patch that is good a damaged block stays in the index of a rebuild, and what lies
// over it: put again it heals both.
func TestRebuildKeepsDamagedBase(t *testing.T) {
	t.Parallel()
	dir := newVault(t, blockstore.Options{})
	s := mustOpen(t, dir, blockstore.Options{})
	d := newDisk(t, s, 1)
	zero := bytes.Clone(d.blocks[0])
	path, off, length, err := s.Locate(s.BlockDigest(zero))
	if err != nil {
		t.Fatal(err)
	}
	d.step("one", func() []int { d.write(0, 1); return []int{0} })
	mustClose(t, s)
	flip(t, path, off+length-100)
	if err := blockstore.RebuildIndex(t.Context(), dir, blockstore.Options{}, nil); err != nil {
		t.Fatal(err)
	}
	s = openVault(t, dir, blockstore.Options{})
	if _, err := s.Get(t.Context(), dedupe.KindBlock, s.BlockDigest(d.blocks[0]), nil); !errors.Is(err, dedupe.ErrCorrupt) {
		t.Errorf("over a damaged base: %v", err)
	}
	b := dedupetest.Begin(t, s)
	dedupetest.PutBlock(t, b, zero)
	dedupetest.Commit(t, b, "healed")
	wantContent(t, s, "put again", zero, d.blocks[0])
}

// Two batches store one block as a patch, and either bundle is damaged: a rebuilt index has
// the other one.
func TestRebuildTakesTheGoodBundle(t *testing.T) {
	t.Parallel()
	for damaged := range 2 {
		dir := newVault(t, blockstore.Options{})
		s := mustOpen(t, dir, blockstore.Options{})
		d := newDisk(t, s, 1)
		zero := bytes.Clone(d.blocks[0])
		d.write(0, 1)
		batches := []dedupe.Batch{dedupetest.Begin(t, s), dedupetest.Begin(t, s)}
		for _, b := range batches {
			p := b.(dedupe.PatchBatch).Patches()
			d.put(p, 0, zero)
			if _, err := p.Flush(t.Context()); err != nil { // to a pack of its own
				t.Fatal(err)
			}
		}
		for i, b := range batches {
			dedupetest.Commit(t, b, fmt.Sprint("point ", i))
		}
		mustClose(t, s)
		var bundles []string // packs with one
		for _, path := range glob(t, dir, "packs/*.pack") {
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if bytes.Contains(text, d.blocks[0][grain:][:grain]) {
				bundles = append(bundles, path)
			}
		}
		if len(bundles) != 2 {
			t.Fatalf("%d packs with the patch", len(bundles))
		}
		text, err := os.ReadFile(bundles[damaged])
		if err != nil {
			t.Fatal(err)
		}
		flip(t, bundles[damaged], int64(bytes.Index(text, d.blocks[0][grain:][:grain])))
		if err := blockstore.RebuildIndex(t.Context(), dir, blockstore.Options{}, nil); err != nil {
			t.Fatal(err)
		}
		s = openVault(t, dir, blockstore.Options{})
		wantContent(t, s, fmt.Sprint("bundle ", damaged), zero, d.blocks[0])
	}
}

// A batch stores a block as a patch over a whole block, another one as a patch over a patch,
// and a third block lies over it. The bundle of the first is damaged: a rebuilt index has the
// deeper one, and what lies over the block. With both damaged it has the block and says so,
// and put again it heals all.
func TestRebuildTakesDeeperPatchForDamagedOne(t *testing.T) {
	t.Parallel()
	for _, both := range []bool{false, true} {
		dir := newVault(t, blockstore.Options{})
		s := mustOpen(t, dir, blockstore.Options{})
		d := newDisk(t, s, 1)
		zero := bytes.Clone(d.blocks[0])
		d.write(0, 1)
		one := bytes.Clone(d.blocks[0])
		d.write(0, 2)
		two := bytes.Clone(d.blocks[0])
		d.write(0, 3)
		three := bytes.Clone(d.blocks[0])
		put := func(b dedupe.Batch, content, was []byte) {
			t.Helper()
			p := b.(dedupe.PatchBatch).Patches()
			d.blocks[0] = content
			d.put(p, 0, was)
			if _, err := p.Flush(t.Context()); err != nil { // to a pack of its own
				t.Fatal(err)
			}
		}
		shallow, deep := dedupetest.Begin(t, s), dedupetest.Begin(t, s)
		put(shallow, two, zero)
		put(deep, one, zero)
		put(deep, two, one)
		dedupetest.Commit(t, deep, "deep")
		dedupetest.Commit(t, shallow, "shallow")
		over := dedupetest.Begin(t, s)
		put(over, three, two)
		dedupetest.Commit(t, over, "over it")
		for _, c := range []struct {
			content []byte
			depth   int
		}{{one, 1}, {two, 1}, {three, 2}} {
			if depth, _, ok := s.PatchOf(s.BlockDigest(c.content)); depth != c.depth || !ok {
				t.Fatalf("a block is at depth %d, want %d", depth, c.depth)
			}
		}
		path, off, length, err := s.Locate(s.BlockDigest(two))
		if err != nil {
			t.Fatal(err)
		}
		mustClose(t, s)
		flip(t, path, off+length-100)
		if both {
			damageOthers(t, dir, path, two[2*grain:][:grain])
		}
		for range 2 { // also from an index that was rebuilt
			if err := blockstore.RebuildIndex(t.Context(), dir, blockstore.Options{}, nil); err != nil {
				t.Fatal(err)
			}
		}
		s = openVault(t, dir, blockstore.Options{})
		if both {
			if _, err := s.Get(t.Context(), dedupe.KindBlock, s.BlockDigest(two), nil); !errors.Is(err, dedupe.ErrCorrupt) {
				t.Errorf("with both damaged: %v", err)
			}
			b := dedupetest.Begin(t, s)
			dedupetest.PutBlock(t, b, one)
			dedupetest.PutBlock(t, b, two)
			dedupetest.Commit(t, b, "healed")
			wantContent(t, s, "put again", zero, one, two, three)
			continue
		}
		wantContent(t, s, "rebuilt", zero, one, two, three)
		if err := s.CheckIndex(); err != nil {
			t.Error(err)
		}
	}
}

// damageOthers damages the content wherever it stands in clear in a pack but one.
func damageOthers(t testing.TB, dir, but string, content []byte) {
	t.Helper()
	n := 0
	for _, path := range glob(t, dir, "packs/*.pack") {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if i := bytes.Index(text, content); i >= 0 && path != but {
			n++
			flip(t, path, int64(i))
		}
	}
	if n == 0 {
		t.Fatal("no other pack has the content")
	}
}

// A collection drops a pack while an index is built from the packs: what was live in it
// stands in a newer one, patches too.
func TestRebuildWhilePacksGo(t *testing.T) {
	t.Parallel()
	o := patchOptions
	before, after := filepath.Join(memoryDir(t), "before"), filepath.Join(memoryDir(t), "after")
	if err := blockstore.Create(after, o); err != nil {
		t.Fatal(err)
	}
	s := mustOpen(t, after, o)
	want := increments(t, s, 3, hot, 60)
	mustClose(t, s)
	copyTree(t, after, before)
	s = mustOpen(t, after, o)
	if _, err := collectTrees(t.Context(), s, blockstore.CollectOptions{}, nil); err != nil {
		t.Fatal(err)
	}
	mustClose(t, s)
	dropped := 0
	err := blockstore.RebuildIndex(t.Context(), before, o, func(done, total int64) {
		if done < total || dropped > 0 {
			return
		}
		for _, path := range glob(t, before, "packs/*.pack") {
			if _, err := os.Stat(filepath.Join(after, "packs", filepath.Base(path))); err == nil {
				continue
			}
			dropped++
			if err := os.Remove(path); err != nil {
				t.Error(err)
			}
		}
		copyTree(t, filepath.Join(after, "packs"), filepath.Join(before, "packs"))
	})
	if err != nil || dropped == 0 {
		t.Fatalf("%d packs dropped, %v", dropped, err)
	}
	if err := checkTrees(openVault(t, before, o), want); err != nil {
		t.Error(err)
	}
}

// within reports whether ok becomes true in time.
func within(d time.Duration, ok func() bool) bool {
	for end := time.Now().Add(d); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			return false
		}
	}
	return true
}

// Of two packs of a batch the second comes into the index, with a patch, and the first one,
// with its base, does not. The base is stored again as a patch itself: what lies over it is
// not held then, since an index that is built anew could leave it out.
func TestPatchWithoutItsBaseIsNotHeld(t *testing.T) {
	t.Parallel()
	var armed atomic.Bool
	var victim atomic.Pointer[string] // the first pack that is synced
	release := make(chan struct{})
	o := patchOptions.WithPackBytes(128 << 10).WithHook(func(op, name string) error {
		if !armed.Load() || op != "sync" || !strings.HasSuffix(name, ".pack") {
			return nil
		}
		victim.CompareAndSwap(nil, &name)
		if *victim.Load() == name {
			<-release
			return syscall.EIO
		}
		return nil
	})
	dir := newVault(t, patchOptions)
	s := mustOpen(t, dir, o)
	d := newDisk(t, s, 1)
	mustClose(t, s)
	s = mustOpen(t, dir, o)
	d.s = s
	zero := bytes.Clone(d.blocks[0])
	d.write(0, 1)
	base := bytes.Clone(d.blocks[0])
	d.write(0, 2)
	over := bytes.Clone(d.blocks[0])

	armed.Store(true)
	b := dedupetest.Begin(t, s)
	filler := func() {
		p := make([]byte, s.BlockSize())
		randomContent(p, d.r.Uint64())
		dedupetest.PutBlock(t, b, p)
	}
	dedupetest.PutBlock(t, b, base)
	// Blocks that fill the first pack, so that the patch comes into another one.
	for end := time.Now().Add(time.Minute); victim.Load() == nil; {
		if time.Now().After(end) {
			t.Fatal("the first pack is not sealed")
		}
		filler()
		within(200*time.Millisecond, func() bool { return victim.Load() != nil })
	}
	p := b.(dedupe.PatchBatch).Patches()
	d.put(p, 0, base)
	if _, err := p.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	held := func() bool { return s.Indexed(s.BlockDigest(over)) }
	for range 3 {
		filler()
		if within(200*time.Millisecond, held) {
			break
		}
	}
	if !within(time.Minute, held) {
		close(release)
		t.Fatal("the second pack does not come into the index")
	}
	close(release)
	if err := b.Abort(); err != nil {
		t.Fatal(err)
	}
	armed.Store(false)
	if s.Indexed(s.BlockDigest(base)) {
		t.Fatal("the base is in the index")
	}

	again := dedupetest.Begin(t, s)
	patches := again.(dedupe.PatchBatch).Patches()
	d.blocks[0] = base
	d.put(patches, 0, zero)
	d.blocks[0] = over
	d.put(patches, 0, base)
	dedupetest.Commit(t, again, "a point with both")
	if depth, _, ok := s.PatchOf(s.BlockDigest(base)); !ok {
		t.Fatalf("the base is no patch, but at depth %d", depth)
	}
	if err := s.CheckIndex(); err != nil {
		t.Error(err)
	}
	mustClose(t, s)
	if err := os.Remove(*victim.Load()); !errors.Is(err, os.ErrNotExist) { // the batch that failed removed it
		t.Fatalf("the pack that could not be sealed is still there: %v", err)
	}
	if err := blockstore.RebuildIndex(t.Context(), dir, patchOptions, nil); err != nil {
		t.Fatal(err)
	}
	wantContent(t, openVault(t, dir, patchOptions), "rebuilt", zero, base, over)
}

// Who makes a patch over the whole block below others claims that block: a collection beside
// leaves it, though nothing else needs it.
func TestPatchOverRootClaimsIt(t *testing.T) {
	t.Parallel()
	dir := newVault(t, blockstore.Options{})
	s := mustOpen(t, dir, blockstore.Options{})
	d := newDisk(t, s, 1)
	mustClose(t, s)
	s = openVault(t, dir, blockstore.Options{})
	root := s.BlockDigest(d.blocks[0])
	b := dedupetest.Begin(t, s)
	c, err := s.BeginCollection(t.Context(), blockstore.CollectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.End()
	c.StartPass(0)
	d.write(0, 1)
	if ok, err := blockstore.PatchOverRoot(b, d.blocks[0], root); !ok || err != nil {
		t.Fatalf("no patch: %v", err)
	}
	if err := errors.Join(c.SweepNodes(t.Context()), c.SweepBlocks(t.Context()), c.SweepPacks(t.Context(), blockstore.Dead{})); err != nil {
		t.Fatal(err)
	}
	if !s.Indexed(root) {
		t.Error("the block below a patch is gone")
	}
}
