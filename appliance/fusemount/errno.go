package fusemount

import (
	"context"
	"errors"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/keelblock/keelblock/blockdev/filesystem"
)

// Errors of this package's own making.
var (
	errDeadline = errors.New("the reader did not answer in time")
	errHanging  = errors.New("the reader of this volume hangs")
	errPanic    = errors.New("the reader of this volume failed and was stopped")
	errShort    = errors.New("the reader returned less than was asked for")
)

// The errors that mean something to a program that reads files. Everything else is
// EIO.
var errnos = []struct {
	err   error
	errno unix.Errno
}{
	{filesystem.ErrNotExist, unix.ENOENT},
	{filesystem.ErrNotDir, unix.ENOTDIR},
	{filesystem.ErrIsDir, unix.EISDIR},
	{filesystem.ErrInvalid, unix.EINVAL},
	{filesystem.ErrNoXattr, unix.ENODATA},
	{filesystem.ErrNoData, unix.ENXIO},
	{context.Canceled, unix.EINTR},
}

// status turns an error into what the kernel gets. It is the only place that does.
func status(err error) fuse.Status {
	if err == nil {
		return fuse.OK
	}
	for _, e := range errnos {
		if errors.Is(err, e.err) {
			return fuse.Status(e.errno)
		}
	}
	return fuse.EIO
}
