package blockstore_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/blockstore"
	"github.com/keelblock/keelblock/dedupe/dedupetest"
)

// benchBytes is one iteration of an ingest benchmark.
const benchBytes = 256 << 20

// content makes blocks of a sort, different for each n.
type content func(p []byte, n uint64)

// randomContent does not compress.
func randomContent(p []byte, n uint64) {
	s := n*0x9e3779b97f4a7c15 + 1
	for i := 0; i+8 <= len(p); i += 8 {
		s ^= s << 13
		s ^= s >> 7
		s ^= s << 17
		binary.LittleEndian.PutUint64(p[i:], s)
	}
}

// textContent compresses about two to one, like the files of a Linux system.
func textContent(p []byte, n uint64) {
	r := rand.New(rand.NewPCG(n, 9))
	words := []string{"the ", "library ", "return ", "0x", "\x00\x00\x00\x00\x7fELF", "static ", "config", "/usr/lib/", "=", "\n"}
	for i := 0; i < len(p); {
		if r.IntN(3) == 0 {
			i += copy(p[i:], words[r.IntN(len(words))])
			continue
		}
		var b [8]byte
		binary.LittleEndian.PutUint64(b[:], r.Uint64()&0x7f7f3f3f0f0f7f7f)
		i += copy(p[i:], b[:])
	}
}

// makeContent fills 256 MiB, so that an ingest benchmark does not measure its input.
func makeContent(c content, blockSize int) []byte {
	data := make([]byte, benchBytes)
	for i := 0; i < len(data)/blockSize; i++ {
		c(data[i*blockSize:][:blockSize], uint64(i))
	}
	return data
}

// eachBlock calls fn for every block of data from two goroutines, as ingest does.
func eachBlock(data []byte, blockSize int, fn func(p []byte) error) error {
	var next atomic.Int64
	var wg sync.WaitGroup
	var failed atomic.Pointer[error]
	for range 2 {
		wg.Go(func() {
			for {
				i := int(next.Add(1)-1) * blockSize
				if i >= len(data) || failed.Load() != nil {
					return
				}
				if err := fn(data[i:][:blockSize]); err != nil {
					failed.Store(&err)
				}
			}
		})
	}
	wg.Wait()
	if err := failed.Load(); err != nil {
		return *err
	}
	return nil
}

var contents = []struct {
	name string
	c    content
}{{"random", randomContent}, {"text", textContent}}

// First ingest: every block is new. BenchmarkIngestRatio compares it.
func BenchmarkIngestNew(b *testing.B) {
	for _, tt := range contents {
		b.Run(tt.name, func(b *testing.B) {
			data := makeContent(tt.c, dedupe.DefaultBlockSize)
			o := blockstore.Options{}
			b.SetBytes(benchBytes)
			b.ReportAllocs()
			for b.Loop() {
				b.StopTimer()
				dir := b.TempDir()
				if err := blockstore.Create(dir, o); err != nil {
					b.Fatal(err)
				}
				s, err := blockstore.Open(dir, o)
				if err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
				if err := ingest(s, data, "new"); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				b.ReportMetric(float64(s.Stats().NewBytes)/benchBytes, "stored/raw")
				if err := s.Close(); err != nil {
					b.Fatal(err)
				}
				if err := os.RemoveAll(dir); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
		})
	}
}

func ingest(s dedupe.Store, data []byte, manifest string) error {
	ctx := context.Background()
	batch, err := s.Begin(ctx)
	if err != nil {
		return err
	}
	defer batch.Abort()
	err = eachBlock(data, s.BlockSize(), func(p []byte) error {
		_, err := batch.PutBlock(ctx, p)
		return err
	})
	if err != nil {
		return err
	}
	_, err = batch.Commit(ctx, dedupe.Publication{Manifests: [][]byte{[]byte(manifest)}})
	return err
}

// Ingest of what the vault holds: hash and lookup.
func BenchmarkIngestHeld(b *testing.B) {
	data := makeContent(randomContent, dedupe.DefaultBlockSize)
	s := openVault(b, newVault(b, blockstore.Options{}), blockstore.Options{})
	if err := ingest(s, data, "first"); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(benchBytes)
	b.ReportAllocs()
	for b.Loop() {
		if err := ingest(s, data, "again"); err != nil {
			b.Fatal(err)
		}
	}
}

// First ingest against what bounds it on this machine, in interleaved passes: the
// slower of hashing and compressing on both cores, and of appending as many bytes to
// files that are synced. ratio is the median of theirs over ours; the goal is 0.9.
func BenchmarkIngestRatio(b *testing.B) {
	for _, tt := range contents {
		b.Run(tt.name, func(b *testing.B) {
			data := makeContent(tt.c, dedupe.DefaultBlockSize)
			enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest))
			if err != nil {
				b.Fatal(err)
			}
			dir := b.TempDir()
			var ratios, hash, write, ours []float64
			b.SetBytes(benchBytes)
			for b.Loop() {
				var stored atomic.Int64
				t0 := time.Now()
				bufs := sync.Pool{New: func() any { p := make([]byte, 0, 128<<10); return &p }}
				_ = eachBlock(data, dedupe.DefaultBlockSize, func(p []byte) error {
					dedupe.Sum(p)
					buf := bufs.Get().(*[]byte)
					*buf = enc.EncodeAll(p, (*buf)[:0])
					stored.Add(int64(len(*buf)))
					bufs.Put(buf)
					return nil
				})
				t1 := time.Now()
				if err := appendFiles(dir, data[:min(stored.Load(), benchBytes)]); err != nil {
					b.Fatal(err)
				}
				t2 := time.Now()
				vault := filepath.Join(dir, "vault")
				if err := blockstore.Create(vault, blockstore.Options{}); err != nil {
					b.Fatal(err)
				}
				s, err := blockstore.Open(vault, blockstore.Options{})
				if err != nil {
					b.Fatal(err)
				}
				t3 := time.Now()
				if err := ingest(s, data, "new"); err != nil {
					b.Fatal(err)
				}
				t4 := time.Now()
				if err := errors.Join(s.Close(), os.RemoveAll(vault)); err != nil {
					b.Fatal(err)
				}
				h, w, o := t1.Sub(t0).Seconds(), t2.Sub(t1).Seconds(), t4.Sub(t3).Seconds()
				ratios, hash, write, ours = append(ratios, max(h, w)/o), append(hash, h), append(write, w), append(ours, o)
			}
			median := func(list []float64) float64 {
				slices.Sort(list)
				return list[len(list)/2]
			}
			b.ReportMetric(median(ratios), "ratio")
			for unit, list := range map[string][]float64{"hash+zstd-MB/s": hash, "append-MB/s": write, "ingest-MB/s": ours} {
				b.ReportMetric(benchBytes/1e6/median(list), unit)
			}
		})
	}
}

// appendFiles writes data in files of 32 MiB, preallocated, each synced.
func appendFiles(dir string, data []byte) error {
	for i := 0; len(data) > 0; i++ {
		path := filepath.Join(dir, fmt.Sprint(i))
		f, err := os.Create(path)
		if err != nil {
			return err
		}
		n := min(len(data), blockstore.DefaultPackBytes)
		if err := unix.Fallocate(int(f.Fd()), 0, 0, int64(n)); err != nil {
			return err
		}
		for off := 0; off < n; off += 64 << 10 {
			if _, err := f.WriteAt(data[off:min(off+64<<10, n)], int64(off)); err != nil {
				return err
			}
		}
		data = data[n:]
		if err := f.Sync(); err != nil {
			return err
		}
		if err := f.Close(); err != nil {
			return err
		}
		if err := os.Remove(path); err != nil {
			return err
		}
	}
	return nil
}

// Reads of blocks at random, verified.
func BenchmarkGet(b *testing.B) {
	for _, tt := range contents {
		b.Run(tt.name, func(b *testing.B) {
			data := makeContent(tt.c, dedupe.DefaultBlockSize)
			s := openVault(b, newVault(b, blockstore.Options{}), blockstore.Options{})
			if err := ingest(s, data, "first"); err != nil {
				b.Fatal(err)
			}
			var digests []dedupe.Digest
			for off := 0; off < len(data); off += s.BlockSize() {
				digests = append(digests, dedupe.Sum(data[off:][:s.BlockSize()]))
			}
			r := rand.New(rand.NewPCG(1, 1))
			var buf []byte
			var err error
			b.SetBytes(int64(s.BlockSize()))
			b.ReportAllocs()
			for b.Loop() {
				if buf, err = s.Get(context.Background(), dedupe.KindBlock, digests[r.IntN(len(digests))], buf); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// A small commit: what a point costs that changes next to nothing.
func BenchmarkSmallCommit(b *testing.B) {
	s := openVault(b, newVault(b, blockstore.Options{}), blockstore.Options{})
	p := make([]byte, s.BlockSize())
	n := uint64(0)
	for b.Loop() {
		batch := dedupetest.Begin(b, s)
		for range 4 {
			n++
			fillBlock(p, n)
			if _, err := batch.PutBlock(context.Background(), p); err != nil {
				b.Fatal(err)
			}
		}
		if _, err := batch.Commit(context.Background(), dedupe.Publication{Manifests: [][]byte{fmt.Appendf(nil, "m%d", n)}}); err != nil {
			b.Fatal(err)
		}
	}
}
