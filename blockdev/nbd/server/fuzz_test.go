package server_test

import (
	"encoding/binary"
	"io"
	"net"
	"testing"
	"time"

	"github.com/keelblock/keelblock/blockdev/nbd"
	"github.com/keelblock/keelblock/blockdev/nbd/server"
)

// fuzzServer serves a disk for all inputs of a fuzz target.
func fuzzServer(f *testing.F) *running {
	d := newDisk(f, f.TempDir(), 1<<20)
	s := start(f, server.Options{HandshakeTimeout: 5 * time.Second, StallTimeout: 5 * time.Second})
	s.add(f, server.Export{Name: "disk", Device: d})
	s.add(f, server.Export{Name: "slow", Device: plain{d}})
	return s
}

// exchange sends input, ends the sending side, and returns all that the server
// answers. The server must close the connection.
func exchange(t *testing.T, nc net.Conn, input []byte) []byte {
	t.Helper()
	nc.SetDeadline(time.Now().Add(20 * time.Second))
	go func() {
		nc.Write(input) // fails when the server has had enough
		nc.(*net.UnixConn).CloseWrite()
	}()
	out, err := io.ReadAll(nc)
	if isTimeout(err) {
		t.Fatalf("the server still holds the connection, after %d bytes of answers", len(out))
	}
	return out
}

func FuzzNegotiation(f *testing.F) {
	s := fuzzServer(f)
	info := infoRequest("disk", nbd.InfoBlockSize)
	context := nbd.AppendMetaContextRequest(nil, nbd.MetaContextRequest{Name: "disk", Queries: []string{"base:allocation", "qemu:"}})
	structured := nbd.AppendOption(nil, nbd.OptStructuredReply, nil)
	f.Add([]byte{})
	f.Add(nbd.AppendOption(nil, nbd.OptGo, info))
	f.Add(nbd.AppendOption(nbd.AppendOption(nil, nbd.OptInfo, info), nbd.OptAbort, nil))
	f.Add(nbd.AppendOption(nil, nbd.OptList, nil))
	f.Add(nbd.AppendOption(nbd.AppendOption(structured, nbd.OptSetMetaContext, context), nbd.OptListMetaContext, context))
	f.Add(nbd.AppendOption(nil, nbd.OptExportName, []byte("disk")))
	f.Add(nbd.AppendOption(nil, 12345, make([]byte, 10_000)))
	f.Add(binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint64(nil, nbd.OptionMagic), nbd.OptGo), 0xFFFFFFFF))
	f.Fuzz(func(t *testing.T, options []byte) {
		nc, err := net.Dial("unix", s.socket)
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		w := greet(t, nc)
		out := exchange(t, nc, options)
		for len(out) >= nbd.OptionReplySize {
			_, reply, length, err := nbd.ParseOptionReply(out)
			if err != nil || int(length) > len(out)-nbd.OptionReplySize {
				break // EXPORT_NAME has been answered, or GO: requests follow
			}
			if reply&nbd.RepFlagError != 0 && length == 0 {
				t.Error("an error reply without a text")
			}
			out = out[nbd.OptionReplySize+int(length):]
		}
		w.nc.Close()
	})
}

func FuzzTransmission(f *testing.F) {
	s := fuzzServer(f)
	all := []byte{}
	for command := range uint16(9) {
		r := nbd.Request{Type: command, Cookie: uint64(command) + 1, Offset: 512, Length: 1024}
		one := nbd.AppendRequest(nil, r)
		if command == nbd.CmdWrite {
			one = append(one, make([]byte, 1024)...)
		}
		f.Add(one, command%2 == 0, command%3 == 0)
		if command != nbd.CmdDisc {
			all = append(all, one...)
		}
	}
	f.Add(all, true, false)
	f.Add(all, false, true)
	f.Add(nbd.AppendRequest(nil, nbd.Request{Type: nbd.CmdRead, Flags: nbd.CmdFlagDF, Length: 1 << 20}), true, true)
	f.Add(append(nbd.AppendRequest(nil, nbd.Request{Type: nbd.CmdWrite, Offset: 1<<64 - 1, Length: 5000}), make([]byte, 5100)...), false, false)
	f.Fuzz(func(t *testing.T, requests []byte, structured, slow bool) {
		name := "disk"
		if slow {
			name = "slow"
		}
		w := s.open(t, name, structured)
		out := exchange(t, w.nc, requests)
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
			out = out[n:]
		}
	})
}
