package server_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/keelblock/keelblock/blockdev/nbd"
)

// wire speaks the protocol by hand, so that a test can break any rule.
type wire struct {
	t  testing.TB
	nc net.Conn
	// structured and context are what the test has negotiated.
	structured, extended bool
	cookie               uint64
}

// connect does the handshake up to the client flags.
func (s *running) connect(t testing.TB) *wire {
	t.Helper()
	nc, err := net.Dial("unix", s.socket)
	if err != nil {
		t.Fatal(err)
	}
	return greet(t, nc)
}

func greet(t testing.TB, nc net.Conn) *wire {
	t.Helper()
	t.Cleanup(func() { nc.Close() })
	nc.SetDeadline(time.Now().Add(patience))
	w := &wire{t: t, nc: nc}
	flags, err := nbd.ParseGreeting(w.take(nbd.GreetingSize))
	if err != nil {
		t.Fatal(err)
	}
	if want := nbd.FlagFixedNewstyle | nbd.FlagNoZeroes; flags != want {
		t.Errorf("handshake flags %#x, want %#x", flags, want)
	}
	w.put(binary.BigEndian.AppendUint32(nil, nbd.FlagCFixedNewstyle|nbd.FlagCNoZeroes))
	return w
}

// open chooses an export by GO: plain, or with structured replies and
// base:allocation.
func (s *running) open(t testing.TB, name string, structured bool) *wire {
	t.Helper()
	w := s.connect(t)
	if structured {
		return w.choose(name)
	}
	w.ack(nbd.OptGo, nbd.AppendInfoRequest(nil, nbd.InfoRequest{Name: name}))
	return w
}

// choose chooses an export by GO, with structured replies and base:allocation.
func (w *wire) choose(name string) *wire {
	w.t.Helper()
	w.ack(nbd.OptStructuredReply, nil)
	w.ack(nbd.OptSetMetaContext, nbd.AppendMetaContextRequest(nil, nbd.MetaContextRequest{Name: name, Queries: []string{nbd.ContextBaseAllocation}}))
	w.structured = true
	w.ack(nbd.OptGo, nbd.AppendInfoRequest(nil, nbd.InfoRequest{Name: name}))
	return w
}

func (w *wire) put(p []byte) {
	w.t.Helper()
	if _, err := w.nc.Write(p); err != nil {
		w.t.Fatalf("send %d bytes: %v", len(p), err)
	}
}

func (w *wire) take(n int) []byte {
	w.t.Helper()
	p := make([]byte, n)
	if _, err := io.ReadFull(w.nc, p); err != nil {
		w.t.Fatalf("receive %d bytes: %v", n, err)
	}
	return p
}

// closed checks that the server closes the connection without another byte.
func (w *wire) closed() {
	w.t.Helper()
	p := make([]byte, 64)
	n, err := w.nc.Read(p)
	if n != 0 || err == nil || isTimeout(err) {
		w.t.Errorf("received %x (%v), want the end of the connection", p[:n], err)
	}
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}

// optionReply is one reply to an option.
type optionReply struct {
	reply uint32
	data  []byte
}

// option sends an option and gathers its replies up to NBD_REP_ACK or an error.
func (w *wire) option(option uint32, data []byte) []optionReply {
	w.t.Helper()
	w.put(nbd.AppendOption(nil, option, data))
	return w.optionReplies(option)
}

func (w *wire) optionReplies(option uint32) (list []optionReply) {
	w.t.Helper()
	for {
		to, reply, length, err := nbd.ParseOptionReply(w.take(nbd.OptionReplySize))
		if err != nil || to != option {
			w.t.Fatalf("reply to option %d, %v; want %d", to, err, option)
		}
		list = append(list, optionReply{reply, w.take(int(length))})
		if reply == nbd.RepAck || reply&nbd.RepFlagError != 0 {
			return list
		}
	}
}

// ack is option for one that must succeed.
func (w *wire) ack(option uint32, data []byte) []optionReply {
	w.t.Helper()
	list := w.option(option, data)
	if last := list[len(list)-1]; last.reply != nbd.RepAck {
		w.t.Fatalf("option %d: reply %#x %q, want ACK", option, last.reply, last.data)
	}
	return list
}

// refused is option for one that must fail, with a text.
func (w *wire) refused(option uint32, data []byte, want uint32) {
	w.t.Helper()
	list := w.option(option, data)
	if len(list) != 1 || list[0].reply != want || len(list[0].data) == 0 {
		w.t.Errorf("option %d: replies %x, want one of %#x with a text", option, list, want)
	}
}

// reply is the whole reply to a request.
type reply struct {
	errno  nbd.Errno
	text   string
	data   []byte // of a read
	status []nbd.Descriptor
	wide   []wideStatus // with extended headers
	chunks int
}

// send sends a request and returns its cookie.
func (w *wire) send(r nbd.Request, payload []byte) uint64 {
	w.t.Helper()
	if w.extended {
		return w.sendWide(narrow(r), payload)
	}
	w.cookie++
	r.Cookie = w.cookie
	w.put(append(nbd.AppendRequest(nil, r), payload...))
	return r.Cookie
}

// do sends a request and reads its reply, which must be the next.
func (w *wire) do(r nbd.Request, payload []byte) reply {
	w.t.Helper()
	r.Cookie = w.send(r, payload)
	return w.receive(r)
}

// receive reads the reply to r.
func (w *wire) receive(r nbd.Request) (got reply) {
	w.t.Helper()
	if w.extended {
		return w.narrowed(w.receiveWide(narrow(r), r.Cookie))
	}
	if r.Type == nbd.CmdRead {
		got.data = make([]byte, 0, min(r.Length, nbd.MaxPayload))
	}
	for {
		head, need := []byte(nil), nbd.SimpleReplySize
		var h nbd.ReplyHeader
		for need > 0 {
			head = append(head, w.take(need-len(head))...)
			var err error
			if h, need, err = nbd.ParseReplyHeader(head); err != nil {
				w.t.Fatal(err)
			}
		}
		if h.Cookie != r.Cookie {
			w.t.Fatalf("reply to request %d, want %d", h.Cookie, r.Cookie)
		}
		if !h.Structured {
			got.errno = h.Errno
			if r.Type == nbd.CmdRead && got.errno == nbd.OK {
				if w.structured {
					w.t.Error("simple reply to a read although structured replies are negotiated")
				}
				got.data = w.take(int(r.Length))
			}
			return got
		}
		if !w.structured {
			w.t.Fatal("structured reply that was not negotiated")
		}
		got.chunks++
		w.chunk(r, h.Chunk, &got)
		if h.Chunk.Flags&nbd.ReplyFlagDone != 0 {
			return got
		}
	}
}

func (w *wire) chunk(r nbd.Request, h nbd.Chunk, got *reply) {
	w.t.Helper()
	payload := w.take(int(h.Length))
	var err error
	switch {
	case h.Type == nbd.ReplyTypeNone:
	case h.Type == nbd.ReplyTypeOffsetData && r.Type == nbd.CmdRead:
		if off := binary.BigEndian.Uint64(payload); off != r.Offset+uint64(len(got.data)) {
			w.t.Errorf("data chunk at %d, want %d", off, r.Offset+uint64(len(got.data)))
		}
		got.data = append(got.data, payload[8:]...)
	case h.Type == nbd.ReplyTypeBlockStatus && r.Type == nbd.CmdBlockStatus:
		_, got.status, err = nbd.ParseBlockStatus(payload)
	case h.IsError():
		got.errno, got.text, err = nbd.ParseErrorChunk(payload)
	default:
		w.t.Errorf("chunk of type %d in the reply to command %d", h.Type, r.Type)
	}
	if err != nil {
		w.t.Error(err)
	}
}

// fails is do for a request that must fail; with structured replies it must say
// why.
func (w *wire) fails(r nbd.Request, payload []byte, want nbd.Errno) {
	w.t.Helper()
	got := w.do(r, payload)
	if got.errno != want {
		w.t.Errorf("command %d flags %#x at %d+%d: %v, want %v", r.Type, r.Flags, r.Offset, r.Length, got.errno, want)
	}
	if w.structured && got.text == "" {
		w.t.Errorf("command %d at %d+%d failed without a text", r.Type, r.Offset, r.Length)
	}
}

// works is do for a request that must succeed.
func (w *wire) works(r nbd.Request, payload []byte) reply {
	w.t.Helper()
	got := w.do(r, payload)
	if got.errno != nbd.OK {
		w.t.Errorf("command %d flags %#x at %d+%d: %v %s, want success", r.Type, r.Flags, r.Offset, r.Length, got.errno, got.text)
	}
	return got
}

// alive checks that requests are still answered, and rightly.
func (w *wire) alive() {
	w.t.Helper()
	p := []byte{byte(w.cookie), 2, 3, 4, 5}
	w.works(nbd.Request{Type: nbd.CmdWrite, Offset: 4093, Length: 5}, p)
	if got := w.works(nbd.Request{Type: nbd.CmdRead, Offset: 4093, Length: 5}, nil); !bytes.Equal(got.data, p) {
		w.t.Errorf("read %x, want %x", got.data, p)
	}
}

// forms runs a test with simple and with structured replies.
func forms(t *testing.T, test func(t *testing.T, structured bool)) {
	t.Run("simple replies", func(t *testing.T) { test(t, false) })
	t.Run("structured replies", func(t *testing.T) { test(t, true) })
}
