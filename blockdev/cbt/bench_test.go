package cbt

import (
	"context"
	"errors"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/keelblock/keelblock/blockdev"
	"github.com/keelblock/keelblock/blockdev/localdisk"
)

// emptyDisk has a size and nothing else.
type emptyDisk struct{ size int64 }

func (d emptyDisk) ReadAt(p []byte, _ int64) (int, error)  { clear(p); return len(p), nil }
func (d emptyDisk) WriteAt(p []byte, _ int64) (int, error) { return len(p), nil }
func (d emptyDisk) Size() int64                            { return d.size }
func (d emptyDisk) Flush() error                           { return nil }
func (d emptyDisk) Close() error                           { return nil }

// BenchmarkFreeze: 8 disks of 1 TiB with writes in each. ns/op is Freeze as a whole;
// freeze-ns is what it reports, the time from the first word to the epoch.
func BenchmarkFreeze(b *testing.B) {
	for _, size := range []int64{1 << 30, 1 << 40, 1 << 45} {
		b.Run("disks=8/size="+strconv.FormatInt(size>>30, 10)+"GiB", func(b *testing.B) {
			c := NewClock()
			var ts []*Tracker
			for i := range 8 {
				o := options(b, newMemDisk(512))
				o.DiskID = "disk-" + strconv.Itoa(i)
				ts = append(ts, mustOpen(b, emptyDisk{size}, c, o))
			}
			var in, whole time.Duration
			n := 0
			for b.Loop() {
				for _, t := range ts {
					for k := range int64(16) {
						mustWrite(b, t, k*(size/16), 4096, 1)
					}
				}
				start := time.Now()
				z, err := c.Freeze(ts)
				whole += time.Since(start)
				if err != nil {
					b.Fatal(err)
				}
				in += z.Duration
				n++
				for _, f := range z.Disks {
					if err := f.Drain(context.Background()); err != nil {
						b.Fatal(err)
					}
					f.Abort()
				}
			}
			b.ReportMetric(float64(in)/float64(n), "freeze-ns")
			b.ReportMetric(float64(whole)/float64(n), "call-ns")
		})
	}
}

// BenchmarkWrite: random writes to a file in the page cache, raw and tracked, in
// slices that alternate within one run so that the machine's moods hit both. extra-ns
// is what the tracker adds to a write, tracked/raw the ratio of the rates.
func BenchmarkWrite(b *testing.B) {
	for _, size := range []int{4 << 10, 64 << 10, 1 << 20} {
		b.Run(strconv.Itoa(size>>10)+"KiB", func(b *testing.B) {
			const disk = 256 * mib
			raw, t := onFile(b, disk, NewClock())
			if err := raw.WriteZeroes(0, disk, false); err != nil {
				b.Fatal(err)
			}
			buf := make([]byte, size)
			calls := max(1, mib/size)
			slice := func(d blockdev.Device) float64 {
				start := time.Now()
				for range calls {
					d.WriteAt(buf, rand.Int64N(int64(disk/size))*int64(size))
				}
				return float64(time.Since(start)) / float64(calls)
			}
			slice(t)
			b.ReportAllocs()
			var ratios, extra []float64
			for b.Loop() {
				// raw stands on both sides of tracked
				r, tr := slice(raw), slice(t)
				r = (r + slice(raw)) / 2
				ratios, extra = append(ratios, r/tr), append(extra, tr-r)
			}
			slices.Sort(ratios)
			slices.Sort(extra)
			b.ReportMetric(ratios[len(ratios)/2], "tracked/raw")
			b.ReportMetric(extra[len(extra)/2], "extra-ns")
		})
	}
}

// BenchmarkTrackedWrite is the tracker alone: the disk below costs nothing.
func BenchmarkTrackedWrite(b *testing.B) {
	t := mustOpen(b, emptyDisk{1 << 40}, NewClock(), options(b, newMemDisk(512)))
	buf := make([]byte, 4096)
	b.ReportAllocs()
	for b.Loop() {
		t.WriteAt(buf, rand.Int64N(1<<21)<<grainShift)
	}
}

// BenchmarkCapture: the same 16 MiB changed in one piece, in blocks of 64 KiB and in
// grains of 4 KiB all over a file of 1 GiB in the page cache, in turns. ns/op is one
// capture of each, the metrics are the medians of each and of the rounds' ratios, and
// churn is what a byte costs with four times the changes, against one time.
func BenchmarkCapture(b *testing.B) {
	const disk, changed = 1024 * mib, 16 * mib
	c := NewClock()
	raw, t := onFile(b, disk, c)
	if err := raw.WriteZeroes(0, disk, false); err != nil {
		b.Fatal(err)
	}
	capture := func(bytes, size int64) float64 {
		buf := make([]byte, size)
		for i := range bytes / size {
			if _, err := t.WriteAt(buf, i*(disk/(bytes/size))/size*size); err != nil {
				b.Fatal(err)
			}
		}
		f := mustFreeze(b, c, t).Disks[0]
		start := time.Now()
		if err := f.Capture(b.Context(), Sink{Write: func(int64, []byte) error { return nil }}); err != nil {
			b.Fatal(err)
		}
		took := time.Since(start)
		if err := errors.Join(f.Prepare(PointID{1}), f.Commit()); err != nil {
			b.Fatal(err)
		}
		return float64(took)
	}
	var sequential, blocks, grains, churn []float64
	for b.Loop() {
		sequential = append(sequential, capture(changed, mib))
		blocks = append(blocks, capture(changed, 64<<10))
		grains = append(grains, capture(changed, 4<<10))
		churn = append(churn, capture(4*changed, 64<<10)/4)
	}
	ratio := func(a, b []float64) float64 {
		r := make([]float64, len(a))
		for i := range a {
			r[i] = a[i] / b[i]
		}
		slices.Sort(r)
		return r[len(r)/2]
	}
	b.ReportMetric(ratio(grains, sequential), "scattered/sequential")
	b.ReportMetric(ratio(grains, blocks), "4KiB/64KiB")
	b.ReportMetric(ratio(churn, blocks), "churn")
	slices.Sort(grains)
	b.ReportMetric(grains[len(grains)/2]/float64(changed/mib), "4KiB-ns/MiB")
}

// BenchmarkWriteDuringCapture: latency of random 4 KiB writes at a steady rate by two
// clients, raw, tracked, and tracked while a snapshot of all that they write is
// captured again and again.
func BenchmarkWriteDuringCapture(b *testing.B) {
	const disk = 128 * mib
	raw := filepath.Join(b.TempDir(), "raw")
	if err := localdisk.Create(raw, disk); err != nil {
		b.Fatal(err)
	}
	rawDisk, err := localdisk.Open(raw, localdisk.Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer rawDisk.Close()
	rawDisk.WriteZeroes(0, disk, false)
	c := NewClock()
	below, t := onFile(b, disk, c)
	below.WriteZeroes(0, disk, false)
	clients := func(d blockdev.Device, n int) []time.Duration {
		var mu sync.Mutex
		var all []time.Duration
		var wg sync.WaitGroup
		for range 2 {
			wg.Go(func() {
				buf := make([]byte, 4096)
				var ls []time.Duration
				next := time.Now()
				for range n {
					next = next.Add(330 * time.Microsecond)
					time.Sleep(time.Until(next))
					start := time.Now()
					d.WriteAt(buf, rand.Int64N(disk>>grainShift)<<grainShift)
					ls = append(ls, time.Since(start))
				}
				mu.Lock()
				defer mu.Unlock()
				all = append(all, ls...)
			})
		}
		wg.Wait()
		slices.Sort(all)
		return all
	}
	p99 := func(ls []time.Duration) float64 { return float64(ls[len(ls)*99/100]) }
	var r, tr, du []float64
	for b.Loop() {
		r = append(r, p99(clients(rawDisk, 3000)))
		tr = append(tr, p99(clients(t, 3000)))
		stop, done := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(done)
			for {
				select {
				case <-stop:
					return
				case <-time.After(100 * time.Millisecond):
				}
				f := mustFreeze(b, c, t).Disks[0]
				f.Capture(context.Background(), Sink{Write: func(int64, []byte) error { return nil }})
				f.Prepare(PointID{1})
				f.Commit()
			}
		}()
		du = append(du, p99(clients(t, 3000)))
		close(stop)
		<-done
	}
	for name, v := range map[string][]float64{"raw-p99-ns": r, "tracked-p99-ns": tr, "capture-p99-ns": du} {
		slices.Sort(v)
		b.ReportMetric(v[len(v)/2], name)
	}
	b.ReportMetric(float64(t.counts.copies.Load()), "copies")
}
