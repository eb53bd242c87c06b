package btrfs

import (
	"encoding/binary"
	"fmt"
)

const (
	extentInlineAt = 21 // where inline data begins
	extentSize     = 53 // struct btrfs_file_extent_item

	extentInline   = 0
	extentRegular  = 1
	extentPrealloc = 2

	// maxExtentEnd bounds offsets in files.
	maxExtentEnd = 1 << 62
	// maxCompressed is BTRFS_MAX_COMPRESSED and BTRFS_MAX_UNCOMPRESSED: of what is
	// compressed, both lengths.
	maxCompressed = 128 << 10
)

// extent is a range of a file (struct btrfs_file_extent_item).
type extent struct {
	start, length uint64 // in the file
	kind          uint8
	compression   uint8
	ram           uint64 // length of the whole, decompressed
	disk, diskLen uint64 // logical address, 0 for a hole
	within        uint64 // where the range begins in the whole
	inline        []byte // compressed, if so
}

// data: it is not a hole, nor preallocated.
func (e *extent) data() bool {
	return e.kind == extentInline || (e.kind == extentRegular && e.disk != 0)
}

func (e *extent) end() uint64 { return e.start + e.length }

// parseExtent reads the item of the extent at start.
func (f *FS) parseExtent(start uint64, p []byte) (extent, error) {
	le := binary.LittleEndian
	e := extent{start: start}
	if len(p) < extentInlineAt {
		return e, corruptf("extent at %d: item of %d bytes", start, len(p))
	}
	e.ram, e.compression, e.kind = le.Uint64(p[8:]), p[16], p[20]
	if p[17] != 0 || le.Uint16(p[18:]) != 0 {
		return e, unsupportedf("extent at %d: encryption %d, encoding %d", start, p[17], le.Uint16(p[18:]))
	}
	if e.compression > compressionMax {
		return e, unsupportedf("extent at %d: compression %d", start, e.compression)
	}
	sector := uint64(f.super.sectorSize)
	if e.kind == extentInline {
		e.inline = p[extentInlineAt:]
		if e.ram > sector || (e.compression == 0 && e.ram > uint64(len(e.inline))) || start != 0 {
			return e, corruptf("extent at %d: %d bytes in an item of %d", start, e.ram, len(p))
		}
		e.length = sector
		return e, nil
	}
	if len(p) < extentSize || e.kind > extentPrealloc {
		return e, corruptf("extent at %d: item of %d bytes, type %d", start, len(p), e.kind)
	}
	e.disk, e.diskLen = le.Uint64(p[21:]), le.Uint64(p[29:])
	e.within, e.length = le.Uint64(p[37:]), le.Uint64(p[45:])
	whole := e.ram
	if e.compression == 0 {
		whole = e.diskLen
	}
	aligned := (start|e.disk|e.diskLen|e.within|e.length)%sector == 0
	switch {
	case !aligned || e.length == 0 || start > maxExtentEnd || e.length > maxExtentEnd-start:
		return e, corruptf("extent at %d: %d bytes at %d", start, e.length, e.disk)
	case e.disk != 0 && (e.within > whole || e.length > whole-e.within):
		return e, corruptf("extent at %d: %d bytes at %d of %d", start, e.length, e.within, whole)
	case e.compression != 0 && e.disk != 0 && (e.ram > maxCompressed || e.diskLen > maxCompressed):
		return e, corruptf("extent at %d: %d bytes compressed to %d", start, e.ram, e.diskLen)
	}
	return e, nil
}

// extents yields the extents of a file that end behind an offset, ascending.
func (f *FS) extents(in *inode, off uint64, yield func(e *extent) (more bool, err error)) error {
	from := key{in.object, typeExtentData, off}
	it, ok, err := f.floor(&in.v.tree, from)
	if err != nil {
		return fmt.Errorf("inode %d: %w", in.number, err)
	}
	if ok && it.key.object == in.object && it.key.kind == typeExtentData {
		from = it.key
	}
	end := uint64(0)
	err = f.scan(&in.v.tree, from, func(it item) (bool, error) {
		if it.key.object != in.object || it.key.kind != typeExtentData {
			return false, nil
		}
		e, err := f.parseExtent(it.key.offset, it.data)
		if err != nil {
			return false, err
		}
		if e.start < end {
			return false, corruptf("extents overlap at %d", e.start)
		}
		if end = e.end(); end <= off {
			return true, nil
		}
		return yield(&e)
	})
	if err != nil {
		return fmt.Errorf("inode %d: %w", in.number, err)
	}
	return nil
}
