package luks

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/keelblock/keelblock/blockdev/filesystem/fstest"
)

// TestVolumesOfQEMU reads volumes that qemu-img encrypted.
func TestVolumesOfQEMU(t *testing.T) {
	plain := random(1<<20, 5)
	dir := t.TempDir()
	in := filepath.Join(dir, "plain text")
	if err := os.WriteFile(in, plain, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, options := range map[string]string{
		"xts":   "cipher-alg=aes-256,cipher-mode=xts,ivgen-alg=plain64,hash-alg=sha256,iter-time=10",
		"essiv": "cipher-alg=aes-256,cipher-mode=cbc,ivgen-alg=essiv,ivgen-hash-alg=sha256,hash-alg=sha1,iter-time=10",
	} {
		out := filepath.Join(dir, name)
		fstest.Run(t, "qemu-img", "convert", "-f", "raw", "-O", "luks", "--object", "secret,id=s,data=correct horse", "-o", "key-secret=s,"+options, in, out)
		p, err := os.ReadFile(out)
		if err != nil {
			t.Fatal(err)
		}
		v := open(t, p, "correct horse")
		got := make([]byte, v.Size())
		if _, err := v.ReadAt(got, 0); err != nil || !bytes.Equal(got, plain) {
			t.Errorf("%s: %d bytes, %v, equal: %v", name, len(got), err, bytes.Equal(got, plain))
		}
		h, err := ReadHeader(bytes.NewReader(p), int64(len(p)))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := h.Unlock([]byte("wrong horse")); !errors.Is(err, ErrPassphrase) {
			t.Errorf("%s, wrong passphrase: %v", name, err)
		}
	}
}

// TestVolumesOfCryptsetup opens headers that cryptsetup made, by passphrase and by key
// file, and compares the volume key with the one that cryptsetup shows.
func TestVolumesOfCryptsetup(t *testing.T) {
	dir := t.TempDir()
	passphrase, keyFile := filepath.Join(dir, "passphrase"), filepath.Join(dir, "keyfile")
	for path, content := range map[string][]byte{passphrase: []byte("correct horse"), keyFile: random(64, 4)} {
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, options := range map[string][]string{
		"luks1":    {"--type", "luks1", "--pbkdf-force-iterations", "1000", "-h", "sha1", "-c", "aes-cbc-essiv:sha256", "-s", "128"},
		"argon2id": {"--type", "luks2", "--pbkdf", "argon2id", "--pbkdf-memory", "4096", "--pbkdf-parallel", "3", "--pbkdf-force-iterations", "4", "--sector-size", "4096"},
		"argon2i":  {"--type", "luks2", "--pbkdf", "argon2i", "--pbkdf-memory", "999", "--pbkdf-parallel", "1", "--pbkdf-force-iterations", "5"},
		"pbkdf2":   {"--type", "luks2", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "-h", "sha512", "-s", "256"},
	} {
		image := fstest.Image(t, 20<<20)
		args := append([]string{"cryptsetup", "luksFormat", "-q", "-d", passphrase}, options...)
		fstest.Run(t, append(args, image)...)
		fstest.Run(t, "cryptsetup", "luksAddKey", "-q", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "-d", passphrase, image, keyFile)
		want := filepath.Join(dir, name+".key")
		fstest.Run(t, "cryptsetup", "luksDump", "-q", "--dump-master-key", "--master-key-file", want, "-d", passphrase, image)
		key, err := os.ReadFile(want)
		if err != nil {
			t.Fatal(err)
		}
		f, size := fstest.Open(t, image)
		h, err := ReadHeader(f, size)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if len(h.Warnings) > 0 {
			t.Errorf("%s: %q", name, h.Warnings)
		}
		for _, secret := range [][]byte{[]byte("correct horse"), random(64, 4)} {
			if got, err := h.Unlock(secret); err != nil || !bytes.Equal(got, key) {
				t.Errorf("%s: %d bytes of key, %v", name, len(got), err)
			}
		}
	}
}
