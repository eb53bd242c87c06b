package keys

import (
	"context"
	"fmt"
	"slices"

	"github.com/keelblock/keelblock/appliance"
	"github.com/keelblock/keelblock/dedupe/keyring"
)

// Rotate wraps the keys of a vault anew, under a new key-encryption key. Nothing that is in
// packs is read or written, and whoever uses the keys goes on. spec is what wraps them from
// now on; nil is the present kind and source: another platform key, the key file as it is
// now, the newest version of a service's key. With newDataKey a data key is added, which
// seals new records from now on.
//
// A kill at any instant leaves keys that open by the old or the new way. The order:
//
//  1. the new key-encryption key is durable (a platform key beside the old one);
//  2. the newly wrapped file is durable beside the old one, was read back and opened;
//  3. it takes the place of the old one, at the site, then in the vault;
//  4. a new data key is used for the first time;
//  5. platform keys that nothing is wrapped by are dropped.
func (s *Store) Rotate(ctx context.Context, vault string, spec *Spec, newDataKey bool) (Domain, error) {
	s.op.Lock()
	defer s.op.Unlock()
	v, err := s.find(vault)
	if err != nil {
		return Domain{}, err
	}
	op := "rotate the key of vault " + vault
	list, err := v.rotatable(op)
	if err != nil {
		return Domain{}, err
	}
	for i, d := range list {
		// New blocks are made in the first domain.
		if err := v.rotateDomain(ctx, d, spec, newDataKey && i == 0); err != nil {
			return Domain{}, fmt.Errorf("%s: %w", op, err)
		}
	}
	if err := s.prune(); err != nil {
		s.o.Logger.Warn("old platform keys stay until the next rotation", "error", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return v.describe(list[0]), nil
}

// rotatable are the domains whose keys are at hand, which must be all.
func (v *Vault) rotatable(op string) ([]*domain, error) {
	list := v.encrypted()
	if len(list) == 0 {
		if !v.known() {
			return nil, &appliance.Error{Op: op, Kind: appliance.ErrUnavailable, Text: "the vault is not open", Hint: "see keelblock vault status"}
		}
		return nil, &appliance.Error{Op: op, Kind: appliance.ErrInvalid, Text: "the vault is not encrypted, and stays so",
			Hint: "keelblock vault create makes one that is"}
	}
	for _, d := range list {
		if d.keys == nil {
			return nil, &appliance.Error{Op: op, Kind: appliance.ErrUnavailable, Text: "its keys are not available", Err: d.reason, Hint: "see keelblock key show"}
		}
	}
	return list, nil
}

func (v *Vault) known() bool {
	v.s.mu.Lock()
	defer v.s.mu.Unlock()
	return v.asked
}

func (v *Vault) rotateDomain(ctx context.Context, d *domain, spec *Spec, newDataKey bool) error {
	s := v.s
	keys := d.keys
	if newDataKey {
		var err error
		if keys, err = withDataKey(keys); err != nil {
			return err
		}
	}
	doc, err := v.wrapAnew(ctx, d, keys, spec)
	if err != nil {
		return err
	}
	if !newDataKey && d.doc != nil {
		doc.BackedUpAt = d.doc.BackedUpAt
	}
	given := Spec{}
	if spec != nil {
		given = *spec
	}
	err = s.keep(ctx, doc, d.id, s.prover(given), v.dirs()...)
	if err != nil {
		// The new one may have its place already: it may be used, and counts.
		if list, _ := read(d.id, v.dirs()...); len(list) > 0 {
			s.mu.Lock()
			d.doc = list[0].wrapped
			s.mu.Unlock()
		}
		return err
	}
	if err := s.o.hook("adopt"); err != nil {
		return err
	}
	if newDataKey {
		if err := d.keys.Adopt(keys); err != nil {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	d.doc = doc
	return nil
}

// withDataKey is a copy of keys with one more data key. Nothing is sealed by it before the
// keys in use adopt it.
func withDataKey(keys *keyring.Keys) (*keyring.Keys, error) {
	plain := keys.Marshal()
	defer clear(plain)
	more, err := keyring.Unmarshal(plain)
	if err != nil {
		return nil, err
	}
	if _, ok := more.AddDataKey(); !ok {
		return nil, &appliance.Error{Kind: appliance.ErrInUse, Text: fmt.Sprintf("it has %d data keys already, the most that there can be", keyring.MaxDataKeys)}
	}
	return more, nil
}

// wrapAnew wraps keys as spec says, or as they are wrapped now.
func (v *Vault) wrapAnew(ctx context.Context, d *domain, keys *keyring.Keys, spec *Spec) (*wrapped, error) {
	s, old := v.s, d.doc
	same := spec == nil
	if same {
		spec = &Spec{Kind: old.Kind, Source: old.Source}
		if old.Kind == KindPassphrase {
			return nil, &appliance.Error{Kind: appliance.ErrInvalid, Text: "a new passphrase was not given", Hint: "add --key passphrase"}
		}
	}
	switch {
	case spec.Kind == KindNone:
		return nil, &appliance.Error{Kind: appliance.ErrInvalid, Text: "an encrypted vault stays encrypted"}
	case same && old.Kind == KindKMS:
		return s.wrapRewrapped(ctx, v.name, old, keys)
	}
	k, w, err := s.makeKEK(ctx, *spec, true)
	if err != nil {
		return nil, err
	}
	return wrap(v.name, keys, k, w, s.o.Now()), nil
}

// wrapRewrapped has the service encrypt the key-encryption key with its newest version;
// the key itself stays.
func (s *Store) wrapRewrapped(ctx context.Context, vault string, old *wrapped, keys *keyring.Keys) (*wrapped, error) {
	w, err := s.rewrap(ctx, old.way)
	if err != nil {
		return nil, err
	}
	if slices.Equal(dataKeyIDs(keys), old.DataKeyIDs) {
		doc := *old
		doc.way, doc.WrappedAt = w, s.o.Now().UTC().Truncate(1e9)
		return &doc, nil
	}
	k, err := s.openKEK(ctx, w, nil)
	if err != nil {
		return nil, err
	}
	return wrap(vault, keys, k, w, s.o.Now()), nil
}

// prune drops platform keys that nothing is wrapped by. When a wrapped file cannot be
// read nobody knows which key it needs, and all stay.
func (s *Store) prune() error {
	used, complete := s.usedBy()
	if !complete {
		return nil
	}
	return s.platform.prune(used)
}
