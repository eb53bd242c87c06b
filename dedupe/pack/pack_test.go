package pack_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/pack"
)

var update = flag.Bool("update", false, "rewrite the golden files of the present version")

// memFile is a pack.File in memory.
type memFile struct{ b []byte }

func (f *memFile) ReadAt(p []byte, off int64) (int, error) {
	return bytes.NewReader(f.b).ReadAt(p, off)
}

func (f *memFile) WriteAt(p []byte, off int64) (int, error) {
	if n := off + int64(len(p)); n > int64(len(f.b)) {
		f.b = append(f.b, make([]byte, n-int64(len(f.b)))...)
	}
	return copy(f.b[off:], p), nil
}

func (f *memFile) Truncate(n int64) error {
	if n > int64(len(f.b)) {
		f.b = append(f.b, make([]byte, n-int64(len(f.b)))...)
	}
	f.b = f.b[:n]
	return nil
}

func (f *memFile) Sync() error  { return nil }
func (f *memFile) Close() error { return nil }

var testTime = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func testHeader(class pack.Class) pack.Header {
	return pack.Header{Class: class, ID: pack.ID{0xa, 1}, Vault: pack.VaultID{0xb, 2}, Domain: dedupe.DomainID{0xc, 3}, Created: testTime}
}

// record appends one raw record.
func record(t testing.TB, w *pack.Writer, kind dedupe.Kind, level uint8, content []byte) pack.Entry {
	t.Helper()
	d, err := pack.Sum(dedupe.Digester{}, kind, level, content)
	if err != nil {
		t.Fatalf("sum: %v", err)
	}
	r := pack.Record{Kind: kind, Level: level, Domain: dedupe.DomainID{0xc, 3}, Digest: d, LogicalLength: uint32(len(content))}
	e, err := w.Append(&r, append(make([]byte, pack.RecordHeaderSize), content...), nil)
	if err != nil {
		t.Fatalf("append: %v", err)
	}
	return e
}

func newWriter(t testing.TB, class pack.Class) (*memFile, *pack.Writer) {
	t.Helper()
	f := &memFile{b: make([]byte, 1<<20)} // preallocated
	w, err := pack.NewWriter(f, testHeader(class), 1<<20)
	if err != nil {
		t.Fatalf("new writer: %v", err)
	}
	return f, w
}

// goldenData is a sealed data pack, goldenMetadata a metadata pack.
func goldenData(t testing.TB) (*memFile, []pack.Entry) {
	f, w := newWriter(t, pack.ClassData)
	var want []pack.Entry
	for i := range 3 {
		want = append(want, record(t, w, dedupe.KindBlock, 0, bytes.Repeat([]byte{byte(i + 1)}, 1000*(i+1))))
	}
	if _, _, err := w.Sync(); err != nil {
		t.Fatalf("sync: %v", err)
	}
	// Every reserved field, as a later release may write it.
	r := pack.Record{Kind: dedupe.KindBlock, Codec: pack.CodecZstd, Encoding: pack.EncodingPatch, Depth: 2, Cipher: pack.CipherXAES,
		GrainSize: 4096, LogicalLength: 65536, Domain: dedupe.DomainID{0xc, 3}, KeyID: pack.KeyID{0xd, 4}, Digest: dedupe.Sum([]byte("patched")),
		HasCiphertextHash: true, CiphertextHash: dedupe.Sum([]byte("sealed")), Base: want[0].Digest, Nonce: [24]byte{0xe, 5}}
	e, err := w.Append(&r, append(make([]byte, pack.RecordHeaderSize), "sealed"...), nil)
	if err != nil {
		t.Fatalf("append: %v", err)
	}
	if err := w.Seal(); err != nil {
		t.Fatalf("seal: %v", err)
	}
	return f, append(want, e)
}

func goldenMetadata(t testing.TB) (*memFile, []pack.Entry) {
	f, w := newWriter(t, pack.ClassMetadata)
	node := make([]byte, pack.NodeSize)
	copy(node[5*dedupe.DigestSize:], bytes.Repeat([]byte{7}, dedupe.DigestSize))
	note := pack.EncodeNote(&dedupe.Note{Sequence: 9, Type: 3, Subject: dedupe.Sum([]byte("manifest")), Body: []byte("body")})
	pub := pack.EncodePublication(&pack.Publication{Serial: 4, Manifests: []dedupe.Digest{dedupe.Sum([]byte("manifest"))},
		FirstNote: 9, Notes: []dedupe.Digest{dedupe.Sum(note)}})
	want := []pack.Entry{
		record(t, w, dedupe.KindNode, 2, node),
		record(t, w, dedupe.KindManifest, 0, []byte("manifest")),
		record(t, w, dedupe.KindNote, 0, note),
		record(t, w, pack.KindPublication, 0, pub),
	}
	if _, _, err := w.Sync(); err != nil {
		t.Fatalf("sync: %v", err)
	}
	if err := w.Seal(); err != nil {
		t.Fatalf("seal: %v", err)
	}
	return f, want
}

func goldenSuperblock() []byte {
	sb := pack.Superblock{BlockSize: 65536, Vault: pack.VaultID{0xb, 2}, Created: testTime,
		Domains: []pack.Domain{{ID: dedupe.DomainID{0xc, 3}, Scheme: pack.SchemeSHA256}}}
	return sb.Encode()
}

// encryptedSuperblock is that of a vault with an encrypted and a plain domain.
func encryptedSuperblock() *pack.Superblock {
	return &pack.Superblock{BlockSize: 65536, Vault: pack.VaultID{0xb, 2}, Created: testTime, Domains: []pack.Domain{
		{ID: dedupe.DomainID{0xc, 3}, Scheme: pack.SchemeHMAC, Cipher: pack.CipherXAES, Check: pack.KeyCheck{1, 2, 13: 14}, KeyID: pack.KeyID{7, 15: 8}},
		{ID: dedupe.DomainID{0xc, 4}, Scheme: pack.SchemeSHA256}}}
}

// grainsSuperblock is that of a vault with an encrypted and a plain domain whose blocks have
// ids of their grains.
func grainsSuperblock() *pack.Superblock {
	return &pack.Superblock{BlockSize: 65536, Vault: pack.VaultID{0xb, 2}, Created: testTime, Domains: []pack.Domain{
		{ID: dedupe.DomainID{0xc, 3}, Scheme: pack.SchemeKeyedGrains, Cipher: pack.CipherXAES, Check: pack.KeyCheck{1, 2, 13: 14}, KeyID: pack.KeyID{7, 15: 8}},
		{ID: dedupe.DomainID{0xc, 4}, Scheme: pack.SchemeGrains}}}
}

// golden compares bytes with a file of testdata, which -update rewrites.
func golden(t *testing.T, name string, got []byte) []byte {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s: the encoder writes other bytes than version 1 has", name)
	}
	return want
}

func TestGoldenPacks(t *testing.T) {
	for _, tt := range []struct {
		name  string
		class pack.Class
		make  func(testing.TB) (*memFile, []pack.Entry)
	}{
		{"data-v1.pack", pack.ClassData, goldenData},
		{"metadata-v1.pack", pack.ClassMetadata, goldenMetadata},
		{"bundle-v1.pack", pack.ClassData, goldenBundle},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f, want := tt.make(t)
			b := golden(t, tt.name, f.b)
			r := bytes.NewReader(b)
			h, err := pack.ReadHeader(r)
			if err != nil || h != testHeader(tt.class) {
				t.Errorf("header %+v, %v", h, err)
			}
			footer, err := pack.ReadFooter(r, int64(len(b)))
			if err != nil {
				t.Fatalf("footer: %v", err)
			}
			if diff := cmp.Diff(want, footer.Entries); diff != "" {
				t.Errorf("footer's entries (-want +got):\n%s", diff)
			}
			var scanned []pack.Entry
			end, err := pack.Scan(r, int64(len(b)), tt.class, func(e pack.Entry, _ []byte) error {
				scanned = append(scanned, e)
				return nil
			})
			if err != nil || end != footer.RecordsEnd {
				t.Errorf("scan ended at %d with %v, footer says %d", end, err, footer.RecordsEnd)
			}
			if diff := cmp.Diff(want, scanned); diff != "" {
				t.Errorf("scanned entries (-want +got):\n%s", diff)
			}
		})
	}
}

func TestGoldenSuperblock(t *testing.T) {
	b := golden(t, "superblock-v1", goldenSuperblock())
	sb, err := pack.DecodeSuperblock(b)
	if err != nil {
		t.Fatalf("decode: %v", err)
	}
	if !bytes.Equal(sb.Encode(), b) {
		t.Error("decoding and encoding a superblock changes it")
	}
	encrypted := golden(t, "superblock-v1-encrypted", encryptedSuperblock().Encode())
	if sb, err = pack.DecodeSuperblock(encrypted); err != nil || !reflect.DeepEqual(sb, encryptedSuperblock()) {
		t.Errorf("superblock of an encrypted vault: %+v, %v", sb, err)
	}
	grains := golden(t, "superblock-v1-grains", grainsSuperblock().Encode())
	if sb, err = pack.DecodeSuperblock(grains); err != nil || !reflect.DeepEqual(sb, grainsSuperblock()) {
		t.Errorf("superblock of a vault with ids of grains: %+v, %v", sb, err)
	}
	for _, d := range []pack.Domain{{Scheme: pack.SchemeHMAC}, {Scheme: pack.SchemeSHA256, Cipher: pack.CipherXAES}, {Scheme: pack.SchemeGrains, Cipher: pack.CipherXAES}, {Scheme: pack.SchemeKeyedGrains}, {Scheme: 5}, {Scheme: pack.SchemeHMAC, Cipher: 2}} {
		sb := pack.Superblock{BlockSize: 65536, Created: testTime, Domains: []pack.Domain{d}}
		if _, err := pack.DecodeSuperblock(sb.Encode()); !errors.Is(err, dedupe.ErrUnknownFormat) {
			t.Errorf("domain of id scheme %d with cipher %d: %v", d.Scheme, d.Cipher, err)
		}
	}
	state := golden(t, "state-v1", pack.State{Clean: true, Epoch: 7}.Encode())
	if s, err := pack.DecodeState(state); err != nil || s != (pack.State{Clean: true, Epoch: 7}) {
		t.Errorf("state %+v, %v", s, err)
	}
}

// Each byte of the golden record header is where FORMAT.md says.
func TestRecordLayout(t *testing.T) {
	f, entries := goldenData(t)
	h := f.b[entries[3].Offset:][:pack.RecordHeaderSize]
	for _, tt := range []struct {
		field string
		off   int
		want  string
	}{
		{"magic", 0, "4b524543"}, {"version", 4, "01"}, {"kind", 5, "01"}, {"codec", 6, "01"}, {"encoding", 7, "01"},
		{"level", 8, "00"}, {"depth", 9, "02"}, {"flags", 10, "01"}, {"cipher", 11, "01"}, {"grain size", 12, "00100000"},
		{"logical length", 16, "00000100"}, {"stored length", 20, "06000000"}, {"domain", 24, "0c03"}, {"key id", 40, "0d04"},
		{"base", 120, entries[0].Digest.String()}, {"nonce", 152, "0e05"}, {"reserved", 176, "0000000000000000"},
	} {
		if got := hex.EncodeToString(h[tt.off:][:len(tt.want)/2]); got != tt.want {
			t.Errorf("%s at %d is %s, want %s", tt.field, tt.off, got, tt.want)
		}
	}
}

func TestRecordRoundTrip(t *testing.T) {
	f, entries := goldenData(t)
	rec, payload, _, err := pack.ReadRecord(bytes.NewReader(f.b), entries[3].Offset, entries[3].StoredLength, nil)
	if err != nil || string(payload) != "sealed" {
		t.Fatalf("read record: %q, %v", payload, err)
	}
	buf := append(make([]byte, pack.RecordHeaderSize), payload...)
	if err := pack.EncodeRecord(&rec, buf); err != nil {
		t.Fatalf("encode: %v", err)
	}
	if !bytes.Equal(buf, f.b[entries[3].Offset:][:len(buf)]) {
		t.Error("decoding and encoding a record changes it")
	}
}

// A half-written pack ends where its records stop to verify, at every length.
func TestScanHalfWritten(t *testing.T) {
	f, entries := goldenData(t)
	for cut := 0; cut <= len(f.b); cut += 13 {
		n := 0
		end, err := pack.Scan(bytes.NewReader(f.b[:cut]), int64(cut), pack.ClassData, func(pack.Entry, []byte) error { n++; return nil })
		if err != nil {
			t.Fatalf("cut at %d: %v", cut, err)
		}
		want := 0
		for _, e := range entries {
			if e.Offset+e.Size() <= int64(cut) {
				want++
			}
		}
		if n != want || (cut >= pack.HeaderSize && end > int64(cut)) {
			t.Fatalf("cut at %d: %d records to %d, want %d", cut, n, end, want)
		}
	}
}

// Any flipped bit of a record ends the scan there; no other bytes come out.
func TestScanFlippedBits(t *testing.T) {
	f, entries := goldenData(t)
	e := entries[1]
	for off := e.Offset; off < e.Offset+e.Size(); off++ {
		b := bytes.Clone(f.b)
		b[off] ^= 1 << (off % 8)
		n := 0
		end, err := pack.Scan(bytes.NewReader(b), int64(len(b)), pack.ClassData, func(pack.Entry, []byte) error { n++; return nil })
		if err != nil || n != 1 || end != e.Offset {
			t.Fatalf("bit at %d: %d records to %d, %v", off, n, end, err)
		}
		if _, _, _, err := pack.ReadRecord(bytes.NewReader(b), e.Offset, e.StoredLength, nil); !errors.Is(err, dedupe.ErrCorrupt) {
			t.Fatalf("bit at %d: read record: %v", off, err)
		}
	}
}

// Any flipped bit of footer, hash or trailer is noticed.
func TestFooterFlippedBits(t *testing.T) {
	f, _ := goldenData(t)
	footer, err := pack.ReadFooter(bytes.NewReader(f.b), int64(len(f.b)))
	if err != nil {
		t.Fatal(err)
	}
	for off := footer.RecordsEnd; off < int64(len(f.b)); off++ {
		b := bytes.Clone(f.b)
		b[off] ^= 1 << (off % 8)
		if _, err := pack.ReadFooter(bytes.NewReader(b), int64(len(b))); !errors.Is(err, dedupe.ErrCorrupt) && !errors.Is(err, pack.ErrNotSealed) {
			t.Fatalf("bit at %d of the footer: %v", off, err)
		}
	}
	for n := range len(f.b) {
		if _, err := pack.ReadFooter(bytes.NewReader(f.b[:n]), int64(n)); !errors.Is(err, pack.ErrNotSealed) {
			t.Fatalf("pack cut at %d: %v", n, err)
		}
	}
}

func TestHeaderFlippedBits(t *testing.T) {
	b := (&pack.Header{Class: pack.ClassData, ID: pack.ID{1}}).Encode()
	for off := range b {
		c := bytes.Clone(b)
		c[off] ^= 1 << (off % 8)
		if _, err := pack.DecodeHeader(c); !errors.Is(err, dedupe.ErrCorrupt) {
			t.Errorf("bit at %d: %v", off, err)
		}
	}
	for _, b := range [][]byte{goldenSuperblock(), pack.State{Epoch: 1}.Encode()} {
		for off := range b {
			c := bytes.Clone(b)
			c[off] ^= 1 << (off % 8)
			_, err := pack.DecodeSuperblock(c)
			_, err2 := pack.DecodeState(c)
			if !errors.Is(err, dedupe.ErrCorrupt) || !errors.Is(err2, dedupe.ErrCorrupt) {
				t.Errorf("bit at %d: %v, %v", off, err, err2)
			}
		}
	}
}

// A guest's block that contains a whole manifest record is never taken for one.
func TestBlockNeverManifest(t *testing.T) {
	meta, w := newWriter(t, pack.ClassMetadata)
	e := record(t, w, dedupe.KindManifest, 0, []byte("forged"))
	forged := meta.b[e.Offset:][:e.Size()]
	f, dw := newWriter(t, pack.ClassData)
	record(t, dw, dedupe.KindBlock, 0, forged)
	copy(f.b[dw.End():], forged) // and once where the next record would be
	_, err := pack.Scan(f, int64(len(f.b)), pack.ClassData, func(e pack.Entry, _ []byte) error {
		if e.Kind != dedupe.KindBlock {
			t.Errorf("kind %d out of a data pack", e.Kind)
		}
		return nil
	})
	if err != nil {
		t.Errorf("scan: %v", err)
	}
	r := pack.Record{Kind: dedupe.KindManifest}
	if _, err := dw.Append(&r, make([]byte, pack.RecordHeaderSize), nil); err == nil {
		t.Error("a data pack took a manifest")
	}
}

// A record of a newer version is refused, not taken for the end of the pack.
func TestScanUnknown(t *testing.T) {
	f, entries := goldenData(t)
	h := f.b[entries[2].Offset:]
	r, err := pack.DecodeRecord(h)
	if err != nil {
		t.Fatal(err)
	}
	for _, off := range []int{4, 5, 6, 7, 10, 11} { // version, kind, codec, encoding, flags, cipher
		b := bytes.Clone(f.b)
		b[int(entries[2].Offset)+off] = 0x7e
		pack.FixRecordCRC(b[entries[2].Offset:])
		_, err := pack.Scan(bytes.NewReader(b), int64(len(b)), pack.ClassData, func(pack.Entry, []byte) error { return nil })
		if !errors.Is(err, dedupe.ErrUnknownFormat) {
			t.Errorf("byte %d of the header is unknown: %v", off, err)
		}
	}
	r.Kind = 0x7f
	if err := pack.EncodeRecord(&r, make([]byte, pack.RecordHeaderSize)); !errors.Is(err, dedupe.ErrUnknownFormat) {
		t.Errorf("encode of an unknown kind: %v", err)
	}
}

func TestWriterFull(t *testing.T) {
	f, w := newWriter(t, pack.ClassData)
	content := make([]byte, 100_000)
	n := 0
	for {
		content[0] = byte(n + 1)
		r := pack.Record{Kind: dedupe.KindBlock, Digest: dedupe.Sum(content), LogicalLength: uint32(len(content))}
		_, err := w.Append(&r, append(make([]byte, pack.RecordHeaderSize), content...), nil)
		if errors.Is(err, pack.ErrFull) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if n++; n%3 == 0 {
			if _, _, err := w.Sync(); err != nil {
				t.Fatal(err)
			}
			if w.End()%pack.PageSize != 0 {
				t.Errorf("synced at %d, not at a page's end", w.End())
			}
		}
	}
	if n != 10 {
		t.Errorf("%d records of 100 000 bytes in a pack of 1 MiB", n)
	}
	if err := w.Seal(); err != nil {
		t.Fatal(err)
	}
	if len(f.b) > 1<<20 {
		t.Errorf("sealed pack of %d bytes passes its limit", len(f.b))
	}
	footer, err := pack.ReadFooter(f, int64(len(f.b)))
	if err != nil || len(footer.Entries) != n {
		t.Errorf("footer: %v", err)
	}
	if _, err := w.Append(&pack.Record{Kind: dedupe.KindBlock}, make([]byte, pack.RecordHeaderSize), nil); !errors.Is(err, pack.ErrFull) {
		t.Errorf("append after seal: %v", err)
	}
}

func TestWriterRollback(t *testing.T) {
	f, w := newWriter(t, pack.ClassData)
	record(t, w, dedupe.KindBlock, 0, []byte("keep"))
	_, end, err := w.Sync()
	if err != nil {
		t.Fatal(err)
	}
	record(t, w, dedupe.KindBlock, 0, []byte("drop"))
	if err := w.Rollback(end); err != nil {
		t.Fatal(err)
	}
	if len(f.b) != int(end) {
		t.Errorf("file of %d bytes after a roll back to %d", len(f.b), end)
	}
	want := []pack.Entry{w.Entries(0)[0], record(t, w, dedupe.KindBlock, 0, []byte("next"))}
	if err := w.Seal(); err != nil {
		t.Fatal(err)
	}
	footer, err := pack.ReadFooter(f, int64(len(f.b)))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, footer.Entries); diff != "" {
		t.Errorf("entries (-want +got):\n%s", diff)
	}
}

// failFile fails every write or sync.
type failFile struct{ memFile }

func (f *failFile) Sync() error { return io.ErrClosedPipe }

func TestWriterErrorStays(t *testing.T) {
	f := &failFile{}
	w, err := pack.NewWriter(f, testHeader(pack.ClassData), 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	record(t, w, dedupe.KindBlock, 0, []byte("x"))
	if _, _, err := w.Sync(); !errors.Is(err, io.ErrClosedPipe) {
		t.Fatalf("sync: %v", err)
	}
	if _, _, err := w.Sync(); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("a sync after a failed one says %v: what was lost is not there", err)
	}
	r := pack.Record{Kind: dedupe.KindBlock}
	if _, err := w.Append(&r, make([]byte, pack.RecordHeaderSize), nil); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("append after a failed sync: %v", err)
	}
}

// What was only preallocated is absent, not corrupt.
func TestReadRecordAbsent(t *testing.T) {
	f, w := newWriter(t, pack.ClassData)
	e := record(t, w, dedupe.KindBlock, 0, []byte("x"))
	for _, off := range []int64{e.Offset + e.Size(), int64(len(f.b)) - 10, int64(len(f.b)) + 10} {
		if _, _, _, err := pack.ReadRecord(f, off, 100, nil); !errors.Is(err, dedupe.ErrNotFound) {
			t.Errorf("read at %d: %v", off, err)
		}
	}
}

// ReadRawRecord has the header and the payload of ReadRecord, and leaves the payload's
// CRC to the caller.
func TestReadRawRecord(t *testing.T) {
	b, w := newWriter(t, pack.ClassData)
	want := bytes.Repeat([]byte("raw "), 1024)
	e := record(t, w, dedupe.KindBlock, 0, want)
	path := filepath.Join(t.TempDir(), "pack")
	if err := os.WriteFile(path, b.b, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	got := make([]byte, len(want))
	rec, err := pack.ReadRawRecord(f, e.Offset, nil, got)
	if err != nil || !bytes.Equal(got, want) || rec.Digest != e.Digest || rec.Codec != pack.CodecRaw {
		t.Fatalf("record %+v, %v", rec, err)
	}
	size := int64(len(b.b))
	for _, off := range []int64{e.Offset + e.Size() - pack.RecordHeaderSize, size - 10, size + 10} {
		if _, err := pack.ReadRawRecord(f, off, nil, got); !errors.Is(err, dedupe.ErrNotFound) && !errors.Is(err, dedupe.ErrCorrupt) {
			t.Errorf("read at %d: %v", off, err)
		}
	}
	if err := f.Truncate(size + 8192); err != nil {
		t.Fatal(err)
	}
	if _, err := pack.ReadRawRecord(f, size, nil, got); !errors.Is(err, dedupe.ErrNotFound) {
		t.Errorf("read what was only preallocated: %v", err)
	}
	if _, err := pack.ReadRawRecord(f, -1, nil, got); !errors.Is(err, dedupe.ErrCorrupt) {
		t.Errorf("read at -1: %v", err)
	}
	for _, at := range []int64{0, 4, 60, 188} {
		if _, err := f.WriteAt([]byte{b.b[e.Offset+at] ^ 1}, e.Offset+at); err != nil {
			t.Fatal(err)
		}
		if _, err := pack.ReadRawRecord(f, e.Offset, nil, got); !errors.Is(err, dedupe.ErrCorrupt) {
			t.Errorf("byte %d of the header is damaged: %v", at, err)
		}
		if _, err := f.WriteAt(b.b[e.Offset+at:][:1], e.Offset+at); err != nil {
			t.Fatal(err)
		}
	}
}

// With a damaged footer, one damaged payload costs one record.
func TestScanDamaged(t *testing.T) {
	f, entries := goldenData(t)
	b := bytes.Clone(f.b)
	b[entries[1].Offset+pack.RecordHeaderSize+5] ^= 1
	var got []pack.Entry
	if _, err := pack.ScanDamaged(bytes.NewReader(b), int64(len(b)), pack.ClassData, func(e pack.Entry, _ []byte) error {
		got = append(got, e)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	want := []pack.Entry{entries[0], entries[2], entries[3]}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("entries (-want +got):\n%s", diff)
	}
}
