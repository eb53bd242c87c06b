package hostdev

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// device is what the kernel is told of a device.
type device struct {
	index     uint32
	backend   string
	sizeBytes uint64
	flags     uint16 // transmission flags
	timeout   time.Duration
	dead      time.Duration
	sockets   []int
}

// kernel is the kernel's nbd driver. Its methods may be called from several
// goroutines; each call is one conversation.
type kernel struct {
	// open begins a conversation with generic netlink.
	open func() (conversation, error)
}

// conversation carries datagrams to the kernel and back.
type conversation interface {
	send(datagram []byte) error
	receive(into []byte) (int, error)
	close() error
}

// connect binds sockets to a device that is free, which the driver makes if there is
// none of that number.
func (k *kernel) connect(d device) error {
	a := attrs{}.u32(attrIndex, d.index).
		u64(attrSizeBytes, d.sizeBytes).
		u64(attrBlockSizeBytes, blockSize).
		u64(attrTimeout, seconds(d.timeout)).
		u64(attrDeadConnTimeout, seconds(d.dead)).
		u64(attrServerFlags, uint64(d.flags)).
		nest(attrSockets, socketList(d.sockets)).
		text(attrBackendIdentifier, d.backend)
	return k.call(cmdConnect, a, nil)
}

// reconnect replaces dead sockets of a device of ours. Success does not mean that any
// was dead; see the package comment.
func (k *kernel) reconnect(d device) error {
	a := attrs{}.u32(attrIndex, d.index).
		text(attrBackendIdentifier, d.backend).
		nest(attrSockets, socketList(d.sockets))
	return k.call(cmdReconfigure, a, nil)
}

// resize tells the size anew.
func (k *kernel) resize(index uint32, backend string, sizeBytes uint64) error {
	a := attrs{}.u32(attrIndex, index).
		text(attrBackendIdentifier, backend).
		u64(attrSizeBytes, sizeBytes).
		u64(attrBlockSizeBytes, blockSize)
	return k.call(cmdReconfigure, a, nil)
}

// disconnect frees a device. What it has not written is lost.
func (k *kernel) disconnect(index uint32) error {
	return k.call(cmdDisconnect, attrs{}.u32(attrIndex, index), nil)
}

func socketList(fds []int) attrs {
	var list attrs
	for _, fd := range fds {
		list = list.nest(sockItem, attrs{}.u32(sockFD, uint32(fd)))
	}
	return list
}

// seconds rounds up, so that a short time does not become none.
func seconds(d time.Duration) uint64 {
	return uint64((d + time.Second - 1) / time.Second)
}

// call asks the driver and gives each reply to reply, which may be nil.
func (k *kernel) call(command uint8, a attrs, reply func(attrs)) error {
	c, err := k.open()
	if err != nil {
		return err
	}
	defer c.close() // nothing is buffered in it
	family, err := findFamily(c)
	if err != nil {
		return err
	}
	err = converse(c, request(family, command, familyVersion, 2, a), 2, reply)
	switch {
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("%w: %w", ErrNotPermitted, err)
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("%w: %w", ErrBusy, err)
	}
	return err
}

// findFamily asks for the number of the driver's family, which differs from boot to
// boot.
func findFamily(c conversation) (uint16, error) {
	var family uint16
	var damage error
	b := request(unix.GENL_ID_CTRL, unix.CTRL_CMD_GETFAMILY, 1, 1, attrs{}.text(unix.CTRL_ATTR_FAMILY_NAME, familyName))
	err := converse(c, b, 1, func(a attrs) {
		damage = each(a, func(kind uint16, v []byte) bool {
			if kind == unix.CTRL_ATTR_FAMILY_ID && len(v) >= 2 {
				family = binary.NativeEndian.Uint16(v)
			}
			return true
		})
	})
	switch {
	case errors.Is(err, unix.ENOENT):
		return 0, ErrNoDriver
	case err != nil:
		return 0, fmt.Errorf("find the netlink family %q: %w", familyName, err)
	case damage != nil || family == 0:
		return 0, fmt.Errorf("find the netlink family %q: the answer has no number: %w", familyName, errors.Join(damage))
	}
	return family, nil
}

// converse sends a request and reads until its acknowledgement.
func converse(c conversation, datagram []byte, sequence uint32, reply func(attrs)) error {
	if reply == nil {
		reply = func(attrs) {}
	}
	if err := c.send(datagram); err != nil {
		return err
	}
	buf := make([]byte, 64<<10)
	for {
		n, err := c.receive(buf)
		if err != nil {
			return fmt.Errorf("wait for the kernel's answer: %w", err)
		}
		if err := answer(buf[:n], sequence, reply); err != errMore {
			return err
		}
	}
}

// netlinkSocket is a conversation with the real kernel. It answers before send
// returns, so a receive that waits for long is a fault, and bounded.
type netlinkSocket struct{ fd int }

func openNetlink() (conversation, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_GENERIC)
	if err != nil {
		return nil, fmt.Errorf("open generic netlink: %w", err)
	}
	limit := unix.Timeval{Sec: 30}
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit)); err != nil {
		return nil, errors.Join(fmt.Errorf("open generic netlink: %w", err), unix.Close(fd))
	}
	return netlinkSocket{fd}, nil
}

func (s netlinkSocket) send(b []byte) error {
	return unix.Sendto(s.fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
}

func (s netlinkSocket) receive(into []byte) (int, error) {
	for {
		n, _, err := unix.Recvfrom(s.fd, into, 0)
		if err != unix.EINTR {
			return n, err
		}
	}
}

func (s netlinkSocket) close() error { return unix.Close(s.fd) }

var flushIO = sync.OnceValue(func() error {
	_, _, errno := syscall.AllThreadsSyscall(unix.SYS_PRCTL, unix.PR_SET_IO_FLUSHER, 1, 0)
	if errno != 0 {
		return fmt.Errorf("become an I/O flusher: %w", errno)
	}
	return nil
})

// FlushIO tells the kernel that this process carries out I/O for it (prctl
// PR_SET_IO_FLUSHER, since Linux 5.6), on all threads: its own allocations then never
// wait for the devices that it serves, and its writes are throttled less. It cannot be
// taken back, and threads that are made later inherit it. It needs CAP_SYS_RESOURCE; without it all works until memory is short.
func FlushIO() error { return flushIO() }
