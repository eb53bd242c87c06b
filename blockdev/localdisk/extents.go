package localdisk

import (
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/keelblock/keelblock/blockdev"
)

// Extents implements blockdev.ExtentLister.
//
// What reads as zeros is asked with SEEK_DATA and SEEK_HOLE, which look into the
// page cache too. FIEMAP does not: it calls a preallocated extent unwritten while
// its new data waits in memory, and believing it has lost data in other programs.
// So FIEMAP is asked only about what SEEK_DATA has called a hole, and decides
// only whether storage is allocated there.
func (d *Disk) Extents(off, n int64, yield func(blockdev.Extent, blockdev.ExtentStatus) bool) error {
	if d.parts != nil {
		return d.segmentExtents(off, n, yield)
	}
	if err := d.enterRange("list extents of", off, n); err != nil {
		return err
	}
	defer d.leave()
	end := off + n
	for off < end {
		data, err := unix.Seek(d.fd, off, unix.SEEK_DATA)
		switch {
		case err == unix.ENXIO: // no data up to the end of the file
			data = end
		case err == unix.EINVAL || err == unix.EOPNOTSUPP:
			yield(blockdev.Extent{Offset: off, Length: end - off}, blockdev.ExtentStatus{})
			return nil
		case err != nil:
			return d.fail("list extents of", off, end-off, err)
		}
		if data = min(data, end); data > off {
			if !d.yieldHole(off, data, yield) {
				return nil
			}
			off = data
			continue
		}
		hole, err := unix.Seek(d.fd, off, unix.SEEK_HOLE)
		if err != nil && err != unix.ENXIO {
			return d.fail("list extents of", off, end-off, err)
		}
		if err == unix.ENXIO || hole <= off {
			continue // punched between the two calls: ask again
		}
		hole = min(hole, end)
		if !yield(blockdev.Extent{Offset: off, Length: hole - off}, blockdev.ExtentStatus{}) {
			return nil
		}
		off = hole
	}
	return nil
}

// yieldHole reports [off, end), which reads as zeros, split into what has storage
// and what has not.
func (d *Disk) yieldHole(off, end int64, yield func(blockdev.Extent, blockdev.ExtentStatus) bool) bool {
	more := true
	report := func(to int64, hole bool) {
		if more && to > off {
			more = yield(blockdev.Extent{Offset: off, Length: to - off}, blockdev.ExtentStatus{Hole: hole, Zero: true})
			off = to
		}
	}
	run := off // end of the run of allocated storage found last
	d.fiemap(off, end, func(b, e int64) bool {
		if b > run {
			report(run, false)
			report(b, true)
		}
		run = max(run, min(e, end))
		return more
	})
	report(run, false)
	report(end, true)
	return more
}

// allocated reports whether all of [off, off+n) has storage, so that writing to it
// needs no new space.
func (d *Disk) allocated(off, n int64) bool {
	next, end := off, off+n
	known := d.fiemap(off, end, func(b, e int64) bool {
		if b > next {
			return false
		}
		next = max(next, e)
		return next < end
	})
	if known {
		return next >= end
	}
	hole, err := unix.Seek(d.fd, off, unix.SEEK_HOLE)
	return err == nil && hole >= end
}

// The request and answer of FS_IOC_FIEMAP (linux/fiemap.h).
type fiemapExtent struct {
	logical, physical, length uint64
	_                         [2]uint64
	flags                     uint32
	_                         [3]uint32
}

type fiemapRequest struct {
	start, length        uint64
	flags, mapped, count uint32
	_                    uint32
	extents              [64]fiemapExtent
}

const (
	fsIocFiemap      = 0xC020660B // _IOWR('f', 11, struct fiemap), header only
	fiemapExtentLast = 0x1        // FIEMAP_EXTENT_LAST
)

// fiemap calls yield with begin and end of each extent that has storage and meets
// [off, end), ascending, clipped at off, until yield returns false. It returns
// false if the file system does not answer.
func (d *Disk) fiemap(off, end int64, yield func(begin, end int64) bool) bool {
	for off < end {
		req := fiemapRequest{start: uint64(off), length: uint64(end - off)}
		req.count = uint32(len(req.extents))
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(d.fd), fsIocFiemap, uintptr(unsafe.Pointer(&req))); errno != 0 {
			return false
		}
		if req.mapped == 0 {
			return true
		}
		for _, e := range req.extents[:min(int(req.mapped), len(req.extents))] {
			b, to := max(int64(e.logical), off), int64(e.logical+e.length)
			if b >= end {
				return true
			}
			if to > b && !yield(b, to) {
				return true
			}
			off = max(off, to)
			if e.flags&fiemapExtentLast != 0 {
				return true
			}
		}
	}
	return true
}
