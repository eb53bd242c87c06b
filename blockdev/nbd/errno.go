package nbd

import (
	"fmt"

	"github.com/pojntfx/go-nbd/pkg/protocol"
)

// Errno is an error number of a reply ("Error values"). It is an error: the text
// of the document for the number.
type Errno uint32

// The error values. OK is success.
const (
	OK         = Errno(0)
	EPERM      = Errno(protocol.TRANSMISSION_ERROR_EPERM)
	EIO        = Errno(5)
	ENOMEM     = Errno(12)
	EINVAL     = Errno(protocol.TRANSMISSION_ERROR_EINVAL)
	ENOSPC     = Errno(28)
	EOVERFLOW  = Errno(75)
	ENOTSUP    = Errno(95)
	ESHUTDOWN  = Errno(108)
	maxErrText = 4096
)

// Error is the name of the number and what it means.
func (e Errno) Error() string {
	switch e {
	case OK:
		return "success"
	case EPERM:
		return "EPERM: operation not permitted"
	case EIO:
		return "EIO: input/output error"
	case ENOMEM:
		return "ENOMEM: cannot allocate memory"
	case EINVAL:
		return "EINVAL: invalid argument"
	case ENOSPC:
		return "ENOSPC: no space left on device"
	case EOVERFLOW:
		return "EOVERFLOW: value too large"
	case ENOTSUP:
		return "ENOTSUP: operation not supported"
	case ESHUTDOWN:
		return "ESHUTDOWN: server is shutting down"
	}
	return fmt.Sprintf("error number %d", uint32(e))
}
