package server

import (
	"fmt"
	"io"
)

// input is the reading side of a connection: one buffer into which the socket is
// read, and out of which requests and payloads are taken. Only the goroutine of
// the connection uses it.
//
// The buffer is taken from the pool when data is there and given back when all of
// it was used and the socket has no more, so that an idle connection holds none.
type input struct {
	sock  *socket
	pools *bufferPools
	// size is that of the buffer to take: small in the handshake.
	size int
	buf  *buffer
	// buf.b[r:w] is what was read and not used.
	r, w int
	// received counts all bytes that were ever read.
	received uint64
	// atMost bounds what the next fill reads, if it is not 0.
	atMost int
	// mid: the fill under way is for the rest of a message.
	mid bool

	target func() []byte // made once, so that fill does not allocate
	idle   func() bool
}

func (in *input) init(s *socket, pools *bufferPools) {
	in.sock, in.pools, in.size = s, pools, bufferSizes[0]
	in.target = func() []byte {
		if in.buf == nil {
			in.buf = in.pools.get(in.size)
		}
		end := cap(in.buf.b)
		if in.atMost > 0 {
			end = min(end, in.w+in.atMost)
		}
		return in.buf.b[in.w:end]
	}
	in.idle = func() bool {
		if in.mid {
			return false
		}
		in.drop()
		return true
	}
}

// grow changes to a large buffer, after the handshake.
func (in *input) grow() {
	in.size = largeBuffer
	if in.buf == nil {
		return
	}
	big := in.pools.get(in.size)
	in.w = copy(big.b[:cap(big.b)], in.peek(in.buffered()))
	in.r = 0
	in.buf.release()
	in.buf = big
}

// buffered is how many bytes can be taken without reading.
func (in *input) buffered() int { return in.w - in.r }

// peek returns the next n bytes, n <= buffered(). They are good until the next
// fill.
func (in *input) peek(n int) []byte {
	if n == 0 {
		return nil
	}
	return in.buf.b[in.r : in.r+n : in.r+n]
}

// skip uses n bytes up.
func (in *input) skip(n int) {
	in.r += n
	if in.r == in.w {
		in.r, in.w = 0, 0
	}
}

// fill reads once, so that more is buffered; need is how many bytes shall fit in
// all, at most size. mid tells that a message has begun: then the client has only
// the stall timeout to go on with it.
func (in *input) fill(need int, mid bool) error {
	in.mid = mid || in.buffered() > 0
	if in.buf != nil && in.r+need > cap(in.buf.b) {
		in.w = copy(in.buf.b[:cap(in.buf.b)], in.buf.b[in.r:in.w])
		in.r = 0
	}
	n, err := in.sock.read(in.target, in.idle)
	if err != nil {
		return err
	}
	in.w += n
	in.received += uint64(n)
	return nil
}

// pour moves up to n bytes of a message from the socket into a pipe. Nothing is
// buffered.
func (in *input) pour(p *pipe, n int) (int, error) {
	k, err := in.sock.readToPipe(p.w, n)
	in.received += uint64(k)
	return k, err
}

// take buffers n bytes, n <= stripeBytes, that pour has moved into a pipe.
func (in *input) take(p *pipe, n int) error {
	if in.buf == nil {
		in.buf = in.pools.get(in.size)
	}
	if err := p.read(in.buf.b[:n]); err != nil {
		return fmt.Errorf("read back %d bytes of a pipe: %w", n, err)
	}
	in.r, in.w = 0, n
	return nil
}

// readFull takes len(p) bytes of a message, from the buffer first and then straight
// from the socket into p. before is called ahead of each read.
func (in *input) readFull(p []byte, before func()) error {
	n := min(len(p), in.buffered())
	copy(p, in.peek(n))
	in.skip(n)
	for p = p[n:]; len(p) > 0; {
		before()
		n, err := in.sock.read(func() []byte { return p }, never)
		if err != nil {
			return noEOF(err)
		}
		p = p[n:]
		in.received += uint64(n)
	}
	return nil
}

// taken is how much of all that came was used.
func (in *input) taken() uint64 { return in.received - uint64(in.buffered()) }

func never() bool { return false }

// noEOF turns the end of the stream within a message into an error of its own.
func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// drop gives the buffer back. What it holds is lost.
func (in *input) drop() {
	if in.buf != nil {
		in.buf.release()
		in.buf = nil
	}
	in.r, in.w = 0, 0
}
