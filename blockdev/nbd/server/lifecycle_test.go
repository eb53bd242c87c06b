package server_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/keelblock/keelblock/blockdev/faultdev"
	"github.com/keelblock/keelblock/blockdev/nbd"
	"github.com/keelblock/keelblock/blockdev/nbd/server"
)

func writeAt(off uint64, n uint32) nbd.Request {
	return nbd.Request{Type: nbd.CmdWrite, Offset: off, Length: n}
}

// held makes a server over a Device whose writes at 0 wait for the returned Hold.
func held(t *testing.T, o server.Options) (*running, *faultdev.Device, *faultdev.Hold) {
	t.Helper()
	d := faultdev.New(newDisk(t, t.TempDir(), 1<<20))
	s := start(t, o)
	s.add(t, server.Export{Name: "disk", Device: d})
	h := d.Hold(func(r faultdev.Request) bool { return r.Op == faultdev.Flush || r.Op == faultdev.Read && r.Offset == 0 })
	t.Cleanup(h.Release)
	return s, d, h
}

func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

func TestAddRefusesWhatCannotBeServed(t *testing.T) {
	s := start(t, server.Options{})
	d := newDisk(t, t.TempDir(), 4096)
	s.add(t, server.Export{Name: "disk", Device: d})
	if err := s.Add(server.Export{Name: "disk", Device: d}); !errors.Is(err, server.ErrExists) {
		t.Errorf("second Add of a name: %v, want ErrExists", err)
	}
	for _, name := range []string{"\xFF", "a\x00b", string(bytes.Repeat([]byte("n"), 4097))} {
		if err := s.Add(server.Export{Name: name, Device: d}); err == nil {
			t.Errorf("Add of the name %.10q succeeded", name)
		}
	}
	if err := s.Remove(within(t, time.Second), "none"); !errors.Is(err, server.ErrNotFound) {
		t.Errorf("Remove of nothing: %v, want ErrNotFound", err)
	}
}

func TestRemoveDrainsRefusesAndLeavesOthersAlone(t *testing.T) {
	s, d, h := held(t, server.Options{})
	s.add(t, server.Export{Name: "other", Device: newDisk(t, t.TempDir(), 1<<20)})
	other := s.open(t, "other", true)
	forms(t, func(t *testing.T, structured bool) {
		if s.Add(server.Export{Name: "disk", Device: d}) == nil { // the second time
			h = d.Hold(func(r faultdev.Request) bool { return r.Op == faultdev.Read && r.Offset == 0 })
			defer h.Release()
		}
		w, idle := s.open(t, "disk", structured), s.open(t, "disk", structured)
		if n := s.Connections("disk"); n != 2 {
			t.Errorf("Connections = %d, want 2", n)
		}
		slow := nbd.Request{Type: nbd.CmdRead, Length: 512}
		slow.Cookie = w.send(slow, nil)
		<-h.Arrived()
		removed := make(chan error, 1)
		go func() { removed <- s.Remove(within(t, 10*time.Second), "disk") }()
		idle.closed() // had nothing under way
		w.fails(writeAt(8192, 600_000), bytes.Repeat([]byte{1}, 600_000), nbd.ESHUTDOWN)
		w.fails(nbd.Request{Type: nbd.CmdFlush}, nil, nbd.ESHUTDOWN)
		s.connect(t).refused(nbd.OptGo, infoRequest("disk"), nbd.RepErrUnknown)
		other.alive()
		select {
		case err := <-removed:
			t.Errorf("Remove returned %v while a request was under way", err)
		default:
		}
		h.Release()
		if got := w.receive(slow); got.errno != nbd.OK {
			t.Errorf("the request that was under way: %v, want success", got.errno)
		}
		w.closed()
		if err := <-removed; err != nil {
			t.Errorf("Remove: %v", err)
		}
		other.alive()
	})
}

// A client that does not stop sending cannot keep an export.
func TestRemoveEndsAlthoughTheClientSendsOn(t *testing.T) {
	for way, d := range devices(t, 1<<20) {
		t.Run(way, func(t *testing.T) {
			s := start(t, server.Options{})
			s.add(t, server.Export{Name: "disk", Device: d})
			w := s.open(t, "disk", true)
			go io.Copy(io.Discard, w.nc)
			go func() {
				p := append(nbd.AppendRequest(nil, writeAt(0, 4096)), make([]byte, 4096)...)
				for {
					if _, err := w.nc.Write(p); err != nil {
						return
					}
				}
			}()
			eventually(t, "requests come", func() bool { return s.Stats().Requests > 0 })
			if err := s.Remove(within(t, 10*time.Second), "disk"); err != nil {
				t.Errorf("Remove: %v", err)
			}
		})
	}
}

func TestRemoveGivesUpWithItsContext(t *testing.T) {
	s, _, h := held(t, server.Options{})
	w := s.open(t, "disk", true)
	w.send(nbd.Request{Type: nbd.CmdRead, Length: 512}, nil)
	<-h.Arrived()
	err := s.Remove(within(t, 50*time.Millisecond), "disk")
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Remove with a request that is stuck: %v, want DeadlineExceeded", err)
	}
	w.closed()
	h.Release()
	eventually(t, "the connection is gone", func() bool { return s.Stats().Connections == 0 })
}

// Requests that Shutdown does not carry out stay unanswered, so that a client that
// reconnects repeats them.
func TestShutdownDrainsAndFlushes(t *testing.T) {
	for _, refuse := range []bool{false, true} {
		s, d, h := held(t, server.Options{RefuseOnShutdown: refuse})
		w := s.open(t, "disk", true)
		w.alive()
		slow := nbd.Request{Type: nbd.CmdRead, Length: 512}
		slow.Cookie = w.send(slow, nil)
		<-h.Arrived()
		flushes := d.Count(faultdev.Flush)
		done := make(chan error, 1)
		go func() { done <- s.Shutdown(within(t, 10*time.Second)) }()
		eventually(t, "the socket accepts no more connections", func() bool {
			nc, err := net.Dial("unix", s.socket)
			if err == nil {
				nc.Close()
			}
			return err != nil
		})
		if err := s.Add(server.Export{Name: "late", Device: d}); !errors.Is(err, server.ErrServerClosed) {
			t.Errorf("Add during Shutdown: %v, want ErrServerClosed", err)
		}
		if refuse {
			w.fails(writeAt(4096, 512), make([]byte, 512), nbd.ESHUTDOWN)
		} else {
			w.send(writeAt(4096, 512), bytes.Repeat([]byte{0xEE}, 512))
		}
		h.Release()
		if got := w.receive(slow); got.errno != nbd.OK {
			t.Errorf("the request that was under way: %v", got.errno)
		}
		w.closed()
		if err := <-done; err != nil {
			t.Errorf("Shutdown: %v", err)
		}
		if n := d.Count(faultdev.Flush) - flushes; n != 1 {
			t.Errorf("Shutdown flushed %d times, want once", n)
		}
		p := make([]byte, 512)
		if _, err := d.ReadAt(p, 4096); err != nil || bytes.Contains(p, []byte{0xEE}) {
			t.Errorf("a request that was not answered was carried out (%v)", err)
		}
	}
}

func TestShutdownReportsAFlushThatFailed(t *testing.T) {
	d := faultdev.New(newDisk(t, t.TempDir(), 1<<20))
	s := server.New(server.Options{})
	if err := s.Add(server.Export{Name: "disk", Device: d}); err != nil {
		t.Fatal(err)
	}
	broken := errors.New("broken")
	d.Inject(func(faultdev.Request) faultdev.Fault { return faultdev.Fault{Err: broken} })
	if err := s.Shutdown(within(t, time.Second)); !errors.Is(err, broken) {
		t.Errorf("Shutdown: %v, want the error of the flush", err)
	}
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "late.sock"))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Serve(context.Background(), l); !errors.Is(err, server.ErrServerClosed) {
		t.Errorf("Serve after Shutdown: %v, want ErrServerClosed", err)
	}
}

// A client that disappears in the middle of a request loses that request, or the
// part of it that had not come; nobody else loses anything.
func TestClientThatDisappearsInAWriteLosesNothingElse(t *testing.T) {
	everyWay(t, 4<<20, func(t *testing.T, s *running, w *wire) {
		w.works(writeAt(0, 4<<20), bytes.Repeat([]byte{1}, 4<<20))
		gone := s.open(t, "disk", false)
		gone.works(writeAt(100, 1000), bytes.Repeat([]byte{2}, 1000))
		// 1 MiB from 1 MiB + 100 KiB on, of which 400 KiB come: the piece up to the
		// first boundary and one whole stripe were there, the next was not.
		gone.put(append(nbd.AppendRequest(nil, writeAt(1<<20+100<<10, 1<<20)), bytes.Repeat([]byte{3}, 430<<10)...))
		gone.nc.Close()
		eventually(t, "the connection is gone", func() bool { return s.Connections("disk") == 1 })
		want := bytes.Repeat([]byte{1}, 4<<20)
		copy(want[100:], bytes.Repeat([]byte{2}, 1000))
		copy(want[1<<20+100<<10:], bytes.Repeat([]byte{3}, 412<<10))
		got := w.works(nbd.Request{Type: nbd.CmdRead, Length: 4 << 20}, nil)
		if !bytes.Equal(got.data, want) {
			for i := range want {
				if got.data[i] != want[i] {
					t.Fatalf("byte %d is %d, want %d", i, got.data[i], want[i])
				}
			}
		}
		w.alive()
	})
}

// With reads under way, too, and while others write.
func TestClientsThatDisappearAtRandom(t *testing.T) {
	everyWay(t, 8<<20, func(t *testing.T, s *running, w *wire) {
		var wg sync.WaitGroup
		for i := range 8 {
			gone := s.open(t, "disk", i%2 == 0)
			wg.Go(func() {
				for j := range 20 {
					gone.nc.Write(nbd.AppendRequest(nil, nbd.Request{Type: nbd.CmdRead, Cookie: uint64(j), Length: 300_000}))
				}
				gone.nc.Write(append(nbd.AppendRequest(nil, writeAt(4<<20, 1<<20)), make([]byte, i*10_000)...))
				gone.nc.Close()
			})
		}
		for range 20 {
			w.alive()
		}
		wg.Wait()
		eventually(t, "they are gone", func() bool { return s.Connections("disk") == 1 })
		w.alive()
	})
}

func TestHalfWrittenRequestIsCutOff(t *testing.T) {
	for way, d := range devices(t, 1<<20) {
		t.Run(way, func(t *testing.T) {
			s := start(t, server.Options{StallTimeout: 100 * time.Millisecond})
			s.add(t, server.Export{Name: "disk", Device: d})
			whole := append(nbd.AppendRequest(nil, writeAt(0, 600_000)), make([]byte, 600_000)...)
			refused := append(nbd.AppendRequest(nil, writeAt(1<<30, 600_000)), make([]byte, 600_000)...)
			for _, part := range [][]byte{whole[:1], whole[:27], whole[:28], whole[:5000], whole[:28+256<<10], refused[:28], refused[:100_000]} {
				w := s.open(t, "disk", false)
				w.put(part)
				w.closed()
			}
			if n := s.Stats().StalledClients; n != 7 {
				t.Errorf("%d clients are counted as stalled, want 7", n)
			}
			idle := s.open(t, "disk", false)
			time.Sleep(300 * time.Millisecond)
			idle.alive() // who owes nothing may be silent for ever
		})
	}
}

func TestSlowReaderCostsBoundedMemoryAndTime(t *testing.T) {
	for way, d := range devices(t, 8<<20) {
		t.Run(way, func(t *testing.T) {
			s := start(t, server.Options{StallTimeout: 300 * time.Millisecond, MaxInflightBytes: 64 << 20})
			s.add(t, server.Export{Name: "disk", Device: d})
			other := s.open(t, "disk", false)
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			slow := s.open(t, "disk", false)
			slow.nc.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
			r := nbd.AppendRequest(nil, nbd.Request{Type: nbd.CmdRead, Length: 8 << 20})
			for range 1000 { // 8 GiB of replies
				if _, err := slow.nc.Write(r); err != nil {
					break
				}
			}
			other.alive()
			runtime.ReadMemStats(&after)
			if grown := int64(after.HeapInuse) - int64(before.HeapInuse); grown > 160<<20 {
				t.Errorf("the heap has grown by %d MiB", grown>>20)
			}
			eventually(t, "the slow reader is cut off", func() bool { return s.Connections("disk") == 1 })
			other.alive()
		})
	}
}

func TestIdleConnectionsAreCheap(t *testing.T) {
	if raceDetector {
		t.Skip("the race detector adds memory of its own")
	}
	const n = 400
	s := start(t, server.Options{})
	s.add(t, server.Export{Name: "disk", Device: newDisk(t, t.TempDir(), 1<<20)})
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	conns := make([]*wire, n)
	for i := range conns {
		conns[i] = s.open(t, "disk", true)
		conns[i].alive()
	}
	runtime.GC()
	runtime.GC() // empties the pools
	runtime.ReadMemStats(&after)
	used := int64(after.HeapInuse+after.StackInuse) - int64(before.HeapInuse+before.StackInuse)
	if each := used / n; each > 40<<10 {
		t.Errorf("an idle connection (and its client here) holds %d KiB", each>>10)
	}
	for _, w := range conns {
		w.alive()
	}
}

func TestOnDisconnect(t *testing.T) {
	names := make(chan string, 10)
	s := start(t, server.Options{OnDisconnect: func(name string) { names <- name }})
	s.add(t, server.Export{Name: "disk", Device: newDisk(t, t.TempDir(), 1<<20)})
	s.connect(t).nc.Close() // has chosen nothing
	w := s.open(t, "disk", false)
	w.nc.Close()
	if name := <-names; name != "disk" {
		t.Errorf("OnDisconnect(%q), want disk", name)
	}
}
