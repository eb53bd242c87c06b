package keys

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/argon2"

	"github.com/keelblock/keelblock/appliance"
	"github.com/keelblock/keelblock/appliance/statefile"
	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/keyring"
)

// The classes of errors of Restore.
var (
	// ErrWrongSecret: the recovery secret does not open the escrow file.
	ErrWrongSecret = errors.New("wrong recovery secret")
	// ErrOtherSite: the escrow file has no keys of a vault that is here.
	ErrOtherSite = errors.New("keys of another site")
)

const (
	escrowMagic   = "keelblock-escrow"
	escrowVersion = "2"
	// escrowVersion1 had the keys alone.
	escrowVersion1 = "1"
	// MaxEscrowBytes bounds an escrow file; a domain takes at most 6 KiB.
	MaxEscrowBytes = 1 << 20
)

// escrowHead is what an escrow file tells without the secret. It is authenticated with the
// keys.
type escrowHead struct {
	SiteID    string        `json:"siteId"`
	SiteName  string        `json:"siteName"`
	CreatedAt time.Time     `json:"createdAt"`
	Vaults    []string      `json:"vaults"`
	Domains   []string      `json:"domains"`
	Argon2    *argon2Params `json:"argon2"`
}

// escrowKeys are the keys of one domain.
type escrowKeys struct {
	Vault  string `json:"vault"`
	Domain string `json:"domain"`
	Keys   []byte `json:"keys"`
}

// escrowPlain is what is sealed.
type escrowPlain struct {
	Keys []escrowKeys `json:"keys"`
	// Identity is that of Options.Identity, if it could be had.
	Identity json.RawMessage `json:"identity,omitempty"`
}

// Escrow is a backup of keys.
type Escrow struct {
	// ID for Confirm.
	ID string
	// File is the contents of the escrow file.
	File []byte
	// Secret opens it. It is kept nowhere.
	Secret string
	// Domains are how many are in it.
	Domains int
	// Missing are the vaults whose keys are not available, and not in it.
	Missing []string
	// NoIdentity is why the appliance's identity is not in it, or nil.
	NoIdentity error
}

// pending is a backup that was made, but perhaps not written yet.
type pending struct {
	at       time.Time
	dataKeys map[dedupe.DomainID][]string
}

// Backup seals the keys of all vaults under a recovery secret: the one given, or a new one.
// The keys count as saved when Confirm says that the file is on disk.
func (s *Store) Backup(secret string) (*Escrow, error) {
	const op = "back up the keys"
	s.op.Lock()
	defer s.op.Unlock()
	if secret == "" {
		secret = newSecret()
	} else if secret, _ = canonical(secret); len(secret) < minPassphrase {
		return nil, &appliance.Error{Op: op, Kind: appliance.ErrInvalid, Text: fmt.Sprintf("a recovery secret has at least %d characters", minPassphrase)}
	}
	out := &Escrow{Secret: secret}
	now := s.o.Now().UTC().Truncate(time.Second)
	head := escrowHead{SiteID: s.o.SiteID, SiteName: s.o.SiteName, CreatedAt: now, Vaults: []string{}, Domains: []string{}, Argon2: s.newArgon2Params()}
	p := pending{at: now, dataKeys: map[dedupe.DomainID][]string{}}
	var list []escrowKeys
	defer func() {
		for _, k := range list {
			clear(k.Keys)
		}
	}()
	for _, v := range s.list() {
		for _, d := range v.encrypted() {
			if d.keys == nil {
				out.Missing = append(out.Missing, v.name)
				continue
			}
			k := escrowKeys{Vault: v.name, Domain: hex.EncodeToString(d.id[:]), Keys: d.keys.Marshal()}
			list, head.Vaults, head.Domains = append(list, k), append(head.Vaults, v.name), append(head.Domains, k.Domain)
			p.dataKeys[d.id] = dataKeyIDs(d.keys)
		}
	}
	switch {
	case len(list) == 0 && len(out.Missing) > 0:
		return nil, &appliance.Error{Op: op, Kind: appliance.ErrUnavailable,
			Text: "the keys of vault " + strings.Join(out.Missing, ", ") + " are not available", Hint: "see keelblock key show"}
	case len(list) == 0:
		return nil, &appliance.Error{Op: op, Kind: appliance.ErrInvalid, Text: "no vault is encrypted, so there are no keys"}
	}
	plain := escrowPlain{Keys: list}
	defer func() { clear(plain.Identity) }()
	if s.o.Identity != nil {
		plain.Identity, out.NoIdentity = s.o.Identity()
	}
	var err error
	if out.File, err = sealEscrow(head, plain, secret); err != nil {
		return nil, fmt.Errorf("%s: %w", op, err)
	}
	sum := sha256.Sum256(out.File)
	out.ID, out.Domains = hex.EncodeToString(sum[:16]), len(list)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.backups[out.ID] = p
	return out, nil
}

// Confirm notes that an escrow file is on disk: its keys are saved, unless a data key was
// added since.
func (s *Store) Confirm(ctx context.Context, id string) error {
	const op = "note the backup of the keys"
	s.op.Lock()
	defer s.op.Unlock()
	s.mu.Lock()
	p, ok := s.backups[id]
	s.mu.Unlock()
	if !ok {
		return &appliance.Error{Op: op, Kind: appliance.ErrNotFound, Text: "no such backup was made since the start of the daemon", Hint: "run keelblock key backup FILE again"}
	}
	for _, v := range s.list() {
		for _, d := range v.encrypted() {
			if d.doc != nil && slices.Equal(p.dataKeys[d.id], d.doc.DataKeyIDs) {
				if err := v.noteBackup(ctx, d, p.at); err != nil {
					return fmt.Errorf("%s: %w", op, err)
				}
			}
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.backups, id)
	return nil
}

// noteBackup keeps the time of a backup in the wrapped file, whose keys stay wrapped as
// they are.
func (v *Vault) noteBackup(ctx context.Context, d *domain, at time.Time) error {
	doc := *d.doc
	doc.BackedUpAt = &at
	unchanged := func(context.Context, *wrapped) error { return nil }
	if err := v.s.keep(ctx, &doc, d.id, unchanged, v.dirs()...); err != nil {
		return err
	}
	v.s.mu.Lock()
	defer v.s.mu.Unlock()
	d.doc = &doc
	return nil
}

// sealEscrow is an escrow file: a line with magic, version and checksum, a line with the
// head, a line with the sealed keys.
func sealEscrow(head escrowHead, content escrowPlain, secret string) ([]byte, error) {
	h, err := json.Marshal(head)
	if err != nil {
		return nil, err
	}
	plain, err := json.Marshal(content)
	if err != nil {
		return nil, err
	}
	defer clear(plain)
	key := escrowKey(head.Argon2, secret)
	defer clear(key)
	sealed := newAEAD(key).Seal(nil, nil, plain, h)
	rest := fmt.Appendf(nil, "%s\n%s\n", h, base64.StdEncoding.EncodeToString(sealed))
	return append(fmt.Appendf(nil, "%s %s %x\n", escrowMagic, escrowVersion, sha256.Sum256(rest)), rest...), nil
}

func escrowKey(p *argon2Params, secret string) []byte {
	stretched := argon2.IDKey([]byte(secret), p.Salt, p.Time, p.MemoryKiB, p.Threads, kekSize)
	defer clear(stretched)
	return keyring.Derive(stretched, keyring.LabelEscrow, nil, kekSize)
}

func escrowDamaged(why string) error {
	return &appliance.Error{Op: "read the escrow file", Err: dedupe.ErrCorrupt, Text: why, Hint: "use another copy of it"}
}

// parseEscrow reads what needs no secret.
func parseEscrow(file []byte) (head escrowHead, headLine, sealed []byte, err error) {
	lines := bytes.SplitN(file, []byte("\n"), 4)
	f := bytes.Fields(lines[0])
	if len(file) > MaxEscrowBytes || len(f) != 3 || string(f[0]) != escrowMagic {
		return head, nil, nil, &appliance.Error{Op: "read the escrow file", Kind: appliance.ErrInvalid,
			Text: "it is not one", Hint: "keelblock key backup FILE makes them"}
	}
	if v := string(f[1]); v != escrowVersion && v != escrowVersion1 {
		return head, nil, nil, fmt.Errorf("read the escrow file: version %s: %w", f[1], dedupe.ErrUnknownFormat)
	}
	if sum := sha256.Sum256(file[len(lines[0])+min(1, len(lines)-1):]); hex.EncodeToString(sum[:]) != string(f[2]) || len(lines) != 4 || len(lines[3]) > 0 {
		return head, nil, nil, escrowDamaged("its checksum does not match")
	}
	dec := json.NewDecoder(bytes.NewReader(lines[1]))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&head); err != nil {
		return head, nil, nil, escrowDamaged("its head cannot be read: " + err.Error())
	}
	if err := head.Argon2.check(); err != nil {
		return head, nil, nil, escrowDamaged(err.Error())
	}
	if sealed, err = base64.StdEncoding.DecodeString(string(lines[2])); err != nil {
		return head, nil, nil, escrowDamaged("its keys cannot be read: " + err.Error())
	}
	return head, lines[1], sealed, nil
}

// openEscrow opens what is sealed in an escrow file.
func openEscrow(head escrowHead, headLine, sealed []byte, typed string) (content escrowPlain, err error) {
	secret, mistyped := canonical(typed)
	key := escrowKey(head.Argon2, secret)
	defer clear(key)
	plain, err := newAEAD(key).Open(nil, nil, sealed, headLine)
	if err != nil {
		text := fmt.Sprintf("the file was made by site %s at %s", head.SiteName, head.CreatedAt.Format(time.RFC3339))
		if mistyped {
			text += "; the secret is mistyped: the checksum in its last group does not match"
		}
		return content, &appliance.Error{Op: "open the escrow file", Err: ErrWrongSecret, Text: text,
			Hint: "give the secret that keelblock key backup printed when it made this file"}
	}
	defer clear(plain)
	into := any(&content)
	if bytes.HasPrefix(plain, []byte("[")) { // version 1
		into = &content.Keys
	}
	if err := json.Unmarshal(plain, into); err != nil {
		return content, escrowDamaged("its keys cannot be read")
	}
	return content, nil
}

// Identity is the appliance's identity in an escrow file, as Options.Identity gave it.
func Identity(file []byte, secret string) (json.RawMessage, error) {
	head, headLine, sealed, err := parseEscrow(file)
	if err != nil {
		return nil, err
	}
	content, err := openEscrow(head, headLine, sealed, secret)
	if err != nil {
		return nil, err
	}
	for _, k := range content.Keys {
		clear(k.Keys)
	}
	if len(content.Identity) == 0 {
		return nil, &appliance.Error{Op: "read the escrow file", Kind: appliance.ErrInvalid,
			Text: fmt.Sprintf("it has the keys of site %s, but not who it is", head.SiteName), Hint: "put site.json, site.key and vaults.json back from a copy"}
	}
	return content.Identity, nil
}

// Restored is what Restore did.
type Restored struct {
	// Vaults can be opened now.
	Vaults []string
	// Warnings are what an operator should know.
	Warnings []string
}

// Restore brings keys back from an escrow file. Keys that are available stay as they are; others are wrapped by
// the platform key. What was wrapped before is kept beside.
func (s *Store) Restore(ctx context.Context, file []byte, secret string) (r Restored, err error) {
	const op = "restore the keys"
	s.op.Lock()
	defer s.op.Unlock()
	head, headLine, sealed, err := parseEscrow(file)
	if err != nil {
		return r, fmt.Errorf("%s: %w", op, err)
	}
	if !s.concerns(head.Domains) {
		return r, &appliance.Error{Op: op, Err: ErrOtherSite,
			Text: fmt.Sprintf("the file has the keys of vault %s of site %s (%s), and no vault here is encrypted by them",
				strings.Join(head.Vaults, ", "), head.SiteName, head.SiteID),
			Hint: "put that vault's folder here first, or use the file of this site; if this is to be that site, see keelblock help recovery"}
	}
	content, err := openEscrow(head, headLine, sealed, secret)
	if err != nil {
		return r, fmt.Errorf("%s: %w", op, err)
	}
	clear(content.Identity) // keelblock key restore --site needs it, and nobody else
	list := content.Keys
	for _, v := range s.list() {
		for _, d := range v.encrypted() {
			i := slices.IndexFunc(list, func(k escrowKeys) bool { return k.Domain == hex.EncodeToString(d.id[:]) })
			if i < 0 {
				continue
			}
			warning, err := v.restoreDomain(ctx, d, list[i], head.CreatedAt)
			if err != nil {
				return r, fmt.Errorf("%s of vault %s: %w", op, v.name, err)
			}
			r.Vaults = append(r.Vaults, v.name)
			if warning != "" {
				r.Warnings = append(r.Warnings, fmt.Sprintf("vault %s: %s", v.name, warning))
			}
		}
	}
	r.Vaults = slices.Compact(r.Vaults)
	return r, nil
}

// concerns says whether one of the domains is a vault's here.
func (s *Store) concerns(domains []string) bool {
	for _, v := range s.list() {
		if err := v.ask(); err != nil {
			s.o.Logger.Warn("a vault's key domains cannot be read", "vault", v.name, "error", err)
		}
		for _, d := range v.encrypted() {
			if slices.Contains(domains, hex.EncodeToString(d.id[:])) {
				return true
			}
		}
	}
	return false
}

// restoreDomain wraps the keys of one domain by the platform key, unless they are at hand.
func (v *Vault) restoreDomain(ctx context.Context, d *domain, from escrowKeys, at time.Time) (warning string, err error) {
	s := v.s
	keys, err := keyring.Unmarshal(from.Keys)
	clear(from.Keys)
	switch {
	case err != nil:
		return "", err
	case keys.Domain() != d.id || keys.Check() != d.check:
		return "", wrongKey("the file has other keys than the vault was made with", "use the escrow file of this vault")
	case d.keys != nil:
		return "", v.rekeep(ctx, d)
	}
	list, _ := read(d.id, v.dirs()...)
	k, w, err := s.restoredKEK()
	if err != nil {
		return "", err
	}
	doc := wrap(v.name, keys, k, w, s.o.Now())
	doc.BackedUpAt = &at
	if err := v.putAside(d); err != nil {
		return "", err
	}
	if err := s.keep(ctx, doc, d.id, s.prover(Spec{}), v.dirs()...); err != nil {
		return "", err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	d.doc, d.keys, d.reason = doc, keys, nil
	return restoreWarning(doc, list), nil
}

// restoreWarning says what differs from how the keys were wrapped before.
func restoreWarning(doc *wrapped, before []found) string {
	if len(before) == 0 {
		return ""
	}
	for _, id := range before[0].DataKeyIDs {
		if !slices.Contains(doc.DataKeyIDs, id) {
			return "a data key was added after this file was made, and is not in it: what was sealed by it since cannot be read; the wrapped keys that have it are kept in *" + replacedSuffix
		}
	}
	if kind := before[0].Kind; kind != KindPlatform {
		return fmt.Sprintf("its keys were wrapped by a key of kind %s, and are by the platform key now; keelblock key rotate --key changes that", kind)
	}
	return ""
}

// rekeep sees to it that keys which are available can be opened at the next start, too: it
// writes wrapped files where they are gone, and wraps anew when the platform key is.
func (v *Vault) rekeep(ctx context.Context, d *domain) error {
	s, doc := v.s, d.doc
	prove := func(context.Context, *wrapped) error { return nil } // they are as they were
	list, _ := read(d.id, v.dirs()...)
	switch {
	case doc == nil || doc.Kind == KindPlatform && s.prover(Spec{})(ctx, doc) != nil:
		k, w, err := s.restoredKEK()
		if err != nil {
			return err
		}
		doc, prove = wrap(v.name, d.keys, k, w, s.o.Now()), s.prover(Spec{})
	case len(list) == len(v.dirs()):
		return nil
	}
	if err := s.keep(ctx, doc, d.id, prove, v.dirs()...); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	d.doc = doc
	return nil
}

// restoredKEK is the platform key, a new one when it is lost. A file that cannot be read
// as one is put aside, not overwritten: it may be all that opens other keys.
func (s *Store) restoredKEK() (kek, way, error) {
	k, err := s.platform.newest()
	if err != nil {
		if errors.Is(err, dedupe.ErrCorrupt) && !errors.Is(err, dedupe.ErrUnknownFormat) {
			err = s.platform.putAside()
		}
		if err == nil || isAbsent(err) {
			k, err = s.platform.add(s.o.Now())
		}
	}
	return k, way{Kind: KindPlatform, KeyID: k.id}, err
}

// putAside keeps a copy of the wrapped file that could not be opened: it may have a data
// key that an older escrow file has not, and its key-encryption key may be found again.
func (v *Vault) putAside(d *domain) error {
	list, _ := read(d.id, v.dirs()...)
	if len(list) == 0 {
		return nil
	}
	path := wrappedPath(v.s.o.Dir, d.id) + replacedSuffix
	var old wrapped
	l, err := statefile.Load(path, wrappedKind, &old)
	if err == nil && l.Serial >= list[0].serial {
		return nil
	}
	return v.s.save(path, list[0].serial, list[0].wrapped)
}
