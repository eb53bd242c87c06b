package recoverypoint_test

import (
	"bytes"
	"crypto/ed25519"
	"encoding/binary"
	"errors"
	"flag"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/keelblock/keelblock/blockdev"
	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/dedupetest"
	"github.com/keelblock/keelblock/dedupe/hashtree"
	"github.com/keelblock/keelblock/dedupe/recoverypoint"
)

var update = flag.Bool("update", false, "rewrite golden files of the current version")

// golden compares got with testdata/name. Such a file is never changed once a release
// has written it: a new version of the format gets a new name.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s: encoding changed:\n got %x\nwant %x", name, got, want)
	}
}

func digest(s string) dedupe.Digest { return dedupe.Sum([]byte(s)) }

func id(b byte) (id recoverypoint.ID) {
	for i := range id {
		id[i] = b + byte(i)
	}
	return id
}

// full is a manifest in which no field is zero.
func full() *recoverypoint.Manifest {
	root := hashtree.Root{SizeBytes: 32 << 40, BlockSize: 64 << 10, Depth: 5, Top: digest("top")}
	return &recoverypoint.Manifest{
		Domain: dedupe.DomainID(id(1)), Site: id(2),
		MachineID: id(3), MachineName: "web", CutID: id(4), CutMachines: []recoverypoint.ID{id(3), id(9)},
		Generation: recoverypoint.Generation{Number: 7, ID: id(5), GrewFrom: id(6), SequenceAtFork: 41},
		Sequence:   42, Parent: digest("parent"),
		Disks: []recoverypoint.Disk{
			{ID: id(10), Name: "web0", Root: root, Base: digest("base"), Tracking: recoverypoint.TrackingEnabled, ChangedBytes: 8192,
				ChangeSet: recoverypoint.Content{Length: 70000, BlockSize: 64 << 10, Blocks: []dedupe.Digest{digest("c0"), digest("c1")}}},
			{ID: id(11), Name: "Größe 2", Root: hashtree.Root{SizeBytes: 512, BlockSize: 64 << 10, Depth: 1},
				Tracking: recoverypoint.TrackingFull},
		},
		Excluded:   []recoverypoint.ExcludedDisk{{ID: id(12), Name: "swap", SizeBytes: 4 << 30, Reason: "temporary"}},
		Definition: recoverypoint.Content{Length: 3, BlockSize: 64 << 10, Blocks: []dedupe.Digest{digest("d")}},
		FrozenAt:   time.Date(2026, 11, 21, 19, 30, 0, 123456789, time.UTC), FrozenMonotonic: 987654321 * time.Nanosecond, BootID: id(13),
		FreezeMicros: 168, Consistency: recoverypoint.Filesystem, Reason: "pre-freeze script: exit status 1",
		ShutdownClean: true, Tracking: recoverypoint.TrackingFull, ChangedBytes: 12288, Note: "before the upgrade",
		Extensions: []recoverypoint.Extension{{Type: 5, Data: []byte("later")}},
	}
}

func encode(t testing.TB, m *recoverypoint.Manifest) []byte {
	t.Helper()
	p, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestManifestGolden: the bytes of version 1, for ever, and that all fields come back.
func TestManifestGolden(t *testing.T) {
	m := full()
	p := encode(t, m)
	golden(t, "manifest-v1.bin", p)
	got, err := recoverypoint.Decode(p)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(full(), got); d != "" {
		t.Errorf("decoded (-want +got):\n%s", d)
	}
	mid, err := m.ID()
	if err != nil || mid != dedupe.Sum(p) {
		t.Errorf("id %v, %v", mid, err)
	}
	// The order in which the caller lists the cut's machines does not matter.
	m.CutMachines[0], m.CutMachines[1] = m.CutMachines[1], m.CutMachines[0]
	if again := encode(t, m); !bytes.Equal(again, p) {
		t.Error("encoding depends on the order of the cut's machines")
	}
}

// reseal sets a manifest's length and checksum right, as one who tampers would.
func reseal(p []byte) []byte {
	binary.LittleEndian.PutUint32(p[8:], uint32(len(p)))
	binary.LittleEndian.PutUint32(p[len(p)-4:], crc32.Checksum(p[:len(p)-4], crc32.MakeTable(crc32.Castagnoli)))
	return p
}

// TestManifestRefuses: every flipped bit, every cut, reserved bytes, other versions.
func TestManifestRefuses(t *testing.T) {
	p := encode(t, full())
	for i := range p {
		bad := bytes.Clone(p)
		bad[i] ^= 0x10
		if _, err := recoverypoint.Decode(bad); !errors.Is(err, dedupe.ErrCorrupt) && !errors.Is(err, dedupe.ErrUnknownFormat) {
			t.Fatalf("byte %d flipped: %v", i, err)
		}
		if _, err := recoverypoint.Decode(p[:i]); err == nil {
			t.Fatalf("cut at %d: accepted", i)
		}
	}
	for name, change := range map[string]func(p []byte) []byte{
		"version 2":      func(p []byte) []byte { p[4] = 2; return p },
		"unknown flag":   func(p []byte) []byte { p[7] = 0x80; return p },
		"reserved byte":  func(p []byte) []byte { p[255] = 1; return p },
		"reserved word":  func(p []byte) []byte { p[12] = 1; return p },
		"trailing byte":  func(p []byte) []byte { return append(p, 0) },
		"sequence 0":     func(p []byte) []byte { clear(p[128:136]); return p },
		"consistency 4":  func(p []byte) []byte { p[216] = 4; return p },
		"tracking 0":     func(p []byte) []byte { p[217] = 0; return p },
		"freeze in 1900": func(p []byte) []byte { p[175] = 0xff; return p },
		"monotonic < 0":  func(p []byte) []byte { p[183] = 0xff; return p },
		"critical extension": func(p []byte) []byte {
			at := len(p) - 4 - 5 - 6 // CRC, data, header
			p[at+1] |= 0x80
			return p
		},
	} {
		bad := reseal(change(bytes.Clone(p)))
		if _, err := recoverypoint.Decode(bad); !errors.Is(err, dedupe.ErrCorrupt) && !errors.Is(err, dedupe.ErrUnknownFormat) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestManifestLimits(t *testing.T) {
	for name, change := range map[string]func(m *recoverypoint.Manifest){
		"no machine name":     func(m *recoverypoint.Manifest) { m.MachineName = "" },
		"newline in name":     func(m *recoverypoint.Manifest) { m.Disks[0].Name = "a\nb" },
		"long note":           func(m *recoverypoint.Manifest) { m.Note = strings.Repeat("x", recoverypoint.MaxTextBytes+1) },
		"not UTF-8":           func(m *recoverypoint.Manifest) { m.Reason = "\xff" },
		"two disks, one name": func(m *recoverypoint.Manifest) { m.Disks[1].Name = m.Disks[0].Name },
		"two disks, one id":   func(m *recoverypoint.Manifest) { m.Disks[1].ID = m.Disks[0].ID },
		"bad root":            func(m *recoverypoint.Manifest) { m.Disks[0].Root.Depth = 0 },
		"not of its own cut":  func(m *recoverypoint.Manifest) { m.CutMachines = m.CutMachines[1:] },
		"no generation":       func(m *recoverypoint.Manifest) { m.Generation.ID = recoverypoint.ID{} },
		"no time":             func(m *recoverypoint.Manifest) { m.FrozenAt = time.Time{} },
		"far future":          func(m *recoverypoint.Manifest) { m.FrozenAt = time.Date(2300, 1, 1, 0, 0, 0, 0, time.UTC) },
		"content length":      func(m *recoverypoint.Manifest) { m.Definition.Length = 1 << 20 },
		"consistency":         func(m *recoverypoint.Manifest) { m.Consistency = "best" },
		"extensions":          func(m *recoverypoint.Manifest) { m.Extensions = append(m.Extensions, m.Extensions[0]) },
		"larger than a record": func(m *recoverypoint.Manifest) {
			m.Extensions = []recoverypoint.Extension{{Type: 1, Data: make([]byte, dedupe.MaxMetadataSize)}}
		},
	} {
		m := full()
		change(m)
		if _, err := m.Encode(); err == nil {
			t.Errorf("%s: encoded", name)
		} else if !errors.Is(err, recoverypoint.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzManifest(f *testing.F) {
	f.Add(encode(f, full()))
	small := full()
	small.Disks, small.Excluded, small.Extensions, small.Definition = nil, nil, nil, recoverypoint.Content{}
	f.Add(encode(f, small))
	f.Add([]byte("KBMF"))
	f.Fuzz(func(t *testing.T, p []byte) {
		if len(p) >= 256 {
			p = reseal(bytes.Clone(p)) // else nothing gets past the checksum
		}
		m, err := recoverypoint.Decode(p)
		if err != nil {
			return
		}
		again, err := m.Encode()
		if err != nil || !bytes.Equal(again, p) {
			t.Fatalf("decoded %x encodes as %x, %v", p, again, err)
		}
	})
}

func testKey() ed25519.PrivateKey { return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, 32)) }

// notes is one body of every type.
func notes(t testing.TB) map[string][]byte {
	t.Helper()
	out := make(map[string][]byte)
	add := func(name string, p []byte, err error) {
		if err != nil {
			t.Fatal(err)
		}
		out[name] = p
	}
	p, err := recoverypoint.EncodeSignatures([]recoverypoint.Signature{recoverypoint.Sign([]byte("manifest"), recoverypoint.RoleOrigin, testKey())})
	add("note-v1-signatures.bin", p, err)
	p, err = recoverypoint.EncodeAccounting(recoverypoint.Accounting{ReadBytes: 1 << 40, ChangedBytes: 2, NewBytes: 3, StoredBytes: 4})
	add("note-v1-accounting.bin", p, err)
	e := recoverypoint.Event{At: time.Date(2026, 11, 21, 20, 0, 0, 5, time.UTC), Until: time.Date(2026, 12, 5, 20, 0, 0, 0, time.UTC), Actor: "uid 0", Text: "Größe"}
	p, err = recoverypoint.EncodeEvent(recoverypoint.NoteDelete, e)
	add("note-v1-delete.bin", p, err)
	p, err = recoverypoint.EncodeEvent(recoverypoint.NoteRelease, recoverypoint.Event{At: e.At})
	add("note-v1-release.bin", p, err)
	p, err = recoverypoint.EncodeEvent(recoverypoint.NoteExpiry, e)
	add("note-v1-expiry.bin", p, err)
	e.Proven = e.At.Add(-time.Hour)
	p, err = recoverypoint.EncodeEvent(recoverypoint.NoteLock, e)
	add("note-v1-lock.bin", p, err)
	p, err = recoverypoint.EncodeSettings(recoverypoint.Settings{At: e.At, SoftDelete: 14 * 24 * time.Hour, MinimumRetention: 90 * time.Second,
		Immutability: recoverypoint.Locked, Actor: "uid 0", Text: "Größe"})
	add("note-v1-settings.bin", p, err)
	return out
}

// decodeNote decodes and encodes a body of whatever type it says it is.
func decodeNote(p []byte) (again []byte, err error) {
	noteType := uint16(0)
	if len(p) >= 8 {
		noteType = binary.LittleEndian.Uint16(p[6:])
	}
	switch noteType {
	case recoverypoint.NoteSignatures:
		list, err := recoverypoint.DecodeSignatures(p)
		if err != nil {
			return nil, err
		}
		return recoverypoint.EncodeSignatures(list)
	case recoverypoint.NoteAccounting:
		a, err := recoverypoint.DecodeAccounting(p)
		if err != nil {
			return nil, err
		}
		return recoverypoint.EncodeAccounting(a)
	case recoverypoint.NoteSettings:
		s, err := recoverypoint.DecodeSettings(p)
		if err != nil {
			return nil, err
		}
		return recoverypoint.EncodeSettings(s)
	}
	e, err := recoverypoint.DecodeEvent(noteType, p)
	if err != nil {
		return nil, err
	}
	return recoverypoint.EncodeEvent(noteType, e)
}

func TestNotesGolden(t *testing.T) {
	for name, p := range notes(t) {
		golden(t, name, p)
		again, err := decodeNote(p)
		if err != nil || !bytes.Equal(again, p) {
			t.Errorf("%s: comes back as %x, %v", name, again, err)
		}
		for i := range p {
			bad := bytes.Clone(p)
			bad[i] ^= 1
			if _, err := decodeNote(bad); err == nil {
				t.Errorf("%s: byte %d flipped and accepted", name, i)
			}
			if _, err := decodeNote(p[:i]); err == nil {
				t.Errorf("%s: cut at %d and accepted", name, i)
			}
		}
	}
}

func FuzzNote(f *testing.F) {
	for _, p := range notes(f) {
		f.Add(p)
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		if len(p) >= 12 {
			p = bytes.Clone(p)
			binary.LittleEndian.PutUint32(p[len(p)-4:], crc32.Checksum(p[:len(p)-4], crc32.MakeTable(crc32.Castagnoli)))
		}
		again, err := decodeNote(p)
		if err == nil && !bytes.Equal(again, p) {
			t.Fatalf("%x comes back as %x", p, again)
		}
	})
}

func TestSignature(t *testing.T) {
	m := encode(t, full())
	s := recoverypoint.Sign(m, recoverypoint.RoleOrigin, testKey())
	pub := testKey().Public().(ed25519.PublicKey)
	other := ed25519.NewKeyFromSeed(make([]byte, 32)).Public().(ed25519.PublicKey)
	tampered := bytes.Clone(m)
	tampered[300] ^= 1
	switch {
	case !s.Verify(m, pub):
		t.Error("its own signature is refused")
	case s.Verify(m, other), s.Verify(tampered, pub), s.Verify(m, nil):
		t.Error("a wrong key or manifest is accepted")
	}
}

// putter stores blocks in a batch of a store in memory.
func batchOf(t testing.TB, s dedupe.Store) dedupe.Batch {
	t.Helper()
	b, err := s.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Abort() })
	return b
}

func TestContent(t *testing.T) {
	s := dedupetest.NewMemory(16 << 10)
	for _, n := range []int{0, 1, 16 << 10, 16<<10 + 1, 100000} {
		p := bytes.Repeat([]byte("definition "), n/11+1)[:n]
		if n > 50000 {
			clear(p[16<<10 : 32<<10]) // a block of zeros is not stored
		}
		c, err := recoverypoint.PutContent(t.Context(), batchOf(t, s), s.BlockSize(), p)
		if err != nil {
			t.Fatal(err)
		}
		got, err := recoverypoint.LoadContent(t.Context(), s, c)
		if err != nil || !bytes.Equal(got, p) {
			t.Errorf("%d bytes: got %d, %v", n, len(got), err)
		}
	}
}

func TestChangeSet(t *testing.T) {
	s := dedupetest.NewMemory(64 << 10)
	const size = 32<<40 - 512
	c := recoverypoint.NewChangeSet()
	c.Add(blockdev.Extent{Offset: 100, Length: 1}) // grain 0
	c.Add(blockdev.Extent{Offset: 4096, Length: 4096})
	c.Add(blockdev.Extent{Offset: 1 << 40, Length: 3<<40 + 1})
	c.Add(blockdev.Extent{Offset: size - 512, Length: 512})
	c.Add(blockdev.Extent{Offset: 12345})
	more := recoverypoint.NewChangeSet()
	more.Add(blockdev.Extent{Offset: 8192, Length: 10})
	c.Or(more)
	b := batchOf(t, s)
	ref, err := recoverypoint.EncodeChangeSet(t.Context(), b, s.BlockSize(), c)
	if err != nil || ref.IsZero() || len(ref.Blocks) > 64 {
		t.Fatalf("%d blocks, %v", len(ref.Blocks), err)
	}
	if _, err := b.Commit(t.Context(), dedupe.Publication{}); err != nil {
		t.Fatal(err)
	}
	got, kept, err := recoverypoint.LoadChangeSet(t.Context(), s, ref)
	if err != nil || !kept {
		t.Fatal(kept, err)
	}
	var extents []blockdev.Extent
	got.Extents(size, func(e blockdev.Extent) bool { extents = append(extents, e); return true })
	want := []blockdev.Extent{{Length: 12288}, {Offset: 1 << 40, Length: 3<<40 + 4096}, {Offset: size - 3584, Length: 3584}}
	if d := cmp.Diff(want, extents); d != "" {
		t.Errorf("extents (-want +got):\n%s", d)
	}
	if got.Bytes() != c.Bytes() || !got.Contains(8192) || got.Contains(16384) {
		t.Errorf("%d bytes, want %d", got.Bytes(), c.Bytes())
	}
	if ref, err := recoverypoint.EncodeChangeSet(t.Context(), batchOf(t, s), s.BlockSize(), recoverypoint.NewChangeSet()); err != nil || !ref.IsZero() {
		t.Errorf("empty set: %+v, %v", ref, err)
	}
	if _, kept, err := recoverypoint.LoadChangeSet(t.Context(), s, recoverypoint.Content{}); kept || err != nil {
		t.Errorf("absent set: kept %v, %v", kept, err)
	}
	s.Corrupt(dedupe.KindBlock, ref.Blocks[0])
	if _, _, err := recoverypoint.LoadChangeSet(t.Context(), s, ref); !errors.Is(err, dedupe.ErrCorrupt) {
		t.Errorf("corrupt block: %v", err)
	}
	s.Remove(dedupe.KindBlock, ref.Blocks[0])
	if _, _, err := recoverypoint.LoadChangeSet(t.Context(), s, ref); !errors.Is(err, dedupe.ErrNotFound) {
		t.Errorf("lost block: %v", err)
	}
}

// changeSetBytes is the stored form of a small set.
func changeSetBytes(t testing.TB) []byte {
	s := dedupetest.NewMemory(16 << 10)
	c := recoverypoint.NewChangeSet()
	for i := range int64(5000) {
		c.Add(blockdev.Extent{Offset: i * 3 * 4096, Length: 4096})
	}
	c.Add(blockdev.Extent{Offset: 1 << 45, Length: 1 << 30})
	ref, err := recoverypoint.EncodeChangeSet(t.Context(), batchOf(t, s), s.BlockSize(), c)
	if err != nil {
		t.Fatal(err)
	}
	p, err := recoverypoint.LoadContent(t.Context(), s, ref)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestChangeSetGolden(t *testing.T) { golden(t, "changeset-v1.bin", changeSetBytes(t)) }

// FuzzChangeSet stores any bytes as if they were a change set.
func FuzzChangeSet(f *testing.F) {
	f.Add(changeSetBytes(f))
	f.Add([]byte("KBCS\x01\x00\x0c\x00\x08\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x10\x00\x00\x00....")) // 2^36 parts
	f.Add([]byte("KBCS\x01\x00\x0c\x00\x08\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00....")) // empty bitmap
	f.Fuzz(func(t *testing.T, p []byte) {
		if len(p) >= 20 {
			p = bytes.Clone(p)
			binary.LittleEndian.PutUint64(p[8:], uint64(len(p)-20))
			binary.LittleEndian.PutUint32(p[len(p)-4:], crc32.Checksum(p[:len(p)-4], crc32.MakeTable(crc32.Castagnoli)))
		}
		s := dedupetest.NewMemory(16 << 10)
		ref, err := recoverypoint.PutContent(t.Context(), batchOf(t, s), s.BlockSize(), p)
		if err != nil || ref.IsZero() {
			return
		}
		c, _, err := recoverypoint.LoadChangeSet(t.Context(), s, ref)
		if err != nil {
			return
		}
		last, n := int64(-1), 0
		c.Extents(blockdev.MaxSize, func(e blockdev.Extent) bool {
			if e.Offset <= last || e.Length <= 0 || e.End() > blockdev.MaxSize {
				t.Fatalf("extent %v after %d", e, last)
			}
			last = e.End()
			n++
			return n < 1000
		})
	})
}
