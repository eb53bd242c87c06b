package daemon_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"

	kb "github.com/keelblock/keelblock/appliance/api/keelblockv1"
	"github.com/keelblock/keelblock/appliance/api/keelblockv1/keelblockv1connect"
	"github.com/keelblock/keelblock/appliance/config"
	"github.com/keelblock/keelblock/blockdev/looptest"
	"github.com/keelblock/keelblock/blockdev/nbd/client"
)

// The loops of the live disk: a daemon in a process of its own serves three disks of two
// machines to clients that write, zero, trim and flush, while backups run; then it is
// killed, or its file system loses its power. After the restart
//
//   - the disks hold what they must: after a kill all that was acknowledged, after a power
//     cut all that a FLUSH on any connection covered (V15);
//   - what differs from the base point by a compare of every byte is listed by the map (V1);
//   - all points that a backup had named are there, and those of the group were one instant;
//   - the next backup's point equals the disks.
//
// In some rounds the next load begins without that backup, so that the crash hits the
// recovery, the compare, or the second life of the map.

// liveRig is the appliance under test with its load.
type liveRig struct {
	t     *testing.T
	cfg   config.Config
	rng   *rand.Rand
	fs    *looptest.FS // nil: only kills
	group bool
	p     *process
	disks []*liveDisk
	known map[string]bool // points that a backup had named or that were listed
	chain uint64
	// doubtful: the power went since the last quiet backup.
	doubtful bool
	conns    []*client.Client
	// cutting: the power is going. A flush that returns now proves nothing, as its
	// client would not have heard of it; and ext4 may tell a success there that is none,
	// when the journal dies between the data and the conversion of its extents.
	cutting atomic.Bool
	// quietID is the newest quiet point of each machine.
	quietID map[string]string

	kills, cuts, compares int
	readBytes             int64 // by compares
}

func newLiveRig(t *testing.T, rng *rand.Rand, fs *looptest.FS, group bool) *liveRig {
	dir := ""
	if fs != nil {
		dir = filepath.Join(fs.Dir, "kb")
	} else {
		dir = dataDir(t)
	}
	r := &liveRig{t: t, cfg: testConfig(t, dir), rng: rng, fs: fs, group: group, known: map[string]bool{}, quietID: map[string]string{}}
	r.p = startProcess(t, r.cfg)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the last daemon said:\n%s", r.p.logText())
		}
	})
	for i := range liveDisks {
		d := &liveDisk{name: "d" + strconv.Itoa(i), at: i, base: make([]byte, liveSize), later: map[int64][]liveVersion{}}
		r.p.makeDisk(t, d.name, liveSize)
		r.disks = append(r.disks, d)
	}
	r.p.makeMachine(t, "m0", "d0", "d1")
	r.p.makeMachine(t, "m1", "d2")
	if group {
		call(t, groupsOf(r.cfg).Create, &kb.CreateGroupRequest{Name: "g", Machines: []string{"m0", "m1"}})
	}
	return r
}

// liveLoop runs rounds in lots, each with an appliance, and maybe a file system, of its own.
func liveLoop(t *testing.T, short int, group bool, kinds ...string) {
	t.Helper()
	const lot = 20
	rounds, seed := short, rand.Uint64N(1<<32)
	if n, err := strconv.ParseUint(os.Getenv("SEED"), 10, 64); err == nil {
		seed = n
	}
	if n, err := strconv.Atoi(os.Getenv("ROUNDS")); err == nil {
		rounds = n
	}
	until := time.Time{}
	if n, err := strconv.Atoi(os.Getenv("MINUTES")); err == nil {
		until = time.Now().Add(time.Duration(n) * time.Minute)
	}
	done, kills, cuts, compares, read := 0, 0, 0, 0, int64(0)
	for k := 0; done < rounds && until.IsZero() || time.Now().Before(until); k++ {
		s := seed + uint64(k)
		ok := t.Run(fmt.Sprintf("SEED=%d", s), func(t *testing.T) {
			var fs *looptest.FS
			if len(kinds) > 0 {
				fs = looptest.New(t, kinds[int(s%uint64(len(kinds)))], 1<<30)
			}
			r := newLiveRig(t, rand.New(rand.NewPCG(s, 3)), fs, group)
			for i := 0; i < lot && (done < rounds && until.IsZero() || time.Now().Before(until)); i++ {
				r.round()
				done++
			}
			v := r.p.wait(t, call(t, r.p.points.Verify, &kb.VerifyRequest{}))
			if v.State != "Completed" {
				t.Errorf("verify: %v", v)
			}
			r.p.terminate()
			noLeftovers(t, r.cfg)
			kills, cuts, compares, read = kills+r.kills, cuts+r.cuts, compares+r.compares, read+r.readBytes
		})
		if !ok {
			t.Fatalf("rounds=%d seed=%d: failed; SEED=%d repeats the lot's choices", done, seed, s)
		}
	}
	t.Logf("rounds=%d seed=%d lost=0 (%d kills, %d power cuts of %v; %d compares read %d MiB of %d)",
		done, seed, kills, cuts, kinds, compares, read>>20, int64(compares)*liveSize>>20)
}

// kill -9 of the daemon under load, again and again: what it acknowledged stays, the map
// lists all that differs, the next point equals the disks.
func TestLiveDiskKilled(t *testing.T) {
	t.Parallel()
	liveLoop(t, 3, false)
}

// The same when the power goes, in two rounds of three.
func TestLiveDiskPowerCut(t *testing.T) {
	t.Parallel()
	liveLoop(t, 3, false, "ext4", "xfs")
}

// Two machines of three disks, cut as a group and, at the same time, one of them alone.
func TestN8GroupKilled(t *testing.T) {
	t.Parallel()
	liveLoop(t, 3, true)
}

// The same when the power goes.
func TestN8GroupPowerCut(t *testing.T) {
	t.Parallel()
	liveLoop(t, 3, true, "ext4", "xfs")
}

// groupsOf is a client of the groups' service.
func groupsOf(cfg config.Config) keelblockv1connect.GroupsClient {
	hc := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", cfg.APISocket())
	}}}
	return keelblockv1connect.NewGroupsClient(hc, "http://localhost")
}

// dial opens a connection that disconnect closes.
func (r *liveRig) dial(disk string) *client.Client {
	r.t.Helper()
	c, err := client.Dial(context.Background(), fmt.Sprintf("nbd+unix:///%s?socket=%s", disk, r.cfg.NBDSocket()))
	if err != nil {
		r.t.Fatal(err)
	}
	r.conns = append(r.conns, c)
	return c
}

func (r *liveRig) disconnect() {
	for _, c := range r.conns {
		c.Close() // of a daemon that died: the error is expected
	}
	r.conns = nil
}

// backups runs backups one after the other until the daemon dies. The points that they
// name are known by then.
func (r *liveRig) backups(wg *sync.WaitGroup) {
	var mu sync.Mutex
	repeat := func(start func() (*kb.Job, error)) {
		wg.Go(func() {
			for {
				j, err := start()
				if err == nil {
					j, err = r.p.ended(j)
				}
				if err != nil {
					return
				}
				mu.Lock()
				for _, id := range pointsOf(j) {
					r.known[id] = false // named, not yet looked at
				}
				mu.Unlock()
			}
		})
	}
	machines := []string{"m0", "m1"}
	if r.group {
		g := groupsOf(r.cfg)
		repeat(func() (*kb.Job, error) { return tryCall(g.Backup, &kb.GroupBackupRequest{Group: "g"}) })
		machines = machines[1:] // overlaps with the group
	}
	for _, m := range machines {
		repeat(func() (*kb.Job, error) { return tryCall(r.p.machines.Backup, &kb.BackupRequest{Machine: m}) })
	}
}

// pointsOf are the points that a backup names: "ID" for a machine's, "MACHINE ID" for each
// of a group's.
func pointsOf(j *kb.Job) (ids []string) {
	for _, line := range j.Result {
		f := strings.Fields(line)
		ids = append(ids, f[len(f)-1])
	}
	return ids
}

// ended waits for a job and tells an error instead of failing.
func (c clients) ended(j *kb.Job) (*kb.Job, error) {
	ctx, cancel := context.WithTimeout(context.Background(), jobTimeout)
	defer cancel()
	s, err := c.jobs.Watch(ctx, connect.NewRequest(&kb.WatchJobRequest{JobId: j.JobId}))
	if err != nil {
		return nil, err
	}
	defer s.Close()
	for s.Receive() {
		j = s.Msg()
	}
	if err := s.Err(); err != nil {
		return nil, err
	}
	if j.EndedAt == nil {
		return nil, fmt.Errorf("the stream of job %s ended before the job", j.JobId)
	}
	return j, nil
}

// crash ends the daemon, with or without the power, and the load with it.
func (r *liveRig) crash(power bool, wg *sync.WaitGroup) {
	r.t.Helper()
	r.cutting.Store(power)
	defer r.cutting.Store(false)
	if power {
		r.fs.CutPower()
		r.cuts++
	} else {
		r.kills++
	}
	r.p.kill()
	wg.Wait()
	r.disconnect()
	if power {
		r.doubtful = true
		r.fs.Remount()
		if err := os.RemoveAll(r.cfg.MapDir); err != nil { // tmpfs ends with the kernel
			r.t.Fatal(err)
		}
	}
}

// round is one crash, or several when the recovery is hit too.
func (r *liveRig) round() {
	r.t.Helper()
	power := r.fs != nil && r.rng.IntN(3) > 0
	wg := r.load(r.rng.Uint64())
	r.backups(wg)
	time.Sleep(time.Duration(10+r.rng.IntN(250)) * time.Millisecond)
	r.crash(power, wg)
	for range r.rng.IntN(2) {
		r.p = startProcess(r.t, r.cfg)
		again := r.fs != nil && r.rng.IntN(2) == 0
		power = power || again
		r.crash(again, &sync.WaitGroup{})
	}
	r.p = startProcess(r.t, r.cfg)
	r.check(power)
	if r.rng.IntN(3) > 0 {
		r.quiet()
	}
}

// check looks at everything after a restart; nobody writes.
func (r *liveRig) check(power bool) {
	t := r.t
	t.Helper()
	a := &appliance{t: t, cfg: r.cfg, clients: r.p.clients}
	cuts, listed := map[string][]*kb.RecoveryPoint{}, map[string]bool{}
	for _, m := range []string{"m0", "m1"} {
		for _, pt := range call(t, r.p.points.List, &kb.ListPointsRequest{Machine: m}).Points {
			if listed[pt.Id] = true; !r.known[pt.Id] {
				cuts[pt.CutId] = append(cuts[pt.CutId], pt)
			}
		}
	}
	for id := range r.known {
		if !listed[id] {
			t.Fatalf("point %s was named and is gone", id)
		}
	}
	r.known = listed
	for _, points := range cuts {
		r.checkInstant(a, points)
	}
	for _, d := range r.disks {
		got := r.read(d.name)
		d.settle(t, got, power)
		d.got = got
		st := call(t, r.p.disks.Get, &kb.GetDiskRequest{Name: d.name})
		if st.State != "online" && st.State != "suspect" || st.Tracking == "compare" && !r.doubtful {
			t.Fatalf("disk %s is %s, tracking %s: %s", d.name, st.State, st.Tracking, st.Reason)
		}
		if st.LastPointId != "" {
			r.checkMap(a, d, st.LastPointId)
		}
		if id := r.quietID[d.name]; id != "" && r.rng.IntN(4) == 0 {
			a.comparePoint(t, id, d.name, d.want)
		}
	}
}

// checkInstant: the points of one cut hold no number ahead of the disk before, and none
// that lags by more than the write under way.
func (r *liveRig) checkInstant(a *appliance, points []*kb.RecoveryPoint) {
	t := r.t
	t.Helper()
	var at []uint64
	for _, d := range r.disks {
		for _, pt := range points {
			if !slices.ContainsFunc(pt.Disks, func(pd *kb.PointDisk) bool { return pd.Name == d.name }) {
				continue
			}
			call(t, a.points.Export, &kb.ExportRequest{Point: pt.Id, Disk: d.name, Name: "instant"})
			var buf [8]byte
			dev := r.dial("instant")
			if _, err := dev.ReadAt(buf[:], 0); err != nil {
				t.Fatal(err)
			}
			r.disconnect()
			call(t, a.points.Unexport, &kb.UnexportRequest{Name: "instant"})
			at = append(at, binary.LittleEndian.Uint64(buf[:]))
		}
	}
	for i := 1; i < len(at); i++ {
		if at[i] > at[i-1] || at[0]-at[i] > 1 {
			t.Fatalf("the points of cut %s are no instant: the disks hold numbers %v", points[0].CutId, at)
		}
	}
}

// read returns all of a disk or an export.
func (r *liveRig) read(name string) []byte {
	r.t.Helper()
	dev := r.dial(name)
	defer r.disconnect()
	got := make([]byte, dev.Size())
	for off := 0; off < len(got); off += 4 << 20 {
		if _, err := dev.ReadAt(got[off:min(off+4<<20, len(got))], int64(off)); err != nil {
			r.t.Fatalf("read %s: %v", name, err)
		}
	}
	return got
}

// checkMap compares every grain of a disk with its map's base.
func (r *liveRig) checkMap(a *appliance, d *liveDisk, base string) {
	t := r.t
	t.Helper()
	call(t, a.points.Export, &kb.ExportRequest{Point: base, Disk: d.name, Name: "base"})
	image := r.read("base")
	call(t, a.points.Unexport, &kb.UnexportRequest{Name: "base"})
	rest := bytes.Clone(d.got)
	for _, e := range call(t, a.disks.Map, &kb.MapDiskRequest{Name: d.name}).Extents {
		copy(rest[e.Offset:e.Offset+e.Length], image[e.Offset:])
	}
	lost := 0
	for g := int64(0); g*4096 < liveSize; g++ {
		if !bytes.Equal(d.grain(rest, g), d.grain(image, g)) {
			t.Errorf("disk %s differs from point %s at %d and does not list it", d.name, base, g*4096)
			lost++
		}
	}
	if lost > 0 {
		t.Fatalf("lost=%d", lost)
	}
}

// quiet makes a point while nobody writes, which has to equal the disks.
func (r *liveRig) quiet() {
	t := r.t
	t.Helper()
	a := &appliance{t: t, cfg: r.cfg, clients: r.p.clients}
	var ids []string
	if r.group {
		j := r.p.wait(t, call(t, groupsOf(r.cfg).Backup, &kb.GroupBackupRequest{Group: "g"}))
		if j.State != "Completed" {
			t.Fatalf("backup: %v", j)
		}
		ids = pointsOf(j)
	} else {
		ids = []string{r.p.backup(t, "m0").Id, r.p.backup(t, "m1").Id}
	}
	if len(ids) != 2 {
		t.Fatalf("points %v, want two", ids)
	}
	for _, id := range ids {
		pt := call(t, a.points.Get, &kb.GetPointRequest{Selector: id}).Point
		if pt.Tracking == "checksumCompare" {
			r.compares++
			r.readBytes += pt.ReadBytes
		}
		for _, pd := range pt.Disks {
			d := r.disks[slices.IndexFunc(r.disks, func(d *liveDisk) bool { return d.name == pd.Name })]
			a.comparePoint(t, id, d.name, d.got)
			d.want, r.quietID[d.name] = d.got, id
		}
		r.known[id] = true
	}
	r.doubtful = false
}
