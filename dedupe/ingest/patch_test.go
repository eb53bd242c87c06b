package ingest_test

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"github.com/keelblock/keelblock/dedupe/blockstore"
	"github.com/keelblock/keelblock/dedupe/hashtree"
	"github.com/keelblock/keelblock/dedupe/ingest"
)

// openVault is a vault with the given options.
func openVault(t testing.TB, o blockstore.Options) *blockstore.Store {
	t.Helper()
	dir := t.TempDir()
	if err := blockstore.Create(dir, o); err != nil {
		t.Fatal(err)
	}
	s, err := blockstore.Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// plainDisk is a disk whose blocks all differ and compress to next to nothing.
func plainDisk(size int) []byte {
	disk := make([]byte, size)
	for at := 0; at < size; at += 16 << 10 {
		for i := at; i < min(at+16<<10, size); i += 8 {
			binary.LittleEndian.PutUint64(disk[i:], uint64(at)+1)
		}
	}
	return disk
}

// every changes n bytes of noise at each step of a disk.
func every(rng *rand.Rand, disk []byte, n, step, count int) (changes []change) {
	for i := range count {
		p := disk[i*step:][:n]
		fill(rng, p)
		changes = append(changes, change{off: int64(i * step), data: p})
	}
	return changes
}

// TestDemand19ScatteredStoresWhatSequentialDoes: the same bytes scattered and in one
// piece take the vault about the same bytes. (The disk's half is in blockdev/cbt, the
// time in BenchmarkScattered.)
func TestDemand19ScatteredStoresWhatSequentialDoes(t *testing.T) {
	const size, changed = 128 << 20, 4 << 20
	stored := func(n, step int) int64 {
		s := openVault(t, blockstore.Options{})
		disk := plainDisk(size)
		base, _, _ := run(t, s, hashtree.Root{}, size, ingest.Options{}, change{data: disk})
		next, stats, _ := run(t, s, base, size, ingest.Options{}, every(rand.New(rand.NewPCG(19, 19)), disk, n, step, changed/n)...)
		if stats.ChangedBytes != changed || stats.NewBytes != changed {
			t.Errorf("pieces of %d: %+v", n, stats)
		}
		if !bytes.Equal(readAll(t, s, next), disk) {
			t.Errorf("pieces of %d: the disk reads back as something else", n)
		}
		return stats.StoredBytes
	}
	sequential, scattered := stored(changed, changed), stored(grain, 128<<10)
	if float64(scattered) > 1.1*float64(sequential) {
		t.Errorf("%d bytes stored for scattered changes, %d for the same bytes in one piece", scattered, sequential)
	}
}

// TestDemand20SmallWritesStoreWhatLargeOnesDo: writes of 4 KiB take the vault about what
// as many bytes in writes of 64 KiB do.
func TestDemand20SmallWritesStoreWhatLargeOnesDo(t *testing.T) {
	const size, changed = 64 << 20, 2 << 20
	for _, o := range []blockstore.Options{{}, {BlockSize: 16 << 10}} {
		stored := func(n int) int64 {
			s := openVault(t, o)
			disk := plainDisk(size)
			base, _, _ := run(t, s, hashtree.Root{}, size, ingest.Options{}, change{data: disk})
			_, stats, _ := run(t, s, base, size, ingest.Options{}, every(rand.New(rand.NewPCG(20, 20)), disk, n, size/(changed/n), changed/n)...)
			if stats.NewBytes != changed {
				t.Errorf("writes of %d: %+v", n, stats)
			}
			return stats.StoredBytes
		}
		// Scattered further they also change more of the tree: a node for each 128 blocks.
		if small, large := stored(4<<10), stored(64<<10); float64(small) > 1.3*float64(large) {
			t.Errorf("blocks of %d: %d bytes stored for writes of 4 KiB, %d for as many bytes in writes of 64 KiB", o.BlockSize, small, large)
		}
	}
}

// TestScatteredWritesCost: scattered writes of 4 KiB cost near their bytes and not the 16
// times as many of the blocks that they are in: at most a tenth more, with records,
// directories, footers and the tree. As a full compare finds them, too. Each costs the same,
// so 2 500 show what 10 000 do.
func TestScatteredWritesCost(t *testing.T) {
	const blocks, changed = 2500, 2500 * grain
	disk := plainDisk(blocks * 64 << 10)
	before := bytes.Clone(disk)
	changes := every(rand.New(rand.NewPCG(1, 2)), disk, grain, 64<<10, blocks)
	for _, tt := range []struct {
		name    string
		o       ingest.Options
		changes []change
	}{{"list of changes", ingest.Options{}, changes}, {"full compare", ingest.Options{Trim: true}, []change{{data: disk}}}} {
		t.Run(tt.name, func(t *testing.T) {
			s := openVault(t, blockstore.Options{})
			base, _, _ := run(t, s, hashtree.Root{}, int64(len(disk)), ingest.Options{}, change{data: before})
			packs := s.Stats().PackBytes
			next, stats, _ := run(t, s, base, int64(len(disk)), tt.o, tt.changes...)
			packs = s.Stats().PackBytes - packs
			if stats.ChangedBytes != changed || stats.NewBytes != changed {
				t.Errorf("%d bytes changed: %+v", changed, stats)
			}
			if most := int64(changed) / 10 * 11; stats.StoredBytes > most || packs > most {
				t.Errorf("%d bytes changed, %d stored, packs grew by %d, want at most %d", changed, stats.StoredBytes, packs, most)
			}
			t.Logf("%d bytes changed, %d stored, packs grew by %d", changed, stats.StoredBytes, packs)
			if !bytes.Equal(readAll(t, s, next), disk) {
				t.Error("the disk reads back as something else")
			}
		})
	}
}

// TestPatchesCompressTogether: grains that are alike but do not compress much each by
// itself, as the pages of a database, cost less as neighbours.
func TestPatchesCompressTogether(t *testing.T) {
	const size = 32 << 20
	s := openVault(t, blockstore.Options{})
	disk := plainDisk(size)
	base, _, _ := run(t, s, hashtree.Root{}, size, ingest.Options{}, change{data: disk})
	rng := rand.New(rand.NewPCG(3, 3))
	page := make([]byte, grain)
	fill(rng, page)
	var changes []change
	for off := int64(0); off < size; off += 64 << 10 {
		p := disk[off:][:grain]
		copy(p, page)
		fill(rng, p[:grain/8])
		changes = append(changes, change{off: off, data: p})
	}
	next, stats, _ := run(t, s, base, size, ingest.Options{}, changes...)
	if stats.StoredBytes*3 > stats.NewBytes {
		t.Errorf("%d bytes stored of %d in alike pages", stats.StoredBytes, stats.NewBytes)
	}
	if !bytes.Equal(readAll(t, s, next), disk) {
		t.Error("the disk reads back as something else")
	}
}

// TestPatchOfTwoPasses: a pass over the root of another one of the same batch makes
// patches over blocks that are not committed yet, patches among them.
func TestPatchOfTwoPasses(t *testing.T) {
	const size = 8 << 20
	s := openVault(t, blockstore.Options{})
	disk := plainDisk(size)
	rng := rand.New(rand.NewPCG(4, 4))
	b, err := s.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer b.Abort()
	var root hashtree.Root
	for pass := range 3 {
		changes := []change{{data: disk}}
		if pass > 0 {
			changes = every(rng, disk[pass*grain:], grain, 64<<10, size>>16-1)
			for i := range changes {
				changes[i].off += int64(pass * grain)
			}
		}
		p, err := ingest.NewPass(s, b, root, size, ingest.Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer p.Abort()
		for _, c := range changes {
			if err := p.Write(t.Context(), c.off, c.data); err != nil {
				t.Fatal(err)
			}
		}
		var stats ingest.Stats
		if root, stats, err = p.Finish(t.Context()); err != nil {
			t.Fatal(err)
		}
		if pass > 0 && stats.NewBytes != stats.ReadBytes {
			t.Errorf("pass %d: %+v", pass, stats)
		}
		if !bytes.Equal(readAll(t, s, root), disk) {
			t.Fatalf("pass %d: the disk of an open batch reads back as something else", pass)
		}
	}
}
