package daemon_test

import (
	"context"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"

	kb "github.com/keelblock/keelblock/appliance/api/keelblockv1"
)

// kill -9 at any moment of a backup, under writes of the guest: every point stays
// readable, every acknowledged write stays, and the next backup is incremental and
// equals the disk (the list after the kill holds all that differs).
func TestKillDuringBackupLosesNothing(t *testing.T) {
	t.Parallel() // mostly waits for syncs
	cfg := testConfig(t, dataDir(t))
	const size = 48 << 20
	seed := uint64(time.Now().UnixNano())
	if n, err := strconv.ParseUint(os.Getenv("SEED"), 10, 64); err == nil {
		seed = n
	}
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	p := startProcess(t, cfg)
	p.makeDisk(t, "web0", size)
	p.makeMachine(t, "web", "web0")
	g := newGuest(t, cfg, "web0", seed)
	g.write(t, 0, size/2)
	good := p.backup(t, "web")
	want := append([]byte(nil), g.want...)

	rounds := 6
	if testing.Short() {
		rounds = 4
	}
	for range rounds {
		before, delay := time.Duration(rng.IntN(20))*time.Millisecond, time.Duration(rng.IntN(60))*time.Millisecond
		stopped := make(chan struct{})
		var wg sync.WaitGroup
		wg.Go(func() { // the guest, until its daemon dies
			for {
				select {
				case <-stopped:
					return
				default:
				}
				off, n := rng.Int64N(size/4096-64)*4096, 512*(1+rng.Int64N(128))
				buf := make([]byte, n)
				for i := range buf {
					buf[i] = byte(rng.Uint32())
				}
				if _, err := g.dev.WriteAt(buf, off); err != nil {
					// Not acknowledged: the range may hold old, new or a mix.
					g.doubt = append(g.doubt, [2]int64{off, n})
					return
				}
				copy(g.want[off:], buf)
			}
		})
		time.Sleep(before)
		go func() {
			_, _ = p.machines.Backup(context.Background(), connect.NewRequest(&kb.BackupRequest{Machine: "web"}))
		}()
		time.Sleep(delay)
		p.kill()
		close(stopped)
		wg.Wait()
		g.dev.Close()

		p = startProcess(t, cfg)
		a := &appliance{t: t, cfg: cfg, clients: p.clients}
		a.comparePoint(t, good.Id, "", want)
		g.dev = open(t, cfg, "web0")
		g.settle(t)
		compare(t, "disk after the kill", g.dev, g.want)
		for _, j := range call(t, p.jobs.List, &kb.ListJobsRequest{}).Jobs {
			if j.State == "InProgress" {
				t.Errorf("job of the killed daemon: %v", j)
			}
		}
		good = p.backup(t, "web")
		if good.Tracking != "enabled" {
			t.Errorf("after a kill with the map on tmpfs the backup is %s: %s", good.Tracking, good.Reason)
		}
		want = append([]byte(nil), g.want...)
		a.comparePoint(t, good.Id, "", want)
	}
	v := p.wait(t, call(t, p.points.Verify, &kb.VerifyRequest{}))
	if v.State != "Completed" {
		t.Errorf("verify: %v", v)
	}
	g.disconnect(t)
	p.terminate()
	noLeftovers(t, cfg)
}
