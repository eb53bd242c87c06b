package vault

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/keelblock/keelblock/appliance"
	"github.com/keelblock/keelblock/appliance/statefile"
)

const siteKind = "site"

// Site is the identity of an appliance, made at its first start.
type Site struct {
	ID   string // random, 32 hexadecimal digits
	Name string
	Key  ed25519.PrivateKey // signs points
	// CreatedAt is when it was made.
	CreatedAt time.Time
}

type siteDoc struct {
	ID        string    `json:"id"`
	SiteName  string    `json:"siteName"`
	KeyID     string    `json:"keyId"`
	CreatedAt time.Time `json:"createdAt"`
}

// sitePaths are the files of the identity in a data folder.
func sitePaths(dir string) (path, keyPath string) {
	return filepath.Join(dir, "site.json"), filepath.Join(dir, "site.key")
}

// LoadSite reads site.json and site.key of dir, or makes them at the first start
// with the given name. A key that is missing or another than site.json says is an
// error: points would be signed by nobody who is known. So is a site.json that is missing
// beside a list of vaults: a new site would be refused by all of them.
func LoadSite(dir, name string) (*Site, error) {
	path, keyPath := sitePaths(dir)
	var doc siteDoc
	l, err := statefile.Load(path, siteKind, &doc)
	if err != nil {
		return nil, &appliance.Error{Op: "read the site's identity", Err: err, Hint: "put a good copy of site.json back"}
	}
	if l.Serial == 0 {
		var listed vaultsDoc
		if l, err := statefile.Load(filepath.Join(dir, vaultsName), vaultsKind, &listed); err != nil || l.Serial > 0 {
			return nil, &appliance.Error{Op: "read the site's identity", Kind: appliance.ErrUnavailable, Text: path + " is missing, and there are vaults",
				Hint: "put a copy back, or run keelblock stop and keelblock key restore FILE --site"}
		}
		return newSite(path, keyPath, name)
	}
	key, err := readKey(keyPath)
	if err != nil {
		return nil, &appliance.Error{Op: "read the site's key", Err: err, Hint: "put site.key back from a copy"}
	}
	if id := keyID(key); id != doc.KeyID {
		return nil, &appliance.Error{Op: "read the site's key", Kind: appliance.ErrInvalid,
			Text: fmt.Sprintf("%s has key id %s, site.json says %s", keyPath, id, doc.KeyID), Hint: "put the right site.key back"}
	}
	return &Site{ID: doc.ID, Name: doc.SiteName, Key: key, CreatedAt: doc.CreatedAt}, nil
}

// newSite writes the key first: a site.json without a key would be an error for
// ever, a key without a site.json is written anew.
func newSite(path, keyPath, name string) (*Site, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make the site's key: %w", err)
	}
	if err := writeKey(keyPath, key); err != nil {
		return nil, err
	}
	var id [16]byte
	rand.Read(id[:]) // never fails, see crypto/rand
	s := &Site{ID: hex.EncodeToString(id[:]), Name: name, Key: key, CreatedAt: time.Now().UTC().Truncate(time.Second)}
	doc := siteDoc{ID: s.ID, SiteName: name, KeyID: keyID(key), CreatedAt: s.CreatedAt}
	if err := statefile.Save(path, siteKind, 1, doc); err != nil {
		return nil, err
	}
	return s, nil
}

func writeKey(path string, key ed25519.PrivateKey) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("make the site's key: %w", err)
	}
	return statefile.Replace(path, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600)
}

func readKey(path string) (ed25519.PrivateKey, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(data)
	if block == nil || block.Type != "PRIVATE KEY" {
		return nil, errors.New("no PEM block PRIVATE KEY")
	}
	k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	key, ok := k.(ed25519.PrivateKey)
	if !ok {
		return nil, errors.New("not an ed25519 key")
	}
	return key, nil
}

// keyID names a key: the SHA-256 of its public half.
func keyID(k ed25519.PrivateKey) string {
	sum := sha256.Sum256(k.Public().(ed25519.PublicKey))
	return hex.EncodeToString(sum[:])
}

func parent(path string) string { return filepath.Dir(path) }
