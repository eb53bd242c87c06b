package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/BurntSushi/toml"

	"github.com/keelblock/keelblock/appliance"
	"github.com/keelblock/keelblock/appliance/clock"
)

// DefaultDataDir is where the state lies when nothing else is said.
const DefaultDataDir = "/var/lib/keelblock"

// Config of one daemon. The zero value of each field is the default that its
// comment names. The toml key of a field is also the name of its flag.
type Config struct {
	// DataDir holds all state. "": DefaultDataDir.
	DataDir string `toml:"data"`
	// NBDListen are addresses beside run/nbd.sock that serve the live disks and
	// named exports, each "tcp:HOST:PORT".
	NBDListen []string `toml:"nbd-listen"`
	// NBDTLS is a folder with server-cert.pem, server-key.pem and ca-cert.pem: NBD clients
	// may use TLS, and must show a certificate of that authority when they do. "": no
	// TLS.
	NBDTLS string `toml:"nbd-tls"`
	// NBDTLSRequire refuses NBD clients without TLS over TCP.
	NBDTLSRequire bool `toml:"nbd-tls-require"`
	// MapDir holds the change maps; it should be on tmpfs. "": chosen by
	// MapDirectory in package disks: /run/keelblock/ID, else /dev/shm/keelblock-ID.
	MapDir string `toml:"map-dir"`
	// SiteName names this appliance; it is kept from the first start on. "": the
	// host's name.
	SiteName string `toml:"site-name"`
	// SpillBytes bounds the spill file of each disk. 0: a tenth of the disk, at
	// least 1 GiB.
	SpillBytes int64 `toml:"spill-size"`
	// DiskReserveBytes is the free space below which a disk file gets no new
	// storage. 0: the smaller of 256 MiB and a 20th of the file system.
	DiskReserveBytes int64 `toml:"disk-reserve"`
	// VaultReserveBytes is the free space below which the vault takes no new data.
	// 0: the smaller of 512 MiB and a 16th of the file system.
	VaultReserveBytes int64 `toml:"vault-reserve"`
	// VaultLocations are folders, on other disks, that keep further copies of every pack
	// of the default vault, at most two; they exist. Empty: those that it has.
	VaultLocations []string `toml:"vault-location"`
	// VerifyEvery is the period in which each recovery point is read back and compared
	// with its digests, such as "7d" or "12h"; "never": only on demand. "": 7d.
	VerifyEvery string `toml:"verify-every"`
	// BallastBytes is the size of the file that is given up first when the file
	// system is full at a start. 0: the smaller of 1 GiB and a 32nd of the file
	// system.
	BallastBytes int64 `toml:"ballast"`
	// CacheBytes bounds the cache of decoded blocks that all readers share. 0: 128 MiB.
	CacheBytes int64 `toml:"cache"`
	// Workers bounds the goroutines of one backup or restore. 0: one per core.
	Workers int `toml:"workers"`
	// PassphraseFile has passphrases, one in a line, that are tried for vaults whose keys
	// are wrapped by one.
	PassphraseFile string `toml:"passphrase-file"`
	// PassphraseFD is a descriptor of the process to read such passphrases from, or nil.
	PassphraseFD *int `toml:"passphrase-fd"`
	// KMSTokenFile has the token for key-management services; it is read at each request.
	KMSTokenFile string `toml:"kms-token-file"`
	// KMSCACert is the PEM file of who signs the services' certificates. "": the system's
	// authorities.
	KMSCACert string `toml:"kms-ca-cert"`
	// KMSNamespace is the namespace of keys whose address names none.
	KMSNamespace string `toml:"kms-namespace"`
	// DrainSeconds bounds each step of a stop. 0: 10.
	DrainSeconds int `toml:"drain-seconds"`
	// ClockLeapDays is how many days the clock may be ahead of where it was at the last
	// stop before it is in doubt. 0: 7.
	ClockLeapDays int `toml:"clock-leap-days"`
	// CollectEvery is how often each vault is collected. 0: 24 h; less: never.
	CollectEvery time.Duration `toml:"collect-every"`
	// CollectInterval is how often it is looked whether a vault is due, or nearly full. 0: 30 s.
	CollectInterval time.Duration `toml:"-"`
	// LogLevel is debug, info, warn or error. "": info.
	LogLevel string `toml:"log-level"`
	// LogFormat is text or json. "": text.
	LogFormat string `toml:"log-format"`
	// Sockets were opened for the daemon by who started it (systemd's socket
	// activation).
	Sockets []Socket `toml:"-"`
	// NotifySocket is the socket of systemd's notification protocol, or "".
	NotifySocket string `toml:"-"`
	// Passphrases are tried beside those of PassphraseFile.
	Passphrases []string `toml:"-"`
	// KMSToken is used without a KMSTokenFile.
	KMSToken string `toml:"-"`
	// KMSRetry is how often a service that did not answer is asked again, and an empty
	// folder of a vault looked at. 0: 15 s.
	KMSRetry time.Duration `toml:"-"`
	// LogWriter gets the log. nil: standard error.
	LogWriter io.Writer `toml:"-"`
	// ReadClock reads the clocks of the host. nil: those that it has.
	ReadClock func() clock.Reading `toml:"-" json:"-"`
	// VerifyInterval is the time between two looks at what is to be verified or repaired.
	// 0: a minute.
	VerifyInterval time.Duration `toml:"-"`
	// Cores may compute for guests and jobs at once. 0: as many as Go uses.
	Cores int `toml:"-"`
	// ExpiryInterval is the time between two passes of expiry. 0: a minute.
	ExpiryInterval time.Duration `toml:"-"`
	// Version is what status reports as the version of the binary.
	Version string `toml:"-"`
}

// Socket is a listening socket that the daemon was given, which takes it over.
type Socket struct {
	// Name says what it is for: SocketAPI, SocketNBD or SocketPoints. Any other leaves it
	// to its address: that of a socket in RunDir, or TCP, which is NBD.
	Name string
	File *os.File
}

// Names of sockets, FileDescriptorName= in systemd's units.
const (
	SocketAPI    = "api"
	SocketNBD    = "nbd"
	SocketPoints = "points"
)

// Load reads the TOML file at path over the defaults. A key that is not known is an
// error. Sizes are integers of bytes, or strings such as "64MiB". "" reads no file.
func Load(path string) (Config, error) {
	var c Config
	if path == "" {
		return c, nil
	}
	sizes := struct {
		*Config
		Spill        size `toml:"spill-size"`
		DiskReserve  size `toml:"disk-reserve"`
		VaultReserve size `toml:"vault-reserve"`
		Ballast      size `toml:"ballast"`
		Cache        size `toml:"cache"`
	}{Config: &c}
	md, err := toml.DecodeFile(path, &sizes)
	c.SpillBytes, c.DiskReserveBytes, c.VaultReserveBytes = int64(sizes.Spill), int64(sizes.DiskReserve), int64(sizes.VaultReserve)
	c.BallastBytes, c.CacheBytes = int64(sizes.Ballast), int64(sizes.Cache)
	if errors.Is(err, fs.ErrNotExist) {
		return c, &appliance.Error{Op: "read configuration " + path, Kind: appliance.ErrNotFound, Err: err}
	}
	if err != nil {
		return c, &appliance.Error{Op: "read configuration " + path, Kind: appliance.ErrInvalid, Err: err}
	}
	if un := md.Undecoded(); len(un) > 0 {
		return c, &appliance.Error{Op: "read configuration " + path, Kind: appliance.ErrInvalid,
			Text: fmt.Sprintf("key %q is not known", un[0].String()), Hint: "see keelblock serve --help; each flag has a key"}
	}
	return c, nil
}

// WithDefaults returns a copy in which every field has its final value, save those
// whose default depends on the file system.
func (c Config) WithDefaults() Config {
	if c.DataDir == "" {
		c.DataDir = DefaultDataDir
	}
	if abs, err := filepath.Abs(c.DataDir); err == nil {
		c.DataDir = abs
	}
	if c.CacheBytes == 0 {
		c.CacheBytes = 128 << 20
	}
	if c.DrainSeconds == 0 {
		c.DrainSeconds = 10
	}
	if c.KMSRetry == 0 {
		c.KMSRetry = 15 * time.Second
	}
	if c.CollectInterval == 0 {
		c.CollectInterval = 30 * time.Second
	}
	if c.CollectEvery == 0 {
		c.CollectEvery = 24 * time.Hour
	}
	if c.LogLevel == "" {
		c.LogLevel = "info"
	}
	if c.LogFormat == "" {
		c.LogFormat = "text"
	}
	if c.LogWriter == nil {
		c.LogWriter = os.Stderr
	}
	if c.Version == "" {
		c.Version = "devel"
	}
	return c
}

// Validate returns all that is wrong, each with the name of the field and its limit.
func (c Config) Validate() error {
	var errs []error
	bad := func(field, format string, args ...any) {
		errs = append(errs, &appliance.Error{Op: "check configuration", Kind: appliance.ErrInvalid,
			Text: field + ": " + fmt.Sprintf(format, args...)})
	}
	for _, a := range c.NBDListen {
		if _, _, err := SplitListen(a); err != nil {
			bad("nbd-listen", "%v", err)
		}
	}
	if c.NBDTLSRequire && c.NBDTLS == "" {
		bad("nbd-tls-require", "there is no nbd-tls to require")
	}
	for _, f := range []struct {
		name  string
		value int64
	}{{"spill-size", c.SpillBytes}, {"disk-reserve", c.DiskReserveBytes}, {"vault-reserve", c.VaultReserveBytes},
		{"ballast", c.BallastBytes}, {"cache", c.CacheBytes}, {"workers", int64(c.Workers)}, {"drain-seconds", int64(c.DrainSeconds)},
		{"clock-leap-days", int64(c.ClockLeapDays)}} {
		if f.value < 0 {
			bad(f.name, "%d is negative", f.value)
		}
	}
	if c.ClockLeapDays > 36500 {
		bad("clock-leap-days", "%d is more than 36500", c.ClockLeapDays)
	}
	if c.Workers > 1024 {
		bad("workers", "%d is more than 1024", c.Workers)
	}
	switch c.LogLevel {
	case "", "debug", "info", "warn", "error":
	default:
		bad("log-level", "%q is none of debug, info, warn, error", c.LogLevel)
	}
	if _, err := c.VerifyPeriod(); err != nil {
		bad("verify-every", "%v", err)
	}
	if n := len(c.VaultLocations); n > 2 {
		bad("vault-location", "%d folders beside the vault's own, at most 2", n)
	}
	for _, dir := range c.VaultLocations {
		if !filepath.IsAbs(dir) {
			bad("vault-location", "%q is not an absolute path", dir)
		}
	}
	switch c.LogFormat {
	case "", "text", "json":
	default:
		bad("log-format", "%q is neither text nor json", c.LogFormat)
	}
	if c.SiteName != "" {
		if err := appliance.CheckName("site", c.SiteName); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// SplitListen takes "tcp:HOST:PORT" or "unix:PATH" apart, for net.Listen.
func SplitListen(s string) (network, address string, err error) {
	network, address, ok := strings.Cut(s, ":")
	switch {
	case !ok || address == "":
	case network == "tcp":
		if _, _, err := net.SplitHostPort(address); err != nil {
			return "", "", fmt.Errorf("address %q: %w; write tcp:HOST:PORT", s, err)
		}
		return network, address, nil
	case network == "unix":
		return network, address, nil
	}
	return "", "", fmt.Errorf("address %q is not tcp:HOST:PORT or unix:PATH", s)
}

// HostName is a valid site name made of the host's name.
func HostName() string {
	h, err := os.Hostname()
	if err != nil {
		h = ""
	}
	out := make([]byte, 0, len(h))
	for _, c := range []byte(strings.ToLower(h)) {
		if c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || len(out) > 0 && (c == '-' || c == '_' || c == '.') {
			out = append(out, c)
		}
	}
	if len(out) == 0 {
		return "site"
	}
	return string(out[:min(len(out), appliance.MaxNameLength)])
}

// Paths of the state below DataDir.
func (c Config) path(parts ...string) string {
	return filepath.Join(append([]string{c.DataDir}, parts...)...)
}

// DisksDir holds the disk files, their list and their saved maps.
func (c Config) DisksDir() string { return c.path("disks") }

// VaultDir holds packs and index.
func (c Config) VaultDir() string { return c.path("vault") }

// KeysDir holds a copy of every vault's wrapped keys.
func (c Config) KeysDir() string { return c.path("keys") }

// PlatformKeyFile holds the appliance's own keys, which wrap.
func (c Config) PlatformKeyFile() string { return c.path("platform.key") }

// CatalogDir holds the Badger database of machines and jobs.
func (c Config) CatalogDir() string { return c.path("catalog") }

// SpillDir holds what copy-before-write preserves.
func (c Config) SpillDir() string { return c.path("spill") }

// RunDir holds the sockets.
func (c Config) RunDir() string { return c.path("run") }

// APISocket is the control socket.
func (c Config) APISocket() string { return c.path("run", "api.sock") }

// NBDSocket serves live disks and named exports.
func (c Config) NBDSocket() string { return c.path("run", "nbd.sock") }

// PointsSocket serves points to their readers.
func (c Config) PointsSocket() string { return c.path("run", "points.sock") }
