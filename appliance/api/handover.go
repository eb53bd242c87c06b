package api

import (
	"context"
	"net"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// FileListener is l, a listener on a unix socket, with connections that take a file which
// the client hands over beside the bytes of a request (SCM_RIGHTS, unix(7)). It is for
// http.Server.Serve, together with ConnContext. What the daemon may do with the file is
// what the client opened it for.
func FileListener(l net.Listener) net.Listener { return fileListener{l} }

type fileListener struct{ net.Listener }

// Accept waits for a connection.
func (l fileListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if u, ok := c.(*net.UnixConn); ok && err == nil {
		return &fileConn{UnixConn: u}, nil
	}
	return c, err
}

// fileConn keeps the first file that came with what was read until a request takes it. The
// kernel closes files for which there is no room in Read, and we what is one too many.
type fileConn struct {
	*net.UnixConn

	mu     sync.Mutex
	file   *os.File
	closed bool
}

// Read reads bytes, and files beside them.
func (c *fileConn) Read(p []byte) (int, error) {
	var room [64]byte
	n, got, _, _, err := c.ReadMsgUnix(p, room[:])
	c.keep(room[:got])
	return n, err
}

// keep takes the files of a control message, or closes them.
func (c *fileConn) keep(control []byte) {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return // there is none that could be closed
	}
	for i := range messages {
		fds, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			continue
		}
		for _, fd := range fds {
			f := os.NewFile(uintptr(fd), "a file that was handed over")
			c.mu.Lock()
			if c.file == nil && !c.closed {
				c.file, f = f, nil
			}
			c.mu.Unlock()
			if f != nil {
				_ = f.Close() // nothing was done with it
			}
		}
	}
}

// take gives the file to a request, which closes it; nil: there is none.
func (c *fileConn) take() *os.File {
	c.mu.Lock()
	defer c.mu.Unlock()
	f := c.file
	c.file = nil
	return f
}

// Close ends the connection, and a file that nobody took.
func (c *fileConn) Close() error {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	if f := c.take(); f != nil {
		_ = f.Close() // nothing was done with it
	}
	return c.UnixConn.Close()
}

var _ syscall.Conn = (*fileConn)(nil) // for ConnContext

type fileKey struct{}

// handedOver is the file that came with a request, or nil. The caller closes it.
func handedOver(ctx context.Context) *os.File {
	if c, ok := ctx.Value(fileKey{}).(*fileConn); ok {
		return c.take()
	}
	return nil
}
