package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Serve accepts connections from l, a TCP or unix listener, until ctx ends or
// Shutdown is called; then it closes l and returns nil. Its connections go on
// until Shutdown. An error means that l cannot accept any more.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	s.mu.Lock()
	if s.closing {
		s.mu.Unlock()
		l.Close()
		return ErrServerClosed
	}
	s.listeners[l] = struct{}{}
	s.mu.Unlock()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer func() {
		stop()
		l.Close()
		s.mu.Lock()
		delete(s.listeners, l)
		s.mu.Unlock()
	}()
	for {
		nc, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil || s.isClosing() {
				return nil
			}
			if !temporary(err) {
				return fmt.Errorf("accept NBD connections on %s: %w", l.Addr(), err)
			}
			s.o.Logger.Warn("NBD connection could not be accepted", "addr", l.Addr().String(), "err", err)
			select {
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
			continue
		}
		s.start(nc)
	}
}

// temporary reports whether accepting may work again: descriptors or memory are
// used up, or the peer went away too soon.
func temporary(err error) bool {
	for _, e := range []error{unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM, unix.ECONNABORTED, unix.EINTR} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// ServeConn serves one connection that the caller has, of any kind, and returns when it
// has ended and its last request, too: nil when the client has left or the server has
// ended it, else what was wrong. It closes nc. When ctx ends, the requests that are
// under way end and the connection is closed.
//
// Such a connection follows a Device that changes its size: whoever brought it tells its
// client of the new one in another way.
func (s *Server) ServeConn(ctx context.Context, nc net.Conn) error {
	if _, ok := nc.(syscall.Conn); !ok {
		sock, err := throughSocket(nc)
		if err != nil {
			nc.Close()
			return fmt.Errorf("serve an NBD connection: %w", err)
		}
		nc = sock
	}
	c, err := s.admit(nc)
	if err != nil {
		nc.Close()
		return fmt.Errorf("serve an NBD connection: %w", err)
	}
	c.follows = true
	defer s.join.Done()
	stop := context.AfterFunc(ctx, func() { c.stop(stopSilently) })
	defer stop()
	if err := c.serve(); !orderly(err) {
		return fmt.Errorf("serve an NBD connection: %w", err)
	}
	return nil
}

// start runs a connection in a goroutine that Shutdown joins.
func (s *Server) start(nc net.Conn) {
	c, err := s.admit(nc)
	if err != nil {
		if !errors.Is(err, ErrServerClosed) && !errors.Is(err, errTooMany) {
			s.o.Logger.Warn("NBD connection cannot be served", "err", err)
		}
		nc.Close()
		return
	}
	go func() {
		defer s.join.Done()
		c.serve()
	}()
}

// errTooMany: Options.MaxConnections are open.
var errTooMany = errors.New("too many connections are open")

// admit counts a connection in. The caller runs its serve, and calls join.Done
// afterwards.
func (s *Server) admit(nc net.Conn) (*conn, error) {
	sock, err := newSocket(nc, s.o.StallTimeout)
	if err != nil {
		return nil, err
	}
	c := newConn(s, sock)
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closing:
		return nil, ErrServerClosed
	case len(s.conns) >= s.o.MaxConnections:
		s.retired.RefusedConnection++
		return nil, errTooMany
	}
	s.conns[c] = struct{}{}
	s.join.Add(1)
	return c, nil
}

// throughSocket gives a connection that has no descriptor one end of a socket pair, and
// moves bytes between the other end and it until both sides are done.
func throughSocket(nc net.Conn) (net.Conn, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("socket pair: %w", err)
	}
	ours, err := fileConn(fds[0])
	if err != nil {
		unix.Close(fds[1])
		return nil, err
	}
	theirs, err := fileConn(fds[1])
	if err != nil {
		ours.Close()
		return nil, err
	}
	go func() { // ends when the peer, or the server, closes
		io.Copy(theirs, nc)
		theirs.(*net.UnixConn).CloseWrite()
	}()
	go func() {
		io.Copy(nc, theirs)
		nc.Close()
		theirs.Close()
	}()
	return ours, nil
}

// fileConn takes over a descriptor of a socket.
func fileConn(fd int) (net.Conn, error) {
	f := os.NewFile(uintptr(fd), "socket")
	defer f.Close() // FileConn duplicates it
	return net.FileConn(f)
}

// Shutdown ends the server: listeners close, requests that are under way end,
// connections are closed, and every Device that could be written is flushed. When
// ctx ends first, connections are cut, and the error is that of ctx: then requests
// may still be under way, and no Device must be closed yet. The Server cannot be
// used again.
func (s *Server) Shutdown(ctx context.Context) error {
	defer s.endIdle()
	mode := stopSilently
	if s.o.RefuseOnShutdown {
		mode = stopRefusing
	}
	s.mu.Lock()
	s.closing = true
	for l := range s.listeners {
		l.Close()
	}
	for c := range s.conns {
		c.stop(mode)
	}
	exports := make([]*export, 0, len(s.exports))
	for _, e := range s.exports {
		exports = append(exports, e)
	}
	s.mu.Unlock()
	done := make(chan struct{})
	go func() { // ends with the connections, which ctx cannot outlive but for a stuck Device
		s.join.Wait()
		close(done)
	}()
	if err := waitOrCut(ctx, done, func() { s.cut(nil) }); err != nil {
		return fmt.Errorf("shut down NBD server: requests are still under way: %w", err)
	}
	s.endIdle()
	s.pool.Wait() // they have nothing to do any more
	var errs []error
	for _, e := range exports {
		if err := e.flush(); err != nil {
			errs = append(errs, fmt.Errorf("shut down export %q: %w", e.Name, err))
		}
	}
	return errors.Join(errs...)
}

// endIdle ends what is kept for the next request.
func (s *Server) endIdle() {
	s.endOnce.Do(func() {
		close(s.over)
		s.pipes.close()
	})
}

func (s *Server) isClosing() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closing
}

// peerOf says who is at the other end.
func peerOf(nc net.Conn, raw syscall.RawConn) Peer {
	p := Peer{Network: "unix", UID: -1, PID: -1}
	if a := nc.RemoteAddr(); a != nil {
		p.Network, p.Addr = a.Network(), a.String()
	}
	if p.Network != "unix" {
		return p
	}
	raw.Control(func(fd uintptr) {
		if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			p.UID, p.PID = int(cred.Uid), int(cred.Pid)
		}
	})
	return p
}
