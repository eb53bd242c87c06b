package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/keelblock/keelblock/appliance"
	"github.com/keelblock/keelblock/appliance/config"
	"github.com/keelblock/keelblock/appliance/daemon"
)

// serveFlags are the flags of serve. Their names are the keys of the TOML file.
type serveFlags struct {
	file                                string
	nbdListen, vaultLocations           []string
	verifyEvery                         string
	nbdTLS                              string
	nbdTLSRequire                       bool
	mapDir, site, logLevel, logFormat   string
	spill, diskReserve, vaultReserve    sizeValue
	ballast, cache                      sizeValue
	workers, drainSeconds, readyDescrip int
	clockLeapDays                       int
	passphraseFile                      string
	passphraseDescrip                   int
	kmsTokenFile, kmsCACert, kmsSpace   string
	detach                              bool
	collectEvery                        time.Duration
}

func (a *app) serveCommand() *cobra.Command {
	var s serveFlags
	cmd := &cobra.Command{
		Use:   "serve [-d]",
		Short: "run the appliance; prints one line when clients can connect",
		Long: `Runs the appliance: serves the disks over NBD, and the control API. When clients can
connect it prints one line, once:

  ready pid=N api=unix:… nbd=unix:… [nbd=tcp:…] [nbd-tls=offered|required]

With -d it returns then, and the daemon's log is DIR/run/serve.log. SIGTERM, SIGINT and
keelblock stop drain connections, flush the disks and end it. SIGHUP changes nothing.

--nbd-tls CERTDIR has NBD clients use TLS, with certificates in the files that qemu-nbd and
nbdkit have: server-cert.pem, server-key.pem, and ca-cert.pem, which must have signed the
certificate of a client. With --nbd-tls-require nothing else is answered over TCP. A disk
with a list of names (keelblock disk edit NAME --allow CN) is then for clients with one of
these certificates; others cannot use it over TCP. Over unix sockets the permissions of
DIR/run decide.

A vault is encrypted at rest. A passphrase that opens its keys is taken from --passphrase-fd,
--passphrase-file, systemd's credential keelblock.passphrase, $KEELBLOCK_PASSPHRASE, or asked
for at a terminal; the token for a key-management service from --kms-token-file, the
credential keelblock.kms-token, or $VAULT_TOKEN. See keelblock help keys.

Under systemd it tells readiness (Type=notify), and takes sockets over that systemd has
opened: FileDescriptorName= nbd, api or points says which they are; without, the address
does. Every flag is also a key of the TOML file
given with --config; sizes there are bytes, or text such as "1GiB". Flags win over the
file.`,
		Example: "  keelblock serve -d --data /srv/keelblock\n  keelblock serve --nbd-listen tcp:127.0.0.1:10809",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if s.detach {
				return a.serveDetached(cmd, &s)
			}
			cfg, err := a.serveConfig(cmd, &s)
			if err != nil {
				return err
			}
			return a.serve(cmd.Context(), cfg, s.readyDescrip)
		},
	}
	f := cmd.Flags()
	f.BoolVarP(&s.detach, "detach", "d", false, "return when clients can connect, and leave the daemon running")
	f.StringVar(&s.file, "config", "", "TOML file with a key for every flag")
	f.StringArrayVar(&s.nbdListen, "nbd-listen", nil, "serve NBD at this address too: tcp:HOST:PORT; may be repeated")
	f.StringVar(&s.nbdTLS, "nbd-tls", "", "folder of certificates with which NBD clients may use TLS")
	f.BoolVar(&s.nbdTLSRequire, "nbd-tls-require", false, "refuse NBD clients without TLS over TCP")
	f.StringVar(&s.mapDir, "map-dir", "", "folder of the change maps, best on tmpfs (default: chosen)")
	f.StringVar(&s.site, "site-name", "", "name of this appliance, kept from the first start on (default: the host's)")
	f.Var(&s.spill, "spill-size", "bound of the spill file of each disk (default: a tenth of the disk, at least 1GiB)")
	f.Var(&s.diskReserve, "disk-reserve", "free space below which disks get no new storage (default: chosen)")
	f.Var(&s.vaultReserve, "vault-reserve", "free space below which the vault takes no new data (default: chosen)")
	f.StringArrayVar(&s.vaultLocations, "vault-location", nil, "folder on another disk with a further copy of the default vault's packs; may be given twice")
	f.StringVar(&s.verifyEvery, "verify-every", "", "read each recovery point back at least this often, such as 7d or 12h; never (default: 7d)")
	f.Var(&s.ballast, "ballast", "space that is given up first when the file system is full (default: chosen)")
	f.Var(&s.cache, "cache", "bound of the cache that all readers share (default: 128MiB)")
	f.IntVar(&s.workers, "workers", 0, "goroutines of one backup or restore (default: one per core)")
	f.IntVar(&s.drainSeconds, "drain-seconds", 0, "bound of each step of a stop (default: 10)")
	f.IntVar(&s.clockLeapDays, "clock-leap-days", 0, "days that the clock may be ahead after a start before it is in doubt (default: 7)")
	f.StringVar(&s.passphraseFile, "passphrase-file", "", "file with the passphrases of vaults, one in a line (also $KEELBLOCK_PASSPHRASE)")
	f.IntVar(&s.passphraseDescrip, "passphrase-fd", -1, "descriptor to read passphrases from, one in a line")
	f.StringVar(&s.kmsTokenFile, "kms-token-file", "", "file with the token for key-management services (default: $VAULT_TOKEN)")
	f.StringVar(&s.kmsCACert, "kms-ca-cert", "", "PEM file of who signs their certificates (default: $VAULT_CACERT, then the system's)")
	f.StringVar(&s.kmsSpace, "kms-namespace", "", "namespace of keys whose address names none (default: $VAULT_NAMESPACE)")
	f.DurationVar(&s.collectEvery, "collect-every", 0, "how often each vault is collected, such as 12h; less than 0: never (default: 24h)")
	f.StringVar(&s.logLevel, "log-level", "", "debug, info, warn or error (default: info)")
	f.StringVar(&s.logFormat, "log-format", "", "text or json (default: text)")
	f.IntVar(&s.readyDescrip, "ready-fd", 0, "")
	_ = f.MarkHidden("ready-fd")
	_ = cmd.MarkFlagFilename("config", "toml")
	_ = cmd.MarkFlagDirname("map-dir")
	_ = cmd.MarkFlagDirname("nbd-tls")
	_ = cmd.MarkFlagDirname("vault-location")
	_ = cmd.RegisterFlagCompletionFunc("log-level", cobra.FixedCompletions([]string{"debug", "info", "warn", "error"}, cobra.ShellCompDirectiveNoFileComp))
	_ = cmd.RegisterFlagCompletionFunc("log-format", cobra.FixedCompletions([]string{"text", "json"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// serveConfig is the file, then the environment, then what the flags say.
func (a *app) serveConfig(cmd *cobra.Command, s *serveFlags) (config.Config, error) {
	cfg, err := config.Load(s.file)
	if errors.Is(err, appliance.ErrNotFound) {
		return cfg, notFoundError{err}
	}
	if err != nil {
		return cfg, usageError{err}
	}
	if d := a.Getenv("KEELBLOCK_DATA"); cfg.DataDir == "" && d != "" {
		cfg.DataDir = d
	}
	set := map[string]func(){
		"data":            func() { cfg.DataDir = a.data },
		"nbd-listen":      func() { cfg.NBDListen = s.nbdListen },
		"nbd-tls":         func() { cfg.NBDTLS = s.nbdTLS },
		"nbd-tls-require": func() { cfg.NBDTLSRequire = s.nbdTLSRequire },
		"map-dir":         func() { cfg.MapDir = s.mapDir },
		"site-name":       func() { cfg.SiteName = s.site },
		"spill-size":      func() { cfg.SpillBytes = int64(s.spill) },
		"disk-reserve":    func() { cfg.DiskReserveBytes = int64(s.diskReserve) },
		"vault-reserve":   func() { cfg.VaultReserveBytes = int64(s.vaultReserve) },
		"vault-location":  func() { cfg.VaultLocations = s.vaultLocations },
		"verify-every":    func() { cfg.VerifyEvery = s.verifyEvery },
		"ballast":         func() { cfg.BallastBytes = int64(s.ballast) },
		"cache":           func() { cfg.CacheBytes = int64(s.cache) },
		"workers":         func() { cfg.Workers = s.workers },
		"drain-seconds":   func() { cfg.DrainSeconds = s.drainSeconds },
		"clock-leap-days": func() { cfg.ClockLeapDays = s.clockLeapDays },
		"passphrase-file": func() { cfg.PassphraseFile = s.passphraseFile },
		"passphrase-fd":   func() { cfg.PassphraseFD = &s.passphraseDescrip },
		"kms-token-file":  func() { cfg.KMSTokenFile = s.kmsTokenFile },
		"kms-ca-cert":     func() { cfg.KMSCACert = s.kmsCACert },
		"kms-namespace":   func() { cfg.KMSNamespace = s.kmsSpace },
		"collect-every":   func() { cfg.CollectEvery = s.collectEvery },
		"log-level":       func() { cfg.LogLevel = s.logLevel },
		"log-format":      func() { cfg.LogFormat = s.logFormat },
	}
	for name, apply := range set {
		if cmd.Flags().Changed(name) {
			apply()
		}
	}
	for i := range cfg.VaultLocations {
		if cfg.VaultLocations[i], err = filepath.Abs(cfg.VaultLocations[i]); err != nil {
			return cfg, err
		}
	}
	for _, dir := range []*string{&cfg.MapDir, &cfg.NBDTLS, &cfg.PassphraseFile, &cfg.KMSTokenFile, &cfg.KMSCACert} { // a detached daemon works in another folder
		if *dir == "" {
			continue
		}
		if *dir, err = filepath.Abs(*dir); err != nil {
			return cfg, err
		}
	}
	cfg.Version = a.Version
	cfg = cfg.WithDefaults()
	if err := cfg.Validate(); err != nil {
		return cfg, usageError{err}
	}
	if n := len(cfg.PointsSocket()); n > 107 {
		return cfg, usageError{fmt.Errorf("the folder %q is too long a path: the sockets in it would have %d bytes and the system allows 107", cfg.DataDir, n)}
	}
	return cfg, a.serveSecrets(&cfg)
}

// serve runs the daemon in this process. With readyFD it is the child of serve -d.
func (a *app) serve(ctx context.Context, cfg config.Config, readyFD int) error {
	cfg.NotifySocket = a.Getenv("NOTIFY_SOCKET")
	sockets, err := a.handedOver()
	if err != nil {
		return err
	}
	for _, h := range sockets {
		cfg.Sockets = append(cfg.Sockets, config.Socket{Name: h.name, File: h.file})
	}
	a.spareProcessors(&cfg)
	// A hangup would end the process without draining. There is nothing to reload.
	signal.Ignore(unix.SIGHUP)
	detached := readyFD > 0
	if detached { // it must not keep a folder busy
		if err := os.Chdir("/"); err != nil {
			return err
		}
	}
	err = daemon.Run(ctx, cfg, func(r daemon.Ready) {
		out := a.Out
		if detached {
			pipe := os.NewFile(uintptr(readyFD), "ready")
			defer pipe.Close()
			out = pipe
		}
		line := *a
		line.Out = out
		_ = line.print(readyShape{r.PID, r.API, list(r.NBD)}, func(w io.Writer) { fmt.Fprintln(w, readyLine(r)) })
		if advice := unsavedText(r); detached && advice != "" {
			fmt.Fprint(out, "\x00", advice) // the parent writes it where its user reads
		} else {
			fmt.Fprint(a.Err, advice)
		}
	})
	if errors.Is(err, context.Canceled) && ctx.Err() != nil {
		err = nil
	}
	return err
}

// spareProcessors lets twice as many goroutines run as there are cores, of which the
// workers of a backup use half. Go looks at its sockets when a processor has nothing
// else to do, or else every 10 ms: with one hashing worker per core that is how long a
// guest waited. With processors to spare the kernel, which divides cores fairly, wakes
// the thread that waits for sockets. A guest of 1000 writes/s during backups on 2 cores:
// p50 613 us and p90 7.1 ms without, 59 us and 418 us with it, in one run each at a load of
// 8 to 15; at a load of 15 to 20 hardly a gain; on the idle machine, with it, 65 us and
// 255 us (tools/compare/nbdslices, rows guest-…). $GOMAXPROCS overrides it.
func (a *app) spareProcessors(cfg *config.Config) {
	if a.Getenv("GOMAXPROCS") != "" {
		return
	}
	runtime.SetDefaultGOMAXPROCS() // minds the limits of a container; serve may run twice in a process
	cores := runtime.GOMAXPROCS(0)
	cfg.Cores = cores
	if cfg.Workers == 0 {
		cfg.Workers = cores
	}
	runtime.GOMAXPROCS(2 * cores)
}

func readyLine(r daemon.Ready) string {
	parts := []string{fmt.Sprintf("ready pid=%d", r.PID), "api=" + r.API}
	for _, n := range r.NBD {
		parts = append(parts, "nbd="+n)
	}
	if r.NBDTLS != "" {
		parts = append(parts, "nbd-tls="+r.NBDTLS)
	}
	return strings.Join(parts, " ")
}
