package server_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keelblock/keelblock/blockdev"
	"github.com/keelblock/keelblock/blockdev/faultdev"
	"github.com/keelblock/keelblock/blockdev/nbd"
	"github.com/keelblock/keelblock/blockdev/nbd/server"
)

// faulty is a Device that is served inline or, way "workers", by workers, and its handle.
func faulty(t *testing.T, way string) (*faultdev.Device, blockdev.Device) {
	d := faultdev.New(newDisk(t, t.TempDir(), 1<<20))
	if way == "workers" {
		return d, plain{d}
	}
	return d, d
}

func block(b byte) []byte { return bytes.Repeat([]byte{b}, 4096) }

// holdWrite stops the next write at off.
func holdWrite(t *testing.T, d *faultdev.Device, off int64) *faultdev.Hold {
	var once atomic.Bool
	h := d.Hold(func(r faultdev.Request) bool {
		return r.Op == faultdev.Write && r.Offset == off && once.CompareAndSwap(false, true)
	})
	t.Cleanup(h.Release)
	return h
}

// enter begins GO, whose end the channel tells.
func (w *wire) enter(name string) (done chan []optionReply) {
	w.t.Helper()
	done = make(chan []optionReply, 1)
	w.put(nbd.AppendOption(nil, nbd.OptGo, infoRequest(name)))
	go func() {
		defer close(done)
		done <- w.optionReplies(nbd.OptGo)
	}()
	return done
}

// returns plays a client whose first connection has a write of old data under way or,
// behind another one, unread in its socket, when the client comes back on a second one
// and writes newer data to the same place. cut: the first connection is closed before.
// It returns what the disk holds in the end.
func returns(t *testing.T, way string, unread, cut, barrier bool) []byte {
	d, dev := faulty(t, way)
	o := server.Options{Workers: 1}
	var authority *authority
	if way == "TLS" {
		authority = newAuthority(t)
		o.TLS = authority.serverTLS()
	}
	s := start(t, o)
	if !barrier {
		s.WithoutBarrier()
	}
	s.add(t, server.Export{Name: "disk", Device: dev})
	before := s.connect(t)
	if way == "TLS" {
		dir, _ := authority.issue("client", "guest")
		before.startTLS(authority.clientTLS(dir))
	}
	before.ack(nbd.OptGo, infoRequest("disk"))
	before.works(writeAt(0, 4096), block(1))
	at := uint64(0)
	if unread {
		at = 512 << 10
	}
	h := holdWrite(t, d, int64(at))
	before.send(writeAt(at, 4096), block(2))
	<-h.Arrived()
	if unread {
		// The one worker is taken; nothing is read behind the first of these.
		before.send(writeAt(768<<10, 4096), block(2))
		before.send(writeAt(0, 4096), block(2))
	}
	switch {
	case cut && unread: // closed, the reply to the first would fail and end the connection
		before.nc.(interface{ CloseWrite() error }).CloseWrite()
	case cut:
		before.nc.Close()
	}
	after := s.connect(t)
	replies := after.enter("disk")
	rewritten := make(chan struct{})
	go func() {
		defer close(rewritten)
		if list := <-replies; len(list) == 0 || list[len(list)-1].reply != nbd.RepAck {
			t.Errorf("the client that comes back is answered %v", list)
			return
		}
		after.works(writeAt(0, 4096), block(3))
	}()
	eventually(t, "the client has written or waits", func() bool {
		select {
		case <-rewritten:
			return true
		default:
			return s.Stats().BarrierWaits > 0
		}
	})
	h.Release()
	<-rewritten
	if unread && !barrier {
		eventually(t, "what was unread is written", func() bool { return d.Count(faultdev.Write) == 5 })
	}
	after.nc.Close()
	if err := s.Remove(within(t, 10*time.Second), "disk"); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 4096)
	if _, err := d.ReadAt(p, 0); err != nil {
		t.Fatal(err)
	}
	return p
}

// A write of a connection that broke never lands on top of what the client has written
// after it came back: neither one that was under way nor one that nobody had read yet,
// whether or not the end of the connection has been noticed. Without the barrier it
// does, which shows that this test would see it.
func TestTheReconnectBarrierKeepsNewerData(t *testing.T) {
	for _, way := range []string{"inline", "workers", "TLS"} {
		for _, unread := range []bool{false, true} {
			for _, cut := range []bool{true, false} {
				t.Run(fmt.Sprintf("%s unread=%v cut=%v", way, unread, cut), func(t *testing.T) {
					t.Parallel()
					if got := returns(t, way, unread, cut, true); !bytes.Equal(got, block(3)) {
						t.Errorf("the disk holds %d, want the newer data, 3", got[0])
					}
					if got := returns(t, way, unread, cut, false); !bytes.Equal(got, block(2)) {
						t.Errorf("without the barrier the disk holds %d, want the old data, 2: the test shows nothing", got[0])
					}
				})
			}
		}
	}
}

// An export that never gets free of a stuck write refuses writers after a bounded time,
// says why, and takes them again when the write has ended.
func TestAStuckWriteBoundsTheBarrier(t *testing.T) {
	for _, way := range []string{"inline", "workers"} {
		t.Run(way, func(t *testing.T) {
			t.Parallel()
			d, dev := faulty(t, way)
			s := start(t, server.Options{BarrierTimeout: 50 * time.Millisecond})
			s.add(t, server.Export{Name: "disk", Device: dev})
			h := holdWrite(t, d, 0)
			gone := s.open(t, "disk", false)
			gone.send(writeAt(0, 4096), block(1))
			<-h.Arrived()
			gone.nc.Close()
			w := s.connect(t)
			list := w.option(nbd.OptGo, infoRequest("disk"))
			if len(list) != 1 || list[0].reply != nbd.RepErrPolicy || !strings.Contains(string(list[0].data), "have not ended") {
				t.Errorf("GO while a write is stuck: %v, want a refusal that says so", list)
			}
			old := s.connect(t)
			old.put(nbd.AppendOption(nil, nbd.OptExportName, []byte("disk")))
			old.closed()
			if n := s.Stats().BarrierRefusals; n != 2 {
				t.Errorf("BarrierRefusals = %d, want 2", n)
			}
			if n := s.Connections("disk"); n != 1 {
				t.Errorf("%d connections, want only that of the stuck write", n)
			}
			h.Release()
			eventually(t, "the write ends", func() bool { return s.Connections("disk") == 0 })
			w.ack(nbd.OptGo, infoRequest("disk"))
			w.alive()
		})
	}
}

// What cannot put old data in place of newer holds nobody up: readers, what is stuck in
// a read or a flush, a client that stopped in the middle of a request, and exports that
// cannot be written.
func TestTheBarrierWaitsForChangesOnly(t *testing.T) {
	d := faultdev.New(newDisk(t, t.TempDir(), 1<<20))
	s := start(t, server.Options{BarrierTimeout: 10 * time.Minute})
	s.add(t, server.Export{Name: "disk", Device: plain{d}})
	s.add(t, server.Export{Name: "point", Device: plain{d}, ReadOnly: true})
	h := d.Hold(func(r faultdev.Request) bool { return r.Op != faultdev.Write })
	t.Cleanup(h.Release)
	for _, name := range []string{"disk", "point"} {
		w := s.open(t, name, false)
		w.send(nbd.Request{Type: nbd.CmdRead, Length: 512}, nil)
		w.send(nbd.Request{Type: nbd.CmdFlush}, nil)
		<-h.Arrived()
		<-h.Arrived()
		s.open(t, name, false)
	}
	half := s.open(t, "disk", false)
	p := append(nbd.AppendRequest(nil, nbd.Request{Type: nbd.CmdWrite, Cookie: 7, Length: 8192}), bytes.Repeat([]byte{9}, 8192)...)
	half.put(p[:4000])
	w := s.open(t, "disk", false)
	w.works(writeAt(64<<10, 4096), block(1))
	half.put(p[4000:])
	if got := half.receive(nbd.Request{Type: nbd.CmdWrite, Cookie: 7}); got.errno != nbd.OK {
		t.Errorf("the write that came in two parts: %v", got.errno)
	}
}

// A connection that never rests lets others in.
func TestTheBarrierPassesABusyConnection(t *testing.T) {
	for way, d := range devices(t, 1<<20) {
		t.Run(way, func(t *testing.T) {
			s := start(t, server.Options{BarrierTimeout: 10 * time.Minute})
			s.add(t, server.Export{Name: "disk", Device: d})
			busy := s.open(t, "disk", false)
			stop := make(chan struct{})
			var wg sync.WaitGroup
			wg.Go(func() {
				p := append(nbd.AppendRequest(nil, writeAt(0, 512)), make([]byte, 512)...)
				for range 6 {
					p = append(p, p...)
				}
				for {
					select {
					case <-stop:
						busy.nc.Close()
						return
					default:
						busy.nc.Write(p)
					}
				}
			})
			wg.Go(func() {
				for p := make([]byte, 64<<10); ; {
					if _, err := busy.nc.Read(p); err != nil {
						return
					}
				}
			})
			for range 8 {
				s.open(t, "disk", true).alive()
			}
			close(stop)
			wg.Wait()
		})
	}
}

// Many clients may come at once, and the export or the server go, while they wait.
func TestManyWaitAtTheBarrier(t *testing.T) {
	const n = 50
	for _, end := range []string{"release", "remove", "shutdown", "exclusive"} {
		t.Run(end, func(t *testing.T) {
			t.Parallel()
			d, dev := faulty(t, "workers")
			s := start(t, server.Options{BarrierTimeout: 10 * time.Minute, HandshakeTimeout: 10 * time.Minute})
			s.add(t, server.Export{Name: "disk", Device: dev, Exclusive: end == "exclusive"})
			h := holdWrite(t, d, 0)
			gone := s.open(t, "disk", false)
			gone.send(writeAt(0, 4096), block(1))
			<-h.Arrived()
			gone.nc.Close()
			var waiting []chan []optionReply
			for range n {
				w := s.connect(t)
				w.put(nbd.AppendOption(nil, nbd.OptGo, infoRequest("disk")))
				ch := make(chan []optionReply, 1)
				waiting = append(waiting, ch)
				go func() {
					list, err := w.tryOptionReplies()
					if err == nil && list[len(list)-1].reply == nbd.RepAck {
						// Who was let in may be cut again at once.
						_, _ = w.nc.Write(append(nbd.AppendRequest(nil, writeAt(4096, 4096)), block(5)...))
					}
					ch <- list
				}()
			}
			eventually(t, "all wait", func() bool { return s.Stats().BarrierWaits == n })
			var wg sync.WaitGroup
			switch end {
			case "release", "exclusive":
				h.Release()
			case "remove":
				wg.Go(func() {
					if err := s.Remove(within(t, 10*time.Second), "disk"); err != nil {
						t.Errorf("Remove: %v", err)
					}
				})
			case "shutdown":
				wg.Go(func() {
					if err := s.Shutdown(within(t, 10*time.Second)); err != nil {
						t.Errorf("Shutdown: %v", err)
					}
				})
			}
			entered := 0
			for _, ch := range waiting {
				if list := <-ch; len(list) > 0 && list[len(list)-1].reply == nbd.RepAck {
					entered++
				}
			}
			if want := map[string]int{"release": n, "exclusive": 1}[end]; entered != want {
				t.Errorf("%d clients have entered, want %d", entered, want)
			}
			h.Release()
			wg.Wait()
		})
	}
}

// tryOptionReplies is optionReplies for a connection that may end.
func (w *wire) tryOptionReplies() (list []optionReply, err error) {
	for {
		head := make([]byte, nbd.OptionReplySize)
		if _, err := io.ReadFull(w.nc, head); err != nil {
			return list, err
		}
		_, reply, length, err := nbd.ParseOptionReply(head)
		if err != nil {
			return list, err
		}
		data := make([]byte, length)
		if _, err := io.ReadFull(w.nc, data); err != nil {
			return list, err
		}
		list = append(list, optionReply{reply, data})
		if reply == nbd.RepAck || reply&nbd.RepFlagError != 0 {
			return list, nil
		}
	}
}

// An exclusive export belongs to the client that came last: the one before is cut, what
// it had not got answered is dropped or has ended, and CAN_MULTI_CONN is not offered.
func TestAnExclusiveExportCutsTheClientBefore(t *testing.T) {
	for _, way := range []string{"inline", "workers"} {
		t.Run(way, func(t *testing.T) {
			t.Parallel()
			d, dev := faulty(t, way)
			s := start(t, server.Options{Workers: 1})
			s.add(t, server.Export{Name: "disk", Device: dev, Exclusive: true})
			before := s.open(t, "disk", false)
			before.works(writeAt(0, 4096), block(1))
			h := holdWrite(t, d, 8192)
			before.send(writeAt(8192, 4096), block(2))
			<-h.Arrived()
			before.send(writeAt(16384, 4096), block(2))
			before.send(writeAt(0, 4096), block(2)) // unread
			after := s.connect(t)
			replies := after.enter("disk")
			before.cut()
			select {
			case list := <-replies:
				t.Errorf("GO is answered %v while a write is under way", list)
			default:
			}
			h.Release()
			list := <-replies
			if len(list) == 0 || list[len(list)-1].reply != nbd.RepAck {
				t.Fatalf("GO: %v", list)
			}
			for _, x := range list {
				if len(x.data) == 12 && binary.BigEndian.Uint16(x.data) == nbd.InfoExport && binary.BigEndian.Uint16(x.data[10:])&nbd.FlagCanMultiConn != 0 {
					t.Error("CAN_MULTI_CONN is offered")
				}
			}
			if got := after.works(nbd.Request{Type: nbd.CmdRead, Length: 4096}, nil); !bytes.Equal(got.data, block(1)) {
				t.Errorf("the disk holds %d, want 1: what was unread has been written", got.data[0])
			}
			after.alive()
			eventually(t, "one connection is left", func() bool { return s.Connections("disk") == 1 })
		})
	}
}

// cut waits for the end of a connection on which replies may still come.
func (w *wire) cut() {
	w.t.Helper()
	if _, err := io.Copy(io.Discard, w.nc); isTimeout(err) {
		w.t.Error("the connection is not cut")
	}
}
