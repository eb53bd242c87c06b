package server_test

import (
	"bytes"
	"sync/atomic"
	"testing"

	"github.com/keelblock/keelblock/blockdev"
	"github.com/keelblock/keelblock/blockdev/localdisk"
	"github.com/keelblock/keelblock/blockdev/nbd"
	"github.com/keelblock/keelblock/blockdev/nbd/server"
)

// zeroing is a disk that zeroes fast as it is told.
type zeroing struct {
	*localdisk.Disk
	hole, mark atomic.Bool
}

func newZeroing(d *localdisk.Disk, hole, mark bool) *zeroing {
	z := &zeroing{Disk: d}
	z.hole.Store(hole)
	z.mark.Store(mark)
	return z
}

func (z *zeroing) ZeroesFast(mayPunch bool) bool {
	return mayPunch && z.hole.Load() || !mayPunch && z.mark.Load()
}

// unable is a Zeroer over a Device that is none, as a filter may be.
type unable struct{ blockdev.Device }

func (unable) WriteZeroes(_, _ int64, _ bool) error { return blockdev.ErrNotSupported }

func TestFastZeroIsOfferedAndRefusedAsTheDeviceHasIt(t *testing.T) {
	const n = 1 << 20
	d := newDisk(t, t.TempDir(), n)
	full := bytes.Repeat([]byte{1}, n)
	for _, x := range []struct{ hole, mark bool }{{false, false}, {true, false}, {false, true}, {true, true}} {
		z := newZeroing(d, x.hole, x.mark)
		s := start(t, server.Options{})
		s.add(t, server.Export{Name: "disk", Device: z})
		w := s.connect(t)
		info, _ := exportInfo(t, w.ack(nbd.OptInfo, infoRequest("disk")))
		offered := info.Flags&nbd.FlagSendFastZero != 0
		if offered != (x.hole || x.mark) {
			t.Errorf("%+v: FAST_ZERO offered %v", x, offered)
		}
		w.choose("disk")
		for _, flags := range []uint16{0, nbd.CmdFlagNoHole} {
			w.works(nbd.Request{Type: nbd.CmdWrite, Length: n}, full)
			r := nbd.Request{Type: nbd.CmdWriteZeroes, Flags: flags | nbd.CmdFlagFastZero, Offset: 512, Length: n - 512}
			fast := flags == 0 && x.hole || flags != 0 && x.mark
			switch {
			case !offered:
				w.fails(r, nil, nbd.EINVAL)
			case !fast:
				w.fails(r, nil, nbd.ENOTSUP)
			default:
				w.works(r, nil)
			}
			got := w.works(nbd.Request{Type: nbd.CmdRead, Length: n}, nil).data
			if zeroed := !bytes.Contains(got[512:], []byte{1}); zeroed != fast || !fast && !bytes.Equal(got, full) {
				t.Errorf("%+v with flags %#x: zeroed %v, want %v", x, flags, zeroed, fast)
			}
			r.Flags = flags // the same without FAST_ZERO always works
			w.works(r, nil)
			if got := w.works(nbd.Request{Type: nbd.CmdRead, Length: n}, nil).data; !bytes.Equal(got[512:], make([]byte, n-512)) || got[511] != 1 {
				t.Errorf("%+v with flags %#x: zeroes are not there", x, flags)
			}
		}
		// What was offered once is refused quickly, not carried out slowly, when the
		// Device learns better.
		if offered {
			z.hole.Store(false)
			z.mark.Store(false)
			w.fails(nbd.Request{Type: nbd.CmdWriteZeroes, Flags: nbd.CmdFlagFastZero, Length: 512}, nil, nbd.ENOTSUP)
		}
	}
	s := start(t, server.Options{})
	s.add(t, server.Export{Name: "ro", Device: newZeroing(d, true, true), ReadOnly: true})
	w := s.open(t, "ro", true)
	w.fails(nbd.Request{Type: nbd.CmdWriteZeroes, Flags: nbd.CmdFlagFastZero, Length: 512}, nil, nbd.EPERM)
}

func TestZeroesAreWrittenWhereTheDeviceCannot(t *testing.T) {
	d := newDisk(t, t.TempDir(), 1<<20)
	s := start(t, server.Options{})
	s.add(t, server.Export{Name: "disk", Device: unable{d}})
	w := s.open(t, "disk", true)
	w.works(nbd.Request{Type: nbd.CmdWrite, Length: 1 << 20}, bytes.Repeat([]byte{1}, 1<<20))
	w.works(nbd.Request{Type: nbd.CmdWriteZeroes, Offset: 512, Length: 700_000}, nil)
	got := w.works(nbd.Request{Type: nbd.CmdRead, Length: 1 << 20}, nil).data
	if !bytes.Equal(got[512:700_512], make([]byte, 700_000)) || got[511] != 1 || got[700_512] != 1 {
		t.Error("the zeroes are not there")
	}
}

// NO_HOLE keeps the range allocated, its absence gives it back: on file systems that
// know the difference.
func TestNoHoleKeepsTheSpace(t *testing.T) {
	const n = 8 << 20
	d := newDisk(t, t.TempDir(), n)
	if !d.ZeroesFast(true) || !d.ZeroesFast(false) {
		t.Skip("the file system under TMPDIR has no marks for zeroes")
	}
	s := start(t, server.Options{})
	s.add(t, server.Export{Name: "disk", Device: d})
	w := s.open(t, "disk", true)
	w.works(nbd.Request{Type: nbd.CmdWriteZeroes, Flags: nbd.CmdFlagNoHole | nbd.CmdFlagFastZero, Length: n}, nil)
	if got, err := d.AllocatedBytes(); err != nil || got < n {
		t.Errorf("%d bytes are allocated after zeroes with NO_HOLE (%v), want %d", got, err, n)
	}
	w.works(nbd.Request{Type: nbd.CmdWriteZeroes, Flags: nbd.CmdFlagFastZero, Length: n}, nil)
	if got, err := d.AllocatedBytes(); err != nil || got > n/8 {
		t.Errorf("%d bytes are allocated after zeroes (%v), want about none", got, err)
	}
}
