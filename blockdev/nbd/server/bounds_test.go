package server_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/keelblock/keelblock/blockdev/nbd"
	"github.com/keelblock/keelblock/blockdev/nbd/server"
)

// needDescriptors skips the test unless the process may open n files.
func needDescriptors(t *testing.T, n uint64) {
	t.Helper()
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		t.Fatal(err)
	}
	if l.Max < n {
		t.Skipf("%d open files are allowed (RLIMIT_NOFILE), %d are needed", l.Max, n)
	}
	if l.Cur < n {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: l.Max, Max: l.Max}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Setrlimit(unix.RLIMIT_NOFILE, &l) })
	}
}

// memory is what the process uses: of the heap and the stacks after a collection, and
// of the machine.
type memory struct{ heap, stacks, resident int64 }

func memoryNow(t *testing.T) (m memory) {
	t.Helper()
	runtime.GC()
	runtime.GC() // pools give up their buffers with the second
	var s runtime.MemStats
	runtime.ReadMemStats(&s)
	m.heap, m.stacks = int64(s.HeapAlloc), int64(s.StackInuse)
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			n, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			m.resident = n << 10
		}
	}
	return m
}

func (m memory) since(before memory) int64 {
	return m.heap + m.stacks - before.heap - before.stacks
}

// dialMany opens connections, and calls each with every one after the greeting. A
// connection is closed at the end of the test.
func (s *running) dialMany(t *testing.T, n int, each func(i int, w *wire)) {
	t.Helper()
	list := make([]net.Conn, 0, n)
	t.Cleanup(func() {
		for _, nc := range list {
			nc.Close()
		}
	})
	for i := range n {
		nc, err := net.Dial("unix", s.socket)
		if err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
		nc.SetDeadline(time.Now().Add(patience))
		list = append(list, nc)
		w := &wire{t: t, nc: nc}
		w.take(nbd.GreetingSize)
		each(i, w)
	}
}

// Two thousand clients that have worked and now do nothing, and two hundred that have
// left their handshake in its middle, some of them with hostile lengths: both cost a
// bounded amount of memory each, and the second only until their time is over.
func TestManyIdleAndAbandonedConnectionsCostLittle(t *testing.T) {
	const idle, abandoned, exports = 2000, 200, 50
	if raceDetector {
		t.Skip("the race detector adds memory of its own")
	}
	needDescriptors(t, 2*(idle+abandoned)+200)
	d := newDisk(t, t.TempDir(), 1<<20)
	s := start(t, server.Options{HandshakeTimeout: time.Minute})
	for i := range exports {
		s.add(t, server.Export{Name: fmt.Sprint("disk", i), Device: d, Contexts: twoBitmaps()})
	}
	before := memoryNow(t)

	clientFlags := binary.BigEndian.AppendUint32(nil, nbd.FlagCFixedNewstyle|nbd.FlagCNoZeroes)
	s.dialMany(t, idle, func(i int, w *wire) {
		w.put(clientFlags)
		w.choose(fmt.Sprint("disk", i%exports))
		if i%20 == 0 { // with large buffers on their way in and out
			w.works(nbd.Request{Type: nbd.CmdWrite, Length: 300_000}, make([]byte, 300_000))
			w.works(nbd.Request{Type: nbd.CmdRead, Length: 300_000}, nil)
		}
	})
	atRest := memoryNow(t)
	perIdle := atRest.since(before) / idle
	// The client's end is in it, too.
	t.Logf("an idle connection costs %d bytes of heap and stacks", perIdle)
	if perIdle > 20<<10 {
		t.Errorf("an idle connection costs %d bytes, more than 20 KiB", perIdle)
	}

	head := func(option uint32, length uint32) []byte {
		p := binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint64(nil, nbd.OptionMagic), option)
		return binary.BigEndian.AppendUint32(p, length)
	}
	begun := [][]byte{
		clientFlags[:2],
		clientFlags,
		append(bytes.Clone(clientFlags), head(nbd.OptGo, 0xFFFFFFFF)...),
		append(append(bytes.Clone(clientFlags), head(nbd.OptList, 7<<10)...), make([]byte, 7<<10-1)...),
		append(append(bytes.Clone(clientFlags), head(99, 1<<31)...), make([]byte, 20<<10)...),
	}
	s.dialMany(t, abandoned, func(i int, w *wire) { w.put(begun[i%len(begun)]) })
	eventually(t, "all are connected", func() bool { return s.Stats().Connections == idle+abandoned })
	time.Sleep(50 * time.Millisecond) // for the bytes to be read; the bound holds before, too
	with := memoryNow(t)
	perAbandoned := with.since(atRest) / abandoned
	t.Logf("an abandoned handshake costs %d bytes of heap and stacks; %d MiB are resident, %d before all", perAbandoned, with.resident>>20, before.resident>>20)
	if perAbandoned > 40<<10 {
		t.Errorf("an abandoned handshake costs %d bytes, more than 40 KiB", perAbandoned)
	}
	if grown := with.resident - before.resident; grown > 128<<20 {
		t.Errorf("%d MiB more are resident with all of them, want at most 128", grown>>20)
	}
	if st := s.Stats(); st.Connections != idle+abandoned || st.RefusedConnection != 0 {
		t.Errorf("%d connections are open, %d were refused", st.Connections, st.RefusedConnection)
	}
}

func TestAbandonedHandshakesAreCutWhileOthersWork(t *testing.T) {
	const abandoned = 200
	a := newAuthority(t)
	needDescriptors(t, 2*abandoned+200)
	s := start(t, server.Options{HandshakeTimeout: 2 * time.Second, TLS: a.serverTLS()})
	s.add(t, server.Export{Name: "disk", Device: newDisk(t, t.TempDir(), 1<<20)})
	w := s.open(t, "disk", true)
	clientFlags := binary.BigEndian.AppendUint32(nil, nbd.FlagCFixedNewstyle|nbd.FlagCNoZeroes)
	s.dialMany(t, abandoned, func(i int, x *wire) {
		x.nc.Write(clientFlags) // may come too late
		if i%2 == 0 {
			x.nc.Write(nbd.AppendOption(nil, nbd.OptStartTLS, nil)) // and never a TLS handshake
		}
		if i%20 == 0 {
			w.alive()
		}
	})
	eventually(t, "only the one that works is left", func() bool { return s.Stats().Connections == 1 })
	if n := s.Stats().HandshakesFailed; n != abandoned {
		t.Errorf("%d handshakes are counted as failed, want %d", n, abandoned)
	}
	w.alive()
}

// A length that a client only announces costs nothing.
func TestHostileLengthsCostNoMemory(t *testing.T) {
	const n = 100
	s := start(t, server.Options{})
	d := newDisk(t, t.TempDir(), 1<<30)
	s.add(t, server.Export{Name: "inline", Device: d})
	s.add(t, server.Export{Name: "workers", Device: plain{d}})
	before := memoryNow(t)
	for i := range n {
		name := [2]string{"inline", "workers"}[i%2]
		w := s.openExtended(t, name)
		switch i % 4 {
		case 0: // the payload of a write that never comes
			w.sendWide(wide{command: 1, flags: payloadLength, length: 64 << 20}, nil)
		case 1:
			w.sendWide(wide{command: 1, flags: payloadLength, length: 64 << 20}, make([]byte, 1000))
		case 2: // one that is dropped
			w.sendWide(wide{command: 0, flags: payloadLength, length: 1<<32 - 1}, nil)
		case 3:
			w.sendWide(wide{command: 7, flags: payloadLength, length: 8 + 4*64}, make([]byte, 100))
		}
	}
	w := s.open(t, "inline", true)
	w.alive()
	now := memoryNow(t)
	per := now.since(before) / n
	t.Logf("a request whose payload does not come costs %d bytes of heap and stacks", per)
	// At most the piece of a write that is being read, and a read buffer.
	if per > 700<<10 {
		t.Errorf("a request whose payload does not come costs %d bytes, more than 700 KiB", per)
	}
}

// Over TLS an idle connection keeps the state of the session and a record, but none of
// the large buffers.
func TestIdleTLSConnectionsAreCheap(t *testing.T) {
	const idle = 200
	if raceDetector {
		t.Skip("the race detector adds memory of its own")
	}
	a := newAuthority(t)
	dir, _ := a.issue("client", "client")
	config := a.clientTLS(dir)
	needDescriptors(t, 2*idle+200)
	s := start(t, server.Options{TLS: a.serverTLS(), HandshakeTimeout: time.Minute})
	s.add(t, server.Export{Name: "disk", Device: newDisk(t, t.TempDir(), 1<<20), ReadOnly: true})
	before := memoryNow(t)
	clientFlags := binary.BigEndian.AppendUint32(nil, nbd.FlagCFixedNewstyle|nbd.FlagCNoZeroes)
	s.dialMany(t, idle, func(i int, w *wire) {
		w.put(clientFlags)
		w.startTLS(config)
		w.choose("disk")
		w.works(nbd.Request{Type: nbd.CmdRead, Length: 300_000}, nil)
	})
	per := memoryNow(t).since(before) / idle
	t.Logf("an idle connection over TLS costs %d bytes of heap and stacks, with the client's end", per)
	if per > 100<<10 {
		t.Errorf("an idle connection over TLS costs %d bytes, more than 100 KiB", per)
	}
}
