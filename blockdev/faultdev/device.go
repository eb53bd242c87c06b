package faultdev

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/keelblock/keelblock/blockdev"
)

// ErrPowerCut is the answer to every request after PowerCut.
var ErrPowerCut = errors.New("the power is cut")

// Op is a kind of request.
type Op int

// The kinds of requests.
const (
	Read Op = iota
	Write
	Flush
	Trim
	Zero
	Extents
)

// String is the name of the kind.
func (o Op) String() string {
	return [...]string{"read", "write", "flush", "trim", "zero", "extents"}[o]
}

// Request is what is about to be done. Offset and Length are 0 for a Flush.
type Request struct {
	Op             Op
	Offset, Length int64
}

// Fault is what shall happen to a request. The zero value lets it pass.
type Fault struct {
	// Delay is waited before anything else.
	Delay time.Duration
	// Err is returned instead of the result.
	Err error
	// DoneBytes is how much of a write that fails with Err is written all the
	// same: a torn write.
	DoneBytes int64
}

// Device is a faulty Device. Its methods may be called from any goroutine.
type Device struct {
	inner blockdev.Device

	// mu guards what follows. It is not held while a request is delayed or held.
	mu     sync.Mutex
	inject func(Request) Fault
	hold   *Hold
	counts map[Op]int

	// state orders requests against PowerCut and, once Forget was called, writes
	// against each other and against Flush, so that what was durable at a Flush is
	// well defined. It is held over the inner request.
	state  sync.RWMutex
	forget bool
	cut    bool
	// unsynced holds the content at the last Flush of each sector that was
	// changed since.
	unsynced map[int64][]byte
}

var (
	_ blockdev.Device       = (*Device)(nil)
	_ blockdev.Trimmer      = (*Device)(nil)
	_ blockdev.Zeroer       = (*Device)(nil)
	_ blockdev.ExtentLister = (*Device)(nil)
	_ blockdev.NowaitReader = (*Device)(nil)
)

// New wraps inner, which belongs to the result from now on.
func New(inner blockdev.Device) *Device {
	return &Device{inner: inner, counts: make(map[Op]int)}
}

// Inject has decide asked about every request from now on; nil ends that. It may
// be called from several goroutines at once.
func (d *Device) Inject(decide func(Request) Fault) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.inject = decide
}

// Count is how many requests of the kind have come so far.
func (d *Device) Count(o Op) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.counts[o]
}

// Hold is a barrier for requests; see Device.Hold.
type Hold struct {
	match   func(Request) bool
	arrived chan Request
	release chan struct{}
	once    sync.Once
}

// Hold stops each request that match picks, before anything of it is done, until
// Release. It replaces the Hold before it.
func (d *Device) Hold(match func(Request) bool) *Hold {
	h := &Hold{match: match, arrived: make(chan Request, 1024), release: make(chan struct{})}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.hold = h
	return h
}

// Arrived gives each request that is being held.
func (h *Hold) Arrived() <-chan Request { return h.arrived }

// Release lets all held requests, and all later ones, go on. A second call does
// nothing.
func (h *Hold) Release() { h.once.Do(func() { close(h.release) }) }

// arrive counts, holds and delays a request and returns what shall happen to it.
func (d *Device) arrive(r Request) Fault {
	d.mu.Lock()
	d.counts[r.Op]++
	inject, hold := d.inject, d.hold
	d.mu.Unlock()
	if hold != nil && hold.match(r) {
		select {
		case hold.arrived <- r:
		default: // more than anyone looks at
		}
		<-hold.release
	}
	var f Fault
	if inject != nil {
		f = inject(r)
	}
	if f.Delay > 0 {
		time.Sleep(f.Delay)
	}
	if f.Err != nil {
		f.Err = fmt.Errorf("%s of %d+%d: %w", r.Op, r.Offset, r.Length, f.Err)
	}
	return f
}

// Size implements blockdev.Device.
func (d *Device) Size() int64 { return d.inner.Size() }

// ReadAt implements blockdev.Device.
func (d *Device) ReadAt(p []byte, off int64) (int, error) {
	if f := d.arrive(Request{Read, off, int64(len(p))}); f.Err != nil {
		return 0, f.Err
	}
	d.state.RLock()
	defer d.state.RUnlock()
	if d.cut {
		return 0, ErrPowerCut
	}
	return d.inner.ReadAt(p, off)
}

// ReadAtNowait implements blockdev.NowaitReader. It refuses when the Device below
// cannot, and while faults or holds are set.
func (d *Device) ReadAtNowait(p []byte, off int64) (int, error) {
	if err := blockdev.CheckRange(off, int64(len(p)), d.Size()); err != nil {
		return 0, err
	}
	d.mu.Lock()
	faulty := d.inject != nil || d.hold != nil
	d.mu.Unlock()
	nr, ok := d.inner.(blockdev.NowaitReader)
	if !ok || faulty {
		return 0, blockdev.ErrWouldBlock
	}
	d.state.RLock()
	defer d.state.RUnlock()
	if d.cut {
		return 0, ErrPowerCut
	}
	return nr.ReadAtNowait(p, off)
}

// WriteAt implements blockdev.Device.
func (d *Device) WriteAt(p []byte, off int64) (int, error) {
	f := d.arrive(Request{Write, off, int64(len(p))})
	if f.Err == nil {
		n := 0
		err := d.change(off, int64(len(p)), func() (err error) {
			n, err = d.inner.WriteAt(p, off)
			return err
		})
		return n, err
	}
	torn := p[:min(max(f.DoneBytes, 0), int64(len(p)))]
	if len(torn) == 0 || blockdev.CheckRange(off, int64(len(p)), d.Size()) != nil {
		return 0, f.Err
	}
	n := 0
	err := d.change(off, int64(len(torn)), func() (err error) {
		n, err = d.inner.WriteAt(torn, off)
		return err
	})
	return n, errors.Join(f.Err, err)
}

// Trim implements blockdev.Trimmer.
func (d *Device) Trim(off, n int64) error {
	if f := d.arrive(Request{Trim, off, n}); f.Err != nil {
		return f.Err
	}
	return d.change(off, n, func() error {
		if tr, ok := d.inner.(blockdev.Trimmer); ok {
			return tr.Trim(off, n)
		}
		return nil
	})
}

// WriteZeroes implements blockdev.Zeroer.
func (d *Device) WriteZeroes(off, n int64, mayPunch bool) error {
	if f := d.arrive(Request{Zero, off, n}); f.Err != nil {
		return f.Err
	}
	return d.change(off, n, func() error {
		if z, ok := d.inner.(blockdev.Zeroer); ok {
			return z.WriteZeroes(off, n, mayPunch)
		}
		_, err := d.inner.WriteAt(make([]byte, n), off)
		return err
	})
}

// Flush implements blockdev.Device.
func (d *Device) Flush() error {
	if f := d.arrive(Request{Op: Flush}); f.Err != nil {
		return f.Err
	}
	d.state.Lock()
	defer d.state.Unlock()
	if d.cut {
		return ErrPowerCut
	}
	if err := d.inner.Flush(); err != nil {
		return err
	}
	clear(d.unsynced)
	return nil
}

// Extents implements blockdev.ExtentLister.
func (d *Device) Extents(off, n int64, yield func(blockdev.Extent, blockdev.ExtentStatus) bool) error {
	if f := d.arrive(Request{Extents, off, n}); f.Err != nil {
		return f.Err
	}
	if err := blockdev.CheckRange(off, n, d.Size()); err != nil {
		return err
	}
	if l, ok := d.inner.(blockdev.ExtentLister); ok {
		return l.Extents(off, n, yield)
	}
	if n > 0 {
		yield(blockdev.Extent{Offset: off, Length: n}, blockdev.ExtentStatus{})
	}
	return nil
}

// Close closes the Device below.
func (d *Device) Close() error { return d.inner.Close() }

// change runs a mutating request and remembers what the sectors held before.
func (d *Device) change(off, n int64, do func() error) error {
	if err := blockdev.CheckRange(off, n, d.Size()); err != nil {
		return err
	}
	d.state.RLock()
	if !d.forget {
		defer d.state.RUnlock()
		if d.cut {
			return ErrPowerCut
		}
		return do()
	}
	d.state.RUnlock()
	d.state.Lock()
	defer d.state.Unlock()
	if d.cut {
		return ErrPowerCut
	}
	if err := d.remember(off, n); err != nil {
		return err
	}
	return do()
}

// remember keeps the sectors of [off, off+n) that are unchanged since the last
// Flush. state is held.
func (d *Device) remember(off, n int64) error {
	for s := off / blockdev.SectorSize; s*blockdev.SectorSize < off+n; s++ {
		if _, ok := d.unsynced[s]; ok {
			continue
		}
		old := make([]byte, blockdev.SectorSize)
		if _, err := d.inner.ReadAt(old, s*blockdev.SectorSize); err != nil {
			return err
		}
		d.unsynced[s] = old
	}
	return nil
}

// Forget makes the Device remember what it must be able to lose. From now on
// writes are done one after the other.
func (d *Device) Forget() {
	d.state.Lock()
	defer d.state.Unlock()
	d.forget, d.unsynced = true, make(map[int64][]byte)
}

// PowerCut loses each sector that was changed since the last successful Flush, or
// keeps it, by the toss of a coin; without rng it loses all of them. It returns
// how many were lost. Requests under way finish first; later ones get
// ErrPowerCut, until PowerOn. It panics unless Forget was called.
func (d *Device) PowerCut(rng *rand.Rand) (lostSectors int, err error) {
	d.state.Lock()
	defer d.state.Unlock()
	if !d.forget {
		panic("faultdev: PowerCut without Forget")
	}
	d.cut = true
	sectors := make([]int64, 0, len(d.unsynced))
	for s := range d.unsynced {
		sectors = append(sectors, s)
	}
	slices.Sort(sectors) // the same seed loses the same sectors
	for _, s := range sectors {
		if rng != nil && rng.IntN(2) == 0 {
			continue
		}
		if _, err := d.inner.WriteAt(d.unsynced[s], s*blockdev.SectorSize); err != nil {
			return lostSectors, err
		}
		lostSectors++
	}
	clear(d.unsynced)
	return lostSectors, nil
}

// PowerOn lets requests through again after a PowerCut.
func (d *Device) PowerOn() {
	d.state.Lock()
	defer d.state.Unlock()
	d.cut = false
}
