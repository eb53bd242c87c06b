package daemon_test

import (
	"bytes"
	"math/rand/v2"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// A file system may die and come back while the kernel stays: its storage was pulled, or
// an error shut it down. The map on tmpfs then outlives writes that the disk lost. They
// must not include any that the base holds, because the map does not list those.
func TestDiskThatLostWritesUnderALivingKernelIsListed(t *testing.T) {
	t.Parallel() // mostly waits for syncs
	mnt := loopMount(t, "ext4", 512<<20)
	cfg := testConfig(t, filepath.Join(mnt, "kb"))
	rng := rand.New(rand.NewPCG(1, 2))
	const size = 16 << 20
	p := startProcess(t, cfg)
	p.makeDisk(t, "web0", size)
	p.makeMachine(t, "web", "web0")
	for round := range 3 {
		g := newGuest(t, cfg, "web0", uint64(round))
		for range 40 { // never flushed
			g.write(t, rng.Int64N(size/4096-32)*4096, 4096*(1+rng.Int64N(32)))
		}
		p.backup(t, "web")
		g.write(t, rng.Int64N(size/4096-32)*4096, 4096)
		cutPower(t, mnt)
		p.kill()
		g.dev.Close()
		remount(t, mnt)

		p = startProcess(t, cfg) // with the map of before
		a := &appliance{t: t, cfg: cfg, clients: p.clients}
		dev := open(t, cfg, "web0")
		got := make([]byte, size)
		for off := 0; off < size; off += 4 << 20 {
			if _, err := dev.ReadAt(got[off:off+4<<20], int64(off)); err != nil {
				t.Fatal(err)
			}
		}
		dev.Close()
		next := p.backup(t, "web")
		t.Logf("round %d: %s; the disk kept all writes: %t", round, next.Tracking, bytes.Equal(got, g.want))
		a.comparePoint(t, next.Id, "", got)
	}
	p.terminate()
}

// A stop ends in bounded time when the file system is dead, though Badger tries for ever
// to write its tables there.
func TestStopEndsOnADeadFileSystem(t *testing.T) {
	t.Parallel() // mostly waits
	mnt := loopMount(t, "ext4", 512<<20)
	cfg := testConfig(t, filepath.Join(mnt, "kb"))
	cfg.DrainSeconds = 1
	p := startProcess(t, cfg)
	p.makeDisk(t, "web0", 16<<20)
	p.makeMachine(t, "web", "web0")
	p.backup(t, "web")
	cutPower(t, mnt)
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- p.cmd.Wait() }()
	select {
	case err := <-ended:
		if err == nil {
			t.Error("the stop calls itself clean, and nothing could be written")
		}
	case <-time.After(15 * time.Second):
		_ = p.cmd.Process.Kill()
		<-ended
		t.Fatalf("the stop does not end\n%s", p.logText())
	}
	remount(t, mnt)
	p = startProcess(t, cfg)
	if next := p.backup(t, "web"); next.Tracking != "checksumCompare" {
		t.Errorf("after a stop that could not save the map the backup is %s", next.Tracking)
	}
	p.terminate()
}
