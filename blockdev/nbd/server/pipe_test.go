package server_test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/keelblock/keelblock/blockdev"
	"github.com/keelblock/keelblock/blockdev/localdisk"
	"github.com/keelblock/keelblock/blockdev/nbd"
	"github.com/keelblock/keelblock/blockdev/nbd/server"
)

// pipeDisk takes writes out of a pipe as refuse says: nil lets the disk below do it.
type pipeDisk struct {
	*localdisk.Disk
	refuse func(pipe, n int, off int64) (taken int, err error)
}

func (d pipeDisk) WritePipeNowait(pipe, n int, off int64) (int, error) {
	if taken, err := d.refuse(pipe, n, off); err != nil {
		return taken, err
	}
	return d.Disk.WritePipeNowait(pipe, n, off)
}

const pipeDiskBytes = 8 << 20

// Writes of all lengths and places, small ones between large ones, in every form, land
// where they belong; large ones go through pipes.
func TestLargeWritesGoThroughPipes(t *testing.T) {
	d := newDisk(t, t.TempDir(), pipeDiskBytes)
	want := make([]byte, pipeDiskBytes)
	s := start(t, server.Options{})
	s.add(t, server.Export{Name: "disk", Device: d})
	const seed = 5
	rng := rand.New(rand.NewPCG(seed, 0))
	forms(t, func(t *testing.T, structured bool) {
		before := s.Stats()
		w := s.open(t, "disk", structured)
		for i := range 60 {
			var batch []nbd.Request
			for range 1 + rng.IntN(3) { // several under way
				n := []int{1, 512, 4096, 100_000, 128 << 10, 256 << 10, 300_001, 1 << 20, 3<<20 + 4096}[rng.IntN(9)]
				r := nbd.Request{Type: nbd.CmdWrite, Length: uint32(n), Offset: uint64(rng.IntN(pipeDiskBytes - n + 1))}
				if i%2 == 0 {
					r.Offset &^= 4095
				}
				if i%7 == 0 {
					r.Flags = nbd.CmdFlagFUA
				}
				p := make([]byte, n)
				for k := range p {
					p[k] = byte(i + k>>9)
				}
				copy(want[r.Offset:], p)
				if r.Flags != 0 { // its reply may come after those of others
					w.works(r, p)
					continue
				}
				r.Cookie = w.send(r, p)
				batch = append(batch, r)
			}
			for _, r := range batch {
				if got := w.receive(r); got.errno != nbd.OK {
					t.Fatalf("seed %d: %+v: %v", seed, r, got.errno)
				}
			}
			if i%9 == 0 {
				w.works(nbd.Request{Type: nbd.CmdFlush}, nil)
			}
		}
		got := make([]byte, pipeDiskBytes)
		if _, err := d.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("seed %d: the disk is not what was written (%v)", seed, err)
		}
		if st := s.Stats(); st.PipedBytes-before.PipedBytes < 10<<20 {
			t.Errorf("of %d bytes written %d went through pipes", st.WriteBytes-before.WriteBytes, st.PipedBytes-before.PipedBytes)
		}
	})
}

// A disk that cannot, or must wait, or that has an error after it has taken some, costs
// at most the write that it refused; what is behind it in the socket is unharmed.
func TestWritesThatAPipeCannotTake(t *testing.T) {
	broken := errors.New("broken")
	take := func(pipe, n int) int {
		k, err := unix.Read(pipe, make([]byte, n))
		if err != nil {
			t.Errorf("read from the pipe: %v", err)
		}
		return k
	}
	for _, tt := range []struct {
		name   string
		refuse func(pipe, n int, off int64) (int, error)
		errno  nbd.Errno
		piped  bool // others of the connection still are
	}{
		{"waits", func(int, int, int64) (int, error) { return 0, blockdev.ErrWouldBlock }, nbd.OK, true},
		{"takes no pipe", func(int, int, int64) (int, error) { return 0, blockdev.ErrNotSupported }, nbd.OK, false},
		{"fails before it takes anything", func(int, int, int64) (int, error) { return 0, broken }, nbd.EIO, true},
		{"fails in the middle", func(pipe, n int, _ int64) (int, error) { return take(pipe, n/2), broken }, nbd.EIO, true},
		{"fails at the end", func(pipe, n int, _ int64) (int, error) { return take(pipe, n), broken }, nbd.EIO, true},
		{"is full", func(int, int, int64) (int, error) { return 0, blockdev.ErrNoSpace }, nbd.ENOSPC, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := newDisk(t, t.TempDir(), pipeDiskBytes)
			const refused = 2 << 20 // the piece that begins here
			s := start(t, server.Options{})
			s.add(t, server.Export{Name: "disk", Device: pipeDisk{d, func(pipe, n int, off int64) (int, error) {
				if off != refused {
					return 0, nil
				}
				return tt.refuse(pipe, n, off)
			}}})
			w := s.open(t, "disk", true)
			p := bytes.Repeat([]byte{3}, 1<<20)
			w.works(nbd.Request{Type: nbd.CmdWrite, Length: 1 << 20}, p)
			for range 2 {
				r := nbd.Request{Type: nbd.CmdWrite, Offset: refused - 512<<10, Length: 1 << 20}
				if got := w.do(r, p); got.errno != tt.errno {
					t.Fatalf("the write: %v, want %v", got.errno, tt.errno)
				}
				w.alive()
				before := s.Stats().PipedBytes
				w.works(nbd.Request{Type: nbd.CmdWrite, Offset: 5 << 20, Length: 1 << 20}, p)
				w.works(nbd.Request{Type: nbd.CmdWrite, Offset: 6 << 20, Length: 4096}, p[:4096])
				if after := s.Stats().PipedBytes; after > before != tt.piped {
					t.Errorf("%d bytes went through a pipe after it", after-before)
				}
			}
			got := make([]byte, 1<<20)
			if _, err := d.ReadAt(got, 5<<20); err != nil || !bytes.Equal(got, p) {
				t.Errorf("the write behind it is not whole (%v)", err)
			}
			if tt.errno == nbd.OK {
				if _, err := d.ReadAt(got, refused-512<<10); err != nil || !bytes.Equal(got, p) {
					t.Errorf("the write is not whole (%v)", err)
				}
			}
		})
	}
}

// A client that sends in small pieces fills the slots of a pipe long before its bytes.
func TestWriteInManySends(t *testing.T) {
	d := newDisk(t, t.TempDir(), pipeDiskBytes)
	s := start(t, server.Options{})
	s.add(t, server.Export{Name: "disk", Device: d})
	w := s.open(t, "disk", true)
	p := make([]byte, 1<<20)
	for i := range p {
		p[i] = byte(i >> 7)
	}
	r := nbd.Request{Type: nbd.CmdWrite, Length: uint32(len(p)), Cookie: 77}
	w.put(nbd.AppendRequest(nil, r))
	for sent := 0; sent < len(p); sent += 300 {
		w.put(p[sent:min(sent+300, len(p))])
	}
	if got := w.receive(r); got.errno != nbd.OK {
		t.Fatal(got.errno)
	}
	got := make([]byte, len(p))
	if _, err := d.ReadAt(got, 0); err != nil || !bytes.Equal(got, p) {
		t.Errorf("the disk is not what was written (%v)", err)
	}
	w.alive()
}

// A piece that does not arrive whole is not written, also when most of it is in a pipe.
func TestPieceThatDoesNotArriveIsNotWritten(t *testing.T) {
	d := newDisk(t, t.TempDir(), pipeDiskBytes)
	s := start(t, server.Options{StallTimeout: 50 * time.Millisecond})
	s.add(t, server.Export{Name: "disk", Device: d})
	p := bytes.Repeat([]byte{3}, 1<<20)
	for name, leave := range map[string]func(w *wire){
		"goes":   func(w *wire) { w.nc.Close() },
		"stalls": func(w *wire) { w.closed() },
	} {
		t.Run(name, func(t *testing.T) {
			w := s.open(t, "disk", true)
			w.works(nbd.Request{Type: nbd.CmdWrite, Length: 1 << 20}, p) // so that the next is piped from its head on
			w.put(nbd.AppendRequest(nil, nbd.Request{Type: nbd.CmdWrite, Offset: 2 << 20, Length: 1 << 20}))
			w.put(p[:700<<10])
			leave(w)
			for end := time.Now().Add(20 * time.Second); s.Stats().Connections > 0; time.Sleep(time.Millisecond) {
				if time.Now().After(end) {
					t.Fatal("the connection does not end")
				}
			}
			got := make([]byte, 1<<20)
			if _, err := d.ReadAt(got, 2<<20); err != nil {
				t.Fatal(err)
			}
			if len(bytes.Trim(got[512<<10:], "\x00")) > 0 {
				t.Error("the piece of which a part is missing was written")
			}
			if st := s.Stats(); name == "stalls" && st.StalledClients != 1 {
				t.Errorf("%d clients stalled", st.StalledClients)
			}
		})
	}
}
