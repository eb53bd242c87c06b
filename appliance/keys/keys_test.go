package keys

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keelblock/keelblock/appliance"
	"github.com/keelblock/keelblock/appliance/transit/transittest"
	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/keyring"
	"github.com/keelblock/keelblock/dedupe/pack"
)

var ctx = context.Background()

// cheap costs of passphrases: what they are does not matter to these tests, save one.
var cheap = argon2Params{Time: 1, MemoryKiB: 64, Threads: 1}

// site is a data folder with its keys, over several lives of a daemon.
type site struct {
	t     testing.TB
	dir   string
	opts  Options
	store *Store
}

func newSite(t testing.TB) *site {
	t.Helper()
	dir := t.TempDir()
	s := &site{t: t, dir: dir, opts: Options{Dir: filepath.Join(dir, "keys"), PlatformFile: filepath.Join(dir, "platform.key"),
		SiteID: "5175", SiteName: "here", argon2: cheap}}
	s.restart()
	return s
}

// restart forgets everything that was in memory.
func (s *site) restart() { s.store = New(s.opts) }

func (s *site) vaultDir(name string) string { return filepath.Join(s.dir, "vaults", name) }

// vault gives a vault's keys, as a daemon asks for them.
func (s *site) vault(name string) *Vault {
	return s.store.Vault(name, s.vaultDir(name), Spec{Kind: KindPlatform})
}

// create makes a vault: its keys, and a superblock that has them.
func (s *site) create(name string, spec Spec) *keyring.Keys {
	s.t.Helper()
	keys, err := s.tryCreate(name, spec)
	if err != nil {
		s.t.Fatal(err)
	}
	return keys
}

func (s *site) tryCreate(name string, spec Spec) (*keyring.Keys, error) {
	dir := s.vaultDir(name)
	if err := os.MkdirAll(dir+".new", 0o700); err != nil {
		return nil, err
	}
	v := s.store.Vault(name, dir, spec)
	keys, err := v.Make(ctx, dir+".new")
	if err != nil {
		v.Forget()
		return nil, err
	}
	sb := &pack.Superblock{BlockSize: dedupe.DefaultBlockSize, Created: time.Now(), Domains: []pack.Domain{{ID: dedupe.DomainID{1}, Scheme: pack.SchemeSHA256}}}
	if keys != nil {
		sb.Domains[0] = pack.Domain{ID: keys.Domain(), Scheme: pack.SchemeHMAC, Cipher: pack.CipherXAES, Check: keys.Check()}
	}
	return keys, errors.Join(os.WriteFile(filepath.Join(dir+".new", "superblock"), sb.Encode(), 0o600), os.Rename(dir+".new", dir))
}

// open opens a vault's keys after a restart and compares them with want.
func (s *site) open(name string, want *keyring.Keys) *keyring.Keys {
	s.t.Helper()
	s.restart()
	got, err := s.vault(name).Open(ctx)
	if err != nil {
		s.t.Fatal(err)
	}
	if len(got) != 1 || !bytes.Equal(got[0].Marshal(), want.Marshal()) {
		s.t.Fatalf("other keys: %v", got)
	}
	return got[0]
}

// refused opens a vault's keys after a restart, which must fail in one of the classes and
// name the words.
func (s *site) refused(name string, class error, words ...string) error {
	s.t.Helper()
	s.restart()
	got, err := s.vault(name).Open(ctx)
	if err == nil {
		s.t.Fatalf("opened: %v", got)
	}
	if class != nil && !errors.Is(err, class) {
		s.t.Errorf("want %v, got %v", class, err)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			s.t.Errorf("%q is not in: %v", w, err)
		}
	}
	if d := s.store.Show(); len(d) != 1 || d[0].Available || d[0].Reason == nil {
		s.t.Errorf("shown as %+v", d)
	}
	return err
}

func (s *site) write(name, text string) string {
	s.t.Helper()
	path := filepath.Join(s.dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
	return path
}

func (s *site) spec(key, passphrase string) Spec {
	s.t.Helper()
	spec, err := ParseSpec(key, passphrase)
	if err != nil {
		s.t.Fatal(err)
	}
	return spec
}

func (s *site) show(name string) Domain {
	s.t.Helper()
	for _, d := range s.store.Show() {
		if d.Vault == name {
			return d
		}
	}
	s.t.Fatalf("%s is not shown", name)
	return Domain{}
}

func kms(s *site, tls bool) (*transittest.Server, string) {
	srv := transittest.Start(s.t, tls)
	s.opts.KMS = KMS{Token: func() (string, error) { return "hvs.test", nil }, Backoff: time.Millisecond}
	if tls {
		s.opts.KMS.CACertFile = s.write("ca.pem", string(srv.CACert))
	}
	s.restart()
	return srv, "kms:" + srv.URL + "/transit/keelblock"
}

// every kind of key-encryption key, with what it needs set up.
func kinds(s *site) map[Kind]Spec {
	_, url := kms(s, true)
	s.opts.Passphrases = []string{"not this one", "correct horse battery"}
	s.restart()
	return map[Kind]Spec{
		KindPlatform:   s.spec("", ""),
		KindFile:       s.spec(s.write("customer.key", strings.Repeat("k", 40)), ""),
		KindPassphrase: s.spec("passphrase", "correct horse battery"),
		KindKMS:        s.spec(url, ""),
	}
}

func TestKeysOpenAfterARestartWhateverWrapsThem(t *testing.T) {
	for kind := range kinds(newSite(t)) {
		t.Run(string(kind), func(t *testing.T) {
			s := newSite(t)
			spec := kinds(s)[kind]
			keys := s.create("v", spec)
			s.open("v", keys)
			d := s.show("v")
			if d.Kind != kind || d.Source != spec.Source || !d.Available || d.KeyID == "" || len(d.DataKeys) != 1 || !d.BackedUpAt.IsZero() {
				t.Errorf("shown as %+v", d)
			}
			for _, dir := range []string{s.opts.Dir, vaultKeysDir(s.vaultDir("v"))} {
				t.Run("without "+filepath.Base(filepath.Dir(dir)), func(t *testing.T) {
					if err := os.RemoveAll(dir); err != nil {
						t.Fatal(err)
					}
					s.open("v", keys)
					if _, err := os.Stat(wrappedPath(dir, keys.Domain())); err != nil {
						t.Errorf("the lost copy was not written again: %v", err)
					}
				})
			}
			noSecrets(t, s.dir, keys)
		})
	}
}

// noSecrets scans every file of a folder, but for the key files, for the keys, in the forms in
// which a careless program writes them.
func noSecrets(t *testing.T, dir string, keys *keyring.Keys) {
	t.Helper()
	plain := keys.Marshal()
	var secrets [][]byte
	for off := 32; off+32 <= len(plain)-4; off += 16 {
		secrets = append(secrets, plain[off:off+12])
	}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for i, sec := range secrets {
			if i == 2 || i > 2 && i%3 == 2 { // the ids of data keys are no secrets
				continue
			}
			for _, form := range [][]byte{sec, fmt.Appendf(nil, "%x", sec), fmt.Appendf(nil, "%X", sec)} {
				if bytes.Contains(data, form) {
					t.Errorf("%s has a secret at offset %d of the keys", path, 32+16*i)
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestVaultThatIsNotEncryptedHasNoKeys(t *testing.T) {
	s := newSite(t)
	if keys := s.create("plain", s.spec("none", "")); keys != nil {
		t.Fatalf("keys of an unencrypted vault: %v", keys)
	}
	s.restart()
	if keys, err := s.vault("plain").Open(ctx); err != nil || len(keys) > 0 {
		t.Fatal(keys, err)
	}
	if d := s.show("plain"); d.Kind != KindNone || !d.Available {
		t.Errorf("shown as %+v", d)
	}
	if _, err := os.Stat(s.opts.PlatformFile); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a platform key was made for nothing: %v", err)
	}
	if _, err := s.store.Rotate(ctx, "plain", nil, false); !errors.Is(err, appliance.ErrInvalid) || !strings.Contains(err.Error(), "not encrypted") {
		t.Errorf("rotate: %v", err)
	}
	if _, err := s.store.Backup(""); !errors.Is(err, appliance.ErrInvalid) {
		t.Errorf("backup: %v", err)
	}
}

func TestPlatformKeyThatOthersCanReadIsRefused(t *testing.T) {
	s := newSite(t)
	keys := s.create("v", s.spec("", ""))
	for _, mode := range []os.FileMode{0o640, 0o604, 0o620, 0o602, 0o644} {
		if err := os.Chmod(s.opts.PlatformFile, mode); err != nil {
			t.Fatal(err)
		}
		s.refused("v", appliance.ErrUnavailable, s.opts.PlatformFile, "chmod 600 "+s.opts.PlatformFile)
		if _, err := s.tryCreate("w", s.spec("", "")); err == nil {
			t.Error("a key was made beside it")
		}
	}
	if err := os.Chmod(s.opts.PlatformFile, 0o400); err != nil {
		t.Fatal(err)
	}
	s.open("v", keys)
}

func TestKeysThatAreGoneOrWrong(t *testing.T) {
	passphrase := func(s *site) { s.opts.Passphrases = []string{"something else"} }
	cases := []struct {
		name  string
		kind  Kind
		harm  func(*site)
		class error
		words []string
	}{
		{"platform key gone", KindPlatform, func(s *site) { os.Remove(s.opts.PlatformFile) }, dedupe.ErrNoKey, []string{"platform.key is missing", "key restore"}},
		{"platform key of another appliance", KindPlatform, func(s *site) { copyFile(s.t, otherPlatform(s.t), s.opts.PlatformFile) }, dedupe.ErrWrongKey, []string{"platform.key has no key", "key restore"}},
		{"platform key damaged", KindPlatform, func(s *site) { flip(s.t, s.opts.PlatformFile, 120) }, dedupe.ErrCorrupt, []string{"platform.key", "checksum"}},
		{"platform key empty", KindPlatform, func(s *site) { s.write("platform.key", "") }, dedupe.ErrCorrupt, []string{"platform.key"}},
		{"key file gone", KindFile, func(s *site) { os.Remove(filepath.Join(s.dir, "customer.key")) }, dedupe.ErrNoKey, []string{"customer.key", "key restore"}},
		{"key file short", KindFile, func(s *site) { s.write("customer.key", "short") }, appliance.ErrInvalid, []string{"customer.key", "5 bytes"}},
		{"key file of another vault", KindFile, func(s *site) { s.write("customer.key", strings.Repeat("x", 40)) }, dedupe.ErrWrongKey, []string{"customer.key", "key restore"}},
		{"passphrase not given", KindPassphrase, func(s *site) { s.opts.Passphrases = nil }, dedupe.ErrNoKey, []string{"key unlock", "KEELBLOCK_PASSPHRASE"}},
		{"passphrase wrong", KindPassphrase, passphrase, dedupe.ErrWrongKey, []string{"key unlock"}},
		{"service denies", KindKMS, func(s *site) { s.opts.KMS.Token = func() (string, error) { return "expired", nil } }, nil, []string{"permission denied", "VAULT_TOKEN"}},
		{"service without token", KindKMS, func(s *site) { s.opts.KMS.Token = nil }, nil, []string{"no token"}},
		{"service of another authority", KindKMS, func(s *site) { s.opts.KMS.CACertFile = "" }, nil, []string{"certificate", "--kms-ca-cert"}},
		{"both wrapped copies gone", KindPlatform, func(s *site) { os.RemoveAll(s.opts.Dir); os.RemoveAll(vaultKeysDir(s.vaultDir("v"))) }, dedupe.ErrNoKey, []string{"no wrapped keys", "key restore"}},
		{"all wrapped copies damaged", KindPlatform, func(s *site) { eachWrapped(s, func(p string) { flip(s.t, p, 200) }) }, dedupe.ErrNoKey, []string{"damaged", "key restore"}},
	}
	for _, tt := range cases {
		t.Run(tt.name, func(t *testing.T) {
			s := newSite(t)
			s.create("v", kinds(s)[tt.kind])
			tt.harm(s)
			before := tree(t, s.dir)
			s.refused("v", tt.class, tt.words...)
			if after := tree(t, s.dir); after != before {
				t.Errorf("files changed from\n%sto\n%s", before, after)
			}
		})
	}
}

// tree lists a folder's files with their contents.
func tree(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		fmt.Fprintf(&b, "%s %x\n", path, data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func otherPlatform(t testing.TB) string {
	s := newSite(t)
	s.create("v", s.spec("", ""))
	return s.opts.PlatformFile
}

func copyFile(t testing.TB, from, to string) {
	t.Helper()
	data, err := os.ReadFile(from)
	if err = errors.Join(err, os.WriteFile(to, data, 0o600)); err != nil {
		t.Fatal(err)
	}
}

func flip(t testing.TB, path string, at int) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	data[at] ^= 1
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func eachWrapped(s *site, do func(path string)) {
	for _, dir := range []string{s.opts.Dir, vaultKeysDir(s.vaultDir("v"))} {
		files, err := filepath.Glob(filepath.Join(dir, "*"))
		if err != nil || len(files) != 2 {
			s.t.Fatal(files, err)
		}
		for _, f := range files {
			do(f)
		}
	}
}

func TestOneWholeCopyIsEnough(t *testing.T) {
	for spare := range 4 {
		s := newSite(t)
		keys := s.create("v", s.spec("", ""))
		i := 0
		eachWrapped(s, func(p string) {
			if i != spare {
				flip(t, p, 100+i)
			}
			i++
		})
		s.open("v", keys)
		if list, damage := read(keys.Domain(), s.vault("v").dirs()...); len(list) != 2 || damage != nil {
			t.Errorf("spare %d: %d copies afterwards, %v", spare, len(list), damage)
		}
	}
}

// The keys of one domain, put into the file of another or said to be of another kind, do
// not open.
func TestWrappedKeysAreBoundToTheirFile(t *testing.T) {
	k := newKEK(bytes.Repeat([]byte{7}, kekSize))
	keys := keyring.New(dedupe.DomainID{9})
	doc := wrap("v", keys, k, way{Kind: KindPlatform, KeyID: k.id}, time.Now())
	if got, err := doc.unwrap(k); err != nil || !bytes.Equal(got.Marshal(), keys.Marshal()) {
		t.Fatal(got, err)
	}
	changes := map[string]func(*wrapped){
		"domain":   func(w *wrapped) { w.Domain = strings.Repeat("0", 32) },
		"kind":     func(w *wrapped) { w.Kind = KindFile },
		"key id":   func(w *wrapped) { w.KeyID = "0" },
		"data key": func(w *wrapped) { w.DataKeyIDs = nil },
		"salt":     func(w *wrapped) { w.Salt = bytes.Clone(w.Salt); w.Salt[0]++ },
		"sealed":   func(w *wrapped) { w.Sealed = bytes.Clone(w.Sealed); w.Sealed[20]++ },
		"short":    func(w *wrapped) { w.Sealed = w.Sealed[:5] },
	}
	for name, change := range changes {
		other := *doc
		change(&other)
		if got, err := other.unwrap(k); !errors.Is(err, dedupe.ErrCorrupt) {
			t.Errorf("%s changed: %v, %v", name, got, err)
		}
	}
	if again := wrap("v", keys, k, doc.way, time.Now()); bytes.Equal(again.Sealed, doc.Sealed) || bytes.Equal(again.Salt, doc.Salt) {
		t.Error("wrapped twice to the same bytes")
	}
}

func TestKeyFilesInEverySpelling(t *testing.T) {
	s := newSite(t)
	raw := []byte("0123456789abcdefghijklmnopqrstuv-\xff\xfe")
	want, err := readKeyFile(s.write("raw", string(raw)))
	if err != nil {
		t.Fatal(err)
	}
	spellings := map[string]string{"hex": fmt.Sprintf("%x\n", raw), "HEX": fmt.Sprintf("%X", raw), "base64": base64Text(raw) + "\n"}
	for name, text := range spellings {
		if got, err := readKeyFile(s.write(name, text)); err != nil || got.id != want.id {
			t.Errorf("%s: key %s, want %s, %v", name, got.id, want.id, err)
		}
	}
	for name, text := range map[string]string{"empty": "", "31": strings.Repeat("-", 31), "large": strings.Repeat("x", maxKeyFile+1)} {
		if _, err := readKeyFile(s.write(name, text)); !errors.Is(err, appliance.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestSpecs(t *testing.T) {
	good := map[string]Spec{
		"": {Kind: KindPlatform}, "platform": {Kind: KindPlatform}, "none": {Kind: KindNone}, "/etc/x/../k": {Kind: KindFile, Source: "/etc/k"},
		"kms:https://kms.example/v1/transit/keys/k": {Kind: KindKMS, Source: "https://kms.example/transit/k"},
		"passphrase": {Kind: KindPassphrase, Passphrase: "long enough"},
	}
	for key, want := range good {
		pass := ""
		if key == "passphrase" {
			pass = "long enough"
		}
		if got, err := ParseSpec(key, pass); err != nil || got != want {
			t.Errorf("%q: %+v, %v", key, got, err)
		} else if again, err := ParseSpec(got.String(), pass); err != nil || again != got {
			t.Errorf("%q: printed as %q", key, got.String())
		}
	}
	for _, key := range []string{"passphrase", "key.bin", "./key", "kms:", "kms:http://kms.example/transit/k"} {
		if got, err := ParseSpec(key, "short"); !errors.Is(err, appliance.ErrInvalid) {
			t.Errorf("%q: %+v, %v", key, got, err)
		}
	}
}

func TestPlatformKeyIsNotMadeAnewWhileKeysNeedTheOldOne(t *testing.T) {
	s := newSite(t)
	keys := s.create("v", s.spec("", ""))
	away := s.opts.PlatformFile + ".away"
	if err := os.Rename(s.opts.PlatformFile, away); err != nil {
		t.Fatal(err)
	}
	s.restart()
	if _, err := s.tryCreate("w", s.spec("", "")); !errors.Is(err, dedupe.ErrNoKey) {
		t.Errorf("another vault's keys: %v", err)
	}
	if _, err := os.Stat(s.opts.PlatformFile); err == nil {
		t.Error("a new platform key stands in the old one's place")
	}
	if err := os.Rename(away, s.opts.PlatformFile); err != nil {
		t.Fatal(err)
	}
	s.open("v", keys)
	if s.create("w", s.spec("", "")); s.show("w").KeyID != s.show("v").KeyID {
		t.Error("two platform keys without a rotation")
	}
}

func TestServiceThatAnswersLaterOpensTheKeysLater(t *testing.T) {
	s := newSite(t)
	srv, url := kms(s, true)
	keys := s.create("v", s.spec(url, ""))
	srv.Change(func(st *transittest.State) { st.Sealed = true })
	s.refused("v", nil, "Vault is sealed", "asked again")
	srv.Change(func(st *transittest.State) { st.Sealed = false })
	got, err := s.vault("v").Open(ctx)
	if err != nil || !bytes.Equal(got[0].Marshal(), keys.Marshal()) {
		t.Fatal(got, err)
	}
}

func TestPrepareIsForTheNextOpen(t *testing.T) {
	s := newSite(t)
	srv, url := kms(s, false)
	keys := s.create("v", s.spec(url, ""))
	s.restart()
	v := s.vault("v")
	if err := v.Prepare(ctx); err != nil {
		t.Fatal(err)
	}
	srv.Change(func(st *transittest.State) { st.Sealed = true })
	if got, err := v.Open(ctx); err != nil || !bytes.Equal(got[0].Marshal(), keys.Marshal()) {
		t.Fatal(got, err)
	}
	s.restart()
	v = s.vault("v")
	if err := v.Prepare(ctx); err == nil {
		t.Fatal("prepared without the service")
	}
	srv.Change(func(st *transittest.State) { st.Sealed = false })
	if _, err := v.Open(ctx); err == nil {
		t.Error("the first Open asked the service")
	}
	if _, err := v.Open(ctx); err != nil {
		t.Errorf("the second Open: %v", err)
	}
}

func TestUnlock(t *testing.T) {
	s := newSite(t)
	keys := s.create("v", s.spec("passphrase", "correct horse battery"))
	s.refused("v", dedupe.ErrNoKey)
	if err := s.store.Unlock(ctx, "v", "wrong horse battery"); !errors.Is(err, dedupe.ErrWrongKey) {
		t.Errorf("%v", err)
	}
	if err := s.store.Unlock(ctx, "v", "correct horse battery"); err != nil {
		t.Fatal(err)
	}
	if got, err := s.vault("v").Open(ctx); err != nil || !bytes.Equal(got[0].Marshal(), keys.Marshal()) {
		t.Fatal(got, err)
	}
	if err := s.store.Unlock(ctx, "w", "x"); !errors.Is(err, appliance.ErrNotFound) {
		t.Errorf("%v", err)
	}
	if !NeedsPassphrase(s.opts.Dir) {
		t.Error("a start would not ask for the passphrase")
	}
	if s.create("w", s.spec("", "")); slices.ContainsFunc([]string{s.dir, filepath.Join(s.dir, "nothing")}, NeedsPassphrase) {
		t.Error("a start would ask for a passphrase for nothing")
	}
}

// Whoever has the files pays 64 MiB and three passes for each guess, and a file cannot make
// us pay without bounds.
func TestCostsOfAGuess(t *testing.T) {
	s := newSite(t)
	s.opts.argon2 = argon2Params{}
	s.restart()
	keys := s.create("v", s.spec("passphrase", "correct horse battery"))
	s.opts.Passphrases = []string{"correct horse battery"}
	s.open("v", keys)
	head, _, _, err := parseEscrow(s.backup("").File)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []*argon2Params{s.vault("v").domains[0].doc.Argon2, head.Argon2} {
		if p.Time < 3 || p.MemoryKiB < 64<<10 || len(p.Salt) < 16 {
			t.Errorf("%+v", p)
		}
	}
	salt := make([]byte, 16)
	for _, p := range []*argon2Params{nil, {Time: 1, MemoryKiB: 64, Threads: 1}, {salt, 0, 64, 1}, {salt, 1 << 20, 64, 1}, {salt, 1, 1 << 30, 1}, {salt, 1, 64, 0}} {
		if err := p.check(); !errors.Is(err, dedupe.ErrCorrupt) {
			t.Errorf("%+v: %v", p, err)
		}
	}
}
