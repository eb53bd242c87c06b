// Package keystest lets tests look into the packs of an encrypted vault.
package keystest

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/keelblock/keelblock/appliance/keys"
	"github.com/keelblock/keelblock/dedupe/keyring"
	"github.com/keelblock/keelblock/dedupe/pack"
)

// Open gives the keys of the default vault of a data folder, which are wrapped by its
// platform key.
func Open(t testing.TB, dataDir string) *keyring.Keys {
	t.Helper()
	s := keys.New(keys.Options{Dir: filepath.Join(dataDir, "keys"), PlatformFile: filepath.Join(dataDir, "platform.key")})
	list, err := s.Vault("default", filepath.Join(dataDir, "vault"), keys.Spec{}).Open(context.Background())
	if err != nil || len(list) != 1 {
		t.Fatalf("keys of the default vault of %s: %d, %v", dataDir, len(list), err)
	}
	return list[0]
}

// offsetOfDigest in a record's header, see FORMAT.md of package pack.
const offsetOfDigest = 56

// FlipBlock flips a bit in the stored payload of a block of the default vault, and returns
// in how many packs it was found. The daemon must not run.
func FlipBlock(t testing.TB, dataDir string, block []byte) (packs int) {
	t.Helper()
	id := Open(t, dataDir).Digester().Block(block)
	paths, err := filepath.Glob(filepath.Join(dataDir, "vault", "packs", "*.pack"))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range paths {
		data, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		// The record comes before the footer that names it again.
		i := bytes.Index(data, id[:])
		if i < offsetOfDigest {
			continue
		}
		rec, err := pack.DecodeRecord(data[i-offsetOfDigest:])
		if err != nil || rec.Digest != id {
			continue // a node that has the id among its children
		}
		data[i-offsetOfDigest+pack.RecordHeaderSize+int(rec.HeadLength)+16] ^= 1
		packs++
		if err := os.WriteFile(p, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return packs
}
