package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/keelblock/keelblock/appliance"
	"github.com/keelblock/keelblock/appliance/api"
	"github.com/keelblock/keelblock/appliance/backup"
	"github.com/keelblock/keelblock/appliance/catalog"
	"github.com/keelblock/keelblock/appliance/clock"
	"github.com/keelblock/keelblock/appliance/config"
	"github.com/keelblock/keelblock/appliance/cursor"
	"github.com/keelblock/keelblock/appliance/disks"
	"github.com/keelblock/keelblock/appliance/doctor"
	"github.com/keelblock/keelblock/appliance/expiry"
	"github.com/keelblock/keelblock/appliance/job"
	"github.com/keelblock/keelblock/appliance/keys"
	"github.com/keelblock/keelblock/appliance/machine"
	"github.com/keelblock/keelblock/appliance/readers"
	"github.com/keelblock/keelblock/appliance/restore"
	"github.com/keelblock/keelblock/appliance/vault"
	"github.com/keelblock/keelblock/appliance/verification"
	"github.com/keelblock/keelblock/blockdev/cbt"
	"github.com/keelblock/keelblock/blockdev/nbd/server"
)

// readyTimeout is how long Ready waits for catalog and vault.
const readyTimeout = 10 * time.Second

// Ready is what a client needs to know.
type Ready struct {
	PID int
	API string   // unix:PATH
	NBD []string // unix:PATH, tcp:HOST:PORT …
	// NBDTLS is "", or whether TLS is "offered" or "required" over TCP.
	NBDTLS string
	// UnsavedKeys are the vaults whose keys are in no escrow file.
	UnsavedKeys []string
}

// daemon is a running appliance.
type daemon struct {
	cfg config.Config
	log *slog.Logger

	diskReserve, vaultReserve int64
	ballast                   vault.Ballast

	nbd      *server.Server
	clock    *cbt.Clock
	disks    *disks.Registry
	machines *machine.Set
	cursors  *cursor.Set
	site     *vault.Site
	siteErr  error
	keys     *keys.Store
	vaults   *vault.Set
	jobs     *job.Manager
	readers  *readers.Set
	verifier *verification.Engine
	points   pointsSocket
	time     *clock.Clock
	expiry   *expiry.Engine
	full     chan fullVault

	listeners []listener
	http      *http.Server

	opened   chan struct{} // catalog and vault are open, or refused
	openOnce sync.Once
	stop     context.CancelFunc

	// openMu is held while a vault is opened, and taken before mu.
	openMu sync.Mutex

	mu      sync.Mutex
	catalog *catalog.DB // nil while closed
	alerts  map[string]api.Alert
}

// Run runs an appliance until ctx ends or a client stops it. ready is called once,
// when clients can connect. An error of Run means that the appliance did not start,
// or that its stop was not clean.
func Run(ctx context.Context, cfg config.Config, ready func(Ready)) (err error) {
	cfg = cfg.WithDefaults()
	if err := cfg.Validate(); err != nil {
		return err
	}
	d := &daemon{cfg: cfg, log: logger(cfg), opened: make(chan struct{}), full: make(chan fullVault, 16), alerts: map[string]api.Alert{}}
	unlock, err := lock(cfg.DataDir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	ctx, d.stop = context.WithCancel(ctx)
	defer d.stop()
	if err := d.openDisks(); err != nil {
		return err
	}
	if err := d.listen(); err != nil {
		return errors.Join(err, d.closeListeners(), d.disks.Close())
	}
	d.compose()
	return d.serve(ctx, ready)
}

func logger(cfg config.Config) *slog.Logger {
	var level slog.Level
	if err := level.UnmarshalText([]byte(cfg.LogLevel)); err != nil {
		level = slog.LevelInfo
	}
	o := &slog.HandlerOptions{Level: level}
	if cfg.LogFormat == "json" {
		return slog.New(slog.NewJSONHandler(cfg.LogWriter, o))
	}
	return slog.New(slog.NewTextHandler(cfg.LogWriter, o))
}

// openDisks opens the disks and makes their exports known.
func (d *daemon) openDisks() error {
	c := d.cfg
	space, err := vault.SpaceOf(c.DataDir)
	if err != nil {
		return err
	}
	or := func(given, fallback int64) int64 {
		if given != 0 {
			return given
		}
		return fallback
	}
	d.diskReserve, d.vaultReserve = or(c.DiskReserveBytes, space.DiskReserve()), or(c.VaultReserveBytes, space.VaultReserve())
	if d.ballast, err = vault.BallastOf(c.DataDir, c.BallastBytes); err != nil {
		return err
	}
	maps, err := disks.MapDirectory(c.MapDir, c.DataDir)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(maps, 0o700); err != nil {
		// Disks come first. The trackers see that this is no tmpfs and compare after
		// an unclean stop; the doctor says so.
		d.alert("map directory", fmt.Sprintf("%v; the maps lie beside the data, and after a kill each next backup compares; give --map-dir a folder of a tmpfs", err))
		maps = filepath.Join(c.DataDir, "maps")
	}
	d.cfg.MapDir = maps
	d.dropBallast()
	d.clock = cbt.NewClock()
	if d.nbd, err = d.newNBDServer(); err != nil {
		return err
	}
	d.disks, err = disks.Open(disks.Options{Dir: c.DisksDir(), SpillDir: c.SpillDir(), MapDir: maps, SpillBytes: c.SpillBytes,
		ReserveBytes: d.diskReserve, Clock: d.clock, Server: d.nbd, Logger: d.log})
	return err
}

// compose joins the parts. Nothing here can fail or blocks.
func (d *daemon) compose() {
	workers := d.cfg.Workers
	if workers == 0 {
		workers = runtime.GOMAXPROCS(0)
	}
	turns := job.NewTurns(cmp.Or(d.cfg.Cores, runtime.GOMAXPROCS(0)), func() uint64 { return d.nbd.Stats().Requests })
	name := d.cfg.SiteName
	if name == "" {
		name = config.HostName()
	}
	if d.site, d.siteErr = vault.LoadSite(d.cfg.DataDir, name); d.siteErr != nil {
		d.site = &vault.Site{Name: name}
	}
	d.keys = d.newKeys()
	d.vaults = vault.NewSet(vault.SetOptions{DataDir: d.cfg.DataDir, DefaultDir: d.cfg.VaultDir(), Site: d.site,
		DefaultLocations: d.cfg.VaultLocations, ReserveBytes: d.cfg.VaultReserveBytes, BallastBytes: d.cfg.BallastBytes, CacheBytes: d.cfg.CacheBytes, Keys: d.keysOf, Logger: d.log})
	d.openClock()
	d.machines = machine.NewSet(d.disks, disks.NewID)
	d.cursors = cursor.NewSet(d.disks, d.vaults)
	d.disks.SetContexts(d.cursors.Contexts)
	d.jobs = job.New(job.Options{Code: api.CodeName, Logger: d.log})
	d.points = d.newPointsSocket()
	d.readers = readers.New(readers.Options{Vaults: d.vaults, Disks: d.disks, Points: d.points, Logger: d.log})
	d.expiry = expiry.New(expiry.Options{Vaults: d.vaults, Machines: d.machines, Jobs: d.jobs, Now: d.time.Now,
		Interval: d.cfg.ExpiryInterval, Alert: d.alert, Logger: d.log})
	every, _ := d.cfg.VerifyPeriod() // validated
	d.verifier = verification.New(verification.Options{Vaults: d.vaults, Jobs: d.jobs, Dir: d.cfg.DataDir, Every: every,
		Look: d.cfg.VerifyInterval, LiveBlock: d.liveBlock, Logger: d.log})
	handler := api.Handler(api.Parts{
		Info: api.Info{Version: d.cfg.Version, PID: os.Getpid(), StartedAt: time.Now(), DataDir: d.cfg.DataDir,
			SiteName: d.site.Name, APIURI: "unix:" + d.cfg.APISocket(), NBDURIs: d.uris(kindNBD), NBDTLS: d.tlsMode(),
			NBDSocket: d.cfg.NBDSocket(), PointsPath: d.cfg.PointsSocket()},
		Disks: d.disks, Machines: d.machines, Cursors: d.cursors, Vaults: d.vaults, Keys: d.keys, Jobs: d.jobs, Readers: d.readers,
		Clock: d.time, Expiry: d.expiry, Verifier: d.verifier,
		Backup: backup.New(backup.Options{Disks: d.disks, Machines: d.machines, Vaults: d.vaults, Jobs: d.jobs,
			Clock: d.clock, Now: d.time.Now, Workers: workers, Turns: turns, Alert: d.alert, Full: d.vaultIsFull, Logger: d.log}),
		Restore: restore.New(restore.Options{Disks: d.disks, Vaults: d.vaults, Jobs: d.jobs, DiskDir: d.cfg.DisksDir(),
			DiskReserveBytes: d.diskReserve, Workers: workers, Logger: d.log}),
		Doctor: &doctor.Doctor{DataDir: d.cfg.DataDir, MapDir: d.cfg.MapDir, DiskReserveBytes: d.diskReserve,
			VaultReserveBytes: d.vaultReserve},
		Opened: d.opened, Stop: d.stop, Rebuild: d.rebuild, Reopen: d.reopen, Alerts: d.listAlerts, Logger: d.log,
	})
	var p http.Protocols
	p.SetHTTP1(true)
	p.SetUnencryptedHTTP2(true)
	d.http = &http.Server{Handler: handler, Protocols: &p, ConnContext: api.ConnContext,
		ReadHeaderTimeout: 10 * time.Second, ErrorLog: slog.NewLogLogger(d.log.Handler(), slog.LevelWarn)}
}

// openClock reads the clock's witness. One that cannot be read puts the clock in doubt,
// which suspends expiry and nothing else.
func (d *daemon) openClock() {
	var err error
	d.time, err = clock.Open(filepath.Join(d.cfg.DataDir, "clock.json"), clock.Options{Read: d.cfg.ReadClock,
		Leap: time.Duration(d.cfg.ClockLeapDays) * 24 * time.Hour, Alert: func(text string) { d.alert("clock", text) }, Logger: d.log})
	if err != nil {
		d.log.Error("the clock has no witness", "error", err)
	}
}

// serve runs until ctx ends, then drains.
func (d *daemon) serve(ctx context.Context, ready func(Ready)) error {
	// Servers and readers outlive ctx: stopping ends them in order.
	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	sweep, endSweep := context.WithCancel(work)
	defer endSweep()
	var g, readersGroup errgroup.Group
	for _, l := range d.listeners {
		g.Go(func() error { return d.serveListener(work, l) })
	}
	readersGroup.Go(func() error { return d.readers.Run(sweep) })
	readersGroup.Go(func() error { return d.time.Run(sweep) })
	readersGroup.Go(func() error { return d.expiry.Run(sweep) })
	readersGroup.Go(func() error { d.disks.KeepAttached(sweep); return nil })
	readersGroup.Go(func() error { d.retryVaults(sweep); return nil })
	readersGroup.Go(func() error { return d.verifier.Run(sweep) })
	readersGroup.Go(func() error { d.collectVaults(sweep); return nil })
	opening := make(chan struct{})
	g.Go(func() error {
		defer close(opening)
		d.openStores(ctx)
		return nil
	})
	select {
	case <-d.opened:
	case <-time.After(readyTimeout):
	case <-ctx.Done():
	}
	if ctx.Err() == nil {
		d.log.Info("ready", "data", d.cfg.DataDir, "site", d.site.Name)
		d.notify("READY=1")
		ready(Ready{PID: os.Getpid(), API: "unix:" + d.cfg.APISocket(), NBD: d.uris(kindNBD), NBDTLS: d.tlsMode(), UnsavedKeys: d.unsavedKeys()})
	}
	<-ctx.Done()
	d.log.Info("stopping")
	d.notify("STOPPING=1")
	<-opening
	err := d.drain(endSweep, &readersGroup)
	cancel()
	err = errors.Join(err, g.Wait())
	d.log.Info("stopped", "clean", err == nil)
	return err
}

// dropBallast gives the ballast up when the file system is nearly full.
func (d *daemon) dropBallast() {
	if dropped, err := d.ballast.Drop(d.vaultReserve); err != nil {
		d.log.Error("the ballast cannot be dropped", "error", err)
	} else if dropped {
		d.log.Warn("the file system is nearly full: the ballast is dropped", "bytes", d.ballast.Bytes)
	}
}

// step bounds one step of a stop.
func (d *daemon) step() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), time.Duration(d.cfg.DrainSeconds)*time.Second)
}

// drain ends everything in order. A step that fails does not keep the next from being
// taken.
func (d *daemon) drain(endSweep func(), readersGroup *errgroup.Group) error {
	d.dropBallast() // maps are saved, and Badger writes tables: on a full file system it dies of that
	var errs []error
	bounded := func(fn func(context.Context) error) {
		ctx, cancel := d.step()
		defer cancel()
		errs = append(errs, fn(ctx))
	}
	bounded(d.jobs.Drain)
	endSweep()
	errs = append(errs, readersGroup.Wait())
	bounded(func(ctx context.Context) error {
		if err := d.http.Shutdown(ctx); err != nil {
			return errors.Join(fmt.Errorf("stop the API: %w", err), d.http.Close())
		}
		return nil
	})
	bounded(d.points.server.Shutdown)
	bounded(d.nbd.Shutdown)
	errs = append(errs, d.disks.Close(), d.within("vaults", d.vaults.Close), d.within("catalog", d.closeCatalog), d.closeListeners())
	return errors.Join(errs...)
}

// within bounds a close that cannot be told to end: Badger tries for ever to write its
// tables to a file system that died. The process ends soon, and the next start finds
// what it would find after a kill.
func (d *daemon) within(what string, closeIt func() error) error {
	ctx, cancel := d.step()
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- closeIt() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("close the %s: it did not end within %d s", what, d.cfg.DrainSeconds)
	}
}

func (d *daemon) closeCatalog() error {
	stopping := &appliance.Error{Kind: appliance.ErrUnavailable, Text: "the daemon is stopping"}
	d.machines.Close(stopping)
	d.cursors.Close(stopping)
	d.jobs.Detach()
	d.mu.Lock()
	db := d.catalog
	d.catalog = nil
	d.mu.Unlock()
	if db == nil {
		return nil
	}
	return db.Close()
}

// alert sets or, with text "", clears an alert about an object.
func (d *daemon) alert(object, text string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if text == "" {
		delete(d.alerts, object)
		return
	}
	d.alerts[object] = api.Alert{Severity: "critical", Object: object, Text: text, Since: time.Now()}
	d.log.Error("alert", "object", object, "error", text)
}

func (d *daemon) listAlerts() []api.Alert {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := make([]api.Alert, 0, len(d.alerts))
	for _, a := range d.alerts {
		out = append(out, a)
	}
	return out
}

// notify tells systemd, if it asked.
func (d *daemon) notify(state string) {
	if d.cfg.NotifySocket == "" {
		return
	}
	c, err := net.Dial("unixgram", d.cfg.NotifySocket)
	if err == nil {
		_, err = c.Write([]byte(state))
		err = errors.Join(err, c.Close())
	}
	if err != nil {
		d.log.Warn("systemd is not told", "state", state, "error", err)
	}
}
