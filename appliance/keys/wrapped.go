package keys

import (
	"bytes"
	"cmp"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/keelblock/keelblock/appliance/statefile"
	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/keyring"
)

const (
	wrappedKind   = "keys"
	wrappedSuffix = ".json"
	// nextSuffix is of a wrapped file that is being proved before it takes its place.
	nextSuffix = ".next"
	// replacedSuffix is of a wrapped file that could not be opened when keys were restored.
	replacedSuffix = ".replaced"
)

// wrapped is the document of a wrapped file: the keys of one domain, sealed, and the way
// to the key that opens them.
type wrapped struct {
	Domain string `json:"domain"`
	Vault  string `json:"vault"` // its name when they were wrapped
	way
	Salt   []byte `json:"salt"`
	Sealed []byte `json:"sealed"`
	// DataKeyIDs are told in clear, so that a file that cannot be opened shows what it has.
	DataKeyIDs []string  `json:"dataKeyIds"`
	WrappedAt  time.Time `json:"wrappedAt"`
	// BackedUpAt is when these keys were saved in an escrow file; null: never.
	BackedUpAt *time.Time `json:"backedUpAt"`
}

// associated is what is authenticated with the sealed keys: a file's keys cannot be put
// into the file of another domain, nor be said to be wrapped by another kind of key.
func (w *wrapped) associated() []byte {
	return fmt.Appendf(nil, "keelblock wrapped keys 1\n%s\n%s\n%s\n%s\n", w.Domain, w.Kind, w.KeyID, strings.Join(w.DataKeyIDs, " "))
}

// aead is AES-256-GCM under a key that is made for this file alone, by its salt, so that
// no nonce can be used twice with one key.
func (w *wrapped) aead(k kek) cipher.AEAD {
	key := keyring.Derive(k.secret, labelWrap, w.Salt, kekSize)
	defer clear(key)
	return newAEAD(key)
}

func newAEAD(key []byte) cipher.AEAD {
	block, err := aes.NewCipher(key)
	if err == nil {
		var a cipher.AEAD
		if a, err = cipher.NewGCMWithRandomNonce(block); err == nil {
			return a
		}
	}
	panic("keys: " + err.Error()) // of a key of 32 bytes: never
}

// wrap seals keys.
func wrap(vault string, keys *keyring.Keys, k kek, w way, now time.Time) *wrapped {
	d := keys.Domain()
	doc := &wrapped{Domain: hex.EncodeToString(d[:]), Vault: vault, way: w, Salt: make([]byte, 32), DataKeyIDs: dataKeyIDs(keys),
		WrappedAt: now.UTC().Truncate(time.Second)}
	rand.Read(doc.Salt) // never fails
	plain := keys.Marshal()
	defer clear(plain)
	doc.Sealed = doc.aead(k).Seal(nil, nil, plain, doc.associated())
	return doc
}

// unwrap opens keys. A key that has the right id and does not open them means damage.
func (w *wrapped) unwrap(k kek) (*keyring.Keys, error) {
	plain, err := w.aead(k).Open(nil, nil, w.Sealed, w.associated())
	if err != nil {
		return nil, fmt.Errorf("wrapped keys of domain %s: they do not open under their own key: %w", w.Domain, dedupe.ErrCorrupt)
	}
	defer clear(plain)
	keys, err := keyring.Unmarshal(plain)
	if err != nil {
		return nil, err
	}
	if d := keys.Domain(); hex.EncodeToString(d[:]) != w.Domain {
		return nil, fmt.Errorf("wrapped keys of domain %s are those of domain %x: %w", w.Domain, d, dedupe.ErrCorrupt)
	}
	return keys, nil
}

func dataKeyIDs(keys *keyring.Keys) []string {
	var out []string
	for _, id := range keys.DataKeys() {
		out = append(out, hex.EncodeToString(id[:]))
	}
	return out
}

// found is a wrapped file that was read and verifies.
type found struct {
	*wrapped
	path   string
	serial uint64
	whole  bool // both its copies verify
}

// wrappedPath is the wrapped file of a domain in a folder.
func wrappedPath(dir string, domain dedupe.DomainID) string {
	return filepath.Join(dir, hex.EncodeToString(domain[:])+wrappedSuffix)
}

// vaultKeysDir is where a vault carries its wrapped keys.
func vaultKeysDir(vault string) string { return filepath.Join(vault, "keys") }

// read gives the wrapped files of a domain in the folders, the newest first, and what is
// wrong with the others.
func read(domain dedupe.DomainID, dirs ...string) (list []found, damage error) {
	for _, dir := range dirs {
		path := wrappedPath(dir, domain)
		doc := new(wrapped)
		l, err := statefile.Load(path, wrappedKind, doc)
		switch {
		case err != nil:
			damage = errors.Join(damage, err)
		case l.Serial == 0:
		case doc.Domain != hex.EncodeToString(domain[:]):
			damage = errors.Join(damage, fmt.Errorf("%s has the keys of domain %s: %w", path, doc.Domain, dedupe.ErrCorrupt))
		default:
			damage = errors.Join(damage, l.Damage)
			list = append(list, found{doc, path, l.Serial, l.Damage == nil})
		}
	}
	slices.SortStableFunc(list, func(a, b found) int { return cmp.Compare(b.serial, a.serial) })
	return list, damage
}

// readAll gives every wrapped file of a folder, the unfinished ones too. complete is false
// when one could not be read.
func readAll(dir string) (list []found, complete bool) {
	entries, err := os.ReadDir(dir)
	complete = err == nil || errors.Is(err, fs.ErrNotExist)
	for _, e := range entries {
		name := strings.TrimSuffix(e.Name(), replacedSuffix)
		if name = strings.TrimSuffix(name, nextSuffix); !strings.HasSuffix(name, wrappedSuffix) {
			continue
		}
		doc := new(wrapped)
		l, err := statefile.Load(filepath.Join(dir, e.Name()), wrappedKind, doc)
		if err != nil || l.Serial == 0 {
			complete = false
			continue
		}
		list = append(list, found{doc, filepath.Join(dir, e.Name()), l.Serial, l.Damage == nil})
	}
	return list, complete
}

// keep makes a wrapped file durable at each of its places, the old ones being touched only
// after the new one was written beside them, read back and opened by prove. A kill at any
// instant leaves an old or the new one whole in every place.
func (s *Store) keep(ctx context.Context, doc *wrapped, domain dedupe.DomainID, prove func(context.Context, *wrapped) error, dirs ...string) error {
	list, _ := read(domain, dirs...)
	serial := uint64(1)
	if len(list) > 0 {
		serial = list[0].serial + 1
	}
	next := wrappedPath(dirs[0], domain) + nextSuffix
	if err := s.save(next, serial, doc); err != nil {
		return err
	}
	var back wrapped
	if _, err := statefile.Load(next, wrappedKind, &back); err != nil {
		return fmt.Errorf("read the wrapped keys back: %w", err)
	}
	if !bytes.Equal(back.Sealed, doc.Sealed) {
		return fmt.Errorf("read the wrapped keys back from %s: %w", next, dedupe.ErrCorrupt)
	}
	if err := prove(ctx, &back); err != nil {
		return errors.Join(fmt.Errorf("open the newly wrapped keys: %w", err), statefile.Remove(next))
	}
	for _, dir := range dirs {
		if err := s.save(wrappedPath(dir, domain), serial, doc); err != nil {
			return err
		}
	}
	if err := s.o.hook("remove " + filepath.Base(next)); err != nil {
		return err
	}
	return statefile.Remove(next)
}

// save writes one wrapped file, and its folder at the first time.
func (s *Store) save(path string, serial uint64, doc *wrapped) error {
	dir := filepath.Dir(path)
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		if err := errors.Join(os.Mkdir(dir, 0o700), statefile.SyncDir(filepath.Dir(dir))); err != nil {
			return fmt.Errorf("make the folder of wrapped keys: %w", err)
		}
	}
	if err := s.o.hook("save " + path); err != nil {
		return err
	}
	return statefile.Save(path, wrappedKind, serial, doc)
}
