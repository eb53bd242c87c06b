package cbt

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/keelblock/keelblock/blockdev"
	"github.com/keelblock/keelblock/blockdev/localdisk"
)

// writerEnv names the folder of the disk that a copy of the test binary writes until
// it is killed.
const writerEnv = "KEELBLOCK_CBT_TEST_WRITER"

func TestMain(m *testing.M) {
	if dir := os.Getenv(writerEnv); dir != "" {
		fmt.Fprintln(os.Stderr, "writer:", writeUntilKilled(dir))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

const killDiskBytes = 6*mib + 512

// killDir is a data directory: disk, saved map, one image per committed point.
type killDir string

func (k killDir) image(p PointID) string {
	return filepath.Join(string(k), fmt.Sprintf("point-%x", p[:8]))
}

func (k killDir) open(c *Clock) (*localdisk.Disk, *Tracker, error) {
	d, err := localdisk.Open(filepath.Join(string(k), "disk"), localdisk.Options{})
	if err != nil {
		return nil, nil, err
	}
	shm, err := os.ReadFile(filepath.Join(string(k), "map-dir"))
	if err != nil {
		return nil, nil, err
	}
	t, err := Open(d, c, Options{
		DiskID: "killed", MapPath: filepath.Join(string(shm), "map"), SavePath: filepath.Join(string(k), "saved"),
		SpillBytes: 64 * mib,
		Witness: func() (Witness, bool) {
			w, ok := d.Witness()
			return Witness(w), ok
		},
	})
	return d, t, err
}

// writeUntilKilled writes, trims and zeroes from three goroutines, and cuts, commits
// and aborts from a fourth.
func writeUntilKilled(dir string) error {
	c := NewClock()
	_, t, err := killDir(dir).open(c)
	if err != nil {
		return err
	}
	var g errgroup.Group
	for range 3 {
		g.Go(func() error {
			buf := make([]byte, 100<<10)
			for i := 0; ; i++ {
				if i%8 == 0 {
					time.Sleep(time.Millisecond)
				}
				off := rand.Int64N(killDiskBytes)
				n := min(1+rand.Int64N(9000), killDiskBytes-off)
				if rand.IntN(10) == 0 {
					n = min(1+rand.Int64N(int64(len(buf))), killDiskBytes-off)
				}
				var err error
				switch rand.IntN(8) {
				case 0:
					err = t.Trim(off, n)
				case 1:
					err = t.WriteZeroes(off, n, rand.IntN(2) == 0)
				default:
					for j := range buf[:n] {
						buf[j] = byte(rand.Uint32())
					}
					_, err = t.WriteAt(buf[:n], off)
				}
				if err != nil {
					return err
				}
			}
		})
	}
	g.Go(func() error {
		for {
			if err := cutOnce(killDir(dir), c, t); err != nil {
				return err
			}
			time.Sleep(time.Duration(rand.IntN(5)) * time.Millisecond)
		}
	})
	fmt.Println("ready")
	return g.Wait()
}

// cutOnce makes a recovery point as a backup does. Its image gets its name before the
// commit, like a point in the vault.
func cutOnce(k killDir, c *Clock, t *Tracker) error {
	z, err := c.Freeze([]*Tracker{t})
	if err != nil {
		return err
	}
	f := z.Disks[0]
	if err := f.Drain(context.Background()); err != nil {
		return err
	}
	base, _ := t.Bases()
	img, err := os.ReadFile(k.image(base))
	if err != nil {
		return err
	}
	err = f.Capture(context.Background(), Sink{Write: func(off int64, p []byte) error {
		copy(img[off:], p)
		return nil
	}})
	if rand.IntN(3) == 0 || errors.Is(err, ErrAborted) {
		return f.Abort()
	}
	if err != nil {
		return err
	}
	var id PointID
	littleEndian.PutUint64(id[:], rand.Uint64())
	if err := f.Prepare(id); err != nil {
		return err
	}
	if err := os.WriteFile(k.image(id)+".new", img, 0o600); err != nil {
		return err
	}
	if err := os.Rename(k.image(id)+".new", k.image(id)); err != nil {
		return err
	}
	if err := f.Commit(); err != nil {
		return err
	}
	return os.Remove(k.image(base))
}

// TestKillLosesNoChange kills a process that writes, and compares the whole disk with
// the point that its map is relative to: what differs is listed. ROUNDS sets the
// number of kills, SEED their moments.
func TestKillLosesNoChange(t *testing.T) {
	rounds, seed := 6, rand.Uint64()
	if n, err := strconv.Atoi(os.Getenv("ROUNDS")); err == nil {
		rounds = n
	}
	if n, err := strconv.ParseUint(os.Getenv("SEED"), 10, 64); err == nil {
		seed = n
	}
	r := rand.New(rand.NewPCG(seed, 1))
	k := killDir(t.TempDir())
	if err := os.WriteFile(filepath.Join(string(k), "map-dir"), []byte(shm(t)), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := localdisk.Create(filepath.Join(string(k), "disk"), killDiskBytes); err != nil {
		t.Fatal(err)
	}
	_, tr, err := k.open(NewClock())
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.WriteFile(k.image(PointID{1}), make([]byte, killDiskBytes), 0o600), tr.SetBase(PointID{1}), tr.Close()); err != nil {
		t.Fatal(err)
	}
	lost, points := 0, map[PointID]bool{}
	for range rounds {
		killWriter(t, k, time.Duration(20+r.IntN(250))*time.Millisecond)
		d, tr, err := k.open(NewClock())
		if err != nil {
			t.Fatal(err)
		}
		if state, reason := tr.Tracking(); state != TrackingEnabled {
			t.Fatalf("after a kill: tracking %v: %s", state, reason)
		}
		base := acceptCommitted(t, k, tr)
		points[base] = true
		lost += unlisted(t, k, d, tr, base)
		if r.IntN(3) == 0 {
			if err := tr.Close(); err != nil {
				t.Fatal(err)
			}
			continue
		}
		abandon(t, tr)
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if lost != 0 {
		t.Errorf("%d grains differ and are not listed", lost)
	}
	t.Logf("%d different bases", len(points))
	fmt.Printf("rounds=%d seed=%d lost=%d\n", rounds, seed, lost)
}

func killWriter(t *testing.T, k killDir, after time.Duration) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^$")
	cmd.Env = append(os.Environ(), writerEnv+"="+string(k))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, _ := bufio.NewReader(out).ReadString('\n')
	time.Sleep(after)
	cmd.Process.Kill()
	err = cmd.Wait()
	if line != "ready\n" || cmd.ProcessState.Exited() {
		t.Fatalf("the writer said %q and ended with %v", line, err)
	}
}

// acceptCommitted does what the daemon does at a start: the candidate is the base if
// its point exists.
func acceptCommitted(t *testing.T, k killDir, tr *Tracker) PointID {
	t.Helper()
	base, candidate := tr.Bases()
	if !candidate.IsZero() {
		if _, err := os.Stat(k.image(candidate)); err == nil {
			base = candidate
		}
		if err := tr.AcceptBase(base); err != nil {
			t.Fatal(err)
		}
	}
	return base
}

func unlisted(t *testing.T, k killDir, d blockdev.Device, tr *Tracker, base PointID) (n int) {
	t.Helper()
	img, err := os.ReadFile(k.image(base))
	if err != nil {
		t.Fatal(err)
	}
	now := make([]byte, killDiskBytes)
	if _, err := d.ReadAt(now, 0); err != nil {
		t.Fatal(err)
	}
	tr.Changed(func(e blockdev.Extent) bool {
		copy(now[e.Offset:e.End()], img[e.Offset:e.End()])
		return true
	})
	for off := int64(0); off < killDiskBytes; off += blockdev.GrainSize {
		end := min(off+blockdev.GrainSize, killDiskBytes)
		if string(now[off:end]) != string(img[off:end]) {
			n++
		}
	}
	return n
}
