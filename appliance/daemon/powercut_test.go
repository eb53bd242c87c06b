package daemon_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"

	kb "github.com/keelblock/keelblock/appliance/api/keelblockv1"
)

// shutdownFS is EXT4_IOC_SHUTDOWN of linux/ext4.h, noLogFlush its flag 2: the file system
// ends as at a power cut; what was not synced is gone.
const (
	shutdownFS = 0x8004587d
	noLogFlush = 2
)

// A power cut in mid-backup, on a file system that forgets what was not synced: every
// point that a backup had named is intact, flushed writes are there, nobody has to help the
// start, and the next backup compares by itself and is right.
func TestPowerCutKeepsWhatWasCommitted(t *testing.T) {
	t.Parallel() // mostly waits for syncs
	mnt := loopMount(t, "ext4", 1<<30)
	cfg := testConfig(t, filepath.Join(mnt, "kb"))
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 2))
	const size, half = 32 << 20, 16 << 20
	p := startProcess(t, cfg)
	p.makeDisk(t, "web0", size)
	p.makeMachine(t, "web", "web0")
	g := newGuest(t, cfg, "web0", seed)
	points := map[string][]byte{} // what a backup named, and what it must hold
	rounds := 5
	if testing.Short() {
		rounds = 3
	}
	for round := range rounds {
		for range 20 { // flushed, in the lower half
			g.write(t, rng.Int64N(half/4096-64)*4096, 4096*(1+rng.Int64N(32)))
		}
		if err := g.dev.Flush(); err != nil {
			t.Fatal(err)
		}
		points[p.backup(t, "web").Id] = append([]byte(nil), g.want...)
		for range 40 { // not flushed, in the upper half
			g.write(t, half+rng.Int64N(half/4096-64)*4096, 4096*(1+rng.Int64N(32)))
		}
		named := make(chan *kb.Job, 1)
		go func() {
			j, err := p.machines.Backup(context.Background(), connect.NewRequest(&kb.BackupRequest{Machine: "web"}))
			if err != nil {
				named <- nil
				return
			}
			named <- j.Msg
		}()
		time.Sleep(time.Duration(rng.IntN(120)) * time.Millisecond)
		cutPower(t, mnt)
		p.kill()
		<-named
		g.dev.Close()
		remount(t, mnt)
		if err := os.RemoveAll(cfg.MapDir); err != nil { // tmpfs ends with the kernel
			t.Fatal(err)
		}

		p = startProcess(t, cfg)
		st := call(t, p.app.Status, &kb.StatusRequest{})
		if st.Vault.State != "open" || len(st.Disks) != 1 || st.Disks[0].State != "suspect" {
			t.Fatalf("round %d: vault %v, disks %v", round, st.Vault, st.Disks)
		}
		a := &appliance{t: t, cfg: cfg, clients: p.clients}
		for id, want := range points {
			a.comparePoint(t, id, "", want)
		}
		g.dev = open(t, cfg, "web0")
		got := make([]byte, size)
		for off := 0; off < size; off += 4 << 20 {
			if _, err := g.dev.ReadAt(got[off:off+4<<20], int64(off)); err != nil {
				t.Fatal(err)
			}
		}
		if !bytes.Equal(got[:half], g.want[:half]) {
			t.Fatalf("round %d: flushed writes are gone", round)
		}
		g.want = got
		next := p.backup(t, "web")
		if next.Tracking != "checksumCompare" {
			t.Errorf("round %d: after a power cut the backup is %s", round, next.Tracking)
		}
		points[next.Id] = append([]byte(nil), got...)
		a.comparePoint(t, next.Id, "", got)
	}
	if v := p.wait(t, call(t, p.points.Verify, &kb.VerifyRequest{})); v.State != "Completed" {
		t.Errorf("verify: %v", v)
	}
	g.disconnect(t)
	p.terminate()
	noLeftovers(t, cfg)
}

func cutPower(t *testing.T, mnt string) {
	t.Helper()
	fd, err := unix.Open(mnt, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.IoctlSetPointerInt(fd, shutdownFS, noLogFlush); err != nil {
		t.Skipf("this kernel cannot cut the power of a file system: %v", err)
	}
}

// remount is what a reboot does: the journal is replayed.
func remount(t *testing.T, mnt string) {
	t.Helper()
	mounts, err := os.ReadFile("/proc/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Split(string(mounts), "\n") {
		f := strings.Fields(line)
		if len(f) < 2 || f[1] != mnt {
			continue
		}
		if err := unmount(mnt); err != nil {
			t.Fatal(err)
		}
		waitGone(t, f[0])
		if out, err := exec.Command("mount", f[0], mnt).CombinedOutput(); err != nil {
			t.Fatalf("mount: %v: %s", err, out)
		}
		return
	}
	t.Fatalf("%s is not mounted", mnt)
}

// waitGone returns when the kernel has let go of the file system on a loop device. A
// process that copied the mount namespace, as sandboxes do, keeps it a little longer,
// and a mount meanwhile would get the same one again, still without power.
func waitGone(t *testing.T, loop string) {
	t.Helper()
	for range 1000 {
		if _, err := os.Stat(filepath.Join("/proc/fs/ext4", filepath.Base(loop))); errors.Is(err, os.ErrNotExist) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("%s is still mounted somewhere", loop)
}

// What a client was told is written is in the point, flushed or not, and stays there when
// the power goes and the disk itself forgets it.
func TestDemand36AcknowledgedWritesAreInThePoint(t *testing.T) {
	t.Parallel() // mostly waits for syncs
	mnt := loopMount(t, "ext4", 512<<20)
	cfg := testConfig(t, filepath.Join(mnt, "kb"))
	p := startProcess(t, cfg)
	p.makeDisk(t, "web0", 16<<20)
	p.makeMachine(t, "web", "web0")
	g := newGuest(t, cfg, "web0", 36)
	g.write(t, 0, 4<<20)
	p.backup(t, "web")
	g.write(t, 1<<20, 2<<20) // never flushed
	second := p.backup(t, "web")
	cutPower(t, mnt)
	p.kill()
	g.dev.Close()
	remount(t, mnt)
	if err := os.RemoveAll(cfg.MapDir); err != nil {
		t.Fatal(err)
	}
	p = startProcess(t, cfg)
	a := &appliance{t: t, cfg: cfg, clients: p.clients}
	a.comparePoint(t, second.Id, "", g.want)
	// The disk may have gone back behind its point; the next backup sees that.
	now := open(t, cfg, "web0")
	got := make([]byte, 16<<20)
	for off := 0; off < len(got); off += 4 << 20 {
		if _, err := now.ReadAt(got[off:off+4<<20], int64(off)); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("the disk itself kept them: %t", bytes.Equal(got, g.want))
	third := p.backup(t, "web")
	a.comparePoint(t, third.Id, "", got)
	p.terminate()
}
