package keys

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"testing"

	"github.com/keelblock/keelblock/appliance"
)

var update = flag.Bool("update", false, "write golden files of the present format")

// The newest is what -update writes.
var goldens = []string{"testdata/site-v1", "testdata/site-v2"}

// goldenIdentity is what the escrow files carry from version 2 on.
const goldenIdentity = `{"siteId":"00112233445566778899aabbccddeeff"}`

// Keys of every released format open, from their wrapped file and from their escrow file.
func TestGoldenSite(t *testing.T) {
	if *update {
		writeGolden(t, goldens[len(goldens)-1])
	}
	for _, golden := range goldens {
		t.Run(filepath.Base(golden), func(t *testing.T) { testGolden(t, golden, golden != goldens[0]) })
	}
}

func testGolden(t *testing.T, golden string, identity bool) {
	want, err := os.ReadFile(filepath.Join(golden, "keys.hex"))
	if err != nil {
		t.Fatal(err)
	}
	read := func(name string) []byte {
		data, err := os.ReadFile(filepath.Join(golden, name))
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	s := newSite(t)
	if err := os.CopyFS(s.dir, os.DirFS(golden)); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(s.opts.PlatformFile, 0o600); err != nil { // Git keeps no such mode
		t.Fatal(err)
	}
	check := func(how string) {
		t.Helper()
		s.restart()
		got, err := s.vault("v").Open(ctx)
		if err != nil || hex.EncodeToString(got[0].Marshal()) != string(want) {
			t.Fatalf("%s: %v, %v", how, got, err)
		}
	}
	check("wrapped file")
	secret := string(bytes.TrimSpace(read("secret")))
	switch id, err := Identity(read("escrow"), secret); {
	case identity && (err != nil || string(id) != goldenIdentity):
		t.Errorf("the identity in the escrow file: %s, %v", id, err)
	case !identity && !errors.Is(err, appliance.ErrInvalid):
		t.Errorf("an escrow file without identity: %v", err)
	}
	s.loseKeys()
	if _, err := s.store.Restore(ctx, read("escrow"), secret); err != nil {
		t.Fatal(err)
	}
	check("escrow file")
}

func writeGolden(t *testing.T, golden string) {
	t.Helper()
	s := newSite(t)
	s.opts.argon2 = argon2Params{} // as they are released
	s.opts.Identity = func() (json.RawMessage, error) { return json.RawMessage(goldenIdentity), nil }
	s.restart()
	keys := s.create("v", s.spec("", ""))
	s.rotate("v", nil, true)
	e := s.backup("")
	s.write("escrow", string(e.File))
	s.write("secret", e.Secret+"\n")
	s.write("keys.hex", hex.EncodeToString(keys.Marshal()))
	if err := os.RemoveAll(golden); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(golden, os.DirFS(s.dir)); err != nil {
		t.Fatal(err)
	}
}
