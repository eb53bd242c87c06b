package server_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/keelblock/keelblock/blockdev/localdisk"
	"github.com/keelblock/keelblock/blockdev/nbd"
	"github.com/keelblock/keelblock/blockdev/nbd/client"
	"github.com/keelblock/keelblock/blockdev/nbd/server"
)

// What is in memory is read inline or by sendfile, what is not by a worker.
func TestReadsTakeTheWayThatFits(t *testing.T) {
	d := newDisk(t, t.TempDir(), 4<<20)
	want := make([]byte, 4<<20)
	for i := range want {
		want[i] = byte(i >> 10)
	}
	if _, err := d.WriteAt(want, 0); err != nil {
		t.Fatal(err)
	}
	if err := d.Flush(); err != nil {
		t.Fatal(err)
	}
	s := start(t, server.Options{})
	s.add(t, server.Export{Name: "disk", Device: d})
	w := s.open(t, "disk", true)
	read := func(off, n int) server.Stats {
		t.Helper()
		before := s.Stats()
		got := w.works(nbd.Request{Type: nbd.CmdRead, Offset: uint64(off), Length: uint32(n)}, nil)
		if !bytes.Equal(got.data, want[off:off+n]) {
			t.Errorf("read of %d+%d is wrong", off, n)
		}
		after := s.Stats()
		after.InlineReads -= before.InlineReads
		after.SendfileReads -= before.SendfileReads
		after.WorkerRequests -= before.WorkerRequests
		return after
	}
	if _, err := d.ReadAtNowait(make([]byte, 4096), 0); err != nil {
		t.Skipf("the file system under TMPDIR does not know RWF_NOWAIT: %v", err)
	}
	if st := read(0, 4096); st.InlineReads != 1 || st.WorkerRequests != 0 {
		t.Errorf("a small read from memory: %+v", st)
	}
	if st := read(4096, 1<<20); st.SendfileReads != 1 || st.WorkerRequests != 0 {
		t.Errorf("a large read from memory: %+v", st)
	}
	// The kernel may refuse to forget a page, or read ahead: some of many tries must
	// find the data on the disk only.
	small, large := uint64(0), uint64(0)
	for range 20 {
		forget(t, d)
		small += read(1<<20, 4096).WorkerRequests
		forget(t, d)
		large += read(2<<20, 1<<20).WorkerRequests
	}
	if small == 0 || large == 0 {
		t.Errorf("of 20 small and 20 large reads from the disk %d and %d were done by workers", small, large)
	}
}

// forget empties the page cache of a disk.
func forget(t *testing.T, d *localdisk.Disk) {
	t.Helper()
	err := d.ReadFD(func(fd int) error { return unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED) })
	if err != nil {
		t.Fatal(err)
	}
}

// shortFile is a disk whose file ends too early for sendfile.
type shortFile struct {
	*localdisk.Disk
	file *os.File
}

func (d shortFile) ReadFD(use func(fd int) error) error { return use(int(d.file.Fd())) }

// A file that cannot be read when the header is on its way already.
func TestSendfileThatFailsIsAnErrorReply(t *testing.T) {
	d := newDisk(t, t.TempDir(), 4<<20)
	if _, err := d.WriteAt(bytes.Repeat([]byte{5}, 4<<20), 0); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(t.TempDir(), "short"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() }) // after the export is removed
	if err := f.Truncate(100_000); err != nil {
		t.Fatal(err)
	}
	s := start(t, server.Options{})
	s.add(t, server.Export{Name: "disk", Device: shortFile{d, f}})
	w := s.open(t, "disk", true)
	for _, r := range []nbd.Request{{Length: 1 << 20}, {Offset: 2 << 20, Length: 600_000}} {
		w.fails(r, nil, nbd.EIO)
		w.alive()
	}
}

func TestExportsComeAndGoWhileOthersRun(t *testing.T) {
	d := newDisk(t, t.TempDir(), 1<<20)
	s := start(t, server.Options{})
	s.add(t, server.Export{Name: "stays", Device: d})
	w := s.open(t, "stays", true)
	end := time.Now().Add(300 * time.Millisecond)
	var wg sync.WaitGroup
	for i := range 4 {
		name := fmt.Sprintf("comes-and-goes-%d", i%2)
		wg.Go(func() {
			for time.Now().Before(end) {
				if s.Add(server.Export{Name: name, Device: d, ReadOnly: true}) != nil {
					continue // the other goroutine has it
				}
				if c, err := client.Dial(within(t, 5*time.Second), s.uri(name)); err == nil {
					c.ReadAt(make([]byte, 4096), 0)
					c.Close()
				}
				if err := s.Remove(within(t, 5*time.Second), name); err != nil {
					t.Errorf("Remove: %v", err)
				}
			}
		})
	}
	for time.Now().Before(end) {
		w.alive()
		if c := s.dial(t, "stays"); c.Size() != 1<<20 {
			t.Errorf("size %d", c.Size())
		}
	}
	wg.Wait()
	if st := s.Stats(); st.Exports != 1 || st.Errors != 0 {
		t.Errorf("at the end: %d exports, %d errors; want 1 and 0", st.Exports, st.Errors)
	}
}
