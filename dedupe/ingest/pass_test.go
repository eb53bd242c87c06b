package ingest_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"testing"

	"github.com/keelblock/keelblock/blockdev"
	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/hashtree"
	"github.com/keelblock/keelblock/dedupe/ingest"
	"github.com/keelblock/keelblock/dedupe/recoverypoint"
)

const grain = blockdev.GrainSize

var seedFlag = flag.Uint64("seed", 0, "seed of the model test; 0 is a new one")

// change is one range to give to a Pass: data, or a hole.
type change struct {
	off  int64
	data []byte
	zero int64
}

// run makes a pass over base.
func run(t testing.TB, s dedupe.Store, base hashtree.Root, size int64, o ingest.Options, changes ...change) (hashtree.Root, ingest.Stats, *recoverypoint.ChangeSet) {
	t.Helper()
	root, stats, set, err := tryRun(t, s, base, size, o, changes...)
	if err != nil {
		t.Fatal(err)
	}
	return root, stats, set
}

func tryRun(t testing.TB, s dedupe.Store, base hashtree.Root, size int64, o ingest.Options, changes ...change) (hashtree.Root, ingest.Stats, *recoverypoint.ChangeSet, error) {
	t.Helper()
	b, err := s.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	p, err := ingest.NewPass(s, b, base, size, o)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Abort()
	for _, c := range changes {
		if c.data != nil {
			err = p.Write(t.Context(), c.off, c.data)
		} else {
			err = p.Zero(t.Context(), c.off, c.zero)
		}
		if err != nil {
			break
		}
	}
	root, stats, ferr := p.Finish(t.Context())
	if err == nil {
		err = ferr
	} else if ferr == nil {
		t.Fatalf("Finish succeeds after %v", err)
	}
	if err != nil {
		return root, stats, nil, errors.Join(err, b.Abort())
	}
	if _, err := b.Commit(t.Context(), dedupe.Publication{}); err != nil {
		t.Fatal(err)
	}
	return root, stats, p.Changes(), nil
}

// readAll is the content of a tree through a Device.
func readAll(t testing.TB, s dedupe.Store, root hashtree.Root) []byte {
	t.Helper()
	d, err := recoverypoint.OpenRoot(t.Context(), s, recoverypoint.NewCache(1<<20), "disk", root)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	p := make([]byte, d.Size())
	for off := 0; off < len(p); {
		n := min(len(p)-off, 300<<10)
		if _, err := d.ReadAt(p[off:off+n], int64(off)); err != nil {
			t.Fatal(err)
		}
		off += n
	}
	return p
}

func fill(rng *rand.Rand, p []byte) {
	for i := 0; i < len(p); i += 8 {
		v := rng.Uint64()
		for j := i; j < min(i+8, len(p)); j++ {
			p[j] = byte(v)
			v >>= 8
		}
	}
}

// TestModel runs passes over random disks of every block size: writes of whole
// grains, holes, growth and shrinking, with and without a base, and compares what
// reads back with a byte slice. A pass over the changes must give the same root as a
// pass over the whole disk.
func TestModel(t *testing.T) {
	seed := *seedFlag
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("-seed %d", seed)
	for _, blockSize := range []int{16 << 10, 64 << 10, 1 << 20} {
		for name, open := range stores {
			t.Run(fmt.Sprintf("%s %d", name, blockSize), func(t *testing.T) { testModel(t, open(t, blockSize), seed) })
		}
	}
}

func testModel(t *testing.T, s dedupe.Store, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, uint64(s.BlockSize())))
	disk := make([]byte, 0)
	var root hashtree.Root
	for round := range 16 {
		before := bytes.Clone(disk)
		if round == 0 || rng.IntN(4) == 0 {
			size := 512 * (1 + rng.IntN(4<<20/512))
			grown := make([]byte, size)
			copy(grown, disk)
			disk = grown
		}
		size := int64(len(disk))
		var changes []change
		given := int64(0)
		for at := rng.Int64N(64) * grain; at < size; at += rng.Int64N(1<<rng.IntN(10)) * grain {
			n := min((1+rng.Int64N(1<<rng.IntN(9)))*grain, size-at)
			switch rng.IntN(3) {
			case 0:
				clear(disk[at : at+n])
				changes = append(changes, change{off: at, zero: n})
			case 1: // the same content again: listed, not changed
				changes = append(changes, change{off: at, data: disk[at : at+n]})
				given += n
			default:
				fill(rng, disk[at:at+n])
				if rng.IntN(8) == 0 {
					clear(disk[at : at+n])
				}
				changes = append(changes, change{off: at, data: disk[at : at+n]})
				given += n
			}
			at += n
		}
		next, stats, set := run(t, s, root, size, ingest.Options{Workers: 1 + rng.IntN(5), Trim: true}, changes...)
		if !bytes.Equal(readAll(t, s, next), disk) {
			t.Fatalf("round %d: the disk of %d bytes reads back as something else", round, size)
		}
		if whole, _, _ := run(t, s, hashtree.Root{}, size, ingest.Options{}, change{data: disk}); whole != next {
			t.Fatalf("round %d: root %+v from changes, %+v from the whole disk", round, next, whole)
		}
		if stats.ReadBytes != given {
			t.Fatalf("round %d: read %d bytes, gave %d", round, stats.ReadBytes, given)
		}
		checkChanges(t, before, disk, set, stats)
		root = next
	}
}

// checkChanges: every grain that differs, and was not only cut off or grown, is listed;
// with Trim a listed grain with data differs.
func checkChanges(t *testing.T, before, after []byte, set *recoverypoint.ChangeSet, stats ingest.Stats) {
	t.Helper()
	listed, sum := make([]bool, (len(after)+grain-1)/grain), int64(0)
	set.Extents(int64(len(after)), func(e blockdev.Extent) bool {
		for off := e.Offset; off < e.End(); off += grain {
			listed[off/grain] = true
		}
		sum += e.Length
		return true
	})
	if sum != stats.ChangedBytes {
		t.Fatalf("changed bytes %d, listed %d", stats.ChangedBytes, sum)
	}
	for g := range listed {
		now := after[g*grain : min((g+1)*grain, len(after))]
		was := make([]byte, len(now))
		if g*grain < len(before) {
			copy(was, before[g*grain:])
		}
		if !bytes.Equal(now, was) && !listed[g] {
			t.Fatalf("grain %d differs and is not listed", g)
		}
		if bytes.Equal(now, was) && listed[g] && !allZero(now) {
			t.Fatalf("grain %d is listed and does not differ", g)
		}
	}
}

func allZero(p []byte) bool { return len(bytes.Trim(p, "\x00")) == 0 }

// TestBaseError: when the rest of a block cannot be read from the base, the pass says
// which range; given that whole range, the next pass succeeds and heals the tree.
func TestBaseError(t *testing.T) {
	const blockSize = 64 << 10
	disk := make([]byte, 20<<20)
	fill(rand.New(rand.NewPCG(5, 5)), disk)
	for name, find := range map[string]func(e hashtree.Entry) bool{
		"block": func(e hashtree.Entry) bool { return e.Level < 0 },
		"leaf":  func(e hashtree.Entry) bool { return e.Level == 0 },
		"top":   func(e hashtree.Entry) bool { return e.Level == 1 },
	} {
		for _, damage := range []error{dedupe.ErrCorrupt, dedupe.ErrNotFound} {
			t.Run(fmt.Sprintf("%s %v", name, damage), func(t *testing.T) {
				s := newMemStore(blockSize)
				base, _, _ := run(t, s, hashtree.Root{}, int64(len(disk)), ingest.Options{}, change{data: disk})
				const off = 10<<20 + 3*grain
				var lost hashtree.Entry
				err := hashtree.Visit(t.Context(), hashtree.Direct(s), base, off, grain, func(e hashtree.Entry) (bool, error) {
					if find(e) {
						lost = e
					}
					return true, nil
				})
				if err != nil {
					t.Fatal(err)
				}
				kind := dedupe.KindNode
				if lost.Level < 0 {
					kind = dedupe.KindBlock
				}
				s.damage(kind, lost.Digest, damage)
				_, _, _, err = tryRun(t, s, base, int64(len(disk)), ingest.Options{}, change{off: off, data: make([]byte, grain)})
				var be *ingest.BaseError
				if !errors.As(err, &be) || !errors.Is(err, damage) {
					t.Fatalf("got %v", err)
				}
				if be.Offset != lost.Offset || be.Length != lost.Length {
					t.Fatalf("error speaks of %d+%d, lost is %d+%d", be.Offset, be.Length, lost.Offset, lost.Length)
				}
				changed := bytes.Clone(disk)
				clear(changed[off : off+grain])
				next, _, _ := run(t, s, base, int64(len(disk)), ingest.Options{}, change{off: be.Offset, data: changed[be.Offset : be.Offset+be.Length]})
				if !bytes.Equal(readAll(t, s, next), changed) {
					t.Error("healed disk reads back as something else")
				}
			})
		}
	}
}

// TestBeginOfWorkers: Begin runs once on the goroutine of each worker, before its first block.
func TestBeginOfWorkers(t *testing.T) {
	s := newMemStore(64 << 10)
	var begun atomic.Int64
	data := bytes.Repeat([]byte{1}, 4*s.BlockSize())
	_, stats, _ := run(t, s, hashtree.Root{}, int64(len(data)), ingest.Options{Workers: 3, Begin: func() { begun.Add(1) }}, change{data: data})
	if stats.ReadBytes != int64(len(data)) || begun.Load() != 3 {
		t.Errorf("%d bytes read after %d calls of Begin, want %d after 3", stats.ReadBytes, begun.Load(), len(data))
	}
}

// TestBadCalls: what a Pass must refuse, and that it refuses everything afterwards.
func TestBadCalls(t *testing.T) {
	s := newMemStore(64 << 10)
	const size = 1<<20 + 512
	for name, give := range map[string]func(p *ingest.Pass) error{
		"not at a grain":   func(p *ingest.Pass) error { return p.Write(t.Context(), 512, make([]byte, grain)) },
		"not whole grains": func(p *ingest.Pass) error { return p.Write(t.Context(), 0, make([]byte, grain+512)) },
		"descending": func(p *ingest.Pass) error {
			return errors.Join(p.Zero(t.Context(), 4*grain, grain), p.Write(t.Context(), 0, make([]byte, grain)))
		},
		"overlapping": func(p *ingest.Pass) error {
			return errors.Join(p.Zero(t.Context(), 0, 4*grain), p.Zero(t.Context(), 2*grain, 4*grain))
		},
	} {
		b, _ := s.Begin(t.Context())
		p, err := ingest.NewPass(s, b, hashtree.Root{}, size, ingest.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if err := give(p); !errors.Is(err, ingest.ErrOrder) {
			t.Errorf("%s: %v", name, err)
		}
		p.Abort()
		p.Abort()
		if err := p.Write(t.Context(), 0, make([]byte, grain)); err == nil {
			t.Errorf("%s: write after Abort succeeds", name)
		}
		if _, _, err := p.Finish(t.Context()); err == nil {
			t.Errorf("%s: Finish after Abort succeeds", name)
		}
	}
	b, _ := s.Begin(t.Context())
	p, _ := ingest.NewPass(s, b, hashtree.Root{}, size, ingest.Options{})
	if err := p.Write(t.Context(), 0, make([]byte, size+grain)); !errors.Is(err, blockdev.ErrOutOfRange) {
		t.Errorf("behind the end: %v", err)
	}
	p.Abort()
	for _, size := range []int64{-512, 100, blockdev.MaxSize + 512} {
		if _, err := ingest.NewPass(s, b, hashtree.Root{}, size, ingest.Options{}); err == nil {
			t.Errorf("size %d accepted", size)
		}
	}
}

// failingBatch fails its nth PutBlock.
type failingBatch struct {
	dedupe.Batch
	left chan struct{}
}

func (b *failingBatch) PutBlock(ctx context.Context, p []byte) (dedupe.Put, error) {
	select {
	case <-b.left:
		return b.Batch.PutBlock(ctx, p)
	default:
		return dedupe.Put{}, fmt.Errorf("append: %w", dedupe.ErrNoSpace)
	}
}

// TestNoSpace: an error of the store ends the pass, with that error, without a
// goroutine or a call left hanging.
func TestNoSpace(t *testing.T) {
	s := newMemStore(16 << 10)
	data := make([]byte, 8<<20)
	fill(rand.New(rand.NewPCG(1, 1)), data)
	for _, good := range []int{0, 1, 100} {
		b, _ := s.Begin(t.Context())
		fb := &failingBatch{b, make(chan struct{}, good)}
		for range good {
			fb.left <- struct{}{}
		}
		p, err := ingest.NewPass(s, fb, hashtree.Root{}, 1<<30, ingest.Options{Workers: 4})
		if err != nil {
			t.Fatal(err)
		}
		for off := int64(0); err == nil && off < 1<<30; off += int64(len(data)) {
			err = p.Write(t.Context(), off, data)
		}
		if !errors.Is(err, dedupe.ErrNoSpace) {
			t.Errorf("after %d blocks: %v", good, err)
		}
		if _, _, err := p.Finish(t.Context()); !errors.Is(err, dedupe.ErrNoSpace) {
			t.Errorf("Finish after %d blocks: %v", good, err)
		}
	}
}

// TestTwoPasses: the root of a pass is the base of the next one of the same batch,
// as the first backup of a live disk needs it.
func TestTwoPasses(t *testing.T) {
	s := newMemStore(64 << 10)
	disk := make([]byte, 3<<20)
	fill(rand.New(rand.NewPCG(6, 6)), disk)
	b, _ := s.Begin(t.Context())
	p, _ := ingest.NewPass(s, b, hashtree.Root{}, int64(len(disk)), ingest.Options{})
	if err := p.Write(t.Context(), 0, disk); err != nil {
		t.Fatal(err)
	}
	first, _, err := p.Finish(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	copy(disk[grain:], bytes.Repeat([]byte("x"), grain))
	p, _ = ingest.NewPass(s, b, first, int64(len(disk)), ingest.Options{})
	if err := p.Write(t.Context(), grain, disk[grain:2*grain]); err != nil {
		t.Fatal(err)
	}
	second, stats, err := p.Finish(t.Context())
	if err != nil || stats.ReadBytes != grain {
		t.Fatal(stats, err)
	}
	if !bytes.Equal(readAll(t, s, second), disk) {
		t.Error("the disk reads back as something else")
	}
}

// TestBuffersUsedBefore: a block that is given in part, where the base has nothing, has
// zeros in the rest, though its buffer held other blocks before; so has the end of the
// disk. Digests that are computed together are those of the blocks.
func TestBuffersUsedBefore(t *testing.T) {
	for name, open := range stores {
		t.Run(name, func(t *testing.T) {
			const blockSize, blocks = 16 << 10, 800
			rng := rand.New(rand.NewPCG(1, 2))
			want := make([]byte, blocks*blockSize-blockSize+512)
			var changes []change
			for i := range blocks - 1 {
				at := i * blockSize
				switch {
				case i < 500: // more than there are buffers
					fill(rng, want[at:at+blockSize])
					changes = append(changes, change{off: int64(at), data: want[at : at+blockSize]})
				case i%2 == 0:
					fill(rng, want[at+grain:at+2*grain])
					changes = append(changes, change{off: int64(at + grain), data: want[at+grain : at+2*grain]})
				}
			}
			at := len(want) - 512
			fill(rng, want[at:])
			changes = append(changes, change{off: int64(at), data: want[at:]})
			s := open(t, blockSize)
			root, _, _ := run(t, s, hashtree.Root{}, int64(len(want)), ingest.Options{Workers: 2}, changes...)
			if !bytes.Equal(readAll(t, s, root), want) {
				t.Error("reads back as something else")
			}
			if whole, _, _ := run(t, s, hashtree.Root{}, int64(len(want)), ingest.Options{Workers: 1}, change{data: want}); whole != root {
				t.Errorf("root %v, of the disk as a whole %v", root, whole)
			}
		})
	}
}
