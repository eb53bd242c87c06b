package localdisk

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/keelblock/keelblock/blockdev"
)

// ErrInUse means that somebody else has the file or block device open in a way that
// excludes us: another daemon, another disk of this one, or a mounted file system.
var ErrInUse = errors.New("disk is in use")

// Options say how to open a disk. The zero value opens it for writing and keeps no
// reserve.
type Options struct {
	// ReadOnly opens the disk for reading; several readers may share it.
	ReadOnly bool
	// ReserveBytes are kept free on the file system under the disk: when less is
	// left, writes that need new space fail with blockdev.ErrNoSpace. The limit is
	// checked every few MiB written, not on every write, so it can be passed by
	// that much. Ignored for block devices.
	ReserveBytes int64
}

// Disk is a raw image file or a host block device. See the package comment for
// durability and locking.
type Disk struct {
	path     string
	fd       int
	readOnly bool
	isBlock  bool
	// sectorSize is the alignment that fallocate needs: 1 for files.
	sectorSize int64
	reserve    int64
	// parts are the files of a segmented disk, each of segment bytes but the last;
	// nil for all others. See segments.go.
	parts   []*Disk
	segment int64

	// size changes only under mu held exclusively, so a request that has entered sees
	// one size to its end.
	size atomic.Int64
	// spare is how many bytes may be written before the file system is asked for
	// its free space again.
	spare atomic.Int64
	// nowait is one of the nowait constants; it only moves away from nowaitKernel.
	nowait atomic.Int32
	// noZeroRange is set once the file system refused FALLOC_FL_ZERO_RANGE,
	// noPunch once it refused FALLOC_FL_PUNCH_HOLE.
	noZeroRange, noPunch atomic.Bool
	// noSplice is set once it refused to take a write out of a pipe.
	noSplice atomic.Bool
	// flushErr is the first failure of Flush; see the package comment.
	flushErr atomic.Pointer[error]

	// mu is held shared over every request, I/O included: that is its purpose.
	mu     sync.RWMutex
	closed bool
}

var (
	_ blockdev.Device       = (*Disk)(nil)
	_ blockdev.Trimmer      = (*Disk)(nil)
	_ blockdev.Zeroer       = (*Disk)(nil)
	_ blockdev.ExtentLister = (*Disk)(nil)
	_ blockdev.NowaitReader = (*Disk)(nil)
	_ blockdev.FileBacked   = (*Disk)(nil)
	_ blockdev.PipeWriter   = (*Disk)(nil)
	_ blockdev.Resizer      = (*Disk)(nil)
)

// Create makes a sparse file of sizeBytes, mode 0600, and makes it and its name
// durable. Where the file system does not hold files as large (ext4 ends at 16 TiB)
// path becomes a folder of several files that Open takes as one disk. Create refuses an
// existing path. sizeBytes is a multiple of blockdev.SectorSize in 0 .. blockdev.MaxSize.
func Create(path string, sizeBytes int64) error {
	if err := checkSize(sizeBytes); err != nil {
		return fmt.Errorf("create disk %q: %w", path, err)
	}
	err := createFile(path, sizeBytes)
	if err == nil {
		err = syncDir(filepath.Dir(path))
	} else if tooLarge(err) {
		err = createSegments(path, sizeBytes, segmentBytes)
	}
	if err != nil {
		return fmt.Errorf("create disk: %w", err)
	}
	return nil
}

// Remove deletes what Create made, open or not.
func Remove(path string) error { return os.RemoveAll(path) }

// Open opens an image file or a block device and locks it. The error is ErrInUse
// when somebody else has it. The size is taken here, once, and must be a multiple
// of blockdev.SectorSize.
func Open(path string, o Options) (*Disk, error) {
	d, err := open(path, o)
	if err != nil {
		return nil, fmt.Errorf("open disk %q: %w", path, err)
	}
	return d, nil
}

func open(path string, o Options) (_ *Disk, err error) {
	// Asked before the open, which would wait for ever on a named pipe.
	fi, err := os.Stat(path)
	if err != nil {
		return nil, errors.Unwrap(err)
	}
	flags := unix.O_RDWR | unix.O_CLOEXEC
	if o.ReadOnly {
		flags = unix.O_RDONLY | unix.O_CLOEXEC
	}
	if fi.IsDir() {
		return openSegments(path, o)
	}
	isBlock := fi.Mode()&os.ModeDevice != 0 && fi.Mode()&os.ModeCharDevice == 0
	switch {
	case isBlock && !o.ReadOnly:
		flags |= unix.O_EXCL
	case isBlock, fi.Mode().IsRegular():
	default:
		return nil, fmt.Errorf("neither a file nor a block device (%s)", fi.Mode().Type())
	}
	fd, err := unix.Open(path, flags, 0)
	if err == unix.EBUSY {
		return nil, fmt.Errorf("%w: the block device is mounted or held by another user", ErrInUse)
	}
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			unix.Close(fd)
		}
	}()
	how := unix.LOCK_EX
	if o.ReadOnly {
		how = unix.LOCK_SH
	}
	if err := unix.Flock(fd, how|unix.LOCK_NB); err == unix.EWOULDBLOCK {
		return nil, fmt.Errorf("%w by another process or another disk", ErrInUse)
	} else if err != nil {
		return nil, fmt.Errorf("lock: %w", err)
	}
	d := &Disk{path: path, fd: fd, readOnly: o.ReadOnly, isBlock: isBlock, sectorSize: 1, reserve: o.ReserveBytes}
	if err := d.measure(); err != nil {
		return nil, err
	}
	return d, nil
}

// measure takes size and alignment from the open descriptor.
func (d *Disk) measure() error {
	var st unix.Stat_t
	if err := unix.Fstat(d.fd, &st); err != nil {
		return fmt.Errorf("fstat: %w", err)
	}
	if gotBlock := st.Mode&unix.S_IFMT == unix.S_IFBLK; gotBlock != d.isBlock {
		return errors.New("replaced while it was opened")
	}
	bytes := st.Size
	if d.isBlock {
		d.reserve = 0
		size, err := blockDeviceSize(d.fd)
		if err != nil {
			return fmt.Errorf("size of block device: %w", err)
		}
		sector, err := unix.IoctlGetInt(d.fd, unix.BLKSSZGET)
		if err != nil {
			return fmt.Errorf("sector size of block device: %w", err)
		}
		bytes, d.sectorSize = size, int64(sector)
	}
	d.size.Store(bytes)
	return checkSize(bytes)
}

// Size is the size in bytes at Open, or since the last Resize.
func (d *Disk) Size() int64 { return d.size.Load() }

// Close unlocks and closes the disk after the requests that are under way. It does
// not flush. A second Close does nothing.
func (d *Disk) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil
	}
	d.closed = true
	if d.parts != nil {
		return closeAll(d.parts)
	}
	if err := unix.Close(d.fd); err != nil {
		return fmt.Errorf("close disk %q: %w", d.path, err)
	}
	return nil
}

// enterRange is enter for a request on [off, off+n).
func (d *Disk) enterRange(op string, off, n int64) error {
	if err := d.enter(); err != nil {
		return err
	}
	if err := blockdev.CheckRange(off, n, d.Size()); err != nil {
		d.leave()
		return d.fail(op, off, n, err)
	}
	return nil
}

// enter begins a request; leave ends it. Between them the descriptor stays open and
// the size what it is.
func (d *Disk) enter() error {
	d.mu.RLock()
	if d.closed {
		d.mu.RUnlock()
		return fmt.Errorf("disk %q: %w", d.path, blockdev.ErrClosed)
	}
	return nil
}

func (d *Disk) leave() { d.mu.RUnlock() }

// AllocatedBytes is the storage that the file occupies; for a block device, its
// size.
func (d *Disk) AllocatedBytes() (int64, error) {
	if err := d.enter(); err != nil {
		return 0, err
	}
	defer d.leave()
	if d.isBlock {
		return d.Size(), nil
	}
	if d.parts != nil {
		total := int64(0)
		for _, p := range d.parts {
			n, err := p.AllocatedBytes()
			if err != nil {
				return 0, err
			}
			total += n
		}
		return total, nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(d.fd, &st); err != nil {
		return 0, d.fail("stat", 0, 0, err)
	}
	return st.Blocks * 512, nil
}

// Witness is what a file shows of its history without being read: if two
// witnesses are equal, nobody wrote to the file between them (as far as the file
// system tells).
type Witness struct {
	Inode      uint64
	Size       int64
	MtimeNanos int64
	CtimeNanos int64
}

// Witness takes the witness of the file now. ok is false for a block device, which
// has none, and when the file cannot be asked.
func (d *Disk) Witness() (w Witness, ok bool) {
	if d.enter() != nil {
		return Witness{}, false
	}
	defer d.leave()
	if d.parts != nil {
		return d.segmentWitness()
	}
	var st unix.Stat_t
	if d.isBlock || unix.Fstat(d.fd, &st) != nil {
		return Witness{}, false
	}
	return Witness{Inode: st.Ino, Size: st.Size, MtimeNanos: st.Mtim.Nano(), CtimeNanos: st.Ctim.Nano()}, true
}

func checkSize(size int64) error {
	switch {
	case size < 0 || size > blockdev.MaxSize:
		return fmt.Errorf("size %d is outside 0 .. %d bytes", size, blockdev.MaxSize)
	case size%blockdev.SectorSize != 0:
		return fmt.Errorf("size %d is not a multiple of %d bytes (truncate -s %%%d FILE rounds it up)", size, blockdev.SectorSize, blockdev.SectorSize)
	}
	return nil
}

// blockDeviceSize asks with BLKGETSIZE64, which answers in 64 bits, whatever the
// platform's int.
func blockDeviceSize(fd int) (int64, error) {
	var size uint64
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.BLKGETSIZE64, uintptr(unsafe.Pointer(&size))); errno != 0 {
		return 0, errno
	}
	return int64(size), nil
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync folder: %w", err)
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		return fmt.Errorf("sync folder: %w", err)
	}
	return nil
}
