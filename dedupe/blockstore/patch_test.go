package blockstore_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/blockstore"
	"github.com/keelblock/keelblock/dedupe/dedupetest"
	"github.com/keelblock/keelblock/dedupe/pack"
)

const grain = pack.GrainSize

// disk is blocks that lie beside one another, as they are now.
type disk struct {
	t      testing.TB
	s      *blockstore.Store
	r      *rand.Rand
	blocks [][]byte
}

// newDisk is n blocks of noise, stored and committed whole.
func newDisk(t testing.TB, s *blockstore.Store, n int) *disk {
	t.Helper()
	d := &disk{t: t, s: s, r: rand.New(rand.NewPCG(7, uint64(n)))}
	b := dedupetest.Begin(t, s)
	for range n {
		p := make([]byte, s.BlockSize())
		randomContent(p, d.r.Uint64())
		d.blocks = append(d.blocks, p)
		dedupetest.PutBlock(t, b, p)
	}
	dedupetest.Commit(t, b, fmt.Sprintf("disk of %d blocks", n))
	return d
}

// write changes grains of a block.
func (d *disk) write(block int, grains ...int) {
	for _, g := range grains {
		randomContent(d.blocks[block][g*grain:][:grain], d.r.Uint64())
	}
}

// put stores block i as a patch over was.
func (d *disk) put(p dedupe.Patches, i int, was []byte) dedupe.Put {
	d.t.Helper()
	put, err := dedupetest.PutOver(context.Background(), d.s, p, d.blocks[i], was)
	if err != nil {
		d.t.Fatalf("put block %d: %v", i, err)
	}
	if put.Digest != d.s.BlockDigest(d.blocks[i]) {
		d.t.Fatalf("put block %d: digest %v", i, put.Digest)
	}
	return put
}

// step changes blocks by fn, stores those that it names, and commits.
func (d *disk) step(name string, fn func() []int) (stored int64) {
	d.t.Helper()
	was := make([][]byte, len(d.blocks))
	for i := range d.blocks {
		was[i] = bytes.Clone(d.blocks[i])
	}
	b := dedupetest.Begin(d.t, d.s)
	p := b.(dedupe.PatchBatch).Patches()
	for _, i := range fn() {
		stored += d.put(p, i, was[i]).StoredBytes
	}
	n, err := p.Flush(context.Background())
	if err != nil {
		d.t.Fatal(err)
	}
	dedupetest.Commit(d.t, b, name)
	return stored + n
}

// check reads all blocks, one by one and together.
func (d *disk) check(s *blockstore.Store) {
	d.t.Helper()
	n := len(d.blocks)
	digests, bufs, errs := make([]dedupe.Digest, n), make([][]byte, n), make([]error, n)
	for i, want := range d.blocks {
		digests[i], bufs[i] = s.BlockDigest(want), make([]byte, len(want))
		got, err := s.Get(context.Background(), dedupe.KindBlock, digests[i], nil)
		if err != nil || !bytes.Equal(got, want) {
			d.t.Fatalf("block %d: %v", i, err)
		}
	}
	s.GetBlocks(context.Background(), digests, bufs, errs)
	for i, want := range d.blocks {
		if errs[i] != nil || !bytes.Equal(bufs[i], want) {
			d.t.Fatalf("block %d beside others: %v", i, errs[i])
		}
	}
}

// eachPatchVault runs a test over vaults of all kinds that matter to patches.
func eachPatchVault(t *testing.T, test func(t *testing.T, o blockstore.Options)) {
	for _, tt := range []struct {
		name string
		o    blockstore.Options
	}{
		{"default", blockstore.Options{}},
		{"small blocks and packs", crashOptions},
		{"encrypted", encrypted(blockstore.Options{PackBytes: blockstore.MinPackBytes})},
		{"large blocks, zstd", blockstore.Options{BlockSize: dedupe.MaxBlockSize, PackBytes: 2 * blockstore.MinPackBytes, Compression: blockstore.CompressionZstd}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			test(t, tt.o)
		})
	}
}

// A long history of scattered changes reads back at every point of it: while the batch
// is open, after the commit, after a clean stop, and with an index made from the packs.
func TestPatchHistory(t *testing.T) {
	eachPatchVault(t, func(t *testing.T, o blockstore.Options) {
		dir := newVault(t, o)
		s, err := blockstore.Open(dir, o)
		if err != nil {
			t.Fatal(err)
		}
		n := 64
		if o.BlockSize > 1<<18 {
			n = 6
		}
		d := newDisk(t, s, n)
		perBlock := s.BlockSize() / grain
		var history [][]byte // versions that must stay readable
		for round := range 24 {
			d.step(fmt.Sprint("round ", round), func() (list []int) {
				for i := range d.blocks {
					if d.r.IntN(3) == 0 {
						continue
					}
					for range 1 + d.r.IntN(1+d.r.IntN(perBlock)) {
						d.write(i, d.r.IntN(perBlock))
					}
					list = append(list, i)
				}
				return list
			})
			history = append(history, bytes.Clone(d.blocks[round%n]))
			if round%8 == 0 {
				d.check(s)
			}
		}
		d.check(s)
		old, err := s.DumpIndex()
		if err != nil {
			t.Fatal(err)
		}
		if depths := s.PatchDepths(); depths[1] == 0 || depths[len(depths)-1] == 0 {
			t.Errorf("patches by depth: %v", depths)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if err := blockstore.RebuildIndex(t.Context(), dir, o, nil); err != nil {
			t.Fatal(err)
		}
		s = openVault(t, dir, o)
		rebuilt, err := s.DumpIndex()
		if err != nil || !mapsEqual(old, rebuilt) {
			t.Errorf("the rebuilt index has other entries: %d, was %d, %v", len(rebuilt), len(old), err)
		}
		d.check(s)
		for i, want := range history {
			got, err := s.Get(t.Context(), dedupe.KindBlock, s.BlockDigest(want), nil)
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("round %d: %v", i, err)
			}
		}
	})
}

func mapsEqual(a, b map[string]blockstore.IndexEntry) bool {
	for k, v := range a {
		if b[k] != v {
			return false
		}
	}
	return len(a) == len(b)
}

// What is put as a patch is held and readable at once, by its batch and by others, and
// counts for what its bundle takes.
func TestPatchPending(t *testing.T) {
	eachPatchVault(t, func(t *testing.T, o blockstore.Options) {
		s := openVault(t, newVault(t, o), o)
		d := newDisk(t, s, 5)
		was := slices.Clone(d.blocks)
		b := dedupetest.Begin(t, s)
		p := b.(dedupe.PatchBatch).Patches()
		before := s.Stats()
		for i := range d.blocks {
			d.blocks[i] = bytes.Clone(was[i])
			d.write(i, i%4)
			put := d.put(p, i, was[i])
			if !put.New || put.StoredBytes != 0 || put.RawBytes != grain {
				t.Errorf("put of a patch: %+v", put)
			}
			if again := d.put(p, i, was[i]); again.New || again.RawBytes != 0 {
				t.Errorf("put again: %+v", again)
			}
			if again := dedupetest.PutBlock(t, b, d.blocks[i]); again.New {
				t.Errorf("put again as a block: %+v", again)
			}
		}
		d.check(s)
		n, err := p.Flush(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		d.check(s)
		if again, err := p.Flush(t.Context()); again != 0 || err != nil {
			t.Errorf("a second flush wrote %d bytes, %v", again, err)
		}
		sum := int64(0)
		for _, block := range d.blocks {
			_, _, length, err := s.Locate(s.BlockDigest(block))
			if err != nil {
				t.Fatal(err)
			}
			sum += length
		}
		if n < 5*grain || sum != n {
			t.Errorf("patches take %d bytes, one by one %d", n, sum)
		}
		after := s.Stats()
		if after.NewBlocks-before.NewBlocks != 5 || after.NewRawBytes-before.NewRawBytes != 5*grain || after.NewBytes-before.NewBytes != n {
			t.Errorf("stats: %+v, were %+v", after, before)
		}
		dedupetest.Commit(t, b, "patches")
		if got := s.Stats().Blocks - before.Blocks; got != 5 {
			t.Errorf("%d blocks in the index, want 5", got)
		}
		d.check(s)
	})
}

// Patches are at most so deep and lay at most so many grains over a whole block; where
// one more would be too deep, a patch over the whole block takes its place, or a block.
func TestPatchBounds(t *testing.T) {
	t.Parallel()
	s := openVault(t, newVault(t, blockstore.Options{}), blockstore.Options{})
	d := newDisk(t, s, 4)
	for round := range 40 {
		d.step(fmt.Sprint("round ", round), func() []int {
			d.write(0, 3)                     // the same grain
			d.write(1, round%16)              // one after the other
			d.write(2, 1, 5, 9, 15)           // a quarter of the block
			d.write(3, 0, 1, 2, 3, 8+round%2) // more
			return []int{0, 1, 2, 3}
		})
		d.check(s)
		for i := range d.blocks {
			depth, total, ok := s.PatchOf(s.BlockDigest(d.blocks[i]))
			if depth > 2 || total > 4 {
				t.Fatalf("round %d: block %d lies over %d patches of %d grains", round, i, depth, total)
			}
			if i == 0 && !ok || i == 3 && ok || i == 2 && !ok {
				t.Fatalf("round %d: block %d is a patch: %v", round, i, ok)
			}
		}
	}
	depths := s.PatchDepths()
	if len(depths) != 3 || depths[2] == 0 {
		t.Errorf("patches by depth: %v", depths)
	}
}

// A block over which others lie, and which is lost, is stored whole when it comes again,
// never over one that is made of it; and whoever was laid over it is healed.
func TestPatchNoCycle(t *testing.T) {
	eachPatchVault(t, func(t *testing.T, o blockstore.Options) {
		dir := newVault(t, o)
		s := openVault(t, dir, o)
		d := newDisk(t, s, 1)
		var versions [][]byte
		for v := range 3 {
			versions = append(versions, bytes.Clone(d.blocks[0]))
			d.step(fmt.Sprint("version ", v), func() []int { d.write(0, 0); return []int{0} })
		}
		versions = append(versions, bytes.Clone(d.blocks[0]))
		newest := d.blocks[0]
		path, off, length, err := s.Locate(s.BlockDigest(versions[0]))
		if err != nil {
			t.Fatal(err)
		}
		flip(t, path, off+length-7)
		for i, p := range versions {
			_, err := s.Get(t.Context(), dedupe.KindBlock, s.BlockDigest(p), nil)
			if !errors.Is(err, dedupe.ErrCorrupt) || !strings.Contains(err.Error(), s.BlockDigest(p).String()) ||
				!strings.Contains(err.Error(), s.BlockDigest(versions[0]).String()) {
				t.Errorf("version %d over a damaged block: %v", i, err)
			}
		}
		// The guest goes back to what was there first.
		b := dedupetest.Begin(t, s)
		p := b.(dedupe.PatchBatch).Patches()
		d.blocks[0] = versions[0]
		if put := d.put(p, 0, newest); !put.New || put.RawBytes != int64(s.BlockSize()) {
			t.Errorf("the lost block is stored as %+v, want it whole", put)
		}
		dedupetest.Commit(t, b, "back")
		for i, want := range versions {
			got, err := s.Get(t.Context(), dedupe.KindBlock, s.BlockDigest(want), nil)
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("version %d after healing: %v", i, err)
			}
		}
	})
}

// Two batches store the same block, one whole, one as a patch. The first is in the index
// first, and nothing reaches what it wrote: it is the second's record all the same.
func TestPatchOfWhatAnotherBatchStores(t *testing.T) {
	for _, bug := range []bool{false, true} {
		t.Run(fmt.Sprint("with the mistake: ", bug), func(t *testing.T) {
			o := crashOptions
			if bug {
				o = o.WithoutStoredInWindow()
			}
			s := openVault(t, newVault(t, o), o)
			d := newDisk(t, s, 1)
			was := bytes.Clone(d.blocks[0])
			d.write(0, 3)
			slow := dedupetest.Begin(t, s)
			d.put(slow.(dedupe.PatchBatch).Patches(), 0, was)
			quick := dedupetest.Begin(t, s)
			dedupetest.PutBlock(t, quick, d.blocks[0])
			dedupetest.Commit(t, quick, "a point that is purged at once")

			c, err := s.BeginCollection(t.Context(), blockstore.CollectOptions{})
			if err != nil {
				t.Fatal(err)
			}
			defer c.End()
			c.StartPass(0)
			c.MarkBlock(s.BlockDigest(was))
			dedupetest.Commit(t, slow, "a point that comes after the mark")
			if err := errors.Join(c.SweepNodes(t.Context()), c.SweepBlocks(t.Context()), c.SweepPacks(t.Context(), blockstore.Dead{})); err != nil {
				t.Fatal(err)
			}
			got, err := s.Get(t.Context(), dedupe.KindBlock, s.BlockDigest(d.blocks[0]), nil)
			if lost := err != nil || !bytes.Equal(got, d.blocks[0]); lost != bug {
				t.Errorf("the block of the second point: lost %v, %v", lost, err)
			}
		})
	}
}

// Two batches store the same block over different ones, at different depths. Whichever
// is first, what lies over a block is deeper than the block, also when the index is
// built again.
func TestPatchesOfTwoBatchesStayInOrder(t *testing.T) {
	for _, deepFirst := range []bool{true, false} {
		t.Run(fmt.Sprint("the deeper one first: ", deepFirst), func(t *testing.T) {
			dir := newVault(t, blockstore.Options{})
			s, err := blockstore.Open(dir, blockstore.Options{})
			if err != nil {
				t.Fatal(err)
			}
			d := newDisk(t, s, 1)
			zero := bytes.Clone(d.blocks[0])
			d.step("one", func() []int { d.write(0, 0); return []int{0} })
			one := bytes.Clone(d.blocks[0])
			d.write(0, 1) // over zero: two grains; over one: one
			two := bytes.Clone(d.blocks[0])
			d.write(0, 2)
			three := bytes.Clone(d.blocks[0])

			deep, flat := dedupetest.Begin(t, s), dedupetest.Begin(t, s)
			d.blocks[0] = two
			d.put(deep.(dedupe.PatchBatch).Patches(), 0, one)
			patches := flat.(dedupe.PatchBatch).Patches()
			d.put(patches, 0, zero)
			d.blocks[0] = three
			d.put(patches, 0, two)
			if deepFirst {
				dedupetest.Commit(t, deep, "deep")
			}
			dedupetest.Commit(t, flat, "flat")
			if !deepFirst {
				dedupetest.Commit(t, deep, "deep")
			}
			check := func() {
				t.Helper()
				below := 0
				for i, p := range [][]byte{zero, two, three} {
					depth, _, _ := s.PatchOf(s.BlockDigest(p))
					if i > 0 && depth <= below {
						t.Errorf("version %d lies at depth %d over one at depth %d", i, depth, below)
					}
					below = depth
					got, err := s.Get(t.Context(), dedupe.KindBlock, s.BlockDigest(p), nil)
					if err != nil || !bytes.Equal(got, p) {
						t.Errorf("version %d: %v", i, err)
					}
				}
			}
			check()
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			if err := blockstore.RebuildIndex(t.Context(), dir, blockstore.Options{}, nil); err != nil {
				t.Fatal(err)
			}
			s = openVault(t, dir, blockstore.Options{})
			check()
		})
	}
}

// What is damaged in a bundle's header or directory makes its patches ErrCorrupt, named,
// and what is damaged in the grains at least that patch whose they are; put again it is
// stored whole.
func TestDamagedPatch(t *testing.T) {
	eachPatchVault(t, func(t *testing.T, o blockstore.Options) {
		dir := newVault(t, o)
		s, err := blockstore.Open(dir, o)
		if err != nil {
			t.Fatal(err)
		}
		d := newDisk(t, s, 3)
		was := slices.Clone(d.blocks)
		for i := range d.blocks {
			d.blocks[i] = bytes.Clone(was[i])
		}
		now := d.blocks
		d.blocks = was
		b := dedupetest.Begin(t, s)
		p := b.(dedupe.PatchBatch).Patches()
		for i := range now {
			randomContent(now[i][:grain], uint64(i+1000))
			put, err := p.PutPatch(t.Context(), now[i], s.BlockDigest(was[i]), func() ([]byte, error) { return was[i], nil })
			if err != nil || put.RawBytes != grain {
				t.Fatalf("%+v, %v", put, err)
			}
		}
		size, err := p.Flush(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		dedupetest.Commit(t, b, "patches")
		path, off, _, err := s.Locate(s.BlockDigest(now[1]))
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		for _, at := range []int64{0, 5, 20, 60, 160, 176, 188, 192, 200, 192 + 8 + 40, 192 + 8 + 66, 192 + 320, size / 2, size - 1} {
			flip(t, path, off+at)
			s, err := blockstore.Open(dir, o)
			if err != nil {
				t.Fatal(err)
			}
			lost := -1
			for i, block := range now {
				digest := s.BlockDigest(block)
				got, err := s.Get(t.Context(), dedupe.KindBlock, digest, nil)
				switch {
				case err == nil && at > 192+300 && bytes.Equal(got, block): // in another patch's grains
				case got != nil || !errors.Is(err, dedupe.ErrCorrupt) || !strings.Contains(err.Error(), digest.String()):
					t.Errorf("bit at %d of %d of the bundle: %d bytes, %v", at, size, len(got), err)
				default:
					lost = i
				}
			}
			if lost < 0 {
				t.Fatalf("bit at %d of %d of the bundle damages no patch", at, size)
			}
			d.check(s) // the bases
			b := dedupetest.Begin(t, s)
			p := b.(dedupe.PatchBatch).Patches()
			put, err := p.PutPatch(t.Context(), now[lost], s.BlockDigest(was[lost]), func() ([]byte, error) { return was[lost], nil })
			if err != nil || !put.New || put.RawBytes != int64(s.BlockSize()) {
				t.Errorf("bit at %d of the bundle: the patch is put again as %+v, %v", at, put, err)
			}
			if err := errors.Join(b.Abort(), s.Close()); err != nil {
				t.Fatal(err)
			}
			flip(t, path, off+at)
		}
		s = openVault(t, dir, o)
		d.blocks = now
		d.check(s)
	})
}

// A base that cannot be told, or is not the content that was said, makes a whole block.
func TestPatchWithoutBase(t *testing.T) {
	t.Parallel()
	s := openVault(t, newVault(t, blockstore.Options{}), blockstore.Options{})
	d := newDisk(t, s, 2)
	whole := int64(s.BlockSize())
	n := uint64(0)
	for name, put := range map[string]func(p dedupe.Patches, next, was []byte) (dedupe.Put, error){
		"no base": func(p dedupe.Patches, next, was []byte) (dedupe.Put, error) {
			return p.PutPatch(t.Context(), next, dedupe.Digest{}, nil)
		},
		"base not in the vault": func(p dedupe.Patches, next, was []byte) (dedupe.Put, error) {
			return p.PutPatch(t.Context(), next, dedupe.Digest{1}, func() ([]byte, error) { return was, nil })
		},
		"base not readable": func(p dedupe.Patches, next, was []byte) (dedupe.Put, error) {
			return p.PutPatch(t.Context(), next, s.BlockDigest(was), func() ([]byte, error) { return nil, dedupe.ErrCorrupt })
		},
		"base too short": func(p dedupe.Patches, next, was []byte) (dedupe.Put, error) {
			return p.PutPatch(t.Context(), next, s.BlockDigest(was), func() ([]byte, error) { return was[:grain], nil })
		},
		"base the same": func(p dedupe.Patches, next, was []byte) (dedupe.Put, error) {
			return p.PutPatch(t.Context(), next, s.BlockDigest(was), func() ([]byte, error) { return next, nil })
		},
	} {
		n++
		b := dedupetest.Begin(t, s)
		p := b.(dedupe.PatchBatch).Patches()
		next := bytes.Clone(d.blocks[0])
		randomContent(next[grain:][:grain], n<<32)
		got, err := put(p, next, d.blocks[0])
		if err != nil || !got.New || got.RawBytes != whole || got.StoredBytes == 0 {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
		dedupetest.Commit(t, b, name)
		if back, err := s.Get(t.Context(), dedupe.KindBlock, got.Digest, nil); err != nil || !bytes.Equal(back, next) {
			t.Errorf("%s: %v", name, err)
		}
	}
	b := dedupetest.Begin(t, s)
	p := b.(dedupe.PatchBatch).Patches()
	next := bytes.Clone(d.blocks[0])
	next[0]++
	_, err := p.PutPatch(t.Context(), next, s.BlockDigest(d.blocks[0]), func() ([]byte, error) { return nil, context.Canceled })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("a reader that was cancelled: %v", err)
	}
	if err := b.Abort(); err != nil {
		t.Fatal(err)
	}
	if _, err := p.PutPatch(t.Context(), next, s.BlockDigest(d.blocks[0]), nil); !errors.Is(err, dedupe.ErrClosed) {
		t.Errorf("a patch for an aborted batch: %v", err)
	}
	if _, err := p.Flush(t.Context()); !errors.Is(err, dedupe.ErrClosed) {
		t.Errorf("flush of an aborted batch: %v", err)
	}
}
