package hostdev

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keelblock/keelblock/blockdev/localdisk"
	"github.com/keelblock/keelblock/blockdev/nbd"
	"github.com/keelblock/keelblock/blockdev/nbd/server"
)

const diskSize = 1<<20 + 512

// serving is a process of ours: a server with one disk.
type serving struct {
	t    *testing.T
	srv  *server.Server
	disk *localdisk.Disk
	path string
}

func serve(t *testing.T, path string, x server.Export) *serving {
	t.Helper()
	if _, err := os.Stat(path); err != nil {
		if err := localdisk.Create(path, diskSize); err != nil {
			t.Fatal(err)
		}
	}
	disk, err := localdisk.Open(path, localdisk.Options{})
	if err != nil {
		t.Fatal(err)
	}
	s := &serving{t: t, srv: server.New(server.Options{}), disk: disk, path: path}
	x.Name, x.Device = "web0", disk
	if err := s.srv.Add(x); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.end)
	return s
}

// end ends the process.
func (s *serving) end() {
	if s.disk == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := s.srv.Shutdown(ctx); err != nil {
		s.t.Error(err)
	}
	if err := s.disk.Close(); err != nil {
		s.t.Error(err)
	}
	s.disk = nil
}

// attach attaches and keeps the device until the returned function or the test ends.
func (s *serving) attach(k *fakeKernel, index int, o Options) (*Attachment, func(), error) {
	o.Serve, o.Export = s.srv.ServeConn, "web0"
	if o.Backend == "" {
		o.Backend = "keelblock:1"
	}
	if o.Connections == 0 { // most tests want more than the default
		o.Connections = 2
	}
	a, err := newAttachment(index, o, k.host, k.kernel())
	if err != nil {
		return nil, func() {}, err
	}
	if err := a.Connect(s.t.Context()); err != nil {
		return nil, func() {}, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { a.Run(ctx); close(done) }()
	stop := func() { cancel(); <-done }
	s.t.Cleanup(stop)
	return a, stop, nil
}

func (k *fakeKernel) device(index uint32) (d fakeDevice, calls []string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.devices[index] != nil {
		d = *k.devices[index]
		d.sockets = slices.Clone(d.sockets)
	}
	return d, slices.Clone(k.calls)
}

// eventually waits for what others do; it is bounded for a machine that is busy.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within 20 s: %s", what)
		}
	}
}

func TestKernelIsToldWhatTheExportCan(t *testing.T) {
	rw := nbd.FlagHasFlags | nbd.FlagSendFlush | nbd.FlagSendFUA | nbd.FlagSendTrim | nbd.FlagSendWriteZeroes | nbd.FlagCanMultiConn
	for _, tt := range []struct {
		name        string
		export      server.Export
		o           Options
		want, never uint16
		sockets     int
	}{
		{"writable", server.Export{}, Options{}, rw, nbd.FlagReadOnly | nbd.FlagSendDF, 2},
		{"four connections", server.Export{}, Options{Connections: 4}, rw, nbd.FlagReadOnly, 4},
		{"attached read-only", server.Export{}, Options{ReadOnly: true}, nbd.FlagHasFlags | nbd.FlagReadOnly | nbd.FlagSendFlush, 0, 2},
		{"read-only export", server.Export{ReadOnly: true}, Options{}, nbd.FlagHasFlags | nbd.FlagReadOnly, nbd.FlagSendFUA | nbd.FlagSendTrim, 2},
		{"exclusive export", server.Export{Exclusive: true}, Options{Connections: 4}, nbd.FlagSendFlush | nbd.FlagSendFUA, nbd.FlagCanMultiConn, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			k := newFakeKernel(t)
			s := serve(t, filepath.Join(t.TempDir(), "disk.raw"), tt.export)
			if _, _, err := s.attach(k, 3, tt.o); err != nil {
				t.Fatal(err)
			}
			d, _ := k.device(3)
			if f := uint16(d.flags); f&tt.want != tt.want || f&tt.never != 0 {
				t.Errorf("the kernel was told flags %#x, want %#x and none of %#x", f, tt.want, tt.never)
			}
			if d.size != diskSize || len(d.sockets) != tt.sockets || d.backend != "keelblock:1" {
				t.Errorf("the kernel was told %d bytes, %d sockets, backend %q", d.size, len(d.sockets), d.backend)
			}
		})
	}
}

func TestRequestsReachTheDisk(t *testing.T) {
	k := newFakeKernel(t)
	s := serve(t, filepath.Join(t.TempDir(), "disk.raw"), server.Export{})
	a, _, err := s.attach(k, 0, Options{})
	if err != nil {
		t.Fatal(err)
	}
	data := bytes.Repeat([]byte("keel"), 128)
	if errno, _, err := k.request(0, 0, nbd.Request{Type: nbd.CmdWrite, Flags: nbd.CmdFlagFUA, Offset: diskSize - 512, Length: 512}, data); err != nil || errno != 0 {
		t.Fatalf("write: errno %d, %v", errno, err)
	}
	if errno, got, err := k.request(0, 1, nbd.Request{Type: nbd.CmdRead, Offset: diskSize - 512, Length: 512}, nil); err != nil || errno != 0 || !bytes.Equal(got, data) {
		t.Fatalf("read on the other connection: errno %d, %v", errno, err)
	}
	if n := s.srv.Connections("web0"); n != 2 || a.Connections() != 2 {
		t.Errorf("%d and %d connections, want 2", n, a.Connections())
	}
	if err := a.Detach(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, calls := k.device(0); !slices.Equal(calls, []string{"connect", "disconnect"}) {
		t.Errorf("calls %q", calls)
	}
	if n := s.srv.Connections("web0"); n != 0 {
		t.Errorf("%d connections after the detach", n)
	}
	if err := a.Detach(t.Context()); err != nil {
		t.Errorf("second detach: %v", err)
	}
}

// The process dies, the kernel keeps the device; the next process gives it sockets.
func TestLaterProcessTakesTheDeviceOver(t *testing.T) {
	k := newFakeKernel(t)
	path := filepath.Join(t.TempDir(), "disk.raw")
	s := serve(t, path, server.Export{})
	_, stop, err := s.attach(k, 1, Options{})
	if err != nil {
		t.Fatal(err)
	}
	data := bytes.Repeat([]byte{7}, 512)
	if errno, _, err := k.request(1, 0, nbd.Request{Type: nbd.CmdWrite, Length: 512}, data); err != nil || errno != 0 {
		t.Fatalf("write: errno %d, %v", errno, err)
	}
	stop()
	s.end()
	if err := os.Truncate(path, diskSize+4096); err != nil { // grown while it was away
		t.Fatal(err)
	}
	s = serve(t, path, server.Export{})
	a, _, err := s.attach(k, 1, Options{})
	if err != nil {
		t.Fatal(err)
	}
	for socket := range 2 {
		if errno, got, err := k.request(1, socket, nbd.Request{Type: nbd.CmdRead, Length: 512}, nil); err != nil || errno != 0 || !bytes.Equal(got, data) {
			t.Fatalf("read on socket %d after the takeover: errno %d, %v", socket, errno, err)
		}
	}
	d, calls := k.device(1)
	if !slices.Equal(calls, []string{"connect", "reconfigure", "reconfigure"}) || d.size != diskSize+4096 || a.Connections() != 2 {
		t.Errorf("calls %q, %d bytes, %d connections", calls, d.size, a.Connections())
	}
}

// A process that stops in order answers what the kernel has sent: the kernel repeats
// what it has sent 30 s later, but what it could not send at once.
func TestStopAnswersWhatWasSent(t *testing.T) {
	k := newFakeKernel(t)
	s := serve(t, filepath.Join(t.TempDir(), "disk.raw"), server.Export{})
	_, stop, err := s.attach(k, 1, Options{Connections: 1})
	if err != nil {
		t.Fatal(err)
	}
	const count = 200
	var all []byte
	for i := range uint64(count) {
		all = nbd.AppendRequest(all, nbd.Request{Type: nbd.CmdWrite, Cookie: i, Offset: i * 512, Length: 512})
		all = append(all, bytes.Repeat([]byte{byte(i)}, 512)...)
	}
	d, _ := k.device(1)
	if _, err := d.sockets[0].Write(all); err != nil {
		t.Fatal(err)
	}
	stop()
	s.end()
	replies, err := io.ReadAll(d.sockets[0])
	if err != nil {
		t.Fatal(err)
	}
	if len(replies) != count*16 {
		t.Errorf("%d bytes of replies to %d writes of 512, want %d", len(replies), count, count*16)
	}
}

// Of two connections one ends while the process lives; Run replaces it, and the other
// is left alone.
func TestConnectionThatEndsIsReplaced(t *testing.T) {
	k := newFakeKernel(t)
	s := serve(t, filepath.Join(t.TempDir(), "disk.raw"), server.Export{})
	a, _, err := s.attach(k, 2, Options{})
	if err != nil {
		t.Fatal(err)
	}
	k.mu.Lock()
	k.devices[2].sockets[0].Write([]byte("this is no request, and long enough to be one"))
	k.mu.Unlock()
	eventually(t, "a fresh connection", func() bool {
		_, calls := k.device(2)
		return len(calls) == 2 && a.Connections() == 2
	})
	for socket := range 2 {
		if errno, _, err := k.request(2, socket, nbd.Request{Type: nbd.CmdFlush}, nil); err != nil || errno != 0 {
			t.Errorf("flush on socket %d: errno %d, %v", socket, errno, err)
		}
	}
}

// Somebody else frees the device: it is attached anew.
func TestDeviceThatWasFreedIsAttachedAnew(t *testing.T) {
	k := newFakeKernel(t)
	s := serve(t, filepath.Join(t.TempDir(), "disk.raw"), server.Export{})
	a, _, err := s.attach(k, 2, Options{})
	if err != nil {
		t.Fatal(err)
	}
	k.mu.Lock()
	k.free(2)
	k.show(2)
	k.mu.Unlock()
	eventually(t, "the device is connected again", func() bool {
		d, _ := k.device(2)
		return d.size == diskSize && a.Connections() == 2
	})
}

// The kernel says success and drops the sockets while its own are not dead. They are
// offered again until it takes them.
func TestDroppedSocketsAreOfferedAgain(t *testing.T) {
	k := newFakeKernel(t)
	path := filepath.Join(t.TempDir(), "disk.raw")
	// A device of ours whose sockets the kernel still takes for alive.
	p, err := newPair()
	if err != nil {
		t.Fatal(err)
	}
	f, err := connFile(p.client)
	if err != nil {
		t.Fatal(err)
	}
	k.devices[4] = &fakeDevice{backend: "keelblock:1", size: diskSize, sockets: []*os.File{f}}
	k.show(4)
	s := serve(t, path, server.Export{})
	a, _, err := s.attach(k, 4, Options{Connections: 1})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "a second offer", func() bool { _, calls := k.device(4); return len(calls) >= 2 })
	p.client.Close()
	p.server.Close() // now the kernel notices
	eventually(t, "the kernel has taken one", func() bool {
		d, _ := k.device(4)
		return d.sockets[0] != f && a.Connections() == 1
	})
	if errno, _, err := k.request(4, 0, nbd.Request{Type: nbd.CmdFlush}, nil); err != nil || errno != 0 {
		t.Errorf("flush: errno %d, %v", errno, err)
	}
}

func TestDeviceOfOthersIsLeftAlone(t *testing.T) {
	k := newFakeKernel(t)
	k.devices[0] = &fakeDevice{backend: "other", size: 512}
	k.show(0)
	s := serve(t, filepath.Join(t.TempDir(), "disk.raw"), server.Export{})
	_, _, err := s.attach(k, 0, Options{})
	if !errors.Is(err, ErrBusy) || !strings.Contains(err.Error(), `"other"`) {
		t.Errorf("error %v, want ErrBusy with who has it", err)
	}
	if d, calls := k.device(0); d.backend != "other" || len(calls) != 0 {
		t.Errorf("device %v, calls %q", d, calls)
	}
	eventually(t, "no connection is left", func() bool { return s.srv.Connections("web0") == 0 })
}

// A process that starts runs what it remembers, whether or not the kernel is ready.
func TestRunConnectsByItself(t *testing.T) {
	k := newFakeKernel(t)
	k.devices[5] = &fakeDevice{backend: "other", size: 512}
	k.show(5)
	s := serve(t, filepath.Join(t.TempDir(), "disk.raw"), server.Export{})
	a, err := newAttachment(5, Options{Serve: s.srv.ServeConn, Export: "web0", Backend: "keelblock:1"}, k.host, k.kernel())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go a.Run(ctx)
	eventually(t, "it says that the device is busy", func() bool { return errors.Is(a.Err(), ErrBusy) })
	k.mu.Lock()
	k.free(5)
	k.show(5)
	k.mu.Unlock()
	eventually(t, "the device is connected", func() bool { return a.Connections() == 1 && a.Err() == nil })
	s.end() // the process ends; the kernel waits, and nothing can be written out
	if err := a.Detach(t.Context()); !errors.Is(err, ErrNoConnection) {
		t.Errorf("detach without connections: %v", err)
	}
}

func TestResize(t *testing.T) {
	k := newFakeKernel(t)
	s := serve(t, filepath.Join(t.TempDir(), "disk.raw"), server.Export{})
	a, _, err := s.attach(k, 0, Options{})
	if err != nil {
		t.Fatal(err)
	}
	write := func(offset uint64) uint32 {
		errno, _, err := k.request(0, 0, nbd.Request{Type: nbd.CmdWrite, Offset: offset, Length: 512}, make([]byte, 512))
		if err != nil {
			t.Fatal(err)
		}
		return errno
	}
	if errno := write(2<<20 - 512); errno == 0 {
		t.Error("a write past the end is accepted")
	}
	if err := s.disk.Resize(2 << 20); err != nil {
		t.Fatal(err)
	}
	if err := a.Resize(2 << 20); err != nil {
		t.Fatal(err)
	}
	if d, calls := k.device(0); d.size != 2<<20 || len(calls) != 2 {
		t.Errorf("%d bytes, calls %q", d.size, calls)
	}
	if errno := write(2<<20 - 512); errno != 0 {
		t.Errorf("write into the new part: errno %d", errno)
	}
}

// A mounted device is not taken away from under its file system.
func TestHoldersAreNamed(t *testing.T) {
	k := newFakeKernel(t)
	mounts := k.host.dev + "/nbd1 /srv ext4 rw 0 0\n" + k.host.dev + "/nbd1p2 /home ext4 rw 0 0\n" + k.host.dev + "/nbd10 /tmp ext4 rw 0 0\n"
	if err := os.WriteFile(k.host.mounts, []byte(mounts), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(k.host.sys+"/nbd1/holders/dm-0", 0o755); err != nil {
		t.Fatal(err)
	}
	want := []string{k.host.dev + "/nbd1 is mounted on /srv", k.host.dev + "/nbd1p2 is mounted on /home", "dm-0 is built on it"}
	if got := k.host.holders(1); !slices.Equal(got, want) {
		t.Errorf("holders %q, want %q", got, want)
	}
}
