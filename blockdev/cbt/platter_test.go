package cbt

import (
	"bytes"
	"errors"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"sync"

	"github.com/keelblock/keelblock/blockdev"
)

// crash is what a countdown panics with: the machine stops here.
type crash struct{}

// countdown stops the machine before the n-th step from now; 0 never does.
type countdown struct{ left int }

func (c *countdown) step() {
	if c == nil || c.left == 0 {
		return
	}
	if c.left--; c.left == 0 {
		panic(crash{})
	}
}

// survives runs do and reports whether the machine did not stop in it.
func survives(do func()) (ok bool) {
	defer func() {
		if r := recover(); r != nil {
			if _, is := r.(crash); !is {
				panic(r)
			}
			ok = false
		}
	}()
	do()
	return true
}

// unsynced are sectors with what a power cut may leave of each: the content at the last
// sync, and everything written since.
type unsynced map[int64][][]byte

func (u unsynced) note(window []byte, off, n int64) {
	for s := off / 512; s*512 < off+n; s++ {
		at := window[s*512-off:][:512]
		if k := len(u[s]); k == 0 || !bytes.Equal(u[s][k-1], at) {
			u[s] = append(u[s], bytes.Clone(at))
		}
	}
}

// cut puts back any of what each sector held.
func (u unsynced) cut(r *rand.Rand, put func(p []byte, off int64)) {
	for _, s := range slices.Sorted(maps.Keys(u)) { // the same seed loses the same
		put(u[s][r.IntN(len(u[s]))], s*512)
	}
	clear(u)
}

// sparse is the content of a disk by pages of 4 KiB, zeros left out. A page is never
// changed, so that a clone of the map is a copy of the disk.
type sparse map[int64]*[4096]byte

var zeroPage [4096]byte

func (s sparse) page(i int64) *[4096]byte {
	if p := s[i]; p != nil {
		return p
	}
	return &zeroPage
}

func (s sparse) set(i int64, p *[4096]byte) {
	if *p == zeroPage {
		delete(s, i)
	} else {
		s[i] = p
	}
}

func (s sparse) read(p []byte, off int64) {
	for n := 0; n < len(p); {
		at := off + int64(n)
		n += copy(p[n:], s.page(at >> 12)[at&4095:])
	}
}

func (s sparse) write(p []byte, off int64) {
	for n := 0; n < len(p); {
		at := off + int64(n)
		page := *s.page(at >> 12)
		n += copy(page[at&4095:], p[n:])
		s.set(at>>12, &page)
	}
}

// truncate drops what lies past n.
func (s sparse) truncate(n int64) {
	maps.DeleteFunc(s, func(i int64, _ *[4096]byte) bool { return i<<12 >= n })
	if n&4095 != 0 {
		page := *s.page(n >> 12)
		clear(page[n&4095:])
		s.set(n>>12, &page)
	}
}

// copyRange takes the whole pages of e from o.
func (s sparse) copyRange(o sparse, e blockdev.Extent) {
	for _, from := range []sparse{s, o} {
		for i := range from {
			if i >= e.Offset>>12 && i<<12 < e.End() {
				s.set(i, o.page(i))
			}
		}
	}
}

// differ is the first page in which s and o differ outside of es, or -1.
func (s sparse) differ(o sparse, es []blockdev.Extent) int64 {
	first := int64(-1)
	for _, side := range []sparse{s, o} {
		for i := range side {
			if (first < 0 || i < first) && *s.page(i) != *o.page(i) &&
				!slices.ContainsFunc(es, func(e blockdev.Extent) bool { return i >= e.Offset>>12 && i<<12 < e.End() }) {
				first = i
			}
		}
	}
	return first
}

// platter is a disk that loses in a power cut what was not flushed: each sector for
// itself, so that writes are lost, reordered and torn.
type platter struct {
	mu      sync.Mutex
	data    sparse
	size    int64
	pending unsynced
	steps   *countdown
	faulty  func(op string) error
}

func newPlatter(size int64, steps *countdown) *platter {
	return &platter{data: sparse{}, size: size, pending: unsynced{}, steps: steps}
}

func (d *platter) ask(op string) error {
	d.steps.step()
	if d.faulty != nil {
		return d.faulty(op)
	}
	return nil
}

func (d *platter) ReadAt(p []byte, off int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := blockdev.CheckRange(off, int64(len(p)), d.size); err != nil {
		return 0, err
	}
	d.data.read(p, off)
	return len(p), nil
}

func (d *platter) WriteAt(p []byte, off int64) (int, error) {
	if err := d.ask("write"); err != nil {
		return 0, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := blockdev.CheckRange(off, int64(len(p)), d.size); err != nil {
		return 0, err
	}
	d.note(off, int64(len(p)))
	d.data.write(p, off)
	d.note(off, int64(len(p)))
	return len(p), nil
}

func (d *platter) note(off, n int64) {
	if d.pending == nil { // a test without power cuts
		return
	}
	from := off &^ 511
	window := make([]byte, (off+n+511)&^511-from)
	d.data.read(window, from)
	d.pending.note(window, from, int64(len(window)))
}

func (d *platter) Trim(off, n int64) error { return d.WriteZeroes(off, n, true) }

func (d *platter) WriteZeroes(off, n int64, _ bool) error {
	_, err := d.WriteAt(make([]byte, n), off)
	return err
}

func (d *platter) Flush() error {
	if err := d.ask("flush"); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	clear(d.pending)
	return nil
}

// Resize is durable when it returns; a crash in it leaves either size, and of a tail
// that goes anything.
func (d *platter) Resize(n int64) error {
	if err := d.ask("resize"); err != nil {
		return err
	}
	d.mu.Lock()
	for i := range d.data {
		if from, to := max(i<<12, n), (i+1)<<12; from < to {
			d.note(from, to-from)
			d.data.write(make([]byte, to-from), from)
			d.note(from, to-from)
		}
	}
	d.mu.Unlock()
	d.steps.step() // the tail is gone, the size is not changed
	d.mu.Lock()
	defer d.mu.Unlock()
	d.data.truncate(n)
	d.size = n
	maps.DeleteFunc(d.pending, func(s int64, _ [][]byte) bool { return s*512 >= n })
	return nil
}

func (d *platter) Size() int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.size
}

func (d *platter) Close() error { return nil }

func (d *platter) powerCut(r *rand.Rand) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.pending.cut(r, d.data.write)
}

// platterFile is an intent file of the same kind. The file itself holds what the
// running system sees.
type platterFile struct {
	*os.File
	w *platterWorld
}

// platterWorld is what the open intent file shares with the test.
type platterWorld struct {
	steps   *countdown
	pending unsynced
	// bugs
	dropSectors, skipSync bool
	fault                 func(op string) error
}

func (w *platterWorld) open(f *os.File) intentIO { return &platterFile{f, w} }

func (f *platterFile) note(off, n int64) {
	window := make([]byte, n)
	if k, _ := f.File.ReadAt(window, off); int64(k) == n { // what grows the file goes with its length
		f.w.pending.note(window, off, n)
	}
}

func (f *platterFile) WriteAt(p []byte, off int64) (int, error) {
	f.w.steps.step()
	if f.w.fault != nil {
		if err := f.w.fault("write"); err != nil {
			return 0, err
		}
	}
	if st, err := f.Stat(); err == nil && f.w.dropSectors && off >= intentBody && st.Size() > off {
		return len(p), nil
	}
	f.note(off, int64(len(p)))
	n, err := f.File.WriteAt(p, off)
	f.note(off, int64(len(p)))
	return n, err
}

func (f *platterFile) Sync() error {
	f.w.steps.step()
	if f.w.fault != nil {
		if err := f.w.fault("sync"); err != nil {
			return err
		}
	}
	for s := range f.w.pending {
		if !f.w.skipSync || s*512 < intentBody {
			delete(f.w.pending, s)
		}
	}
	return nil
}

// powerCut leaves in the file at path what the cut left.
func (w *platterWorld) powerCut(r *rand.Rand, path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) {
		clear(w.pending)
		return nil
	}
	if err != nil {
		return err
	}
	w.pending.cut(r, func(p []byte, off int64) {
		if _, e := f.WriteAt(p, off); e != nil {
			err = e
		}
	})
	return errors.Join(err, f.Close())
}
