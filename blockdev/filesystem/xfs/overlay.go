package xfs

import (
	"cmp"
	"slices"
)

// sectorSize is the unit of the log and of the overlay: XFS's basic block.
const sectorSize = 512

// overlay is what log recovery would write, by sector of the volume. It is changed
// only while the log is read; then any number of goroutines may look.
//
// A nil overlay is empty.
type overlay struct {
	index   map[int64]int32 // sector to its place in slabs
	slabs   [][]byte
	count   int
	limit   int // of bytes
	sectors []int64
}

const (
	slabSectors = 2048
	// overlayCost is about what a sector costs in memory.
	overlayCost = sectorSize + 32
)

func newOverlay(limit int) *overlay {
	return &overlay{index: make(map[int64]int32), limit: limit}
}

// at is the content of a sector, or nil.
func (o *overlay) at(sector int64) []byte {
	if o == nil {
		return nil
	}
	i, ok := o.index[sector]
	if !ok {
		return nil
	}
	return o.slabs[i/slabSectors][int(i%slabSectors)*sectorSize:][:sectorSize]
}

// add makes a place for a sector that has none, or returns nil when there is no
// more room.
func (o *overlay) add(sector int64) []byte {
	if o.count*overlayCost >= o.limit {
		return nil
	}
	if o.count%slabSectors == 0 {
		o.slabs = append(o.slabs, make([]byte, slabSectors*sectorSize))
	}
	o.index[sector] = int32(o.count)
	o.count++
	return o.at(sector)
}

// close ends the changes.
func (o *overlay) close() {
	o.sectors = make([]int64, 0, len(o.index))
	for s := range o.index {
		o.sectors = append(o.sectors, s)
	}
	slices.SortFunc(o.sectors, cmp.Compare)
}

// patch puts what the overlay has over p, which was read from off.
func (o *overlay) patch(p []byte, off int64) {
	if o == nil || o.count == 0 || len(p) == 0 {
		return
	}
	end := off + int64(len(p))
	i, _ := slices.BinarySearch(o.sectors, off/sectorSize)
	for ; i < len(o.sectors) && o.sectors[i]*sectorSize < end; i++ {
		at, content := o.sectors[i]*sectorSize, o.at(o.sectors[i])
		if at < off {
			content, at = content[off-at:], off
		}
		copy(p[at-off:], content)
	}
}

// covers: a sector of the range is in the overlay.
func (o *overlay) covers(off, length int64) bool {
	if o == nil || o.count == 0 {
		return false
	}
	i, _ := slices.BinarySearch(o.sectors, off/sectorSize)
	return i < len(o.sectors) && o.sectors[i]*sectorSize < off+length
}
