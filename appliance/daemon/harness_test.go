package daemon_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"

	kb "github.com/keelblock/keelblock/appliance/api/keelblockv1"
	"github.com/keelblock/keelblock/appliance/api/keelblockv1/keelblockv1connect"
	"github.com/keelblock/keelblock/appliance/config"
	"github.com/keelblock/keelblock/appliance/daemon"
	"github.com/keelblock/keelblock/blockdev"
	"github.com/keelblock/keelblock/blockdev/nbd/client"
)

// jobTimeout bounds every wait of these tests.
const jobTimeout = 60 * time.Second

// appliance is a daemon that runs in this process, with clients of its API.
type appliance struct {
	t   *testing.T
	cfg config.Config
	log *logged

	cancel context.CancelFunc
	ended  chan error
	ready  daemon.Ready
	clients
}

// clients of one API.
type clients struct {
	disks    keelblockv1connect.DisksClient
	machines keelblockv1connect.MachinesClient
	groups   keelblockv1connect.GroupsClient
	cursors  keelblockv1connect.CursorsClient
	points   keelblockv1connect.RecoveryPointsClient
	jobs     keelblockv1connect.JobsClient
	app      keelblockv1connect.ApplianceClient
	vaults   keelblockv1connect.VaultsClient
	keys     keelblockv1connect.KeysClient
}

func dial(socket string) clients {
	hc := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}}
	const base = "http://localhost"
	return clients{keelblockv1connect.NewDisksClient(hc, base), keelblockv1connect.NewMachinesClient(hc, base),
		keelblockv1connect.NewGroupsClient(hc, base), keelblockv1connect.NewCursorsClient(hc, base),
		keelblockv1connect.NewRecoveryPointsClient(hc, base), keelblockv1connect.NewJobsClient(hc, base),
		keelblockv1connect.NewApplianceClient(hc, base), keelblockv1connect.NewVaultsClient(hc, base), keelblockv1connect.NewKeysClient(hc, base)}
}

// dataDir is a short path: sockets have at most 107 bytes.
func dataDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "kb")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func testConfig(t *testing.T, dir string) config.Config {
	t.Helper()
	maps, err := os.MkdirTemp("/dev/shm", "kbtest")
	if err != nil {
		t.Skipf("no /dev/shm for the change maps: %v", err)
	}
	t.Cleanup(func() { os.RemoveAll(maps) })
	return config.Config{DataDir: dir, MapDir: maps, SiteName: "here", BallastBytes: 1 << 20, DrainSeconds: 10}
}

// logged is what a daemon has logged so far.
type logged struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// waitLog waits until the daemon has logged lines with all of these words n times more than
// before, which is a count by an earlier call, and returns the count. n 0 does not wait.
func (a *appliance) waitLog(before, n int, words ...string) int {
	a.t.Helper()
	for deadline := time.Now().Add(jobTimeout); ; time.Sleep(10 * time.Millisecond) {
		count := 0
		for line := range strings.Lines(a.log.String()) {
			if !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(line, w) }) {
				count++
			}
		}
		if count >= before+n {
			return count
		}
		if time.Now().After(deadline) {
			a.t.Fatalf("%q is logged %d times, not %d", words, count, before+n)
		}
	}
}

// start runs a daemon until the test ends.
func start(t *testing.T, cfg config.Config) *appliance {
	t.Helper()
	a := &appliance{t: t, cfg: cfg, log: &logged{}, ended: make(chan error, 1)}
	cfg.LogWriter = a.log
	if testing.Verbose() {
		cfg.LogWriter = io.MultiWriter(a.log, os.Stderr)
	}
	var ctx context.Context
	ctx, a.cancel = context.WithCancel(context.Background())
	ready := make(chan daemon.Ready, 1)
	go func() { a.ended <- daemon.Run(ctx, cfg, func(r daemon.Ready) { ready <- r }) }()
	select {
	case a.ready = <-ready:
	case err := <-a.ended:
		t.Fatalf("the daemon ended: %v\n%s", err, a.log)
	case <-time.After(jobTimeout):
		t.Fatal("the daemon is not ready")
	}
	a.clients = dial(cfg.APISocket())
	t.Cleanup(a.stop)
	return a
}

// stop ends the daemon and fails the test when the stop was not clean.
func (a *appliance) stop() {
	a.t.Helper()
	a.cancel()
	select {
	case err, ok := <-a.ended:
		if ok && err != nil {
			a.t.Errorf("stop: %v", err)
		}
		if ok {
			close(a.ended)
		}
	case <-time.After(jobTimeout):
		a.t.Fatal("the daemon does not stop")
	}
}

func call[Req, Res any](t *testing.T, fn func(context.Context, *connect.Request[Req]) (*connect.Response[Res], error), req *Req) *Res {
	t.Helper()
	res, err := tryCall(fn, req)
	if err != nil {
		t.Fatal(err)
	}
	return res
}

func tryCall[Req, Res any](fn func(context.Context, *connect.Request[Req]) (*connect.Response[Res], error), req *Req) (*Res, error) {
	ctx, cancel := context.WithTimeout(context.Background(), jobTimeout)
	defer cancel()
	res, err := fn(ctx, connect.NewRequest(req))
	if err != nil {
		return nil, err
	}
	return res.Msg, nil
}

// wantCode fails unless err has the code.
func wantCode(t *testing.T, err error, code connect.Code) {
	t.Helper()
	if connect.CodeOf(err) != code || err == nil {
		t.Fatalf("want %v, got %v", code, err)
	}
}

// wait returns a job when it has ended, by the watch stream.
func (c clients) wait(t *testing.T, j *kb.Job) *kb.Job {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), jobTimeout)
	defer cancel()
	s, err := c.jobs.Watch(ctx, connect.NewRequest(&kb.WatchJobRequest{JobId: j.JobId}))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for s.Receive() {
		j = s.Msg()
	}
	if err := s.Err(); err != nil {
		t.Fatalf("watch %s: %v", j.JobId, err)
	}
	if j.EndedAt == nil {
		t.Fatalf("the stream ended before the job: %v", j)
	}
	return j
}

// backup makes a point and returns it.
func (c clients) backup(t *testing.T, machine string) *kb.RecoveryPoint {
	t.Helper()
	j := c.wait(t, call(t, c.machines.Backup, &kb.BackupRequest{Machine: machine}))
	if j.State != "Completed" || len(j.Result) != 1 {
		t.Fatalf("backup: %v", j)
	}
	return call(t, c.points.Get, &kb.GetPointRequest{Selector: j.Result[0]}).Point
}

func (c clients) makeDisk(t *testing.T, name string, size int64) *kb.Disk {
	t.Helper()
	return call(t, c.disks.Create, &kb.CreateDiskRequest{Name: name, SizeBytes: size})
}

func (c clients) makeMachine(t *testing.T, name string, disks ...string) *kb.Machine {
	t.Helper()
	return call(t, c.machines.Create, &kb.CreateMachineRequest{Name: name, Disks: disks})
}

// open connects to a disk or export of nbd.sock.
func open(t *testing.T, cfg config.Config, name string) *client.Client {
	t.Helper()
	c, err := client.Dial(context.Background(), fmt.Sprintf("nbd+unix:///%s?socket=%s", name, cfg.NBDSocket()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// guest writes to a disk and remembers what it must hold.
type guest struct {
	dev  *client.Client
	want []byte
	rng  *rand.Rand
	// doubt are ranges whose write was not acknowledged.
	doubt [][2]int64
}

func newGuest(t *testing.T, cfg config.Config, disk string, seed uint64) *guest {
	t.Helper()
	t.Logf("seed %d", seed)
	dev := open(t, cfg, disk)
	return &guest{dev: dev, want: make([]byte, dev.Size()), rng: rand.New(rand.NewPCG(seed, seed))}
}

func (g *guest) write(t *testing.T, off, n int64) {
	t.Helper()
	p := g.want[off : off+n]
	for i := range p {
		p[i] = byte(g.rng.Uint32())
	}
	if _, err := g.dev.WriteAt(p, off); err != nil {
		t.Fatal(err)
	}
}

// settle takes what the disk holds in the ranges in doubt for what it must hold: the
// old bytes, the new ones or a mix are all right, but from now on they are fixed.
func (g *guest) settle(t *testing.T) {
	t.Helper()
	for _, r := range g.doubt {
		if _, err := g.dev.ReadAt(g.want[r[0]:r[0]+r[1]], r[0]); err != nil {
			t.Fatal(err)
		}
	}
	g.doubt = nil
}

func (g *guest) disconnect(t *testing.T) {
	t.Helper()
	if err := errors.Join(g.dev.Flush(), g.dev.Close()); err != nil {
		t.Fatal(err)
	}
}

// compare fails unless dev holds want, byte for byte.
func compare(t *testing.T, what string, dev blockdev.Device, want []byte) {
	t.Helper()
	if dev.Size() != int64(len(want)) {
		t.Fatalf("%s: %d bytes, want %d", what, dev.Size(), len(want))
	}
	buf := make([]byte, 1<<20)
	for off := 0; off < len(want); off += len(buf) {
		p := buf[:min(len(buf), len(want)-off)]
		if _, err := dev.ReadAt(p, int64(off)); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if !bytes.Equal(p, want[off:off+len(p)]) {
			i := 0
			for p[i] == want[off+i] {
				i++
			}
			t.Fatalf("%s: first difference at %d", what, off+i)
		}
	}
}

// comparePoint reads a disk of a point through a named export.
func (a *appliance) comparePoint(t *testing.T, point, disk string, want []byte) {
	t.Helper()
	call(t, a.points.Export, &kb.ExportRequest{Point: point, Disk: disk, Name: "check"})
	dev := open(t, a.cfg, "check")
	compare(t, "point "+point+":"+disk, dev, want)
	if err := dev.Close(); err != nil {
		t.Fatal(err)
	}
	call(t, a.points.Unexport, &kb.UnexportRequest{Name: "check"})
}

// restore brings a disk back and returns its job.
func (c clients) restore(t *testing.T, point, disk, name string) *kb.Job {
	t.Helper()
	j := c.wait(t, call(t, c.points.RestoreDisk, &kb.RestoreDiskRequest{Point: point, Disk: disk, Name: name}))
	if j.State != "Completed" {
		t.Fatalf("restore: %v", j)
	}
	return j
}

// noLeftovers fails when a file that looks unfinished is left.
func noLeftovers(t *testing.T, cfg config.Config) {
	t.Helper()
	for _, pattern := range []string{"disks/*.partial", "disks/*.deleted", "vault.new*", "vault.opening*"} {
		if m, _ := filepath.Glob(filepath.Join(cfg.DataDir, pattern)); len(m) > 0 {
			t.Errorf("left: %v", m)
		}
	}
}

// runOnce runs a daemon that is expected to refuse.
func runOnce(t *testing.T, cfg config.Config) error {
	t.Helper()
	cfg.LogWriter = &bytes.Buffer{}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	err := daemon.Run(ctx, cfg, func(daemon.Ready) { t.Error("it is ready"); cancel() })
	return err
}
