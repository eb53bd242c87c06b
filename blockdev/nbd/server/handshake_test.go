package server_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keelblock/keelblock/blockdev/nbd"
	"github.com/keelblock/keelblock/blockdev/nbd/server"
)

func infoRequest(name string, infos ...uint16) []byte {
	return nbd.AppendInfoRequest(nil, nbd.InfoRequest{Name: name, Infos: infos})
}

// exportInfo gathers the information of a reply to GO or INFO.
func exportInfo(t *testing.T, list []optionReply) (info nbd.ExportInfo, texts []string) {
	t.Helper()
	for _, r := range list {
		if r.reply != nbd.RepInfo {
			continue
		}
		if err := info.Parse(r.data); err != nil {
			t.Error(err)
		}
		if i := binary.BigEndian.Uint16(r.data); i == nbd.InfoName || i == nbd.InfoDescription {
			texts = append(texts, string(r.data[2:]))
		}
	}
	return info, texts
}

const writable = nbd.FlagHasFlags | nbd.FlagSendFlush | nbd.FlagSendFUA | nbd.FlagSendTrim | nbd.FlagSendWriteZeroes | nbd.FlagCanMultiConn | nbd.FlagSendCache | nbd.FlagSendFastZero

func TestGoTellsSizeFlagsAndBlockSizes(t *testing.T) {
	d := newDisk(t, t.TempDir(), 1<<20)
	s := start(t, server.Options{})
	s.add(t, server.Export{Name: "rw", Description: "the disk", Device: d})
	s.add(t, server.Export{Name: "ro", Device: d, ReadOnly: true})
	s.add(t, server.Export{Name: "", Device: plain{d}})
	s.add(t, server.Export{Name: "alone", Device: d, Exclusive: true})
	for _, x := range []struct {
		name       string
		structured bool
		flags      uint16
	}{
		{"rw", false, writable},
		{"rw", true, writable | nbd.FlagSendDF},
		{"ro", false, nbd.FlagHasFlags | nbd.FlagReadOnly | nbd.FlagSendFlush | nbd.FlagCanMultiConn | nbd.FlagSendCache},
		{"", false, writable &^ (nbd.FlagSendTrim | nbd.FlagSendFastZero)},
		{"alone", false, writable &^ nbd.FlagCanMultiConn},
	} {
		w := s.connect(t)
		if x.structured {
			w.ack(nbd.OptStructuredReply, nil)
		}
		for _, option := range []uint32{nbd.OptInfo, nbd.OptGo} {
			list := w.ack(option, infoRequest(x.name, nbd.InfoName, nbd.InfoDescription, 999))
			info, texts := exportInfo(t, list)
			if info.Size != 1<<20 || info.Flags != x.flags {
				t.Errorf("export %q, option %d: size %d flags %#x, want flags %#x", x.name, option, info.Size, info.Flags, x.flags)
			}
			if want := (nbd.BlockSizes{Minimum: 1, Preferred: 4096, Maximum: 32 << 20}); info.BlockSizes != want {
				t.Errorf("export %q, option %d: block sizes %v, want %v", x.name, option, info.BlockSizes, want)
			}
			wantTexts := []string{x.name}
			if x.name == "rw" {
				wantTexts = append(wantTexts, "the disk")
			}
			if !slices.Equal(texts, wantTexts) {
				t.Errorf("export %q, option %d: name and description %q, want %q", x.name, option, texts, wantTexts)
			}
		}
		if x.structured {
			w.structured = true
		}
		w.works(nbd.Request{Type: nbd.CmdRead, Length: 10}, nil)
	}
}

func TestExportName(t *testing.T) {
	d := newDisk(t, t.TempDir(), 1<<20)
	s := start(t, server.Options{})
	s.add(t, server.Export{Name: "disk", Device: d})
	for _, noZeroes := range []bool{true, false} {
		nc, err := net.Dial("unix", s.socket)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { nc.Close() })
		nc.SetDeadline(time.Now().Add(patience))
		w := &wire{t: t, nc: nc}
		w.take(nbd.GreetingSize)
		flags, zeros := nbd.FlagCFixedNewstyle, nbd.ExportReplyZeros
		if noZeroes {
			flags, zeros = flags|nbd.FlagCNoZeroes, 0
		}
		w.put(binary.BigEndian.AppendUint32(nil, flags))
		w.put(nbd.AppendOption(nil, nbd.OptExportName, []byte("disk")))
		p := w.take(nbd.ExportReplySize + zeros)
		if size, flags := binary.BigEndian.Uint64(p), binary.BigEndian.Uint16(p[8:]); size != 1<<20 || flags != writable {
			t.Errorf("size %d flags %#x, want 1 MiB, %#x", size, flags, writable)
		}
		if !bytes.Equal(p[10:], make([]byte, zeros)) {
			t.Errorf("the reply ends with %x, want zeros", p[10:])
		}
		w.alive()
	}
	w := s.connect(t)
	w.put(nbd.AppendOption(nil, nbd.OptExportName, []byte("none")))
	w.closed() // the option knows no errors
}

func TestOptionsThatAreRefusedLeaveTheHandshakeGoing(t *testing.T) {
	s := start(t, server.Options{Authorize: func(_ server.Peer, name string) error {
		if strings.HasPrefix(name, "secret") {
			return errors.New("you may not use it")
		}
		return nil
	}})
	d := newDisk(t, t.TempDir(), 1<<20)
	s.add(t, server.Export{Name: "disk", Device: d})
	s.add(t, server.Export{Name: "secret", Device: d})
	w := s.connect(t)
	w.refused(77, []byte("what is this"), nbd.RepErrUnsup)
	w.refused(nbd.OptStartTLS, nil, nbd.RepErrUnsup)
	w.refused(nbd.OptExtendedHeaders, []byte("x"), nbd.RepErrInvalid)
	w.refused(nbd.OptGo, infoRequest("none"), nbd.RepErrUnknown)
	w.refused(nbd.OptInfo, infoRequest("none"), nbd.RepErrUnknown)
	w.refused(nbd.OptGo, infoRequest("secret"), nbd.RepErrPolicy)
	w.refused(nbd.OptGo, infoRequest("secret that is not there"), nbd.RepErrPolicy)
	w.refused(nbd.OptGo, nil, nbd.RepErrInvalid)
	w.refused(nbd.OptGo, []byte{0xFF, 0xFF, 0xFF, 0xFF, 0, 0}, nbd.RepErrInvalid)
	w.refused(nbd.OptGo, append(infoRequest("disk", 1), 0), nbd.RepErrInvalid)
	w.refused(nbd.OptGo, infoRequest("\xFF\xFE"), nbd.RepErrInvalid)
	w.refused(nbd.OptGo, infoRequest(strings.Repeat("n", 4097)), nbd.RepErrInvalid)
	w.refused(nbd.OptList, []byte("x"), nbd.RepErrInvalid)
	w.refused(nbd.OptStructuredReply, []byte("x"), nbd.RepErrInvalid)
	context := nbd.AppendMetaContextRequest(nil, nbd.MetaContextRequest{Name: "disk", Queries: []string{nbd.ContextBaseAllocation}})
	w.refused(nbd.OptSetMetaContext, context, nbd.RepErrInvalid) // structured replies come first
	w.refused(nbd.OptListMetaContext, context, nbd.RepErrInvalid)
	w.refused(99, bytes.Repeat([]byte("x"), 3<<20), nbd.RepErrTooBig)
	// What was refused must leave nothing behind: GO still needs its own name.
	w.refused(nbd.OptGo, infoRequest("none"), nbd.RepErrUnknown)
	w.ack(nbd.OptGo, infoRequest("disk"))
	w.alive()
}

func TestListNamesWhatThePeerMayUse(t *testing.T) {
	s := start(t, server.Options{Authorize: func(p server.Peer, name string) error {
		if p.Network != "unix" || p.UID != 0 && p.UID < 1 || p.PID <= 0 {
			return fmt.Errorf("unexpected peer %+v", p)
		}
		if name == "hidden" {
			return errors.New("no")
		}
		return nil
	}})
	d := newDisk(t, t.TempDir(), 4096)
	for i := range 300 {
		s.add(t, server.Export{Name: fmt.Sprintf("disk-%03d", i), Description: strings.Repeat("d", 1000), Device: d})
	}
	s.add(t, server.Export{Name: "hidden", Device: d})
	list := s.connect(t).ack(nbd.OptList, nil)
	if len(list) != 301 {
		t.Fatalf("%d replies, want 300 names and ACK", len(list))
	}
	for i, r := range list[:300] {
		want := nbd.AppendServer(nil, fmt.Sprintf("disk-%03d", i), strings.Repeat("d", 1000))
		if r.reply != nbd.RepServer || !bytes.Equal(r.data, want) {
			t.Fatalf("reply %d is %#x %q", i, r.reply, r.data)
		}
	}
}

func TestListOnTCPOnlyWhenAllowed(t *testing.T) {
	for _, allow := range []bool{false, true} {
		s := start(t, server.Options{AllowList: allow})
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		serve(t, s.Server, l)
		nc, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		w := greet(t, nc)
		if allow {
			w.ack(nbd.OptList, nil)
		} else {
			w.refused(nbd.OptList, nil, nbd.RepErrPolicy)
		}
	}
}

func TestMetaContexts(t *testing.T) {
	s := start(t, server.Options{})
	d := newDisk(t, t.TempDir(), 1<<20)
	s.add(t, server.Export{Name: "disk", Device: d})
	s.add(t, server.Export{Name: "other", Device: d})
	request := func(name string, queries ...string) []byte {
		return nbd.AppendMetaContextRequest(nil, nbd.MetaContextRequest{Name: name, Queries: queries})
	}
	w := s.connect(t)
	w.ack(nbd.OptStructuredReply, nil)
	for _, x := range []struct {
		option  uint32
		queries []string
		want    bool
	}{
		{nbd.OptListMetaContext, nil, true},
		{nbd.OptListMetaContext, []string{"base:"}, true},
		{nbd.OptListMetaContext, []string{"base:allocation"}, true},
		{nbd.OptListMetaContext, []string{"qemu:", "base:alloc"}, false},
		{nbd.OptSetMetaContext, nil, false},
		{nbd.OptSetMetaContext, []string{"base:"}, false},
		{nbd.OptSetMetaContext, []string{"unknown:x", "base:allocation"}, true},
	} {
		list := w.ack(x.option, request("disk", x.queries...))
		if got := len(list) == 2 && string(list[0].data[4:]) == nbd.ContextBaseAllocation; got != x.want || len(list) > 2 {
			t.Errorf("option %d with %q: %d replies, base:allocation %v, want %v", x.option, x.queries, len(list), got, x.want)
		}
	}
	w.refused(nbd.OptListMetaContext, request("none"), nbd.RepErrUnknown)
	w.refused(nbd.OptListMetaContext, []byte{0, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF}, nbd.RepErrInvalid)
	w.structured = true
	w.ack(nbd.OptGo, infoRequest("disk"))
	if got := w.works(nbd.Request{Type: nbd.CmdBlockStatus, Length: 4096}, nil); len(got.status) != 1 || got.status[0].Length != 4096 {
		t.Errorf("block status %v", got.status)
	}

	// A context of one export does not hold for another, nor a failed request for
	// the one before it.
	for _, last := range [][]byte{request("other", "base:allocation"), request("none", "base:allocation"), request("disk")} {
		w := s.connect(t)
		w.ack(nbd.OptStructuredReply, nil)
		w.ack(nbd.OptSetMetaContext, request("disk", "base:allocation"))
		w.option(nbd.OptSetMetaContext, last)
		w.structured = true
		w.ack(nbd.OptGo, infoRequest("disk"))
		w.fails(nbd.Request{Type: nbd.CmdBlockStatus, Length: 4096}, nil, nbd.EINVAL)
		w.alive()
	}
}

func TestAbortIsAcknowledged(t *testing.T) {
	s := start(t, server.Options{})
	w := s.connect(t)
	w.ack(nbd.OptAbort, nil)
	w.closed()
}

func TestGarbageInTheHandshakeEndsIt(t *testing.T) {
	s := start(t, server.Options{})
	w := s.connect(t)
	w.put([]byte("GET / HTTP/1.0\r\n\r\n"))
	w.closed()
	nc, err := net.Dial("unix", s.socket)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	nc.SetDeadline(time.Now().Add(patience))
	w = &wire{t: t, nc: nc}
	w.take(nbd.GreetingSize)
	w.put([]byte{0xFF, 0, 0, 3}) // flags that nobody knows
	w.closed()
}

func TestAbandonedHandshakeIsCutOff(t *testing.T) {
	s := start(t, server.Options{HandshakeTimeout: 100 * time.Millisecond})
	for _, start := range [][]byte{nil, nbd.AppendOption(nil, nbd.OptGo, make([]byte, 100))[:50], nbd.AppendOption(nil, 99, make([]byte, 1<<20))[:1<<16]} {
		w := s.connect(t)
		w.put(start)
		began := time.Now()
		w.closed()
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("a handshake that stopped after %d bytes was cut off after %v", len(start), took)
		}
	}
	if n := s.Stats().HandshakesFailed; n != 3 {
		t.Errorf("%d handshakes are counted as failed, want 3", n)
	}
}

func TestMaxConnections(t *testing.T) {
	s := start(t, server.Options{MaxConnections: 2})
	s.connect(t)
	b := s.connect(t)
	nc, err := net.Dial("unix", s.socket)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	nc.SetDeadline(time.Now().Add(patience))
	(&wire{t: t, nc: nc}).closed()
	b.ack(nbd.OptAbort, nil)
	eventually(t, "a place is free again", func() bool { return s.Stats().Connections == 1 })
	s.connect(t)
}

// patience bounds the life of a test's connection: enough for a full file system under the
// race detector on a busy machine.
const patience = 3 * time.Minute

// eventually waits for what another goroutine will bring about.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("after a minute it is still not so that %s", what)
		}
	}
}
