package main

import (
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/keelblock/keelblock/blockdev/nbd"
)

// load is a connection that keeps a number of requests under way. It uses blocking
// system calls on a thread of its own, so that Go's poller does not add to what is
// measured.
type load struct {
	fd   int
	io   io.ReadWriter // the descriptor, or TLS above it
	rng  *rand.Rand
	size int64 // bytes of the export that requests go to
	*buffers
	r, w int // what was received and not used is in[r:w]
	// parts are what will be sent: pieces of out and, as no client of sense copies so
	// much to send it, of data.
	parts [][]byte
	used  int // bytes of out that are in parts
}

// buffers are the memory of a load. Those of the sides of a stage share it, since only
// one side is measured at a time and where memory lies makes a difference.
type buffers struct {
	in   []byte
	out  []byte
	data []byte // what writes store
}

func newBuffers() *buffers {
	b := &buffers{in: make([]byte, 4<<20), out: make([]byte, 0, 4<<20+4<<10), data: make([]byte, 1<<20)}
	b.refresh(rand.New(rand.NewPCG(3, 4)))
	return b
}

// refresh makes new data, so that no two writes store the same.
func (b *buffers) refresh(rng *rand.Rand) {
	for i := range len(b.data) / 8 {
		binary.LittleEndian.PutUint64(b.data[8*i:], rng.Uint64())
	}
}

// address says where an export is.
type address struct {
	network string // unix or tcp
	at      string
	tls     *tls.Config // nil: plain
	export  string
}

// connect waits for the server and does the handshake, with structured replies as
// libnbd asks for them.
func connect(a address, size int64) (*load, error) { return connectWith(a, size, newBuffers()) }

func connectWith(a address, size int64, memory *buffers) (*load, error) {
	l := &load{rng: rand.New(rand.NewPCG(1, 2)), size: size, buffers: memory}
	if err := l.dial(a); err != nil {
		return nil, err
	}
	if err := l.handshake(a); err != nil {
		unix.Close(l.fd)
		return nil, fmt.Errorf("handshake: %w", err)
	}
	return l, nil
}

func (l *load) dial(a address) (err error) {
	family, sa := unix.AF_UNIX, unix.Sockaddr(&unix.SockaddrUnix{Name: a.at})
	if a.network == "tcp" {
		tcp, err := net.ResolveTCPAddr("tcp4", a.at)
		if err != nil {
			return err
		}
		family, sa = unix.AF_INET, &unix.SockaddrInet4{Port: tcp.Port, Addr: [4]byte(tcp.IP.To4())}
	}
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if l.fd, err = unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		if err = unix.Connect(l.fd, sa); err == nil {
			break
		}
		unix.Close(l.fd)
		if time.Now().After(end) {
			return fmt.Errorf("connect to %s: %w", a.at, err)
		}
	}
	if a.network == "tcp" {
		unix.SetsockoptInt(l.fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	}
	l.io = blocking{fd: l.fd}
	return nil
}

func (l *load) handshake(a address) error {
	if err := l.need(nbd.GreetingSize); err != nil {
		return err
	}
	l.r += nbd.GreetingSize
	l.out = binary.BigEndian.AppendUint32(l.out[:0], nbd.FlagCFixedNewstyle|nbd.FlagCNoZeroes)
	if a.tls != nil {
		l.out = nbd.AppendOption(l.out, nbd.OptStartTLS, nil)
		if err := l.acks(1); err != nil {
			return err
		}
		t := tls.Client(blocking{fd: l.fd}, a.tls)
		if err := t.Handshake(); err != nil {
			return err
		}
		l.io = t
	}
	l.out = nbd.AppendOption(l.out, nbd.OptStructuredReply, nil)
	l.out = nbd.AppendOption(l.out, nbd.OptGo, nbd.AppendInfoRequest(nil, nbd.InfoRequest{Name: a.export}))
	return l.acks(2)
}

// acks sends the options and takes replies until n were acknowledged.
func (l *load) acks(n int) error {
	if err := l.flush(); err != nil {
		return err
	}
	for n > 0 {
		if err := l.need(nbd.OptionReplySize); err != nil {
			return err
		}
		option, reply, length, err := nbd.ParseOptionReply(l.in[l.r:])
		if err != nil {
			return err
		}
		if reply&nbd.RepFlagError != 0 {
			return fmt.Errorf("option %d is refused with %#x", option, reply)
		}
		if reply == nbd.RepAck {
			n--
		}
		l.r += nbd.OptionReplySize
		if err := l.need(int(length)); err != nil {
			return err
		}
		l.r += int(length)
	}
	return nil
}

// slice keeps r.depth requests under way for about d and returns how many were
// done, in which time.
func (l *load) slice(r shape, d time.Duration) (done int, took time.Duration, err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	began := time.Now()
	for range r.depth {
		l.request(r, 0)
	}
	underWay := r.depth
	for ending := false; underWay > 0; {
		if err := l.flush(); err != nil {
			return 0, 0, err
		}
		// Take all replies that are there, then send as many requests at once.
		for first := true; first || l.w-l.r >= nbd.SimpleReplySize && underWay > 0; first = false {
			ended, _, err := l.reply()
			if err != nil {
				return 0, 0, err
			}
			if !ended {
				continue
			}
			done++
			if ending {
				underWay--
			} else {
				l.request(r, 0)
			}
		}
		if !ending && time.Since(began) >= d {
			// Those that were made and not sent yet go out as well.
			ending = true
		}
	}
	return done, time.Since(began), nil
}

// fillExport writes all of the export once.
func (l *load) fillExport() error {
	for off := int64(0); off < l.size; off += int64(len(l.data)) {
		l.refresh(l.rng)
		l.out = nbd.AppendRequest(l.out, nbd.Request{Type: nbd.CmdWrite, Offset: uint64(off), Length: uint32(len(l.data))})
		l.payload(l.data)
		if err := l.flush(); err != nil {
			return err
		}
		if _, _, err := l.reply(); err != nil {
			return err
		}
	}
	return nil
}

// request adds a request at a random place to what will be sent.
func (l *load) request(r shape, cookie uint64) {
	q := nbd.Request{Type: nbd.CmdRead, Cookie: cookie, Offset: uint64(l.rng.Int64N(l.size/int64(r.bytes))) * uint64(r.bytes), Length: uint32(r.bytes)}
	if r.write {
		q.Type = nbd.CmdWrite
	}
	l.out = nbd.AppendRequest(l.out, q)
	if r.write {
		at := l.rng.IntN(len(l.data)-r.bytes+1) &^ 7
		l.payload(l.data[at : at+r.bytes])
	}
}

func (l *load) payload(p []byte) {
	if _, plain := l.io.(blocking); !plain || len(p) < 64<<10 {
		l.out = append(l.out, p...)
		return
	}
	l.parts = append(l.parts, l.out[l.used:], p)
	l.used = len(l.out)
}

func (l *load) flush() (err error) {
	if len(l.parts) > 0 {
		err = l.io.(blocking).writev(append(l.parts, l.out[l.used:]))
	} else {
		_, err = l.io.Write(l.out)
	}
	l.out, l.parts, l.used = l.out[:0], l.parts[:0], 0
	return err
}

// reply takes one simple reply or one chunk; ended tells that its request is done.
func (l *load) reply() (ended bool, cookie uint64, err error) {
	n := nbd.SimpleReplySize
	var h nbd.ReplyHeader
	for n > 0 {
		if err := l.need(n); err != nil {
			return false, 0, err
		}
		before := n
		if h, n, err = nbd.ParseReplyHeader(l.in[l.r : l.r+n]); err != nil {
			return false, 0, err
		}
		if n == 0 {
			l.r += before
		}
	}
	if h.Errno != nbd.OK || h.Structured && h.Chunk.IsError() {
		return false, 0, fmt.Errorf("request failed: %v", h.Errno)
	}
	if !h.Structured {
		return true, h.Cookie, nil
	}
	if err := l.need(int(h.Chunk.Length)); err != nil {
		return false, 0, err
	}
	l.r += int(h.Chunk.Length)
	return h.Chunk.Flags&nbd.ReplyFlagDone != 0, h.Chunk.Cookie, nil
}

// need receives until n bytes are there.
func (l *load) need(n int) error {
	if l.r == l.w {
		l.r, l.w = 0, 0
	}
	if len(l.in)-l.r < n {
		l.w = copy(l.in, l.in[l.r:l.w])
		l.r = 0
	}
	for l.w-l.r < n {
		k, err := l.io.Read(l.in[l.w:])
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
		l.w += k
	}
	return nil
}

// close ends the connection; a TLS peer is told.
func (l *load) close() {
	if t, ok := l.io.(*tls.Conn); ok {
		t.Close()
		return
	}
	unix.Close(l.fd)
}

// blocking reads and writes a descriptor by plain system calls. It is a net.Conn as
// far as crypto/tls asks for one.
type blocking struct {
	net.Conn // nil: nothing else is called
	fd       int
}

func (b blocking) SetWriteDeadline(time.Time) error { return nil } // of the last message

func (b blocking) Read(p []byte) (int, error) {
	for {
		n, err := unix.Read(b.fd, p)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return 0, err
		case n == 0 && len(p) > 0:
			return 0, io.EOF
		}
		return n, nil
	}
}

func (b blocking) Write(p []byte) (int, error) {
	for done := 0; done < len(p); {
		n, err := unix.Write(b.fd, p[done:])
		if err != nil && err != unix.EINTR {
			return done, err
		}
		done += max(n, 0)
	}
	return len(p), nil
}

func (b blocking) writev(parts [][]byte) error {
	for len(parts) > 0 {
		n, err := unix.Writev(b.fd, parts)
		if err != nil && err != unix.EINTR {
			return err
		}
		for n = max(n, 0); len(parts) > 0 && n >= len(parts[0]); parts = parts[1:] {
			n -= len(parts[0])
		}
		if n > 0 {
			parts[0] = parts[0][n:]
		}
	}
	return nil
}

func (b blocking) Close() error { return unix.Close(b.fd) }
