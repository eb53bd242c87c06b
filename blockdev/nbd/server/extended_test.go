package server_test

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/keelblock/keelblock/blockdev"
	"github.com/keelblock/keelblock/blockdev/nbd"
	"github.com/keelblock/keelblock/blockdev/nbd/server"
)

// What extended headers look like is written here once more, from the protocol
// document and not with package nbd, as no client of others at hand speaks them.

// openExtended chooses an export with extended headers and base:allocation.
func (s *running) openExtended(t testing.TB, name string) *wire {
	t.Helper()
	w := s.connect(t)
	w.ack(11, nil) // NBD_OPT_EXTENDED_HEADERS
	w.structured, w.extended = true, true
	w.ack(nbd.OptSetMetaContext, nbd.AppendMetaContextRequest(nil, nbd.MetaContextRequest{Name: name, Queries: []string{nbd.ContextBaseAllocation}}))
	w.ack(nbd.OptGo, nbd.AppendInfoRequest(nil, nbd.InfoRequest{Name: name}))
	return w
}

// wide is an extended request, whose flags are sent as they are.
type wide struct {
	flags, command uint16
	offset, length uint64
}

func (w *wire) sendWide(r wide, payload []byte) uint64 {
	w.t.Helper()
	w.cookie++
	w.put(append(wideBytes(r, w.cookie), payload...))
	return w.cookie
}

func wideBytes(r wide, cookie uint64) []byte {
	p := []byte{0x21, 0xe4, 0x1c, 0x71}
	p = binary.BigEndian.AppendUint16(p, r.flags)
	p = binary.BigEndian.AppendUint16(p, r.command)
	p = binary.BigEndian.AppendUint64(p, cookie)
	p = binary.BigEndian.AppendUint64(p, r.offset)
	return binary.BigEndian.AppendUint64(p, r.length)
}

// wideStatus is one chunk of a block status reply.
type wideStatus struct {
	context uint32
	extents [][2]uint64 // length, flags
}

// receiveWide reads a reply, checking every rule for chunks.
func (w *wire) receiveWide(r wide, cookie uint64) (got reply) {
	w.t.Helper()
	for {
		head := w.take(32)
		if !bytes.Equal(head[:4], []byte{0x6e, 0x8a, 0x27, 0x8c}) {
			w.t.Fatalf("reply begins with %x", head)
		}
		flags, kind := binary.BigEndian.Uint16(head[4:]), binary.BigEndian.Uint16(head[6:])
		length := binary.BigEndian.Uint64(head[24:])
		if c, off := binary.BigEndian.Uint64(head[8:]), binary.BigEndian.Uint64(head[16:]); c != cookie || off != r.offset {
			w.t.Fatalf("reply to request %d at %d, want %d at %d", c, off, cookie, r.offset)
		}
		if flags&^1 != 0 || length > 65<<20 {
			w.t.Fatalf("chunk with flags %#x and %d bytes", flags, length)
		}
		payload := w.take(int(length))
		got.chunks++
		switch {
		case kind == 0: // NONE
			if length != 0 || flags != 1 {
				w.t.Errorf("empty chunk with flags %#x and %d bytes", flags, length)
			}
		case kind == 1 && r.command == 0: // OFFSET_DATA
			if off := binary.BigEndian.Uint64(payload); off != r.offset+uint64(len(got.data)) {
				w.t.Errorf("data chunk at %d, want %d", off, r.offset+uint64(len(got.data)))
			}
			got.data = append(got.data, payload[8:]...)
		case kind == 6 && r.command == 7: // BLOCK_STATUS_EXT
			got.wide = append(got.wide, w.wideStatus(payload))
		case kind == 1<<15+1: // ERROR
			n := int(binary.BigEndian.Uint16(payload[4:]))
			got.errno, got.text = nbd.Errno(binary.BigEndian.Uint32(payload)), string(payload[6:6+n])
			if got.errno == 0 || len(payload) != 6+n {
				w.t.Errorf("error chunk %x", payload)
			}
		default:
			w.t.Fatalf("chunk of type %d in the reply to command %d", kind, r.command)
		}
		if flags&1 != 0 {
			return got
		}
	}
}

func (w *wire) wideStatus(payload []byte) (s wideStatus) {
	s.context = binary.BigEndian.Uint32(payload)
	n := int(binary.BigEndian.Uint32(payload[4:]))
	if n == 0 || len(payload) != 8+16*n {
		w.t.Fatalf("%d extents in a status chunk of %d bytes", n, len(payload))
	}
	for p := payload[8:]; len(p) > 0; p = p[16:] {
		s.extents = append(s.extents, [2]uint64{binary.BigEndian.Uint64(p), binary.BigEndian.Uint64(p[8:])})
	}
	return s
}

// doWide sends a request and reads its reply, which must be the next.
func (w *wire) doWide(r wide, payload []byte) reply {
	w.t.Helper()
	return w.receiveWide(r, w.sendWide(r, payload))
}

const payloadLength = 1 << 5 // NBD_CMD_FLAG_PAYLOAD_LEN

// narrow makes the wide request that means the same as a compact one.
func narrow(r nbd.Request) wide {
	x := wide{flags: r.Flags, command: r.Type, offset: r.Offset, length: uint64(r.Length)}
	if r.Type == nbd.CmdWrite {
		x.flags |= payloadLength
	}
	return x
}

// narrowed gives the reply the form that tests of compact requests know.
func (w *wire) narrowed(got reply) reply {
	if len(got.wide) > 1 {
		w.t.Errorf("%d status chunks for one context", len(got.wide))
	}
	for _, s := range got.wide {
		for _, e := range s.extents {
			got.status = append(got.status, nbd.Descriptor{Length: uint32(e[0]), Flags: uint32(e[1])})
		}
	}
	return got
}

func TestExtendedHeadersOfMoreThan4GiB(t *testing.T) {
	const size = 20 << 30
	for way, d := range devices(t, size) {
		t.Run(way, func(t *testing.T) {
			if _, ok := d.(blockdev.Zeroer); !ok {
				t.Skip("zeroes would be written")
			}
			s := start(t, server.Options{})
			s.add(t, server.Export{Name: "disk", Device: d})
			w := s.openExtended(t, "disk")
			if got := w.doWide(wide{command: 1, flags: payloadLength, offset: 17 << 30, length: 4096}, bytes.Repeat([]byte{1}, 4096)); got.errno != 0 {
				t.Fatalf("write: %v", got.errno)
			}
			w.works(nbd.Request{Type: nbd.CmdFlush}, nil)
			got := w.doWide(wide{command: 7, length: size}, nil)
			want := [][2]uint64{{17 << 30, 3}, {4096, 0}, {3<<30 - 4096, 3}}
			if got.errno != 0 || len(got.wide) != 1 || len(got.wide[0].extents) != 3 {
				t.Fatalf("block status of 20 GiB: %v %v", got.errno, got.wide)
			}
			for i, e := range got.wide[0].extents {
				if e != want[i] {
					t.Errorf("extent %d is %v, want %v", i, e, want[i])
				}
			}
			for _, r := range []wide{{command: 4, length: 18 << 30}, {command: 6, offset: 512, length: 19 << 30}, {command: 5, length: size}} {
				if got := w.doWide(r, nil); got.errno != 0 {
					t.Errorf("%+v: %v %s", r, got.errno, got.text)
				}
			}
			if got := w.doWide(wide{command: 0, offset: 17 << 30, length: 4096}, nil); !bytes.Equal(got.data, make([]byte, 4096)) {
				t.Error("zeroes of 19 GiB have not reached 17 GiB")
			}
			if got := w.doWide(wide{command: 6, offset: 1, length: size}, nil); got.errno != nbd.ENOSPC {
				t.Errorf("zeroes past the end: %v, want ENOSPC", got.errno)
			}
			w.alive()
		})
	}
}

func TestExtendedRequestsThatAreRefused(t *testing.T) {
	const size = 1 << 20
	for way, d := range devices(t, size) {
		t.Run(way, func(t *testing.T) {
			s := start(t, server.Options{})
			s.add(t, server.Export{Name: "disk", Device: d})
			w := s.openExtended(t, "disk")
			filter := func(length uint64, ids ...uint32) []byte {
				p := binary.BigEndian.AppendUint64(nil, length)
				for _, id := range ids {
					p = binary.BigEndian.AppendUint32(p, id)
				}
				return p
			}
			for _, x := range []struct {
				r       wide
				payload []byte
				want    nbd.Errno
			}{
				{wide{command: 1, length: 512}, nil, nbd.EINVAL}, // no payload without the flag
				{wide{command: 1, flags: payloadLength, offset: size, length: 700_000}, make([]byte, 700_000), nbd.ENOSPC},
				{wide{command: 1, flags: payloadLength, length: 65 << 20}, make([]byte, 65<<20), nbd.EINVAL},
				{wide{command: 1, flags: payloadLength | 1<<9, length: 5}, []byte("hello"), nbd.EINVAL},
				{wide{command: 0, flags: payloadLength, length: 300_000}, make([]byte, 300_000), nbd.EINVAL},
				{wide{command: 3, flags: payloadLength, length: 3}, []byte("abc"), nbd.EINVAL},
				{wide{command: 4, flags: payloadLength, length: 8}, make([]byte, 8), nbd.EINVAL},
				{wide{command: 99, flags: payloadLength, length: 8}, make([]byte, 8), nbd.EINVAL},
				{wide{command: 99, length: 1 << 60}, nil, nbd.EINVAL},
				{wide{command: 0, length: 1<<64 - 1}, nil, nbd.EINVAL},
				{wide{command: 0, offset: 1<<64 - 1, length: 1<<64 - 1}, nil, nbd.EINVAL},
				{wide{command: 4, offset: 512, length: 1<<64 - 1}, nil, nbd.EINVAL},
				{wide{command: 6, offset: 1 << 63, length: 1 << 63}, nil, nbd.ENOSPC},
				{wide{command: 7, length: 0}, nil, nbd.EINVAL},
				{wide{command: 7, length: size + 1}, nil, nbd.EINVAL},
				{wide{command: 7, flags: payloadLength, length: 8}, filter(512), nbd.EINVAL},
				{wide{command: 7, flags: payloadLength, length: 12}, filter(512, 2), nbd.EINVAL},
				{wide{command: 7, flags: payloadLength, length: 16}, filter(512, 1, 1), nbd.EINVAL},
				{wide{command: 7, flags: payloadLength, length: 12}, filter(0, 1), nbd.EINVAL},
				{wide{command: 7, flags: payloadLength, length: 12}, filter(1<<63, 1), nbd.EINVAL},
				{wide{command: 7, flags: payloadLength, length: 13}, append(filter(512, 1), 0), nbd.EINVAL},
				{wide{command: 7, flags: payloadLength, length: 7}, make([]byte, 7), nbd.EINVAL},
				{wide{command: 7, flags: payloadLength, length: 0}, nil, nbd.EINVAL},
				{wide{command: 7, flags: payloadLength, length: 600_000}, make([]byte, 600_000), nbd.EINVAL},
				{wide{command: 7, flags: payloadLength | 1<<9, length: 12}, filter(512, 1), nbd.EINVAL},
			} {
				if got := w.doWide(x.r, x.payload); got.errno != x.want || got.text == "" {
					t.Errorf("%+v: %v %q, want %v with a text", x.r, got.errno, got.text, x.want)
				}
				w.alive()
			}
			w.sendWide(wide{command: 1, flags: payloadLength, length: 1 << 40}, nil)
			w.closed() // nobody waits for a TiB to drop it
		})
	}
}

func TestExtendedHeadersTakeTheirPlaceInTheHandshake(t *testing.T) {
	s := start(t, server.Options{})
	s.add(t, server.Export{Name: "disk", Device: newDisk(t, t.TempDir(), 1<<20)})
	w := s.connect(t)
	w.ack(nbd.OptStructuredReply, nil)
	w.ack(nbd.OptExtendedHeaders, nil)
	w.refused(nbd.OptExtendedHeaders, nil, nbd.RepErrInvalid)
	w.refused(nbd.OptStructuredReply, nil, nbd.RepErrExtHeaderReqd)
	context := nbd.AppendMetaContextRequest(nil, nbd.MetaContextRequest{Name: "disk", Queries: []string{nbd.ContextBaseAllocation}})
	info, _ := exportInfo(t, w.ack(nbd.OptInfo, infoRequest("disk")))
	if want := writable | nbd.FlagSendDF; info.Flags != want {
		t.Errorf("flags %#x, want %#x without a context", info.Flags, want)
	}
	w.ack(nbd.OptSetMetaContext, context)
	for _, option := range []uint32{nbd.OptInfo, nbd.OptGo} {
		info, _ = exportInfo(t, w.ack(option, infoRequest("disk")))
		if want := writable | nbd.FlagSendDF | 1<<12; info.Flags != want {
			t.Errorf("flags %#x, want %#x", info.Flags, want)
		}
	}
	w.structured, w.extended = true, true
	w.alive()

	w = s.connect(t)
	w.ack(nbd.OptExtendedHeaders, nil)
	w.put(nbd.AppendOption(nil, nbd.OptExportName, []byte("disk")))
	w.closed() // the two do not go together
}
