package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/keelblock/keelblock/blockdev/nbd"
)

// How a connection is asked to end, in rising order.
const (
	stopNot      = int32(iota)
	stopSilently // requests that were not begun stay unanswered: the client may repeat them elsewhere
	stopRefusing // they are answered with ESHUTDOWN
)

// refuseFor is how long a connection that is being refused stays readable, so that
// what was on its way still gets its answer.
const refuseFor = 20 * time.Millisecond

// refuseAtMost ends that for a client that sends on and on, unless requests that
// were begun are still under way.
const refuseAtMost = 500 * time.Millisecond

// refusePayloadFor is how long the payload of a write that is being refused may
// take to come.
const refusePayloadFor = 5 * time.Second

var (
	errDisconnected = errors.New("the client has disconnected")
	errStopped      = errors.New("the export or the server is going away")
)

// conn is one connection. Its goroutine runs serve; only that goroutine uses in,
// batch and the fields of the handshake. Workers use out, exp and the counters.
type conn struct {
	srv  *Server
	sock *socket
	peer Peer
	in   input
	out  replies

	// Results of the handshake, constant afterwards.
	exp        *export
	size       int64 // that was told the client
	follows    bool  // requests may reach as far as the Device does now
	structured bool  // structured replies, or extended headers
	extended   bool  // extended headers
	// contexts are those that BLOCK_STATUS tells of.
	contexts selection

	// batch gathers the replies to the requests of one read.
	batch *buffer
	grown bool // the socket has large buffers
	// noPipe: large writes of this connection go through memory; see pipe.go.
	noPipe bool

	// slots bounds the workers; workers waits for them.
	slots   chan struct{}
	workers sync.WaitGroup
	// fences are clients that wait for this connection; see barrier.go.
	fences fences
	// underWay is how many workers there are, for refuseRequests.
	underWay atomic.Int64

	stopping atomic.Int32
	// stopped closes with the first call of stop.
	stopped chan struct{}
	// ctx ends when the connection is cut: nobody waits for memory any more.
	ctx    context.Context
	cancel context.CancelFunc

	counters counters
}

func newConn(s *Server, sock *socket) *conn {
	c := &conn{srv: s, sock: sock, peer: peerOf(sock.nc, sock.raw), slots: make(chan struct{}, s.o.Workers), stopped: make(chan struct{})}
	c.fences.now = newChanges()
	sock.emptied = func() { c.passFences(true, false) }
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.in.init(sock, &s.buffers)
	c.out.init(sock)
	return c
}

// serve runs the connection to its end, and says why it came.
func (c *conn) serve() error {
	err := c.negotiate()
	if err == nil {
		c.srv.o.Logger.Debug("NBD client connected", "export", c.exp.Name, "peer", c.peer.Addr, "uid", c.peer.UID, "pid", c.peer.PID,
			"tls", c.peer.TLS, "common_name", c.peer.CommonName)
		err = c.transmit()
		c.passFences(false, true)
		c.flush()
		if c.mayStillRead(err) {
			c.workers.Wait()
		}
	} else {
		err = c.stopError(err)
		c.passFences(false, true)
		if !errors.Is(err, errAborted) {
			c.counters.handshakesFailed.Add(1)
		}
	}
	if errors.Is(err, errStalled) || errors.Is(c.out.failed(), errStalled) {
		c.counters.stalledClients.Add(1)
	}
	if t := c.sock.tls; t != nil && (c.mayStillRead(err) || errors.Is(err, errAborted)) {
		t.goodbye()
	}
	c.abort()
	c.workers.Wait()
	c.contexts.close()
	if t := c.sock.tls; t != nil {
		t.drop()
	}
	c.in.drop()
	if c.batch != nil {
		c.batch.release()
	}
	c.logEnd(err)
	c.srv.detach(c)
	return err
}

// orderly reports whether a connection has ended as connections do.
func orderly(err error) bool {
	return errors.Is(err, errDisconnected) || errors.Is(err, errStopped) || errors.Is(err, errAborted) || err == io.EOF
}

// mayStillRead reports whether the client may be waiting for the replies to what
// is under way: unless it has gone wrong, or is gone.
func (c *conn) mayStillRead(err error) bool {
	return errors.Is(err, errDisconnected) || errors.Is(err, errStopped) || err == io.EOF
}

func (c *conn) logEnd(err error) {
	log, name := c.srv.o.Logger, ""
	if c.exp != nil {
		name = c.exp.Name
	}
	if orderly(err) {
		log.Debug("NBD client disconnected", "export", name, "peer", c.peer.Addr)
	} else {
		log.Info("NBD client was disconnected", "export", name, "peer", c.peer.Addr, "pid", c.peer.PID, "err", err)
	}
}

// stop asks the connection to end after the requests that are under way. It may be
// called from any goroutine, with Server.mu held.
func (c *conn) stop(mode int32) {
	for {
		old := c.stopping.Load()
		if old >= mode {
			break
		}
		if c.stopping.CompareAndSwap(old, mode) {
			if old == stopNot {
				close(c.stopped)
			}
			break
		}
	}
	c.sock.interrupt()
}

// abort cuts the connection. It may be called from any goroutine, any number of
// times.
func (c *conn) abort() {
	c.cancel()
	c.sock.nc.Close()
}

// transmit carries out requests until the connection ends, and says why it did.
func (c *conn) transmit() error {
	for {
		r, err := c.next()
		if err != nil {
			if err = c.stopError(err); err == errStopped {
				switch mode := c.stopping.Load(); {
				case mode == stopRefusing:
					c.refuseRequests()
				case mode == stopSilently && c.follows:
					c.finish()
				}
			}
			return err
		}
		if err := c.carryOut(r); err != nil {
			return c.stopError(err)
		}
	}
}

// stopError tells a read that stop has interrupted from one that failed.
func (c *conn) stopError(err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) && c.stopping.Load() != stopNot {
		return errStopped
	}
	return err
}

// next returns the next request, or errStopped when the connection shall end.
func (c *conn) next() (request, error) {
	if c.stopping.Load() != stopNot {
		return request{}, errStopped
	}
	c.passFences(false, false)
	return c.readRequest()
}

// readRequest returns the next request. Before it waits for the socket it sends the
// replies that were gathered.
func (c *conn) readRequest() (request, error) {
	size := c.requestSize()
	for c.in.buffered() < size {
		c.flush()
		if c.in.atMost > 0 { // behind a write that went through a pipe: the next may, too
			c.in.atMost = size - c.in.buffered()
		}
		if err := c.in.fill(size, false); err != nil {
			if c.in.buffered() > 0 {
				err = noEOF(err)
			}
			return request{}, err
		}
	}
	r, ok := c.parseRequest(c.in.peek(size))
	if !ok {
		return r, errors.New("the client sends something that is no request")
	}
	c.in.skip(size)
	if !c.mayPipe(r) {
		c.in.atMost = 0
	}
	return r, nil
}

// refuseRequests answers what still comes with ESHUTDOWN, until all workers are
// done and the client has had a moment to send what was on its way.
func (c *conn) refuseRequests() {
	began := time.Now()
	end := began.Add(refuseFor)
	for c.ctx.Err() == nil {
		if c.underWay.Load() == 0 && time.Since(began) > refuseAtMost {
			return
		}
		c.sock.resume(end)
		r, err := c.readRequest()
		switch {
		case err == nil:
			if r.Type == nbd.CmdDisc {
				return
			}
			if n := c.payloadOf(r); n > 0 {
				c.sock.resume(time.Now().Add(refusePayloadFor))
				if c.discardPayload(n) != nil {
					return
				}
				end = time.Now().Add(refuseFor)
			}
			c.replyError(r, nbd.ESHUTDOWN, fmt.Sprintf("export %q is going away", c.exp.Name))
		case !errors.Is(err, os.ErrDeadlineExceeded):
			return
		case c.underWay.Load() == 0:
			return
		default:
			end = time.Now().Add(refuseFor)
		}
	}
}

// flush sends the replies that were gathered.
func (c *conn) flush() {
	if c.batch == nil || len(c.batch.b) == 0 {
		return
	}
	x := c.batch
	c.batch = nil
	c.out.send(x)
}

// room makes sure that n bytes fit behind the replies in batch, n <= largeBuffer.
func (c *conn) room(n int) *buffer {
	if c.batch != nil && c.batch.free() < n {
		c.flush()
	}
	if c.batch == nil {
		c.batch = c.srv.buffers.get(largeBuffer)
	}
	return c.batch
}

// discard drops the payload of a request.
func (c *conn) discard(n int64) error {
	c.in.atMost = 0
	for n > 0 {
		if c.in.buffered() == 0 {
			c.flush()
			if err := c.in.fill(1, true); err != nil {
				return err
			}
		}
		k := min(n, int64(c.in.buffered()))
		c.in.skip(int(k))
		n -= k
	}
	return nil
}

// payload returns the next n bytes of a payload, n <= stripeBytes, once all are
// there. With exactly nothing behind them is read.
func (c *conn) payload(n int, exactly bool) ([]byte, error) {
	for c.in.buffered() < n {
		c.flush()
		c.in.atMost = 0
		if exactly {
			c.in.atMost = n - c.in.buffered()
		}
		if err := c.in.fill(n, true); err != nil {
			return nil, noEOF(err)
		}
	}
	return c.in.peek(n), nil
}
