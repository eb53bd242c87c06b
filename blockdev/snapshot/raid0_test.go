package snapshot_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/keelblock/keelblock/blockdev"
	"github.com/keelblock/keelblock/blockdev/cbt"
	"github.com/keelblock/keelblock/blockdev/looptest"
	"github.com/keelblock/keelblock/blockdev/nbd/server"
	"github.com/keelblock/keelblock/blockdev/snapshot"
)

// raid0 stripes a volume over disks of one size, in units of 64 KiB, as md does.
type raid0 []blockdev.Device

const raidUnit = 64 << 10

// each calls do for the parts of a range, in ascending order.
func (r raid0) each(off, n int64, do func(d blockdev.Device, at, from, to int64) error) error {
	for from := int64(0); from < n; {
		unit, in := (off+from)/raidUnit, (off+from)%raidUnit
		to := min(n, from+raidUnit-in)
		if err := do(r[unit%int64(len(r))], unit/int64(len(r))*raidUnit+in, from, to); err != nil {
			return err
		}
		from = to
	}
	return nil
}

func (r raid0) ReadAt(p []byte, off int64) (int, error) {
	return len(p), r.each(off, int64(len(p)), func(d blockdev.Device, at, from, to int64) error {
		_, err := d.ReadAt(p[from:to], at)
		return err
	})
}

func (r raid0) WriteAt(p []byte, off int64) (int, error) {
	return len(p), r.each(off, int64(len(p)), func(d blockdev.Device, at, from, to int64) error {
		_, err := d.WriteAt(p[from:to], at)
		return err
	})
}

func (r raid0) Flush() (err error) {
	for _, d := range r {
		err = errors.Join(err, d.Flush())
	}
	return err
}

func (r raid0) Size() int64  { return r[0].Size() * int64(len(r)) }
func (r raid0) Close() error { return nil }

// kernelDisk lets the kernel have a Device as a file: our NBD server, nbdfuse, FUSE.
func kernelDisk(t *testing.T, dev blockdev.Device) string {
	t.Helper()
	if _, err := exec.LookPath("nbdfuse"); err != nil {
		t.Skip("nbdfuse is not installed")
	}
	if f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0); err != nil {
		t.Skipf("no FUSE: %v", err)
	} else {
		f.Close()
	}
	dir, err := os.MkdirTemp("", "kbraid")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	s := server.New(server.Options{})
	if err := s.Add(server.Export{Name: "raid", Device: dev}); err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(context.Background(), l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := s.Shutdown(ctx); err != nil {
			t.Error(err)
		}
		<-served
	})
	mnt := filepath.Join(dir, "m")
	if err := os.Mkdir(mnt, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("nbdfuse", mnt+"/disk", "nbd+unix:///raid?socket="+filepath.Join(dir, "s"))
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		if out, err := exec.Command("umount", mnt).CombinedOutput(); err != nil {
			t.Errorf("umount nbdfuse: %v: %s", err, out)
			_ = cmd.Process.Signal(syscall.SIGTERM)
		}
		select {
		case <-ended:
		case <-time.After(10 * time.Second):
			t.Error("nbdfuse does not end")
			_ = cmd.Process.Kill()
			<-ended
		}
	})
	path := filepath.Join(mnt, "disk")
	for range 500 {
		if st, err := os.Stat(path); err == nil && st.Size() == dev.Size() {
			return path
		}
		select {
		case err := <-ended:
			ended <- err
			t.Fatalf("nbdfuse: %v: %s", err, &said)
		case <-time.After(10 * time.Millisecond):
		}
	}
	t.Fatalf("nbdfuse shows no disk: %s", &said)
	return ""
}

// chainFiles are files in which number k is synced to each before it is written to the
// next.
const chainFiles = 8

func chainFile(i int) string { return fmt.Sprintf("chain-%d", i) }

// workload changes a file system all the time: the chain of files, and many small ones
// that come, grow, move and go.
func workload(t *testing.T, dir string, stop <-chan struct{}) *sync.WaitGroup {
	running := func() bool {
		select {
		case <-stop:
			return false
		default:
			return true
		}
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		var files [chainFiles]*os.File
		for i := range files {
			f, err := os.Create(filepath.Join(dir, chainFile(i)))
			if err == nil { // long enough to lie on another disk than the next one
				_, err = f.Write(make([]byte, raidUnit+raidUnit/2))
			}
			if err != nil {
				t.Error(err)
				return
			}
			defer f.Close()
			files[i] = f
		}
		for k := uint64(1); running(); k++ {
			var buf [8]byte
			binary.LittleEndian.PutUint64(buf[:], k)
			for _, f := range files {
				_, err := f.WriteAt(buf[:], 0)
				if err == nil {
					err = unix.Fdatasync(int(f.Fd()))
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		}
	})
	for w := range uint64(2) {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(w, 32))
			for running() {
				sub := filepath.Join(dir, fmt.Sprintf("d%d", rng.IntN(8)))
				name := filepath.Join(sub, fmt.Sprintf("%d-%d", w, rng.IntN(40)))
				err := os.MkdirAll(sub, 0o755)
				if err == nil {
					switch rng.IntN(4) {
					case 0:
						err = os.Remove(name)
					case 1:
						err = os.Rename(name, name+"x")
					default:
						err = os.WriteFile(name, bytes.Repeat([]byte{byte(rng.Uint32())}, rng.IntN(60_000)), 0o600)
					}
				}
				if err != nil && !errors.Is(err, os.ErrNotExist) {
					t.Error(err)
					return
				}
			}
		})
	}
	return &wg
}

// judge mounts the image of a striped volume, as a machine does after a crash, and says
// what is wrong with it.
func judge(t *testing.T, image []byte) error {
	t.Helper()
	path := filepath.Join(t.TempDir(), "point")
	if err := os.WriteFile(path, image, 0o600); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(path)
	fs, err := looptest.Image(t, "ext4", path)
	if err != nil {
		return err
	}
	defer fs.Close()
	var numbers [chainFiles]uint64
	for i := range numbers {
		b, readErr := os.ReadFile(filepath.Join(fs.Dir, chainFile(i)))
		if readErr != nil && !errors.Is(readErr, os.ErrNotExist) {
			err = errors.Join(err, readErr)
		}
		if len(b) >= 8 {
			numbers[i] = binary.LittleEndian.Uint64(b)
		}
		if i > 0 && (numbers[i] > numbers[i-1] || numbers[0]-numbers[i] > 1) {
			err = errors.Join(err, fmt.Errorf("file %d holds number %d, and %d was synced to the file before", i, numbers[i], numbers[i-1]))
		}
	}
	return errors.Join(err, fs.Check())
}

// stripedPoints makes points of a striped volume under the kernel's ext4 and returns what
// is wrong with each. each: disk after disk.
func stripedPoints(t *testing.T, n int, each bool) (broken []error) {
	t.Helper()
	// On tmpfs, so that syncs are fast and much is written between two disks.
	dir, err := os.MkdirTemp("/dev/shm", "keelblock-raid0-")
	if err != nil {
		t.Skipf("no tmpfs: %v", err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	ds := newDisksIn(t, dir, 4, 24*mib, nil)
	var volume raid0
	images := make([]raidImage, len(ds.ts))
	for i, tr := range ds.ts {
		volume, images[i] = append(volume, tr), make(raidImage, tr.Size())
	}
	path := kernelDisk(t, volume)
	if out, err := exec.Command("mkfs.ext4", "-q", "-F", "-E", "nodiscard", path).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.ext4: %v: %s", err, out)
	}
	fs, err := looptest.Image(t, "ext4", path)
	if err != nil {
		t.Fatal(err)
	}
	coordinator := snapshot.New(ds.clock)
	stop := make(chan struct{})
	wg := workload(t, fs.Dir, stop)
	sets := [][]int{{0, 1, 2, 3}}
	if each {
		sets = [][]int{{0}, {1}, {2}, {3}}
	}
	rounds := func() uint64 { // that the chain has made
		if b, _ := os.ReadFile(filepath.Join(fs.Dir, chainFile(chainFiles-1))); len(b) >= 8 {
			return binary.LittleEndian.Uint64(b)
		}
		return 0
	}
	reach := func(n uint64) {
		for began := time.Now(); rounds() < n; time.Sleep(10 * time.Millisecond) {
			if time.Since(began) > 30*time.Second {
				t.Fatal("the file system does not get on")
			}
		}
	}
	reach(2)
	for range n {
		time.Sleep(50 * time.Millisecond)
		var cuts []*snapshot.Cut
		var slots []*snapshot.Slots
		for k, set := range sets {
			if k > 0 {
				time.Sleep(60 * time.Millisecond)
				reach(rounds() + 2)
			}
			s := ds.acquire(coordinator, set...)
			slots = append(slots, s)
			cuts = append(cuts, mustCut(t, s))
		}
		i := 0
		for _, cut := range cuts {
			var ids []cbt.PointID
			for _, s := range cut.Disks {
				images[i] = read(t, s, images[i])
				ids = append(ids, cbt.PointID{1})
				i++
			}
			if err := errors.Join(cut.Prepare(ids), cut.Commit()); err != nil {
				t.Fatal(err)
			}
		}
		for _, s := range slots {
			s.Release()
		}
		var parts raid0
		for i := range images {
			parts = append(parts, images[i])
		}
		image := make([]byte, volume.Size())
		if _, err := parts.ReadAt(image, 0); err != nil {
			t.Fatal(err)
		}
		broken = append(broken, judge(t, image))
	}
	close(stop)
	wg.Wait()
	fs.Close()
	return broken
}

// raidImage is a disk of a point.
type raidImage []byte

func (p raidImage) ReadAt(b []byte, off int64) (int, error)  { return copy(b, p[off:]), nil }
func (p raidImage) WriteAt(b []byte, off int64) (int, error) { return copy(p[off:], b), nil }
func (p raidImage) Size() int64                              { return int64(len(p)) }
func (p raidImage) Flush() error                             { return nil }
func (p raidImage) Close() error                             { return nil }

// TestDemand32StripedVolumeIsWholeInEveryPoint: the kernel's ext4 lives on a volume that
// is striped over four disks; every point mounts, is sound for e2fsck, and holds what was
// synced before.
func TestDemand32StripedVolumeIsWholeInEveryPoint(t *testing.T) {
	t.Parallel()
	points := stripedPoints(t, 6, false)
	for i, err := range points {
		if err != nil {
			t.Errorf("point %d: %v", i, err)
		}
	}
	t.Logf("points=%d, each mounted, checked by e2fsck, its chain of synced files whole", len(points))
}

// TestDemand32StripedVolumeTearsDiskAfterDisk: the wrong way must not pass.
func TestDemand32StripedVolumeTearsDiskAfterDisk(t *testing.T) {
	t.Parallel()
	points := stripedPoints(t, 6, true)
	n := 0
	for i, err := range points {
		if err != nil {
			n++
			first, _, _ := strings.Cut(err.Error(), "\n")
			t.Logf("point %d: %s", i, first)
		}
	}
	if n == 0 {
		t.Errorf("%d points of four disks cut one after the other all look whole", len(points))
	}
	t.Logf("points=%d torn=%d", len(points), n)
}
