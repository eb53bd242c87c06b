package keys

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/keelblock/keelblock/appliance"
	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/blockstore"
	"github.com/keelblock/keelblock/dedupe/keyring"
	"github.com/keelblock/keelblock/dedupe/pack"
)

// Options of a Store. Dir and PlatformFile are required.
type Options struct {
	// Dir holds a copy of every wrapped file.
	Dir string
	// PlatformFile holds the appliance's own keys.
	PlatformFile string
	// SiteID and SiteName are told in escrow files.
	SiteID, SiteName string
	// Identity gives what makes the appliance the same one again on an empty data folder; it
	// is sealed in escrow files. nil: there is none.
	Identity func() (json.RawMessage, error)
	// Passphrases are tried for keys that are wrapped by one.
	Passphrases []string
	// KMS is how a key-management service is spoken to.
	KMS KMS
	// Logger; nil: silent.
	Logger *slog.Logger
	// Now is the clock; nil: time.Now.
	Now func() time.Time

	// hook, when not nil, is called before each step that changes a file: tests kill the
	// process here.
	hook func(step string) error
	// argon2, when not zero, has the costs of new passphrases and secrets: tests take less.
	argon2 argon2Params
}

// KMS is how key-management services are spoken to.
type KMS struct {
	// Token is asked for at each request.
	Token func() (string, error)
	// CACertFile is PEM: who signs the service's certificate. "": the system's authorities.
	CACertFile string
	// Namespace where the address of a key names none.
	Namespace string
	// Timeout of one attempt and Backoff before the second; zero: those of package transit.
	Timeout, Backoff time.Duration
}

// Store keeps the wrapped keys of a site. All methods may be called from any number of
// goroutines.
type Store struct {
	o        Options
	platform platformFile

	// op is held by whatever reads or writes wrapped files, also while a key-management
	// service is asked or a passphrase is stretched: these things are rare, and two of them
	// at once would wrap over each other. It is taken before mu.
	op sync.Mutex

	mu      sync.Mutex // guards what follows, and the state of each Vault
	vaults  []*Vault   // by name
	backups map[string]pending
}

// New returns a Store. It touches nothing.
func New(o Options) *Store {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.hook == nil {
		o.hook = func(string) error { return nil }
	}
	if o.argon2.Time == 0 {
		o.argon2 = argon2Params{Time: argon2Time, MemoryKiB: argon2MemoryKiB, Threads: argon2Threads}
	}
	if o.KMS.Token == nil {
		o.KMS.Token = func() (string, error) { return "", errors.New("there is no token for the key-management service") }
	}
	return &Store{o: o, platform: platformFile{o.PlatformFile, o.hook}, backups: map[string]pending{}}
}

// Vault is the keys of one vault.
type Vault struct {
	s    *Store
	name string
	dir  string
	spec Spec

	// Guarded by s.mu.
	asked   bool // its superblock was read, or its keys were made
	domains []*domain
	ready   *result // of Prepare, for the next Open
}

// domain is a key domain of a vault.
type domain struct {
	id        dedupe.DomainID
	encrypted bool
	check     pack.KeyCheck
	doc       *wrapped      // nil: there is no wrapped file
	keys      *keyring.Keys // nil: not available
	reason    error         // why not
}

type result struct {
	keys []*keyring.Keys
	err  error
}

// Vault gives the keys of the vault in the folder dir. spec is what wraps them if they are
// still to be made. Calls with the same name give the same Vault.
func (s *Store) Vault(name, dir string, spec Spec) *Vault {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, v := range s.vaults {
		if v.name == name {
			return v
		}
	}
	v := &Vault{s: s, name: name, dir: dir, spec: spec}
	s.vaults = append(s.vaults, v)
	slices.SortFunc(s.vaults, func(a, b *Vault) int { return strings.Compare(a.name, b.name) })
	return v
}

// Forget ends the knowledge of a vault that was not made in the end. Its files stay.
func (v *Vault) Forget() {
	v.s.mu.Lock()
	defer v.s.mu.Unlock()
	v.s.vaults = slices.DeleteFunc(v.s.vaults, func(o *Vault) bool { return o == v })
}

// find gives a vault by its name.
func (s *Store) find(name string) (*Vault, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, v := range s.vaults {
		if v.name == name {
			return v, nil
		}
	}
	return nil, appliance.NotFound("find the keys of a vault", "vault", name)
}

// list is all vaults.
func (s *Store) list() []*Vault {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.vaults)
}

// dirs are the places of a vault's wrapped files. The site's comes first: it is read and
// written also while the vault's disk is away.
func (v *Vault) dirs() []string { return []string{v.s.o.Dir, vaultKeysDir(v.dir)} }

// Make makes the keys of a new vault that is being made in the folder unborn, and has them
// wrapped and durable when it returns. nil: the vault is not to be encrypted.
func (v *Vault) Make(ctx context.Context, unborn string) (*keyring.Keys, error) {
	s := v.s
	s.op.Lock()
	defer s.op.Unlock()
	if v.spec.Kind == KindNone {
		return nil, nil
	}
	keys := keyring.New(newDomain())
	k, w, err := s.makeKEK(ctx, v.spec, false)
	if err == nil {
		doc := wrap(v.name, keys, k, w, s.o.Now())
		err = s.keep(ctx, doc, keys.Domain(), s.prover(v.spec), s.o.Dir, vaultKeysDir(unborn))
		if err == nil {
			s.mu.Lock()
			defer s.mu.Unlock()
			v.asked, v.domains = true, []*domain{{id: keys.Domain(), encrypted: true, check: keys.Check(), doc: doc, keys: keys}}
			return keys, nil
		}
	}
	return nil, v.failed("make the keys", err)
}

// prover opens wrapped keys again by the way that a later start takes.
func (s *Store) prover(spec Spec) func(context.Context, *wrapped) error {
	return func(ctx context.Context, doc *wrapped) error {
		var given []string
		if spec.Passphrase != "" {
			given = []string{spec.Passphrase}
		}
		k, err := s.openKEK(ctx, doc.way, slices.Concat(given, s.o.Passphrases))
		if err == nil {
			_, err = doc.unwrap(k)
		}
		return err
	}
}

func (v *Vault) failed(op string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s of vault %s: %w", op, v.name, err)
}

// Prepare opens the keys for the next call of Open, which then neither waits for a
// key-management service nor stretches a passphrase: the vault's opening is guarded by a
// marker that counts a kill as a death.
//
// A vault that is not there yet has no keys to open, and Open is not called before Make.
func (v *Vault) Prepare(ctx context.Context) error {
	if _, err := os.Stat(filepath.Join(v.dir, "superblock")); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	keys, err := v.open(ctx, nil)
	v.s.mu.Lock()
	defer v.s.mu.Unlock()
	v.ready = &result{keys, err}
	return err
}

// Open gives the keys of the vault's domains, none when it is not encrypted. It makes
// none: a vault whose keys cannot be had is an error that says why, and what to do.
func (v *Vault) Open(ctx context.Context) ([]*keyring.Keys, error) {
	v.s.mu.Lock()
	r := v.ready
	v.ready = nil
	v.s.mu.Unlock()
	if r != nil {
		return r.keys, r.err
	}
	return v.open(ctx, nil)
}

// Prepare is Vault.Prepare of the vault of a name.
func (s *Store) Prepare(ctx context.Context, vault string) error {
	v, err := s.find(vault)
	if err != nil {
		return err
	}
	return v.Prepare(ctx)
}

// Unlock opens the keys with a passphrase that was not given at the start.
func (s *Store) Unlock(ctx context.Context, vault, passphrase string) error {
	v, err := s.find(vault)
	if err != nil {
		return err
	}
	_, err = v.open(ctx, []string{passphrase})
	return err
}

func (v *Vault) open(ctx context.Context, passphrases []string) ([]*keyring.Keys, error) {
	v.s.op.Lock()
	defer v.s.op.Unlock()
	if err := v.ask(); err != nil {
		return nil, err
	}
	var keys []*keyring.Keys
	for _, d := range v.encrypted() {
		if d.keys == nil {
			doc, k, err := v.unwrapDomain(ctx, d, slices.Concat(passphrases, v.s.o.Passphrases))
			v.s.mu.Lock()
			d.reason = v.failed("open the keys", err)
			if doc != nil {
				d.doc = doc
			}
			d.keys = k
			v.s.mu.Unlock()
			if err != nil {
				return nil, d.reason
			}
		}
		keys = append(keys, d.keys)
	}
	return keys, nil
}

// ask reads which domains the vault has. What is known of a domain stays.
func (v *Vault) ask() error {
	all, err := blockstore.Domains(v.dir)
	if err != nil {
		return v.failed("read the key domains", err)
	}
	v.s.mu.Lock()
	defer v.s.mu.Unlock()
	known := v.domains
	v.asked, v.domains = true, nil
	for _, pd := range all {
		d := &domain{id: pd.ID}
		if i := slices.IndexFunc(known, func(d *domain) bool { return d.id == pd.ID }); i >= 0 {
			d = known[i]
		}
		d.encrypted, d.check = pd.Encrypted(), pd.Check
		v.domains = append(v.domains, d)
	}
	return nil
}

// encrypted are the domains that have keys.
func (v *Vault) encrypted() []*domain {
	v.s.mu.Lock()
	defer v.s.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(v.domains), func(d *domain) bool { return !d.encrypted })
}

// unwrapDomain opens the newest wrapped file of a domain, or an older one that has the
// same keys, and brings all places up to the one that was opened.
func (v *Vault) unwrapDomain(ctx context.Context, d *domain, passphrases []string) (*wrapped, *keyring.Keys, error) {
	list, damage := read(d.id, v.dirs()...)
	if len(list) == 0 {
		if damage != nil {
			return nil, nil, noKey("the files with its wrapped keys are damaged: "+strings.ReplaceAll(damage.Error(), "\n", "; "), "run keelblock key restore FILE")
		}
		return nil, nil, noKey(fmt.Sprintf("there are no wrapped keys of domain %x in %s", d.id, strings.Join(v.dirs(), " and ")),
			"put one of these folders back from a copy, or run keelblock key restore FILE")
	}
	if damage != nil {
		v.s.o.Logger.Warn("a file with wrapped keys is damaged", "vault", v.name, "error", damage)
	}
	var first error
	for _, f := range list {
		if !slices.Equal(f.DataKeyIDs, list[0].DataKeyIDs) {
			break // older, and without a data key that may have sealed records since
		}
		k, err := v.s.openKEK(ctx, f.way, passphrases)
		var keys *keyring.Keys
		if err == nil {
			keys, err = f.unwrap(k)
		}
		if err == nil && keys.Check() != d.check {
			err = wrongKey(f.path+" has other keys than the vault was made with", "run keelblock key restore FILE")
		}
		if err == nil {
			v.heal(f, list, d)
			return f.wrapped, keys, nil
		}
		if first == nil {
			first = err
		}
	}
	return list[0].wrapped, nil, first
}

// heal copies the wrapped file that was opened to the places where it is missing, damaged
// or older. A failure is told and no more: the keys are there. A file that is newer than
// the one that was opened stays as it is: its key may only be away for now.
func (v *Vault) heal(good found, list []found, d *domain) {
	newest := list[0].serial
	if good.serial != newest {
		v.s.o.Logger.Warn("the newest file with wrapped keys cannot be opened; an older one with the same keys can", "vault", v.name)
		return
	}
	for _, dir := range v.dirs() {
		path := wrappedPath(dir, d.id)
		if slices.ContainsFunc(list, func(f found) bool { return f.path == path && f.serial == newest && f.whole }) {
			continue
		}
		if err := v.s.save(path, newest, good.wrapped); err != nil {
			v.s.o.Logger.Warn("a copy of the wrapped keys cannot be written", "vault", v.name, "error", err)
		}
	}
}

// platformUsed are the ids of platform keys that something is wrapped by, as far as can
// be seen.
func (s *Store) platformUsed() map[string]bool {
	used, _ := s.usedBy()
	return used
}

// usedBy is platformUsed, and whether everything could be seen.
func (s *Store) usedBy() (used map[string]bool, complete bool) {
	used, complete = map[string]bool{}, true
	dirs := []string{s.o.Dir}
	for _, v := range s.list() {
		dirs = append(dirs, vaultKeysDir(v.dir))
	}
	for _, dir := range dirs {
		list, ok := readAll(dir)
		complete = complete && ok
		for _, f := range list {
			if f.Kind == KindPlatform {
				used[f.KeyID] = true
			}
		}
	}
	return used, complete
}

// Domain is what an operator may know of the keys of a domain.
type Domain struct {
	Vault     string
	ID        dedupe.DomainID
	Kind      Kind
	Source    string
	KeyID     string
	DataKeys  []string
	WrappedAt time.Time
	// BackedUpAt is when these very keys were saved in an escrow file; zero: never.
	BackedUpAt time.Time
	Available  bool
	Reason     error // why they are not available
}

// Unsaved reports whether the keys are here and in no escrow file: an operator who loses
// them loses the vault.
func (d Domain) Unsaved() bool { return d.Kind != KindNone && d.Available && d.BackedUpAt.IsZero() }

// Show lists the domains of all vaults. It never waits.
func (s *Store) Show() []Domain {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []Domain
	for _, v := range s.vaults {
		for _, d := range v.domains {
			out = append(out, v.describe(d))
		}
	}
	return out
}

func (v *Vault) describe(d *domain) Domain {
	out := Domain{Vault: v.name, ID: d.id, Kind: KindNone, Available: true}
	if !d.encrypted {
		return out
	}
	out.Kind, out.Available, out.Reason = "", d.keys != nil, d.reason
	if w := d.doc; w != nil {
		out.Kind, out.Source, out.KeyID, out.DataKeys, out.WrappedAt = w.Kind, w.Source, w.wrappingKey(), w.DataKeyIDs, w.WrappedAt
		if w.BackedUpAt != nil {
			out.BackedUpAt = *w.BackedUpAt
		}
	}
	return out
}

// wrappingKey names the key that wraps: of a service, its name and version.
func (w *wrapped) wrappingKey() string {
	if w.Kind == KindKMS {
		return serviceKeyName(w.Source, w.EncryptedKey)
	}
	return w.KeyID
}

// NeedsPassphrase says whether keys in a folder are wrapped by a passphrase, before a
// daemon is started on it.
func NeedsPassphrase(dir string) bool {
	list, _ := readAll(dir)
	return slices.ContainsFunc(list, func(f found) bool { return f.Kind == KindPassphrase && filepath.Ext(f.path) == wrappedSuffix })
}

func newDomain() (id dedupe.DomainID) {
	rand.Read(id[:]) // never fails
	return id
}
