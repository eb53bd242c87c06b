package client

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/keelblock/keelblock/blockdev"
	"github.com/keelblock/keelblock/blockdev/nbd"
)

// Client is an export of an NBD server as a Device. After Dial it is a Trimmer,
// Zeroer and ExtentLister too; what the server cannot do of that is done by other
// means (a trim does nothing, zeroes are written, everything is data).
type Client struct {
	uri        string
	nc         net.Conn
	size       int64
	flags      uint16
	maxPayload int64
	structured bool
	allocation bool // base:allocation is negotiated, with contextID
	contextID  uint32
	encrypted  bool

	closed atomic.Bool

	// send is held while a request is written.
	send    sync.Mutex
	scratch []byte
	bufs    net.Buffers

	// read is the reading side; only its holder of the turn uses it.
	read *bufio.Reader

	// mu guards what follows.
	mu       sync.Mutex
	cookie   uint64
	requests map[uint64]*request
	// reading: one of the callers reads for all.
	reading bool
	// err ended the connection.
	err error
}

// readBuffer is how much is read beyond a reply's header at once. It is small, as
// what comes with the header of a long reply is copied once more.
const readBuffer = 8 << 10

// request is one request that has been sent.
type request struct {
	nbd.Request
	p []byte // the buffer of a read
	// extents gathers the answer to a block status.
	extents []nbd.Descriptor
	err     error
	done    bool
	// waiting: it was sent, and its caller may be asked to read.
	waiting bool
	// wake gets one token when the request is done, or when its caller shall read.
	wake chan struct{}
}

var (
	_ blockdev.Device       = (*Client)(nil)
	_ blockdev.Trimmer      = (*Client)(nil)
	_ blockdev.Zeroer       = (*Client)(nil)
	_ blockdev.ExtentLister = (*Client)(nil)
)

// Dial connects to the export that the URI names, nbd+unix:///NAME?socket=PATH or
// nbd://HOST:PORT/NAME. ctx bounds the connecting and the handshake only.
//
// nbds+unix:// and nbds:// insist on TLS. tls-certificates=DIR in the query names a
// folder for LoadTLS, without which the authorities of this machine are trusted;
// tls-hostname=NAME is what the server's certificate must be for, if that is neither
// the host of the URI nor, on a unix socket, localhost. So a URI names files of this
// machine: it must come from somebody who may.
func Dial(ctx context.Context, uri string) (*Client, error) {
	a, err := parseURI(uri)
	if err != nil {
		return nil, fmt.Errorf("NBD client: %w", err)
	}
	var config *tls.Config
	if a.tls.on {
		if config, err = a.tls.config(); err != nil {
			return nil, fmt.Errorf("NBD client: %w", err)
		}
	}
	var dialer net.Dialer
	nc, err := dialer.DialContext(ctx, a.network, a.addr)
	if err != nil {
		return nil, fmt.Errorf("NBD client: %w", err)
	}
	c := &Client{uri: uri, nc: nc, maxPayload: nbd.MaxBlockSize, requests: make(map[uint64]*request), read: bufio.NewReaderSize(nc, readBuffer)}
	setTimeouts(nc)
	stop := context.AfterFunc(ctx, func() { nc.SetDeadline(time.Unix(1, 0)) })
	err = c.negotiate(a.export, config)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		nc.Close()
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return nil, fmt.Errorf("connect to %s: %w", uri, err)
	}
	return c, nil
}

// setTimeouts has the kernel find a server that vanished within about 15 s.
func setTimeouts(nc net.Conn) {
	tc, ok := nc.(*net.TCPConn)
	if !ok {
		return
	}
	tc.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: 6 * time.Second, Interval: 3 * time.Second, Count: 3})
	if raw, err := tc.SyscallConn(); err == nil {
		raw.Control(func(fd uintptr) { unix.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 15_000) })
	}
}

// Size is the size of the export when the connection was made.
func (c *Client) Size() int64 { return c.size }

// ReadOnly reports whether the server refuses changes.
func (c *Client) ReadOnly() bool { return c.flags&nbd.FlagReadOnly != 0 }

// CanMultiConn reports whether a Flush on any connection to the export covers the
// writes of all.
func (c *Client) CanMultiConn() bool { return c.flags&nbd.FlagCanMultiConn != 0 }

// ReadAt implements blockdev.Device.
func (c *Client) ReadAt(p []byte, off int64) (int, error) {
	if err := c.check("read", off, int64(len(p))); err != nil {
		return 0, err
	}
	done := 0
	for done < len(p) {
		n := int(min(int64(len(p)-done), c.maxPayload))
		r := &request{Request: nbd.Request{Type: nbd.CmdRead, Offset: uint64(off) + uint64(done), Length: uint32(n)}, p: p[done : done+n]}
		if err := c.do(r, nil); err != nil {
			return done, c.fail("read", off, int64(len(p)), err)
		}
		done += n
	}
	return done, nil
}

// WriteAt implements blockdev.Device.
func (c *Client) WriteAt(p []byte, off int64) (int, error) {
	if err := c.checkWrite("write", off, int64(len(p))); err != nil {
		return 0, err
	}
	done := 0
	for done < len(p) {
		n := int(min(int64(len(p)-done), c.maxPayload))
		r := &request{Request: nbd.Request{Type: nbd.CmdWrite, Offset: uint64(off) + uint64(done), Length: uint32(n)}}
		if err := c.do(r, p[done:done+n]); err != nil {
			return done, c.fail("write", off, int64(len(p)), err)
		}
		done += n
	}
	return done, nil
}

// Flush implements blockdev.Device. It fails when the server has never offered to
// flush, as then nothing can be known to be durable.
func (c *Client) Flush() error {
	if err := c.check("flush", 0, 0); err != nil {
		return err
	}
	if c.flags&nbd.FlagSendFlush == 0 {
		if c.ReadOnly() {
			return nil
		}
		return c.fail("flush", 0, 0, blockdev.ErrNotSupported)
	}
	if err := c.do(&request{Request: nbd.Request{Type: nbd.CmdFlush}}, nil); err != nil {
		return c.fail("flush", 0, 0, err)
	}
	return nil
}

// maxRange bounds one trim or zero request: 1 GiB, well inside 32 bits, and not too
// long for the server to be busy with.
const maxRange = 1 << 30

// Trim implements blockdev.Trimmer.
func (c *Client) Trim(off, n int64) error {
	if err := c.checkWrite("trim", off, n); err != nil {
		return err
	}
	if c.flags&nbd.FlagSendTrim == 0 {
		return nil
	}
	return c.ranges("trim", nbd.Request{Type: nbd.CmdTrim}, off, n)
}

// WriteZeroes implements blockdev.Zeroer.
func (c *Client) WriteZeroes(off, n int64, mayPunch bool) error {
	if err := c.checkWrite("zero", off, n); err != nil {
		return err
	}
	if c.flags&nbd.FlagSendWriteZeroes == 0 {
		zeros := make([]byte, min(n, 1<<20))
		for end := off + n; off < end; off += int64(len(zeros)) {
			if _, err := c.WriteAt(zeros[:min(end-off, int64(len(zeros)))], off); err != nil {
				return err
			}
		}
		return nil
	}
	r := nbd.Request{Type: nbd.CmdWriteZeroes}
	if !mayPunch {
		r.Flags = nbd.CmdFlagNoHole
	}
	return c.ranges("zero", r, off, n)
}

func (c *Client) ranges(op string, r nbd.Request, off, n int64) error {
	for end := off + n; off < end; {
		step := min(end-off, maxRange)
		r.Offset, r.Length = uint64(off), uint32(step)
		if err := c.do(&request{Request: r}, nil); err != nil {
			return c.fail(op, off, step, err)
		}
		off += step
	}
	return nil
}

// Extents implements blockdev.ExtentLister with base:allocation.
func (c *Client) Extents(off, n int64, yield func(blockdev.Extent, blockdev.ExtentStatus) bool) error {
	if err := c.check("list extents of", off, n); err != nil {
		return err
	}
	if !c.allocation {
		if n > 0 {
			yield(blockdev.Extent{Offset: off, Length: n}, blockdev.ExtentStatus{})
		}
		return nil
	}
	for end := off + n; off < end; {
		step := min(end-off, maxRange)
		r := &request{Request: nbd.Request{Type: nbd.CmdBlockStatus, Offset: uint64(off), Length: uint32(step)}}
		if err := c.do(r, nil); err != nil {
			return c.fail("list extents of", off, step, err)
		}
		limit := off + step
		for _, d := range r.extents {
			// The last extent may pass the range that was asked for.
			e := blockdev.Extent{Offset: off, Length: min(int64(d.Length), limit-off)}
			if e.Length == 0 {
				break
			}
			s := blockdev.ExtentStatus{Hole: d.Flags&nbd.StateHole != 0, Zero: d.Flags&nbd.StateZero != 0}
			s.Hole = s.Hole && s.Zero // a hole with unknown content is data to us
			if !yield(e, s) {
				return nil
			}
			off = e.End()
		}
	}
	return nil
}

// Close tells the server that this client leaves, and closes the connection.
// Requests that are still under way fail.
func (c *Client) Close() error {
	if c.closed.Swap(true) {
		return nil
	}
	c.mu.Lock()
	broken := c.err != nil
	c.mu.Unlock()
	if !broken && c.send.TryLock() {
		c.nc.SetWriteDeadline(time.Now().Add(time.Second))
		c.nc.Write(nbd.AppendRequest(nil, nbd.Request{Type: nbd.CmdDisc})) // best effort
		c.send.Unlock()
	}
	err := c.nc.Close()
	c.breakOff(fmt.Errorf("%w", blockdev.ErrClosed))
	// The reader closes it when the server answers DISC first, which may also leave the
	// end of the TLS session unsaid.
	if err != nil && !broken && !c.encrypted && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("close %s: %w", c.uri, err)
	}
	return nil
}

func (c *Client) check(op string, off, n int64) error {
	if c.closed.Load() {
		return c.fail(op, off, n, blockdev.ErrClosed)
	}
	if err := blockdev.CheckRange(off, n, c.size); err != nil {
		return c.fail(op, off, n, err)
	}
	return nil
}

func (c *Client) checkWrite(op string, off, n int64) error {
	if err := c.check(op, off, n); err != nil {
		return err
	}
	if c.ReadOnly() {
		return c.fail(op, off, n, blockdev.ErrReadOnly)
	}
	return nil
}

func (c *Client) fail(op string, off, n int64, err error) error {
	return fmt.Errorf("%s %s at %d+%d: %w", op, c.uri, off, n, err)
}

// remoteError is the error of the server, with the text that it sent. It is the
// error of package blockdev that stands for it, if there is one.
func remoteError(errno nbd.Errno, text string) error {
	err := error(errno)
	switch errno {
	case nbd.EPERM:
		err = fmt.Errorf("%w (%w)", blockdev.ErrReadOnly, errno)
	case nbd.ENOSPC:
		err = fmt.Errorf("%w (%w)", blockdev.ErrNoSpace, errno)
	case nbd.ENOTSUP:
		err = fmt.Errorf("%w (%w)", blockdev.ErrNotSupported, errno)
	}
	if text != "" {
		return fmt.Errorf("the server says: %s: %w", text, err)
	}
	return err
}

// noEOF names the end of the stream, which is never an orderly end for a client,
// whether a read or a write has met it.
func noEOF(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, io.EOF):
		return fmt.Errorf("the server has closed the connection: %w", io.ErrUnexpectedEOF)
	case errors.Is(err, syscall.EPIPE), errors.Is(err, syscall.ECONNRESET):
		return fmt.Errorf("the server has closed the connection: %w (%w)", io.ErrUnexpectedEOF, err)
	}
	return err
}
