package server_test

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/keelblock/keelblock/blockdev/faultdev"
	"github.com/keelblock/keelblock/blockdev/nbd"
	"github.com/keelblock/keelblock/blockdev/nbd/server"
)

// startTLS goes over to TLS, which must succeed.
func (w *wire) startTLS(c *tls.Config) {
	w.t.Helper()
	w.ack(nbd.OptStartTLS, nil)
	tc := tls.Client(w.nc, c)
	if err := tc.Handshake(); err != nil {
		w.t.Fatalf("TLS handshake: %v", err)
	}
	w.nc = tc
}

// tcp makes a server listen on TCP, too, and returns its address.
func (s *running) tcp(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	serve(t, s.Server, l)
	return l.Addr().String()
}

func connectTCP(t testing.TB, addr string) *wire {
	t.Helper()
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	return greet(t, nc)
}

// The attack on STARTTLS: somebody in the middle sends options in plain text behind
// it, which the server must not take for the client's.
func TestPlainTextBehindSTARTTLSIsRefused(t *testing.T) {
	a := newAuthority(t)
	dir, _ := a.issue("client", "client")
	s := start(t, server.Options{TLS: a.serverTLS()})
	s.add(t, server.Export{Name: "disk", Device: newDisk(t, t.TempDir(), 1<<20)})
	injected := nbd.AppendOption(nil, nbd.OptStructuredReply, nil)

	w := s.connect(t)
	w.put(append(nbd.AppendOption(nil, nbd.OptStartTLS, nil), injected...))
	w.closed()

	// In a packet of its own it may come after the server has looked: then it stands
	// where the TLS handshake must begin.
	w = s.connect(t)
	w.ack(nbd.OptStartTLS, nil)
	w.put(injected)
	tc := tls.Client(w.nc, a.clientTLS(dir))
	if err := tc.Handshake(); err == nil {
		t.Error("the TLS handshake succeeded behind an option in plain text")
	}
	if n := s.Stats().HandshakesFailed; n < 1 {
		t.Errorf("%d handshakes have failed, want 2", n)
	}
}

func TestSTARTTLSForgetsWhatWasNegotiated(t *testing.T) {
	a := newAuthority(t)
	dir, _ := a.issue("client", "client")
	b := twoBitmaps()
	s := start(t, server.Options{TLS: a.serverTLS()})
	s.add(t, server.Export{Name: "disk", Device: newDisk(t, t.TempDir(), 1<<20), Contexts: b})
	for _, option := range []uint32{nbd.OptStructuredReply, nbd.OptExtendedHeaders} {
		w := s.connect(t)
		w.ack(option, nil)
		w.ack(nbd.OptSetMetaContext, contextRequest("disk", nbd.ContextBaseAllocation, "qemu:dirty-bitmap:monday"))
		w.startTLS(a.clientTLS(dir))
		w.refused(nbd.OptSetMetaContext, contextRequest("disk", nbd.ContextBaseAllocation), nbd.RepErrInvalid) // needs structured replies
		if n := b.opened("monday"); n != 0 {
			t.Errorf("%d contexts are open after STARTTLS", n)
		}
		w.refused(nbd.OptStartTLS, nil, nbd.RepErrInvalid) // not twice
		info, _ := exportInfo(t, w.ack(nbd.OptGo, infoRequest("disk")))
		if info.Flags&nbd.FlagSendDF != 0 {
			t.Error("DF is offered after STARTTLS")
		}
		w.works(nbd.Request{Type: nbd.CmdRead, Length: 5000}, nil) // as a simple reply
		w.fails(nbd.Request{Type: nbd.CmdBlockStatus, Length: 512}, nil, nbd.EINVAL)
		w.alive()
	}
}

func TestNothingButSTARTTLSWhereTLSIsRequired(t *testing.T) {
	a := newAuthority(t)
	dir, _ := a.issue("client", "client")
	s := start(t, server.Options{TLS: a.serverTLS(), RequireTLS: true, AllowList: true})
	s.add(t, server.Export{Name: "disk", Device: newDisk(t, t.TempDir(), 1<<20)})
	addr := s.tcp(t)
	w := connectTCP(t, addr)
	for _, option := range []uint32{nbd.OptList, nbd.OptStructuredReply, nbd.OptExtendedHeaders, 77} {
		w.refused(option, nil, nbd.RepErrTLSRequired)
	}
	w.refused(nbd.OptInfo, infoRequest("disk"), nbd.RepErrTLSRequired)
	w.refused(nbd.OptGo, infoRequest("disk"), nbd.RepErrTLSRequired)
	w.refused(nbd.OptGo, infoRequest("none"), nbd.RepErrTLSRequired)
	w.refused(nbd.OptSetMetaContext, contextRequest("disk", "base:allocation"), nbd.RepErrTLSRequired)
	w.refused(nbd.OptListMetaContext, nil, nbd.RepErrTLSRequired)
	w.refused(99, make([]byte, 3<<20), nbd.RepErrTLSRequired)
	w.refused(nbd.OptStartTLS, []byte("x"), nbd.RepErrInvalid)
	w.startTLS(a.clientTLS(dir))
	w.ack(nbd.OptList, nil)
	w.refused(nbd.OptGo, infoRequest("none"), nbd.RepErrUnknown)
	w.ack(nbd.OptGo, infoRequest("disk"))
	w.alive()

	w = connectTCP(t, addr)
	w.put(nbd.AppendOption(nil, nbd.OptExportName, []byte("disk")))
	w.closed()
	w = connectTCP(t, addr)
	w.ack(nbd.OptAbort, nil)
	w.closed()

	w = s.connect(t) // the unix socket needs no TLS
	w.ack(nbd.OptGo, infoRequest("disk"))
	w.alive()

	nc, err := net.Dial("tcp", addr) // an old client, which cannot do TLS
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	nc.SetDeadline(time.Now().Add(patience))
	w = &wire{t: t, nc: nc}
	w.take(nbd.GreetingSize)
	w.put(make([]byte, 4))
	w.refused(nbd.OptStartTLS, nil, nbd.RepErrPolicy)

	// Without a certificate nobody comes in by TCP.
	s = start(t, server.Options{RequireTLS: true})
	s.add(t, server.Export{Name: "disk", Device: newDisk(t, t.TempDir(), 1<<20)})
	w = connectTCP(t, s.tcp(t))
	w.refused(nbd.OptStartTLS, nil, nbd.RepErrUnsup)
	w.refused(nbd.OptGo, infoRequest("disk"), nbd.RepErrTLSRequired)
}

func TestTLSHandshakeHasTheTimeOfTheHandshake(t *testing.T) {
	a := newAuthority(t)
	s := start(t, server.Options{TLS: a.serverTLS(), HandshakeTimeout: time.Second})
	var stopped []*wire
	for _, begin := range [][]byte{nil, {22, 3, 1, 1, 0}, {22, 3, 1, 0, 5, 1, 0}} {
		w := s.connect(t)
		w.ack(nbd.OptStartTLS, nil)
		w.put(begin)
		stopped = append(stopped, w)
	}
	for i, w := range stopped {
		if _, err := io.ReadAll(w.nc); isTimeout(err) {
			t.Errorf("connection %d is held in the middle of its TLS handshake", i)
		}
	}
	eventually(t, "all are gone", func() bool { return s.Stats().Connections == 0 })
}

// records is a connection that notes the lengths of the TLS records it receives.
type records struct {
	net.Conn
	mu      sync.Mutex
	pending []byte
	lengths []int
	reads   int
}

func (r *records) Read(p []byte) (int, error) {
	n, err := r.Conn.Read(p)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.reads++
	r.pending = append(r.pending, p[:n]...)
	for len(r.pending) >= 5 {
		length := int(binary.BigEndian.Uint16(r.pending[3:]))
		if len(r.pending) < 5+length {
			break
		}
		r.lengths = append(r.lengths, length)
		r.pending = r.pending[5+length:]
	}
	return n, err
}

// Replies fill their records, however many pieces they are made of, from the first
// byte on.
func TestTLSRecordsAreFull(t *testing.T) {
	a := newAuthority(t)
	dir, _ := a.issue("client", "client")
	for way, d := range devices(t, 4<<20) {
		t.Run(way, func(t *testing.T) {
			s := start(t, server.Options{TLS: a.serverTLS()})
			s.add(t, server.Export{Name: "disk", Device: d})
			for _, structured := range []bool{false, true} {
				w := s.connect(t)
				r := &records{Conn: w.nc}
				w.nc = r
				w.startTLS(a.clientTLS(dir))
				if structured {
					w.ack(nbd.OptStructuredReply, nil)
					w.structured = true
				}
				w.ack(nbd.OptGo, infoRequest("disk"))
				r.mu.Lock()
				r.lengths = nil
				r.mu.Unlock()
				w.works(nbd.Request{Type: nbd.CmdRead, Length: 2 << 20}, nil)
				r.mu.Lock()
				// At best 128 full ones and one for the headers; a chunk may be sent
				// by itself, which ends with a short record.
				if n := len(r.lengths); n > 128+2*8+1 {
					t.Errorf("structured %v: 2 MiB came in %d records: %v", structured, n, r.lengths)
				}
				r.mu.Unlock()
			}
		})
	}
}

func TestTLSSessionEndsInOrder(t *testing.T) {
	a := newAuthority(t)
	dir, _ := a.issue("client", "client")
	for name, end := range map[string]func(s *running, w *wire){
		"DISC": func(_ *running, w *wire) {
			w.ack(nbd.OptGo, infoRequest("disk"))
			w.send(nbd.Request{Type: nbd.CmdDisc}, nil)
		},
		"ABORT": func(_ *running, w *wire) { w.ack(nbd.OptAbort, nil) },
		"Remove": func(s *running, w *wire) {
			w.ack(nbd.OptGo, infoRequest("disk"))
			s.Remove(within(t, 5*time.Second), "disk")
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := start(t, server.Options{TLS: a.serverTLS()})
			s.add(t, server.Export{Name: "disk", Device: newDisk(t, t.TempDir(), 1<<20)})
			w := s.connect(t)
			w.startTLS(a.clientTLS(dir))
			end(s, w)
			// Without the alert that ends a session this is ErrUnexpectedEOF.
			if n, err := w.nc.Read(make([]byte, 1)); n != 0 || err != io.EOF {
				t.Errorf("the end of the session: %d bytes, %v", n, err)
			}
		})
	}
}

// Many requests at once in both directions, with replies that are written by workers
// while the connection reads.
func TestManyRequestsAtOnceOverTLS(t *testing.T) {
	a := newAuthority(t)
	dir, _ := a.issue("client", "client")
	for way, d := range devices(t, 8<<20) {
		t.Run(way, func(t *testing.T) {
			s := start(t, server.Options{TLS: a.serverTLS()})
			s.add(t, server.Export{Name: "disk", Device: d})
			w := s.connect(t)
			w.startTLS(a.clientTLS(dir))
			w.ack(nbd.OptGo, infoRequest("disk"))
			const n, each = 300, 25_000
			want := make([]byte, n*each)
			for i := range want {
				want[i] = byte(i>>12 ^ i)
			}
			go func() {
				for i := range uint64(n) {
					p := nbd.AppendRequest(nil, nbd.Request{Type: nbd.CmdWrite, Cookie: i, Offset: i * each, Length: each})
					w.nc.Write(append(p, want[i*each:(i+1)*each]...))
				}
			}()
			open := map[uint64]bool{}
			for i := range uint64(n) {
				open[i] = true
			}
			for len(open) > 0 {
				h, _, err := nbd.ParseReplyHeader(w.take(nbd.SimpleReplySize))
				if err != nil || h.Errno != nbd.OK || !open[h.Cookie] {
					t.Fatalf("reply %+v, %v", h, err)
				}
				delete(open, h.Cookie)
			}
			if got := w.works(nbd.Request{Type: nbd.CmdRead, Length: n * each}, nil); !bytes.Equal(got.data, want) {
				t.Error("the disk is not what was written")
			}
		})
	}
}

// What an export that goes away has to answer, it answers in every form.
func TestRemoveRefusesInEveryForm(t *testing.T) {
	a := newAuthority(t)
	dir, _ := a.issue("client", "client")
	for name, open := range map[string]func(s *running) *wire{
		"extended headers": func(s *running) *wire { return s.openExtended(t, "disk") },
		"TLS": func(s *running) *wire {
			w := s.connect(t)
			w.startTLS(a.clientTLS(dir))
			return w.choose("disk")
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := faultdev.New(newDisk(t, t.TempDir(), 1<<20))
			s := start(t, server.Options{TLS: a.serverTLS()})
			s.add(t, server.Export{Name: "disk", Device: d})
			h := d.Hold(func(r faultdev.Request) bool { return r.Op == faultdev.Read && r.Offset == 0 })
			defer h.Release()
			w := open(s)
			slow := nbd.Request{Type: nbd.CmdRead, Length: 512}
			slow.Cookie = w.send(slow, nil)
			<-h.Arrived()
			removed := make(chan error, 1)
			go func() { removed <- s.Remove(within(t, 10*time.Second), "disk") }()
			eventually(t, "the export is gone", func() bool { return s.Stats().Exports == 0 })
			w.fails(writeAt(8192, 600_000), make([]byte, 600_000), nbd.ESHUTDOWN)
			w.fails(nbd.Request{Type: nbd.CmdFlush}, nil, nbd.ESHUTDOWN)
			h.Release()
			if got := w.receive(slow); got.errno != nbd.OK || len(got.data) != 512 {
				t.Errorf("the request that was under way: %v, %d bytes", got.errno, len(got.data))
			}
			if err := <-removed; err != nil {
				t.Errorf("Remove: %v", err)
			}
		})
	}
}

// Over TLS, too, a client that stops in the middle of a message is cut off, and one
// that is idle is not, even in the middle of a record.
func TestClientsThatStopAreCutOffOverTLS(t *testing.T) {
	a := newAuthority(t)
	dir, _ := a.issue("client", "client")
	s := start(t, server.Options{TLS: a.serverTLS(), StallTimeout: 200 * time.Millisecond})
	s.add(t, server.Export{Name: "disk", Device: newDisk(t, t.TempDir(), 32<<20)})
	open := func() (*wire, net.Conn) {
		w := s.connect(t)
		raw := w.nc
		w.startTLS(a.clientTLS(dir))
		w.choose("disk")
		return w, raw
	}
	idle, raw := open()
	raw.Write([]byte{23, 3, 3, 0x40, 0, 1, 2, 3}) // the beginning of a record
	half, _ := open()
	half.put(nbd.AppendRequest(nil, writeAt(0, 100_000)))
	half.put(make([]byte, 50_000))
	deaf, _ := open()
	for range 40 {
		deaf.send(nbd.Request{Type: nbd.CmdRead, Length: 8 << 20}, nil)
	}
	eventually(t, "two are cut off", func() bool { return s.Connections("disk") == 1 })
	if n := s.Stats().StalledClients; n != 2 {
		t.Errorf("%d clients are counted as stalled, want 2", n)
	}
	idle.nc.Close()
}
