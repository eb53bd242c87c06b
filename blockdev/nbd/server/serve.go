package server

import (
	"context"
	"errors"
	"fmt"
	"net"
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

// start runs a connection in a goroutine that Shutdown joins.
func (s *Server) start(nc net.Conn) {
	sock, err := newSocket(nc, s.o.StallTimeout)
	if err != nil {
		s.o.Logger.Warn("NBD connection cannot be served", "err", err)
		nc.Close()
		return
	}
	c := newConn(s, sock)
	s.mu.Lock()
	if s.closing || len(s.conns) >= s.o.MaxConnections {
		if !s.closing {
			s.retired.RefusedConnection++
		}
		s.mu.Unlock()
		nc.Close()
		return
	}
	s.conns[c] = struct{}{}
	s.join.Add(1)
	s.mu.Unlock()
	go func() {
		defer s.join.Done()
		c.serve()
	}()
}

// Shutdown ends the server: listeners close, requests that are under way end,
// connections are closed, and every Device that could be written is flushed. When
// ctx ends first, connections are cut, and the error is that of ctx: then requests
// may still be under way, and no Device must be closed yet. The Server cannot be
// used again.
func (s *Server) Shutdown(ctx context.Context) error {
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
	var errs []error
	for _, e := range exports {
		if err := e.flush(); err != nil {
			errs = append(errs, fmt.Errorf("shut down export %q: %w", e.Name, err))
		}
	}
	return errors.Join(errs...)
}

func (s *Server) isClosing() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closing
}

// peerOf says who is at the other end.
func peerOf(nc net.Conn, raw syscall.RawConn) Peer {
	p := Peer{Network: nc.RemoteAddr().Network(), Addr: nc.RemoteAddr().String(), UID: -1, PID: -1}
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
