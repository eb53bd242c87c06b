package server_test

import (
	"crypto/tls"
	"encoding/binary"
	"io"
	"net"
	"testing"
	"time"

	"github.com/keelblock/keelblock/blockdev/nbd"
	"github.com/keelblock/keelblock/blockdev/nbd/server"
)

// fuzzServer serves a disk for all inputs of a fuzz target.
func fuzzServer(f *testing.F, o server.Options) *running {
	d := newDisk(f, f.TempDir(), 1<<20)
	o.HandshakeTimeout, o.StallTimeout, o.BarrierTimeout = 5*time.Second, 5*time.Second, 5*time.Second
	s := start(f, o)
	s.add(f, server.Export{Name: "disk", Device: d, Contexts: twoBitmaps()})
	s.add(f, server.Export{Name: "slow", Device: plain{d}, Contexts: twoBitmaps()})
	return s
}

// exchange sends input, ends the sending side, and returns all that the server
// answers. The server must close the connection.
func exchange(t *testing.T, nc net.Conn, input []byte) []byte {
	t.Helper()
	nc.SetDeadline(time.Now().Add(20 * time.Second))
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		nc.Write(input) // fails when the server has had enough
		nc.(interface{ CloseWrite() error }).CloseWrite()
	}()
	out, err := io.ReadAll(nc)
	if isTimeout(err) {
		t.Fatalf("the server still holds the connection, after %d bytes of answers", len(out))
	}
	nc.Close()
	<-sent
	return out
}

// optionAnswers cuts what the server answers to options into replies, up to the
// answer to EXPORT_NAME or the first reply to a request.
func optionAnswers(t *testing.T, out []byte) (list []optionReply) {
	t.Helper()
	for len(out) >= nbd.OptionReplySize {
		_, reply, length, err := nbd.ParseOptionReply(out)
		if err != nil || int(length) > len(out)-nbd.OptionReplySize {
			break
		}
		if reply&nbd.RepFlagError != 0 && length == 0 {
			t.Error("an error reply without a text")
		}
		list = append(list, optionReply{reply, out[nbd.OptionReplySize : nbd.OptionReplySize+int(length)]})
		out = out[nbd.OptionReplySize+int(length):]
	}
	return list
}

// The ways in which FuzzNegotiation speaks.
const (
	overUnix     = iota
	beforeTLS    // by TCP, where TLS is required
	insideTLS    // by TCP, after STARTTLS
	negotiations // how many there are
)

// Whatever a client sends as options, it gets answers, or the end of the connection.
func FuzzNegotiation(f *testing.F) {
	a := newAuthority(f)
	s := fuzzServer(f, server.Options{TLS: a.serverTLS(), RequireTLS: true, AllowList: true})
	dir, _ := a.issue("client", "client")
	config := a.clientTLS(dir)
	addr := s.tcp(f)
	info := infoRequest("disk", nbd.InfoBlockSize)
	contexts := contextRequest("disk", "base:allocation", "qemu:", "qemu:dirty-bitmap:monday")
	structured := nbd.AppendOption(nil, nbd.OptStructuredReply, nil)
	extended := nbd.AppendOption(nil, nbd.OptExtendedHeaders, nil)
	set := nbd.AppendOption(nil, nbd.OptSetMetaContext, contexts)
	huge := binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint64(nil, nbd.OptionMagic), nbd.OptGo), 0xFFFFFFFF)
	for way := range uint8(negotiations) {
		f.Add([]byte{}, way)
		f.Add(nbd.AppendOption(nil, nbd.OptGo, info), way)
		f.Add(nbd.AppendOption(nbd.AppendOption(nil, nbd.OptInfo, info), nbd.OptAbort, nil), way)
		f.Add(nbd.AppendOption(nil, nbd.OptList, nil), way)
		f.Add(nbd.AppendOption(append(structured, set...), nbd.OptListMetaContext, contexts), way)
		f.Add(nbd.AppendOption(append(extended, set...), nbd.OptGo, info), way)
		f.Add(append(append(extended, structured...), extended...), way)
		f.Add(nbd.AppendOption(extended, nbd.OptExportName, []byte("disk")), way)
		f.Add(nbd.AppendOption(nil, nbd.OptExportName, []byte("disk")), way)
		f.Add(nbd.AppendOption(nil, nbd.OptStartTLS, nil), way)
		f.Add(append(nbd.AppendOption(nil, nbd.OptStartTLS, nil), structured...), way)
		f.Add(nbd.AppendOption(nil, nbd.OptStartTLS, []byte("x")), way)
		f.Add(nbd.AppendOption(nil, 12345, make([]byte, 10_000)), way)
		f.Add(huge, way)
	}
	f.Fuzz(func(t *testing.T, options []byte, way uint8) {
		way %= negotiations
		network, at := "tcp", addr
		if way == overUnix {
			network, at = "unix", s.socket
		}
		nc, err := net.Dial(network, at)
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		w := greet(t, nc)
		if way == insideTLS {
			w.startTLS(config)
		}
		for _, r := range optionAnswers(t, exchange(t, w.nc, options)) {
			if way == beforeTLS && r.reply != nbd.RepErrTLSRequired && r.reply != nbd.RepAck && r.reply != nbd.RepErrInvalid {
				t.Errorf("reply %#x %q where TLS is required", r.reply, r.data)
			}
			if way == insideTLS && r.reply == nbd.RepErrTLSRequired {
				t.Error("TLS is demanded inside of TLS")
			}
		}
	})
}

// Whatever stands behind the acknowledged STARTTLS instead of a TLS handshake ends the
// connection, and is answered with nothing but a TLS alert.
func FuzzTLSHandshake(f *testing.F) {
	a := newAuthority(f)
	s := fuzzServer(f, server.Options{TLS: a.serverTLS()})
	f.Add([]byte{})
	f.Add(nbd.AppendOption(nil, nbd.OptStructuredReply, nil))
	f.Add([]byte{22, 3, 1, 0xFF, 0xFF})
	hello := &recording{}
	tls.Client(hello, a.clientTLS("")).Handshake() // fails, after the first message
	f.Add(hello.sent)
	f.Add(append(append([]byte{}, hello.sent...), hello.sent...))
	f.Fuzz(func(t *testing.T, p []byte) {
		w := s.connect(t)
		w.ack(nbd.OptStartTLS, nil)
		out := exchange(t, w.nc, p)
		for len(out) > 0 { // alerts, handshake, change of cipher, application data
			if out[0] < 20 || out[0] > 23 || len(out) < 5 {
				t.Fatalf("the server answers %x, which is no TLS record", out)
			}
			out = out[min(len(out), 5+int(binary.BigEndian.Uint16(out[3:]))):]
		}
	})
}

// recording is a connection that keeps what is sent and receives nothing.
type recording struct {
	net.Conn
	sent []byte
}

func (r *recording) Write(p []byte) (int, error) {
	r.sent = append(r.sent, p...)
	return len(p), nil
}
func (r *recording) Read([]byte) (int, error) { return 0, io.EOF }

// The forms of FuzzTransmission.
const (
	simple = iota
	structuredReplies
	extendedHeaders
	formCount
)

// fuzzRequests are seeds: each command alone, all together, and wrong ones.
func fuzzRequests(form uint8) (list [][]byte) {
	request := func(command, flags uint16, off, length uint64, payload int) []byte {
		cookie := uint64(command) + 1
		var p []byte
		if form == extendedHeaders {
			if payload > 0 {
				flags |= payloadLength
			}
			p = wideBytes(wide{flags: flags, command: command, offset: off, length: length}, cookie)
		} else {
			p = nbd.AppendRequest(nil, nbd.Request{Flags: flags, Type: command, Cookie: cookie, Offset: off, Length: uint32(length)})
		}
		return append(p, make([]byte, payload)...)
	}
	var all []byte
	for command := range uint16(9) {
		payload := 0
		if command == nbd.CmdWrite {
			payload = 1024
		}
		one := request(command, 0, 512, 1024, payload)
		list = append(list, one)
		if command != nbd.CmdDisc {
			all = append(all, one...)
		}
	}
	filter := binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint64(nil, 4096), 1)
	return append(list, all,
		request(nbd.CmdRead, nbd.CmdFlagDF, 0, 1<<20, 0),
		request(nbd.CmdRead, 0, 1<<63, 1<<31, 0),
		request(nbd.CmdWriteZeroes, nbd.CmdFlagFastZero|nbd.CmdFlagNoHole, 1, 511, 0),
		request(nbd.CmdWrite, nbd.CmdFlagFUA, 1<<64-1, 5000, 5100),
		append(request(nbd.CmdBlockStatus, payloadLength, 0, 12, 0), filter...),
		request(nbd.CmdWrite, payloadLength, 0, 1<<62, 0),
		request(nbd.CmdBlockStatus, nbd.CmdFlagReqOne, 0, 1<<20, 0),
	)
}

// Whatever a client sends as requests, the answers are whole replies of the form that
// was negotiated.
func FuzzTransmission(f *testing.F) {
	s := fuzzServer(f, server.Options{})
	for form := range uint8(formCount) {
		for i, p := range fuzzRequests(form) {
			f.Add(p, form, i%2 == 0)
		}
	}
	f.Fuzz(func(t *testing.T, requests []byte, form uint8, slow bool) {
		name := "disk"
		if slow {
			name = "slow"
		}
		form %= formCount
		var w *wire
		if form == extendedHeaders {
			w = s.openExtended(t, name)
		} else {
			w = s.open(t, name, form == structuredReplies)
		}
		out := exchange(t, w.nc, requests)
		if form == extendedHeaders {
			checkExtendedReplies(t, out)
		} else {
			checkReplies(t, out, form == structuredReplies)
		}
	})
}

func checkReplies(t *testing.T, out []byte, structured bool) {
	t.Helper()
	for len(out) > 0 {
		h, need, err := nbd.ParseReplyHeader(out)
		if err != nil || need > 0 {
			t.Fatalf("the answers end with %d bytes that are no reply: %v", len(out), err)
		}
		if !h.Structured {
			// Data of a read, whose length only the requests tell.
			if !structured && h.Errno == nbd.OK {
				return
			}
			out = out[nbd.SimpleReplySize:]
			continue
		}
		if !structured {
			t.Fatal("structured reply that was not negotiated")
		}
		n := nbd.ChunkSize + int(h.Chunk.Length)
		if n > len(out) {
			t.Fatalf("the last chunk has %d bytes of %d", len(out), n)
		}
		if h.Chunk.IsError() {
			if _, _, err := nbd.ParseErrorChunk(out[nbd.ChunkSize:n]); err != nil {
				t.Error(err)
			}
		}
		out = out[n:]
	}
}

func checkExtendedReplies(t *testing.T, out []byte) {
	t.Helper()
	for len(out) > 0 {
		if len(out) < nbd.ExtendedChunkSize {
			t.Fatalf("the answers end with %d bytes that are no chunk", len(out))
		}
		h, err := nbd.ParseExtendedChunk(out)
		if err != nil || h.Length > uint64(len(out)-nbd.ExtendedChunkSize) {
			t.Fatalf("chunk of %d bytes in %d: %v", h.Length, len(out), err)
		}
		payload := out[nbd.ExtendedChunkSize : nbd.ExtendedChunkSize+h.Length]
		switch {
		case h.IsError():
			_, _, err = nbd.ParseErrorChunk(payload)
		case h.Type == nbd.ReplyTypeBlockStatusExt:
			_, _, err = nbd.ParseBlockStatusExt(payload)
		}
		if err != nil {
			t.Error(err)
		}
		out = out[nbd.ExtendedChunkSize+h.Length:]
	}
}
