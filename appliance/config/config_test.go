package config_test

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/keelblock/keelblock/appliance"
	"github.com/keelblock/keelblock/appliance/config"
)

func TestLoadReadsEveryKeyOnceAndRefusesUnknownOnes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "k.toml")
	write(t, path, `
data = "/srv/kb"
nbd-listen = ["tcp:127.0.0.1:10809"]
spill-size = 1048576
log-level = "debug"
`)
	c, err := config.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	if c.DataDir != "/srv/kb" || c.NBDListen[0] != "tcp:127.0.0.1:10809" || c.SpillBytes != 1<<20 || c.LogLevel != "debug" {
		t.Fatalf("%+v", c)
	}
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	write(t, path, "dta = \"/x\"\n")
	if _, err := config.Load(path); !errors.Is(err, appliance.ErrInvalid) || !strings.Contains(err.Error(), `"dta"`) {
		t.Fatalf("unknown key: %v", err)
	}
}

func TestLoadReadsSizesAsFlagsTakeThem(t *testing.T) {
	path := filepath.Join(t.TempDir(), "k.toml")
	write(t, path, `
data = "/srv/kb"
nbd-listen = ["tcp:127.0.0.1:0", "unix:/run/x.sock"]
map-dir = "/dev/shm/x"
site-name = "s1"
spill-size = "2GiB"
disk-reserve = "64MiB"
vault-reserve = 4096
ballast = "1TiB"
cache = "512KiB"
workers = 3
drain-seconds = 7
log-level = "warn"
log-format = "json"
`)
	got, err := config.Load(path)
	want := config.Config{DataDir: "/srv/kb", NBDListen: []string{"tcp:127.0.0.1:0", "unix:/run/x.sock"}, MapDir: "/dev/shm/x", SiteName: "s1",
		SpillBytes: 2 << 30, DiskReserveBytes: 64 << 20, VaultReserveBytes: 4096, BallastBytes: 1 << 40, CacheBytes: 512 << 10,
		Workers: 3, DrainSeconds: 7, LogLevel: "warn", LogFormat: "json"}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v; want %+v", got, err, want)
	}
	for _, bad := range []string{`"1GB"`, `true`, `1.5`, `"-1"`, `""`} {
		write(t, path, "cache = "+bad+"\n")
		if _, err := config.Load(path); !errors.Is(err, appliance.ErrInvalid) || !strings.Contains(err.Error(), "size") {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

func TestSizesAreReadAsTheyAreWritten(t *testing.T) {
	for s, want := range map[string]int64{"0": 0, "512": 512, "64MiB": 64 << 20, "8GiB": 8 << 30, "1TiB": 1 << 40, "4KiB": 4096, "7B": 7, "2048TiB": 1 << 51} {
		if got, err := config.ParseSize(s); err != nil || got != want {
			t.Errorf("%s: %d, %v", s, got, err)
		}
	}
	for _, s := range []string{"", "MiB", "-1", "1.5GiB", "1GB", "1G", "1 GiB", "9999999TiB", "0x10", "1mib"} {
		if got, err := config.ParseSize(s); err == nil {
			t.Errorf("%q was read as %d", s, got)
		}
	}
}

func TestValidateNamesTheField(t *testing.T) {
	for field, c := range map[string]config.Config{
		"nbd-listen":      {NBDListen: []string{"127.0.0.1:1"}},
		"vault-reserve":   {VaultReserveBytes: -1},
		"log-level":       {LogLevel: "loud"},
		"workers":         {Workers: 5000},
		"nbd-tls-require": {NBDTLSRequire: true},
		"site":            {SiteName: "No Good"},
	} {
		err := c.Validate()
		if !errors.Is(err, appliance.ErrInvalid) || !strings.Contains(err.Error(), field) {
			t.Errorf("%s: %v", field, err)
		}
	}
	if err := (config.Config{}).WithDefaults().Validate(); err != nil {
		t.Errorf("defaults: %v", err)
	}
	if err := appliance.CheckName("site", config.HostName()); err != nil {
		t.Error(err)
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
