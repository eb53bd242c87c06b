package btrfs

import (
	"fmt"

	"github.com/keelblock/keelblock/blockdev/filesystem"
)

var _ filesystem.Mapper = (*FS)(nil)

// Map yields where the data of a regular file lies: of what has two copies, the
// first. Extents beyond its end are left out; the last one may reach beyond it.
func (f *FS) Map(ino filesystem.Inode, yield func(filesystem.FileExtent) bool) error {
	in, err := f.regular(ino)
	if err != nil {
		return fmt.Errorf("map: %w", err)
	}
	steps := 0
	err = f.extents(in, 0, func(e *extent) (bool, error) {
		if e.start >= uint64(in.size) {
			return false, nil
		}
		x := filesystem.FileExtent{Offset: int64(e.start), Length: int64(e.length), Place: -1}
		if steps++; steps > maxSteps { // the rest as one
			x.Length = in.size - x.Offset
			yield(x)
			return false, nil
		}
		if !e.data() {
			return true, nil
		}
		if e.kind == extentRegular && e.compression == 0 {
			places, err := f.locate(e.disk+e.within, e.length)
			if err != nil {
				return false, err
			}
			x.Place = places[0]
		}
		return yield(x), nil
	})
	if err != nil {
		return fmt.Errorf("map: %w", err)
	}
	return nil
}
