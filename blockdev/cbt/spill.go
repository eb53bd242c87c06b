package cbt

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

const (
	// spillSegment is the part of a disk whose preserved grains share a file. File
	// systems end files at 16 TiB (ext4, 4 KiB blocks); disks are larger.
	spillSegment = 8 << 40
	// spillProbe: free space is looked at each time so much was spilled, in bytes.
	spillProbe = 16 << 20
)

// ErrSpillFull is why a cut aborts when the grains that the guest overwrote before
// they were captured fill the spill.
var ErrSpillFull = errors.New("spill is full")

// spill holds preserved grains at their own offset in sparse files, so that it
// needs no index: a bitmap says which are there.
type spill struct {
	path    string
	limit   int64
	reserve int64
	used    atomic.Int64
	files   []atomic.Pointer[os.File]
	mu      sync.Mutex // opens segments
}

func newSpill(path string, limit, reserve, size int64) *spill {
	return &spill{path: path, limit: limit, reserve: reserve,
		files: make([]atomic.Pointer[os.File], size/spillSegment+1)}
}

// prepare makes sure that the spill can take something: the first file is open and
// its file system has a little room above the reserve.
func (s *spill) prepare() error {
	f, err := s.segment(0)
	if err != nil {
		return err
	}
	return s.room(f, min(s.limit, maxChunk))
}

func (s *spill) room(f *os.File, want int64) error {
	var sfs unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &sfs); err != nil {
		return fmt.Errorf("statfs of spill %q: %w", s.path, err)
	}
	if free := int64(sfs.Bavail) * sfs.Bsize; free-want < s.reserve {
		return fmt.Errorf("%w: %q: %d bytes are free on its file system, %d are kept", ErrSpillFull, s.path, free, s.reserve)
	}
	return nil
}

// ample reports whether n bytes leave half of the spill, and the room it keeps free, to
// what cannot do without.
func (s *spill) ample(n int64) bool {
	f := s.files[0].Load() // prepare opened it
	return s.used.Load()+n <= s.limit/2 && f != nil && s.room(f, n) == nil
}

func (s *spill) segment(i int64) (*os.File, error) {
	if f := s.files[i].Load(); f != nil {
		return f, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if f := s.files[i].Load(); f != nil {
		return f, nil
	}
	f, err := os.OpenFile(s.name(i), os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open spill: %w", err)
	}
	s.files[i].Store(f)
	return f, nil
}

func (s *spill) name(i int64) string {
	if i == 0 {
		return s.path
	}
	return fmt.Sprintf("%s.%d", s.path, i)
}

// write stores p, grains of the disk at off.
func (s *spill) write(p []byte, off int64) error {
	n := int64(len(p))
	used := s.used.Add(n)
	if used > s.limit {
		return fmt.Errorf("%w: %q: %d bytes", ErrSpillFull, s.path, s.limit)
	}
	return s.each(p, off, func(f *os.File, p []byte, off int64) error {
		if used/spillProbe != (used-n)/spillProbe {
			if err := s.room(f, 0); err != nil {
				return err
			}
		}
		if _, err := f.WriteAt(p, off); err != nil {
			return fmt.Errorf("write spill: %w", err)
		}
		return nil
	})
}

// read fills p with preserved grains.
func (s *spill) read(p []byte, off int64) error {
	return s.each(p, off, func(f *os.File, p []byte, off int64) error {
		if _, err := f.ReadAt(p, off); err != nil {
			return fmt.Errorf("read spill: %w", err)
		}
		return nil
	})
}

func (s *spill) each(p []byte, off int64, do func(f *os.File, p []byte, off int64) error) error {
	for len(p) > 0 {
		f, err := s.segment(off / spillSegment)
		if err != nil {
			return err
		}
		n := min(int64(len(p)), spillSegment-off%spillSegment)
		if err := do(f, p[:n], off%spillSegment); err != nil {
			return err
		}
		p, off = p[n:], off+n
	}
	return nil
}

// resize readies the spill, which is empty, for a disk of size bytes.
func (s *spill) resize(size int64) {
	for int64(len(s.files)) <= size/spillSegment {
		files := make([]atomic.Pointer[os.File], size/spillSegment+1)
		for i := range s.files {
			files[i].Store(s.files[i].Load())
		}
		s.files = files
	}
}

// check reports a write-back error that the kernel met on the spill's pages, which
// it may have dropped since. It starts no write-back of its own.
func (s *spill) check() error {
	for i := range s.files {
		if f := s.files[i].Load(); f != nil {
			if err := unix.SyncFileRange(int(f.Fd()), 0, 0, unix.SYNC_FILE_RANGE_WAIT_BEFORE); err != nil {
				return fmt.Errorf("write back spill %q: %w", f.Name(), err)
			}
		}
	}
	return nil
}

// reset empties the spill. Nobody reads or writes it.
func (s *spill) reset() error {
	var errs []error
	for i := range s.files {
		if f := s.files[i].Load(); f != nil && s.used.Load() > 0 {
			errs = append(errs, f.Truncate(0))
		}
	}
	s.used.Store(0)
	return errors.Join(errs...)
}

// close removes the spill.
func (s *spill) close() error {
	var errs []error
	for i := range s.files {
		if f := s.files[i].Swap(nil); f != nil {
			errs = append(errs, f.Close(), os.Remove(f.Name()))
		}
	}
	return errors.Join(errs...)
}
