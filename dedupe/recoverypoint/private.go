package recoverypoint

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/keelblock/keelblock/dedupe"
	"github.com/keelblock/keelblock/dedupe/hashtree"
)

// Layout of private texts, see FORMAT.md.
const (
	privateMagic   = "KBPT"
	privateVersion = 1
	privateHeader  = 8
	// extensionPrivate refers to the private texts.
	extensionPrivate = extensionCritical | 1
)

// texts are what a manifest says in words: of the guest, or of its user. In an encrypted
// domain they are blocks like any other, sealed, and the manifest itself, which stands in
// clear, has neutral ones.
type texts struct {
	machine, reason, note string
	disks                 []string
	excluded              [][2]string // name and reason
}

// texts of the manifest's fields.
func (m *Manifest) texts() *texts {
	t := &texts{machine: m.MachineName, reason: m.Reason, note: m.Note}
	for i := range m.Disks {
		t.disks = append(t.disks, m.Disks[i].Name)
	}
	for _, d := range m.Excluded {
		t.excluded = append(t.excluded, [2]string{d.Name, d.Reason})
	}
	return t
}

// neutralTexts tell nothing that the other fields do not.
func (m *Manifest) neutralTexts() *texts {
	t := &texts{machine: m.MachineID.String()}
	for i := range m.Disks {
		t.disks = append(t.disks, fmt.Sprintf("disk-%d", i+1))
	}
	for i := range m.Excluded {
		t.excluded = append(t.excluded, [2]string{fmt.Sprintf("excluded-%d", i+1)})
	}
	return t
}

// clearTexts are the texts that stand in the manifest's own bytes.
func (m *Manifest) clearTexts() *texts {
	if m.Private.IsZero() {
		return m.texts()
	}
	return m.neutralTexts()
}

// setTexts is the inverse of texts. It is refused unless there is one for each disk, and
// when the manifest would not be valid with them.
func (m *Manifest) setTexts(t *texts) error {
	if len(t.disks) != len(m.Disks) || len(t.excluded) != len(m.Excluded) {
		return fmt.Errorf("names of %d disks and %d excluded ones, want %d and %d: %w",
			len(t.disks), len(t.excluded), len(m.Disks), len(m.Excluded), dedupe.ErrCorrupt)
	}
	named := *m
	named.Disks, named.Excluded = slices.Clone(m.Disks), slices.Clone(m.Excluded)
	named.MachineName, named.Reason, named.Note = t.machine, t.reason, t.note
	for i, name := range t.disks {
		named.Disks[i].Name = name
	}
	for i, d := range t.excluded {
		named.Excluded[i].Name, named.Excluded[i].Reason = d[0], d[1]
	}
	if err := named.Validate(); err != nil {
		return fmt.Errorf("%w: %w", err, dedupe.ErrCorrupt)
	}
	*m = named
	return nil
}

// encode is the bytes of FORMAT.md.
func (t *texts) encode() []byte {
	var w writer
	w.raw([]byte(privateMagic))
	w.u16(privateVersion)
	w.u16(0)
	w.text(t.machine)
	w.text(t.reason)
	w.text(t.note)
	w.u16(uint16(len(t.disks)))
	for _, name := range t.disks {
		w.text(name)
	}
	w.u16(uint16(len(t.excluded)))
	for _, d := range t.excluded {
		w.text(d[0])
		w.text(d[1])
	}
	return w.seal()
}

// decodeTexts is the inverse of encode.
func decodeTexts(p []byte) (*texts, error) {
	if len(p) < privateHeader+4 || string(p[:4]) != privateMagic {
		return nil, fmt.Errorf("private texts of %d bytes without the magic %s: %w", len(p), privateMagic, dedupe.ErrUnknownFormat)
	}
	if v := binary.LittleEndian.Uint16(p[4:]); v != privateVersion {
		return nil, fmt.Errorf("private texts of version %d: %w", v, dedupe.ErrUnknownFormat)
	}
	body, err := unseal(p)
	if err != nil {
		return nil, fmt.Errorf("private texts: %w", err)
	}
	r := reader{b: body, at: privateHeader}
	t := &texts{machine: r.text(), reason: r.text(), note: r.text()}
	for range r.count(2) {
		t.disks = append(t.disks, r.text())
	}
	for range r.count(4) {
		t.excluded = append(t.excluded, [2]string{r.text(), r.text()})
	}
	if r.err != nil {
		return nil, fmt.Errorf("private texts: %w: %w", r.err, dedupe.ErrCorrupt)
	}
	if !bytes.Equal(t.encode(), p) {
		return nil, fmt.Errorf("private texts are not in canonical form: %w", dedupe.ErrCorrupt)
	}
	return t, nil
}

// PutPrivate stores the manifest's texts as blocks of the batch and has the manifest
// refer to them: its bytes, and so its ID, have neutral ones from then on, while its
// fields keep them. Whoever needs the ID of a manifest of an encrypted domain before
// Publish calls it first; it must be called again when a text changes.
func (m *Manifest) PutPrivate(ctx context.Context, b blockPutter, blockSize int) error {
	if err := m.Validate(); err != nil {
		return err
	}
	c, err := PutContent(ctx, b, blockSize, m.texts().encode())
	if err != nil {
		return fmt.Errorf("names of machine %q: %w", m.MachineName, err)
	}
	m.Private = c
	return nil
}

// reveal puts the private texts into the fields of a manifest that was decoded: without
// them it has neutral ones. dedupe.ErrNoKey when they are sealed by a key that is not
// there; after any error the manifest is as before.
func (m *Manifest) reveal(load func(Content) (*texts, error)) error {
	if m.Private.IsZero() {
		return nil
	}
	t, err := load(m.Private)
	if err == nil {
		err = m.setTexts(t)
	}
	if err != nil {
		return fmt.Errorf("names of machine %v: %w", m.MachineID, err)
	}
	return nil
}

func loadTexts(ctx context.Context, g hashtree.Getter, c Content) (*texts, error) {
	p, err := LoadContent(ctx, g, c)
	if err != nil {
		return nil, err
	}
	return decodeTexts(p)
}

// textLoader reads the texts of many manifests. Those of a machine are mostly the same
// ones, in the same block, which is read once.
type textLoader struct {
	store  dedupe.Store
	loaded map[textsKey]*texts
}

type textsKey struct {
	block  dedupe.Digest
	length int64
}

// maxLoadedTexts bounds what a textLoader keeps.
const maxLoadedTexts = 4096

func (l *textLoader) load(ctx context.Context, c Content) (*texts, error) {
	if len(c.Blocks) != 1 {
		return loadTexts(ctx, l.store, c)
	}
	key := textsKey{c.Blocks[0], c.Length}
	if t := l.loaded[key]; t != nil {
		return t, nil
	}
	t, err := loadTexts(ctx, l.store, c)
	if err != nil {
		return nil, err
	}
	if l.loaded == nil || len(l.loaded) >= maxLoadedTexts {
		l.loaded = make(map[textsKey]*texts)
	}
	l.loaded[key] = t
	return t, nil
}

// Contents are all contents that the manifest refers to, beside the trees of its disks.
func (m *Manifest) Contents() []Content {
	list := []Content{m.Definition, m.Private}
	for i := range m.Disks {
		list = append(list, m.Disks[i].ChangeSet)
	}
	return list
}
