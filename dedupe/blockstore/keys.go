package blockstore

import (
	"fmt"

	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/keyring"
	"github.com/keelblock/keelblock/dedupe/pack"
)

// HintKey is what an operator does about a vault whose key is not at hand.
const HintKey = "run `keelblock key show`; `keelblock key restore FILE` brings a lost key back from its escrow file"

// keys are the unwrapped keys of a Store's domains.
type keys struct {
	domains map[dedupe.DomainID]*keyring.Keys
	// own are the keys of the domain that the Store writes in; nil when it is plain,
	// or its keys were not given.
	own *keyring.Keys
	// encrypted are the domains that the superblock says are.
	encrypted map[dedupe.DomainID]bool
	// plain makes digests in those that it says are not.
	plain map[dedupe.DomainID]dedupe.Digester
}

// newKeys compares the given keys with what the superblock says of its domains. Keys of
// other domains are taken as they are: records of another site may be in the vault.
func newKeys(sb *pack.Superblock, given []*keyring.Keys) (keys, error) {
	k := keys{domains: make(map[dedupe.DomainID]*keyring.Keys, len(given)), encrypted: make(map[dedupe.DomainID]bool),
		plain: make(map[dedupe.DomainID]dedupe.Digester)}
	for _, g := range given {
		k.domains[g.Domain()] = g
	}
	for i := range sb.Domains {
		d := &sb.Domains[i]
		given := k.domains[d.ID]
		k.encrypted[d.ID] = d.Encrypted()
		if d.Scheme == pack.SchemeGrains {
			k.plain[d.ID] = dedupe.GrainDigests(nil)
		}
		switch {
		case given == nil:
		case !d.Encrypted():
			return k, fmt.Errorf("vault %x: key domain %x is not encrypted, and a key of it was given: %w", sb.Vault, d.ID, dedupe.ErrWrongKey)
		case given.Check() != d.Check, given.Scheme() != d.Scheme:
			return k, fmt.Errorf("vault %x: %w for key domain %x; %s", sb.Vault, dedupe.ErrWrongKey, d.ID, HintKey)
		}
	}
	return k, nil
}

// encryptedDomain is the superblock's entry of the domain of some keys.
func encryptedDomain(k *keyring.Keys) pack.Domain {
	return pack.Domain{ID: k.Domain(), Scheme: k.Scheme(), Cipher: pack.CipherXAES, Check: k.Check(), KeyID: k.DataKeys()[0]}
}

// newDomains are the key domains of a new vault: those of the keys, the one that it
// writes in first, or a plain one.
func newDomains(o Options) ([]pack.Domain, error) {
	if len(o.Keys) == 0 {
		scheme := uint8(pack.SchemeGrains)
		if o.wholeDigests {
			scheme = pack.SchemeSHA256
		}
		return []pack.Domain{{ID: o.Domain, Scheme: scheme}}, nil
	}
	var first, list []pack.Domain
	for i, k := range o.Keys {
		if o.Domain == k.Domain() || o.Domain == (dedupe.DomainID{}) && i == 0 {
			first = append(first, encryptedDomain(k))
		} else {
			list = append(list, encryptedDomain(k))
		}
	}
	if len(first) != 1 {
		return nil, fmt.Errorf("%d of the keys given are of key domain %x, want one", len(first), o.Domain)
	}
	return append(first, list...), nil
}

// missingKey is an error when the Store's own domain is encrypted and its keys were not
// given.
func (s *Store) missingKey() error {
	if !s.Encrypted() || s.keys.own != nil {
		return nil
	}
	return fmt.Errorf("vault %x is encrypted, and the key of its key domain %x is missing: %w; %s", s.sb.Vault, s.Domain(), dedupe.ErrNoKey, HintKey)
}

// Encrypted implements dedupe.Store.
func (s *Store) Encrypted() bool { return s.keys.encrypted[s.Domain()] }

// BlockDigest implements dedupe.Store.
func (s *Store) BlockDigest(p []byte) dedupe.Digest { return s.ownDigester().Block(p) }

// ownDigester makes digests in the domain that is written in.
func (s *Store) ownDigester() dedupe.Digester {
	if s.keys.own == nil {
		return s.keys.plain[s.Domain()]
	}
	return s.keys.own.Digester()
}

// isSealed reports whether records of a kind are sealed in an encrypted domain. Nodes,
// manifests and publications are not, so that trees can be walked, compared and
// collected, and an index be made anew, without a key.
func isSealed(kind dedupe.Kind) bool {
	return kind == dedupe.KindBlock || kind == pack.KindBundle || kind == dedupe.KindNote
}

// seal encrypts the payload of a new record in its buffer, where its kind and domain say
// so.
func (s *Store) seal(r *pack.Record, buf []byte) ([]byte, error) {
	if !isSealed(r.Kind) || !s.Encrypted() {
		return buf, nil
	}
	if err := s.missingKey(); err != nil {
		return buf, err
	}
	return s.keys.own.Seal(r, buf)
}

// payload is the coded content of a record that was read, decrypted if it is sealed: in its
// place, or when it is the content itself into dst's storage if there is room. What stands
// before it, a bundle's directory or a block's list of grains, is not part of it.
func (s *Store) payload(r *pack.Record, record, dst []byte) ([]byte, error) {
	if r.Cipher == pack.CipherNone {
		return record[pack.RecordHeaderSize+int(r.HeadLength):], nil
	}
	k := s.keys.domains[r.Domain]
	if k == nil {
		return nil, fmt.Errorf("sealed in key domain %x: %w; %s", r.Domain, dedupe.ErrNoKey, HintKey)
	}
	if r.Codec != pack.CodecRaw || r.Encoding != pack.EncodingWhole || cap(dst) < int(r.StoredLength-r.HeadLength)-keyring.Overhead {
		return k.Open(r, record, nil)
	}
	return k.Open(r, record, dst[:0])
}

// digester makes the digests of blocks and notes in the domain of a record.
func (s *Store) digester(r *pack.Record) (dedupe.Digester, error) {
	if k := s.keys.domains[r.Domain]; k != nil {
		return k.Digester(), nil
	}
	if isSealed(r.Kind) && (s.keys.encrypted[r.Domain] || r.Cipher != pack.CipherNone) {
		return dedupe.Digester{}, fmt.Errorf("id in key domain %x: %w; %s", r.Domain, dedupe.ErrNoKey, HintKey)
	}
	if r.HasGrainList {
		return dedupe.GrainDigests(nil), nil
	}
	return s.keys.plain[r.Domain], nil
}

// metadataDigest is the digest of a manifest, note or publication to be written. That of
// a note is keyed where blocks' are: its text can be short enough to be guessed.
func (s *Store) metadataDigest(kind dedupe.Kind, content []byte) dedupe.Digest {
	if kind == dedupe.KindNote {
		return s.ownDigester().Note(content)
	}
	return dedupe.Sum(content)
}
