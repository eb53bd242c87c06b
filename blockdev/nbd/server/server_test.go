package server_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"path/filepath"
	"testing"
	"time"

	"github.com/keelblock/keelblock/blockdev"
	"github.com/keelblock/keelblock/blockdev/blockdevtest"
	"github.com/keelblock/keelblock/blockdev/faultdev"
	"github.com/keelblock/keelblock/blockdev/localdisk"
	"github.com/keelblock/keelblock/blockdev/nbd/client"
	"github.com/keelblock/keelblock/blockdev/nbd/server"
)

// running is a server on a unix socket.
type running struct {
	*server.Server
	socket string
}

// start runs a server until the test ends, and checks that it then shuts down.
func start(t testing.TB, o server.Options) *running {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "nbd.sock")
	s := &running{server.New(o), socket}
	serve(t, s.Server, listen(t, socket))
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := s.Shutdown(ctx); err != nil {
			t.Errorf("Shutdown: %v", err)
		}
	})
	return s
}

func listen(t testing.TB, socket string) net.Listener {
	t.Helper()
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// serve serves a listener until the test ends.
func serve(t testing.TB, s *server.Server, l net.Listener) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		// A server that is shut down before Serve began serves nobody.
		if err := <-done; err != nil && !errors.Is(err, server.ErrServerClosed) {
			t.Errorf("Serve: %v", err)
		}
	})
}

func (s *running) uri(name string) string {
	return fmt.Sprintf("nbd+unix:///%s?socket=%s", url.PathEscape(name), url.QueryEscape(s.socket))
}

// add adds an export and removes it before its Device, made before this call, is
// closed.
func (s *running) add(t testing.TB, x server.Export) {
	t.Helper()
	if err := s.Add(x); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := s.Remove(ctx, x.Name); err != nil && !errors.Is(err, server.ErrNotFound) {
			t.Errorf("Remove: %v", err)
		}
	})
}

func (s *running) dial(t testing.TB, name string) *client.Client {
	t.Helper()
	return dial(t, s.uri(name))
}

func dial(t testing.TB, uri string) *client.Client {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	c, err := client.Dial(ctx, uri)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// newDisk makes a sparse file of the size and opens it, in a folder on a disk or,
// given dir, there.
func newDisk(t testing.TB, dir string, size int64) *localdisk.Disk {
	t.Helper()
	path := filepath.Join(dir, "disk.raw")
	if err := localdisk.Create(path, size); err != nil {
		t.Fatal(err)
	}
	d, err := localdisk.Open(path, localdisk.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// plain hides all abilities of a Device, so that the server has to do without.
type plain struct{ blockdev.Device }

func TestConformance(t *testing.T) {
	wrappers := map[string]func(d *localdisk.Disk) blockdev.Device{
		"localdisk": func(d *localdisk.Disk) blockdev.Device { return d },
		"faultdev":  func(d *localdisk.Disk) blockdev.Device { return faultdev.New(d) },
		"plain":     func(d *localdisk.Disk) blockdev.Device { return plain{d} },
	}
	for name, wrap := range wrappers {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			blockdevtest.Run(t, func(t *testing.T, size int64) blockdev.Device {
				d := newDisk(t, t.TempDir(), size) // closed after the server
				s := start(t, server.Options{})
				s.add(t, server.Export{Name: "disk", Device: wrap(d)})
				return s.dial(t, "disk")
			})
		})
	}
}

func TestConformanceOverTCP(t *testing.T) {
	blockdevtest.Run(t, func(t *testing.T, size int64) blockdev.Device {
		d := newDisk(t, t.TempDir(), size)
		s := start(t, server.Options{})
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		serve(t, s.Server, l)
		s.add(t, server.Export{Name: "disk", Device: d})
		return dial(t, "nbd://"+l.Addr().String()+"/disk")
	})
}

func TestConformanceReadOnly(t *testing.T) {
	blockdevtest.RunReadOnly(t, func(t *testing.T) (blockdev.Device, []byte) {
		d := newDisk(t, t.TempDir(), 1<<20)
		want := make([]byte, 1<<20)
		for i := range want {
			want[i] = byte(i * 7)
		}
		clear(want[100_000:300_000])
		if _, err := d.WriteAt(want[:100_000], 0); err != nil {
			t.Fatal(err)
		}
		if _, err := d.WriteAt(want[300_000:], 300_000); err != nil {
			t.Fatal(err)
		}
		s := start(t, server.Options{})
		s.add(t, server.Export{Name: "disk", Device: d, ReadOnly: true})
		c := s.dial(t, "disk")
		if !c.ReadOnly() {
			t.Error("the client does not see that the export is read-only")
		}
		return c, want
	})
}
