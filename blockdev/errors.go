package blockdev

import "errors"

// Sentinel errors of all Devices. They are matched with errors.Is; Devices wrap
// them with the operation and the object. Package nbd/server maps them to NBD
// errors, package fusemount to errno, each in one place.
var (
	// ErrOutOfRange: the request passes the end of the Device or is negative.
	ErrOutOfRange = errors.New("range is outside the device")
	// ErrReadOnly: a mutating request on a read-only Device.
	ErrReadOnly = errors.New("device is read-only")
	// ErrNoSpace: no storage could be allocated. What the range holds is
	// undefined, everything else is untouched.
	ErrNoSpace = errors.New("no space left")
	// ErrClosed: the Device was closed.
	ErrClosed = errors.New("device is closed")
	// ErrCorrupt: the content was read and is not what was stored (checksum or
	// digest). Never retried silently, always counted.
	ErrCorrupt = errors.New("content is corrupt")
	// ErrWouldBlock: NowaitReader, NowaitWriter and PipeWriter only; ask again with ReadAt or WriteAt.
	ErrWouldBlock = errors.New("request would block")
	// ErrNotSupported: the Device cannot do this, whatever the arguments.
	ErrNotSupported = errors.New("operation is not supported")
)

// Limits of all Devices.
const (
	// SectorSize divides the size of every Device, in bytes.
	SectorSize = 512
	// GrainSize is the unit of changed-block tracking, in bytes. Counted with
	// 3 000 random 4 KiB writes a second and a snapshot every 2.5 s: a map of
	// 4 KiB grains captured 88 MiB, a map of 64 KiB grains 696 MiB.
	GrainSize = 4 << 10
	// MaxSize is the largest Device: 2 PiB, what five levels of the vault's hash
	// tree reach.
	MaxSize int64 = 1 << 51
)

// CheckRange returns ErrOutOfRange unless [off, off+n) lies inside a Device of the
// given size. It is the first line of every ReadAt and WriteAt.
func CheckRange(off, n, size int64) error {
	if off < 0 || n < 0 || off > size || n > size-off {
		return ErrOutOfRange
	}
	return nil
}
