package keyring_test

import (
	"bytes"
	"crypto/sha3"
	"encoding/hex"
	"testing"

	"github.com/keelblock/keelblock/dedupe/keyring"
)

// TestVectors are those of https://c2sp.org/XAES-256-GCM, one for each branch of the
// subkey.
func TestVectors(t *testing.T) {
	for _, v := range []struct {
		key        byte
		data, want string
	}{
		{1, "", "ce546ef63c9cc60765923609b33a9a1974e96e52daf2fcf7075e2271"},
		{3, "c2sp.org/XAES-256-GCM", "986ec1832593df5443a179437fd083bf3fdb41abd740a21f71eb769d"},
	} {
		key, nonce := bytes.Repeat([]byte{v.key}, 32), []byte("ABCDEFGHIJKLMNOPQRSTUVWX")
		got := keyring.SealXAES(key, nonce, []byte("XAES-256-GCM"), []byte(v.data))
		if hex.EncodeToString(got) != v.want {
			t.Errorf("key %d: sealed to %x, want %s", v.key, got, v.want)
		}
		plain, err := keyring.OpenXAES(key, nonce, got, []byte(v.data))
		if err != nil || string(plain) != "XAES-256-GCM" {
			t.Errorf("key %d: opened to %q, %v", v.key, plain, err)
		}
	}
}

// TestAccumulatedVectors is the specification's digest over 10 000 random inputs.
func TestAccumulatedVectors(t *testing.T) {
	s, d := sha3.NewSHAKE128(), sha3.NewSHAKE128()
	read := func(n int) []byte {
		p := make([]byte, n)
		s.Read(p)
		return p
	}
	for range 10_000 {
		key, nonce := read(32), read(24)
		plaintext := read(int(read(1)[0]))
		data := read(int(read(1)[0]))
		ciphertext := keyring.SealXAES(key, nonce, plaintext, data)
		opened, err := keyring.OpenXAES(key, nonce, ciphertext, data)
		if err != nil || !bytes.Equal(opened, plaintext) {
			t.Fatalf("opened to %x, %v, want %x", opened, err, plaintext)
		}
		d.Write(ciphertext)
	}
	sum := make([]byte, 32)
	d.Read(sum)
	if got := hex.EncodeToString(sum); got != "e6b9edf2df6cec60c8cbd864e2211b597fb69a529160cd040d56c0c210081939" {
		t.Errorf("digest of 10000 ciphertexts is %s", got)
	}
}
