package server

import (
	"sync"
	"sync/atomic"
)

// maxQueuedBytes is how much a connection queues behind a write that is under way
// before workers wait. One large buffer is always accepted.
const maxQueuedBytes = 1 << 20

// replies is the writing side of a connection. Whoever finds it idle writes; what
// others send meanwhile is written by the same goroutine, together, before it
// leaves. So many workers that finish at once cost one system call.
type replies struct {
	sock *socket

	mu    sync.Mutex
	freed *sync.Cond // queued shrank, busy ended, or err was set
	// queue waits to be written; queued is its length in bytes.
	queue  []*buffer
	queued int
	// busy: some goroutine owns the writing side of the socket, iovecs and spare.
	busy bool
	// err is the first failure of the socket; from then on replies are dropped.
	err error
	// broken: err is set.
	broken atomic.Bool

	iovecs [][]byte
	spare  []*buffer
}

func (q *replies) init(s *socket) {
	q.sock = s
	q.freed = sync.NewCond(&q.mu)
}

// send queues buffers, which belong to replies from now on, in order and next to
// each other, and writes unless another goroutine does. It waits when too much is
// queued.
func (q *replies) send(list ...*buffer) {
	q.mu.Lock()
	for q.busy && q.queued >= maxQueuedBytes && q.err == nil {
		q.freed.Wait()
	}
	for _, x := range list {
		q.queue = append(q.queue, x)
		q.queued += len(x.b)
	}
	if q.busy {
		q.mu.Unlock()
		return
	}
	q.busy = true
	q.drain()
}

// acquire makes the caller the owner of the writing side, with nothing queued
// before him. It returns the error that the socket has had, and is then not the
// owner.
func (q *replies) acquire() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	for q.busy && q.err == nil {
		q.freed.Wait()
	}
	if q.err != nil {
		return q.err
	}
	q.busy = true
	return nil
}

// release ends acquire, after err from the socket, and writes what was queued.
func (q *replies) release(err error) {
	q.mu.Lock()
	q.fail(err)
	q.drain()
}

// drain writes until nothing is queued, and gives up the ownership. The caller
// owns the writing side and holds mu, which drain unlocks.
func (q *replies) drain() {
	for len(q.queue) > 0 {
		list := q.queue
		q.queue, q.spare = q.spare[:0], nil
		q.queued = 0
		failed := q.err != nil
		q.mu.Unlock()
		var err error
		if !failed {
			bufs := q.iovecs[:0]
			for _, x := range list {
				bufs = append(bufs, x.b)
			}
			q.iovecs = bufs
			err = q.sock.write(bufs, false)
		}
		for i, x := range list {
			x.release()
			list[i] = nil
		}
		q.mu.Lock()
		q.spare = list
		q.fail(err)
		q.freed.Broadcast()
	}
	q.busy = false
	q.freed.Broadcast()
	q.mu.Unlock()
}

// fail keeps the first error and ends the connection, as replies cannot be sent any
// more. mu is held.
func (q *replies) fail(err error) {
	if err != nil && q.err == nil {
		q.err = err
		q.broken.Store(true)
		q.sock.nc.Close()
	}
}

// failed is the first error of the socket.
func (q *replies) failed() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.err
}
