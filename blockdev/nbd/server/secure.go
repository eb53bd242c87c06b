package server

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// recordBytes is the most that one TLS record carries.
const recordBytes = 16 << 10

// secured is the TLS layer of a socket, between its buffers and its system calls.
//
// It keeps the ways of the plain socket: a read buffer is held only while there is
// something to read, the peer has the stall timeout in the middle of a message, and
// few system calls carry much. For reading, tls.Conn is asked without waiting, from
// within the function that Go's poller calls again when the socket may be read;
// net.Error with Temporary lets it go on where it stopped. For writing, records are
// filled and their ciphertext is gathered.
type secured struct {
	sock  *socket
	pools *bufferPools
	conn  *tls.Conn

	// The read under way, of the goroutine that reads: fd, and ciphertext in
	// cipher.b[r:] that tls.Conn has not taken.
	fd     int
	cipher *buffer
	r      int

	// mu guards what follows, and the writing side of the socket: tls.Conn also
	// writes from within reads (alerts, answers to a change of keys).
	mu sync.Mutex
	// out gathers ciphertext while a write is under way, nil otherwise.
	out *buffer
}

// secure does the TLS handshake as a server. Everything that is read and written from
// then on is encrypted.
func (s *socket) secure(config *tls.Config, pools *bufferPools) (tls.ConnectionState, error) {
	// Until the handshake is over tls.Conn may wait in nc, whose deadline is set.
	t := &secured{sock: s, pools: pools}
	var pipe switching
	pipe.Conn = s.nc
	t.conn = tls.Server(&pipe, config)
	if err := t.conn.Handshake(); err != nil {
		return tls.ConnectionState{}, err
	}
	pipe.to = t
	s.tls = t
	return t.conn.ConnectionState(), nil
}

// switching is the net.Conn below tls.Conn: the socket during the handshake, then the
// reading and writing of secured.
type switching struct {
	net.Conn
	to *secured
}

func (p *switching) Read(b []byte) (int, error) {
	if p.to != nil {
		return p.to.pull(b)
	}
	return p.Conn.Read(b)
}

func (p *switching) Write(b []byte) (int, error) {
	if p.to != nil {
		return p.to.push(b)
	}
	return p.Conn.Write(b)
}

// errNothingThere has tls.Conn return to receive, to be asked again later.
var errNothingThere net.Error = nothingThere{}

type nothingThere struct{}

func (nothingThere) Error() string   { return "nothing has come" }
func (nothingThere) Timeout() bool   { return true }
func (nothingThere) Temporary() bool { return true }

// receive is read(2) for plaintext: it fills p with what is there, returns EAGAIN if
// nothing is, and 0 at the end.
func (t *secured) receive(fd int, p []byte) (n int, err error) {
	t.fd = fd
	for n < len(p) {
		k, err := t.conn.Read(p[n:])
		n += k
		if err == nil {
			continue
		}
		if n > 0 { // what else is wrong comes back with the next call
			break
		}
		if errors.Is(err, errNothingThere) {
			return 0, unix.EAGAIN
		}
		if err == io.EOF {
			return 0, nil
		}
		return 0, err
	}
	return n, nil
}

// unread bounds the plaintext that has come and that receive has not returned. Only
// the goroutine that reads may ask.
func (t *secured) unread() int {
	n := 2 * recordBytes // in tls.Conn: a record, and the next one
	if t.cipher != nil {
		n += len(t.cipher.b) - t.r
	}
	return n
}

// pull gives tls.Conn ciphertext. Much is read at once, since tls.Conn asks for each
// record by itself.
func (t *secured) pull(b []byte) (int, error) {
	if t.cipher == nil {
		x := t.pools.get(bufferSizes[1])
		n, err := unix.Read(t.fd, x.b[:cap(x.b)])
		for err == unix.EINTR {
			n, err = unix.Read(t.fd, x.b[:cap(x.b)])
		}
		if err != nil || n == 0 {
			x.release()
			switch {
			case err == unix.EAGAIN:
				return 0, errNothingThere
			case err == nil:
				err = io.EOF
			}
			return 0, err
		}
		x.b = x.b[:n]
		t.cipher, t.r = x, 0
	}
	n := copy(b, t.cipher.b[t.r:])
	if t.r += n; t.r == len(t.cipher.b) {
		t.cipher.release()
		t.cipher = nil
	}
	return n, nil
}

// send encrypts and sends all of bufs.
func (t *secured) send(bufs [][]byte) error {
	total := 0
	for _, b := range bufs {
		total += len(b)
	}
	out := t.pools.get(min(total+total/64+1<<10, largeBuffer))
	t.mu.Lock()
	t.out = out
	t.mu.Unlock()
	err := t.encrypt(bufs)
	t.mu.Lock()
	defer t.mu.Unlock()
	if err == nil {
		err = t.flush()
	}
	t.out = nil
	out.release()
	return err
}

// encrypt writes bufs to tls.Conn so that every record but the last is full.
func (t *secured) encrypt(bufs [][]byte) error {
	if len(bufs) == 1 {
		_, err := t.conn.Write(bufs[0])
		return err
	}
	x := t.pools.get(recordBytes) // gathers what is less than a record
	defer x.release()
	for _, b := range bufs {
		if len(x.b) > 0 {
			n := min(len(b), recordBytes-len(x.b))
			x.b, b = append(x.b, b[:n]...), b[n:]
			if len(x.b) < recordBytes {
				continue
			}
			if _, err := t.conn.Write(x.b); err != nil {
				return err
			}
			x.b = x.b[:0]
		}
		whole := len(b) / recordBytes * recordBytes
		if whole > 0 {
			if _, err := t.conn.Write(b[:whole]); err != nil {
				return err
			}
		}
		x.b = append(x.b, b[whole:]...)
	}
	if len(x.b) == 0 {
		return nil
	}
	_, err := t.conn.Write(x.b)
	return err
}

// push takes ciphertext from tls.Conn.
func (t *secured) push(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.out == nil {
		return len(b), t.sock.writePlain([][]byte{b}, 0)
	}
	if t.out.free() < len(b) {
		if err := t.flush(); err != nil {
			return 0, err
		}
	}
	if t.out.free() < len(b) {
		return len(b), t.sock.writePlain([][]byte{b}, 0)
	}
	t.out.b = append(t.out.b, b...)
	return len(b), nil
}

// flush sends the ciphertext that was gathered. mu is held.
func (t *secured) flush() error {
	if len(t.out.b) == 0 {
		return nil
	}
	err := t.sock.writePlain([][]byte{t.out.b}, 0)
	t.out.b = t.out.b[:0]
	return err
}

// goodbye ends the TLS session in order, as a client may take a stream that just ends
// for one that somebody has cut. Nothing else is written any more, and nothing waits.
func (t *secured) goodbye() {
	t.sock.fixed = true
	t.sock.nc.SetWriteDeadline(time.Now().Add(time.Second))
	t.conn.CloseWrite() // best effort
}

// drop gives the buffers back, when nobody reads any more.
func (t *secured) drop() {
	if t.cipher != nil {
		t.cipher.release()
		t.cipher = nil
	}
}
