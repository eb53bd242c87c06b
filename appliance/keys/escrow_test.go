package keys

import (
	"bytes"
	"encoding/base64"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/keelblock/keelblock/appliance"
	"github.com/keelblock/keelblock/dedupe"
)

func base64Text(b []byte) string { return base64.StdEncoding.EncodeToString(b) }

func (s *site) backup(secret string) *Escrow {
	s.t.Helper()
	e, err := s.store.Backup(secret)
	if err != nil {
		s.t.Fatal(err)
	}
	if err := s.store.Confirm(ctx, e.ID); err != nil {
		s.t.Fatal(err)
	}
	return e
}

// loseKeys removes everything that opens the vaults' keys.
func (s *site) loseKeys() {
	s.t.Helper()
	dirs, _ := filepath.Glob(filepath.Join(s.dir, "vaults", "*", "keys"))
	for _, d := range append(dirs, s.opts.Dir, s.opts.PlatformFile) {
		if err := os.RemoveAll(d); err != nil {
			s.t.Fatal(err)
		}
	}
}

func TestRestoreAfterEverythingWasLost(t *testing.T) {
	s := newSite(t)
	a, b := s.create("a", s.spec("", "")), s.create("b", s.spec("passphrase", "correct horse battery"))
	s.create("plain", s.spec("none", ""))
	e := s.backup("")
	if e.Domains != 2 || len(e.Missing) > 0 {
		t.Errorf("%d domains, missing %v", e.Domains, e.Missing)
	}
	for _, secret := range [][]byte{a.Marshal()[32:64], b.Marshal()[32:64], []byte(e.Secret)} {
		if bytes.Contains(e.File, secret) || bytes.Contains(e.File, []byte(base64Text(secret))) {
			t.Error("a secret can be read in the file")
		}
	}
	s.loseKeys()
	s.refused("a", dedupe.ErrNoKey, "key restore")
	for _, name := range []string{"b", "plain"} {
		_, _ = s.vault(name).Open(ctx)
	}
	before := tree(t, s.dir)
	if _, err := s.store.Restore(ctx, e.File, "wrong secret, surely"); !errors.Is(err, ErrWrongSecret) {
		t.Errorf("a wrong secret: %v", err)
	}
	if after := tree(t, s.dir); after != before {
		t.Error("a wrong secret changed files")
	}
	r, err := s.store.Restore(ctx, e.File, strings.ToLower(strings.ReplaceAll(e.Secret, "-", " "))+"\n")
	if err != nil || !slices.Equal(r.Vaults, []string{"a", "b"}) {
		t.Fatal(r, err)
	}
	s.open("a", a)
	s.open("b", b)
	if d := s.show("b"); d.Kind != KindPlatform || d.BackedUpAt.IsZero() {
		t.Errorf("shown as %+v", d)
	}
}

func TestRestoreWhileTheKeysAreAtHand(t *testing.T) {
	s := newSite(t)
	keys := s.create("v", s.spec("", ""))
	e := s.backup("my own recovery secret")
	before := tree(t, s.dir)
	if _, err := s.store.Restore(ctx, e.File, "my own recovery secret"); err != nil {
		t.Fatal(err)
	}
	if tree(t, s.dir) != before {
		t.Error("files changed, and nothing was missing")
	}
	s.loseKeys() // the daemon still has them
	if _, err := s.store.Restore(ctx, e.File, "my own recovery secret"); err != nil {
		t.Fatal(err)
	}
	s.open("v", keys)
}

func TestBackupIsAskedForUntilItIsOnDisk(t *testing.T) {
	s := newSite(t)
	keys := s.create("v", s.spec("", ""))
	e, err := s.store.Backup("")
	if err != nil {
		t.Fatal(err)
	}
	if !s.show("v").BackedUpAt.IsZero() {
		t.Error("it counts before it is on disk")
	}
	if err := s.store.Confirm(ctx, e.ID); err != nil {
		t.Fatal(err)
	}
	if err := s.store.Confirm(ctx, e.ID); !errors.Is(err, appliance.ErrNotFound) {
		t.Errorf("confirmed twice: %v", err)
	}
	s.open("v", keys)
	if s.show("v").BackedUpAt.IsZero() {
		t.Error("it is forgotten at a restart")
	}
	s.rotate("v", nil, false)
	if s.show("v").BackedUpAt.IsZero() {
		t.Error("a rotation that changes no keys makes it void")
	}
	e, err = s.store.Backup("")
	if err != nil {
		t.Fatal(err)
	}
	s.rotate("v", nil, true)
	if !s.show("v").BackedUpAt.IsZero() {
		t.Error("it counts though a data key is not in it")
	}
	if err := s.store.Confirm(ctx, e.ID); err != nil {
		t.Fatal(err)
	}
	if !s.show("v").BackedUpAt.IsZero() {
		t.Error("a backup from before the data key counts")
	}
}

// An older escrow file gives the older keys, says so, and destroys nothing.
func TestRestoreFromAnOlderFile(t *testing.T) {
	s := newSite(t)
	keys := s.create("v", s.spec("", ""))
	e := s.backup("")
	s.rotate("v", nil, true)
	platform, err := os.ReadFile(s.opts.PlatformFile)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(s.opts.PlatformFile); err != nil {
		t.Fatal(err)
	}
	s.refused("v", dedupe.ErrNoKey)
	r, err := s.store.Restore(ctx, e.File, e.Secret)
	if err != nil || len(r.Warnings) != 1 || !strings.Contains(r.Warnings[0], "data key") {
		t.Fatal(r, err)
	}
	if got, err := s.vault("v").Open(ctx); err != nil || len(got[0].DataKeys()) != 1 {
		t.Fatal(got, err)
	}
	// The platform key is found again: what it opens is still there.
	replaced := wrappedPath(s.opts.Dir, keys.Domain()) + replacedSuffix
	for _, suffix := range []string{"", ".copy"} {
		copyFile(t, replaced+suffix, wrappedPath(s.opts.Dir, keys.Domain())+suffix)
	}
	if err := errors.Join(os.RemoveAll(vaultKeysDir(s.vaultDir("v"))), os.WriteFile(s.opts.PlatformFile, platform, 0o600)); err != nil {
		t.Fatal(err)
	}
	s.open("v", keys)
}

func TestRestoreWithADamagedPlatformKeyPutsItAside(t *testing.T) {
	s := newSite(t)
	keys := s.create("v", s.spec("", ""))
	e := s.backup("")
	flip(t, s.opts.PlatformFile, 120)
	s.refused("v", dedupe.ErrCorrupt)
	if _, err := s.store.Restore(ctx, e.File, e.Secret); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(s.opts.PlatformFile + ".damaged-0"); err != nil {
		t.Errorf("it is gone: %v", err)
	}
	s.open("v", keys)
}

func TestBackupWithoutTheKeysOfOneVault(t *testing.T) {
	s := newSite(t)
	s.create("a", s.spec("", ""))
	s.create("b", s.spec("passphrase", "correct horse battery"))
	s.restart()
	for _, name := range []string{"a", "b"} {
		_, _ = s.vault(name).Open(ctx)
	}
	e := s.backup("")
	if e.Domains != 1 || !slices.Equal(e.Missing, []string{"b"}) {
		t.Errorf("%d domains, missing %v", e.Domains, e.Missing)
	}
	if s.show("a").BackedUpAt.IsZero() || !s.show("b").BackedUpAt.IsZero() {
		t.Errorf("saved: %+v", s.store.Show())
	}
}

func TestEscrowFilesThatAreNone(t *testing.T) {
	s := newSite(t)
	s.create("v", s.spec("", ""))
	e := s.backup("")
	other := newSite(t)
	other.create("v", other.spec("", ""))
	foreign := other.backup("")
	if _, err := s.store.Restore(ctx, foreign.File, foreign.Secret); !errors.Is(err, ErrOtherSite) || !strings.Contains(err.Error(), "site here (5175)") {
		t.Errorf("the file of another site: %v", err)
	}
	for i := range e.File {
		if i%7 > 0 { // every byte takes long
			continue
		}
		b := bytes.Clone(e.File)
		b[i] ^= 4
		if _, err := s.store.Restore(ctx, b, e.Secret); err == nil {
			t.Fatalf("restored from a file whose byte %d is flipped", i)
		}
	}
	for n := range len(e.File) {
		if _, err := s.store.Restore(ctx, e.File[:n], e.Secret); err == nil {
			t.Fatalf("restored from %d of %d bytes", n, len(e.File))
		}
	}
	for name, b := range map[string][]byte{"empty": nil, "text": []byte("hello\nworld\n"), "longer": append(bytes.Clone(e.File), 'x'), "a key file": bytes.Repeat([]byte{1}, 40)} {
		if _, err := s.store.Restore(ctx, b, e.Secret); err == nil {
			t.Errorf("%s: restored", name)
		}
	}
	newer := bytes.Replace(e.File, []byte("escrow 2 "), []byte("escrow 3 "), 1)
	if _, err := s.store.Restore(ctx, newer, e.Secret); !errors.Is(err, dedupe.ErrUnknownFormat) {
		t.Errorf("a newer version: %v", err)
	}
}

func TestRecoverySecrets(t *testing.T) {
	seen := map[string]bool{}
	for range 200 {
		secret := newSecret()
		if seen[secret] || len(secret) != 35 {
			t.Fatalf("secret %q", secret)
		}
		seen[secret] = true
		for _, typed := range []string{secret, strings.ToLower(secret), strings.ReplaceAll(secret, "-", ""), strings.ReplaceAll(secret, "0", "o") + "\n", strings.ReplaceAll(secret, "1", "l")} {
			if got, mistyped := canonical(typed); got != secret || mistyped {
				t.Fatalf("%q is read as %q, mistyped %v", typed, got, mistyped)
			}
		}
		b := []byte(secret)
		b[0], b[1] = b[1], b[0]
		if _, mistyped := canonical(string(b)); !mistyped && b[0] != b[1] {
			t.Errorf("%q passes for %q", b, secret)
		}
	}
	for _, own := range []string{"my own secret", "ABCDE-FGHJK", " spaces at the end  "} {
		if got, mistyped := canonical(own + "\r\n"); got != own || mistyped {
			t.Errorf("%q is read as %q, mistyped %v", own, got, mistyped)
		}
	}
	s := newSite(t)
	s.create("v", s.spec("", ""))
	if _, err := s.store.Backup("short"); !errors.Is(err, appliance.ErrInvalid) {
		t.Errorf("a short secret: %v", err)
	}
}

func FuzzParseEscrow(f *testing.F) {
	s := newSite(f)
	s.create("v", s.spec("", ""))
	f.Add(s.backup("the secret").File)
	f.Add([]byte("keelblock-escrow 1 \n\n\n"))
	f.Fuzz(func(t *testing.T, file []byte) {
		if head, line, _, err := parseEscrow(file); err == nil && (len(line) == 0 || head.Argon2 == nil) {
			t.Fatalf("%q is taken for an escrow file", file)
		}
	})
}
