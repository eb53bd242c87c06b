package recoverypoint_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/dedupetest"
	"github.com/keelblock/keelblock/dedupe/recoverypoint"
)

// sealedMemory is a store in memory that says that it is encrypted. Without its key no
// block and no note can be read.
type sealedMemory struct {
	*dedupetest.Memory
	locked bool
	reads  int
}

func (s *sealedMemory) Encrypted() bool { return true }

func (s *sealedMemory) Get(ctx context.Context, kind dedupe.Kind, d dedupe.Digest, buf []byte) ([]byte, error) {
	if kind == dedupe.KindBlock {
		if s.reads++; s.locked {
			return nil, dedupe.ErrNoKey
		}
	}
	return s.Memory.Get(ctx, kind, d, buf)
}

func (s *sealedMemory) Notes(ctx context.Context, yield func(dedupe.Note) bool) error {
	if s.locked {
		return dedupe.ErrNoKey
	}
	return s.Memory.Notes(ctx, yield)
}

// secrets are the texts of full.
var secrets = []string{"web", "web0", "Größe 2", "swap", "temporary", "pre-freeze", "before the upgrade"}

// TestPrivateGolden: the bytes of a manifest whose texts are elsewhere, and of these, for
// ever.
func TestPrivateGolden(t *testing.T) {
	b := new(keptBlocks)
	m := full()
	if err := m.PutPrivate(t.Context(), b, 64<<10); err != nil {
		t.Fatal(err)
	}
	p := encode(t, m)
	golden(t, "manifest-v1-private.bin", p)
	if len(b.blocks) != 1 {
		t.Fatalf("texts in %d blocks", len(b.blocks))
	}
	golden(t, "private-v1.bin", b.blocks[0][:m.Private.Length])
	for _, secret := range secrets {
		if bytes.Contains(p, []byte(secret)) {
			t.Errorf("%q stands in the manifest", secret)
		}
	}
	got, err := recoverypoint.Decode(p)
	if err != nil {
		t.Fatal(err)
	}
	if got.MachineName != id(3).String() || got.Disks[0].Name != "disk-1" || got.Disks[1].Name != "disk-2" ||
		got.Excluded[0].Name != "excluded-1" || got.Excluded[0].Reason+got.Reason+got.Note != "" {
		t.Errorf("texts of a manifest without its private ones: %+v", got)
	}
	if again := encode(t, got); !bytes.Equal(again, p) {
		t.Error("encodes to other bytes without its texts")
	}
	if err := got.Reveal(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	want := full()
	want.Private = m.Private
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("revealed (-want +got):\n%s", d)
	}
	if again := encode(t, got); !bytes.Equal(again, p) {
		t.Error("encodes to other bytes with its texts")
	}
}

// keptBlocks puts and gets blocks.
type keptBlocks struct{ blocks [][]byte }

func (k *keptBlocks) PutBlock(_ context.Context, p []byte) (dedupe.Put, error) {
	k.blocks = append(k.blocks, bytes.Clone(p))
	return dedupe.Put{Digest: dedupe.Sum(p), New: true, StoredBytes: 1}, nil
}

func (k *keptBlocks) Get(_ context.Context, _ dedupe.Kind, d dedupe.Digest, _ []byte) ([]byte, error) {
	for _, p := range k.blocks {
		if dedupe.Sum(p) == d {
			return p, nil
		}
	}
	return nil, dedupe.ErrNotFound
}

// TestPrivateRefuses: every flipped bit and every cut of the texts, texts of another
// manifest, and names that are none leave the neutral ones.
func TestPrivateRefuses(t *testing.T) {
	b := new(keptBlocks)
	m := full()
	if err := m.PutPrivate(t.Context(), b, 64<<10); err != nil {
		t.Fatal(err)
	}
	neutral, err := recoverypoint.Decode(encode(t, m))
	if err != nil {
		t.Fatal(err)
	}
	n := int(m.Private.Length)
	refuse := func(what string, p []byte) {
		t.Helper()
		b := new(keptBlocks)
		c, err := recoverypoint.PutContent(t.Context(), b, 64<<10, p)
		if err != nil {
			t.Fatal(err)
		}
		got := *neutral
		got.Private = c
		before := got
		if err := got.Reveal(t.Context(), b); !errors.Is(err, dedupe.ErrCorrupt) && !errors.Is(err, dedupe.ErrUnknownFormat) {
			t.Errorf("%s: %v", what, err)
		}
		if d := cmp.Diff(before, got); d != "" {
			t.Errorf("%s: changed all the same:\n%s", what, d)
		}
	}
	for i := range n {
		p := bytes.Clone(b.blocks[0][:n])
		p[i] ^= 0x10
		refuse("flipped", p)
		if i > 0 {
			refuse("cut", b.blocks[0][:i])
		}
	}
	fewer := full()
	fewer.Disks = fewer.Disks[:1]
	if err := fewer.PutPrivate(t.Context(), b, 64<<10); err != nil {
		t.Fatal(err)
	}
	refuse("texts of fewer disks", b.blocks[1][:fewer.Private.Length])
}

// TestPrivateIsCanonical: a manifest with private texts that has others than the neutral
// ones, or a reference with something behind it, is refused.
func TestPrivateIsCanonical(t *testing.T) {
	m := full()
	if err := m.PutPrivate(t.Context(), new(keptBlocks), 64<<10); err != nil {
		t.Fatal(err)
	}
	p := encode(t, m)
	name := bytes.Index(p, []byte("disk-1"))
	for what, change := range map[string]func(p []byte) []byte{
		"another name":        func(p []byte) []byte { copy(p[name:], "disk-7"); return p },
		"other private type":  func(p []byte) []byte { p[len(p)-4-48-6] = 2; return p },
		"no block":            func(p []byte) []byte { clear(p[len(p)-4-48:]); return p },
		"reference and a bit": func(p []byte) []byte { p[len(p)-4-48-4]++; return append(p, 0) },
	} {
		bad := reseal(change(bytes.Clone(p)))
		if _, err := recoverypoint.Decode(bad); !errors.Is(err, dedupe.ErrCorrupt) && !errors.Is(err, dedupe.ErrUnknownFormat) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// TestPublishIntoAnEncryptedStore: names are given back, stand in no manifest, and are
// read once for many points; without the key points have neutral names and are held.
func TestPublishIntoAnEncryptedStore(t *testing.T) {
	s := &sealedMemory{Memory: dedupetest.NewMemory(64 << 10)}
	x := openIndex(t, s)
	var points []*recoverypoint.Point
	for i := range 20 {
		m := point("web", 1, uint64(i+1), day.Add(time.Duration(i)*time.Hour), recoverypoint.Crash)
		m.Reason = "no agent"
		b := batchOf(t, s)
		if err := m.PutPrivate(t.Context(), b, s.BlockSize()); err != nil {
			t.Fatal(err)
		}
		want, err := m.ID()
		if err != nil {
			t.Fatal(err)
		}
		m.Private = recoverypoint.Content{} // Publish does it too
		ps, err := x.Publish(t.Context(), b, []*recoverypoint.Manifest{m}, nil, testKey())
		if err != nil {
			t.Fatal(err)
		}
		if ps[0].ID != want || ps[0].Manifest.MachineName != "web" || !m.Private.IsZero() {
			t.Fatalf("point %v of %q, want %v", ps[0].ID, ps[0].Manifest.MachineName, want)
		}
		points = append(points, ps[0])
		b2, err := s.Get(t.Context(), dedupe.KindManifest, want, nil)
		if err != nil || bytes.Contains(b2, []byte("web")) || bytes.Contains(b2, []byte("agent")) {
			t.Fatalf("manifest %q, %v", b2, err)
		}
	}
	s.reads = 0
	again := openIndex(t, s)
	if s.reads != 1 {
		t.Errorf("%d blocks read for the names of one machine", s.reads)
	}
	if got := again.List("web", false); len(got) != len(points) || got[0].Manifest.Reason != "no agent" || len(again.Problems()) > 0 {
		t.Errorf("%d points of web, problems %v", len(got), again.Problems())
	}
	s.locked = true
	locked := openIndex(t, s)
	if got := locked.List(id(1).String(), false); len(got) != len(points) || got[0].Manifest.MachineName != id(1).String() || !got[0].Held {
		t.Errorf("%d points without the key: %+v", len(got), got)
	}
	if p := locked.Problems(); len(p) != 1 || !errors.Is(p[0].Err, dedupe.ErrNoKey) {
		t.Errorf("problems without the key: %v", p)
	}
	if _, _, err := locked.Resolve(id(1).String() + "@latest"); err != nil {
		t.Error(err)
	}
	// A block of names that is damaged is told, and the point stays usable.
	s.locked = false
	s.Corrupt(dedupe.KindBlock, points[0].Manifest.Private.Blocks[0])
	damaged := openIndex(t, s)
	if got := damaged.List(id(1).String(), false); len(got) != len(points) {
		t.Errorf("%d points when their names are damaged", len(got))
	}
	if p := damaged.Problems(); len(p) != len(points) || !errors.Is(p[0].Err, dedupe.ErrCorrupt) || !strings.Contains(p[0].Err.Error(), "neutral names") {
		t.Errorf("%d problems when names are damaged", len(p))
	}
}

// FuzzPrivate: any bytes as private texts are refused or encode to themselves.
func FuzzPrivate(f *testing.F) {
	b := new(keptBlocks)
	m := full()
	if err := m.PutPrivate(f.Context(), b, 64<<10); err != nil {
		f.Fatal(err)
	}
	p := encode(f, m)
	f.Add(b.blocks[0][:m.Private.Length])
	f.Fuzz(func(t *testing.T, text []byte) {
		got, err := recoverypoint.Decode(p)
		if err != nil {
			t.Fatal(err)
		}
		b := new(keptBlocks)
		if got.Private, err = recoverypoint.PutContent(t.Context(), b, 64<<10, reseal4(text)); err != nil {
			return
		}
		if got.Private.IsZero() || got.Reveal(t.Context(), b) != nil {
			return
		}
		if err := got.Validate(); err != nil {
			t.Fatalf("a manifest that is not valid was revealed: %v", err)
		}
		private := got.Private
		if err := got.PutPrivate(t.Context(), b, 64<<10); err != nil || cmp.Diff(private, got.Private) != "" {
			t.Fatalf("texts are stored again as others: %v", err)
		}
	})
}

// reseal4 makes the checksum at the end of bytes right.
func reseal4(p []byte) []byte {
	p = bytes.Clone(p)
	if n := len(p) - 4; n >= 0 {
		binary.LittleEndian.PutUint32(p[n:], crc32.Checksum(p[:n], crc32.MakeTable(crc32.Castagnoli)))
	}
	return p
}
