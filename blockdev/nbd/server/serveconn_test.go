package server_test

import (
	"context"
	"errors"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/keelblock/keelblock/blockdev/nbd"
	"github.com/keelblock/keelblock/blockdev/nbd/server"
)

// socketPair is a connection without an address, as a parent hands it to its child.
func socketPair(t *testing.T) (a, b net.Conn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socket pair")
		if ends[i], err = net.FileConn(f); err != nil {
			t.Fatal(err)
		}
		f.Close()
		t.Cleanup(func() { ends[i].Close() })
	}
	return ends[0], ends[1]
}

// One connection of any kind is served until the client leaves.
func TestServeConn(t *testing.T) {
	pairs := map[string]func() (net.Conn, net.Conn){
		"socket pair": func() (net.Conn, net.Conn) { return socketPair(t) },
		"pipe":        net.Pipe,
	}
	for kind, pair := range pairs {
		t.Run(kind, func(t *testing.T) {
			s := start(t, server.Options{})
			s.add(t, server.Export{Name: "", Device: newDisk(t, t.TempDir(), 1<<20)})
			ours, theirs := pair()
			done := make(chan error, 1)
			go func() { done <- s.ServeConn(context.Background(), theirs) }()
			w := greet(t, ours)
			if list := w.ack(nbd.OptList, nil); len(list) != 2 {
				t.Errorf("LIST: %v, want the one export", list)
			}
			w.ack(nbd.OptGo, infoRequest(""))
			w.alive()
			w.send(nbd.Request{Type: nbd.CmdDisc}, nil)
			if err := <-done; err != nil {
				t.Errorf("ServeConn after DISC: %v", err)
			}
			w.closed()
		})
	}
}

func TestServeConnEnds(t *testing.T) {
	s := start(t, server.Options{})
	d := newDisk(t, t.TempDir(), 1<<20)
	s.add(t, server.Export{Name: "disk", Device: d})
	begin := func(ctx context.Context) (*wire, chan error) {
		ours, theirs := socketPair(t)
		done := make(chan error, 1)
		go func() { done <- s.ServeConn(ctx, theirs) }()
		w := greet(t, ours)
		w.ack(nbd.OptGo, infoRequest("disk"))
		return w, done
	}
	ctx, cancel := context.WithCancel(context.Background())
	w, done := begin(ctx)
	w.alive()
	cancel()
	if err := <-done; err != nil {
		t.Errorf("ServeConn after its context: %v", err)
	}
	w.closed()
	w, done = begin(context.Background())
	w.put(make([]byte, nbd.RequestSize))
	if err := <-done; err == nil {
		t.Error("ServeConn is content with something that is no request")
	}
	w, done = begin(context.Background())
	w.alive()
	if err := s.Shutdown(within(t, 10*time.Second)); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Errorf("ServeConn after Shutdown: %v", err)
	}
	w.closed()
	ours, theirs := socketPair(t)
	if err := s.ServeConn(context.Background(), theirs); !errors.Is(err, server.ErrServerClosed) {
		t.Errorf("ServeConn of a server that is shut down: %v, want ErrServerClosed", err)
	}
	if _, err := ours.Read(make([]byte, 1)); err == nil {
		t.Error("the connection that was refused is open")
	}
}

// The kernel finds a TCP peer that vanished within 15 s: unacknowledged data ends the
// connection after that time, and an idle one is probed after 6, 9 and 12 s.
func TestTCPPeersThatVanishAreFound(t *testing.T) {
	s := start(t, server.Options{})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ours, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	raw, err := theirs.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.ServeConn(ctx, theirs) }()
	greet(t, ours)
	want := map[int]int{unix.TCP_USER_TIMEOUT: 15_000, unix.TCP_KEEPIDLE: 6, unix.TCP_KEEPINTVL: 3, unix.TCP_KEEPCNT: 3}
	options(t, raw, unix.IPPROTO_TCP, want)
	options(t, raw, unix.SOL_SOCKET, map[int]int{unix.SO_KEEPALIVE: 1})
	cancel()
	<-done
}

func options(t *testing.T, raw syscall.RawConn, level int, want map[int]int) {
	t.Helper()
	err := raw.Control(func(fd uintptr) {
		for option, n := range want {
			if got, err := unix.GetsockoptInt(int(fd), level, option); err != nil || got != n {
				t.Errorf("socket option %d is %d (%v), want %d", option, got, err, n)
			}
		}
	})
	if err != nil {
		t.Error(err)
	}
}
