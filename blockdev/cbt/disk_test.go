package cbt

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/keelblock/keelblock/blockdev"
)

// memDisk is a disk in memory. fault, if set, is asked before each call and may fail
// it; a write that fails has torn: it wrote its first half.
type memDisk struct {
	mu    sync.RWMutex
	data  []byte
	fault func(op string, off, n int64) error
}

func newMemDisk(size int64) *memDisk { return &memDisk{data: make([]byte, size)} }

func (d *memDisk) ask(op string, off, n int64) error {
	if d.fault == nil {
		return nil
	}
	return d.fault(op, off, n)
}

func (d *memDisk) ReadAt(p []byte, off int64) (int, error) {
	if err := errors.Join(blockdev.CheckRange(off, int64(len(p)), int64(len(d.data))), d.ask("read", off, int64(len(p)))); err != nil {
		return 0, err
	}
	d.mu.RLock()
	defer d.mu.RUnlock()
	return copy(p, d.data[off:]), nil
}

func (d *memDisk) WriteAt(p []byte, off int64) (int, error) {
	if err := blockdev.CheckRange(off, int64(len(p)), int64(len(d.data))); err != nil {
		return 0, err
	}
	err := d.ask("write", off, int64(len(p)))
	d.mu.Lock()
	defer d.mu.Unlock()
	if err != nil {
		return copy(d.data[off:], p[:len(p)/2]), err
	}
	return copy(d.data[off:], p), nil
}

func (d *memDisk) Trim(off, n int64) error { return d.WriteZeroes(off, n, true) }

func (d *memDisk) WriteZeroes(off, n int64, _ bool) error {
	_, err := d.WriteAt(make([]byte, n), off)
	return err
}

// Extents tells the sectors that hold only zeros.
func (d *memDisk) Extents(off, n int64, yield func(blockdev.Extent, blockdev.ExtentStatus) bool) error {
	if err := d.ask("extents", off, n); err != nil {
		return err
	}
	d.mu.RLock()
	zero := make([]bool, n/512)
	for i := range zero {
		at := off + int64(i)*512
		zero[i] = !slices.ContainsFunc(d.data[at:at+512], func(b byte) bool { return b != 0 })
	}
	d.mu.RUnlock()
	for i := 0; i < len(zero); {
		k := i
		for k < len(zero) && zero[k] == zero[i] {
			k++
		}
		if !yield(blockdev.Extent{Offset: off + int64(i)*512, Length: int64(k-i) * 512}, blockdev.ExtentStatus{Hole: zero[i], Zero: zero[i]}) {
			return nil
		}
		i = k
	}
	return nil
}

func (d *memDisk) Size() int64  { return int64(len(d.data)) }
func (d *memDisk) Flush() error { return d.ask("flush", 0, 0) }
func (d *memDisk) Close() error { return nil }

func (d *memDisk) witness() (Witness, bool) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	sum := sha256.Sum256(d.data[:min(len(d.data), mib)])
	return Witness{Inode: littleEndian.Uint64(sum[:]), Size: d.Size()}, true
}

// options makes Options for a disk whose map lies on tmpfs.
func options(tb testing.TB, d *memDisk) Options {
	tb.Helper()
	dir := tb.TempDir()
	return Options{
		DiskID: "disk-" + filepath.Base(dir), MapPath: filepath.Join(shm(tb), "map"), SavePath: filepath.Join(dir, "saved"),
		SpillPath: filepath.Join(dir, "spill"), Witness: d.witness,
	}
}

// shm is a folder on tmpfs that goes with the test.
func shm(tb testing.TB) string {
	tb.Helper()
	var sfs unix.Statfs_t
	if err := unix.Statfs("/dev/shm", &sfs); err != nil || int64(sfs.Type) != unix.TMPFS_MAGIC {
		tb.Skipf("/dev/shm is not tmpfs: %v", err)
	}
	dir, err := os.MkdirTemp("/dev/shm", "keelblock-cbt-test-")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func mustOpen(tb testing.TB, dev blockdev.Device, c *Clock, o Options) *Tracker {
	tb.Helper()
	t, err := Open(dev, c, o)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { t.Close() })
	return t
}

// abandon drops a tracker as a kill does: the map file stays as it is, nothing is
// saved. What the process held is given back so that a test can do it often.
func abandon(tb testing.TB, t *Tracker) {
	tb.Helper()
	t.life.Lock()
	t.closed = true
	t.word.Store(uint64(word(t.word.Load()).withPhase(phaseClosed)))
	t.life.Unlock()
	for i := range t.maps {
		t.maps[i].drained(nil)
	}
	t.whole.Lock()
	t.frozen.Store(nil)
	t.mu.Lock()
	t.spill.close()
	if err := t.release(false); err != nil {
		tb.Fatal(err)
	}
	t.file = nil
	t.mu.Unlock()
	t.whole.Unlock()
}

func mustWrite(tb testing.TB, t *Tracker, off int64, n int, fill byte) {
	tb.Helper()
	if _, err := t.WriteAt(bytes.Repeat([]byte{fill}, n), off); err != nil {
		tb.Fatal(err)
	}
}

func listed(t *Tracker) (es []blockdev.Extent) {
	t.Changed(func(e blockdev.Extent) bool { es = append(es, e); return true })
	return es
}
