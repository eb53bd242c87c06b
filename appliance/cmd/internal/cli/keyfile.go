package cli

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/spf13/pflag"
)

// maxKeyFile bounds a key file of LUKS, in bytes; cryptsetup's bound is the same.
const maxKeyFile = 8 << 20

// addKeyFiles adds the flag --key-file of the verbs that read guests' volumes.
func addKeyFiles(f *pflag.FlagSet, files *[]string) {
	f.StringArrayVar(files, "key-file", nil, "open encrypted volumes with the content of `FILE`; - asks for the passphrase (may be repeated)")
}

// addAsMounted adds the flag --as-mounted of those verbs.
func addAsMounted(f *pflag.FlagSet, asMounted *bool) {
	f.BoolVar(asMounted, "as-mounted", false, "the guest's volumes as one tree, put together by its own /etc/fstab")
}

// volumeSecrets reads what --key-file names: the bytes of a file as they are, or with "-"
// a passphrase from the person at the terminal, else all of standard input.
func (a *app) volumeSecrets(files []string) ([][]byte, error) {
	var out [][]byte
	for i, file := range files {
		if file == "-" && slices.Contains(files[:i], "-") {
			return nil, usageError{errors.New("--key-file - is there twice; standard input is read once")}
		}
		secret, err := a.volumeSecret(file)
		if err != nil {
			return nil, err
		}
		if len(secret) == 0 {
			return nil, usageError{fmt.Errorf("the key file %s is empty", file)}
		}
		out = append(out, secret)
	}
	return out, nil
}

func (a *app) volumeSecret(file string) ([]byte, error) {
	if file == "-" && a.inTerminal {
		text, err := a.ask("passphrase of the volumes")
		return []byte(text), err
	}
	from := a.In
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return nil, err
		}
		defer f.Close() // only read
		from = f
	}
	if from == nil {
		return nil, nil
	}
	secret, err := io.ReadAll(io.LimitReader(from, maxKeyFile+1))
	if err == nil && len(secret) > maxKeyFile {
		err = errors.New("it is longer than 8 MiB")
	}
	if err != nil {
		return nil, fmt.Errorf("read the key file %s: %w", file, err)
	}
	return secret, nil
}

// typedSecret is what "-" gives, for the standard input of a child process that has the
// same flags; the child reads the files itself.
func (a *app) typedSecret(files []string) ([]byte, error) {
	if !slices.Contains(files, "-") {
		return nil, nil
	}
	secrets, err := a.volumeSecrets([]string{"-"})
	if err != nil {
		return nil, err
	}
	return secrets[0], nil
}
