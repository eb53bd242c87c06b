package cli

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// firstHandedFD is the first descriptor that the starter hands over (SD_LISTEN_FDS_START
// of sd_listen_fds(3)).
const firstHandedFD = 3

// maxHandedFDs bounds LISTEN_FDS, which anybody may have set.
const maxHandedFDs = 1024

// handed is a descriptor that the starter of this process has opened for it, by the
// protocol of sd_listen_fds(3) that systemd and libnbd speak.
type handed struct {
	name string // FileDescriptorName=, or ""
	file *os.File
}

// handedOver takes the descriptors that were handed over to this process, none if they
// were meant for another. It may be called once.
func (a *app) handedOver() ([]handed, error) {
	if pid, err := strconv.Atoi(a.Getenv("LISTEN_PID")); err != nil || pid != os.Getpid() {
		return nil, nil
	}
	n, err := strconv.Atoi(a.Getenv("LISTEN_FDS"))
	if err != nil || n < 0 || n > maxHandedFDs {
		return nil, usageError{fmt.Errorf("LISTEN_FDS=%q is no number from 0 to %d", a.Getenv("LISTEN_FDS"), maxHandedFDs)}
	}
	names := strings.Split(a.Getenv("LISTEN_FDNAMES"), ":")
	out := make([]handed, n)
	for i := range out {
		fd := firstHandedFD + i
		if i < len(names) {
			out[i].name = names[i]
		}
		if _, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE); err != nil {
			return nil, usageError{fmt.Errorf("descriptor %d of LISTEN_FDS=%d is no socket: %w", fd, n, err)}
		}
		unix.CloseOnExec(fd)
		out[i].file = os.NewFile(uintptr(fd), fmt.Sprintf("LISTEN_FDS %d %s", fd, out[i].name))
	}
	return out, nil
}

// listener is the socket as a listener; ok is false if it is a connection.
func (h handed) listener() (l net.Listener, ok bool, err error) {
	accepts, err := unix.GetsockoptInt(int(h.file.Fd()), unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	if err != nil || accepts == 0 {
		return nil, false, err
	}
	l, err = net.FileListener(h.file)
	return l, true, err
}
