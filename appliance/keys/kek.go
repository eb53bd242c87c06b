package keys

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/crypto/argon2"

	"github.com/keelblock/keelblock/appliance"
	"github.com/keelblock/keelblock/appliance/transit"
	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/keyring"
)

// kekSize is the size of every key-encryption key, whatever it was made of.
const kekSize = 32

// The purposes of keys that are derived here.
const (
	labelKEKID   keyring.Label = "key-encryption key id"
	labelKeyFile keyring.Label = "key file"
	labelWrap    keyring.Label = "wrapping"
)

// kek is an open key-encryption key.
type kek struct {
	id     string // says which it is, and nothing about it
	secret []byte
}

func newKEK(secret []byte) kek {
	return kek{id: hex.EncodeToString(keyring.Derive(secret, labelKEKID, nil, 8)), secret: secret}
}

func noKey(text, hint string) error {
	return &appliance.Error{Kind: appliance.ErrUnavailable, Err: dedupe.ErrNoKey, Text: text, Hint: hint}
}

func wrongKey(text, hint string) error {
	return &appliance.Error{Kind: appliance.ErrUnavailable, Err: dedupe.ErrWrongKey, Text: text, Hint: hint}
}

// way is what a wrapped file keeps, so that its key-encryption key is found again.
type way struct {
	Kind   Kind   `json:"kind"`
	Source string `json:"source,omitempty"`
	// KeyID of the key-encryption key.
	KeyID string `json:"keyId"`
	// Argon2 has the parameters of a passphrase.
	Argon2 *argon2Params `json:"argon2,omitempty"`
	// EncryptedKey is the key-encryption key as the service gave it.
	EncryptedKey string `json:"encryptedKey,omitempty"`
}

// makeKEK makes or fetches the key-encryption key that a Spec names, and the way back to it.
// With fresh, a platform key is made even when there is one.
func (s *Store) makeKEK(ctx context.Context, spec Spec, fresh bool) (kek, way, error) {
	w := way{Kind: spec.Kind, Source: spec.Source}
	var k kek
	var err error
	switch spec.Kind {
	case KindPlatform:
		k, err = s.platformKEK(fresh)
	case KindFile:
		k, err = readKeyFile(spec.Source)
	case KindPassphrase:
		w.Argon2 = s.newArgon2Params()
		k = w.Argon2.kek(spec.Passphrase)
	case KindKMS:
		secret := make([]byte, kekSize)
		rand.Read(secret) // never fails
		k = newKEK(secret)
		w.EncryptedKey, err = s.encrypt(ctx, spec.Source, secret)
	default:
		err = fmt.Errorf("no key is of kind %q", spec.Kind)
	}
	w.KeyID = k.id
	return k, w, err
}

// platformKEK gives the newest platform key, or makes one.
func (s *Store) platformKEK(fresh bool) (kek, error) {
	if !fresh {
		k, err := s.platform.newest()
		if !errors.Is(err, fs.ErrNotExist) {
			return k, err
		}
		// The file may only be away. A new one in its place would be in the way of the old.
		if used := s.platformUsed(); len(used) > 0 {
			return k, noKey(s.platform.path+" is missing, and keys are wrapped by it", "put it back from a copy, or run keelblock key restore FILE")
		}
	}
	return s.platform.add(s.o.Now())
}

// openKEK goes the way back to a key-encryption key. Passphrases are those to try.
func (s *Store) openKEK(ctx context.Context, w way, passphrases []string) (kek, error) {
	var k kek
	var err error
	switch w.Kind {
	case KindPlatform:
		return s.platform.find(w.KeyID)
	case KindFile:
		k, err = readKeyFile(w.Source)
	case KindPassphrase:
		return w.tryPassphrases(passphrases)
	case KindKMS:
		var secret []byte
		if secret, err = s.decrypt(ctx, w.Source, w.EncryptedKey); err == nil {
			k = newKEK(secret)
		}
	default:
		return k, fmt.Errorf("key-encryption key of kind %q: %w", w.Kind, dedupe.ErrUnknownFormat)
	}
	if err != nil {
		return kek{}, err
	}
	if k.id != w.KeyID {
		return kek{}, wrongKey(fmt.Sprintf("%s has key %s, and the vault's keys are wrapped by key %s", w.Source, k.id, w.KeyID),
			"put the right one there, or run keelblock key restore FILE")
	}
	return k, nil
}

func (w way) tryPassphrases(passphrases []string) (kek, error) {
	if len(passphrases) == 0 {
		return kek{}, noKey("its passphrase was not given",
			"run keelblock key unlock, or start the daemon with $KEELBLOCK_PASSPHRASE or --passphrase-file")
	}
	if err := w.Argon2.check(); err != nil {
		return kek{}, err
	}
	for _, p := range passphrases {
		if k := w.Argon2.kek(p); k.id == w.KeyID {
			return k, nil
		}
	}
	return kek{}, wrongKey("the passphrase is not the one", "run keelblock key unlock")
}

// argon2Params of a passphrase or a recovery secret.
type argon2Params struct {
	Salt      []byte `json:"salt"`
	Time      uint32 `json:"time"`
	MemoryKiB uint32 `json:"memoryKiB"`
	Threads   uint8  `json:"threads"`
}

// The costs of RFC 9106, section 4, second choice: 64 MiB, three passes, four lanes. A guess
// costs some 0.1 s of a core here.
const (
	argon2Time      = 3
	argon2MemoryKiB = 64 << 10
	argon2Threads   = 4
)

// newArgon2Params are the costs of a new passphrase or secret, with a salt of its own.
func (s *Store) newArgon2Params() *argon2Params {
	p := s.o.argon2
	p.Salt = make([]byte, 16)
	rand.Read(p.Salt) // never fails
	return &p
}

// check bounds what a file may make us work.
func (p *argon2Params) check() error {
	if p == nil || len(p.Salt) < 8 || len(p.Salt) > 64 || p.Time < 1 || p.Time > 64 || p.MemoryKiB < 8 || p.MemoryKiB > 1<<20 || p.Threads < 1 {
		return fmt.Errorf("parameters of Argon2: %w", dedupe.ErrCorrupt)
	}
	return nil
}

func (p *argon2Params) kek(passphrase string) kek {
	return newKEK(argon2.IDKey([]byte(passphrase), p.Salt, p.Time, p.MemoryKiB, p.Threads, kekSize))
}

// Limits of a key file, in bytes.
const (
	minKeyFile = 32
	maxKeyFile = 1 << 20
)

// readKeyFile makes the key-encryption key of a customer's file: of the bytes that it
// spells in hexadecimal or base64, else of its bytes.
func readKeyFile(path string) (kek, error) {
	f, err := os.Open(path)
	if err != nil {
		return kek{}, &appliance.Error{Op: "read the key file", Kind: appliance.ErrUnavailable, Err: fmt.Errorf("%w: %w", dedupe.ErrNoKey, err),
			Hint: "put it there, or run keelblock key restore FILE"}
	}
	defer f.Close() // only read
	data, err := io.ReadAll(io.LimitReader(f, maxKeyFile+1))
	if err != nil {
		return kek{}, fmt.Errorf("read the key file: %w", err)
	}
	defer clear(data)
	bad := func(text string) (kek, error) {
		return kek{}, &appliance.Error{Op: "read the key file", Kind: appliance.ErrInvalid, Text: path + ": " + text,
			Hint: "make one with: head -c 32 /dev/urandom > FILE"}
	}
	if len(data) > maxKeyFile {
		return bad("it has more than 1 MiB")
	}
	secret := spelled(data)
	if len(secret) < minKeyFile {
		return bad(fmt.Sprintf("it has %d bytes, and a key has at least %d", len(secret), minKeyFile))
	}
	return newKEK(keyring.Derive(secret, labelKeyFile, nil, kekSize)), nil
}

// spelled gives the bytes that text spells, when they are enough for a key.
func spelled(data []byte) []byte {
	text := strings.TrimSpace(string(data))
	if b, err := hex.DecodeString(text); err == nil && len(b) >= minKeyFile {
		return b
	}
	for _, e := range []*base64.Encoding{base64.StdEncoding, base64.RawStdEncoding, base64.URLEncoding, base64.RawURLEncoding} {
		if b, err := e.DecodeString(text); err == nil && len(b) >= minKeyFile {
			return b
		}
	}
	return data
}

// service is the client of a key that a service keeps.
func (s *Store) service(source string) (*transit.Client, error) {
	k, err := transit.ParseURL(source)
	if err != nil {
		return nil, err
	}
	if k.Namespace == "" {
		k.Namespace = s.o.KMS.Namespace
	}
	o := transit.Options{Token: s.o.KMS.Token, Timeout: s.o.KMS.Timeout, Backoff: s.o.KMS.Backoff}
	if s.o.KMS.CACertFile != "" {
		if o.CACert, err = os.ReadFile(s.o.KMS.CACertFile); err != nil {
			return nil, fmt.Errorf("read the authority of the key-management service: %w", err)
		}
	}
	return transit.New(k, o)
}

// kmsError says what to do about what the service answered.
func kmsError(err error) error {
	e := &appliance.Error{Kind: appliance.ErrUnavailable, Err: err}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, transit.ErrUnreachable):
		e.Hint = "it is asked again until it answers; check that it runs and is unsealed"
	case errors.Is(err, transit.ErrDenied):
		e.Hint = "check the token ($VAULT_TOKEN or --kms-token-file), its policy, the namespace and the authority (--kms-ca-cert)"
	default:
		e.Hint = "check the address of the key; without the service's key, run keelblock key restore FILE"
	}
	return e
}

func (s *Store) encrypt(ctx context.Context, source string, secret []byte) (string, error) {
	c, err := s.service(source)
	if err != nil {
		return "", kmsError(err)
	}
	text, err := c.Encrypt(ctx, secret)
	return text, kmsError(err)
}

func (s *Store) decrypt(ctx context.Context, source, text string) ([]byte, error) {
	c, err := s.service(source)
	if err != nil {
		return nil, kmsError(err)
	}
	secret, err := c.Decrypt(ctx, text)
	if err == nil && len(secret) != kekSize {
		err = fmt.Errorf("decrypt with key %s: it gave %d bytes: %w", source, len(secret), dedupe.ErrCorrupt)
	}
	return secret, kmsError(err)
}

// rewrap has the service encrypt the same key-encryption key with its newest version.
func (s *Store) rewrap(ctx context.Context, w way) (way, error) {
	c, err := s.service(w.Source)
	if err != nil {
		return w, kmsError(err)
	}
	w.EncryptedKey, err = c.Rewrap(ctx, w.EncryptedKey)
	return w, kmsError(err)
}

// serviceKeyName is the name of a service's key, with the version that encrypted.
func serviceKeyName(source, text string) string {
	k, err := transit.ParseURL(source)
	version, err2 := transit.Version(text)
	if err != nil || err2 != nil {
		return ""
	}
	return k.Name + ":" + version
}
