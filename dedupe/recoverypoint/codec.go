package recoverypoint

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"slices"
	"time"

	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/hashtree"
)

// Layout of a manifest, see FORMAT.md.
const (
	manifestMagic   = "KBMF"
	manifestVersion = 1
	manifestFixed   = 256
	flagClean       = 1 << 0
	// extensionCritical in an extension's type: who does not know it must refuse.
	extensionCritical = 1 << 15
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Encode is the manifest's bytes, see FORMAT.md. They are canonical: equal manifests
// have equal bytes.
func (m *Manifest) Encode() ([]byte, error) {
	if err := m.Validate(); err != nil {
		return nil, err
	}
	var w writer
	w.raw([]byte(manifestMagic))
	w.u16(manifestVersion)
	flags := uint16(0)
	if m.ShutdownClean {
		flags |= flagClean
	}
	w.u16(flags)
	w.u32(0) // length, set below
	w.u32(0)
	w.raw(m.Domain[:])
	w.raw(m.Site[:])
	w.raw(m.MachineID[:])
	w.raw(m.CutID[:])
	w.u64(m.Generation.Number)
	w.raw(m.Generation.ID[:])
	w.raw(m.Generation.GrewFrom[:])
	w.u64(m.Generation.SequenceAtFork)
	w.u64(m.Sequence)
	w.raw(m.Parent[:])
	w.u64(uint64(m.FrozenAt.UnixNano()))
	w.u64(uint64(m.FrozenMonotonic))
	w.raw(m.BootID[:])
	w.u64(uint64(m.FreezeMicros))
	w.u64(uint64(m.ChangedBytes))
	w.raw([]byte{consistencyCode(m.Consistency), trackingCode(m.Tracking)})
	w.zeros(manifestFixed - len(w.b))

	t := m.clearTexts()
	w.text(t.machine)
	w.text(t.reason)
	w.text(t.note)
	w.content(m.Definition)
	cut := slices.Clone(m.CutMachines)
	slices.SortFunc(cut, func(a, b ID) int { return bytes.Compare(a[:], b[:]) })
	cut = slices.Compact(cut)
	w.u16(uint16(len(cut)))
	for _, id := range cut {
		w.raw(id[:])
	}
	w.u16(uint16(len(m.Disks)))
	for i := range m.Disks {
		d := &m.Disks[i]
		w.raw(d.ID[:])
		w.b = d.Root.AppendTo(w.b)
		w.raw(d.Base[:])
		w.u64(uint64(d.ChangedBytes))
		w.raw([]byte{trackingCode(d.Tracking)})
		w.zeros(7)
		w.text(t.disks[i])
		w.content(d.ChangeSet)
	}
	w.u16(uint16(len(m.Excluded)))
	for i, d := range m.Excluded {
		w.raw(d.ID[:])
		w.u64(uint64(d.SizeBytes))
		w.text(t.excluded[i][0])
		w.text(t.excluded[i][1])
	}
	extensions := m.allExtensions()
	w.u16(uint16(len(extensions)))
	for _, e := range extensions {
		w.u16(e.Type)
		w.u32(uint32(len(e.Data)))
		w.raw(e.Data)
	}
	if len(w.b)+4 > dedupe.MaxMetadataSize {
		return nil, fmt.Errorf("manifest of machine %q: %w", m.MachineName,
			invalid("%d bytes are more than %d", len(w.b)+4, dedupe.MaxMetadataSize))
	}
	binary.LittleEndian.PutUint32(w.b[8:], uint32(len(w.b)+4))
	return w.seal(), nil
}

// allExtensions are those of later releases and our own, whose types are above theirs.
func (m *Manifest) allExtensions() []Extension {
	if m.Private.IsZero() {
		return m.Extensions
	}
	var w writer
	w.content(m.Private)
	return append(slices.Clip(m.Extensions), Extension{Type: extensionPrivate, Data: w.b})
}

// Decode is the inverse of Encode, but for private texts: the fields have the neutral
// ones then, which OpenIndex replaces. It refuses bytes that Encode would not have
// written (dedupe.ErrCorrupt) and versions that it does not know
// (dedupe.ErrUnknownFormat).
func Decode(p []byte) (*Manifest, error) {
	m, err := decode(p)
	if err != nil {
		return nil, fmt.Errorf("decode manifest: %w", err)
	}
	return m, nil
}

func decode(p []byte) (*Manifest, error) {
	if len(p) < manifestFixed || len(p) > dedupe.MaxMetadataSize || string(p[:4]) != manifestMagic {
		return nil, fmt.Errorf("%d bytes without the magic %s: %w", len(p), manifestMagic, dedupe.ErrUnknownFormat)
	}
	if v := binary.LittleEndian.Uint16(p[4:]); v != manifestVersion {
		return nil, fmt.Errorf("version %d: %w", v, dedupe.ErrUnknownFormat)
	}
	if n := binary.LittleEndian.Uint32(p[8:]); int(n) != len(p) {
		return nil, fmt.Errorf("%d bytes, header says %d: %w", len(p), n, dedupe.ErrCorrupt)
	}
	body, err := unseal(p)
	if err != nil {
		return nil, err
	}
	r := reader{b: body, at: 6}
	m := new(Manifest)
	flags := r.u16()
	m.ShutdownClean = flags&flagClean != 0
	r.skip(8)
	r.raw(m.Domain[:])
	r.raw(m.Site[:])
	r.raw(m.MachineID[:])
	r.raw(m.CutID[:])
	m.Generation.Number = r.u64()
	r.raw(m.Generation.ID[:])
	r.raw(m.Generation.GrewFrom[:])
	m.Generation.SequenceAtFork = r.u64()
	m.Sequence = r.u64()
	r.raw(m.Parent[:])
	m.FrozenAt = time.Unix(0, int64(r.u64())).UTC()
	m.FrozenMonotonic = time.Duration(r.u64())
	r.raw(m.BootID[:])
	m.FreezeMicros = int64(r.u64())
	m.ChangedBytes = int64(r.u64())
	m.Consistency, m.Tracking = consistency(r.u8()), tracking(r.u8())
	r.at = manifestFixed

	m.MachineName, m.Reason, m.Note = r.text(), r.text(), r.text()
	m.Definition = r.content()
	for range r.count(16) {
		var id ID
		r.raw(id[:])
		m.CutMachines = append(m.CutMachines, id)
	}
	for range r.count(130) {
		var d Disk
		r.raw(d.ID[:])
		root, rerr := hashtree.ParseRoot(r.take(hashtree.RootSize))
		if rerr != nil && r.err == nil {
			r.err = fmt.Errorf("disk %d: %w", len(m.Disks), rerr)
		}
		d.Root = root
		r.raw(d.Base[:])
		d.ChangedBytes = int64(r.u64())
		d.Tracking = tracking(r.u8())
		r.skip(7)
		d.Name = r.text()
		d.ChangeSet = r.content()
		m.Disks = append(m.Disks, d)
	}
	for range r.count(28) {
		var d ExcludedDisk
		r.raw(d.ID[:])
		d.SizeBytes = int64(r.u64())
		d.Name, d.Reason = r.text(), r.text()
		m.Excluded = append(m.Excluded, d)
	}
	for range r.count(6) {
		e := Extension{Type: r.u16()}
		e.Data = append([]byte{}, r.take(int(r.u32()))...)
		switch {
		case r.err == nil && e.Type == extensionPrivate:
			private := reader{b: e.Data}
			m.Private = private.content()
			r.err = private.err
		case r.err == nil && e.Type&extensionCritical != 0:
			return nil, fmt.Errorf("extension %#x: %w", e.Type, dedupe.ErrUnknownFormat)
		default:
			m.Extensions = append(m.Extensions, e)
		}
	}
	if r.err != nil {
		return nil, fmt.Errorf("%w: %w", r.err, dedupe.ErrCorrupt)
	}
	// Whatever the fields above do not carry (reserved bytes, order, trailing
	// bytes) would be lost in a second encoding, so this one comparison refuses it.
	again, err := m.Encode()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, dedupe.ErrCorrupt)
	}
	if !bytes.Equal(again, p) {
		return nil, fmt.Errorf("not in canonical form, or with fields of a later release: %w", dedupe.ErrUnknownFormat)
	}
	return m, nil
}

func consistency(code byte) Consistency {
	if int(code) < len(consistencies) {
		return consistencies[code]
	}
	return ""
}

func tracking(code byte) Tracking {
	if int(code) < len(trackings) {
		return trackings[code]
	}
	return ""
}

// unseal checks the CRC at the end of p and returns what stands before it.
func unseal(p []byte) ([]byte, error) {
	if len(p) < 4 {
		return nil, fmt.Errorf("%d bytes: %w", len(p), dedupe.ErrCorrupt)
	}
	body := p[:len(p)-4]
	if crc32.Checksum(body, castagnoli) != binary.LittleEndian.Uint32(p[len(body):]) {
		return nil, fmt.Errorf("checksum differs: %w", dedupe.ErrCorrupt)
	}
	return body, nil
}

// writer appends fields; it cannot fail.
type writer struct{ b []byte }

func (w *writer) raw(p []byte)  { w.b = append(w.b, p...) }
func (w *writer) u16(v uint16)  { w.b = binary.LittleEndian.AppendUint16(w.b, v) }
func (w *writer) u32(v uint32)  { w.b = binary.LittleEndian.AppendUint32(w.b, v) }
func (w *writer) u64(v uint64)  { w.b = binary.LittleEndian.AppendUint64(w.b, v) }
func (w *writer) zeros(n int)   { w.b = append(w.b, make([]byte, n)...) }
func (w *writer) text(s string) { w.u16(uint16(len(s))); w.b = append(w.b, s...) }
func (w *writer) seal() []byte  { w.u32(crc32.Checksum(w.b, castagnoli)); return w.b }

func (w *writer) content(c Content) {
	w.u64(uint64(c.Length))
	w.u32(uint32(c.BlockSize))
	w.u32(uint32(len(c.Blocks)))
	for _, d := range c.Blocks {
		w.raw(d[:])
	}
}

// reader takes fields off and remembers the first failure; after it everything is
// zero and every count is 0, so decoding ends by itself.
type reader struct {
	b   []byte
	at  int
	err error
}

func (r *reader) take(n int) []byte {
	if r.err == nil && (n < 0 || n > len(r.b)-r.at) {
		r.err = fmt.Errorf("cut short at byte %d", r.at)
	}
	if r.err != nil {
		return nil
	}
	p := r.b[r.at : r.at+n]
	r.at += n
	return p
}

func (r *reader) raw(dst []byte) { copy(dst, r.take(len(dst))) }
func (r *reader) skip(n int)     { r.take(n) }

func (r *reader) u8() byte {
	var b [1]byte
	r.raw(b[:])
	return b[0]
}

func (r *reader) u16() uint16 {
	var b [2]byte
	r.raw(b[:])
	return binary.LittleEndian.Uint16(b[:])
}

func (r *reader) u32() uint32 {
	var b [4]byte
	r.raw(b[:])
	return binary.LittleEndian.Uint32(b[:])
}

func (r *reader) u64() uint64 {
	var b [8]byte
	r.raw(b[:])
	return binary.LittleEndian.Uint64(b[:])
}

func (r *reader) text() string { return string(r.take(int(r.u16()))) }

// count reads the number of items of at least itemBytes each and refuses one that
// cannot be in what is left, so that nothing is allocated for a lie.
func (r *reader) count(itemBytes int) int {
	n := int(r.u16())
	if r.err == nil && n*itemBytes > len(r.b)-r.at {
		r.err = fmt.Errorf("%d items at byte %d do not fit", n, r.at)
	}
	if r.err != nil {
		return 0
	}
	return n
}

func (r *reader) content() Content {
	c := Content{Length: int64(r.u64()), BlockSize: int(r.u32())}
	n := int(r.u32())
	if r.err == nil && n > (len(r.b)-r.at)/dedupe.DigestSize {
		r.err = fmt.Errorf("%d digests at byte %d do not fit", n, r.at)
	}
	if r.err != nil || n == 0 {
		return c
	}
	c.Blocks = make([]dedupe.Digest, n)
	for i := range c.Blocks {
		r.raw(c.Blocks[i][:])
	}
	return c
}
