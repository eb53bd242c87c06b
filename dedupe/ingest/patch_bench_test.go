package ingest_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/blockstore"
	"github.com/keelblock/keelblock/dedupe/hashtree"
	"github.com/keelblock/keelblock/dedupe/ingest"
	"github.com/keelblock/keelblock/dedupe/recoverypoint"
)

const patchDisk = 128 << 20

// twin is a disk in two vaults: one with patches, one with whole blocks.
type twin struct {
	b               *testing.B
	rng             *rand.Rand
	kind            string
	disk            []byte
	stores          [2]*blockstore.Store
	roots           [2]hashtree.Root
	took            [2][]float64 // seconds of each step
	stored, changed int64
}

func newTwin(b *testing.B, kind string) *twin {
	t := &twin{b: b, kind: kind, rng: rand.New(rand.NewPCG(1, 1)), disk: make([]byte, patchDisk)}
	for at := 0; at < len(t.disk); at += 8 << 20 {
		benchChunk(kind, t.rng, t.disk[at:][:8<<20])
	}
	for i := range t.stores {
		t.stores[i] = openVault(b, blockstore.Options{WholeBlocks: i == 1})
		t.roots[i] = benchPass(b, t.stores[i], hashtree.Root{}, t.disk)
	}
	return t
}

// step changes grains of every stride-th block and ingests the changes into both.
func (t *twin) step(grains, stride int) {
	var offs []int64
	page := make([]byte, 8<<20)
	benchChunk(t.kind, t.rng, page)
	for at := int64(0); at < patchDisk; at += int64(stride) << 16 {
		for _, g := range t.rng.Perm(16)[:grains] {
			off := at + int64(g)*grain
			copy(t.disk[off:off+grain], page[t.rng.IntN(len(page)/grain-1)*grain:])
			t.disk[off] = byte(t.rng.Uint32())
			t.rng.Uint64()
			for i := range 8 {
				t.disk[off+int64(i)] = byte(t.rng.Uint32())
			}
			offs = append(offs, off)
		}
	}
	slices.Sort(offs)
	t.changed += int64(len(offs)) * grain
	for i, s := range t.stores {
		start := time.Now()
		batch, err := s.Begin(t.b.Context())
		if err != nil {
			t.b.Fatal(err)
		}
		p, err := ingest.NewPass(s, batch, t.roots[i], patchDisk, ingest.Options{})
		if err != nil {
			t.b.Fatal(err)
		}
		for _, off := range offs {
			err = errors.Join(err, p.Write(t.b.Context(), off, t.disk[off:off+grain]))
		}
		root, stats, ferr := p.Finish(t.b.Context())
		_, cerr := batch.Commit(t.b.Context(), dedupe.Publication{})
		if err := errors.Join(err, ferr, cerr); err != nil {
			t.b.Fatal(err)
		}
		t.roots[i] = root
		t.took[i] = append(t.took[i], time.Since(start).Seconds())
		if i == 0 {
			t.stored += stats.StoredBytes
		}
	}
}

// read reads both disks from end to end and returns the seconds.
func (t *twin) read(request int) (sec, cpu [2]float64) {
	buf := make([]byte, request)
	for i, s := range t.stores {
		d, err := recoverypoint.OpenRoot(t.b.Context(), s, recoverypoint.NewCache(0), "disk", t.roots[i])
		if err != nil {
			t.b.Fatal(err)
		}
		start, used := time.Now(), cpuTime()
		for off := int64(0); off < patchDisk; off += int64(request) {
			if _, err := d.ReadAt(buf, off); err != nil {
				t.b.Fatal(err)
			}
		}
		sec[i], cpu[i] = time.Since(start).Seconds(), (cpuTime() - used).Seconds()
		if err := d.Close(); err != nil {
			t.b.Fatal(err)
		}
	}
	return sec, cpu
}

func median(list []float64) float64 {
	slices.Sort(list)
	return list[len(list)/2]
}

// BenchmarkScattered ingests one changed grain of every second block, with patches and
// with whole blocks in turn. faster is the median of whole over patches, stored/changed
// the bytes in packs.
func BenchmarkScattered(b *testing.B) {
	for _, kind := range []string{"random", "compressible"} {
		b.Run(kind, func(b *testing.B) {
			t := newTwin(b, kind)
			for b.Loop() {
				t.step(1, 2)
			}
			b.SetBytes(t.changed / int64(b.N))
			b.ReportMetric(median(t.took[1])/median(t.took[0]), "faster")
			b.ReportMetric(float64(t.stored)/float64(t.changed), "stored/changed")
		})
	}
}

// BenchmarkReadPatched reads a disk sequentially of whose blocks all are patches, and
// the same disk in whole blocks, in turn. ratio is the median of the rates, cpu-ratio that
// of the processor time, which other users of the machine disturb less: the bar is 0.8.
func BenchmarkReadPatched(b *testing.B) {
	for _, kind := range []string{"random", "compressible"} {
		for _, tt := range []struct{ grains, depth int }{{1, 1}, {4, 1}, {8, 1}, {1, 2}, {2, 2}, {1, 4}} {
			b.Run(fmt.Sprintf("%s/%d grains/depth %d", kind, tt.grains, tt.depth), func(b *testing.B) {
				t := newTwin(b, kind)
				for range tt.depth {
					t.step(tt.grains, 1)
				}
				var ratios, times, rates []float64
				unix.Sync() // or the packs are written while they are read
				b.SetBytes(2 * patchDisk)
				for b.Loop() {
					sec, cpu := t.read(1 << 20)
					ratios = append(ratios, sec[1]/sec[0])
					times = append(times, cpu[1]/cpu[0])
					rates = append(rates, patchDisk/1e6/sec[0])
				}
				b.ReportMetric(median(ratios), "ratio")
				b.ReportMetric(median(times), "cpu-ratio")
				b.ReportMetric(median(rates), "patched-MB/s")
			})
		}
	}
}
