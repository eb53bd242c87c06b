package recoverypoint_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/keelblock/keelblock/blockdev"
	"github.com/keelblock/keelblock/blockdev/blockdevtest"
	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/blockstore"
	"github.com/keelblock/keelblock/dedupe/dedupetest"
	"github.com/keelblock/keelblock/dedupe/hashtree"
	"github.com/keelblock/keelblock/dedupe/ingest"
	"github.com/keelblock/keelblock/dedupe/recoverypoint"
)

// randomBytes is n bytes that do not compress.
func randomBytes(seed uint64, n int) []byte {
	p := make([]byte, n)
	rng := rand.New(rand.NewPCG(seed, 0))
	for i := 0; i+8 <= n; i += 8 {
		v := rng.Uint64()
		for j := range 8 {
			p[i+j] = byte(v >> (8 * j))
		}
	}
	return p
}

// store puts a whole disk.
func store(t testing.TB, s dedupe.Store, disk []byte) hashtree.Root {
	t.Helper()
	b := batchOf(t, s)
	p, err := ingest.NewPass(s, b, hashtree.Root{}, int64(len(disk)), ingest.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Write(t.Context(), 0, disk); err != nil {
		t.Fatal(err)
	}
	root, _, err := p.Finish(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Commit(t.Context(), dedupe.Publication{}); err != nil {
		t.Fatal(err)
	}
	return root
}

func open(t testing.TB, s dedupe.Store, c *recoverypoint.Cache, root hashtree.Root) *recoverypoint.Device {
	t.Helper()
	d, err := recoverypoint.OpenRoot(t.Context(), s, c, "web0", root)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// sparseDisk has data, holes, and an end inside of a block and of a grain.
func sparseDisk(n int) []byte {
	disk := randomBytes(7, n)
	rng := rand.New(rand.NewPCG(8, 0))
	for range n >> 20 {
		off := rng.IntN(n)
		clear(disk[off:min(off+rng.IntN(900<<10), n)])
	}
	return disk
}

// TestDevice reads at random offsets and lengths, by one reader and by many, through
// caches of all sizes, and compares with the bytes that were stored.
func TestDevice(t *testing.T) {
	disk := sparseDisk(24<<20 + 512*3)
	s := dedupetest.NewMemory(64 << 10)
	root := store(t, s, disk)
	for _, cacheBytes := range []int64{1, 1 << 20, 64 << 20} {
		t.Run(fmt.Sprintf("cache of %d", cacheBytes), func(t *testing.T) {
			c := recoverypoint.NewCache(cacheBytes)
			d := open(t, s, c, root)
			if d.Size() != int64(len(disk)) {
				t.Fatalf("size %d", d.Size())
			}
			var wg sync.WaitGroup
			for reader := range 8 {
				wg.Go(func() {
					rng := rand.New(rand.NewPCG(uint64(reader), 3))
					buf, at := make([]byte, 3<<20), 0
					for range 60 {
						n := 1 + rng.IntN(1<<(1+rng.IntN(21)))
						if reader%2 == 0 || at+n > len(disk) { // else go on where the last one ended
							at = rng.IntN(len(disk))
						}
						p := buf[:min(n, len(disk)-at)]
						fillJunk(p)
						got, err := d.ReadAt(p, int64(at))
						if err != nil || got != len(p) || !bytes.Equal(p, disk[at:at+len(p)]) {
							t.Errorf("read %d+%d: %d, %v", at, len(p), got, err)
							return
						}
						at += len(p)
					}
				})
			}
			wg.Wait()
			if stats := c.Stats(); stats.Bytes > max(cacheBytes, 0)+int64(20*64<<10) {
				t.Errorf("the cache of %d bytes holds %+v", cacheBytes, stats)
			}
		})
	}
}

func fillJunk(p []byte) {
	for i := range p {
		p[i] = 0xaa
	}
}

// TestConformance: the suite of all devices.
func TestConformance(t *testing.T) {
	blockdevtest.RunReadOnly(t, func(t *testing.T) (blockdev.Device, []byte) {
		s, disk := dedupetest.NewMemory(64<<10), sparseDisk(5<<20+512)
		return open(t, s, recoverypoint.NewCache(1<<20), store(t, s, disk)), disk
	})
}

// TestDeviceContract: what blockdev.Device asks of a read-only disk.
func TestDeviceContract(t *testing.T) {
	s := dedupetest.NewMemory(64 << 10)
	disk := sparseDisk(2<<20 + 512)
	d := open(t, s, nil, store(t, s, disk))
	p := make([]byte, 4096)
	for _, off := range []int64{-1, d.Size(), d.Size() - 4095, 1 << 62} {
		if n, err := d.ReadAt(p, off); n != 0 || !errors.Is(err, blockdev.ErrOutOfRange) {
			t.Errorf("read at %d: %d, %v", off, n, err)
		}
		if n, err := d.WriteAt(p, off); n != 0 || !errors.Is(err, blockdev.ErrOutOfRange) {
			t.Errorf("write at %d: %d, %v", off, n, err)
		}
		if err := d.Extents(off, 4096, nil); !errors.Is(err, blockdev.ErrOutOfRange) {
			t.Errorf("extents at %d: %v", off, err)
		}
	}
	if n, err := d.WriteAt(p, 0); n != 0 || !errors.Is(err, blockdev.ErrReadOnly) {
		t.Errorf("write: %d, %v", n, err)
	}
	if n, err := d.ReadAt(nil, d.Size()); n != 0 || err != nil {
		t.Errorf("read nothing at the end: %d, %v", n, err)
	}
	if err := d.Flush(); err != nil {
		t.Error(err)
	}
	for _, off := range []int64{0, 512, 70000, 1 << 20} {
		n, at := d.Size()-off-512, off
		err := d.Extents(off, n, func(e blockdev.Extent, st blockdev.ExtentStatus) bool {
			if e.Offset != at || e.Length <= 0 || st.Hole != st.Zero {
				t.Errorf("extents from %d: %v %v after %d", off, e, st, at)
			}
			if st.Zero && !zeros(disk[e.Offset:e.End()]) {
				t.Errorf("%v is data, reported as zeros", e)
			}
			at = e.End()
			return true
		})
		if err != nil || at != off+n {
			t.Errorf("extents %d+%d end at %d: %v", off, n, at, err)
		}
	}
	calls := 0
	if err := d.Extents(0, d.Size(), func(blockdev.Extent, blockdev.ExtentStatus) bool { calls++; return false }); err != nil || calls != 1 {
		t.Errorf("%d calls after false: %v", calls, err)
	}
	if err := errors.Join(d.Close(), d.Close()); err != nil {
		t.Error(err)
	}
	if _, err := d.ReadAt(p, 0); !errors.Is(err, blockdev.ErrClosed) {
		t.Errorf("read after Close: %v", err)
	}
}

func zeros(p []byte) bool { return len(bytes.Trim(p, "\x00")) == 0 }

// TestDeviceCorrupt: a block or node that is damaged or lost is an error with its
// disk, offset and digest, for any reader who touches it, again and again; everything
// else reads as it was stored; and nobody ever gets other bytes.
func TestDeviceCorrupt(t *testing.T) {
	disk := randomBytes(9, 20<<20)
	const at = 9 << 20
	for _, level := range []int{-1, 0, 1} {
		for name, damage := range map[string]func(s *dedupetest.Memory, k dedupe.Kind, d dedupe.Digest){
			"corrupt": func(s *dedupetest.Memory, k dedupe.Kind, d dedupe.Digest) { s.Corrupt(k, d) },
			"lost":    func(s *dedupetest.Memory, k dedupe.Kind, d dedupe.Digest) { s.Remove(k, d) },
		} {
			t.Run(fmt.Sprintf("%s level %d", name, level), func(t *testing.T) {
				s := dedupetest.NewMemory(64 << 10)
				root := store(t, s, disk)
				var bad hashtree.Entry
				if err := hashtree.Visit(t.Context(), hashtree.Direct(s), root, at, 1, func(e hashtree.Entry) (bool, error) {
					if e.Level == level {
						bad = e
					}
					return true, nil
				}); err != nil {
					t.Fatal(err)
				}
				kind := dedupe.KindNode
				if level < 0 {
					kind = dedupe.KindBlock
				}
				damage(s, kind, bad.Digest)
				d := open(t, s, recoverypoint.NewCache(4<<20), root)
				for _, r := range []struct{ off, n int64 }{{at, 1}, {at - 100, 4096}, {at, 64 << 10}, {at - 3<<20, 4 << 20}, {0, 20 << 20}} {
					for range 2 {
						p := make([]byte, r.n)
						fillJunk(p)
						n, err := d.ReadAt(p, r.off)
						var be *recoverypoint.BlockError
						if !errors.As(err, &be) || !errors.Is(err, blockdev.ErrCorrupt) || be.Disk != "web0" || be.Digest != bad.Digest ||
							be.Offset != bad.Offset || be.Length != bad.Length || !strings.Contains(err.Error(), bad.Digest.String()) {
							t.Fatalf("read %d+%d: %d, %v", r.off, r.n, n, err)
						}
						if int64(n) > max(bad.Offset-r.off, 0) || !bytes.Equal(p[:n], disk[r.off:r.off+int64(n)]) {
							t.Fatalf("read %d+%d: the first %d bytes are not what was stored", r.off, r.n, n)
						}
						for i := range p {
							if p[i] != 0 && p[i] != disk[r.off+int64(i)] {
								t.Fatalf("read %d+%d: byte %d is neither zero nor what was stored", r.off, r.n, i)
							}
						}
					}
				}
				if level < 1 {
					p := make([]byte, bad.Offset)
					if _, err := d.ReadAt(p, 0); err != nil || !bytes.Equal(p, disk[:len(p)]) {
						t.Errorf("before the damage: %v", err)
					}
					p = make([]byte, 20<<20-(bad.Offset+bad.Length))
					if _, err := d.ReadAt(p, bad.Offset+bad.Length); err != nil || !bytes.Equal(p, disk[bad.Offset+bad.Length:]) {
						t.Errorf("behind the damage: %v", err)
					}
				}
			})
		}
	}
}

// TestDevicePacks: the same over packs on a disk, where a bit of the pack flips.
func TestDevicePacks(t *testing.T) {
	dir := t.TempDir()
	if err := blockstore.Create(dir, blockstore.Options{}); err != nil {
		t.Fatal(err)
	}
	s, err := blockstore.Open(dir, blockstore.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	disk := sparseDisk(16 << 20)
	copy(disk[5<<20:], randomBytes(11, 64<<10))
	root := store(t, s, disk)
	d := open(t, s, nil, root)
	p := make([]byte, len(disk))
	if _, err := d.ReadAt(p, 0); err != nil || !bytes.Equal(p, disk) {
		t.Fatalf("read back: %v", err)
	}
	bad := s.BlockDigest(disk[5<<20 : 5<<20+64<<10])
	pack, off, length, err := s.Locate(bad)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(pack, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte{^disk[5<<20+30000]}, off+length-64<<10+30000); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	d = open(t, s, recoverypoint.NewCache(0), root)
	n, err := d.ReadAt(p, 0)
	var be *recoverypoint.BlockError
	if !errors.As(err, &be) || !errors.Is(err, blockdev.ErrCorrupt) || be.Digest != bad || be.Offset != 5<<20 || n != 5<<20 {
		t.Fatalf("%d, %v", n, err)
	}
	if id := strings.TrimSuffix(filepath.Base(pack), filepath.Ext(pack)); !strings.Contains(err.Error(), id) {
		t.Errorf("the error does not name the pack %s: %v", id, err)
	}
}

// TestCacheShared: what one reader decoded, another reader of another point gets from
// memory, and several at once decode it once.
func TestCacheShared(t *testing.T) {
	s := &slowStore{Memory: dedupetest.NewMemory(64 << 10)}
	disk := randomBytes(12, 1<<20)
	root := store(t, s, disk)
	c := recoverypoint.NewCache(8 << 20)
	var wg sync.WaitGroup
	for range 16 {
		d := open(t, s, c, root)
		wg.Go(func() {
			p := make([]byte, 4096)
			for off := int64(0); off < 1<<20; off += 64 << 10 {
				if _, err := d.ReadAt(p, off+512); err != nil || !bytes.Equal(p, disk[off+512:off+512+4096]) {
					t.Errorf("at %d: %v", off, err)
				}
			}
		})
	}
	wg.Wait()
	if n := s.gets(); n != 16 {
		t.Errorf("16 blocks, read by 16 readers, were decoded %d times", n)
	}
}

// TestCopyDecodesOnce: a client that copies a disk with eight requests of 1 MiB in
// flight, each read in pieces, has each block decoded once. A few may race with
// reading ahead.
func TestCopyDecodesOnce(t *testing.T) {
	const size, request, piece = 64 << 20, 1 << 20, 256 << 10
	s := &slowStore{Memory: dedupetest.NewMemory(64 << 10)}
	disk := randomBytes(13, size)
	d := open(t, s, recoverypoint.NewCache(4<<20), store(t, s, disk))
	offsets := make(chan int64)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			p := make([]byte, piece)
			for from := range offsets {
				for off := from; off < from+request; off += piece {
					if _, err := d.ReadAt(p, off); err != nil || !bytes.Equal(p, disk[off:off+piece]) {
						t.Errorf("at %d: %v", off, err)
					}
				}
			}
		})
	}
	for off := int64(0); off < size; off += request {
		offsets <- off
	}
	close(offsets)
	wg.Wait()
	const blocks = size / (64 << 10)
	if n := s.gets(); n < blocks || n > blocks+blocks/20 {
		t.Errorf("%d blocks were decoded %d times", blocks, n)
	}
}

// TestOpenDisk: by name and by id, and what is refused.
func TestOpenDisk(t *testing.T) {
	s := dedupetest.NewMemory(64 << 10)
	m := full()
	m.Disks[0].Root = store(t, s, randomBytes(1, 1<<20))
	for _, name := range []string{"web0", m.Disks[0].ID.String()} {
		d, err := recoverypoint.OpenDisk(t.Context(), s, nil, m, name)
		if err != nil || d.Size() != 1<<20 {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := recoverypoint.OpenDisk(t.Context(), s, nil, m, "web1"); !errors.Is(err, recoverypoint.ErrNotFound) || !strings.Contains(err.Error(), "web0, Größe 2") {
		t.Errorf("unknown disk: %v", err)
	}
	if _, err := recoverypoint.OpenDisk(t.Context(), dedupetest.NewMemory(16<<10), nil, m, "web0"); !errors.Is(err, blockdev.ErrNotSupported) {
		t.Errorf("other block size: %v", err)
	}
}
