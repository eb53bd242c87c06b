package daemon_test

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keelblock/keelblock/blockdev/nbd/client"
)

// liveSize has three whole regions of the intent map and one that is not.
const liveSize = 49<<20 + 512

const (
	liveDisks   = 3
	liveWriters = 2
	// chainGrains at the start of each disk belong to the dependent writer, the next
	// trimGrains to trims, whose result nobody promises.
	chainGrains = 1
	trimGrains  = 64
)

// liveVersion is one write of a grain.
type liveVersion struct {
	seq   uint64 // 0: zeros
	acked bool
	raw   []byte // content instead of seq
}

// fill makes the content of a grain of a version; each sector tells what it is.
func (v liveVersion) fill(p []byte, disk int, grain int64) {
	switch {
	case v.raw != nil:
		copy(p, v.raw)
		return
	case v.seq == 0:
		clear(p)
		return
	}
	for s := 0; s < len(p); s += 512 {
		x := v.seq<<24 ^ uint64(grain)<<8 ^ uint64(disk)<<5 ^ uint64(s>>9) | 1<<63
		for i := s; i < min(s+512, len(p)); i += 8 {
			binary.LittleEndian.PutUint64(p[i:], x)
			x ^= x << 13
			x ^= x >> 7
			x ^= x << 17
		}
	}
}

// liveDisk is a disk with what it has to hold.
type liveDisk struct {
	name string
	at   int

	mu sync.Mutex
	// base is durable; later holds, by grain, the writes since, in order of issue.
	base  []byte
	later map[int64][]liveVersion
	seq   uint64
	got   []byte // after the last restart
	want  []byte // what the last quiet point holds
}

// begin notes a write of the grains first .. first+n-1.
func (d *liveDisk) begin(first, n int64, zero bool) (seq uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !zero {
		d.seq++
		seq = d.seq
	}
	for g := first; g < first+n; g++ {
		d.later[g] = append(d.later[g], liveVersion{seq: seq})
	}
	return seq
}

// ack notes that the newest write of the grains was acknowledged; each grain has one
// writer, which waits for it.
func (d *liveDisk) ack(first, n int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for g := first; g < first+n; g++ {
		if v := d.later[g]; len(v) > 0 {
			v[len(v)-1].acked = true
		}
	}
}

// flush flushes on a connection and notes what that made durable: all that was
// acknowledged, on whichever connection, before it began.
func (d *liveDisk) flush(do func() error, late *atomic.Bool) error {
	type covered struct {
		grain int64
		n     int // versions that are over
	}
	d.mu.Lock()
	var list []covered
	for g, vs := range d.later {
		for i := len(vs) - 1; i >= 0; i-- {
			if vs[i].acked {
				list = append(list, covered{g, i + 1})
				break
			}
		}
	}
	d.mu.Unlock()
	if err := do(); err != nil || late.Load() {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, c := range list {
		vs := d.later[c.grain]
		vs[c.n-1].fill(d.grain(d.base, c.grain), d.at, c.grain)
		if d.later[c.grain] = vs[c.n:]; len(vs) == c.n {
			delete(d.later, c.grain)
		}
	}
	return nil
}

func (d *liveDisk) grain(p []byte, g int64) []byte {
	return p[g*4096 : min(g*4096+4096, int64(len(p)))]
}

// settle checks what a disk holds after a crash, and takes it as given. Nobody writes
// the disk.
//
// After a power cut each word may be of another write since the last flush: where a
// page is written again while the kernel copies it to the device (ext4, on a device that
// asks for no stable pages), what arrives is torn between two cache lines, and not at a
// sector. A program that does nothing but pwrite, fsync and the shutdown ioctl sees it
// once in some sixty cuts.
func (d *liveDisk) settle(t *testing.T, got []byte, power bool) {
	t.Helper()
	buf := make([]byte, 4096)
	for g := int64(chainGrains + trimGrains); g*4096 < liveSize; g++ {
		have, vs := d.grain(got, g), d.later[g]
		first := -1 // the oldest that it may hold; -1 is base
		if !power {
			for i := range vs {
				if vs[i].acked {
					first = i
				}
			}
		}
		allowed := make([][]byte, 0, len(vs)+1)
		if first < 0 {
			allowed = append(allowed, d.grain(d.base, g))
		}
		for i := max(first, 0); i < len(vs); i++ {
			vs[i].fill(buf, d.at, g)
			allowed = append(allowed, bytes.Clone(buf[:len(have)]))
		}
		fits := func(from, to int) bool {
			return slices.ContainsFunc(allowed, func(p []byte) bool { return bytes.Equal(have[from:to], p[from:to]) })
		}
		for s := 0; s < len(have); s += 512 {
			ok := fits(s, s+512)
			if !ok && power {
				ok = true
				for w := s; w < s+512; w += 8 {
					ok = ok && fits(w, w+8)
				}
			}
			if !ok {
				t.Fatalf("disk %s holds at %d what it must not: power cut %t, %d writes since the last flush, oldest allowed %d: %x",
					d.name, g*4096+int64(s), power, len(vs), first, have[s:s+512])
			}
		}
		if power {
			continue
		}
		if len(vs) > 0 { // alive in the page cache, and no more
			d.later[g] = append(vs, liveVersion{raw: bytes.Clone(have), acked: true})
		}
	}
	if power {
		d.base, d.later = bytes.Clone(got), map[int64][]liveVersion{}
	}
}

// load runs clients until their daemon dies.
func (r *liveRig) load(seed uint64) *sync.WaitGroup {
	r.t.Helper()
	wg := &sync.WaitGroup{}
	const first, grains = chainGrains + trimGrains, int64(liveSize+4095) / 4096
	for i, d := range r.disks {
		rng := rand.New(rand.NewPCG(seed, uint64(i)))
		hot := first + rng.Int64N(grains-first-2000) // most writes go to one part of the disk
		for w := range int64(liveWriters) {
			dev := r.dial(d.name)
			rng := rand.New(rand.NewPCG(seed, uint64(100+i*10)+uint64(w)))
			wg.Go(func() {
				buf := make([]byte, 16*4096)
				for err := error(nil); err == nil; {
					g, n := hot+rng.Int64N(2000), 1+rng.Int64N(16)
					if rng.IntN(20) == 0 {
						g = first + rng.Int64N(grains-first)
					}
					g += (w + g>>5) % liveWriters << 5 // 32 grains, then the next 32, have one writer
					if g >= grains {
						continue
					}
					n = min(n, g|31+1-g, grains-g)
					err = d.write(dev, rng, g, buf[:min(n*4096, liveSize-g*4096)])
				}
			})
		}
		flusher := r.dial(d.name)
		wg.Go(func() {
			for err := error(nil); err == nil; {
				time.Sleep(time.Duration(rng.IntN(30)) * time.Millisecond)
				off := (chainGrains + rng.Int64N(trimGrains)) * 4096
				if rng.IntN(2) == 0 {
					_, err = flusher.WriteAt(bytes.Repeat([]byte{byte(rng.Uint32())}, 4096), off)
				} else {
					err = flusher.Trim(off, 4096)
				}
				if err == nil {
					err = d.flush(flusher.Flush, &r.cutting)
				}
			}
		})
	}
	r.loadChain(wg)
	return wg
}

// write does one write, or write of zeros, of whole grains.
func (d *liveDisk) write(dev *client.Client, rng *rand.Rand, g int64, p []byte) (err error) {
	n, off := int64(len(p)+4095)/4096, g*4096
	if rng.IntN(8) == 0 {
		d.begin(g, n, true)
		err = dev.WriteZeroes(off, int64(len(p)), rng.IntN(2) == 0)
	} else {
		v := liveVersion{seq: d.begin(g, n, false)}
		for k := range n {
			v.fill(d.grain(p, k), d.at, g+k)
		}
		_, err = dev.WriteAt(p, off)
	}
	if err == nil {
		d.ack(g, n)
	}
	return err
}

// loadChain has one guest write number after number to the disks, to each when the one
// before has acknowledged.
func (r *liveRig) loadChain(wg *sync.WaitGroup) {
	r.t.Helper()
	var devs []*client.Client
	for _, d := range r.disks {
		devs = append(devs, r.dial(d.name))
	}
	write := func() error {
		r.chain++
		var buf [8]byte
		binary.LittleEndian.PutUint64(buf[:], r.chain)
		for _, dev := range devs {
			if _, err := dev.WriteAt(buf[:], 0); err != nil {
				return err
			}
		}
		return nil
	}
	if err := write(); err != nil { // from here on every instant is one of this chain
		r.t.Fatal(err)
	}
	wg.Go(func() {
		for write() == nil {
		}
	})
}
