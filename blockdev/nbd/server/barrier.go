package server

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/keelblock/keelblock/blockdev/nbd"
)

// The reconnect barrier.
//
// NBD does not tell clients apart. A client whose connection broke comes back on
// another one and sends again what was not answered, and then writes on. A write of
// its old connection that is still under way, or that lies unread in the old socket,
// would land afterwards and put old data in the place of newer data, and nobody would
// notice. So a client that opens an export for writing is answered only when
//
//   - each other connection has begun every request that its socket held when the
//     client asked, and
//   - every change of the Device that was begun on another connection until then has
//     ended.
//
// That covers connections whose client is gone, known or not, and it costs those that
// live nothing but a glance into their socket. It is bounded by
// Options.BarrierTimeout, which is longer than it takes to find that a TCP peer has
// vanished; then the client is refused, and may ask again.
//
// What the network still holds of a connection that was cut in its middle can come
// later. Only an Exclusive export is safe from that: there the older connections are
// cut, unread requests are dropped, and only the changes under way are waited for.
//
// Nothing waits in a circle: a client at the barrier waits for connections past it,
// and these never wait for one.

// fence is one wait for one connection.
type fence struct {
	// until is how much of the stream must be used up, once measured.
	until    uint64
	measured bool
	// passed closes when every request that the socket held has begun; then changes
	// are those that may be under way.
	passed  chan struct{}
	changes []*changes
}

// changes counts the workers that change the Device and were begun between two fences,
// plus one until the second.
type changes struct {
	n    atomic.Int64
	over chan struct{} // closed when n is 0
}

func newChanges() *changes {
	x := &changes{over: make(chan struct{})}
	x.n.Store(1)
	return x
}

func (x *changes) end() {
	if x.n.Add(-1) == 0 {
		close(x.over)
	}
}

// fences are those that wait for a connection. Its goroutine passes them; now and old
// are its own, but for the end of changes.
type fences struct {
	// some: list is not empty.
	some atomic.Bool
	// under counts the workers that change the Device.
	under atomic.Int64

	mu   sync.Mutex
	list []*fence
	// begun: the connection is past the barrier itself; over: it begins no more
	// requests.
	begun, over bool

	now *changes
	old []*changes // of former fences, some perhaps ended
}

// begin counts a worker that is about to change the Device; end is told what begin
// returned.
func (f *fences) begin() *changes {
	f.now.n.Add(1)
	f.under.Add(1)
	return f.now
}

func (f *fences) end(x *changes) {
	f.under.Add(-1)
	x.end()
}

// seal begins a new count and returns all that have not ended. mu is held.
func (f *fences) seal() []*changes {
	f.now.end()
	f.old = append(f.old, f.now)
	f.now = newChanges()
	list := f.old[:0]
	for _, x := range f.old {
		if x.n.Load() > 0 {
			list = append(list, x)
		}
	}
	clear(f.old[len(list):])
	f.old = list
	return append([]*changes(nil), list...)
}

// passFences is called by the goroutine of the connection when all that it has begun
// is done or given to workers. emptied tells that the socket holds nothing, and over
// that no request will be begun any more.
func (c *conn) passFences(emptied, over bool) {
	f := &c.fences
	if !over && !f.some.Load() {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.over = f.over || over
	var under []*changes
	waiting := f.list[:0]
	for _, x := range f.list {
		if !emptied && !over {
			if !x.measured {
				n, _ := c.sock.held() // of a socket that is closed nothing more is read
				x.measured, x.until = true, c.in.received+uint64(n+c.sock.unread())
			}
			if c.in.taken() < x.until {
				waiting = append(waiting, x)
				continue
			}
		}
		if under == nil {
			under = f.seal()
		}
		x.changes = under
		close(x.passed)
	}
	clear(f.list[len(waiting):])
	f.list = waiting
	f.some.Store(len(waiting) > 0)
}

// fence asks the connection to begin what its socket holds, or returns nil if there is
// nothing to wait for.
func (c *conn) fence() *fence {
	f := &c.fences
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.begun {
		return nil // its client must not have sent a request
	}
	x := &fence{passed: make(chan struct{})}
	if f.over {
		x.changes = f.seal()
		close(x.passed)
		return x
	}
	// In this order: who has taken something out of the socket is not waiting, and who
	// waits again has counted what he began.
	if n, ok := c.sock.held(); ok && n == 0 && c.sock.waiting.Load() && f.under.Load() == 0 {
		return nil
	}
	f.list = append(f.list, x)
	f.some.Store(true)
	c.sock.wake()
	return x
}

// forget takes back a fence that nobody waits for any more.
func (c *conn) forget(x *fence) {
	f := &c.fences
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range f.list {
		if f.list[i] == x {
			f.list = append(f.list[:i], f.list[i+1:]...)
			break
		}
	}
	f.some.Store(len(f.list) > 0)
}

// barrier has a connection that is attached to its export wait for the others. An
// error is an optionError, or that of a connection that was cut.
func (s *Server) barrier(c *conn, others []*conn) error {
	e := c.exp
	if s.noBarrier {
		others = nil
	}
	type wait struct {
		of *conn
		x  *fence
	}
	var waits []wait
	for _, o := range others {
		if x := o.fence(); x != nil {
			waits = append(waits, wait{o, x})
		}
	}
	if len(waits) > 0 {
		s.barrierWaits.Add(1)
		limit := time.NewTimer(s.o.BarrierTimeout)
		defer limit.Stop()
		for i, w := range waits {
			if err := c.await(w.x, limit.C); err != nil {
				for _, w := range waits[i:] {
					w.of.forget(w.x)
				}
				if err == errBarrier {
					s.barrierRefusals.Add(1)
					s.o.Logger.Warn("NBD client is refused: requests of another connection do not end", "export", e.Name,
						"peer", c.peer.Addr, "pid", c.peer.PID, "other", w.of.peer.Addr, "other_pid", w.of.peer.PID, "waited", s.o.BarrierTimeout)
				}
				return err
			}
		}
	}
	c.fences.mu.Lock()
	c.fences.begun = true
	c.fences.mu.Unlock()
	return nil
}

// errBarrier refuses a client for which the barrier would take too long.
var errBarrier = &optionError{nbd.RepErrPolicy, "writes of another connection to this export have not ended; try again later"}

// await waits for one fence and the changes before it.
func (c *conn) await(x *fence, limit <-chan time.Time) error {
	until := func(done <-chan struct{}) error {
		select {
		case <-done:
			return nil
		case <-limit:
			return errBarrier
		case <-c.stopped:
			return &optionError{nbd.RepErrShutdown, fmt.Sprintf("export %q is going away", c.exp.Name)}
		case <-c.ctx.Done():
			return errStopped
		}
	}
	if err := until(x.passed); err != nil {
		return err
	}
	for _, y := range x.changes {
		if err := until(y.over); err != nil {
			return err
		}
	}
	return nil
}
