package vault

import (
	"bytes"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/keelblock/keelblock/appliance"
	"github.com/keelblock/keelblock/appliance/statefile"
)

// Identity is what makes an appliance the same one again when its data folder is lost and
// the folders of its vaults are not: who it is, and where its vaults lie. A vault opens
// only at its own site. It is a secret, since the key signs points.
type Identity struct {
	SiteID    string    `json:"siteId"`
	SiteName  string    `json:"siteName"`
	Key       []byte    `json:"key"` // PKCS #8
	CreatedAt time.Time `json:"createdAt"`
	// DataDir is where it was. Vaults below it are looked for below the new one.
	DataDir string `json:"dataDir"`
	Vaults  []Spec `json:"vaults"`
}

// Identity is that of the appliance of these vaults.
func (s *Set) Identity() (*Identity, error) {
	const op = "read the site's identity"
	if s.o.Site.ID == "" {
		return nil, &appliance.Error{Op: op, Kind: appliance.ErrUnavailable, Text: "it could not be read when the daemon started", Hint: "see keelblock status"}
	}
	if err := s.Damage(); err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(s.o.Site.Key)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", op, err)
	}
	id := &Identity{SiteID: s.o.Site.ID, SiteName: s.o.Site.Name, Key: der, CreatedAt: s.o.Site.CreatedAt, DataDir: s.o.DataDir}
	for _, v := range s.All() {
		id.Vaults = append(id.Vaults, v.Spec())
	}
	return id, nil
}

// ParseIdentity reads what json.Marshal made of an Identity.
func ParseIdentity(doc []byte) (*Identity, error) {
	id := new(Identity)
	dec := json.NewDecoder(bytes.NewReader(doc))
	dec.DisallowUnknownFields()
	err := dec.Decode(id)
	if err == nil {
		_, err = id.key()
	}
	if err == nil && (len(id.SiteID) != 32 || len(id.Vaults) > MaxVaults || !filepath.IsAbs(id.DataDir)) {
		err = errors.New("a field of it is out of bounds")
	}
	if err != nil {
		return nil, fmt.Errorf("read a site's identity: %w", err)
	}
	return id, nil
}

func (id *Identity) key() (ed25519.PrivateKey, error) {
	k, err := x509.ParsePKCS8PrivateKey(id.Key)
	if err != nil {
		return nil, err
	}
	key, ok := k.(ed25519.PrivateKey)
	if !ok {
		return nil, errors.New("not an ed25519 key")
	}
	return key, nil
}

// replacedSuffix is of what Install put aside.
const replacedSuffix = ".replaced"

// Install makes the folder dataDir that of this appliance. No daemon may use it. A folder
// that is another site's already is refused once a vault belongs to that site; one of a site
// that was only started has its files put aside. A list of vaults that is this site's own
// stays: it is newer. site.json comes last, since with it a start believes that all is
// there.
func (id *Identity) Install(dataDir string) error {
	op := "make " + dataDir + " the data folder of site " + id.SiteName
	fail := func(err error) error { return fmt.Errorf("%s: %w", op, err) }
	path, keyPath := sitePaths(dataDir)
	var present siteDoc
	l, err := statefile.Load(path, siteKind, &present)
	if err != nil || present.ID != id.SiteID {
		if err == nil && l.Serial > 0 {
			if owned := ownedBy(present.ID, dataDir); owned != "" {
				return &appliance.Error{Op: op, Kind: appliance.ErrInUse,
					Text: fmt.Sprintf("it is that of site %s (%s), which has the vault in %s", present.SiteName, present.ID, owned),
					Hint: "give an empty folder with --data, or move that vault away"}
			}
		}
		if err := errors.Join(putAside(keyPath), putAside(path), statefile.Remove(path)); err != nil {
			return fail(err)
		}
	}
	if err := id.installVaults(filepath.Join(dataDir, vaultsName), dataDir); err != nil {
		return fail(err)
	}
	key, err := id.key()
	if err != nil {
		return fail(err)
	}
	if err := writeKey(keyPath, key); err != nil {
		return fail(err)
	}
	if l.Serial > 0 && present.ID == id.SiteID && present.KeyID == keyID(key) {
		return nil
	}
	doc := siteDoc{ID: id.SiteID, SiteName: id.SiteName, KeyID: keyID(key), CreatedAt: id.CreatedAt}
	if err := statefile.Save(path, siteKind, l.Serial+1, doc); err != nil {
		return fail(err)
	}
	return nil
}

// installVaults writes the list of vaults, unless this site's is there.
func (id *Identity) installVaults(path, dataDir string) error {
	var present vaultsDoc
	l, err := statefile.Load(path, vaultsKind, &present)
	if err == nil && l.Serial > 0 {
		own := true
		for _, v := range present.Vaults {
			own = own && (v.Site == "" || v.Site == id.SiteID)
		}
		if own && len(present.Vaults) >= len(id.Vaults) {
			return nil
		}
	}
	if err := errors.Join(putAside(path), statefile.Remove(path)); err != nil {
		return err
	}
	return statefile.Save(path, vaultsKind, l.Serial+1, vaultsDoc{Vaults: id.VaultsIn(dataDir)})
}

// VaultsIn are the vaults as they lie when the data folder is dataDir.
func (id *Identity) VaultsIn(dataDir string) []Spec {
	moved := func(dir string) string {
		if rest, ok := strings.CutPrefix(dir, id.DataDir+string(filepath.Separator)); ok {
			return filepath.Join(dataDir, rest)
		}
		return dir
	}
	list := make([]Spec, 0, len(id.Vaults))
	for _, v := range id.Vaults {
		v.Dir = moved(v.Dir)
		locations := make([]string, 0, len(v.Locations))
		for _, dir := range v.Locations {
			locations = append(locations, moved(dir))
		}
		v.Locations = locations
		list = append(list, v)
	}
	return list
}

// ownedBy is the folder of a vault that says it belongs to the site, or "".
func ownedBy(site, dataDir string) string {
	dirs := []string{filepath.Join(dataDir, "vault")}
	var listed vaultsDoc
	if _, err := statefile.Load(filepath.Join(dataDir, vaultsName), vaultsKind, &listed); err == nil {
		for _, v := range listed.Vaults {
			dirs = append(dirs, v.Dir)
		}
	}
	for _, dir := range dirs {
		var doc ownerDoc
		if l, err := statefile.Load(filepath.Join(dir, ownerName), ownerKind, &doc); err == nil && l.Serial > 0 && doc.Site == site {
			return dir
		}
	}
	return ""
}

// putAside renames a file that is going to be replaced.
func putAside(path string) error {
	if err := os.Rename(path, path+replacedSuffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
