package blockstore_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/blockstore"
	"github.com/keelblock/keelblock/dedupe/dedupetest"
	"github.com/keelblock/keelblock/dedupe/keyring"
	"github.com/keelblock/keelblock/dedupe/pack"
)

// testKeys are keys that all processes of these tests have.
func testKeys() *keyring.Keys {
	b, err := os.ReadFile("../keyring/testdata/keys-v1.bin")
	if err == nil {
		var k *keyring.Keys
		if k, err = keyring.Unmarshal(b); err == nil {
			return k
		}
	}
	panic(err)
}

// encrypted are options with testKeys.
func encrypted(o blockstore.Options) blockstore.Options {
	o.Keys = []*keyring.Keys{testKeys()}
	return o
}

// eachDomain runs a test over a plain and over an encrypted vault.
func eachDomain(t *testing.T, test func(t *testing.T, crashOptions blockstore.Options)) {
	t.Helper()
	t.Run("plain", func(t *testing.T) { test(t, crashOptions) })
	t.Run("encrypted", func(t *testing.T) { test(t, encrypted(crashOptions)) })
}

// otherKeys are keys of the domain of k with other secrets.
func otherKeys(k *keyring.Keys) *keyring.Keys { return keyring.New(k.Domain()) }

// TestKeysOfAVault: an encrypted vault opens with its keys alone. What refuses names the
// vault, the domain and what to do.
func TestKeysOfAVault(t *testing.T) {
	o := encrypted(crashOptions)
	dir, points := writtenVault(t, o)
	plain, _ := writtenVault(t, crashOptions)
	for _, tt := range []struct {
		name string
		dir  string
		keys []*keyring.Keys
		want error
	}{
		{"no key", dir, nil, dedupe.ErrNoKey},
		{"keys of another domain", dir, []*keyring.Keys{keyring.New(dedupe.DomainID{5})}, dedupe.ErrNoKey},
		{"other keys of the domain", dir, []*keyring.Keys{otherKeys(testKeys())}, dedupe.ErrWrongKey},
		{"its keys, and those of another domain", dir, []*keyring.Keys{keyring.New(dedupe.DomainID{5}), testKeys()}, nil},
		{"keys for a plain vault", plain, []*keyring.Keys{testKeys()}, nil},
	} {
		for _, readOnly := range []bool{false, true} {
			o := crashOptions
			o.Keys, o.ReadOnly = tt.keys, readOnly
			s, err := blockstore.Open(tt.dir, o)
			if !errors.Is(err, tt.want) {
				t.Errorf("%s, read-only %v: %v, want %v", tt.name, readOnly, err, tt.want)
			}
			if err == nil {
				if err := s.Close(); err != nil {
					t.Error(err)
				}
				continue
			}
			sb, sbErr := blockstore.ReadSuperblock(tt.dir)
			if sbErr != nil {
				t.Fatal(sbErr)
			}
			for _, part := range []string{fmt.Sprintf("%x", sb.Vault), fmt.Sprintf("%x", testKeys().Domain()), "keelblock key"} {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("%s: error does not say %s: %v", tt.name, part, err)
				}
			}
		}
	}
	s := openVault(t, dir, o)
	if err := checkStore(s, points); err != nil {
		t.Error(err)
	}
}

// TestCreateWithKeys: the superblock of an encrypted vault says so, and which domains.
func TestCreateWithKeys(t *testing.T) {
	a, b := keyring.New(dedupe.DomainID{1}), keyring.New(dedupe.DomainID{2})
	o := blockstore.Options{Keys: []*keyring.Keys{a, b}, Domain: b.Domain()}
	sb, err := blockstore.ReadSuperblock(newVault(t, o))
	if err != nil {
		t.Fatal(err)
	}
	for i, k := range []*keyring.Keys{b, a} {
		want := pack.Domain{ID: k.Domain(), Scheme: pack.SchemeKeyedGrains, Cipher: pack.CipherXAES, Check: k.Check(), KeyID: k.DataKeys()[0]}
		if sb.Domains[i] != want {
			t.Errorf("domain %d is %+v, want %+v", i, sb.Domains[i], want)
		}
	}
	o.Domain = dedupe.DomainID{3}
	if err := blockstore.Create(t.TempDir(), o); err == nil {
		t.Error("a vault was made that writes in a domain without keys")
	}
	o.Keys, o.Domain = []*keyring.Keys{a, otherKeys(a)}, a.Domain()
	if err := blockstore.Create(t.TempDir(), o); err == nil {
		t.Error("a vault was made of two keys of one domain")
	}
}

// TestWithoutKeys: without its key a vault shows trees and manifests, its index is made
// anew and it recovers from an unclean stop; blocks and notes are ErrNoKey, and nothing
// of that is damage.
func TestWithoutKeys(t *testing.T) {
	dir, points := writtenVault(t, encrypted(crashOptions))
	markUnclean(t, dir)
	if err := blockstore.RebuildIndex(t.Context(), dir, crashOptions, nil); err != nil {
		t.Fatalf("rebuild the index without a key: %v", err)
	}
	markUnclean(t, dir)
	keyless := crashOptions
	keyless.Keyless = true
	s, err := blockstore.Open(dir, keyless)
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range points {
		if _, err := s.Get(t.Context(), dedupe.KindManifest, id, nil); err != nil {
			t.Errorf("manifest: %v", err)
		}
		if err := checkPoint(s, id); !errors.Is(err, dedupe.ErrNoKey) || errors.Is(err, dedupe.ErrCorrupt) {
			t.Errorf("a point's blocks: %v, want ErrNoKey", err)
		}
	}
	notes := 0
	err = s.Notes(t.Context(), func(dedupe.Note) bool { notes++; return true })
	if notes > 0 || !errors.Is(err, dedupe.ErrNoKey) {
		t.Errorf("%d notes, %v, want ErrNoKey", notes, err)
	}
	b := dedupetest.Begin(t, s)
	if _, err := b.PutBlock(t.Context(), testBlock(s, 1)); !errors.Is(err, dedupe.ErrNoKey) {
		t.Errorf("put a block: %v, want ErrNoKey", err)
	}
	if _, err := b.Commit(t.Context(), dedupe.Publication{Notes: []dedupe.Note{{Type: 1, Body: []byte("x")}}}); !errors.Is(err, dedupe.ErrNoKey) {
		t.Errorf("commit a note: %v, want ErrNoKey", err)
	}
	if n := s.Stats().CorruptBlocks; n != 0 {
		t.Errorf("%d blocks count as corrupt for want of a key", n)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	with := openVault(t, dir, encrypted(crashOptions))
	if err := checkStore(with, points); err != nil {
		t.Errorf("with the key again: %v", err)
	}
}

// TestDomainsInOneVault: a vault can hold blocks of several domains. Each is read by the
// keys of its own, equal content of two is stored twice, and for want of one key the
// others' blocks are read.
func TestDomainsInOneVault(t *testing.T) {
	a, b := keyring.New(dedupe.DomainID{1}), keyring.New(dedupe.DomainID{2})
	o := crashOptions
	o.Keys = []*keyring.Keys{a, b}
	dir := newVault(t, o)
	digests := make(map[dedupe.DomainID][]dedupe.Digest)
	var content [][]byte
	for _, k := range o.Keys {
		o.Domain = k.Domain()
		s, err := blockstore.Open(dir, o)
		if err != nil {
			t.Fatal(err)
		}
		batch := dedupetest.Begin(t, s)
		content = nil
		for seed := range uint64(10) {
			p := testBlock(s, seed)
			put := dedupetest.PutBlock(t, batch, p)
			if !put.New || put.Digest != k.Digester().Block(p) {
				t.Errorf("block %d in domain %x: %+v", seed, k.Domain(), put)
			}
			if again := dedupetest.PutBlock(t, batch, p); again.New {
				t.Errorf("block %d in domain %x is stored twice", seed, k.Domain())
			}
			digests[k.Domain()] = append(digests[k.Domain()], put.Digest)
			content = append(content, p)
		}
		dedupetest.Commit(t, batch, "one")
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	all := slices.Concat(digests[a.Domain()], digests[b.Domain()])
	check := func(have ...*keyring.Keys) {
		o.Keys, o.Domain = have, have[0].Domain()
		s := openVault(t, dir, o)
		defer s.Close()
		bufs, errs := make([][]byte, len(all)), make([]error, len(all))
		for i := range bufs {
			bufs[i] = make([]byte, s.BlockSize())
		}
		s.GetBlocks(t.Context(), all, bufs, errs)
		for i := range all {
			missing := i >= 10 && len(have) == 1
			if missing && !errors.Is(errs[i], dedupe.ErrNoKey) || !missing && (errs[i] != nil || !bytes.Equal(bufs[i], content[i%10])) {
				t.Errorf("block %d with %d keys: %v", i, len(have), errs[i])
			}
		}
	}
	check(a, b)
	check(a)
	if err := blockstore.RebuildIndex(t.Context(), dir, o, nil); err != nil {
		t.Fatal(err)
	}
	check(a, b)
}

// TestNewDataKey: after a data key was added the next records are sealed by it, and all
// read; without the old one its records are ErrNoKey.
func TestNewDataKey(t *testing.T) {
	k := keyring.New(dedupe.DomainID{1})
	o := crashOptions
	o.Keys = []*keyring.Keys{k}
	dir := newVault(t, o)
	s := openVault(t, dir, o)
	first := writePoint(t, s, "first", []uint64{1, 2})
	if _, ok := k.AddDataKey(); !ok {
		t.Fatal("no new data key")
	}
	second := writePoint(t, s, "second", []uint64{2, 3})
	if err := checkStore(s, []dedupe.Digest{first, second}); err != nil {
		t.Error(err)
	}
	if n := s.Stats().Blocks; n != 3 {
		t.Errorf("%d blocks, want 3: the id key has not changed", n)
	}
}

// TestSealedRecordsInAVault: what somebody who can write packs does to a sealed record,
// checksums made right again, is an error that names digest and pack, and never other
// bytes.
func TestSealedRecordsInAVault(t *testing.T) {
	for _, compression := range []blockstore.Compression{blockstore.CompressionS2, blockstore.CompressionZstd, blockstore.CompressionNone} {
		t.Run(fmt.Sprint(compression), func(t *testing.T) {
			o := encrypted(crashOptions)
			o.Compression = compression
			dir := newVault(t, o)
			s := openVault(t, dir, o)
			writePoint(t, s, "one", []uint64{versions, 2 * versions})
			block := testBlock(s, versions)
			d := s.BlockDigest(block)
			path, off, length, err := s.Locate(d)
			if err != nil {
				t.Fatal(err)
			}
			_, otherOff, otherLength, err := s.Locate(s.BlockDigest(testBlock(s, 2*versions)))
			if err != nil || otherLength != length {
				t.Fatalf("the second block takes %d bytes, the first %d: %v", otherLength, length, err)
			}
			record, other := readAt(t, path, off, length), readAt(t, path, otherOff, length)
			const header = pack.RecordHeaderSize
			rec, err := pack.DecodeRecord(record)
			if err != nil || rec.CheckCiphertext(record[header:]) != nil {
				t.Fatalf("record is not to be verified without a key: %v", err)
			}
			try := func(what string, want error, changed []byte) {
				t.Helper()
				fixRecord(changed)
				writeAt(t, path, off, changed)
				defer writeAt(t, path, off, record)
				got, err := s.Get(t.Context(), dedupe.KindBlock, d, nil)
				if got != nil || !errors.Is(err, want) {
					t.Errorf("%s: %d bytes, %v, want %v", what, len(got), err, want)
				} else if !strings.Contains(err.Error(), d.String()) || !strings.Contains(err.Error(), strings.TrimSuffix(filepath.Base(path), ".pack")) {
					t.Errorf("%s: error does not name block and pack: %v", what, err)
				}
				buf, errs := [][]byte{make([]byte, s.BlockSize())}, make([]error, 1)
				if s.GetBlocks(t.Context(), []dedupe.Digest{d}, buf, errs); !errors.Is(errs[0], want) {
					t.Errorf("%s, GetBlocks: %v, want %v", what, errs[0], want)
				}
			}
			for _, field := range []struct {
				name string
				at   int
				want error
			}{
				{"kind", 5, dedupe.ErrUnknownFormat}, {"codec", 6, dedupe.ErrCorrupt}, {"level", 8, dedupe.ErrCorrupt},
				{"depth", 9, dedupe.ErrCorrupt}, {"grain size", 13, dedupe.ErrCorrupt}, {"logical length", 17, dedupe.ErrCorrupt},
				{"stored length", 21, dedupe.ErrCorrupt}, {"domain", 30, dedupe.ErrNoKey}, {"key id", 45, dedupe.ErrNoKey},
				{"digest", 60, dedupe.ErrCorrupt}, {"base", 130, dedupe.ErrCorrupt},
				{"nonce, first half", 153, dedupe.ErrCorrupt}, {"nonce, second half", 175, dedupe.ErrCorrupt},
				{"reserved", 180, dedupe.ErrCorrupt}, {"first byte", header, dedupe.ErrCorrupt},
				{"middle", int(length) / 2, dedupe.ErrCorrupt}, {"tag", int(length) - 1, dedupe.ErrCorrupt},
			} {
				changed := bytes.Clone(record)
				changed[field.at] ^= 1
				if field.name == "codec" && rec.Codec == pack.CodecS2 { // 2 and 1 are codecs, 3 is none
					changed[field.at] = byte(pack.CodecZstd)
				}
				try(field.name, field.want, changed)
			}
			try("another block's record", dedupe.ErrCorrupt, bytes.Clone(other))
			moved := bytes.Clone(other)
			copy(moved[56:88], d[:])
			try("another block's record under this digest", dedupe.ErrCorrupt, moved)
			try("another block's payload", dedupe.ErrCorrupt, slices.Concat(record[:header], other[header:]))
			plain := bytes.Clone(record)
			plain[11] = 0
			clear(plain[40:56])
			try("as if it were not sealed", dedupe.ErrCorrupt, plain)
			if got, err := s.Get(t.Context(), dedupe.KindBlock, d, nil); err != nil || !bytes.Equal(got, block) {
				t.Errorf("put back as it was: %v", err)
			}
		})
	}
}

func readAt(t testing.TB, path string, off, n int64) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b[off:][:n]
}

func writeAt(t testing.TB, path string, off int64, b []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteAt(b, off)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
}

// fixRecord makes both checksums and the ciphertext hash of a changed record right.
func fixRecord(b []byte) {
	sum := dedupe.Sum(b[pack.RecordHeaderSize:])
	copy(b[88:], sum[:])
	crc := crc32.MakeTable(crc32.Castagnoli)
	binary.LittleEndian.PutUint32(b[184:], crc32.Checksum(b[pack.RecordHeaderSize:], crc))
	binary.LittleEndian.PutUint32(b[188:], crc32.Checksum(b[:188], crc))
}
