package server_test

import (
	"bytes"
	"testing"

	"github.com/keelblock/keelblock/blockdev"
	"github.com/keelblock/keelblock/blockdev/localdisk"
	"github.com/keelblock/keelblock/blockdev/nbd"
	"github.com/keelblock/keelblock/blockdev/nbd/server"
)

// coldDisk has to wait before it may write its first MiB, until open is closed.
type coldDisk struct {
	*localdisk.Disk
	open chan struct{}
}

func (d coldDisk) WriteAtNowait(p []byte, off int64) (int, error) {
	if off < 1<<20 {
		return 0, blockdev.ErrWouldBlock
	}
	return d.Disk.WriteAt(p, off)
}

func (d coldDisk) WriteAt(p []byte, off int64) (int, error) {
	if off < 1<<20 {
		<-d.open
	}
	return d.Disk.WriteAt(p, off)
}

// TestWriteThatHasToWaitHoldsNoOtherUp: the requests behind a write that waits, on its
// own connection, are answered before it; then it is done whole, also one that had
// begun in a part of the disk that does not wait.
func TestWriteThatHasToWaitHoldsNoOtherUp(t *testing.T) {
	d := coldDisk{newDisk(t, t.TempDir(), 4<<20), make(chan struct{})}
	s := start(t, server.Options{})
	s.add(t, server.Export{Name: "disk", Device: d})
	w := s.open(t, "disk", true)
	cold := nbd.Request{Type: nbd.CmdWrite, Offset: 512 << 10, Length: 600 << 10, Flags: nbd.CmdFlagFUA}
	want := bytes.Repeat([]byte{7}, 4<<20)
	cold.Cookie = w.send(cold, want[:cold.Length])
	for i := range 4 {
		w.works(nbd.Request{Type: nbd.CmdWrite, Offset: 2<<20 + uint64(i)<<16, Length: 64 << 10}, want[:64<<10])
	}
	if st := s.Stats(); st.Writes != 5 {
		t.Errorf("%d writes were counted, want 5", st.Writes)
	}
	close(d.open)
	if got := w.receive(cold); got.errno != nbd.OK {
		t.Errorf("the write that waited: %v", got.errno)
	}
	got := make([]byte, cold.Length)
	if _, err := d.ReadAt(got, int64(cold.Offset)); err != nil || !bytes.Equal(got, want[:cold.Length]) {
		t.Errorf("the write that waited is not whole: %v", err)
	}
	w.alive()
}
