package pack_test

import (
	"bytes"
	"testing"

	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/pack"
)

// FuzzPack feeds any bytes to every decoder of a pack: none may panic, allocate
// without bound, or report a record that ReadRecord refuses.
func FuzzPack(f *testing.F) {
	data, _ := goldenData(f)
	meta, _ := goldenMetadata(f)
	f.Add(data.b)
	f.Add(meta.b)
	bundle, _ := goldenBundle(f)
	f.Add(bundle.b)
	f.Add(data.b[:len(data.b)-10])
	f.Add(append(bytes.Clone(meta.b[:5000]), make([]byte, 100)...))
	f.Add(goldenSuperblock())
	f.Add(pack.State{Epoch: 3}.Encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		size := int64(len(b))
		_, _ = pack.ReadHeader(r)
		_, _ = pack.DecodeSuperblock(b)
		_, _ = pack.DecodeState(b)
		if footer, err := pack.ReadFooter(r, size); err == nil {
			for _, e := range footer.Entries {
				if e.Offset < pack.HeaderSize || e.Offset+e.Size() > footer.RecordsEnd {
					t.Fatalf("footer names bytes outside the records: %+v", e)
				}
			}
			again := pack.EncodeFooter(&footer.Header, footer.Entries, footer.RecordsEnd)
			if len(again) != len(b)-int(footer.RecordsEnd) {
				t.Fatalf("footer of %d bytes is encoded to %d", len(b)-int(footer.RecordsEnd), len(again))
			}
		}
		for _, class := range []pack.Class{pack.ClassData, pack.ClassMetadata} {
			end, err := pack.Scan(r, size, class, func(e pack.Entry, payload []byte) error {
				rec, p, _, err := pack.ReadRecord(r, e.Offset, e.StoredLength, nil)
				if err != nil || !bytes.Equal(p, payload) || rec.Digest != e.Digest {
					t.Fatalf("scan reports a record at %d that is not readable: %v", e.Offset, err)
				}
				decodeContent(rec.Kind, p)
				return nil
			})
			if err == nil && size >= pack.HeaderSize && (end < pack.HeaderSize || end > size) {
				t.Fatalf("scan of %d bytes ended at %d", size, end)
			}
		}
	})
}

func decodeContent(kind dedupe.Kind, p []byte) {
	switch kind {
	case dedupe.KindNode:
		_, _ = pack.DecodeNode(p)
	case dedupe.KindNote:
		_, _ = pack.DecodeNote(p)
	case pack.KindPublication:
		_, _ = pack.DecodePublication(p)
	}
}

// FuzzRecord feeds headers whose checksum is right, which random bytes never are.
func FuzzRecord(f *testing.F) {
	for _, make := range []func(testing.TB) (*memFile, []pack.Entry){goldenData, goldenBundle} {
		data, entries := make(f)
		for _, e := range entries {
			f.Add(data.b[e.Offset:][:e.Size()])
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < pack.RecordHeaderSize {
			return
		}
		b = bytes.Clone(b)
		pack.FixRecordCRC(b)
		rec, err := pack.DecodeRecord(b)
		if err != nil {
			return
		}
		if rec.StoredLength > pack.MaxPayloadSize || rec.LogicalLength > pack.MaxPayloadSize {
			t.Fatalf("lengths past the limit: %+v", rec)
		}
		_ = rec.CheckPayload(b[pack.RecordHeaderSize:])
		_, _ = pack.BundleOf(&rec, b[pack.RecordHeaderSize:])
	})
}

// FuzzContent feeds the content of notes and publications.
func FuzzContent(f *testing.F) {
	f.Add(pack.EncodeNote(&dedupe.Note{Sequence: 1, Body: []byte("x")}))
	f.Add(pack.EncodePublication(&pack.Publication{Serial: 1, FirstNote: 2, Manifests: make([]dedupe.Digest, 2), Notes: make([]dedupe.Digest, 1)}))
	f.Fuzz(func(t *testing.T, b []byte) {
		if n, err := pack.DecodeNote(b); err == nil && len(pack.EncodeNote(&n)) != len(b) {
			t.Fatalf("note of %d bytes is encoded to %d", len(b), len(pack.EncodeNote(&n)))
		}
		if p, err := pack.DecodePublication(b); err == nil && len(pack.EncodePublication(p)) != len(b) {
			t.Fatalf("publication of %d bytes is encoded to %d", len(b), len(pack.EncodePublication(p)))
		}
		_, _ = pack.DecodeNode(b)
	})
}
