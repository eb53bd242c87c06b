package ntfs

import (
	"encoding/binary"
	"fmt"

	"github.com/keelblock/keelblock/blockdev/filesystem/pagecache"
	"github.com/keelblock/keelblock/blockdev/filesystem/wtf8"
)

// Types of attributes.
const (
	typeStandard   = 0x10
	typeList       = 0x20
	typeFileName   = 0x30
	typeVolumeName = 0x60
	typeVolumeInfo = 0x70
	typeData       = 0x80
	typeIndexRoot  = 0x90
	typeIndexAlloc = 0xA0
	typeBitmap     = 0xB0
	typeReparse    = 0xC0
	typeEnd        = 0xFFFFFFFF
)

// Flags of a record.
const (
	recordInUse     = 1
	recordDirectory = 2
)

// fixupStride is how far apart the two bytes are that protect a record from being
// written in part.
const fixupStride = 512

// refNumber and refSequence split a file reference: number of the record and how often
// that was used anew.
func refNumber(ref uint64) uint64   { return ref & (1<<48 - 1) }
func refSequence(ref uint64) uint16 { return uint16(ref >> 48) }

// fixup checks the update sequence of a record or index block and puts back the bytes
// that it stands in for.
func fixup(p []byte, magic string) error {
	if string(p[:4]) != magic {
		return corruptf("signature %q instead of %q", p[:4], magic)
	}
	le := binary.LittleEndian
	at, count := int(le.Uint16(p[4:])), int(le.Uint16(p[6:]))
	if count != len(p)/fixupStride+1 || at%2 != 0 || at < 8 || at+2*count > len(p) {
		return corruptf("update sequence of %d at %d", count, at)
	}
	number := le.Uint16(p[at:])
	for i := 1; i < count; i++ {
		end := p[i*fixupStride-2:]
		if le.Uint16(end) != number {
			return corruptf("update sequence: sector %d was not written with the others", i-1)
		}
		copy(end[:2], p[at+2*i:at+2*i+2])
	}
	return nil
}

// record is a record of the MFT. It is not changed once it is in the cache.
type record struct {
	number   uint64
	sequence uint16
	flags    uint16
	base     uint64 // reference of the base record; 0 when it is one
	attrs    []attr
}

// attr is an attribute as it stands in one record.
type attr struct {
	kind  uint32
	id    uint16
	flags uint16
	name  string
	// value is that of a resident attribute; nil otherwise.
	value    []byte
	resident bool
	// Of an attribute that is not resident:
	lowest, highest              uint64 // VCN
	unit                         uint8  // binary logarithm of the compression unit in clusters
	allocated, size, initialized int64
	runs                         []byte
}

// parseRecord reads a record whose bytes it changes and keeps.
func parseRecord(p []byte, number uint64) (*record, error) {
	if err := fixup(p, "FILE"); err != nil {
		return nil, fmt.Errorf("MFT record %d: %w", number, err)
	}
	le := binary.LittleEndian
	r := &record{number: number, sequence: le.Uint16(p[16:]), flags: le.Uint16(p[22:]), base: le.Uint64(p[32:])}
	used := int(le.Uint32(p[24:]))
	if used > len(p) || used < 48 {
		return nil, corruptf("MFT record %d: %d of %d bytes are used", number, used, len(p))
	}
	p = p[:used]
	for at := int(le.Uint16(p[20:])); ; {
		if at < 42 || at+4 > len(p) || at%8 != 0 {
			return nil, corruptf("MFT record %d: attribute at %d of %d", number, at, used)
		}
		if le.Uint32(p[at:]) == typeEnd {
			return r, nil
		}
		a, length, err := parseAttr(p[at:])
		if err != nil {
			return nil, fmt.Errorf("MFT record %d: attribute at %d: %w", number, at, err)
		}
		r.attrs = append(r.attrs, a)
		at += length
	}
}

func parseAttr(p []byte) (a attr, length int, err error) {
	le := binary.LittleEndian
	if len(p) < 24 {
		return a, 0, corruptf("header is cut short")
	}
	length = int(le.Uint32(p[4:]))
	if length < 24 || length > len(p) || length%8 != 0 {
		return a, 0, corruptf("length %d of %d", length, len(p))
	}
	p = p[:length]
	nameLen, nameAt := 2*int(p[9]), int(le.Uint16(p[10:]))
	a = attr{kind: le.Uint32(p), flags: le.Uint16(p[12:]), id: le.Uint16(p[14:]), resident: p[8] == 0}
	if nameLen > 0 {
		if nameAt+nameLen > length {
			return a, 0, corruptf("name of %d bytes at %d", nameLen, nameAt)
		}
		a.name = string(wtf8.Append(nil, wtf8.Units(p[nameAt:nameAt+nameLen])))
	}
	if a.resident {
		n, at := int(le.Uint32(p[16:])), int(le.Uint16(p[20:]))
		if n > length || at > length-n {
			return a, 0, corruptf("value of %d bytes at %d", n, at)
		}
		a.value = p[at : at+n : at+n]
		return a, length, nil
	}
	if length < 64 {
		return a, 0, corruptf("header is cut short")
	}
	runs := int(le.Uint16(p[32:]))
	a.lowest, a.highest, a.unit = le.Uint64(p[16:]), le.Uint64(p[24:]), p[34]
	a.allocated, a.size, a.initialized = int64(le.Uint64(p[40:])), int64(le.Uint64(p[48:])), int64(le.Uint64(p[56:]))
	if runs > length || a.allocated < 0 || a.size < 0 || a.initialized < 0 || a.initialized > a.size {
		return a, 0, corruptf("runs at %d, size %d, initialized %d, allocated %d", runs, a.size, a.initialized, a.allocated)
	}
	a.runs = p[runs:]
	return a, length, nil
}

// record reads record number of the MFT. The first four have a copy, which is used when
// the original is damaged.
func (f *FS) record(number uint64) (*record, error) {
	k := pagecache.Key{Class: classRecord, A: number}
	if r, ok := pagecache.Get[*record](f.cache, k); ok {
		return r, nil
	}
	if number >= uint64(f.mft.size/f.boot.recordSize) {
		return nil, corruptf("MFT record %d of %d", number, f.mft.size/f.boot.recordSize)
	}
	p := make([]byte, f.boot.recordSize)
	if err := f.readRuns(f.mft, p, int64(number)*f.boot.recordSize, f.cache.Read); err != nil {
		return nil, err
	}
	r, err := parseRecord(p, number)
	if err != nil && number < 4 {
		if copied, copyErr := f.mirrored(number); copyErr == nil {
			r, err = copied, nil
		}
	}
	if err != nil {
		return nil, err
	}
	f.cache.Put(k, r, int(f.boot.recordSize)+120*len(r.attrs))
	return r, nil
}

// mirrored is one of the first four records from their copy.
func (f *FS) mirrored(number uint64) (*record, error) {
	p := make([]byte, f.boot.recordSize)
	if err := f.cache.Read(p, int64(f.boot.mirror)*f.boot.clusterSize+int64(number)*f.boot.recordSize); err != nil {
		return nil, err
	}
	return parseRecord(p, number)
}

// node is a file: its base record and where its attributes are.
type node struct {
	*record
	list []listEntry // nil: all attributes are in the base record
}

// listEntry is an entry of an attribute list.
type listEntry struct {
	kind   uint32
	id     uint16
	lowest uint64
	ref    uint64
	name   string
}

// maxListSize is what an attribute list may have, in bytes; Windows' own limit.
const maxListSize = 256 << 10

// node reads the file of a base record in use.
func (f *FS) node(number uint64) (*node, error) {
	k := pagecache.Key{Class: classNode, A: number}
	if n, ok := pagecache.Get[*node](f.cache, k); ok {
		return n, nil
	}
	r, err := f.record(number)
	if err != nil {
		return nil, err
	}
	n := &node{record: r}
	if refNumber(r.base) != 0 {
		return nil, corruptf("MFT record %d belongs to record %d", number, refNumber(r.base))
	}
	for i := range r.attrs {
		if r.attrs[i].kind == typeList {
			if n.list, err = f.attributeList(&r.attrs[i]); err != nil {
				return nil, fmt.Errorf("MFT record %d: attribute list: %w", number, err)
			}
		}
	}
	f.cache.Put(k, n, 80*len(n.list)+40)
	return n, nil
}

func (f *FS) attributeList(a *attr) ([]listEntry, error) {
	p := a.value
	if !a.resident {
		if a.size > maxListSize || a.lowest != 0 || a.flags != 0 {
			return nil, corruptf("%d bytes", a.size)
		}
		s := &stream{size: a.size, initialized: a.initialized}
		var err error
		if s.runs, err = f.decodeRuns(a); err != nil {
			return nil, err
		}
		p = make([]byte, a.size)
		if err := f.readRuns(s, p, 0, f.cache.Read); err != nil {
			return nil, err
		}
	}
	le := binary.LittleEndian
	list := []listEntry{}
	for len(p) > 0 {
		if len(p) < 26 {
			return nil, corruptf("entry is cut short")
		}
		length, nameLen, nameAt := int(le.Uint16(p[4:])), 2*int(p[6]), int(p[7])
		if length < 26 || length > len(p) || (nameLen > 0 && nameAt+nameLen > length) {
			return nil, corruptf("entry of %d bytes with a name of %d", length, nameLen)
		}
		e := listEntry{kind: le.Uint32(p), lowest: le.Uint64(p[8:]), ref: le.Uint64(p[16:]), id: le.Uint16(p[24:])}
		if nameLen > 0 {
			e.name = string(wtf8.Append(nil, wtf8.Units(p[nameAt:nameAt+nameLen])))
		}
		list = append(list, e)
		p = p[length:]
	}
	return list, nil
}

// resolve finds the attribute that an entry of the list of n means.
func (f *FS) resolve(n *node, e listEntry) (*attr, error) {
	r := n.record
	if number := refNumber(e.ref); number != n.number {
		var err error
		if r, err = f.record(number); err != nil {
			return nil, err
		}
		if refNumber(r.base) != n.number || r.sequence != refSequence(e.ref) || r.flags&recordInUse == 0 {
			return nil, corruptf("MFT record %d does not belong to record %d", number, n.number)
		}
	}
	for i := range r.attrs {
		if a := &r.attrs[i]; a.kind == e.kind && a.id == e.id && a.name == e.name {
			return a, nil
		}
	}
	return nil, corruptf("MFT record %d: attribute %#x %q is not in record %d", n.number, e.kind, e.name, refNumber(e.ref))
}

// each calls yield for the attributes of a kind, in their first part only, until it
// returns false.
func (f *FS) each(n *node, kind uint32, yield func(a *attr) bool) error {
	if n.list == nil {
		for i := range n.attrs {
			if n.attrs[i].kind == kind && !yield(&n.attrs[i]) {
				return nil
			}
		}
		return nil
	}
	for _, e := range n.list {
		if e.kind != kind || e.lowest != 0 {
			continue
		}
		a, err := f.resolve(n, e)
		if err != nil {
			return err
		}
		if !yield(a) {
			return nil
		}
	}
	return nil
}

// find is the attribute of a kind and name in its first part, nil when there is none.
func (f *FS) find(n *node, kind uint32, name string) (found *attr, err error) {
	err = f.each(n, kind, func(a *attr) bool {
		if a.name == name {
			found = a
		}
		return found == nil
	})
	return found, err
}
