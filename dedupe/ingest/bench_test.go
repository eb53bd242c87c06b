package ingest_test

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/blockstore"
	"github.com/keelblock/keelblock/dedupe/hashtree"
	"github.com/keelblock/keelblock/dedupe/ingest"
	"github.com/keelblock/keelblock/dedupe/recoverypoint"
)

const benchDisk = 1 << 30

// benchChunk is 8 MiB of a disk of the given kind; each call gives another one.
func benchChunk(kind string, rng *rand.Rand, p []byte) {
	switch kind {
	case "zero":
		clear(p)
	case "random":
		fill(rng, p)
	case "compressible": // 2:1, as a disk with programs and texts
		fill(rng, p)
		for at := 0; at < len(p); at += 4096 {
			copy(p[at+2048:at+4096], bytes.Repeat([]byte(fmt.Sprintf("line %d of a log file\n", at)), 120))
		}
	}
}

func ingestDisk(b *testing.B, s dedupe.Store, kind string) hashtree.Root {
	b.Helper()
	rng := rand.New(rand.NewPCG(rand.Uint64(), 1))
	chunk := make([]byte, 8<<20)
	batch, err := s.Begin(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	p, err := ingest.NewPass(s, batch, hashtree.Root{}, benchDisk, ingest.Options{})
	if err != nil {
		b.Fatal(err)
	}
	for off := int64(0); off < benchDisk; off += int64(len(chunk)) {
		b.StopTimer()
		benchChunk(kind, rng, chunk)
		b.StartTimer()
		if err := p.Write(b.Context(), off, chunk); err != nil {
			b.Fatal(err)
		}
	}
	root, _, err := p.Finish(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	if _, err := batch.Commit(b.Context(), dedupe.Publication{}); err != nil {
		b.Fatal(err)
	}
	return root
}

// BenchmarkIngest is a first backup of 1 GiB into packs, to the end of the commit.
func BenchmarkIngest(b *testing.B) {
	for _, kind := range []string{"zero", "random", "compressible"} {
		b.Run(kind, func(b *testing.B) {
			s := openVault(b, blockstore.Options{BlockSize: 64 << 10})
			b.SetBytes(benchDisk)
			b.ReportAllocs()
			for b.Loop() {
				ingestDisk(b, s, kind)
			}
		})
	}
}

// BenchmarkIngestAgain compares 1 GiB with what the vault has: a full compare.
func BenchmarkIngestAgain(b *testing.B) {
	s := openVault(b, blockstore.Options{BlockSize: 64 << 10})
	disk := make([]byte, benchDisk)
	benchChunk("random", rand.New(rand.NewPCG(1, 1)), disk)
	base := benchPass(b, s, hashtree.Root{}, disk)
	b.SetBytes(benchDisk)
	for b.Loop() {
		if again := benchPass(b, s, base, disk); again != base {
			b.Fatal("another root")
		}
	}
}

func benchPass(b *testing.B, s dedupe.Store, base hashtree.Root, disk []byte) hashtree.Root {
	b.Helper()
	batch, err := s.Begin(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	p, err := ingest.NewPass(s, batch, base, int64(len(disk)), ingest.Options{})
	if err != nil {
		b.Fatal(err)
	}
	if err := p.Write(b.Context(), 0, disk); err != nil {
		b.Fatal(err)
	}
	root, _, err := p.Finish(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	if _, err := batch.Commit(b.Context(), dedupe.Publication{}); err != nil {
		b.Fatal(err)
	}
	return root
}

// BenchmarkRestore copies a disk of 1 GiB from a point to a file, as restore does,
// beside a plain copy of the same bytes from file to file.
func BenchmarkRestore(b *testing.B) {
	for _, kind := range []string{"random", "compressible"} {
		s := openVault(b, blockstore.Options{BlockSize: 64 << 10})
		root := ingestDisk(b, s, kind)
		raw := filepath.Join(b.TempDir(), "raw")
		for _, request := range []int{128 << 10, 1 << 20, 8 << 20} {
			b.Run(fmt.Sprintf("%s/point/%dKiB", kind, request>>10), func(b *testing.B) {
				b.SetBytes(benchDisk)
				start := cpuTime()
				for b.Loop() {
					d, err := recoverypoint.OpenRoot(b.Context(), s, recoverypoint.NewCache(0), "disk", root)
					if err != nil {
						b.Fatal(err)
					}
					copyFile(b, raw, d, request)
					if err := d.Close(); err != nil {
						b.Fatal(err)
					}
				}
				reportCPU(b, start, 1)
			})
		}
		b.Run(kind+"/plain", func(b *testing.B) {
			f, err := os.Open(raw)
			if err != nil {
				b.Fatal(err)
			}
			defer f.Close()
			b.SetBytes(benchDisk)
			start := cpuTime()
			for b.Loop() {
				copyFile(b, raw+".copy", f, 1<<20)
			}
			reportCPU(b, start, 1)
		})
	}
}

// cpuTime is what the process has used so far. A rate says little on a machine that
// others use too; processor time per GiB does.
func cpuTime() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// reportCPU reports processor time per GiB, for b.N times gib.
func reportCPU(b *testing.B, since time.Duration, gib float64) {
	b.ReportMetric((cpuTime()-since).Seconds()/float64(b.N)/gib, "cpu-s/GiB")
}

func copyFile(b *testing.B, path string, from io.ReaderAt, request int) {
	b.Helper()
	f, err := os.Create(path)
	if err != nil {
		b.Fatal(err)
	}
	buf := make([]byte, request)
	for off := int64(0); off < benchDisk; off += int64(request) {
		if _, err := from.ReadAt(buf, off); err != nil {
			b.Fatal(err)
		}
		if _, err := f.WriteAt(buf, off); err != nil {
			b.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkRead reads from a point without writing it anywhere.
func BenchmarkRead(b *testing.B) {
	for _, kind := range []string{"random", "compressible"} {
		s := openVault(b, blockstore.Options{BlockSize: 64 << 10})
		root := ingestDisk(b, s, kind)
		for _, request := range []int{4 << 10, 128 << 10, 1 << 20} {
			b.Run(fmt.Sprintf("%s/sequential/%dKiB", kind, request>>10), func(b *testing.B) {
				d, err := recoverypoint.OpenRoot(b.Context(), s, recoverypoint.NewCache(0), "disk", root)
				if err != nil {
					b.Fatal(err)
				}
				defer d.Close()
				b.SetBytes(int64(request))
				b.ReportAllocs()
				buf := make([]byte, request)
				off := int64(0)
				for b.Loop() {
					if _, err := d.ReadAt(buf, off); err != nil {
						b.Fatal(err)
					}
					off = (off + int64(request)) % benchDisk
				}
			})
		}
		b.Run(kind+"/random 4KiB", func(b *testing.B) {
			d, err := recoverypoint.OpenRoot(b.Context(), s, recoverypoint.NewCache(0), "disk", root)
			if err != nil {
				b.Fatal(err)
			}
			defer d.Close()
			b.SetBytes(4096)
			b.ReportAllocs()
			buf := make([]byte, 4096)
			rng := rand.New(rand.NewPCG(1, 1))
			for b.Loop() {
				if _, err := d.ReadAt(buf, rng.Int64N(benchDisk/4096)*4096); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
