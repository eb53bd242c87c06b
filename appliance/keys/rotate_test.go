package keys

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/keelblock/keelblock/appliance"
	"github.com/keelblock/keelblock/appliance/transit/transittest"
	"github.com/keelblock/keelblock/dedupe/keyring"
)

func (s *site) rotate(name string, spec *Spec, newDataKey bool) Domain {
	s.t.Helper()
	d, err := s.store.Rotate(ctx, name, spec, newDataKey)
	if err != nil {
		s.t.Fatal(err)
	}
	return d
}

// From every kind to every kind, and to another key of the same kind.
func TestRotateFromAnyKindToAnyKind(t *testing.T) {
	s := newSite(t)
	specs := kinds(s)
	keys := s.create("v", specs[KindPlatform])
	s.open("v", keys)
	order := []Kind{KindFile, KindPassphrase, KindKMS, KindPlatform, KindPassphrase, KindFile, KindKMS, KindFile, KindPlatform, KindKMS, KindPassphrase, KindPlatform}
	for _, kind := range order {
		spec := specs[kind]
		before := s.show("v")
		d := s.rotate("v", &spec, false)
		if d.Kind != kind || d.Source != spec.Source || d.KeyID == before.KeyID || !slices.Equal(d.DataKeys, before.DataKeys) {
			t.Errorf("rotated to %+v", d)
		}
		s.open("v", keys)
		if got := s.show("v"); got.KeyID != d.KeyID {
			t.Errorf("after a restart %+v, want %+v", got, d)
		}
	}
}

func TestRotateWithinAKind(t *testing.T) {
	s := newSite(t)
	srv, url := kms(s, true)
	file := s.write("customer.key", strings.Repeat("k", 40))
	keys := s.create("v", s.spec("", ""))

	first := s.show("v")
	if d := s.rotate("v", nil, false); d.KeyID == first.KeyID || d.Kind != KindPlatform {
		t.Errorf("platform: %+v", d)
	}
	s.open("v", keys)
	if list, err := s.store.platform.load(); err != nil || len(list) != 1 {
		t.Errorf("%d platform keys are left, %v", len(list), err)
	}

	spec := s.spec(file, "")
	first = s.rotate("v", &spec, false)
	s.write("customer.key", strings.Repeat("n", 40))
	if d := s.rotate("v", nil, false); d.KeyID == first.KeyID || d.Source != file {
		t.Errorf("file: %+v", d)
	}
	s.open("v", keys)

	spec = s.spec(url, "")
	if d := s.rotate("v", &spec, false); d.KeyID != "keelblock:v1" {
		t.Errorf("kms: %+v", d)
	}
	srv.Rotate("keelblock")
	if d := s.rotate("v", nil, false); d.KeyID != "keelblock:v2" {
		t.Errorf("kms, its newest version: %+v", d)
	}
	srv.Change(func(st *transittest.State) {
		st.MinDecryption = 2
		if st.Requests["encrypt keelblock"] != 1 || st.Requests["rewrap keelblock"] != 1 {
			t.Errorf("the service was asked for %v", st.Requests)
		}
	})
	s.open("v", keys)

	spec = s.spec("passphrase", "correct horse battery")
	s.rotate("v", &spec, false)
	if _, err := s.store.Rotate(ctx, "v", nil, false); !errors.Is(err, appliance.ErrInvalid) {
		t.Errorf("a passphrase that is not given: %v", err)
	}
	spec.Passphrase = "another horse battery"
	s.rotate("v", &spec, false)
	s.opts.Passphrases = []string{"another horse battery"}
	s.open("v", keys)
	noSecrets(t, s.dir, keys)
}

func TestNewDataKeySealsAndTheOldOnesStay(t *testing.T) {
	s := newSite(t)
	_, url := kms(s, false)
	keys := s.create("v", s.spec("", ""))
	old := dataKeyIDs(keys)
	d := s.rotate("v", nil, true)
	// The keys in use have it, without being opened anew.
	if got := dataKeyIDs(keys); len(got) != 2 || got[1] != old[0] || !slices.Equal(got, d.DataKeys) {
		t.Errorf("data keys %v after %v, shown as %v", got, old, d.DataKeys)
	}
	keys = s.open("v", keys)
	spec := s.spec(url, "")
	s.rotate("v", &spec, true)
	keys = s.open("v", keys)
	s.rotate("v", nil, true) // rewraps and adds
	keys = s.open("v", keys)
	if n := len(keys.DataKeys()); n != 4 {
		t.Errorf("%d data keys", n)
	}
	for range keyring.MaxDataKeys - 4 {
		keys.AddDataKey()
	}
	if _, err := s.store.Rotate(ctx, "v", nil, true); !errors.Is(err, appliance.ErrInUse) {
		t.Errorf("one more than there can be: %v", err)
	}
}

func TestRotateThatCannotBeProvedChangesNothing(t *testing.T) {
	s := newSite(t)
	srv, url := kms(s, true)
	keys := s.create("v", s.spec("", ""))
	spec := s.spec(url, "")
	refusals := map[string]func(*transittest.State){
		"the token may encrypt and not decrypt": func(st *transittest.State) { st.Denied = map[string]bool{"decrypt": true} },
		"it is sealed":                          func(st *transittest.State) { st.Sealed = true },
	}
	for name, change := range refusals {
		srv.Change(change)
		if _, err := s.store.Rotate(ctx, "v", &spec, true); err == nil {
			t.Errorf("%s: rotated", name)
		}
		srv.Change(func(st *transittest.State) { st.Denied, st.Sealed = nil, false })
		if n := len(keys.DataKeys()); n != 1 {
			t.Errorf("%s: %d data keys are in use", name, n)
		}
		s.open("v", keys)
		if d := s.show("v"); d.Kind != KindPlatform {
			t.Errorf("%s: %+v", name, d)
		}
		files, _ := filepath.Glob(filepath.Join(s.opts.Dir, "*"+nextSuffix+"*"))
		if len(files) > 0 {
			t.Errorf("%s: left %v", name, files)
		}
		keys = s.vault("v").domains[0].keys
	}
	missing := s.spec(filepath.Join(s.dir, "missing"), "")
	none := s.spec("none", "")
	for _, bad := range []*Spec{&missing, &none} {
		if _, err := s.store.Rotate(ctx, "v", bad, false); err == nil {
			t.Errorf("rotated to %+v", bad)
		}
	}
	if _, err := s.store.Rotate(ctx, "other", nil, false); !errors.Is(err, appliance.ErrNotFound) {
		t.Errorf("another vault: %v", err)
	}
}

func TestPlatformKeyOfAnotherVaultStays(t *testing.T) {
	s := newSite(t)
	a, b := s.create("a", s.spec("", "")), s.create("b", s.spec("", ""))
	s.rotate("a", nil, false)
	if list, err := s.store.platform.load(); err != nil || len(list) != 2 {
		t.Fatalf("%d platform keys, %v", len(list), err)
	}
	s.open("b", b)
	s.open("a", a)
	_, _ = s.vault("b").Open(ctx)
	s.rotate("b", nil, false)
	if list, err := s.store.platform.load(); err != nil || len(list) != 2 {
		t.Fatalf("%d platform keys, %v", len(list), err)
	}
	// Nobody knows what a file needs that cannot be read.
	broken := s.write("keys/"+strings.Repeat("0", 32)+".json", "broken")
	s.rotate("a", nil, false)
	if list, _ := s.store.platform.load(); len(list) != 3 {
		t.Fatalf("%d platform keys", len(list))
	}
	if err := os.Remove(broken); err != nil {
		t.Fatal(err)
	}
	s.rotate("a", nil, false)
	if list, _ := s.store.platform.load(); len(list) != 2 {
		t.Fatalf("%d platform keys", len(list))
	}
	s.open("a", a)
	s.open("b", b)
}

const (
	killDir  = "KEYS_TEST_DIR"
	killStep = "KEYS_TEST_STEP"
	killWay  = "KEYS_TEST_WAY"
)

// rotations that are killed at every step.
var rotations = map[string]func(*site) (*Spec, bool){
	"platform":              func(*site) (*Spec, bool) { return nil, false },
	"platform and data key": func(*site) (*Spec, bool) { return nil, true },
	"file": func(s *site) (*Spec, bool) {
		return &Spec{Kind: KindFile, Source: filepath.Join(s.dir, "customer.key")}, true
	},
	"passphrase": func(*site) (*Spec, bool) {
		return &Spec{Kind: KindPassphrase, Passphrase: "correct horse battery"}, true
	},
}

// TestRotationIsKilled is the process that TestKillAtEveryStepOfARotation kills.
func TestRotationIsKilled(t *testing.T) {
	dir := os.Getenv(killDir)
	if dir == "" {
		t.Skip("it is run by TestKillAtEveryStepOfARotation")
	}
	step, err := strconv.Atoi(os.Getenv(killStep))
	if err != nil {
		t.Fatal(err)
	}
	s := &site{t: t, dir: dir, opts: killOptions(dir)}
	s.opts.hook = func(string) error {
		if step--; step < 0 {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
		return nil
	}
	s.restart()
	if _, err := s.vault("v").Open(ctx); err != nil {
		t.Fatal(err)
	}
	spec, data := rotations[os.Getenv(killWay)](s)
	s.rotate("v", spec, data)
}

func killOptions(dir string) Options {
	return Options{Dir: filepath.Join(dir, "keys"), PlatformFile: filepath.Join(dir, "platform.key"), Passphrases: []string{"correct horse battery"}, argon2: cheap}
}

// A rotation is killed with SIGKILL before each change of a file, in a process of its own.
// The next start opens the keys, and the next rotation goes through and leaves nothing.
func TestKillAtEveryStepOfARotation(t *testing.T) {
	for name, way := range rotations {
		t.Run(name, func(t *testing.T) {
			steps := 0
			for done := false; !done; steps++ {
				s := newSite(t)
				s.opts = killOptions(s.dir)
				s.restart()
				s.write("customer.key", strings.Repeat("k", 40))
				keys := s.create("v", s.spec("", ""))
				done = s.killedAt(steps, name)
				s.restart()
				got, err := s.vault("v").Open(ctx)
				if err != nil {
					t.Fatalf("killed at step %d: %v", steps, err)
				}
				if ids := got[0].DataKeys(); ids[len(ids)-1] != keys.DataKeys()[0] || got[0].Check() != keys.Check() {
					t.Fatalf("killed at step %d: other keys", steps)
				}
				spec, data := way(s)
				s.rotate("v", spec, data)
				s.open("v", got[0])
				s.noRemains(steps)
			}
			t.Logf("%d steps", steps-1)
			if steps < 5 {
				t.Errorf("only %d steps were seen", steps-1)
			}
		})
	}
}

// killedAt runs a rotation that is killed at a step; true when it ended before.
func (s *site) killedAt(step int, way string) (ended bool) {
	s.t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestRotationIsKilled$")
	cmd.Env = append(os.Environ(), killDir+"="+s.dir, fmt.Sprintf("%s=%d", killStep, step), killWay+"="+way)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return true
	case errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL:
		return false
	}
	s.t.Fatalf("%v\n%s", err, out.String())
	return false
}

// noRemains fails when there is more than one platform key, or a file that was not ended.
func (s *site) noRemains(step int) {
	s.t.Helper()
	if list, err := s.store.platform.load(); err != nil || len(list) != 1 {
		s.t.Errorf("killed at step %d: %d platform keys are left, %v", step, len(list), err)
	}
	for _, dir := range []string{s.opts.Dir, vaultKeysDir(s.vaultDir("v"))} {
		files, err := os.ReadDir(dir)
		if err != nil || len(files) != 2 {
			s.t.Errorf("killed at step %d: %s has %v, %v", step, dir, files, err)
		}
	}
}
