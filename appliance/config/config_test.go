package config_test

import (
	"errors"
	"os"
	"path/filepath"
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

func TestValidateNamesTheField(t *testing.T) {
	for field, c := range map[string]config.Config{
		"nbd-listen":    {NBDListen: []string{"127.0.0.1:1"}},
		"vault-reserve": {VaultReserveBytes: -1},
		"log-level":     {LogLevel: "loud"},
		"workers":       {Workers: 5000},
		"site":          {SiteName: "No Good"},
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
