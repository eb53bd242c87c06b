package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/keelblock/keelblock/appliance/config"
)

// maxEntered is how many connections one entrance has open at once; more wait to be
// accepted.
const maxEntered = 1024

// entrance is where the clients of keelblock nbd come from: connections that are there,
// and sockets that more come from.
type entrance struct {
	address   string // of --listen
	conns     []net.Conn
	listeners []net.Listener
}

// entrance opens what the flags say, or takes what was handed over.
func (a *app) entrance(stdio bool, listen string) (_ *entrance, err error) {
	in := new(entrance)
	defer func() {
		if err != nil {
			in.close()
		}
	}()
	if listen != "" {
		l, address, err := listenOn(listen)
		if err != nil {
			return in, err
		}
		in.address, in.listeners = address, []net.Listener{l}
		return in, nil
	}
	// A program that hands a socket over to this very process means it, also when its
	// user has written --stdio: that is how nbdinfo [ … ] and nbdcopy [ … ] start servers.
	sockets, err := a.handedOver()
	if err != nil {
		return in, err
	}
	for _, h := range sockets {
		if err := in.add(h); err != nil {
			return in, fmt.Errorf("use %s: %w", h.file.Name(), err)
		}
	}
	switch {
	case len(sockets) > 0:
		return in, nil
	case stdio && (isKind(0, unix.S_IFSOCK) || isKind(0, unix.S_IFIFO)):
		nc, err := stdioConn()
		if err != nil {
			return in, fmt.Errorf("use standard input: %w", err)
		}
		in.conns = []net.Conn{nc}
		return in, nil
	case stdio:
		return in, usageError{errors.New("standard input is neither a socket nor a pipe; --stdio is for programs that start a server, as in: nbdsh -c 'h.connect_command([\"keelblock\", \"nbd\", \"FILE\", \"--stdio\"])'")}
	}
	return in, usageError{errors.New("say where clients connect: --stdio, --listen unix:PATH or --listen tcp:HOST:PORT")}
}

// add takes a socket that was handed over.
func (in *entrance) add(h handed) error {
	defer h.file.Close() // net works with a duplicate
	l, ok, err := h.listener()
	if err != nil {
		return err
	}
	if ok {
		in.listeners = append(in.listeners, l)
		return nil
	}
	nc, err := net.FileConn(h.file)
	if err != nil {
		return err
	}
	in.conns = append(in.conns, nc)
	return nil
}

// listenOn opens unix:PATH or tcp:HOST:PORT. A socket that nobody serves any more is
// replaced.
func listenOn(listen string) (net.Listener, string, error) {
	network, address, err := config.SplitListen(listen)
	if err != nil {
		return nil, "", usageError{err}
	}
	l, err := net.Listen(network, address)
	if network == "unix" && errors.Is(err, syscall.EADDRINUSE) && deserted(address) {
		if err := os.Remove(address); err != nil {
			return nil, "", err
		}
		l, err = net.Listen(network, address)
	}
	if err != nil {
		return nil, "", fmt.Errorf("listen on %s: %w", listen, err)
	}
	return l, network + ":" + l.Addr().String(), nil
}

// deserted reports whether a path is a socket that nobody listens on.
func deserted(path string) bool {
	st, err := os.Lstat(path)
	if err != nil || st.Mode().Type() != fs.ModeSocket {
		return false
	}
	nc, err := net.Dial("unix", path)
	if err == nil {
		nc.Close()
	}
	return errors.Is(err, syscall.ECONNREFUSED)
}

// serve serves the connections that are there, and those that come until ctx ends. An
// error is that of a connection that was there, or of a socket.
func (in *entrance) serve(ctx context.Context, log *slog.Logger, serve func(context.Context, net.Conn) error) error {
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex
		errs  []error
		slots = make(chan struct{}, maxEntered)
	)
	failed := func(err error) {
		mu.Lock()
		defer mu.Unlock()
		errs = append(errs, err)
	}
	stop := context.AfterFunc(ctx, func() {
		for _, l := range in.listeners {
			l.Close()
		}
	})
	defer stop()
	for _, nc := range in.conns {
		wg.Go(func() { failed(serve(ctx, nc)) })
	}
	for _, l := range in.listeners {
		wg.Go(func() {
			failed(accept(ctx, l, slots, func(nc net.Conn) {
				wg.Go(func() {
					defer func() { <-slots }()
					if err := serve(ctx, nc); err != nil {
						log.Info("connection ended", "error", err)
					}
				})
			}))
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// accept calls start for each connection, with a slot taken, until ctx ends.
func accept(ctx context.Context, l net.Listener, slots chan struct{}, start func(net.Conn)) error {
	for {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return nil
		}
		nc, err := l.Accept()
		if err == nil {
			start(nc)
			continue
		}
		<-slots
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE), errors.Is(err, unix.ENOBUFS), errors.Is(err, unix.ENOMEM), errors.Is(err, unix.ECONNABORTED):
			select {
			case <-time.After(100 * time.Millisecond):
			case <-ctx.Done():
				return nil
			}
		default:
			return fmt.Errorf("accept connections on %s: %w", l.Addr(), err)
		}
	}
}

func (in *entrance) close() {
	for _, l := range in.listeners {
		l.Close()
	}
	for _, nc := range in.conns {
		nc.Close()
	}
}

// isKind reports whether a descriptor is of a type of file.
func isKind(fd int, kind uint32) bool {
	var st unix.Stat_t
	return unix.Fstat(fd, &st) == nil && st.Mode&unix.S_IFMT == kind
}

// stdioConn is the connection on standard input: a socket, which serves both ways, or a
// pipe, whose way back is standard output. Descriptors 0 and 1 lead nowhere afterwards,
// so that nothing else is written there, and that the client sees the end when the
// connection is closed.
func stdioConn() (net.Conn, error) {
	if isKind(0, unix.S_IFSOCK) {
		nc, err := net.FileConn(os.Stdin)
		if err != nil {
			return nil, err
		}
		return nc, intoNothing(0, 1)
	}
	if !isKind(1, unix.S_IFIFO) {
		return nil, errors.New("it is a pipe, and standard output is none")
	}
	var ends [2]*os.File
	for fd := range ends {
		n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			return nil, err
		}
		if err := unix.SetNonblock(n, true); err != nil {
			return nil, err
		}
		ends[fd] = os.NewFile(uintptr(n), []string{"standard input", "standard output"}[fd])
	}
	return pipes{in: ends[0], out: ends[1]}, intoNothing(0, 1)
}

func intoNothing(fds ...int) error {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	for _, fd := range fds {
		if err := unix.Dup3(int(null.Fd()), fd, 0); err != nil {
			return err
		}
	}
	return nil
}

// pipes is a connection of two pipes.
type pipes struct{ in, out *os.File }

func (p pipes) Read(b []byte) (int, error)  { return p.in.Read(b) }
func (p pipes) Write(b []byte) (int, error) { return p.out.Write(b) }
func (p pipes) Close() error                { return errors.Join(p.in.Close(), p.out.Close()) }

func (p pipes) SetReadDeadline(t time.Time) error  { return p.in.SetReadDeadline(t) }
func (p pipes) SetWriteDeadline(t time.Time) error { return p.out.SetWriteDeadline(t) }
func (p pipes) SetDeadline(t time.Time) error {
	return errors.Join(p.SetReadDeadline(t), p.SetWriteDeadline(t))
}

func (p pipes) LocalAddr() net.Addr  { return pipeAddr{} }
func (p pipes) RemoteAddr() net.Addr { return pipeAddr{} }

type pipeAddr struct{}

func (pipeAddr) Network() string { return "pipe" }
func (pipeAddr) String() string  { return "stdio" }
