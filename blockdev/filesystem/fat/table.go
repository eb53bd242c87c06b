package fat

import (
	"bytes"
	"encoding/binary"

	"github.com/keelblock/keelblock/blockdev/filesystem/pagecache"
)

// compareAtOpen is the size of a FAT up to which its copies are compared at once.
const compareAtOpen = 1 << 20

// Kinds of an entry of the FAT, beside the number of the next cluster. They are above
// every number of a cluster.
const (
	entryFree = 0xFFFFFFFC // nothing is there
	entryBad  = 0xFFFFFFFD // a bad cluster, or a number that no cluster has
	entryEnd  = 0xFFFFFFFF // the end of a chain
)

// table reads one copy of the FAT. It is used by one goroutine for one chain: it keeps
// the page in hand.
type table struct {
	f     *FS
	start int64 // of this copy
	page  []byte
	at    int64 // of the page in the volume
}

func (f *FS) table(copyOf int) *table {
	t := &table{f: f, start: f.boot.fatStart}
	if copyOf == 1 {
		t.start = f.boot.otherFAT
	}
	return t
}

// bytes are the n bytes at offset off of the FAT. They are valid until the next call.
func (t *table) bytes(off int64, n int) ([]byte, error) {
	at := t.start + off
	if i := at - t.at; t.page != nil && i >= 0 && i+int64(n) <= int64(len(t.page)) {
		return t.page[i : i+int64(n)], nil
	}
	if t.start == t.f.boot.fatStart {
		if err := t.f.compareFATs(off, off+pagecache.PageSize); err != nil {
			return nil, err
		}
	}
	page, err := t.f.cache.Page(at)
	if err != nil {
		return nil, err
	}
	if len(page) < n { // the entry lies across two pages
		p := make([]byte, n)
		return p, t.f.cache.Read(p, at)
	}
	t.page, t.at = page, at
	return page[:n], nil
}

// next is the entry of cluster c, which is one of the volume: the number of the next
// cluster, or one of the kinds.
func (t *table) next(c uint32) (uint32, error) {
	var v, end uint32
	switch t.f.boot.bits {
	case 12:
		p, err := t.bytes(int64(c)+int64(c/2), 2)
		if err != nil {
			return 0, err
		}
		v, end = uint32(binary.LittleEndian.Uint16(p)), 0xFF8
		if c&1 != 0 {
			v >>= 4
		}
		v &= 0xFFF
	case 16:
		p, err := t.bytes(int64(c)*2, 2)
		if err != nil {
			return 0, err
		}
		v, end = uint32(binary.LittleEndian.Uint16(p)), 0xFFF8
	default:
		p, err := t.bytes(int64(c)*4, 4)
		if err != nil {
			return 0, err
		}
		v, end = binary.LittleEndian.Uint32(p)&0x0FFFFFFF, 0x0FFFFFF8
	}
	switch {
	case v >= end:
		return entryEnd, nil
	case v == 0:
		return entryFree, nil
	case !t.f.boot.holds(v):
		return entryBad, nil
	}
	return v, nil
}

// compareFATs compares what the two copies of the FAT have from offset from to offset
// to and remembers if they differ. It does so by parts of a page, each once.
func (f *FS) compareFATs(from, to int64) error {
	if f.boot.otherFAT == 0 || f.compared {
		return nil
	}
	for part := from / pagecache.PageSize; part*pagecache.PageSize < min(to, f.boot.fatSize); part++ {
		k := pagecache.Key{Class: classCompared, A: uint64(part)}
		if _, done := pagecache.Get[bool](f.cache, k); done {
			continue
		}
		if err := f.comparePart(part * pagecache.PageSize); err != nil {
			return err
		}
		f.cache.Put(k, true, 0)
	}
	return nil
}

// comparePart compares a page at offset off. Entry 1 is left out: its high bits are
// flags, which Linux and Windows set in the first copy only.
func (f *FS) comparePart(off int64) error {
	n := min(pagecache.PageSize, f.boot.fatSize-off)
	a, b := make([]byte, n), make([]byte, n)
	if err := f.cache.Read(a, f.boot.fatStart+off); err != nil {
		return err
	}
	if err := f.cache.ReadDirect(b, f.boot.otherFAT+off); err != nil {
		return err
	}
	skip := int64(0)
	if off == 0 {
		skip = min(int64(firstCluster*f.boot.bits/8), n)
	}
	if !bytes.Equal(a[skip:], b[skip:]) {
		f.fatsDiffer.Store(true)
	}
	return nil
}

// openTable reads the flags in entry 1 and, where the FAT is small, compares its copies
// and counts the free clusters.
func (f *FS) openTable() error {
	b := f.boot
	p := make([]byte, firstCluster*b.bits/8)
	if err := f.cache.Read(p, b.fatStart); err != nil {
		return err
	}
	// Clear bits mean: not unmounted, and errors of the disk were met. FAT12 has none.
	switch b.bits {
	case 16:
		f.flags = uint32(binary.LittleEndian.Uint16(p[2:])) << 12
	case 32:
		f.flags = binary.LittleEndian.Uint32(p[4:])
	default:
		f.flags = flagUnmounted | flagNoErrors
	}
	if b.fatSize > compareAtOpen {
		return f.readFreeCount()
	}
	if err := f.compareFATs(0, b.fatSize); err != nil {
		return err
	}
	f.compared = true
	t := f.table(0)
	for c := uint32(firstCluster); b.holds(c); c++ {
		v, err := t.next(c)
		if err != nil {
			return err
		}
		if v == entryFree {
			f.free++
		}
	}
	return nil
}

// readFreeCount takes the number of free clusters from FAT32's FSInfo sector: a hint,
// which is left out when it cannot be right.
func (f *FS) readFreeCount() error {
	if f.boot.infoSector == 0 {
		return nil
	}
	p := make([]byte, bootSize)
	if err := f.cache.Read(p, f.boot.infoSector); err != nil {
		return err
	}
	le := binary.LittleEndian
	free := le.Uint32(p[488:])
	if le.Uint32(p) == 0x41615252 && le.Uint32(p[484:]) == 0x61417272 && free <= f.boot.clusters {
		f.free = uint64(free)
	}
	return nil
}
