package client_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keelblock/keelblock/blockdev"
	"github.com/keelblock/keelblock/blockdev/nbd"
	"github.com/keelblock/keelblock/blockdev/nbd/client"
)

// script is a server that answers as a test wants.
type script struct {
	t  testing.TB
	nc net.Conn
}

func (s script) take(n int) []byte {
	p := make([]byte, n)
	if _, err := io.ReadFull(s.nc, p); err != nil {
		return make([]byte, n) // the client has left; what follows fails as well
	}
	return p
}

func (s script) put(p []byte) { s.nc.Write(p) }

// scripted runs answer for each connection to a socket and returns its URI.
func scripted(t testing.TB, answer func(s script)) string {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			nc.SetDeadline(time.Now().Add(20 * time.Second))
			answer(script{t, nc})
			nc.Close()
		}
	})
	t.Cleanup(func() { l.Close(); wg.Wait() })
	return "nbd+unix:///disk?socket=" + socket
}

// export does the handshake for a disk of 1 MiB, with or without structured
// replies and base:allocation.
func (s script) export(structured bool, flags uint16) {
	s.put(nbd.AppendGreeting(nil, nbd.FlagFixedNewstyle|nbd.FlagNoZeroes))
	s.take(4)
	for {
		option, length, ok := nbd.ParseOption(s.take(nbd.OptionSize))
		if !ok {
			return
		}
		s.take(int(length))
		var out []byte
		switch {
		case option == nbd.OptGo:
			out = nbd.AppendOptionReply(out, option, nbd.RepInfo, nbd.AppendInfoExport(nil, 1<<20, flags|nbd.FlagHasFlags))
		case !structured:
			s.put(nbd.AppendOptionReply(nil, option, nbd.RepErrUnsup, []byte("old")))
			continue
		case option == nbd.OptSetMetaContext:
			out = nbd.AppendOptionReply(out, option, nbd.RepMetaContext, nbd.AppendMetaContext(nil, 5, nbd.ContextBaseAllocation))
		}
		s.put(nbd.AppendOptionReply(out, option, nbd.RepAck, nil))
		if option == nbd.OptGo {
			return
		}
	}
}

func (s script) request() (nbd.Request, bool) { return nbd.ParseRequest(s.take(nbd.RequestSize)) }

func dial(t testing.TB, uri string) *client.Client {
	t.Helper()
	c, err := tryDial(uri)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func tryDial(uri string) (*client.Client, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return client.Dial(ctx, uri)
}

func TestDialSaysWhyItFails(t *testing.T) {
	greeting := nbd.AppendGreeting(nil, nbd.FlagFixedNewstyle)
	refuse := func(reply uint32, text string) func(s script) {
		return func(s script) {
			s.put(greeting)
			s.take(4)
			for {
				option, length, ok := nbd.ParseOption(s.take(nbd.OptionSize))
				if !ok {
					return
				}
				s.take(int(length))
				s.put(nbd.AppendOptionReply(nil, option, reply, []byte(text)))
			}
		}
	}
	size := func(bytes uint64, min uint32) func(s script) {
		return func(s script) {
			s.put(greeting)
			s.take(4)
			for {
				option, length, ok := nbd.ParseOption(s.take(nbd.OptionSize))
				if !ok {
					return
				}
				s.take(int(length))
				out := nbd.AppendOptionReply(nil, option, nbd.RepInfo, nbd.AppendInfoExport(nil, bytes, nbd.FlagHasFlags))
				out = nbd.AppendOptionReply(out, option, nbd.RepInfo, nbd.AppendInfoBlockSize(nil, nbd.BlockSizes{Minimum: min, Preferred: 4096, Maximum: 1 << 20}))
				s.put(nbd.AppendOptionReply(out, option, nbd.RepAck, nil))
			}
		}
	}
	for want, answer := range map[string]func(s script){
		"not an NBD server":                     func(s script) { s.put([]byte("HTTP/1.1 400 Bad Request\r\n\r\n")) },
		"oldstyle":                              func(s script) { s.put(make([]byte, 0)); s.put(append([]byte("NBDMAGIC"), make([]byte, 144)...)) },
		"fixed newstyle":                        func(s script) { s.put(nbd.AppendGreeting(nil, 0)) },
		"the server has closed the connection":  func(s script) { s.put(greeting) },
		"no such export: there is no such disk": refuse(nbd.RepErrUnknown, "there is no such disk"),
		"TLS is required":                       refuse(nbd.RepErrTLSRequired, ""),
		"no multiple of 512":                    size(1000, 1),
		"more than":                             size(1<<62, 1),
		"aligned to 4096":                       size(1<<20, 4096),
		"no magic number":                       func(s script) { s.put(greeting); s.take(4 + nbd.OptionSize); s.put(make([]byte, 100)) },
	} {
		c, err := tryDial(scripted(t, answer))
		if err == nil {
			c.Close()
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Dial: %v, want an error with %q", err, want)
		}
	}
	if _, err := tryDial("nbd+unix:///x?socket=" + filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("Dial of a socket that is not there succeeded")
	}
}

func TestDialEndsWithItsContext(t *testing.T) {
	uri := scripted(t, func(s script) { s.take(1) }) // never greets
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if _, err := client.Dial(ctx, uri); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Dial of a server that is silent: %v, want DeadlineExceeded", err)
	}
}

// A server of the smallest kind: simple replies, no flush, trim, zeroes or contexts.
func TestPlainServer(t *testing.T) {
	disk := make([]byte, 1<<20)
	uri := scripted(t, func(s script) {
		s.export(false, 0)
		for {
			r, ok := s.request()
			if !ok {
				return
			}
			switch r.Type {
			case nbd.CmdRead:
				s.put(append(nbd.AppendSimpleReply(nil, r.Cookie, nbd.OK), disk[r.Offset:r.Offset+uint64(r.Length)]...))
			case nbd.CmdWrite:
				copy(disk[r.Offset:], s.take(int(r.Length)))
				s.put(nbd.AppendSimpleReply(nil, r.Cookie, nbd.OK))
			default:
				return
			}
		}
	})
	c := dial(t, uri)
	want := bytes.Repeat([]byte{7}, 5000)
	if _, err := c.WriteAt(want, 100); err != nil {
		t.Fatal(err)
	}
	if err := c.WriteZeroes(200, 1000, true); err != nil {
		t.Fatal(err)
	}
	clear(want[100:1100])
	if err := c.Trim(0, 1000); err != nil {
		t.Errorf("Trim: %v", err)
	}
	got := make([]byte, 5000)
	if _, err := c.ReadAt(got, 100); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the content is wrong (%v)", err)
	}
	if err := c.Flush(); !errors.Is(err, blockdev.ErrNotSupported) {
		t.Errorf("Flush at a server that cannot: %v, want ErrNotSupported", err)
	}
	n := 0
	err := c.Extents(0, 1<<20, func(e blockdev.Extent, s blockdev.ExtentStatus) bool {
		n++
		return e == blockdev.Extent{Length: 1 << 20} && s == blockdev.ExtentStatus{}
	})
	if err != nil || n != 1 {
		t.Errorf("Extents without base:allocation: %d extents, %v", n, err)
	}
}

// Chunks in any order, holes, and errors with a text.
func TestStructuredReplies(t *testing.T) {
	uri := scripted(t, func(s script) {
		s.export(true, nbd.FlagSendFlush)
		for {
			r, ok := s.request()
			if !ok || r.Type == nbd.CmdDisc {
				return
			}
			if r.Type == nbd.CmdFlush {
				s.put(nbd.AppendErrorChunk(nil, r.Cookie, nbd.ENOSPC, "the pool is full"))
				continue
			}
			out := append(nbd.AppendOffsetData(nil, 0, r.Cookie, r.Offset+600, 400), bytes.Repeat([]byte{2}, 400)...)
			out = nbd.AppendChunk(out, nbd.Chunk{Type: nbd.ReplyTypeOffsetHole, Cookie: r.Cookie, Length: 12})
			out = binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint64(out, r.Offset+100), 500)
			out = append(nbd.AppendOffsetData(out, 0, r.Cookie, r.Offset, 100), bytes.Repeat([]byte{1}, 100)...)
			if r.Offset > 0 {
				out = nbd.AppendErrorOffsetChunk(out, r.Cookie, nbd.EIO, "a bad sector", r.Offset)
			} else {
				out = nbd.AppendChunk(out, nbd.Chunk{Flags: nbd.ReplyFlagDone, Cookie: r.Cookie})
			}
			s.put(out)
		}
	})
	c := dial(t, uri)
	got := bytes.Repeat([]byte{0xFF}, 1000)
	want := append(append(bytes.Repeat([]byte{1}, 100), make([]byte, 500)...), bytes.Repeat([]byte{2}, 400)...)
	if _, err := c.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the chunks were put together wrongly (%v)", err)
	}
	var errno nbd.Errno
	if _, err := c.ReadAt(got, 4096); !errors.As(err, &errno) || errno != nbd.EIO || !strings.Contains(err.Error(), "a bad sector") {
		t.Errorf("read that fails: %v, want EIO and its text", err)
	}
	if err := c.Flush(); !errors.Is(err, blockdev.ErrNoSpace) || !strings.Contains(err.Error(), "the pool is full") {
		t.Errorf("flush that fails: %v, want ErrNoSpace and its text", err)
	}
}

func TestServerThatDiesFailsAllRequests(t *testing.T) {
	const n = 20
	uri := scripted(t, func(s script) {
		s.export(true, nbd.FlagSendFlush)
		for range n {
			s.request()
		}
	})
	c := dial(t, uri)
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			if _, err := c.ReadAt(make([]byte, 512), 0); !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("read from a server that died: %v, want ErrUnexpectedEOF", err)
			}
		})
	}
	wg.Wait()
	if err := c.Flush(); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("flush afterwards: %v, want the same error", err)
	}
}

func TestCloseFailsWhatIsUnderWay(t *testing.T) {
	arrived := make(chan bool, 1)
	uri := scripted(t, func(s script) {
		s.export(true, 0)
		s.request()
		arrived <- true
		s.request() // DISC, or the end
	})
	c := dial(t, uri)
	done := make(chan error, 1)
	go func() {
		_, err := c.ReadAt(make([]byte, 512), 0)
		done <- err
	}()
	<-arrived
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if err := <-done; err == nil {
		t.Error("a read that was under way succeeded")
	}
	if _, err := c.ReadAt(make([]byte, 512), 0); !errors.Is(err, blockdev.ErrClosed) {
		t.Errorf("a read after Close: %v, want ErrClosed", err)
	}
}

// Whatever a server sends, the client neither panics nor hangs nor writes outside
// of the buffer of a request.
func FuzzReplies(f *testing.F) {
	data := append(nbd.AppendOffsetData(nil, nbd.ReplyFlagDone, 1, 4096, 512), make([]byte, 512)...)
	f.Add(data)
	f.Add(append(nbd.AppendOffsetData(nil, nbd.ReplyFlagDone, 1, 4000, 512), make([]byte, 512)...))
	f.Add(nbd.AppendErrorChunk(nil, 1, nbd.EIO, "text"))
	f.Add(nbd.AppendSimpleReply(nil, 1, nbd.OK))
	f.Add(nbd.AppendSimpleReply(nil, 1, nbd.EINVAL))
	f.Add(nbd.AppendChunk(nil, nbd.Chunk{Flags: nbd.ReplyFlagDone, Cookie: 1}))
	f.Add(nbd.AppendBlockStatus(nil, nbd.ReplyFlagDone, 2, 5, []nbd.Descriptor{{Length: 512, Flags: 3}, {Length: 1 << 30}}))
	var mu sync.Mutex
	var answer []byte
	uri := scripted(f, func(s script) {
		s.export(true, nbd.FlagSendFlush)
		s.request()
		mu.Lock()
		s.put(answer)
		mu.Unlock()
	})
	f.Fuzz(func(t *testing.T, p []byte) {
		mu.Lock()
		answer = p
		mu.Unlock()
		c, err := tryDial(uri)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		whole := bytes.Repeat([]byte{0x5A}, 1024)
		c.ReadAt(whole[256:768], 4096)
		if !bytes.Equal(whole[:256], bytes.Repeat([]byte{0x5A}, 256)) || !bytes.Equal(whole[768:], whole[:256]) {
			t.Error("the reply was written outside of the buffer of its request")
		}
		next := int64(0)
		c.Extents(0, 1<<20, func(e blockdev.Extent, _ blockdev.ExtentStatus) bool {
			if e.Offset != next || e.Length <= 0 || e.End() > 1<<20 {
				t.Errorf("extent %+v, want one from %d", e, next)
			}
			next = e.End()
			return true
		})
	})
}
