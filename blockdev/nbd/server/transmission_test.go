package server_test

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"github.com/keelblock/keelblock/blockdev"
	"github.com/keelblock/keelblock/blockdev/faultdev"
	"github.com/keelblock/keelblock/blockdev/localdisk"
	"github.com/keelblock/keelblock/blockdev/nbd"
	"github.com/keelblock/keelblock/blockdev/nbd/server"
)

// devices are a Device that the server serves inline and one that it serves by
// workers only.
func devices(t *testing.T, size int64) map[string]blockdev.Device {
	return map[string]blockdev.Device{"inline": newDisk(t, t.TempDir(), size), "workers": plain{newDisk(t, t.TempDir(), size)}}
}

// everyWay runs a test inline and by workers, with simple and structured replies and
// with extended headers, and over TLS.
func everyWay(t *testing.T, size int64, test func(t *testing.T, s *running, w *wire)) {
	for way, d := range devices(t, size) {
		t.Run(way, func(t *testing.T) {
			a := newAuthority(t)
			s := start(t, server.Options{TLS: a.serverTLS()})
			s.add(t, server.Export{Name: "disk", Device: d})
			forms(t, func(t *testing.T, structured bool) { test(t, s, s.open(t, "disk", structured)) })
			t.Run("extended headers", func(t *testing.T) { test(t, s, s.openExtended(t, "disk")) })
			t.Run("TLS", func(t *testing.T) {
				dir, _ := a.issue("client", "client")
				w := s.connect(t)
				w.startTLS(a.clientTLS(dir))
				test(t, s, w.choose("disk"))
			})
		})
	}
}

func TestErrorsLeaveTheConnectionAlive(t *testing.T) {
	const size = 1 << 20
	everyWay(t, size, func(t *testing.T, _ *running, w *wire) {
		payload := func(n int) []byte { return bytes.Repeat([]byte{0xEE}, n) }
		w.works(nbd.Request{Type: nbd.CmdWriteZeroes, Length: size}, nil)
		for _, x := range []struct {
			r    nbd.Request
			want nbd.Errno
		}{
			{nbd.Request{Type: nbd.CmdRead, Offset: size - 511, Length: 512}, nbd.EINVAL},
			{nbd.Request{Type: nbd.CmdRead, Offset: size, Length: 1}, nbd.EINVAL},
			{nbd.Request{Type: nbd.CmdRead, Offset: 1<<64 - 1, Length: 2}, nbd.EINVAL},
			{nbd.Request{Type: nbd.CmdRead, Offset: 1<<63 + 5, Length: 512}, nbd.EINVAL},
			{nbd.Request{Type: nbd.CmdRead, Length: 1<<32 - 1}, nbd.EINVAL},
			{nbd.Request{Type: nbd.CmdWrite, Offset: size - 511, Length: 512}, nbd.ENOSPC},
			{nbd.Request{Type: nbd.CmdWrite, Offset: 1 << 63, Length: 512}, nbd.ENOSPC},
			{nbd.Request{Type: nbd.CmdWrite, Offset: size, Length: 5 << 20}, nbd.ENOSPC},
			{nbd.Request{Type: nbd.CmdWrite, Length: 65 << 20}, nbd.EINVAL},
			{nbd.Request{Type: nbd.CmdWrite, Flags: 1 << 15, Length: 600_000}, nbd.EINVAL},
			{nbd.Request{Type: nbd.CmdWriteZeroes, Offset: size - 1, Length: 2}, nbd.ENOSPC},
			{nbd.Request{Type: nbd.CmdWriteZeroes, Flags: nbd.CmdFlagDF, Length: 2}, nbd.EINVAL},
			{nbd.Request{Type: nbd.CmdRead, Flags: nbd.CmdFlagPayloadLength, Length: 2}, nbd.EINVAL},
			{nbd.Request{Type: nbd.CmdWrite, Flags: nbd.CmdFlagPayloadLength, Length: 300}, nbd.EINVAL},
			{nbd.Request{Type: nbd.CmdTrim, Offset: size - 1, Length: 2}, nbd.EINVAL},
			{nbd.Request{Type: nbd.CmdCache, Offset: size - 1, Length: 2}, nbd.EINVAL},
			{nbd.Request{Type: nbd.CmdBlockStatus, Offset: size - 1, Length: 2}, nbd.EINVAL},
			{nbd.Request{Type: nbd.CmdBlockStatus, Length: 0}, nbd.EINVAL},
			{nbd.Request{Type: nbd.CmdRead, Flags: nbd.CmdFlagReqOne, Length: 2}, nbd.EINVAL},
			{nbd.Request{Type: nbd.CmdFlush, Flags: 1 << 9}, nbd.EINVAL},
			{nbd.Request{Type: 8, Length: 512}, nbd.EINVAL},
			{nbd.Request{Type: 65535, Length: 512}, nbd.EINVAL},
		} {
			n := 0
			if x.r.Type == nbd.CmdWrite {
				n = int(x.r.Length)
			}
			if w.extended && x.r.Flags&nbd.CmdFlagPayloadLength != 0 {
				continue // valid there, or with a payload
			}
			w.fails(x.r, payload(n), x.want)
			w.alive()
		}
		if !w.structured {
			w.fails(nbd.Request{Type: nbd.CmdRead, Flags: nbd.CmdFlagDF, Length: 512}, nil, nbd.EINVAL)
			w.fails(nbd.Request{Type: nbd.CmdBlockStatus, Length: 512}, nil, nbd.EINVAL)
		}
		got := w.works(nbd.Request{Type: nbd.CmdRead, Length: size}, nil)
		if bytes.Contains(got.data, []byte{0xEE}) {
			t.Error("a write that was refused has changed the disk")
		}
	})
}

func TestReadOnlyExportRefusesChanges(t *testing.T) {
	for way, d := range devices(t, 1<<20) {
		t.Run(way, func(t *testing.T) {
			s := start(t, server.Options{})
			s.add(t, server.Export{Name: "disk", Device: d, ReadOnly: true})
			forms(t, func(t *testing.T, structured bool) {
				w := s.open(t, "disk", structured)
				w.fails(nbd.Request{Type: nbd.CmdWrite, Length: 700_000}, bytes.Repeat([]byte{1}, 700_000), nbd.EPERM)
				w.fails(nbd.Request{Type: nbd.CmdTrim, Length: 512}, nil, nbd.EPERM)
				w.fails(nbd.Request{Type: nbd.CmdWriteZeroes, Length: 512}, nil, nbd.EPERM)
				w.works(nbd.Request{Type: nbd.CmdFlush}, nil)
				w.works(nbd.Request{Type: nbd.CmdCache, Length: 512}, nil)
				got := w.works(nbd.Request{Type: nbd.CmdRead, Length: 1 << 20}, nil)
				if !bytes.Equal(got.data, make([]byte, 1<<20)) {
					t.Error("a read-only export was changed")
				}
			})
		})
	}
}

func TestCommandsOfAllSizesAndAlignments(t *testing.T) {
	const size = 3<<20 + 512
	everyWay(t, size, func(t *testing.T, _ *running, w *wire) {
		rng := rand.New(rand.NewPCG(1, 2))
		want := make([]byte, size)
		for i := range want {
			want[i] = byte(rng.Uint32())
		}
		w.works(nbd.Request{Type: nbd.CmdWrite, Length: size}, want)
		for _, r := range []struct{ off, n int }{{0, 0}, {0, 1}, {511, 2}, {4095, 4097}, {1, 65535}, {0, 65536}, {262143, 2}, {262100, 262244}, {5, 1 << 20}, {size - 1, 1}, {size, 0}, {0, size}} {
			p := want[r.off : r.off+r.n]
			for i := range p {
				p[i] ^= 0x55
			}
			flags := uint16(0)
			if r.n%2 == 0 {
				flags = nbd.CmdFlagFUA
			}
			w.works(nbd.Request{Type: nbd.CmdWrite, Flags: flags, Offset: uint64(r.off), Length: uint32(r.n)}, p)
			got := w.works(nbd.Request{Type: nbd.CmdRead, Offset: uint64(r.off), Length: uint32(r.n)}, nil)
			if !bytes.Equal(got.data, p) {
				t.Fatalf("read of %d+%d is not what was written", r.off, r.n)
			}
			if w.structured {
				got := w.works(nbd.Request{Type: nbd.CmdRead, Flags: nbd.CmdFlagDF, Offset: uint64(r.off), Length: uint32(r.n)}, nil)
				if !bytes.Equal(got.data, p) {
					t.Fatalf("read with DF of %d+%d is not what was written", r.off, r.n)
				}
			}
		}
		for i, r := range []struct{ off, n int }{{512, 512}, {1000, 1}, {0, 0}, {4000, 8192}, {300_001, 1_000_001}} {
			w.works(nbd.Request{Type: nbd.CmdWriteZeroes, Flags: uint16(i) % 4, Offset: uint64(r.off), Length: uint32(r.n)}, nil)
			clear(want[r.off : r.off+r.n])
		}
		w.works(nbd.Request{Type: nbd.CmdFlush}, nil)
		w.works(nbd.Request{Type: nbd.CmdFlush, Flags: nbd.CmdFlagFUA, Offset: 7, Length: 9}, nil)
		w.works(nbd.Request{Type: nbd.CmdCache, Offset: 1, Length: size - 1}, nil)
		got := w.works(nbd.Request{Type: nbd.CmdRead, Length: size}, nil)
		if !bytes.Equal(got.data, want) {
			t.Error("the disk is not what the writes and zeroes make of it")
		}
		w.works(nbd.Request{Type: nbd.CmdTrim, Flags: nbd.CmdFlagFUA, Offset: 3, Length: 1000}, nil)
		got = w.works(nbd.Request{Type: nbd.CmdRead, Offset: 1003, Length: 1 << 20}, nil)
		if !bytes.Equal(got.data, want[1003:1003+1<<20]) {
			t.Error("a trim has changed what lies after its range")
		}
	})
}

// Without structured replies nothing can be said after the header, with DF all must
// be one chunk.
func TestReadWithDFIsOneChunk(t *testing.T) {
	for way, d := range devices(t, 8<<20) {
		t.Run(way, func(t *testing.T) {
			s := start(t, server.Options{})
			s.add(t, server.Export{Name: "disk", Device: d})
			w := s.open(t, "disk", true)
			for _, n := range []uint32{512, 256 << 10, 256<<10 + 512, 8 << 20} {
				got := w.works(nbd.Request{Type: nbd.CmdRead, Flags: nbd.CmdFlagDF, Length: n}, nil)
				if got.chunks > 2 || len(got.data) != int(n) { // a chunk with the data, and one that ends the reply
					t.Errorf("read of %d bytes with DF: %d bytes in %d chunks", n, len(got.data), got.chunks)
				}
			}
		})
	}
}

func TestHugeRequests(t *testing.T) {
	const size = 5 << 30
	everyWay(t, size, func(t *testing.T, _ *running, w *wire) {
		p := bytes.Repeat([]byte{0xAB}, 40<<20) // more than is advertised, less than is served
		w.works(nbd.Request{Type: nbd.CmdWrite, Offset: 1<<32 - 7, Length: uint32(len(p))}, p)
		got := w.works(nbd.Request{Type: nbd.CmdRead, Offset: 1<<32 - 7, Length: uint32(len(p))}, nil)
		if !bytes.Equal(got.data, p) {
			t.Error("a read of 40 MiB is not what was written")
		}
		w.works(nbd.Request{Type: nbd.CmdTrim, Length: 1<<32 - 512}, nil)
		w.works(nbd.Request{Type: nbd.CmdCache, Length: 1<<32 - 512}, nil)
		if w.structured {
			got := w.works(nbd.Request{Type: nbd.CmdBlockStatus, Length: 1<<32 - 512}, nil)
			total := 0
			for _, d := range got.status {
				total += int(d.Length)
			}
			if total != 1<<32-512 {
				t.Errorf("block status of 4 GiB-512 covers %d bytes", total)
			}
		}
		w.alive()
	})
}

func TestManyRequestsAtOnce(t *testing.T) {
	const n, each = 400, 10_000
	everyWay(t, 4<<20, func(t *testing.T, _ *running, w *wire) {
		want := make([]byte, n*each)
		for i := range want {
			want[i] = byte(i>>12 ^ i)
		}
		go func() { // all of them, while replies come
			for i := range uint64(n) {
				p := nbd.AppendRequest(nil, nbd.Request{Type: nbd.CmdWrite, Cookie: i, Offset: i * each, Length: each})
				if w.extended {
					p = wideBytes(wide{flags: payloadLength, command: 1, offset: i * each, length: each}, i)
				}
				w.nc.Write(append(p, want[i*each:(i+1)*each]...))
			}
		}()
		open := map[uint64]bool{}
		for i := range uint64(n) {
			open[i] = true
		}
		for len(open) > 0 {
			var h nbd.ReplyHeader
			var err error
			if w.extended {
				h.Cookie = binary.BigEndian.Uint64(w.take(32)[8:])
			} else {
				h, _, err = nbd.ParseReplyHeader(w.take(nbd.SimpleReplySize))
			}
			if err != nil || h.Errno != nbd.OK || !open[h.Cookie] {
				t.Fatalf("reply %+v, %v", h, err)
			}
			delete(open, h.Cookie)
		}
		got := w.works(nbd.Request{Type: nbd.CmdRead, Length: n * each}, nil)
		if !bytes.Equal(got.data, want) {
			t.Error("the disk is not what was written")
		}
	})
}

// shrunk is a disk that has become smaller than its connections know.
type shrunk struct {
	*localdisk.Disk
	known int64
}

func (s shrunk) Size() int64 { return s.known }

// A connection keeps the size it was told. Past the end that the disk has now it gets
// the same errors as past the end that it knows.
func TestRequestsPastAShrunkEnd(t *testing.T) {
	const size = 1 << 20
	for way, wrap := range map[string]func(d shrunk) blockdev.Device{
		"inline":  func(d shrunk) blockdev.Device { return d },
		"workers": func(d shrunk) blockdev.Device { return plain{d} },
	} {
		t.Run(way, func(t *testing.T) {
			s := start(t, server.Options{})
			s.add(t, server.Export{Name: "disk", Device: wrap(shrunk{newDisk(t, t.TempDir(), size), 2 * size})})
			forms(t, func(t *testing.T, structured bool) {
				w := s.open(t, "disk", structured)
				const n = 300_000
				w.fails(nbd.Request{Type: nbd.CmdRead, Offset: size - 512, Length: n}, nil, nbd.EINVAL)
				w.fails(nbd.Request{Type: nbd.CmdRead, Offset: size - 512, Length: 1024}, nil, nbd.EINVAL)
				w.fails(nbd.Request{Type: nbd.CmdWrite, Offset: size, Length: n}, make([]byte, n), nbd.ENOSPC)
				w.fails(nbd.Request{Type: nbd.CmdWriteZeroes, Offset: size, Length: n}, nil, nbd.ENOSPC)
				if way == "inline" { // elsewhere a hint that nobody takes
					w.fails(nbd.Request{Type: nbd.CmdTrim, Offset: size, Length: n}, nil, nbd.EINVAL)
				}
				w.alive()
			})
		})
	}
}

// A slow request must not hold up others of its connection.
func TestRequestsOvertakeASlowOne(t *testing.T) {
	d := faultdev.New(newDisk(t, t.TempDir(), 1<<20))
	s := start(t, server.Options{})
	s.add(t, server.Export{Name: "disk", Device: d})
	h := d.Hold(func(r faultdev.Request) bool { return r.Op == faultdev.Read && r.Offset == 0 })
	defer h.Release()
	w := s.open(t, "disk", true)
	slow := nbd.Request{Type: nbd.CmdRead, Length: 512}
	slow.Cookie = w.send(slow, nil)
	<-h.Arrived()
	w.alive()
	w.works(nbd.Request{Type: nbd.CmdFlush}, nil)
	w.works(nbd.Request{Type: nbd.CmdRead, Offset: 8192, Length: 300_000}, nil)
	h.Release()
	if got := w.receive(slow); got.errno != nbd.OK || len(got.data) != 512 {
		t.Errorf("the slow request: %v, %d bytes", got.errno, len(got.data))
	}
}

func TestDeviceErrorsBecomeReplies(t *testing.T) {
	forms(t, func(t *testing.T, structured bool) {
		for _, x := range []struct {
			err  error
			want nbd.Errno
		}{
			{blockdev.ErrNoSpace, nbd.ENOSPC},
			{blockdev.ErrReadOnly, nbd.EPERM},
			{blockdev.ErrCorrupt, nbd.EIO},
			{blockdev.ErrNotSupported, nbd.ENOTSUP},
			{bytes.ErrTooLarge, nbd.EIO}, // some error that nobody expects
		} {
			d := faultdev.New(newDisk(t, t.TempDir(), 2<<20))
			s := start(t, server.Options{})
			s.add(t, server.Export{Name: "disk", Device: d})
			w := s.open(t, "disk", structured)
			d.Inject(func(r faultdev.Request) faultdev.Fault {
				if r.Op == faultdev.Flush || r.Offset >= 1<<20 {
					return faultdev.Fault{Err: x.err}
				}
				return faultdev.Fault{}
			})
			at := nbd.Request{Offset: 1<<20 - 1000, Length: 600_000} // its first piece succeeds
			for _, command := range []uint16{nbd.CmdRead, nbd.CmdWrite, nbd.CmdTrim, nbd.CmdWriteZeroes, nbd.CmdFlush} {
				r := at
				r.Type = command
				if command == nbd.CmdTrim || command == nbd.CmdWriteZeroes {
					r.Offset = 1 << 20
				}
				var payload []byte
				if command == nbd.CmdWrite {
					payload = make([]byte, r.Length)
				}
				w.fails(r, payload, x.want)
			}
			w.fails(nbd.Request{Type: nbd.CmdWrite, Flags: nbd.CmdFlagFUA, Length: 5}, []byte("hello"), x.want)
			w.alive()
			if st := s.Stats(); st.Errors != 6 || x.err == bytes.ErrTooLarge && st.UnexpectedErrors != 6 {
				t.Errorf("stats count %d errors, %d unexpected; want 6", st.Errors, st.UnexpectedErrors)
			}
			d.Inject(nil)
		}
	})
}

func TestBlockStatusTellsHolesAndZeros(t *testing.T) {
	d := newDisk(t, t.TempDir(), 4<<20)
	s := start(t, server.Options{})
	s.add(t, server.Export{Name: "disk", Device: d})
	w := s.open(t, "disk", true)
	w.works(nbd.Request{Type: nbd.CmdWrite, Offset: 1 << 20, Length: 1 << 20}, bytes.Repeat([]byte{1}, 1<<20))
	w.works(nbd.Request{Type: nbd.CmdFlush}, nil)
	got := w.works(nbd.Request{Type: nbd.CmdBlockStatus, Length: 4 << 20}, nil).status
	if len(got) == 1 {
		t.Skip("the file system under TMPDIR does not tell holes")
	}
	hole := nbd.StateHole | nbd.StateZero
	want := []nbd.Descriptor{{Length: 1 << 20, Flags: hole}, {Length: 1 << 20}, {Length: 2 << 20, Flags: hole}}
	if len(got) != 3 || got[0] != want[0] || got[1] != want[1] || got[2] != want[2] {
		t.Errorf("block status %v, want %v", got, want)
	}
	got = w.works(nbd.Request{Type: nbd.CmdBlockStatus, Flags: nbd.CmdFlagReqOne, Offset: 1<<20 + 5, Length: 3<<20 - 5}, nil).status
	if len(got) != 1 || got[0] != (nbd.Descriptor{Length: 1<<20 - 5}) {
		t.Errorf("block status with REQ_ONE %v", got)
	}
}

func TestGarbageInTheTransmissionPhaseEndsOnlyThatConnection(t *testing.T) {
	s := start(t, server.Options{})
	s.add(t, server.Export{Name: "disk", Device: newDisk(t, t.TempDir(), 1<<20)})
	a, b := s.open(t, "disk", false), s.open(t, "disk", false)
	a.put(bytes.Repeat([]byte{0x5A}, 100))
	a.closed()
	b.alive()
}

func TestDiscIsCarriedOutAfterWhatWasSentBefore(t *testing.T) {
	everyWay(t, 1<<20, func(t *testing.T, s *running, w *wire) {
		r := nbd.Request{Type: nbd.CmdWrite, Offset: 100, Length: 300_000}
		r.Cookie = w.send(r, bytes.Repeat([]byte{7}, 300_000))
		w.send(nbd.Request{Type: nbd.CmdDisc}, nil)
		if got := w.receive(r); got.errno != nbd.OK {
			t.Errorf("the write before DISC: %v", got.errno)
		}
		w.closed()
		again := s.open(t, "disk", false)
		if got := again.works(nbd.Request{Type: nbd.CmdRead, Offset: 100, Length: 300_000}, nil); !bytes.Equal(got.data, bytes.Repeat([]byte{7}, 300_000)) {
			t.Error("the write before DISC is not there")
		}
	})
}
