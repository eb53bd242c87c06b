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

// resizable is a Device whose end moves, with all abilities of a file.
type resizable struct {
	*localdisk.Disk
	size atomic.Int64
}

func (d *resizable) Size() int64 { return d.size.Load() }

func (d *resizable) in(off, n int64) error { return blockdev.CheckRange(off, n, d.Size()) }

func (d *resizable) ReadAt(p []byte, off int64) (int, error) {
	if err := d.in(off, int64(len(p))); err != nil {
		return 0, err
	}
	return d.Disk.ReadAt(p, off)
}

func (d *resizable) ReadAtNowait(p []byte, off int64) (int, error) {
	if err := d.in(off, int64(len(p))); err != nil {
		return 0, err
	}
	return d.Disk.ReadAtNowait(p, off)
}

func (d *resizable) WriteAt(p []byte, off int64) (int, error) {
	if err := d.in(off, int64(len(p))); err != nil {
		return 0, err
	}
	return d.Disk.WriteAt(p, off)
}

func (d *resizable) Trim(off, n int64) error {
	if err := d.in(off, n); err != nil {
		return err
	}
	return d.Disk.Trim(off, n)
}

func (d *resizable) WriteZeroes(off, n int64, mayPunch bool) error {
	if err := d.in(off, n); err != nil {
		return err
	}
	return d.Disk.WriteZeroes(off, n, mayPunch)
}

func (d *resizable) Extents(off, n int64, yield func(blockdev.Extent, blockdev.ExtentStatus) bool) error {
	if err := d.in(off, n); err != nil {
		return err
	}
	return d.Disk.Extents(off, n, yield)
}

// A connection keeps the size that it was told. What lies behind it is past the end even
// when the Device has grown; what the Device has lost fails as the end of a disk does,
// and the connection lives on. Whoever connects later is told the size of then.
func TestConnectionsKeepTheSizeTheyWereTold(t *testing.T) {
	const small, large = 1 << 20, 3 << 20
	for _, way := range []string{"inline", "workers"} {
		t.Run(way, func(t *testing.T) {
			d := &resizable{Disk: newDisk(t, t.TempDir(), 4<<20)}
			d.size.Store(large)
			var dev blockdev.Device = d
			if way == "workers" {
				dev = struct {
					blockdev.Device
					blockdev.Trimmer
					blockdev.Zeroer
					blockdev.ExtentLister
				}{d, d, d, d}
			}
			s := start(t, server.Options{})
			s.add(t, server.Export{Name: "disk", Device: dev})
			forms(t, func(t *testing.T, structured bool) {
				d.size.Store(large)
				w := s.open(t, "disk", structured)
				w.works(writeAt(large-4096, 4096), block(1))

				d.size.Store(small)
				for _, n := range []uint32{4096, 512 << 10} {
					data := bytes.Repeat([]byte{2}, int(n))
					// Past the end, and across it.
					for _, off := range []uint64{2 << 20, small - 2048} {
						w.fails(nbd.Request{Type: nbd.CmdRead, Offset: off, Length: n}, nil, nbd.EINVAL)
						w.fails(writeAt(off, n), data, nbd.ENOSPC)
						w.fails(nbd.Request{Type: nbd.CmdWriteZeroes, Offset: off, Length: n}, nil, nbd.ENOSPC)
						w.fails(nbd.Request{Type: nbd.CmdTrim, Offset: off, Length: n}, nil, nbd.EINVAL)
						if structured {
							w.fails(nbd.Request{Type: nbd.CmdBlockStatus, Offset: off, Length: n}, nil, nbd.EINVAL)
						}
					}
				}
				w.alive()
				if size := s.dial(t, "disk").Size(); size != small {
					t.Errorf("a client that connects now is told %d bytes, want %d", size, small)
				}

				d.size.Store(4 << 20)
				w.fails(nbd.Request{Type: nbd.CmdRead, Offset: large, Length: 512}, nil, nbd.EINVAL)
				w.fails(writeAt(large-256, 512), make([]byte, 512), nbd.ENOSPC)
				w.works(nbd.Request{Type: nbd.CmdRead, Offset: large - 512, Length: 512}, nil)
				w.alive()
				c := s.dial(t, "disk")
				if _, err := c.WriteAt(block(3), 4<<20-4096); err != nil {
					t.Errorf("write to what the disk has grown by: %v", err)
				}
			})
		})
	}
}
