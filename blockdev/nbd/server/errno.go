package server

import (
	"errors"

	"github.com/keelblock/keelblock/blockdev"
	"github.com/keelblock/keelblock/blockdev/nbd"
)

// errnoOf is the one place where errors of Devices become NBD errors. known is
// false for an error that has none of its own and is sent as EIO. The text is what
// the client is told: of a known error its meaning, of others nothing, as their
// text may name files of this machine; it is in the log.
func errnoOf(command uint16, err error) (errno nbd.Errno, text string, known bool) {
	if errors.Is(err, blockdev.ErrOutOfRange) && (command == nbd.CmdWrite || command == nbd.CmdWriteZeroes) {
		// The Device has become smaller than when the client connected.
		return nbd.ENOSPC, blockdev.ErrOutOfRange.Error(), true
	}
	for _, m := range []struct {
		err   error
		errno nbd.Errno
	}{
		{blockdev.ErrReadOnly, nbd.EPERM},
		{blockdev.ErrNoSpace, nbd.ENOSPC},
		{blockdev.ErrOutOfRange, nbd.EINVAL},
		{blockdev.ErrNotSupported, nbd.ENOTSUP},
		{blockdev.ErrClosed, nbd.ESHUTDOWN},
		{blockdev.ErrCorrupt, nbd.EIO},
	} {
		if errors.Is(err, m.err) {
			return m.errno, m.err.Error(), true
		}
	}
	if errors.As(err, &errno) {
		return errno, errno.Error(), true
	}
	return nbd.EIO, "input/output error; the log of the server has the reason", false
}
