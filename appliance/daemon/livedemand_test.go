package daemon_test

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	kb "github.com/keelblock/keelblock/appliance/api/keelblockv1"
	"github.com/keelblock/keelblock/blockdev/looptest"
)

// fuaScript writes number after number with FUA, each to a grain of its own, and says so
// when it is acknowledged. Beside each goes a write without FUA, which may be lost.
const fuaScript = `
import nbd, struct, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
k = int(sys.argv[2])
while True:
    h.pwrite(b"x" * 4096, 8 << 20 | k % 1024 * 4096)
    h.pwrite(struct.pack("<Q", k) * 512, k % 1024 * 4096, nbd.CMD_FLAG_FUA)
    print(k, flush=True)
    k += 1
`

// A write with FUA that was acknowledged is there after a power cut, on ext4 and on xfs,
// written by libnbd.
func TestDemand36FUAWritesSurviveAPowerCut(t *testing.T) {
	for _, kind := range []string{"ext4", "xfs"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel() // mostly waits for syncs
			if err := exec.Command("/usr/bin/python3", "-c", "import nbd").Run(); err != nil {
				t.Skipf("/usr/bin/python3 has no module nbd (python3-libnbd): %v", err)
			}
			fs := looptest.New(t, kind, 512<<20)
			cfg := testConfig(t, filepath.Join(fs.Dir, "kb"))
			p := startProcess(t, cfg)
			p.makeDisk(t, "db0", 16<<20)
			p.makeMachine(t, "db", "db0")
			var acked atomic.Uint64
			var newest [1024]uint64 // acknowledged, by grain
			writes := uint64(0)
			for round := range 3 {
				before := acked.Load()
				cmd := exec.Command("/usr/bin/python3", "-c", fuaScript, "nbd+unix:///db0?socket="+cfg.NBDSocket(), fmt.Sprint(before+1))
				out, err := cmd.StdoutPipe()
				if err != nil {
					t.Fatal(err)
				}
				if err := cmd.Start(); err != nil {
					t.Fatal(err)
				}
				read := make(chan struct{})
				go func() {
					defer close(read)
					for s := bufio.NewScanner(out); s.Scan(); {
						var k uint64
						if _, err := fmt.Sscan(s.Text(), &k); err == nil {
							acked.Store(k)
						}
					}
				}()
				for began := time.Now(); acked.Load() < before+50; time.Sleep(time.Millisecond) {
					if time.Since(began) > jobTimeout {
						t.Fatalf("%d writes only", acked.Load()-before)
					}
				}
				last := acked.Load() // what is told later was told by a machine without power
				for k := before + 1; k <= last; k++ {
					newest[k%1024] = k
				}
				fs.CutPower()
				p.kill()
				<-read
				_ = cmd.Wait() // its disk went away
				fs.Remount()
				if err := os.RemoveAll(cfg.MapDir); err != nil {
					t.Fatal(err)
				}
				p = startProcess(t, cfg)
				dev := open(t, cfg, "db0")
				got := make([]byte, 16<<20)
				for off := 0; off < len(got); off += 4 << 20 {
					if _, err := dev.ReadAt(got[off:off+4<<20], int64(off)); err != nil {
						t.Fatal(err)
					}
				}
				for i, k := range newest {
					grain := got[i*4096:][:4096]
					n := binary.LittleEndian.Uint64(grain)
					if k > 0 && (n < k || n%1024 != uint64(i) || !bytes.Equal(grain[8:], grain[:4088])) {
						t.Fatalf("round %d: write %d was acknowledged with FUA, and its grain holds %d", round, k, n)
					}
				}
				writes += last - before
				a := &appliance{t: t, cfg: cfg, clients: p.clients}
				a.comparePoint(t, p.backup(t, "db").Id, "", got)
				dev.Close()
				acked.Add(1) // what was under way has that number
			}
			t.Logf("%s: 3 power cuts, %d writes with FUA, lost=0", kind, writes)
			p.terminate()
		})
	}
}

// Three disks with one history: one keeps its map, one loses it with the power, one loses
// everything that speaks of changes. Their points are the same; only what is read differs.
func TestDemand43LosingTheMapChangesOnlyWhatIsRead(t *testing.T) {
	t.Parallel() // mostly waits for syncs
	cfg := testConfig(t, dataDir(t))
	const size = 96 << 20 // six regions of the intent map
	p := startProcess(t, cfg)
	names := []string{"kept", "cut", "lost"}
	ids := map[string]string{}
	for _, name := range names {
		known, _ := filepath.Glob(filepath.Join(cfg.DisksDir(), "*.map"))
		p.makeDisk(t, name, size)
		p.makeMachine(t, "m-"+name, name)
		now, _ := filepath.Glob(filepath.Join(cfg.DisksDir(), "*.map"))
		for _, f := range now {
			if !slices.Contains(known, f) {
				ids[name] = strings.TrimSuffix(filepath.Base(f), ".map")
			}
		}
		if ids[name] == "" {
			t.Fatalf("the saved map of %s is not in %v", name, now)
		}
	}
	history := func(step uint64, writes ...[2]int64) {
		for _, name := range names {
			g := newGuest(t, cfg, name, step)
			for _, w := range writes {
				g.write(t, w[0], w[1])
			}
			g.disconnect(t)
		}
	}
	backup := func() map[string]*kb.RecoveryPoint {
		out := map[string]*kb.RecoveryPoint{}
		for _, name := range names {
			out[name] = p.backup(t, "m-"+name)
		}
		return out
	}
	history(1, [2]int64{0, 80 << 20})
	backup()
	history(2, [2]int64{1 << 20, 4096})
	backup()
	backup() // nothing changed: the regions of before leave the intent map
	history(3, [2]int64{33 << 20, 8192}, [2]int64{90 << 20, 4096})
	p.kill()
	remove := func(patterns ...string) {
		for _, pattern := range patterns {
			found, err := filepath.Glob(pattern)
			if err != nil || len(found) == 0 {
				t.Errorf("%s is not there", pattern)
			}
			for _, f := range found {
				if err := os.Remove(f); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	mapOf := func(name string) string { return filepath.Join(cfg.MapDir, "*", ids[name]+"*") }
	remove(mapOf("cut"), mapOf("lost"), filepath.Join(cfg.DisksDir(), ids["lost"]+".intent*"), filepath.Join(cfg.DisksDir(), ids["lost"]+".map"))
	p = startProcess(t, cfg)
	points := backup()
	kept, cut, lost := points["kept"], points["cut"], points["lost"]
	if kept.Tracking != "enabled" || cut.Tracking != "checksumCompare" || lost.Tracking != "checksumCompare" {
		t.Errorf("tracking: kept %s, cut %s, lost %s", kept.Tracking, cut.Tracking, lost.Tracking)
	}
	for name, pt := range points {
		if pt.Disks[0].RootDigest != kept.Disks[0].RootDigest {
			t.Errorf("the point of %s differs from that of the disk that kept its map", name)
		}
		if pt.ChangedBytes != 12288 {
			t.Errorf("%s: %d bytes changed, want 12288", name, pt.ChangedBytes)
		}
	}
	if kept.ReadBytes != 12288 || cut.ReadBytes > 32<<20 || lost.ReadBytes < 80<<20 {
		t.Errorf("read: kept %d, cut %d, lost %d bytes", kept.ReadBytes, cut.ReadBytes, lost.ReadBytes)
	}
	t.Logf("read: with the map %d KiB, after a power cut %d KiB, with nothing left %d KiB", kept.ReadBytes>>10, cut.ReadBytes>>10, lost.ReadBytes>>10)
	p.terminate()
}
