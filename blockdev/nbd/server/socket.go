package server

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// errStalled: the peer neither sent the rest of a request nor took a reply for
// Options.StallTimeout.
var errStalled = errors.New("the client has stopped in the middle of a message")

// Socket options of TCP connections: a peer that vanished is found in about 15 s,
// whether it owes us an acknowledgement or the connection is idle.
const (
	tcpUserTimeout = 15 * time.Second
	keepAliveIdle  = 6 * time.Second
	keepAliveEvery = 3 * time.Second
	keepAliveCount = 3
)

// grownSocketBytes is what each direction of the socket is given once the
// connection has shown a large request. Half of it made 1 MiB requests slower,
// twice did not make them faster (unix socket, Linux 6.18).
const grownSocketBytes = 2 << 20

// socket does the system calls of one connection. Go's poller waits; the calls
// themselves are made here, because deadlines shall be set only when a message is
// held up in its middle (setting one for each message costs as much as a small
// request), and because a read buffer shall be taken only when there is something
// to read.
//
// read is for one goroutine, the writing methods are for one at a time.
type socket struct {
	nc    net.Conn
	raw   syscall.RawConn
	stall time.Duration
	// tls encrypts all that is read and written; nil before STARTTLS.
	tls *secured
	// fixed: one deadline holds for all that is read and written (the handshake's),
	// and the stall timeout is not used.
	fixed bool
	// interrupted: reads end with os.ErrDeadlineExceeded from now on.
	interrupted atomic.Bool
	// woken: the read that waits, or the next one, shall look at the socket again.
	woken atomic.Bool
	// waiting: a read has found nothing and waits. Who finds it set after he has seen
	// that the socket holds nothing knows that all that had come is in hand.
	waiting atomic.Bool
	// emptied is called whenever a read finds that nothing is there.
	emptied func()

	// readUntil is the deadline of reads, as long as nobody interrupts or wakes them.
	readUntil time.Time

	// The read under way. The function value is made once, so that a read does not
	// allocate.
	readOnce  func(fd uintptr) bool
	readInto  func() []byte // the buffer to fill, asked when data may be there
	readPipe  int           // or the pipe, if readBytes is not 0,
	readBytes int           // and how much of it
	readIdle  func() bool   // nothing was there: true if no message is half read
	readCount int
	readErr   error
	readArmed bool

	// The write under way.
	writeOnce  func(fd uintptr) bool
	writeBufs  [][]byte
	writeFlags int
	writeErr   error
	writeArmed bool
}

func newSocket(nc net.Conn, stall time.Duration) (*socket, error) {
	sc, ok := nc.(syscall.Conn)
	if !ok {
		return nil, fmt.Errorf("%T is not a socket", nc)
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return nil, err
	}
	s := &socket{nc: nc, raw: raw, stall: stall, emptied: func() {}}
	s.readOnce, s.writeOnce = s.tryRead, s.tryWrite
	if tc, ok := nc.(*net.TCPConn); ok {
		tc.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: keepAliveIdle, Interval: keepAliveEvery, Count: keepAliveCount})
		raw.Control(func(fd uintptr) {
			unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(tcpUserTimeout/time.Millisecond))
		})
	}
	return s, nil
}

// grow gives the socket large buffers, past net.core.[rw]mem_max if we may.
func (s *socket) grow() {
	s.raw.Control(func(fd uintptr) {
		for force, plain := range map[int]int{unix.SO_SNDBUFFORCE: unix.SO_SNDBUF, unix.SO_RCVBUFFORCE: unix.SO_RCVBUF} {
			if unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, force, grownSocketBytes) != nil {
				unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, plain, grownSocketBytes)
			}
		}
	})
}

// read waits for data and puts some into the slice that into returns. idle is
// asked each time nothing is there; if it returns false a message is half read and
// the peer has only the stall timeout to go on.
func (s *socket) read(into func() []byte, idle func() bool) (int, error) {
	s.readInto, s.readIdle, s.readErr = into, idle, nil
	err := s.raw.Read(s.readOnce)
	for err != nil && s.lookAgain(err) {
		err = s.raw.Read(s.readOnce)
	}
	if s.readArmed {
		s.readArmed = false
		s.setReadDeadline(time.Time{})
	}
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		if s.interrupted.Load() {
			return 0, err
		}
		return 0, errStalled
	case err != nil:
		return 0, err
	case s.readErr != nil:
		return 0, s.readErr
	case s.readCount == 0:
		return 0, io.EOF
	}
	return s.readCount, nil
}

// readToPipe is read of at most n bytes of a message into a pipe. errPipeFull: the pipe
// takes none of what is there.
func (s *socket) readToPipe(pipe, n int) (int, error) {
	s.readPipe, s.readBytes = pipe, n
	n, err := s.read(nothing, never)
	s.readBytes = 0
	return n, err
}

func nothing() []byte { return nil }

func (s *socket) tryRead(fd uintptr) bool {
	p := s.readInto()
	s.waiting.Store(false)
	for {
		n, err := 0, error(nil)
		switch {
		case s.readBytes > 0:
			n, err = s.splice(int(fd))
		case s.tls != nil:
			n, err = s.tls.receive(int(fd), p)
		default:
			n, err = unix.Read(int(fd), p)
		}
		switch err {
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			if !s.readIdle() && !s.fixed && !s.readArmed {
				s.readArmed = true
				s.setReadDeadline(time.Now().Add(s.stall))
			}
			s.emptied()
			s.waiting.Store(true)
			return false
		}
		s.readCount, s.readErr = n, err
		return true
	}
}

// splice is read(2) into the pipe.
func (s *socket) splice(fd int) (int, error) {
	n, err := unix.Splice(fd, nil, s.readPipe, nil, s.readBytes, unix.SPLICE_F_NONBLOCK|unix.SPLICE_F_MOVE)
	if err == unix.EAGAIN {
		if held, e := unix.IoctlGetInt(fd, unix.TIOCINQ); e == nil && held > 0 {
			// Either it has come this moment, or there is no room.
			n, err = unix.Splice(fd, nil, s.readPipe, nil, s.readBytes, unix.SPLICE_F_NONBLOCK|unix.SPLICE_F_MOVE)
			if err == unix.EAGAIN {
				err = errPipeFull
			}
		}
	}
	return int(n), err
}

// setFixedDeadline bounds everything that follows until clearFixedDeadline.
func (s *socket) setFixedDeadline(t time.Time) {
	s.fixed = true
	s.nc.SetWriteDeadline(t)
	s.setReadDeadline(t)
}

func (s *socket) clearFixedDeadline() {
	s.fixed = false
	s.nc.SetWriteDeadline(time.Time{})
	s.setReadDeadline(time.Time{})
}

// setReadDeadline sets a deadline unless the socket is interrupted or woken, whose
// deadline is in the past and must win.
func (s *socket) setReadDeadline(t time.Time) {
	s.readUntil = t
	s.nc.SetReadDeadline(t)
	if s.interrupted.Load() || s.woken.Load() {
		s.nc.SetReadDeadline(time.Unix(1, 0))
	}
}

// wake has the read that waits look at the socket once more, and so call emptied. It
// may be called from any goroutine.
func (s *socket) wake() {
	s.woken.Store(true)
	s.nc.SetReadDeadline(time.Unix(1, 0))
}

// lookAgain reports whether a read has ended because of wake, and sets its deadline
// back.
func (s *socket) lookAgain(err error) bool {
	if s.interrupted.Load() || !errors.Is(err, os.ErrDeadlineExceeded) || !s.woken.Swap(false) {
		return false
	}
	s.setReadDeadline(s.readUntil)
	return true
}

// held is how many bytes the peer has sent that nobody has read yet. ok is false once
// the socket is closed.
func (s *socket) held() (n int, ok bool) {
	err := s.raw.Control(func(fd uintptr) {
		var e error
		n, e = unix.IoctlGetInt(int(fd), unix.TIOCINQ)
		ok = e == nil
	})
	return n, ok && err == nil
}

// unread is how much has come that held does not count and read has not returned, at
// most. Only the goroutine that reads may ask.
func (s *socket) unread() int {
	if s.tls == nil {
		return 0
	}
	return s.tls.unread()
}

// interrupt makes the read that waits, and all later ones, end with
// os.ErrDeadlineExceeded. It may be called from any goroutine.
func (s *socket) interrupt() {
	s.interrupted.Store(true)
	s.nc.SetReadDeadline(time.Unix(1, 0))
}

// resume allows reads until t, after an interrupt. They end with
// os.ErrDeadlineExceeded then.
func (s *socket) resume(t time.Time) {
	s.fixed = true
	s.readUntil = t
	s.nc.SetReadDeadline(t)
}

// write sends all of bufs, whose elements it changes. more announces that the rest
// of a message follows at once (MSG_MORE).
func (s *socket) write(bufs [][]byte, more bool) error {
	if s.tls != nil {
		return s.tls.send(bufs)
	}
	flags := 0
	if more {
		flags = unix.MSG_MORE
	}
	return s.writePlain(bufs, flags)
}

// writePlain sends all of bufs as they are.
func (s *socket) writePlain(bufs [][]byte, flags int) error {
	s.writeBufs, s.writeErr, s.writeFlags = bufs, nil, flags
	return s.endWrite(s.raw.Write(s.writeOnce))
}

func (s *socket) tryWrite(fd uintptr) bool {
	for len(s.writeBufs) > 0 {
		n, err := 0, error(nil)
		if len(s.writeBufs) == 1 {
			n, err = unix.SendmsgN(int(fd), s.writeBufs[0], nil, nil, s.writeFlags)
		} else {
			n, err = unix.SendmsgBuffers(int(fd), s.writeBufs[:min(len(s.writeBufs), maxIovecs)], nil, nil, s.writeFlags)
		}
		switch err {
		case nil:
			s.writeBufs = advance(s.writeBufs, n)
		case unix.EINTR:
		case unix.EAGAIN:
			s.armWrite()
			return false
		default:
			s.writeErr = err
			return true
		}
	}
	return true
}

const maxIovecs = 1024 // IOV_MAX, linux/uio.h

// advance drops the first n bytes of bufs.
func advance(bufs [][]byte, n int) [][]byte {
	for len(bufs) > 0 && n >= len(bufs[0]) {
		n -= len(bufs[0])
		bufs = bufs[1:]
	}
	if n > 0 {
		bufs[0] = bufs[0][n:]
	}
	return bufs
}

// sendfile sends n bytes of the file at off. sent is less than n with fileErr when
// the file could not be read; err is an error of the socket.
func (s *socket) sendfile(file int, off int64, n int) (sent int, fileErr, err error) {
	s.writeErr = nil
	err = s.endWrite(s.raw.Write(func(fd uintptr) bool {
		for sent < n {
			at := off + int64(sent)
			k, err := unix.Sendfile(int(fd), file, &at, n-sent)
			switch {
			case err == unix.EINTR:
			case err == unix.EAGAIN:
				s.armWrite()
				return false
			case err == unix.EPIPE || err == unix.ECONNRESET || err == unix.ENOTCONN || err == unix.ETIMEDOUT:
				s.writeErr = err
				return true
			case err != nil:
				fileErr = err
				return true
			case k == 0:
				fileErr = io.ErrUnexpectedEOF
				return true
			default:
				sent += k
			}
		}
		return true
	}))
	return sent, fileErr, err
}

func (s *socket) armWrite() {
	if s.fixed {
		return
	}
	s.writeArmed = true
	s.nc.SetWriteDeadline(time.Now().Add(s.stall))
}

func (s *socket) endWrite(err error) error {
	if s.writeArmed {
		s.writeArmed = false
		s.nc.SetWriteDeadline(time.Time{})
	}
	s.writeBufs = nil
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return errStalled
	}
	if err == nil {
		err = s.writeErr
	}
	return err
}
