package pack_test

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/pack"
)

// testBundle is the directory of three patches, of 1, 8 and 2 grains.
func testBundle() *pack.Bundle {
	bu := &pack.Bundle{BlockSize: 65536}
	for i, grains := range [][]int{{0}, {1, 2, 3, 5, 8, 13, 14, 15}, {7, 15}} {
		m := pack.Member{Digest: dedupe.Sum([]byte{byte(i)}), Base: dedupe.Sum([]byte{byte(i), 1}), Depth: uint8(i + 1)}
		for _, g := range grains {
			m.Grains.Add(g)
		}
		m.Total = uint8(len(grains) + i)
		bu.Members = append(bu.Members, m)
	}
	return bu
}

// bundleRecord is a bundle's header and its buffer, the content raw.
func bundleRecord(bu *pack.Bundle) (pack.Record, []byte) {
	directory := bu.Append(nil)
	r := pack.Record{Kind: pack.KindBundle, Encoding: pack.EncodingPatch, GrainSize: pack.GrainSize, Domain: dedupe.DomainID{0xc, 3},
		LogicalLength: uint32(bu.ContentSize()), HeadLength: uint32(len(directory)), Digest: pack.BundleDigest(directory)}
	buf := append(make([]byte, pack.RecordHeaderSize), directory...)
	for i := range bu.ContentSize() / pack.GrainSize {
		buf = append(buf, bytes.Repeat([]byte{byte(i + 1)}, pack.GrainSize)...)
	}
	return r, buf
}

// goldenBundle is a sealed pack of a block, a bundle and a block.
func goldenBundle(t testing.TB) (*memFile, []pack.Entry) {
	f, w := newWriter(t, pack.ClassData)
	want := []pack.Entry{record(t, w, dedupe.KindBlock, 0, []byte("before"))}
	r, buf := bundleRecord(testBundle())
	e, err := w.Append(&r, buf, nil)
	if err != nil {
		t.Fatalf("append: %v", err)
	}
	want = append(want, e, record(t, w, dedupe.KindBlock, 0, []byte("behind")))
	if err := w.Seal(); err != nil {
		t.Fatalf("seal: %v", err)
	}
	return f, want
}

// The patches of a bundle share its record's bytes, by their grains and exactly.
func TestBundleShares(t *testing.T) {
	_, entries := goldenBundle(t)
	e := entries[1]
	sum := int64(0)
	for i, p := range e.Patches {
		m := testBundle().Members[i]
		if p.Digest != m.Digest || p.Base != m.Base || p.Depth != m.Depth || p.Total != m.Total {
			t.Errorf("patch %d: %+v, want that of %+v", i, p, m)
		}
		even := e.Size() * int64(m.Grains.Count()) / 11
		if got := int64(p.Share); got < even || got > even+2 || (i > 0 && got != even) {
			t.Errorf("patch %d of %d grains has %d of %d bytes", i, m.Grains.Count(), got, e.Size())
		}
		sum += int64(p.Share)
	}
	if len(e.Patches) != 3 || sum != e.Size() {
		t.Errorf("%d patches share %d bytes of %d", len(e.Patches), sum, e.Size())
	}
}

func TestBundleRoundTrip(t *testing.T) {
	f, entries := goldenBundle(t)
	rec, payload, _, err := pack.ReadRecord(f, entries[1].Offset, entries[1].StoredLength, nil)
	if err != nil {
		t.Fatal(err)
	}
	bu, err := pack.BundleOf(&rec, payload)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(testBundle(), bu); diff != "" {
		t.Errorf("directory (-want +got):\n%s", diff)
	}
	grains := payload[rec.HeadLength:]
	for i, want := range []byte{1, 2, 10} {
		if at := bu.Offset(i); grains[at] != want {
			t.Errorf("patch %d at %d begins with %d, want %d", i, at, grains[at], want)
		}
	}
	if len(grains) != bu.ContentSize() || bu.ContentSize() != 11*pack.GrainSize {
		t.Errorf("%d bytes of grains, directory says %d", len(grains), bu.ContentSize())
	}
	for _, blockSize := range []int{dedupe.MinBlockSize, dedupe.MaxBlockSize} {
		bu := &pack.Bundle{BlockSize: blockSize, Members: testBundle().Members[:1]}
		bu.Members[0].Grains = dedupe.Grains{}
		bu.Members[0].Grains.Add(blockSize/pack.GrainSize - 1)
		got, err := pack.DecodeBundle(bu.Append(nil))
		if err != nil || cmp.Diff(bu, got) != "" {
			t.Errorf("blocks of %d: %+v, %v", blockSize, got, err)
		}
	}
}

// Each byte of a directory and of a footer's patches is where FORMAT.md says.
func TestBundleLayout(t *testing.T) {
	f, entries := goldenBundle(t)
	bu, e := testBundle(), entries[1]
	h := f.b[e.Offset:]
	directory := h[pack.RecordHeaderSize:]
	footer := f.b[entries[2].Offset+entries[2].Size():]
	patches := footer[64+56+56:]
	for _, tt := range []struct {
		field string
		b     []byte
		want  string
	}{
		{"kind", h[5:], "07"}, {"encoding", h[7:], "01"}, {"grain size", h[12:], "00100000"}, {"logical length", h[16:], "00b00000"},
		{"digest", h[56:], pack.BundleDigest(directory[:8+3*70]).String()}, {"clear length", h[176:], "da00000000000000"},
		{"patches", directory, "0300000000000100"},
		{"digest", directory[8:], bu.Members[0].Digest.String()}, {"base", directory[40:], bu.Members[0].Base.String()},
		{"depth, total", directory[72:], "01010000"}, {"grains", directory[76:], "0100"},
		{"second digest", directory[78:], bu.Members[1].Digest.String()}, {"second grains", directory[146:], "2ee1"},
		{"footer's count", footer[12:], "03000000"}, {"footer's patches", patches, "03000000"},
		{"footer's digest", patches[4:], bu.Members[0].Digest.String()}, {"footer's base", patches[36:], bu.Members[0].Base.String()},
		{"footer's share", patches[68:], hex.EncodeToString(binary.LittleEndian.AppendUint32(nil, e.Patches[0].Share))},
		{"footer's depth, total", patches[72:], "01010000"},
		{"what follows", patches[4+3*72:], "01000000"},
	} {
		if got := hex.EncodeToString(tt.b[:len(tt.want)/2]); got != tt.want {
			t.Errorf("%s is %s, want %s", tt.field, got, tt.want)
		}
	}
}

// A directory that says what cannot be is refused.
func TestBundleDirectoryRefused(t *testing.T) {
	good := testBundle().Append(nil)
	if _, err := pack.DecodeBundle(good); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(b []byte) []byte{
		"no patch":            func(b []byte) []byte { b[0] = 0; return b[:8] },
		"more patches":        func(b []byte) []byte { b[0]++; return b },
		"too many patches":    func(b []byte) []byte { b[1] = 1; return b },
		"block size":          func(b []byte) []byte { b[4] = 1; return b },
		"other block size":    func(b []byte) []byte { b[6] = 2; return b },
		"short":               func(b []byte) []byte { return b[:len(b)-1] },
		"long":                func(b []byte) []byte { return append(b, 0) },
		"zero digest":         func(b []byte) []byte { clear(b[8:40]); return b },
		"zero base, depth 2":  func(b []byte) []byte { clear(b[40:72]); b[72] = 2; return b },
		"over itself":         func(b []byte) []byte { copy(b[8:40], b[40:72]); return b },
		"no depth":            func(b []byte) []byte { b[72] = 0; return b },
		"too deep":            func(b []byte) []byte { b[72] = pack.MaxPatchDepth + 1; return b },
		"fewer in all":        func(b []byte) []byte { b[73] = 0; return b },
		"no grain":            func(b []byte) []byte { b[76] = 0; return b },
		"empty":               func([]byte) []byte { return nil },
		"only a header's end": func(b []byte) []byte { return b[:7] },
	} {
		if _, err := pack.DecodeBundle(change(bytes.Clone(good))); !errors.Is(err, dedupe.ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
	small := &pack.Bundle{BlockSize: dedupe.MinBlockSize, Members: testBundle().Members[:1]}
	b := small.Append(nil)
	b[len(b)-1] = 0x10 // the fifth grain of four
	if _, err := pack.DecodeBundle(b); !errors.Is(err, dedupe.ErrCorrupt) {
		t.Errorf("grain behind the block's end: %v", err)
	}
}

// A bundle whose header and directory do not agree is no bundle, and is not written.
func TestBundleRecordRefused(t *testing.T) {
	for name, change := range map[string]func(r *pack.Record){
		"clear length":   func(r *pack.Record) { r.HeadLength-- },
		"all in clear":   func(r *pack.Record) { r.HeadLength = 1 << 30 },
		"logical length": func(r *pack.Record) { r.LogicalLength += pack.GrainSize },
		"digest":         func(r *pack.Record) { r.Digest[3] ^= 1 },
		"encoding":       func(r *pack.Record) { r.Encoding = pack.EncodingWhole },
		"grain size":     func(r *pack.Record) { r.GrainSize = 512 },
		"kind":           func(r *pack.Record) { r.Kind = dedupe.KindBlock },
	} {
		_, w := newWriter(t, pack.ClassData)
		r, buf := bundleRecord(testBundle())
		change(&r)
		if _, err := w.Append(&r, buf, nil); err == nil {
			t.Errorf("%s: written", name)
		}
	}
	_, w := newWriter(t, pack.ClassMetadata)
	if r, buf := bundleRecord(testBundle()); true {
		if _, err := w.Append(&r, buf, nil); err == nil {
			t.Error("a metadata pack took a bundle")
		}
	}
}

// FuzzBundle feeds directories and footers' patches whose checksums are right.
func FuzzBundle(f *testing.F) {
	f.Add(testBundle().Append(nil))
	f.Add((&pack.Bundle{BlockSize: dedupe.MaxBlockSize, Members: testBundle().Members}).Append(nil))
	f.Add((&pack.Bundle{BlockSize: dedupe.MinBlockSize, Members: testBundle().Members[:1]}).Append(nil))
	f.Add([]byte{64, 0, 0, 0, 0, 0, 1, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		bu, err := pack.DecodeBundle(b)
		if err != nil {
			return
		}
		again, err := pack.DecodeBundle(bu.Append(nil))
		if err != nil || cmp.Diff(bu, again) != "" {
			t.Fatalf("decoding and encoding a directory changes it: %v", err)
		}
		if n := bu.ContentSize(); n < pack.GrainSize || n > len(bu.Members)*bu.BlockSize {
			t.Fatalf("%d patches of %d bytes", len(bu.Members), n)
		}
		r, buf := bundleRecord(bu)
		if len(buf)-pack.RecordHeaderSize > pack.MaxPayloadSize {
			return
		}
		m := &memFile{}
		w, err := pack.NewWriter(m, testHeader(pack.ClassData), 64<<20)
		if err != nil {
			t.Fatal(err)
		}
		e, err := w.Append(&r, buf, nil)
		if err != nil {
			t.Fatalf("append what decodes: %v", err)
		}
		if err := w.Seal(); err != nil {
			t.Fatal(err)
		}
		footer, err := pack.ReadFooter(m, int64(len(m.b)))
		if err != nil || cmp.Diff([]pack.Entry{e}, footer.Entries) != "" {
			t.Fatalf("footer: %+v, %v", footer, err)
		}
	})
}
