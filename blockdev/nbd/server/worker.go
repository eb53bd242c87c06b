package server

import (
	"errors"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/keelblock/keelblock/blockdev"
	"github.com/keelblock/keelblock/blockdev/nbd"
)

// dispatch runs do(r) in a worker, once a slot is free.
func (c *conn) dispatch(r request, do func(request)) error {
	select {
	case c.slots <- struct{}{}:
	default:
		c.flush() // the client may be waiting for these before it reads others
		select {
		case c.slots <- struct{}{}:
		case <-c.ctx.Done():
			return c.ctx.Err()
		}
	}
	c.counters.workerRequests.Add(1)
	c.underWay.Add(1)
	c.workers.Add(1)
	j := job{c: c, r: r, do: do}
	if r.Type == nbd.CmdWrite || r.Type == nbd.CmdTrim || r.Type == nbd.CmdWriteZeroes {
		j.change = c.fences.begin()
	}
	select {
	case c.srv.jobs <- j:
	default:
		c.srv.pool.Add(1)
		go c.srv.work(j)
	}
	return nil
}

// job is a request for a worker.
type job struct {
	c      *conn
	r      request
	do     func(request)
	change *changes // that it is counted in, if it changes the Device
}

// idleWorkers stay for the next request when they have nothing to do. A goroutine that
// begins for each request has a small stack, which the way down to the system call
// outgrows: copying it took a tenth of what our code takes of a read that is not in
// memory (perf, row nbd-disk-read-4k-qd32-cold of tools/compare/nbdslices).
const idleWorkers = 32

// work does a job, and then others as they come.
func (s *Server) work(j job) {
	defer s.pool.Done()
	for {
		j.run()
		j = job{}
		if s.idle.Add(1) > idleWorkers {
			s.idle.Add(-1)
			return
		}
		select {
		case j = <-s.jobs:
			s.idle.Add(-1)
		case <-s.over:
			return
		}
	}
}

func (j job) run() {
	c := j.c
	defer func() {
		<-c.slots
		if j.change != nil {
			c.fences.end(j.change)
		}
		c.underWay.Add(-1)
		c.workers.Done()
	}()
	j.do(j.r)
}

// device runs a request of the Device, of which only so many run at once, as each
// may hold a thread.
func (c *conn) device(do func() error) error {
	c.srv.running <- struct{}{}
	defer func() { <-c.srv.running }()
	return do()
}

// reserve takes an empty buffer of n bytes out of the budget, or waits for it. It
// returns nil when the connection is cut meanwhile.
func (c *conn) reserve(n int) *buffer {
	if c.srv.budget.Acquire(c.ctx, int64(n)) != nil {
		return nil
	}
	x := c.srv.buffers.get(n)
	x.charge, x.budget = int64(n), c.srv.budget
	return x
}

// answer sends the reply to r of a worker: an error, or success without data.
func (c *conn) answer(r request, err error) {
	x := c.srv.buffers.get(maxErrorReply)
	if err != nil {
		errno, text := c.explain(r, err)
		x.b = c.appendError(x.b, r, errno, text)
	} else {
		x.b = c.appendOK(x.b, r)
	}
	c.out.send(x)
}

// worker does what is neither read nor write.
func (c *conn) worker(r request) {
	switch r.Type {
	case nbd.CmdFlush:
		c.sync(r)
	case nbd.CmdTrim, nbd.CmdWriteZeroes:
		err := c.device(func() error {
			if r.Type == nbd.CmdTrim {
				return c.trim(r)
			}
			return c.writeZeroes(r)
		})
		if err == nil && r.Flags&nbd.CmdFlagFUA != 0 {
			c.sync(r)
			return
		}
		c.answer(r, err)
	case nbd.CmdCache:
		c.answer(r, c.cache(r))
	case nbd.CmdBlockStatus:
		c.blockStatus(r, c.contexts.list)
	}
}

// sync is FLUSH, and the end of a request with FUA.
func (c *conn) sync(r request) {
	c.counters.flushes.Add(1)
	c.answer(r, c.device(c.exp.Device.Flush))
}

func (c *conn) trim(r request) error {
	if c.exp.trimmer == nil {
		return nil // a hint
	}
	return c.exp.trimmer.Trim(int64(r.Offset), int64(r.Length))
}

func (c *conn) writeZeroes(r request) error {
	off, end := int64(r.Offset), int64(r.Offset)+int64(r.Length)
	if c.exp.zeroer != nil {
		err := c.exp.zeroer.WriteZeroes(off, end-off, r.Flags&nbd.CmdFlagNoHole == 0)
		// A filter may be a Zeroer over a Device that is none. Only FAST_ZERO may be
		// told that zeroes are not supported.
		if !errors.Is(err, blockdev.ErrNotSupported) || r.Flags&nbd.CmdFlagFastZero != 0 {
			return err
		}
	}
	x := c.reserve(stripeBytes)
	if x == nil {
		return c.ctx.Err()
	}
	defer x.release()
	zeros := x.b[:stripeBytes]
	clear(zeros)
	for off < end {
		n, err := c.exp.Device.WriteAt(zeros[:pieceLength(off, end)], off)
		if err != nil {
			return err
		}
		off += int64(n)
	}
	return nil
}

// maxCacheBytes bounds what CACHE reads of a Device that is not a file. The command
// is a hint.
const maxCacheBytes = 64 << 20

// cache brings a range into memory.
func (c *conn) cache(r request) error {
	off, end := int64(r.Offset), int64(r.Offset)+int64(r.Length)
	if c.exp.file != nil {
		return c.exp.file.ReadFD(func(fd int) error {
			unix.Fadvise(fd, off, end-off, unix.FADV_WILLNEED) // block devices and tmpfs may refuse
			return nil
		})
	}
	x := c.reserve(stripeBytes)
	if x == nil {
		return c.ctx.Err()
	}
	defer x.release()
	for end = min(end, off+maxCacheBytes); off < end; {
		n := pieceLength(off, end)
		err := c.device(func() error {
			_, err := c.exp.Device.ReadAt(x.b[:n], off)
			return err
		})
		if err != nil {
			return err
		}
		off += int64(n)
	}
	return nil
}

// readByWorker reads what may have to wait for a disk. With structured replies,
// unless DF forbids it, each piece is a chunk of its own and is sent when it is
// there; else the reply is gathered whole, since its header speaks for all of it.
func (c *conn) readByWorker(r request) {
	if c.structured && (r.Flags&nbd.CmdFlagDF == 0 || r.Length <= stripeBytes) {
		c.readInChunks(r)
	} else {
		c.readWhole(r)
	}
}

func (c *conn) readInChunks(r request) {
	off, end := int64(r.Offset), int64(r.Offset)+int64(r.Length)
	for off < end {
		n := pieceLength(off, end)
		switch {
		case r.Flags&nbd.CmdFlagDF != 0:
			n = int(end - off)
		case c.exp.nowait == nil && end-off >= bulkBytes/2: // or a large buffer would stay empty
			n = int(min(end-off, bulkBytes))
		}
		x := c.reserve(maxReadHead + n)
		if x == nil {
			return
		}
		flags := uint16(0)
		if off+int64(n) == end {
			flags = nbd.ReplyFlagDone
		}
		x.b = c.appendReadHead(x.b, r, flags, uint64(off), n)
		data := x.b[len(x.b) : len(x.b)+n]
		err := c.device(func() error {
			_, err := c.exp.Device.ReadAt(data, off)
			return err
		})
		if err != nil {
			x.release()
			c.answer(r, err)
			return
		}
		x.b = x.b[:len(x.b)+n]
		c.counters.readBytes.Add(uint64(n))
		c.out.send(x)
		off += int64(n)
	}
}

func (c *conn) readWhole(r request) {
	if c.srv.budget.Acquire(c.ctx, int64(r.Length)) != nil {
		return
	}
	head := c.srv.buffers.get(maxReadHead)
	head.b = c.appendReadHead(head.b, r, nbd.ReplyFlagDone, r.Offset, int(r.Length))
	list := []*buffer{head}
	err := c.device(func() error {
		for off, end := int64(r.Offset), int64(r.Offset)+int64(r.Length); off < end; {
			n := int(min(end-off, stripeBytes))
			x := c.srv.buffers.get(n)
			x.charge, x.budget = int64(n), c.srv.budget
			x.b = x.b[:n]
			list = append(list, x)
			if _, err := c.exp.Device.ReadAt(x.b, off); err != nil {
				c.srv.budget.Release(end - off - int64(n)) // for which no buffer was taken
				return err
			}
			off += int64(n)
		}
		return nil
	})
	if err != nil {
		for _, x := range list {
			x.release()
		}
		c.answer(r, err)
		return
	}
	c.counters.readBytes.Add(uint64(r.Length))
	c.out.send(list...)
}

// pieces is a write whose pieces are done by workers.
type pieces struct {
	left atomic.Int64 // pieces, plus one until all were read from the socket

	mu  sync.Mutex
	err error // the first failure
}

func (p *pieces) fail(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err == nil {
		p.err = err
	}
}

func (p *pieces) failed() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}

// writeByWorkers has workers write all of a request.
func (c *conn) writeByWorkers(r request) error {
	c.counters.writes.Add(1)
	return c.writePieces(r, int64(r.Offset))
}

// writePieces reads the payload from off on piece by piece, each into a buffer of its
// own, and has workers write them. Whoever ends the last piece replies. After a failure
// the rest is read but not written.
func (c *conn) writePieces(r request, off int64) error {
	w := new(pieces)
	w.left.Store(1)
	end := int64(r.Offset) + int64(r.Length)
	for off < end {
		if w.failed() != nil {
			if err := c.discard(end - off); err != nil {
				return noEOF(err)
			}
			break
		}
		n := pieceLength(off, end)
		x, err := c.readPiece(n)
		if err != nil {
			return err
		}
		at := off
		w.left.Add(1)
		err = c.dispatch(r, func(r request) {
			err := c.device(func() error {
				_, err := c.exp.Device.WriteAt(x.b, at)
				return err
			})
			if err != nil {
				w.fail(err)
			} else {
				c.counters.writeBytes.Add(uint64(len(x.b)))
			}
			x.release()
			c.endPiece(r, w)
		})
		if err != nil {
			x.release()
			return err
		}
		off += int64(n)
	}
	if w.left.Add(-1) > 0 {
		return nil // the worker of the last piece replies
	}
	switch err := w.failed(); {
	case err != nil:
		c.replyFailure(r, err)
	case r.Flags&nbd.CmdFlagFUA != 0:
		return c.dispatch(r, c.sync)
	default:
		c.replyOK(r)
	}
	return nil
}

// readPiece takes n bytes of a payload into a buffer out of the budget.
func (c *conn) readPiece(n int) (*buffer, error) {
	if !c.srv.budget.TryAcquire(int64(n)) {
		c.flush()
		if err := c.srv.budget.Acquire(c.ctx, int64(n)); err != nil {
			return nil, err
		}
	}
	x := c.srv.buffers.get(n)
	x.charge, x.budget, x.b = int64(n), c.srv.budget, x.b[:n]
	if err := c.in.readFull(x.b, c.flush); err != nil {
		x.release()
		return nil, err
	}
	return x, nil
}

// endPiece counts a piece and, after the last, syncs if FUA asks for it and
// replies.
func (c *conn) endPiece(r request, w *pieces) {
	if w.left.Add(-1) > 0 {
		return
	}
	err := w.failed()
	if err == nil && r.Flags&nbd.CmdFlagFUA != 0 {
		c.sync(r)
		return
	}
	c.answer(r, err)
}
