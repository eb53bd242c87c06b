package relay_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keelblock/keelblock/blockdev"
	"github.com/keelblock/keelblock/blockdev/blockdevtest"
	"github.com/keelblock/keelblock/blockdev/localdisk"
	"github.com/keelblock/keelblock/blockdev/nbd"
	"github.com/keelblock/keelblock/blockdev/nbd/client"
	"github.com/keelblock/keelblock/blockdev/nbd/relay"
	"github.com/keelblock/keelblock/blockdev/nbd/server"
)

// upstream is a server with a few exports of that size, and a relay to "disk".
func upstream(t *testing.T, size int64) *relay.Relay {
	t.Helper()
	dir := t.TempDir()
	s := server.New(server.Options{})
	for _, name := range []string{"disk", "other", ""} {
		path := filepath.Join(dir, "raw"+name)
		if err := localdisk.Create(path, size); err != nil {
			t.Fatal(err)
		}
		d, err := localdisk.Open(path, localdisk.Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { d.Close() })
		if err := s.Add(server.Export{Name: name, Description: "about " + name, Device: d}); err != nil {
			t.Fatal(err)
		}
	}
	l, err := net.Listen("unix", filepath.Join(dir, "up.sock"))
	if err != nil {
		t.Fatal(err)
	}
	go s.Serve(context.Background(), l)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := s.Shutdown(ctx); err != nil {
			t.Error(err)
		}
	})
	return &relay.Relay{Name: "disk", Dial: func(ctx context.Context) (net.Conn, error) {
		return net.Dial("unix", l.Addr().String())
	}}
}

// listen has the relay serve a socket until the test ends. Serve must not fail.
func listen(t *testing.T, r *relay.Relay) (socket string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "relay.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				if err := r.Serve(ctx, nc); err != nil {
					t.Errorf("Serve: %v", err)
				}
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		cancel()
		wg.Wait()
	})
	return socket
}

// Through a relay a Device is what it is without.
func TestConformance(t *testing.T) {
	blockdevtest.Run(t, func(t *testing.T, size int64) blockdev.Device {
		c, err := client.Dial(context.Background(), "nbd+unix:///?socket="+listen(t, upstream(t, size)))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	})
}

// wire does the handshake with a relay by hand.
type wire struct {
	t  *testing.T
	nc net.Conn
}

func dial(t *testing.T, r *relay.Relay) (*wire, chan error) {
	t.Helper()
	ours, theirs := net.Pipe()
	t.Cleanup(func() { ours.Close() })
	ours.SetDeadline(time.Now().Add(20 * time.Second))
	done := make(chan error, 1)
	go func() { done <- r.Serve(context.Background(), theirs) }()
	w := &wire{t, ours}
	if _, err := nbd.ParseGreeting(w.take(nbd.GreetingSize)); err != nil {
		t.Fatal(err)
	}
	w.put(binary.BigEndian.AppendUint32(nil, nbd.FlagCFixedNewstyle|nbd.FlagCNoZeroes))
	return w, done
}

func (w *wire) put(p []byte) {
	w.t.Helper()
	if _, err := w.nc.Write(p); err != nil {
		w.t.Fatal(err)
	}
}

func (w *wire) take(n int) []byte {
	w.t.Helper()
	p := make([]byte, n)
	if _, err := io.ReadFull(w.nc, p); err != nil {
		w.t.Fatal(err)
	}
	return p
}

// option sends an option and returns its replies, of which the last is ACK or an error.
func (w *wire) option(option uint32, data []byte) (last uint32, texts []string) {
	w.t.Helper()
	w.put(nbd.AppendOption(nil, option, data))
	for {
		to, reply, length, err := nbd.ParseOptionReply(w.take(nbd.OptionReplySize))
		if err != nil || to != option {
			w.t.Fatalf("reply to option %d, %v; want %d", to, err, option)
		}
		texts = append(texts, string(w.take(int(length))))
		if reply == nbd.RepAck || reply&nbd.RepFlagError != 0 {
			return reply, texts
		}
	}
}

func info(name string) []byte { return nbd.AppendInfoRequest(nil, nbd.InfoRequest{Name: name}) }

// The client sees one export, in every option, and nothing of TLS.
func TestTheClientSeesOneExport(t *testing.T) {
	r := upstream(t, 1<<20)
	w, done := dial(t, r)
	if last, texts := w.option(nbd.OptList, nil); last != nbd.RepAck || len(texts) != 2 || !strings.Contains(texts[0], "about disk") {
		t.Errorf("LIST: %#x %q, want disk alone", last, texts)
	}
	for _, x := range []struct {
		option uint32
		data   []byte
		want   uint32
	}{
		{nbd.OptStructuredReply, nil, nbd.RepAck},
		{nbd.OptInfo, info(""), nbd.RepAck},
		{nbd.OptInfo, info("disk"), nbd.RepAck},
		{nbd.OptInfo, info("other"), nbd.RepErrUnknown},
		{nbd.OptGo, info("other"), nbd.RepErrUnknown},
		{nbd.OptGo, info("none"), nbd.RepErrUnknown},
		{nbd.OptGo, []byte{1, 2}, nbd.RepErrInvalid},
		{nbd.OptGo, make([]byte, 100<<10), nbd.RepErrTooBig},
		{nbd.OptStartTLS, nil, nbd.RepErrUnsup},
		{99, []byte("what"), nbd.RepErrUnsup},
		{nbd.OptListMetaContext, nbd.AppendMetaContextRequest(nil, nbd.MetaContextRequest{Name: "other"}), nbd.RepErrUnknown},
		{nbd.OptSetMetaContext, nbd.AppendMetaContextRequest(nil, nbd.MetaContextRequest{Queries: []string{nbd.ContextBaseAllocation}}), nbd.RepAck},
		{nbd.OptGo, info(""), nbd.RepAck},
	} {
		last, texts := w.option(x.option, x.data)
		if last != x.want {
			t.Errorf("option %d %.20x: %#x %q, want %#x", x.option, x.data, last, texts, x.want)
		}
		if x.option == nbd.OptSetMetaContext && !slices.ContainsFunc(texts, func(s string) bool { return strings.HasSuffix(s, nbd.ContextBaseAllocation) }) {
			t.Errorf("SET_META_CONTEXT: %q, want base:allocation", texts)
		}
	}
	w.put(append(nbd.AppendRequest(nil, nbd.Request{Type: nbd.CmdWrite, Cookie: 5, Length: 512}), bytes.Repeat([]byte{7}, 512)...))
	if p := w.take(nbd.SimpleReplySize); binary.BigEndian.Uint32(p[4:]) != 0 {
		t.Errorf("reply to a write: %x", p)
	}
	w.put(nbd.AppendRequest(nil, nbd.Request{Type: nbd.CmdBlockStatus, Cookie: 6, Length: 8192}))
	if p := w.take(nbd.ChunkSize + 4 + 2*8); binary.BigEndian.Uint16(p[6:]) != nbd.ReplyTypeBlockStatus {
		t.Errorf("reply to a block status: %x", p)
	}
	w.put(nbd.AppendRequest(nil, nbd.Request{Type: nbd.CmdDisc}))
	if n, err := w.nc.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Error("the connection goes on after DISC")
	}
	if err := <-done; err != nil {
		t.Errorf("Serve: %v", err)
	}
}

func TestHandshakesEnd(t *testing.T) {
	r := upstream(t, 1<<20)
	w, done := dial(t, r)
	if last, _ := w.option(nbd.OptAbort, nil); last != nbd.RepAck {
		t.Errorf("ABORT: %#x", last)
	}
	if err := <-done; err != nil {
		t.Errorf("Serve after ABORT: %v", err)
	}
	w, done = dial(t, r)
	w.nc.Close()
	if err := <-done; err != nil {
		t.Errorf("Serve of a client that left: %v", err)
	}
	for _, name := range []string{"", "disk"} {
		w, done = dial(t, r)
		w.put(nbd.AppendOption(nil, nbd.OptExportName, []byte(name)))
		if size := binary.BigEndian.Uint64(w.take(nbd.ExportReplySize)); size != 1<<20 {
			t.Errorf("EXPORT_NAME %q: %d bytes", name, size)
		}
		w.nc.Close()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	}
	w, done = dial(t, r)
	w.put(nbd.AppendOption(nil, nbd.OptExportName, []byte("other")))
	if err := <-done; err == nil {
		t.Error("EXPORT_NAME of another export is served")
	}
	w, done = dial(t, r)
	w.put(make([]byte, nbd.OptionSize))
	if err := <-done; err == nil {
		t.Error("something that is no option is served")
	}
}

func TestProbe(t *testing.T) {
	r := upstream(t, 1<<20)
	x, err := r.Probe(context.Background())
	if err != nil || x.Size != 1<<20 || x.Flags&nbd.FlagReadOnly != 0 {
		t.Errorf("Probe: %+v, %v", x, err)
	}
	r.Name = "none"
	if _, err := r.Probe(context.Background()); !errors.Is(err, relay.ErrNotFound) {
		t.Errorf("Probe of nothing: %v, want ErrNotFound", err)
	}
}

// The relay ends with its context, whatever the client does.
func TestServeEndsWithItsContext(t *testing.T) {
	r := upstream(t, 1<<20)
	for _, entered := range []bool{false, true} {
		ours, theirs := net.Pipe()
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- r.Serve(ctx, theirs) }()
		w := &wire{t, ours}
		w.take(nbd.GreetingSize)
		if entered {
			w.put(binary.BigEndian.AppendUint32(nil, nbd.FlagCFixedNewstyle|nbd.FlagCNoZeroes))
			w.option(nbd.OptGo, info(""))
		}
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve after its context: %v", err)
		}
		ours.Close()
	}
}
