package cbt_test

import (
	"context"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/keelblock/keelblock/blockdev"
	"github.com/keelblock/keelblock/blockdev/cbt"
	"github.com/keelblock/keelblock/blockdev/localdisk"
	"github.com/keelblock/keelblock/blockdev/snapshot"
)

// groupGap is forced between two disks of a cut. Without it the wrong way of cutting
// passes for millions of writes.
const groupGap = 300 * time.Microsecond

// group is a set of tracked disks whose cuts are laid over each other into points, one
// image per disk and point, as a vault does.
type group struct {
	t           *testing.T
	dir         string
	coordinator *snapshot.Coordinator
	disks       []*cbt.Tracker
	images      [][]byte
	next        uint64
	longest     time.Duration // freeze
}

// newGroup makes n disks of size bytes on tmpfs.
func newGroup(t *testing.T, n int, size int64) *group {
	t.Helper()
	var st unix.Statfs_t
	if err := unix.Statfs("/dev/shm", &st); err != nil || int64(st.Type) != unix.TMPFS_MAGIC {
		t.Skipf("/dev/shm is not tmpfs: %v", err)
	}
	dir, err := os.MkdirTemp("/dev/shm", "keelblock-cbt-group-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	clock := cbt.NewClock()
	g := &group{t: t, dir: dir, coordinator: snapshot.New(clock)}
	for i := range n {
		name := "disk-" + strconv.Itoa(i)
		d := makeDisk(t, filepath.Join(dir, name), size)
		o := cbt.Options{DiskID: name, MapPath: filepath.Join(dir, name+".live"), SavePath: filepath.Join(dir, name+".map")}
		if i > 0 { // the guest writes in order of index: a gap before a disk lets it overtake
			o = cbt.WithGap(o, groupGap)
		}
		tr, err := cbt.Open(d, clock, o)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { tr.Close() })
		if err := tr.SetBase(cbt.PointID{1}); err != nil {
			t.Fatal(err)
		}
		g.disks, g.images = append(g.disks, tr), append(g.images, make([]byte, size))
	}
	return g
}

func makeDisk(t *testing.T, path string, size int64) *localdisk.Disk {
	t.Helper()
	if err := localdisk.Create(path, size); err != nil {
		t.Fatal(err)
	}
	d, err := localdisk.Open(path, localdisk.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// point makes one point of all disks: the right way with one cut, the wrong way (each)
// with a cut per disk, one after the other. The images of the group then are the point.
func (g *group) point(each bool) {
	g.t.Helper()
	ctx := context.Background()
	sets := [][]*cbt.Tracker{g.disks}
	if each {
		sets = sets[:0]
		for i := range g.disks {
			sets = append(sets, g.disks[i:i+1])
		}
	}
	g.next++
	id := cbt.PointID{2}
	binary.LittleEndian.PutUint64(id[8:], g.next)
	var cuts []*snapshot.Cut
	for k, set := range sets {
		if k > 0 {
			time.Sleep(groupGap)
		}
		s, err := g.coordinator.Acquire(ctx, set)
		if err != nil {
			g.t.Fatal(err)
		}
		defer s.Release()
		cut, err := s.Cut(ctx)
		if err != nil {
			g.t.Fatal(err)
		}
		cuts = append(cuts, cut)
		g.longest = max(g.longest, cut.FreezeDuration)
	}
	k := 0
	for _, cut := range cuts {
		ids := make([]cbt.PointID, len(cut.Disks))
		for i, s := range cut.Disks {
			image := g.images[k]
			err := s.Capture(ctx, cbt.Sink{
				Write: func(off int64, p []byte) error { copy(image[off:], p); return nil },
				Zero:  func(off, n int64) error { clear(image[off : off+n]); return nil },
			})
			if err != nil {
				g.t.Fatal(err)
			}
			ids[i] = id
			k++
		}
		if err := errors.Join(cut.Prepare(ids), cut.Commit()); err != nil {
			g.t.Fatal(err)
		}
	}
}

// restore writes the newest point to new disks and opens those.
func (g *group) restore() (disks []blockdev.Device, done func()) {
	g.t.Helper()
	var paths []string
	for i, image := range g.images {
		p := filepath.Join(g.dir, "restored-"+strconv.Itoa(i))
		d := makeDisk(g.t, p, int64(len(image)))
		if _, err := d.WriteAt(image, 0); err != nil {
			g.t.Fatal(err)
		}
		disks, paths = append(disks, d), append(paths, p)
	}
	return disks, func() {
		for i, d := range disks {
			if err := errors.Join(d.Close(), os.Remove(paths[i])); err != nil {
				g.t.Error(err)
			}
		}
	}
}

// chain is a guest whose writes depend on each other: number k goes to the first disk,
// and to each next one only when the one before has acknowledged it. Every writer has a
// grain of its own.
type chain struct {
	disks   []blockdev.Device
	writers int
}

func (c chain) run(t *testing.T, stop <-chan struct{}) *sync.WaitGroup {
	var wg sync.WaitGroup
	for w := range c.writers {
		wg.Go(func() {
			var buf [8]byte
			for k := uint64(1); ; k++ {
				select {
				case <-stop:
					return
				default:
				}
				binary.LittleEndian.PutUint64(buf[:], k)
				for _, d := range c.disks {
					if _, err := d.WriteAt(buf[:], int64(w)*blockdev.GrainSize); err != nil {
						t.Error(err)
						return
					}
				}
			}
		})
	}
	return &wg
}

// broken counts the writers of which disks hold what no instant held: a number ahead of
// the one on the disk before, or one that lags by more than the write under way.
func (c chain) broken(t *testing.T, disks []blockdev.Device) (n int, first uint64) {
	t.Helper()
	at := func(d blockdev.Device, w int) uint64 {
		var buf [8]byte
		if _, err := d.ReadAt(buf[:], int64(w)*blockdev.GrainSize); err != nil {
			t.Fatal(err)
		}
		return binary.LittleEndian.Uint64(buf[:])
	}
	for w := range c.writers {
		head := at(disks[0], w)
		first = max(first, head)
		for i, before := 1, head; i < len(disks); i++ {
			k := at(disks[i], w)
			if k > before || head-k > 1 {
				n++
				break
			}
			before = k
		}
	}
	return n, first
}

// groupTest is the test that the one instant has to pass and disk after disk has to fail:
// points of three disks under a guest with dependent writes, every fourth restored to new
// disks and judged there. It returns how many were broken.
func groupTest(t *testing.T, points int, each bool) (broken int, longest time.Duration) {
	g := newGroup(t, 3, 256<<10)
	c := chain{writers: 3}
	for _, d := range g.disks {
		c.disks = append(c.disks, d)
	}
	stop := make(chan struct{})
	wg := c.run(t, stop)
	var last uint64
	for k := range points {
		g.point(each)
		var disks []blockdev.Device
		done := func() {}
		if k%4 == 3 {
			disks, done = g.restore()
		} else {
			for _, image := range g.images {
				disks = append(disks, image2disk(image))
			}
		}
		n, head := c.broken(t, disks)
		done()
		if n > 0 {
			broken++
		}
		if head < last {
			t.Errorf("point %d went back from number %d to %d", k, last, head)
		}
		last = head
	}
	close(stop)
	wg.Wait()
	if last == 0 {
		t.Error("the guest wrote nothing")
	}
	return broken, g.longest
}

// image2disk lets a point be judged where it lies.
type image2disk []byte

func (p image2disk) ReadAt(b []byte, off int64) (int, error) { return copy(b, p[off:]), nil }
func (p image2disk) WriteAt([]byte, int64) (int, error)      { return 0, blockdev.ErrReadOnly }
func (p image2disk) Size() int64                             { return int64(len(p)) }
func (p image2disk) Flush() error                            { return nil }
func (p image2disk) Close() error                            { return nil }

// groupRuns is how often either way goes through groupTest, groupPoints how many points
// a run has.
const (
	groupRuns   = 20
	groupPoints = 6
)

// TestN8GroupIsCutAtOneInstant: twenty runs, no point of which holds a write without
// the one that it depends on.
func TestN8GroupIsCutAtOneInstant(t *testing.T) {
	var longest time.Duration
	for run := range groupRuns {
		broken, l := groupTest(t, groupPoints, false)
		longest = max(longest, l)
		if broken > 0 {
			t.Errorf("run %d: %d of %d points are broken", run, broken, groupPoints)
		}
	}
	t.Logf("runs=%d points=%d broken=0 longest freeze %v, with two gaps of %v in it", groupRuns, groupRuns*groupPoints, longest, groupGap)
}

// TestN8DiskAfterDiskFailsTheSameTest: the test is worth something only if it finds the
// wrong way out, nearly always.
func TestN8DiskAfterDiskFailsTheSameTest(t *testing.T) {
	failed, points := 0, 0
	for range groupRuns {
		broken, _ := groupTest(t, groupPoints, true)
		points += broken
		if broken > 0 {
			failed++
		}
	}
	if failed < groupRuns-1 {
		t.Errorf("cutting disk after disk failed in %d runs of %d only", failed, groupRuns)
	}
	t.Logf("runs=%d failed=%d broken points=%d of %d", groupRuns, failed, points, groupRuns*groupPoints)
}
