package keyring_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/keyring"
	"github.com/keelblock/keelblock/dedupe/pack"
)

const goldenCheckV2 = "94ed43f12408ff63458d2e170c12"

var update = flag.Bool("update", false, "write golden files of the present format")

// TestGoldenKeys: keys of every released version open, and make the ids and open the
// records that they made then.
func TestGoldenKeys(t *testing.T) {
	t.Run("ids of blocks", func(t *testing.T) {
		testGoldenKeys(t, "v1", "7cd6e2a0f8af0c8bf7b8c337feb4", pack.SchemeHMAC, nil)
	})
	t.Run("ids of grains", func(t *testing.T) {
		testGoldenKeys(t, "v2", goldenCheckV2, pack.SchemeKeyedGrains, goldenList())
	})
}

// goldenList is the list of grains of the golden record of version 2.
func goldenList() []dedupe.Digest { return []dedupe.Digest{{1}, {2}, {3}, {4: 4}} }

func testGoldenKeys(t *testing.T, version, goldenCheck string, scheme uint8, list []dedupe.Digest) {
	keysFile, recordFile := "testdata/keys-"+version+".bin", "testdata/record-"+version+".bin"
	content := bytes.Repeat([]byte("golden!!"), len(list)*dedupe.GrainSize/8)
	if list == nil {
		content = []byte("golden")
	}
	if *update && version == "v2" {
		k := keyring.New(dedupe.DomainID{1, 2, 3})
		k.AddDataKey()
		r := pack.Record{Kind: dedupe.KindBlock, Digest: k.Digester().List(list), LogicalLength: uint32(len(content)),
			HasGrainList: true, HeadLength: uint32(pack.ListLength(len(content), pack.CipherXAES))}
		buf := pack.AppendList(make([]byte, pack.RecordHeaderSize), list)
		buf, err := k.Seal(&r, append(append(buf, make([]byte, keyring.Overhead)...), content...))
		if err == nil {
			err = pack.EncodeRecord(&r, buf)
		}
		if err = errors.Join(err, os.WriteFile(keysFile, k.Marshal(), 0o600), os.WriteFile(recordFile, buf, 0o600)); err != nil {
			t.Fatal(err)
		}
		check := k.Check()
		t.Logf("check %x", check[:])
	}
	b, err := os.ReadFile(keysFile)
	if err != nil {
		t.Fatal(err)
	}
	k, err := keyring.Unmarshal(b)
	if err != nil {
		t.Fatal(err)
	}
	if again := k.Marshal(); !bytes.Equal(again, b) {
		t.Errorf("marshalled again to %d other bytes", len(again))
	}
	check := k.Check()
	if got := hex.EncodeToString(check[:]); got != goldenCheck {
		t.Errorf("check is %s, want %s", got, goldenCheck)
	}
	if k.Scheme() != scheme {
		t.Errorf("id scheme %d, want %d", k.Scheme(), scheme)
	}
	record, err := os.ReadFile(recordFile)
	if err != nil {
		t.Fatal(err)
	}
	r, err := pack.DecodeRecord(record)
	if err != nil {
		t.Fatal(err)
	}
	if list != nil {
		stored, err := k.OpenList(&r, bytes.Clone(record[:pack.RecordHeaderSize+int(r.HeadLength)]))
		got := make([]dedupe.Digest, len(list))
		if err = errors.Join(err, pack.DecodeList(got, stored)); err != nil || !slices.Equal(got, list) || k.Digester().List(got) != r.Digest {
			t.Errorf("list of grains opens to %v, %v", got, err)
		}
	}
	got, err := k.Open(&r, record, nil)
	if err != nil || !bytes.Equal(got, content) || list == nil && k.Digester().Note(got) != r.Digest {
		t.Errorf("record opens to %d bytes, %v", len(got), err)
	}
}

// TestMarshal: keys come back whole, and no others do.
func TestMarshal(t *testing.T) {
	k := keyring.New(dedupe.DomainID{7})
	for range keyring.MaxDataKeys - 1 {
		if _, ok := k.AddDataKey(); !ok {
			t.Fatal("no room for another data key")
		}
	}
	if _, ok := k.AddDataKey(); ok {
		t.Error("more data keys than MaxDataKeys")
	}
	b := k.Marshal()
	if len(b) != keyring.MaxMarshaledSize || len(b) > 4096 {
		t.Errorf("marshalled to %d bytes, want %d", len(b), keyring.MaxMarshaledSize)
	}
	got, err := keyring.Unmarshal(b)
	if err != nil {
		t.Fatal(err)
	}
	if got.Domain() != k.Domain() || !slices.Equal(got.DataKeys(), k.DataKeys()) || got.Check() != k.Check() ||
		got.Digester().Note([]byte("x")) != k.Digester().Note([]byte("x")) {
		t.Error("keys differ after Marshal and Unmarshal")
	}
	for i := range b {
		b[i] ^= 1
		if _, err := keyring.Unmarshal(b); !errors.Is(err, dedupe.ErrCorrupt) {
			t.Fatalf("with byte %d changed: %v", i, err)
		}
		b[i] ^= 1
	}
	for _, n := range []int{0, 4, 63, 68, len(b) - 1} {
		if _, err := keyring.Unmarshal(b[:n]); !errors.Is(err, dedupe.ErrCorrupt) {
			t.Errorf("%d of %d bytes: %v", n, len(b), err)
		}
	}
}

// TestKeysOfOtherDomains: another domain, or other secrets, make other ids and checks.
func TestKeysOfOtherDomains(t *testing.T) {
	a := keyring.New(dedupe.DomainID{1})
	b := keyring.New(dedupe.DomainID{1})
	other := a.Marshal()
	other[16] = 2 // its domain
	keyring.FixCRC(other)
	c, err := keyring.Unmarshal(other)
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range []*keyring.Keys{b, c} {
		if k.Check() == a.Check() || k.Digester().Note([]byte("x")) == a.Digester().Note([]byte("x")) {
			t.Errorf("%v are taken for %v", k, a)
		}
	}
}

// TestNothingIsPrinted: no verb and no logger shows a secret.
func TestNothingIsPrinted(t *testing.T) {
	k := keyring.New(dedupe.DomainID{9})
	b := k.Marshal()
	id, data := b[32:64], b[64+16:64+48]
	var printed strings.Builder
	slog.New(slog.NewJSONHandler(&printed, nil)).Info("x", "keys", k)
	slog.New(slog.NewTextHandler(&printed, nil)).Info("x", "keys", k)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d", "%t"} {
		fmt.Fprintf(&printed, verb, k)
		fmt.Fprintf(&printed, verb, struct{ K *keyring.Keys }{k})
		fmt.Fprintf(&printed, verb, k.Digester())
	}
	printed.WriteString(k.GoString())
	for _, secret := range [][]byte{id, data} {
		for _, form := range []string{"%s", "%x", "%X", "%d", "%v", "%q"} {
			text := strings.Trim(fmt.Sprintf(form, secret[:8]), "[]\"")
			if strings.Contains(printed.String(), text) {
				t.Errorf("a secret is printed as %s", form)
			}
		}
	}
}

func FuzzUnmarshal(f *testing.F) {
	f.Add(keyring.New(dedupe.DomainID{1}).Marshal())
	f.Fuzz(func(t *testing.T, b []byte) {
		b = bytes.Clone(b)
		keyring.FixCRC(b)
		k, err := keyring.Unmarshal(b)
		if err != nil {
			return
		}
		if again := k.Marshal(); !bytes.Equal(again, b) {
			t.Fatalf("%d bytes are marshalled again to %d others", len(b), len(again))
		}
	})
}
