package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
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
	rng  *rand.Rand
	in   []byte // what was received
	r, w int
	out  []byte
	data []byte
}

// connect waits for the server and does the handshake, with structured replies as
// libnbd asks for them.
func connect(socket string) (*load, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	l := &load{fd: fd, rng: rand.New(rand.NewPCG(1, 2)), in: make([]byte, 4<<20), data: make([]byte, 1<<20)}
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if err = unix.Connect(fd, &unix.SockaddrUnix{Name: socket}); err == nil {
			break
		}
		if time.Now().After(end) {
			return nil, err
		}
	}
	if err := l.need(nbd.GreetingSize); err != nil {
		return nil, err
	}
	l.r += nbd.GreetingSize
	l.out = binary.BigEndian.AppendUint32(nil, nbd.FlagCFixedNewstyle|nbd.FlagCNoZeroes)
	l.out = nbd.AppendOption(l.out, nbd.OptStructuredReply, nil)
	l.out = nbd.AppendOption(l.out, nbd.OptGo, nbd.AppendInfoRequest(nil, nbd.InfoRequest{}))
	if err := l.flush(); err != nil {
		return nil, err
	}
	for acks := 0; acks < 2; {
		if err := l.need(nbd.OptionReplySize); err != nil {
			return nil, err
		}
		_, reply, length, err := nbd.ParseOptionReply(l.in[l.r:])
		if err != nil {
			return nil, err
		}
		if reply&nbd.RepFlagError != 0 {
			return nil, errors.New("the handshake is refused")
		}
		if reply == nbd.RepAck {
			acks++
		}
		l.r += nbd.OptionReplySize
		if err := l.need(int(length)); err != nil {
			return nil, err
		}
		l.r += int(length)
	}
	return l, nil
}

// slice keeps r.depth requests under way for about d and returns how many were
// done, in which time.
func (l *load) slice(r row, d time.Duration) (done int, took time.Duration, err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	began := time.Now()
	for range r.depth {
		l.request(r)
	}
	underWay := r.depth
	for ending := false; underWay > 0; {
		if err := l.flush(); err != nil {
			return 0, 0, err
		}
		// Take all replies that are there, then send as many requests at once.
		for first := true; first || l.w-l.r >= nbd.SimpleReplySize && underWay > 0; first = false {
			ended, err := l.reply()
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
				l.request(r)
			}
		}
		if !ending && time.Since(began) >= d {
			// Those that were made and not sent yet go out as well.
			ending = true
		}
	}
	return done, time.Since(began), nil
}

// request adds a request at a random place to what will be sent.
func (l *load) request(r row) {
	q := nbd.Request{Type: nbd.CmdRead, Offset: uint64(l.rng.Int64N(diskBytes/int64(r.bytes))) * uint64(r.bytes), Length: uint32(r.bytes)}
	if r.write {
		q.Type = nbd.CmdWrite
	}
	l.out = nbd.AppendRequest(l.out, q)
	if r.write {
		l.out = append(l.out, l.data[:r.bytes]...)
	}
}

func (l *load) flush() error {
	for p := l.out; len(p) > 0; {
		n, err := unix.Write(l.fd, p)
		if err != nil && err != unix.EINTR {
			return err
		}
		p = p[max(n, 0):]
	}
	l.out = l.out[:0]
	return nil
}

// reply takes one simple reply or one chunk; ended tells that its request is done.
func (l *load) reply() (ended bool, err error) {
	n := nbd.SimpleReplySize
	var h nbd.ReplyHeader
	for n > 0 {
		if err := l.need(n); err != nil {
			return false, err
		}
		before := n
		if h, n, err = nbd.ParseReplyHeader(l.in[l.r : l.r+n]); err != nil {
			return false, err
		}
		if n == 0 {
			l.r += before
		}
	}
	if h.Errno != nbd.OK || h.Structured && h.Chunk.IsError() {
		return false, fmt.Errorf("request failed: %v", h.Errno)
	}
	if !h.Structured {
		return true, nil
	}
	if err := l.need(int(h.Chunk.Length)); err != nil {
		return false, err
	}
	l.r += int(h.Chunk.Length)
	return h.Chunk.Flags&nbd.ReplyFlagDone != 0, nil
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
		k, err := unix.Read(l.fd, l.in[l.w:])
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		if k == 0 {
			return io.ErrUnexpectedEOF
		}
		l.w += k
	}
	return nil
}
