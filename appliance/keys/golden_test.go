package keys

import (
	"bytes"
	"encoding/hex"
	"flag"
	"os"
	"path/filepath"
	"testing"
)

var update = flag.Bool("update", false, "write golden files of the present format")

const golden = "testdata/site-v1"

// Keys of every released format open, from their wrapped file and from their escrow file.
func TestGoldenSite(t *testing.T) {
	if *update {
		writeGolden(t)
	}
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
	s.loseKeys()
	if _, err := s.store.Restore(ctx, read("escrow"), string(bytes.TrimSpace(read("secret")))); err != nil {
		t.Fatal(err)
	}
	check("escrow file")
}

func writeGolden(t *testing.T) {
	t.Helper()
	s := newSite(t)
	s.opts.argon2 = argon2Params{} // as they are released
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
