package ext

import (
	"fmt"

	"github.com/keelblock/keelblock/blockdev/filesystem"
)

var _ filesystem.Mapper = (*FS)(nil)

// Map yields where the data of a regular file lies. Blocks beyond its end are left out;
// the last extent may reach beyond it.
func (f *FS) Map(ino filesystem.Inode, yield func(filesystem.FileExtent) bool) error {
	in, err := f.regular(ino)
	if err != nil {
		return fmt.Errorf("map: %w", err)
	}
	if in.has(flagInlineData) {
		yield(filesystem.FileExtent{Length: in.size, Place: -1})
		return nil
	}
	bits := f.super.blockBits
	end := (uint64(in.size) + uint64(f.super.blockSize) - 1) >> bits
	steps := 0
	for b := uint64(0); b < end; {
		r, err := f.mapBlock(in, b)
		if err != nil {
			return fmt.Errorf("map: %w", err)
		}
		e := filesystem.FileExtent{Offset: int64(b << bits), Length: int64(min(r.blocks, end-b) << bits), Place: int64(r.block << bits)}
		if steps++; steps > maxSteps || f.replaced(r.block, r.blocks) {
			e.Place = -1
		}
		if (r.kind == runData || steps > maxSteps) && (!yield(e) || steps > maxSteps) {
			return nil
		}
		b += r.blocks
	}
	return nil
}

// replaced says whether some of n blocks are read from the journal and not from their
// places.
func (f *FS) replaced(first, n uint64) bool {
	o, ok := f.r.(*overlay)
	return ok && o.find(first) != o.find(first+n)
}
