package cli

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	kb "github.com/keelblock/keelblock/appliance/api/keelblockv1"
	"github.com/keelblock/keelblock/appliance/config"
	"github.com/keelblock/keelblock/appliance/daemon"
	"github.com/keelblock/keelblock/appliance/statefile"
	"github.com/keelblock/keelblock/appliance/vault"
)

func (a *app) keyCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "key", Short: "the keys of encryption at rest: show, rotate, backup, restore, unlock",
		Long: "The keys of encryption at rest. See keelblock help keys."}
	cmd.AddCommand(a.keyShow(), a.keyRotate(), a.keyBackup(), a.keyRestore(), a.keyUnlock())
	return cmd
}

func (a *app) keyShow() *cobra.Command {
	return &cobra.Command{
		Use: "show", Short: "show what wraps the keys of each vault, and whether they are saved", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			r, err := c.keys.Show(cmd.Context(), connect.NewRequest(&kb.ShowKeysRequest{}))
			if err != nil {
				return err
			}
			return a.printKeys(r.Msg)
		},
	}
}

func (a *app) printKeys(r *kb.ShowKeysResponse) error {
	for _, w := range r.GetWarnings() {
		a.say("warning: %s", w)
	}
	return a.print(mapped(r.GetDomains(), toKeyDomain), func(w io.Writer) { a.keyTable(w, r.GetDomains()) })
}

func (a *app) keyTable(w io.Writer, domains []*kb.KeyDomain) {
	rows := mapped(domains, func(d *kb.KeyDomain) []string {
		state, saved := "available", "never"
		if !d.GetAvailable() {
			state = "missing"
		}
		if d.GetBackedUpAt() != nil {
			saved = at(d.GetBackedUpAt())
		}
		if d.GetKind() == "none" {
			saved = ""
		}
		return []string{d.GetVault(), d.GetKind(), state, d.GetWrappingKeyId(), fmt.Sprint(len(d.GetDataKeyIds())), at(d.GetWrappedAt()), saved, d.GetSource()}
	})
	a.table(w, "VAULT KIND STATE WRAPPED-BY DATA-KEYS WRAPPED SAVED SOURCE", rows)
	for _, d := range domains {
		if d.GetReason() != "" {
			a.say("%s", d.GetReason())
		}
	}
}

const keyFlag = "KEYFILE, passphrase, kms:https://HOST:PORT/MOUNT/NAME or platform"

// keySource completes what --key has: a relative path is this user's, not the daemon's,
// and a passphrase has to be asked for.
func (a *app) keySource(key *string, passphraseFile string) (passphrase string, err error) {
	switch {
	case *key == "" || *key == "platform" || *key == "none" || strings.HasPrefix(*key, "kms:"):
		return "", nil
	case *key == "passphrase":
		return a.newPassphrase(passphraseFile)
	}
	*key = strings.TrimPrefix(*key, "file:")
	*key, err = filepath.Abs(*key)
	return "", err
}

// newPassphrase takes a passphrase from a file, the environment, or twice from a person.
func (a *app) newPassphrase(file string) (string, error) {
	p, err := a.secret("passphrase", file, "KEELBLOCK_PASSPHRASE")
	if err != nil || file != "" || a.Getenv("KEELBLOCK_PASSPHRASE") != "" || !a.inTerminal {
		return p, err
	}
	again, err := a.ask("the same passphrase again")
	if err == nil && again != p {
		err = errors.New("the passphrases differ; nothing was done")
	}
	return p, err
}

func (a *app) keyRotate() *cobra.Command {
	r := &kb.RotateKeyRequest{}
	var passphraseFile string
	cmd := &cobra.Command{
		Use:   "rotate [--vault V] [--key KEYFILE|passphrase|kms:URL|platform] [--new-data-key]",
		Short: "wrap a vault's keys anew, under a new key",
		Long: `Makes a new key that wraps the keys of a vault, and wraps them by it. No block is written
anew, and jobs go on. Without --key the kind stays: a new platform key, the key file as it
is now, the newest version of a service's key.

With --new-data-key a data key is added that encrypts what is written from now on. What
is there stays as it is and readable. An escrow file made before does not have it: make
another one.`,
		Example: "  keelblock key rotate\n  keelblock key rotate --key /media/stick/vault.key\n  keelblock key rotate --vault archive --key kms:https://kms.example:8200/transit/keelblock",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			if r.Passphrase, err = a.keySource(&r.Key, passphraseFile); err != nil {
				return err
			}
			d, err := c.keys.Rotate(cmd.Context(), connect.NewRequest(r))
			if err != nil {
				return err
			}
			if d.Msg.GetBackedUpAt() == nil {
				a.say("the keys of vault %s are not saved; run keelblock key backup FILE", d.Msg.GetVault())
			}
			return a.print(toKeyDomain(d.Msg), func(w io.Writer) { a.keyTable(w, []*kb.KeyDomain{d.Msg}) })
		},
	}
	f := cmd.Flags()
	f.StringVar(&r.Vault, "vault", "", "the vault (default: default)")
	f.StringVar(&r.Key, "key", "", "what wraps from now on: "+keyFlag)
	f.StringVar(&passphraseFile, "passphrase-file", "", "file with the new passphrase; - is standard input (default: $KEELBLOCK_PASSPHRASE, then asked for)")
	f.BoolVar(&r.NewDataKey, "new-data-key", false, "add a data key for what is written from now on")
	_ = cmd.RegisterFlagCompletionFunc("vault", a.completing(true, completeVaults))
	return cmd
}

func (a *app) keyBackup() *cobra.Command {
	var secretFile string
	var force bool
	cmd := &cobra.Command{
		Use:   "backup FILE [--secret-file FILE]",
		Short: "save the keys of all vaults in an encrypted file",
		Long: `Writes an escrow file with the keys of all vaults, encrypted under a recovery secret, and
prints the secret, once: it is kept nowhere. With --secret-file it is yours. Keep both away
from this machine and from each other. With them keelblock key restore brings the keys
back; without them nobody can, and who has only the file reads nothing in it.

Make another one after keelblock vault create and after key rotate --new-data-key.`,
		Example: "  keelblock key backup /media/stick/keys.escrow",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.backupKeys(cmd, args[0], secretFile, force)
		},
	}
	cmd.Flags().StringVar(&secretFile, "secret-file", "", "file with your own recovery secret; - is standard input")
	cmd.Flags().BoolVar(&force, "force", false, "replace an existing FILE")
	return cmd
}

func (a *app) backupKeys(cmd *cobra.Command, path, secretFile string, force bool) (err error) {
	c, err := a.client()
	if err != nil {
		return err
	}
	if _, err := os.Lstat(path); err == nil && !force {
		return fmt.Errorf("%s exists; choose another name, or add --force to replace it", path)
	}
	own := ""
	if secretFile != "" {
		if own, err = a.secret("recovery secret", secretFile, ""); err != nil {
			return err
		}
	}
	r, err := c.keys.Backup(cmd.Context(), connect.NewRequest(&kb.BackupKeysRequest{Secret: own}))
	if err != nil {
		return err
	}
	if err := statefile.Replace(path, r.Msg.GetEscrow(), 0o600); err != nil {
		return err
	}
	back, err := os.ReadFile(path)
	if err == nil && !bytes.Equal(back, r.Msg.GetEscrow()) {
		err = errors.New("it does not read back as it was written")
	}
	if err != nil {
		return fmt.Errorf("check %s: %w", path, err)
	}
	out := keyBackupShape{File: path, Secret: r.Msg.GetSecret(), Domains: r.Msg.GetDomains(), MissingVaults: list(r.Msg.GetMissingVaults())}
	if own != "" {
		out.Secret = ""
	}
	if err := a.print(out, func(w io.Writer) {
		if out.Secret != "" {
			fmt.Fprintln(w, out.Secret)
		}
	}); err != nil {
		return err
	}
	if _, err := c.keys.ConfirmBackup(cmd.Context(), connect.NewRequest(&kb.ConfirmBackupRequest{BackupId: r.Msg.GetBackupId()})); err != nil {
		return fmt.Errorf("%s is written and good, but the daemon goes on asking for a backup: %w", path, err)
	}
	if out.Secret != "" {
		a.say("This is the recovery secret of %s, and it is shown once. Keep both, apart from each other and away from this machine.", path)
	}
	if missing := r.Msg.GetMissingVaults(); len(missing) > 0 {
		return partialError{fmt.Sprintf("the keys of vault %s are not available, and not in %s; see keelblock key show", strings.Join(missing, ", "), path)}
	}
	return nil
}

func (a *app) keyRestore() *cobra.Command {
	var secretFile string
	var site bool
	cmd := &cobra.Command{
		Use:   "restore FILE [--secret-file FILE] [--site]",
		Short: "bring keys back from an escrow file, and open the vaults that need them",
		Long: `Brings the keys of vaults back from an escrow file, with its recovery secret, and opens
vaults that were closed for want of them. Keys that are there stay as they are; the others
are wrapped by the platform key, and keelblock key rotate --key changes that.

With --site it is for the day when the data folder is lost, and the folders of vaults are
not: no daemon runs yet, and the folder of --data becomes that of the site whose keys are in
the file. It prints a line for the site, and where each vault is looked for. Then start the
daemon, and bring the keys back. See keelblock help recovery.`,
		Example: "  keelblock key restore /media/stick/keys.escrow\n  keelblock key restore /media/stick/keys.escrow --site",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if site {
				return a.restoreSite(args[0], secretFile)
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			file, err := os.ReadFile(args[0])
			if err != nil {
				return err
			}
			secret, err := a.secret("recovery secret", secretFile, "")
			if err != nil {
				return err
			}
			r, err := c.keys.Restore(cmd.Context(), connect.NewRequest(&kb.RestoreKeysRequest{Escrow: file, Secret: secret}))
			if err != nil {
				return err
			}
			return a.printKeys(r.Msg)
		},
	}
	cmd.Flags().StringVar(&secretFile, "secret-file", "", "file with the recovery secret; - is standard input (default: asked for)")
	cmd.Flags().BoolVar(&site, "site", false, "make the data folder that of the site again, before the daemon is started")
	return cmd
}

// restoreSite needs no daemon.
func (a *app) restoreSite(path, secretFile string) error {
	file, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	secret, err := a.secret("recovery secret", secretFile, "")
	if err != nil {
		return err
	}
	cfg := config.Config{DataDir: a.dataDir()}.WithDefaults()
	id, err := daemon.RestoreSite(cfg, file, secret)
	if err != nil {
		return err
	}
	out := siteShape{SiteID: id.SiteID, SiteName: id.SiteName, DataDir: cfg.DataDir, Vaults: []siteVaultShape{}}
	for _, v := range id.VaultsIn(cfg.DataDir) {
		if v.Name == vault.DefaultName {
			v.Dir = cfg.VaultDir()
		}
		out.Vaults = append(out.Vaults, siteVaultShape{Name: v.Name, Locations: append([]string{v.Dir}, v.Locations...)})
	}
	if err := a.print(out, func(w io.Writer) {
		fmt.Fprintf(w, "site %s %s\n", out.SiteName, out.SiteID)
		for _, v := range out.Vaults {
			fmt.Fprintf(w, "vault %s %s\n", v.Name, strings.Join(v.Locations, " "))
		}
	}); err != nil {
		return err
	}
	a.say("Put what is left of these vaults in its place, then: keelblock serve -d --data %s, and keelblock key restore %s", cfg.DataDir, path)
	return nil
}

func (a *app) keyUnlock() *cobra.Command {
	r := &kb.UnlockKeysRequest{}
	var passphraseFile string
	cmd := &cobra.Command{
		Use:   "unlock [--vault V]",
		Short: "open a vault with its passphrase, which was not given at the start",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			if r.Passphrase, err = a.secret("passphrase", passphraseFile, "KEELBLOCK_PASSPHRASE"); err != nil {
				return err
			}
			shown, err := c.keys.Unlock(cmd.Context(), connect.NewRequest(r))
			if err != nil {
				return err
			}
			return a.printKeys(shown.Msg)
		},
	}
	cmd.Flags().StringVar(&r.Vault, "vault", "", "the vault (default: default)")
	cmd.Flags().StringVar(&passphraseFile, "passphrase-file", "", "file with the passphrase; - is standard input (default: $KEELBLOCK_PASSPHRASE, then asked for)")
	_ = cmd.RegisterFlagCompletionFunc("vault", a.completing(true, completeVaults))
	return cmd
}
