package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/keelblock/keelblock/appliance"
	"github.com/keelblock/keelblock/appliance/config"
	"github.com/keelblock/keelblock/appliance/keys"
	"github.com/keelblock/keelblock/appliance/transit"
	"github.com/keelblock/keelblock/appliance/vault"
)

// newKeys makes the store of the vaults' keys.
func (d *daemon) newKeys() *keys.Store {
	passphrases := d.cfg.Passphrases
	if path := d.cfg.PassphraseFile; path != "" {
		list, err := readLines(path)
		if err != nil {
			d.alert("passphrase file", fmt.Sprintf("vaults that need a passphrase stay closed: %v", err))
		}
		passphrases = append(list, passphrases...)
	}
	return keys.New(keys.Options{Dir: d.cfg.KeysDir(), PlatformFile: d.cfg.PlatformKeyFile(), SiteID: d.site.ID, SiteName: d.site.Name, Identity: d.identity,
		Passphrases: passphrases, Logger: d.log,
		KMS: keys.KMS{Token: d.kmsToken, CACertFile: d.cfg.KMSCACert, Namespace: d.cfg.KMSNamespace}})
}

// identity is what escrow files carry beside the keys.
func (d *daemon) identity() (json.RawMessage, error) {
	id, err := d.vaults.Identity()
	if err != nil {
		return nil, err
	}
	return json.Marshal(id)
}

// RestoreSite makes the data folder of cfg that of the site in an escrow file, while no
// daemon uses it: identity and list of vaults, without the keys, which the daemon takes from
// the same file once it finds the vaults.
func RestoreSite(cfg config.Config, escrow []byte, secret string) (id *vault.Identity, err error) {
	cfg = cfg.WithDefaults()
	doc, err := keys.Identity(escrow, secret)
	if err != nil {
		return nil, err
	}
	if id, err = vault.ParseIdentity(doc); err != nil {
		return nil, err
	}
	unlock, err := lock(cfg.DataDir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	return id, id.Install(cfg.DataDir)
}

// keysOf gives the keys of a vault. One that is made without a word about its key is
// encrypted under the platform key.
func (d *daemon) keysOf(name, dir string) vault.Keys {
	return d.keys.Vault(name, dir, keys.Spec{Kind: keys.KindPlatform})
}

// readLines gives the lines of a small file that are not empty.
func readLines(path string) ([]string, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var out []string
	for line := range strings.Lines(string(data)) {
		if line = strings.TrimRight(line, "\r\n"); line != "" {
			out = append(out, line)
		}
	}
	return out, nil
}

// kmsToken is asked for at each request: whoever renews the token writes the file anew.
func (d *daemon) kmsToken() (string, error) {
	if path := d.cfg.KMSTokenFile; path != "" {
		data, err := os.ReadFile(path)
		return strings.TrimSpace(string(data)), err
	}
	if d.cfg.KMSToken == "" {
		return "", errors.New("there is no token: neither $VAULT_TOKEN nor --kms-token-file was given at the start of the daemon")
	}
	return d.cfg.KMSToken, nil
}

// reopen opens a vault that is closed, now that its keys are there.
func (d *daemon) reopen(ctx context.Context, name string) error {
	v, err := d.vaults.Get(name)
	if err != nil {
		return err
	}
	if state, _ := v.State(); state == vault.Open {
		return nil
	}
	// It outlives the request, whose user may go away: a vault is open or it is not.
	d.openVault(context.WithoutCancel(ctx), v)
	if state, reason := v.State(); state != vault.Open {
		return &appliance.Error{Op: "open the vault with the keys that are there now", Kind: appliance.ErrUnavailable, Err: reason}
	}
	return nil
}

// retryVaults opens vaults whose key-management service did not answer, when it does, and
// those whose folder was empty, when it is not any more.
func (d *daemon) retryVaults(ctx context.Context) {
	t := time.NewTicker(d.cfg.KMSRetry)
	defer t.Stop()
	for {
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
		for _, v := range d.vaults.All() {
			if v.IsBack() {
				// Else it was made anew meanwhile, which is why the folder is not empty.
				if now, err := d.vaults.Get(v.Name()); err == nil && now == v {
					d.openVault(context.WithoutCancel(ctx), v)
				}
				continue
			}
			state, reason := v.State()
			if state != vault.Closed || !errors.Is(reason, transit.ErrUnreachable) {
				continue
			}
			if d.keys.Prepare(ctx, v.Name()) == nil && ctx.Err() == nil {
				d.openVault(context.WithoutCancel(ctx), v)
			}
		}
	}
}

// unsavedKeys are the vaults whose keys are in no escrow file.
func (d *daemon) unsavedKeys() []string {
	var out []string
	for _, k := range d.keys.Show() {
		if k.Unsaved() {
			out = append(out, k.Vault)
		}
	}
	return out
}
