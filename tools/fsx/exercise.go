package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"

	"golang.org/x/sys/unix"
)

const (
	// minSize of a file, in bytes: enough for every operation to have room.
	minSize = 64 << 10
	// maxLength of one operation, in bytes.
	maxLength = 256 << 10
	checkEach = 64 << 10
)

// exercised is a file and what must be in it.
type exercised struct {
	path  string
	seed  int64
	f     *os.File
	fixed bool
	max   int64
	rnd   *rand.Rand
	// want is the content of the file; its length is the file's.
	want []byte
	// scratch is read into.
	scratch []byte
	lacks   map[string]bool
	last    string // the latest operation, for the error
}

// open makes a file, or reads what a fixed one holds.
func open(path string, o options, seed int64) (*exercised, error) {
	x := &exercised{path: path, seed: seed, fixed: o.fixed, max: o.size, rnd: rand.New(rand.NewPCG(uint64(seed), 0)),
		scratch: make([]byte, max(maxLength, checkEach)), lacks: map[string]bool{}}
	flags := os.O_RDWR | os.O_CREATE | os.O_TRUNC
	if o.fixed {
		flags = os.O_RDWR
	}
	f, err := os.OpenFile(path, flags, 0o644)
	if err != nil {
		return nil, err
	}
	x.f = f
	if o.fixed {
		size, err := f.Seek(0, io.SeekEnd)
		if err == nil && size < minSize {
			err = fmt.Errorf("it has %d bytes, at least %d are needed", size, minSize)
		}
		if err == nil {
			x.want = make([]byte, min(size, o.size))
			_, err = f.ReadAt(x.want, 0)
		}
		if err != nil {
			f.Close()
			return nil, fmt.Errorf("open %s: %w", path, err)
		}
	}
	return x, nil
}

func (x *exercised) close() error { return x.f.Close() }

// span chooses a range. Half of them lie at multiples of 512, as those of file systems
// do.
func (x *exercised) span(limit int64) (offset int64, length int) {
	offset = x.rnd.Int64N(limit)
	length = 1 + x.rnd.IntN(int(min(limit-offset, int64(1)<<x.rnd.IntN(19), maxLength)))
	if x.rnd.IntN(2) == 0 {
		offset &^= 511
		length = int(min((int64(length)+511)&^511, limit-offset))
	}
	return offset, length
}

// step carries out one operation.
func (x *exercised) step() error {
	op := x.choose()
	if err := op(); err != nil {
		return fmt.Errorf("%s: %w", x.last, err)
	}
	return nil
}

func (x *exercised) choose() func() error {
	size := int64(len(x.want))
	n := x.rnd.IntN(100)
	switch {
	case size < minSize: // only at the beginning or after a truncation
		return x.write
	case n < 35:
		return x.write
	case n < 65:
		return x.read
	case n < 70:
		return func() error { return x.allocate("hole", unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE) }
	case n < 75:
		return func() error { return x.allocate("zeroes", unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE) }
	case n < 80:
		return x.mapped
	case n < 86:
		return x.sync
	case n < 92:
		return x.dropCache
	case n < 94:
		return x.reopen
	case x.fixed:
		return x.read
	default:
		return x.truncate
	}
}

// fill puts random bytes into p.
func (x *exercised) fill(p []byte) {
	v := x.rnd.Uint64()
	for i := range p {
		if i%8 == 0 {
			v = v*6364136223846793005 + 1442695040888963407
		}
		p[i] = byte(v >> (8 * (i % 8)))
	}
}

func (x *exercised) write() error {
	limit := x.max
	if x.fixed {
		limit = int64(len(x.want))
	}
	offset, length := x.span(limit)
	x.last = fmt.Sprintf("write of %d at %d", length, offset)
	if end := offset + int64(length); end > int64(len(x.want)) {
		x.want = append(x.want, make([]byte, end-int64(len(x.want)))...)
	}
	p := x.want[offset : offset+int64(length)]
	x.fill(p)
	_, err := x.f.WriteAt(p, offset)
	return err
}

func (x *exercised) read() error {
	offset, length := x.span(int64(len(x.want)))
	x.last = fmt.Sprintf("read of %d at %d", length, offset)
	return x.compare(offset, length)
}

// compare reads a range and holds it against what it must be.
func (x *exercised) compare(offset int64, length int) error {
	got := x.scratch[:length]
	if n, err := x.f.ReadAt(got, offset); err != nil {
		return fmt.Errorf("%d bytes came: %w", n, err)
	}
	return differ(got, x.want[offset:offset+int64(length)], offset)
}

func differ(got, want []byte, offset int64) error {
	if bytes.Equal(got, want) {
		return nil
	}
	first, count := -1, 0
	for i := range got {
		if got[i] != want[i] {
			if first < 0 {
				first = i
			}
			count++
		}
	}
	return fmt.Errorf("WRONG DATA: %d bytes differ, the first at %d is %#02x and must be %#02x", count, offset+int64(first), got[first], want[first])
}

// can reports whether an operation worked; one that the file system lacks is not tried
// again.
func (x *exercised) can(what string, err error) (bool, error) {
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EINVAL) {
		x.lacks[what] = true
		return false, nil
	}
	return err == nil, err
}

func (x *exercised) allocate(what string, mode uint32) error {
	if x.lacks[what] {
		return x.read()
	}
	offset, length := x.span(int64(len(x.want)))
	x.last = fmt.Sprintf("%s of %d at %d", what, length, offset)
	done, err := x.can(what, unix.Fallocate(int(x.f.Fd()), mode, offset, int64(length)))
	if done {
		clear(x.want[offset : offset+int64(length)])
	}
	return err
}

// mapped writes through a map and reads back through it.
func (x *exercised) mapped() error {
	if x.lacks["map"] {
		return x.write()
	}
	offset, length := x.span(int64(len(x.want)))
	x.last = fmt.Sprintf("map of %d at %d", length, offset)
	page := offset &^ int64(os.Getpagesize()-1)
	m, err := unix.Mmap(int(x.f.Fd()), page, int(offset-page)+length, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	done, err := x.can("map", err)
	if !done {
		return err
	}
	in := m[offset-page:]
	err = differ(in, x.want[offset:offset+int64(length)], offset)
	if err == nil {
		x.fill(in)
		copy(x.want[offset:], in)
		if x.rnd.IntN(2) == 0 {
			err = unix.Msync(m, unix.MS_SYNC)
		}
	}
	return errors.Join(err, unix.Munmap(m))
}

func (x *exercised) truncate() error {
	size := minSize + x.rnd.Int64N(x.max-minSize+1)
	x.last = fmt.Sprintf("truncate to %d", size)
	if err := x.f.Truncate(size); err != nil {
		return err
	}
	if size <= int64(len(x.want)) {
		x.want = x.want[:size]
	} else {
		old := len(x.want)
		x.want = append(x.want, make([]byte, size-int64(old))...)
		clear(x.want[old:])
	}
	return nil
}

func (x *exercised) sync() error {
	x.last = "fsync"
	return x.f.Sync()
}

// dropCache has what is read next come from below the file system.
func (x *exercised) dropCache() error {
	if err := x.sync(); err != nil {
		return err
	}
	x.last = "drop the cache"
	return unix.Fadvise(int(x.f.Fd()), 0, 0, unix.FADV_DONTNEED)
}

func (x *exercised) reopen() error {
	x.last = "reopen"
	if err := x.f.Close(); err != nil {
		return err
	}
	f, err := os.OpenFile(x.path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	x.f = f
	return nil
}

// check compares the whole file, from below the cache.
func (x *exercised) check() error {
	if err := x.dropCache(); err != nil {
		return fmt.Errorf("%s: %w", x.last, err)
	}
	if !x.fixed {
		info, err := x.f.Stat()
		if err != nil {
			return err
		}
		if info.Size() != int64(len(x.want)) {
			return fmt.Errorf("the file has %d bytes, must have %d", info.Size(), len(x.want))
		}
	}
	for offset := int64(0); offset < int64(len(x.want)); offset += checkEach {
		if err := x.compare(offset, int(min(checkEach, int64(len(x.want))-offset))); err != nil {
			return err
		}
	}
	return nil
}
