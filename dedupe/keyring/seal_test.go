package keyring_test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/keyring"
	"github.com/keelblock/keelblock/dedupe/pack"
)

// sealed is a record of content as it stands in a pack, and its header.
func sealed(t testing.TB, k *keyring.Keys, content []byte) ([]byte, pack.Record) {
	t.Helper()
	r := pack.Record{Kind: dedupe.KindBlock, Digest: k.Digester().Note(content), LogicalLength: uint32(len(content))}
	buf, err := k.Seal(&r, append(make([]byte, pack.RecordHeaderSize, pack.RecordHeaderSize+len(content)+keyring.Overhead), content...))
	if err != nil {
		t.Fatal(err)
	}
	if err := pack.EncodeRecord(&r, buf); err != nil {
		t.Fatal(err)
	}
	return buf, r
}

func block(n int) []byte {
	p := make([]byte, n)
	rand.NewChaCha8([32]byte{3}).Read(p)
	return p
}

// TestSeal: content of any length comes back, into another buffer and in place, by the
// key that sealed it, also after another one was added.
func TestSeal(t *testing.T) {
	k := keyring.New(dedupe.DomainID{1})
	for _, n := range []int{0, 1, 15, 16, 17, 4096, 64 << 10} {
		want := block(n)
		buf, r := sealed(t, k, want)
		if r.StoredLength != uint32(n+keyring.Overhead) || r.Domain != k.Domain() || r.Nonce == [24]byte{} {
			t.Fatalf("%d bytes are sealed as %+v", n, r)
		}
		if n > 15 && bytes.Contains(buf, want[:16]) {
			t.Fatalf("%d bytes stand in clear in their record", n)
		}
		if err := r.CheckCiphertext(buf[pack.RecordHeaderSize:]); err != nil {
			t.Fatal(err)
		}
		k.AddDataKey()
		dst := make([]byte, 0, n)
		got, err := k.Open(&r, bytes.Clone(buf), dst)
		if err != nil || !bytes.Equal(got, want) {
			t.Fatalf("%d bytes: open: %v", n, err)
		}
		if n > 0 && &got[0] != &dst[:1][0] {
			t.Errorf("%d bytes are not opened into the buffer", n)
		}
		if got, err = k.Open(&r, buf, nil); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("%d bytes: open in place: %v", n, err)
		}
	}
}

// TestSealWithoutRoom: a buffer without room for the seal is replaced.
func TestSealWithoutRoom(t *testing.T) {
	k := keyring.New(dedupe.DomainID{1})
	want := block(100)
	r := pack.Record{Kind: dedupe.KindNote, LogicalLength: 100}
	buf, err := k.Seal(&r, append(make([]byte, pack.RecordHeaderSize, pack.RecordHeaderSize+100), want...))
	if err != nil || pack.EncodeRecord(&r, buf) != nil {
		t.Fatal(err)
	}
	if got, err := k.Open(&r, buf, nil); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("open: %v", err)
	}
}

// TestNonces: equal content is sealed to other bytes each time.
func TestNonces(t *testing.T) {
	k := keyring.New(dedupe.DomainID{1})
	seen := make(map[[24]byte]bool)
	for range 1000 {
		buf, r := sealed(t, k, block(64))
		if seen[r.Nonce] {
			t.Fatal("a nonce was used twice")
		}
		seen[r.Nonce] = true
		if bytes.Count(buf, buf[pack.RecordHeaderSize:][:32]) != 1 {
			t.Fatal("ciphertext repeats")
		}
	}
}

// TestTampering changes each bit of a sealed record in turn and makes its checksums
// right again, as somebody who can write packs would: no header and no payload but the
// one that was sealed is opened.
func TestTampering(t *testing.T) {
	k := keyring.New(dedupe.DomainID{1})
	buf, _ := sealed(t, k, block(64))
	for i := range len(buf) * 8 {
		b := bytes.Clone(buf)
		b[i/8] ^= 1 << (i % 8)
		got, err := k.Open(reseal(t, b), b, nil)
		unauthenticated := i/8 >= 88 && i/8 < 120 || i/8 >= 184 && i/8 < 192
		switch {
		case unauthenticated && err == nil && bytes.Equal(got, block(64)):
		case errors.Is(err, dedupe.ErrCorrupt), errors.Is(err, dedupe.ErrNoKey), errors.Is(err, dedupe.ErrUnknownFormat):
			if got != nil {
				t.Fatalf("bit %d of byte %d changed: content with the error %v", i%8, i/8, err)
			}
		default:
			t.Fatalf("bit %d of byte %d changed: %v", i%8, i/8, err)
		}
	}
}

// reseal reads a changed record's header after its checksum was made right; a header
// that is not one any more is refused before Open is asked.
func reseal(t *testing.T, b []byte) *pack.Record {
	t.Helper()
	keyring.FixRecordCRC(b)
	r, err := pack.DecodeRecord(b)
	if err != nil {
		if !errors.Is(err, dedupe.ErrCorrupt) && !errors.Is(err, dedupe.ErrUnknownFormat) {
			t.Fatal(err)
		}
		return &pack.Record{Cipher: 0xff}
	}
	return &r
}

// TestSwappedPayload: a payload under the header of another record of the same key, and
// a whole record under another digest, are not opened.
func TestSwappedPayload(t *testing.T) {
	k := keyring.New(dedupe.DomainID{1})
	a, _ := sealed(t, k, block(64))
	b, _ := sealed(t, k, block(128)[64:])
	swapped := append(bytes.Clone(a[:pack.RecordHeaderSize]), b[pack.RecordHeaderSize:]...)
	if _, err := k.Open(reseal(t, swapped), swapped, nil); !errors.Is(err, dedupe.ErrCorrupt) {
		t.Errorf("another record's payload: %v", err)
	}
	moved := bytes.Clone(a)
	copy(moved[56:88], b[56:88]) // the digest
	if _, err := k.Open(reseal(t, moved), moved, nil); !errors.Is(err, dedupe.ErrCorrupt) {
		t.Errorf("under another digest: %v", err)
	}
}

// TestOtherKeys: a record of another domain, or of a data key that is not there, is
// ErrNoKey; under the same names with other secrets it is corrupt.
func TestOtherKeys(t *testing.T) {
	k := keyring.New(dedupe.DomainID{1})
	buf, r := sealed(t, k, block(64))
	if _, err := keyring.New(dedupe.DomainID{2}).Open(&r, bytes.Clone(buf), nil); !errors.Is(err, dedupe.ErrNoKey) {
		t.Errorf("keys of another domain: %v", err)
	}
	if _, err := keyring.New(dedupe.DomainID{1}).Open(&r, bytes.Clone(buf), nil); !errors.Is(err, dedupe.ErrNoKey) {
		t.Errorf("another data key: %v", err)
	}
	b := k.Marshal()
	b[64+16]++ // the data secret
	keyring.FixCRC(b)
	wrong, err := keyring.Unmarshal(b)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := wrong.Open(&r, bytes.Clone(buf), nil); !errors.Is(err, dedupe.ErrCorrupt) {
		t.Errorf("another secret under the same id: %v", err)
	}
}

// TestAllocations: the derivation of a record's key allocates nothing. (BenchmarkSeal
// shows what sealing and opening do: the standard library's states.)
func TestAllocations(t *testing.T) {
	k := keyring.New(dedupe.DomainID{1})
	nonce := make([]byte, 24)
	least := 1.0 // a pool may be emptied at any time
	for range 50 {
		least = min(least, testing.AllocsPerRun(1, func() { k.Derivation(nonce) }))
	}
	if least > 0 {
		t.Errorf("a derivation allocates %v times", least)
	}
}

// FuzzOpen opens any bytes with a header that verifies: it never panics, and gives
// nothing but what was sealed.
func FuzzOpen(f *testing.F) {
	b := keyring.New(dedupe.DomainID{1}).Marshal()
	clear(b[32:])
	b[64] = 1
	keyring.FixCRC(b)
	k, err := keyring.Unmarshal(b)
	if err != nil {
		f.Fatal(err)
	}
	buf, _ := sealed(f, k, []byte("fuzz"))
	f.Add(buf)
	f.Add(buf[:len(buf)-1])
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < pack.RecordHeaderSize {
			return
		}
		b = bytes.Clone(b)
		keyring.FixRecordCRC(b)
		r, err := pack.DecodeRecord(b)
		if err != nil {
			return
		}
		if got, err := k.Open(&r, b, nil); err == nil && string(got) != "fuzz" {
			t.Fatalf("opened to %q", got)
		}
	})
}

func BenchmarkSeal(b *testing.B) {
	k := keyring.New(dedupe.DomainID{1})
	content := block(64 << 10)
	buf := append(make([]byte, pack.RecordHeaderSize, pack.RecordHeaderSize+len(content)+keyring.Overhead), content...)
	r := pack.Record{Kind: dedupe.KindBlock, LogicalLength: uint32(len(content))}
	b.Run("seal", func(b *testing.B) {
		b.SetBytes(int64(len(content)))
		b.ReportAllocs()
		for b.Loop() {
			if _, err := k.Seal(&r, buf); err != nil {
				b.Fatal(err)
			}
		}
	})
	record, rec := sealed(b, k, content)
	dst := make([]byte, 0, len(content))
	b.Run("open", func(b *testing.B) {
		b.SetBytes(int64(len(content)))
		b.ReportAllocs()
		for b.Loop() {
			if _, err := k.Open(&rec, record, dst); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// listed is a sealed record of a block with its list of grains, as it stands in a pack.
func listed(t testing.TB, k *keyring.Keys, content []byte) (record []byte, head int, list []dedupe.Digest) {
	t.Helper()
	var sum [1]dedupe.Summed
	k.Digester().SumBlocks(sum[:], [][]byte{content})
	list = sum[0].List()
	head = pack.ListLength(len(content), pack.CipherXAES)
	r := pack.Record{Kind: dedupe.KindBlock, Digest: sum[0].Digest(), LogicalLength: uint32(len(content)), HasGrainList: true, HeadLength: uint32(head)}
	buf := append(pack.AppendList(make([]byte, pack.RecordHeaderSize), list), make([]byte, keyring.Overhead)...)
	buf, err := k.Seal(&r, append(buf, content...))
	if err != nil {
		t.Fatal(err)
	}
	if err := pack.EncodeRecord(&r, buf); err != nil {
		t.Fatal(err)
	}
	return buf, head, list
}

// TestSealedList: a list of grains opens without the content and the content without the
// list; neither stands in clear, and no changed bit of header or list is taken.
func TestSealedList(t *testing.T) {
	k := keyring.New(dedupe.DomainID{1})
	content := block(16 << 10)
	buf, head, list := listed(t, k, content)
	if bytes.Contains(buf, list[1][:]) || bytes.Contains(buf, content[:32]) {
		t.Fatal("list or content stands in clear in the record")
	}
	r, err := pack.DecodeRecord(buf)
	if err != nil || r.CheckCiphertext(buf[pack.RecordHeaderSize:]) != nil {
		t.Fatalf("record: %v", err)
	}
	open := func(record []byte) ([]dedupe.Digest, error) {
		r := reseal(t, record)
		stored, err := k.OpenList(r, record)
		if err != nil {
			return nil, err
		}
		got := make([]dedupe.Digest, len(list))
		return got, pack.DecodeList(got, stored)
	}
	short := buf[:pack.RecordHeaderSize+head]
	if got, err := open(bytes.Clone(short)); err != nil || !slices.Equal(got, list) || k.Digester().List(got) != r.Digest {
		t.Fatalf("list opens to %v, %v", got, err)
	}
	if got, err := k.Open(&r, bytes.Clone(buf), nil); err != nil || !bytes.Equal(got, content) {
		t.Fatalf("content opens to %d bytes, %v", len(got), err)
	}
	for i := range len(short) * 8 {
		b := bytes.Clone(short)
		b[i/8] ^= 1 << (i % 8)
		got, err := open(b)
		unauthenticated := i/8 >= 88 && i/8 < 120 || i/8 >= 184 && i/8 < 192
		if unauthenticated && err == nil && slices.Equal(got, list) {
			continue
		}
		if got != nil || !errors.Is(err, dedupe.ErrCorrupt) && !errors.Is(err, dedupe.ErrNoKey) && !errors.Is(err, dedupe.ErrUnknownFormat) {
			t.Fatalf("bit %d of byte %d changed: %v", i%8, i/8, err)
		}
	}
	if _, err := keyring.New(dedupe.DomainID{1}).OpenList(&r, bytes.Clone(short)); !errors.Is(err, dedupe.ErrNoKey) {
		t.Errorf("list opened with another key: %v", err)
	}
}
