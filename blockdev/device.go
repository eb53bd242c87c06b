package blockdev

// Device is a random-access disk. Its size is fixed unless it is a Resizer.
//
// Concurrency: all methods may be called from any number of goroutines at once.
// Overlapping requests have no defined order unless the caller waits for one
// before it issues the other.
//
// Atomicity: none beyond one sector of 512 bytes. A failed or interrupted write
// may have changed any part of its range and nothing outside of it.
//
// Durability: a write is visible to later reads when WriteAt returns, and durable
// when a Flush that was issued after it returned has succeeded. This holds for
// every user of the Device, whichever of them flushes (that is what lets an
// export advertise NBD_FLAG_CAN_MULTI_CONN).
//
// Buffers: p belongs to the caller. A Device neither keeps it after the call
// returns nor, in WriteAt, changes it.
type Device interface {
	// ReadAt fills all of p from off, or returns an error and how many leading
	// bytes are good. Unlike io.ReaderAt it never returns io.EOF together with a
	// short count: a range that passes Size is ErrOutOfRange and reads nothing.
	ReadAt(p []byte, off int64) (n int, err error)

	// WriteAt writes all of p at off, or returns an error. A range that passes
	// Size is ErrOutOfRange and writes nothing. A read-only Device returns
	// ErrReadOnly.
	WriteAt(p []byte, off int64) (n int, err error)

	// Size is the number of bytes, a multiple of SectorSize, in 0 .. MaxSize. It
	// is cheap: it reads memory, not the disk.
	Size() int64

	// Flush makes every write that returned before Flush was called durable.
	// After an error nothing may be assumed to be durable, and a later success
	// does not repair it: the owner must treat the Device as suspect.
	Flush() error

	// Close releases the Device. The owner, who opened it, closes it, once all
	// requests have returned; a filter closes the Device below it. A second
	// Close is harmless. Close does not promise durability: Flush first.
	Close() error
}

// Trimmer is a Device that can drop the content of a range. Afterwards the range
// reads as anything at all (in practice as zeros); storage may be given back.
type Trimmer interface {
	// Trim drops [off, off+n). Any alignment is accepted; a part that cannot be
	// dropped may be left as it was.
	Trim(off, n int64) error
}

// Zeroer is a Device that can write zeros without being sent them.
type Zeroer interface {
	// WriteZeroes makes [off, off+n) read as zeros. With mayPunch the range may
	// become a hole; without it the range stays, or becomes, allocated, so that
	// a later write there cannot run out of space (NBD_CMD_FLAG_NO_HOLE).
	WriteZeroes(off, n int64, mayPunch bool) error
}

// FastZeroer is a Zeroer that knows whether zeroes cost it a write.
type FastZeroer interface {
	Zeroer
	// ZeroesFast reports whether WriteZeroes with the same mayPunch marks the range
	// (as a hole, or as allocated and zero) instead of writing it, so that zeroing
	// takes less time than writing (NBD_CMD_FLAG_FAST_ZERO). It is cheap, and may
	// change from true to false.
	ZeroesFast(mayPunch bool) bool
}

// Extent is a range of a Device, in bytes.
type Extent struct {
	Offset int64
	Length int64
}

// End is the first byte after the extent.
func (e Extent) End() int64 { return e.Offset + e.Length }

// ExtentStatus says what is known about a range, as the NBD metadata context
// base:allocation has it. The zero value is allocated data.
type ExtentStatus struct {
	// Hole: no storage is allocated for the range.
	Hole bool
	// Zero: the range reads as zeros.
	Zero bool
}

// ExtentLister is a Device that knows where it holds data.
type ExtentLister interface {
	// Extents calls yield for consecutive extents that cover [off, off+n) in
	// ascending order without gaps, until yield returns false. It may report
	// zeros as data, never data as zeros.
	Extents(off, n int64, yield func(Extent, ExtentStatus) bool) error
}

// NowaitReader is a Device that can say whether a read would have to wait for a
// disk, so that a server can answer from the page cache without a hand-off.
type NowaitReader interface {
	// ReadAtNowait is ReadAt, except that it returns ErrWouldBlock and has read
	// nothing that the caller may use when the data is not in memory.
	ReadAtNowait(p []byte, off int64) (n int, err error)
}

// Resizer is a Device whose size can change while it is used.
type Resizer interface {
	// Resize makes the Device newSize bytes long and makes that durable. What it
	// gains reads as zeros; what it loses is gone, also when it grows back. Requests
	// that are under way finish first; later ones past the new end are ErrOutOfRange.
	// After an error Size says which of the two sizes it has.
	Resize(newSize int64) error
}

// NowaitWriter is a Device that can say whether a write would have to wait for a disk
// before it may begin, so that a server does all others at once and in one goroutine.
type NowaitWriter interface {
	// WriteAtNowait is WriteAt, except that it returns ErrWouldBlock and has written
	// nothing when something has to become durable first.
	WriteAtNowait(p []byte, off int64) (n int, err error)
}

// PipeWriter is a Device that can take what it writes out of a pipe, so that the kernel
// moves the pages of a socket and copies them once, into the page cache.
type PipeWriter interface {
	// WritePipeNowait is WriteAtNowait of the next n bytes of the pipe with the
	// descriptor pipe, which holds that many and has no other reader. ErrWouldBlock and
	// ErrNotSupported say that nothing was taken out of it; the first may be different
	// next time. After another error taken bytes were. A filter that embeds a Device and
	// has a WriteAt of its own needs one of these as well, or has to hide it.
	WritePipeNowait(pipe, n int, off int64) (taken int, err error)
}

// FileBacked is a Device whose byte at offset x is the byte at offset x of an open
// file, so that reads may be sent by sendfile(2). A filter over a Device that is not,
// and a disk of several files, return ErrNotSupported from every ReadFD.
type FileBacked interface {
	// ReadFD calls use with the file descriptor, which stays open until use
	// returns. use must only read from it.
	ReadFD(use func(fd int) error) error
}
