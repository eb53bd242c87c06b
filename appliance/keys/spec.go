package keys

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/keelblock/keelblock/appliance"
	"github.com/keelblock/keelblock/appliance/transit"
)

// Kind is the kind of a key-encryption key.
type Kind string

// The kinds.
const (
	// KindNone: the vault is not encrypted.
	KindNone Kind = "none"
	// KindPlatform: a key of the appliance, in its folder.
	KindPlatform Kind = "platform"
	// KindFile: a file of the customer.
	KindFile Kind = "file"
	// KindPassphrase: a passphrase.
	KindPassphrase Kind = "passphrase"
	// KindKMS: a key of a key-management service, which does not give it away.
	KindKMS Kind = "kms"
)

// minPassphrase is the shortest passphrase or recovery secret that is taken, in bytes
// (NIST SP 800-63B, section 5.1.1.2). Argon2id makes a guess dear, not a short one good.
const minPassphrase = 8

const kmsPrefix = "kms:"

// Spec says what wraps keys from now on.
type Spec struct {
	Kind Kind
	// Source is the absolute path of the key file, or the address of the service's key.
	Source string
	// Passphrase, with KindPassphrase.
	Passphrase string
}

// ParseSpec reads what --key has: "" or "platform", "none", "passphrase", "kms:URL", or
// the absolute path of a key file.
func ParseSpec(key, passphrase string) (Spec, error) {
	bad := func(text, hint string) (Spec, error) {
		return Spec{}, &appliance.Error{Op: fmt.Sprintf("use key %q", key), Kind: appliance.ErrInvalid, Text: text, Hint: hint}
	}
	url, isURL := strings.CutPrefix(key, kmsPrefix)
	switch {
	case isURL:
		k, err := transit.ParseURL(url)
		if err != nil {
			return bad(err.Error(), "")
		}
		return Spec{Kind: KindKMS, Source: k.String()}, nil
	case key == string(KindNone):
		return Spec{Kind: KindNone}, nil
	case key == "" || key == string(KindPlatform):
		return Spec{Kind: KindPlatform}, nil
	case key == string(KindPassphrase):
		if len(passphrase) < minPassphrase {
			return bad(fmt.Sprintf("a passphrase has at least %d characters", minPassphrase), "several words are easier to keep than one odd one")
		}
		return Spec{Kind: KindPassphrase, Passphrase: passphrase}, nil
	case !filepath.IsAbs(key):
		return bad("the path of a key file is absolute", "see keelblock help keys")
	}
	return Spec{Kind: KindFile, Source: filepath.Clean(key)}, nil
}

// String is what --key has.
func (s Spec) String() string {
	switch s.Kind {
	case KindFile:
		return s.Source
	case KindKMS:
		return kmsPrefix + s.Source
	}
	return string(s.Kind)
}
