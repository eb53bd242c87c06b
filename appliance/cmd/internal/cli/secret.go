package cli

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/term"

	"github.com/keelblock/keelblock/appliance/config"
	"github.com/keelblock/keelblock/appliance/daemon"
	"github.com/keelblock/keelblock/appliance/keys"
)

// maxSecretFile bounds what is read as a passphrase or a secret, in bytes.
const maxSecretFile = 64 << 10

// secret takes a passphrase or a recovery secret from a file ("-": standard input), else
// from an environment variable, else from the person at the terminal, else from standard
// input. It is never an argument: others see those.
func (a *app) secret(what, file, variable string) (string, error) {
	text := ""
	switch {
	case file != "" && file != "-":
		f, err := os.Open(file)
		if err != nil {
			return "", err
		}
		defer f.Close() // only read
		if text, err = firstLine(f); err != nil {
			return "", fmt.Errorf("read %s: %w", file, err)
		}
	case file == "" && variable != "" && a.Getenv(variable) != "":
		text = a.Getenv(variable)
	case file == "" && a.inTerminal:
		return a.ask(what)
	default:
		var err error
		if text, err = firstLine(a.In); err != nil {
			return "", fmt.Errorf("read the %s from standard input: %w", what, err)
		}
	}
	if text == "" {
		return "", usageError{fmt.Errorf("the %s is empty; give it in a file, on standard input, or at a terminal", what)}
	}
	return text, nil
}

func firstLine(r io.Reader) (string, error) {
	if r == nil {
		return "", nil
	}
	data, err := io.ReadAll(io.LimitReader(r, maxSecretFile+1))
	if err == nil && len(data) > maxSecretFile {
		err = errors.New("it is longer than 64 KiB")
	}
	line, _, _ := strings.Cut(string(data), "\n")
	return strings.TrimSuffix(line, "\r"), err
}

// ask asks at the terminal, without showing what is typed.
func (a *app) ask(what string) (string, error) {
	fmt.Fprintf(a.Err, "%s: ", what)
	typed, err := term.ReadPassword(int(a.In.(*os.File).Fd()))
	fmt.Fprintln(a.Err)
	if err == nil && len(typed) == 0 {
		err = fmt.Errorf("no %s was typed; nothing was done", what)
	}
	return string(typed), err
}

// credential is a file that systemd hands to the daemon (LoadCredential=), or "".
func (a *app) credential(name string) string {
	dir := a.Getenv("CREDENTIALS_DIRECTORY")
	if dir == "" {
		return ""
	}
	path, err := filepath.Abs(filepath.Join(dir, name))
	if err != nil {
		return ""
	}
	if _, err := os.Stat(path); err != nil {
		return ""
	}
	return path
}

// serveSecrets completes a configuration with what opens the vaults' keys: flags, then
// systemd's credentials, then the environment, then the person at the terminal.
func (a *app) serveSecrets(cfg *config.Config) error {
	first := func(values ...string) string {
		for _, v := range values {
			if v != "" {
				return v
			}
		}
		return ""
	}
	cfg.PassphraseFile = first(cfg.PassphraseFile, a.credential("keelblock.passphrase"))
	cfg.KMSTokenFile = first(cfg.KMSTokenFile, a.credential("keelblock.kms-token"))
	cfg.KMSToken = a.Getenv("VAULT_TOKEN")
	if cert := a.Getenv("VAULT_CACERT"); cfg.KMSCACert == "" && cert != "" {
		var err error
		if cfg.KMSCACert, err = filepath.Abs(cert); err != nil { // a detached daemon works in another folder
			return err
		}
	}
	cfg.KMSNamespace = first(cfg.KMSNamespace, a.Getenv("VAULT_NAMESPACE"))
	if p := a.Getenv("KEELBLOCK_PASSPHRASE"); p != "" {
		cfg.Passphrases = append(cfg.Passphrases, p)
	}
	if cfg.PassphraseFD != nil && *cfg.PassphraseFD >= 0 {
		f := os.NewFile(uintptr(*cfg.PassphraseFD), "passphrase descriptor")
		data, err := io.ReadAll(io.LimitReader(f, maxSecretFile))
		if err = errors.Join(err, f.Close()); err != nil {
			return fmt.Errorf("read passphrases from descriptor %d: %w", *cfg.PassphraseFD, err)
		}
		for line := range strings.Lines(string(data)) {
			if line = strings.TrimRight(line, "\r\n"); line != "" {
				cfg.Passphrases = append(cfg.Passphrases, line)
			}
		}
	}
	if len(cfg.Passphrases) == 0 && cfg.PassphraseFile == "" && a.inTerminal && a.errTerminal && keys.NeedsPassphrase(cfg.KeysDir()) {
		p, err := a.ask("passphrase of the vault (empty: it stays closed)")
		if err == nil {
			cfg.Passphrases = append(cfg.Passphrases, p)
		}
	}
	return nil
}

// passphrasePipe is where a detached daemon reads the passphrases that its parent was
// given.
func passphrasePipe(cfg config.Config) io.Reader {
	return strings.NewReader(strings.Join(cfg.Passphrases, "\n"))
}

// unsavedText tells the user to save keys, or is "".
func unsavedText(r daemon.Ready) string {
	if len(r.UnsavedKeys) == 0 {
		return ""
	}
	return fmt.Sprintf("The keys of vault %s are saved nowhere else. Run keelblock key backup FILE, and keep FILE and the secret\n"+
		"that it prints away from this machine: with the keys lost, nothing can read the vault's recovery points.\n", strings.Join(r.UnsavedKeys, ", "))
}
