package guestfiles

import (
	"context"
	"errors"
	"slices"
	"sort"

	"github.com/keelblock/keelblock/blockdev"
	"github.com/keelblock/keelblock/blockdev/filesystem"
)

// Changes are the ranges of disks, by name, in which two points differ: ascending and
// apart. Of a disk without an entry nothing is known.
type Changes map[string][]blockdev.Extent

// untouched says that no block of a range of a disk differs.
func (c Changes) untouched(disk string, e blockdev.Extent) bool {
	list, known := c[disk]
	i := sort.Search(len(list), func(i int) bool { return list[i].End() > e.Offset })
	return known && (i == len(list) || list[i].Offset >= e.End())
}

// placed is a volume, or a raw image, that is one range of one disk. What others hold is
// compared by reading it.
type placed interface {
	// Place is the disk's name and the range of it.
	Place() (disk string, at blockdev.Extent, ok bool)
}

func (n *Node) place() (disk string, at blockdev.Extent, ok bool) {
	var p placed
	if n.vol != nil {
		p, ok = n.vol.open.(placed)
	} else {
		p, ok = n.entry.Image.(placed)
	}
	if !ok {
		return "", blockdev.Extent{}, false
	}
	return p.Place()
}

// maxMapped is how many pieces of a file are compared by their places. A file of more is
// read.
const maxMapped = 1 << 16

// piece is a range of a file and where it lies on the disk.
type piece struct {
	blockdev.Extent
	disk int64
}

// pieces lists where the data of a regular file lies, ascending; ok is false when that
// is not known, or not all.
func (n *Node) pieces(ctx context.Context) (list []piece, ok bool, err error) {
	_, at, ok := n.place()
	if !ok {
		return nil, false, nil
	}
	if n.vol == nil {
		return []piece{{blockdev.Extent{Length: at.Length}, at.Offset}}, true, nil
	}
	list, err = inVolume(ctx, n.vol, func(fs filesystem.FS) ([]piece, error) {
		m, ok := fs.(filesystem.Mapper)
		if !ok {
			return nil, filesystem.ErrUnsupported
		}
		var list []piece
		whole := true
		err := m.Map(n.ino, func(e filesystem.FileExtent) bool {
			whole = e.Place >= 0 && len(list) < maxMapped
			list = append(list, piece{blockdev.Extent{Offset: e.Offset, Length: e.Length}, at.Offset + e.Place})
			return whole
		})
		if err == nil && !whole {
			err = filesystem.ErrUnsupported
		}
		return list, err
	})
	if errors.Is(err, filesystem.ErrUnsupported) {
		return nil, false, nil
	}
	return list, err == nil, err
}

// differing are the ranges of a file of size bytes in which two versions of it may
// differ: one lies elsewhere than the other, or its blocks have changed.
func differing(a, b []piece, disk string, changes Changes, size int64) []blockdev.Extent {
	var out []blockdev.Extent
	add := func(e blockdev.Extent) {
		if n := len(out); n > 0 && out[n-1].End() == e.Offset {
			out[n-1].Length += e.Length
			return
		}
		out = append(out, e)
	}
	for at := int64(0); at < size; {
		pa, enda := pieceAt(a, at, size)
		pb, endb := pieceAt(b, at, size)
		end := min(enda, endb)
		e := blockdev.Extent{Offset: at, Length: end - at}
		switch {
		case pa == nil && pb == nil:
		case pa == nil || pb == nil || pa.disk+at-pa.Offset != pb.disk+at-pb.Offset:
			add(e)
		default:
			for _, x := range changes.within(disk, blockdev.Extent{Offset: pa.disk + at - pa.Offset, Length: e.Length}) {
				add(blockdev.Extent{Offset: x.Offset - pa.disk + pa.Offset, Length: x.Length})
			}
		}
		at = end
	}
	return out
}

// within are the changes inside a range of a disk.
func (c Changes) within(disk string, e blockdev.Extent) []blockdev.Extent {
	list := c[disk]
	var out []blockdev.Extent
	for i := sort.Search(len(list), func(i int) bool { return list[i].End() > e.Offset }); i < len(list) && list[i].Offset < e.End(); i++ {
		start, end := max(list[i].Offset, e.Offset), min(list[i].End(), e.End())
		out = append(out, blockdev.Extent{Offset: start, Length: end - start})
	}
	return out
}

// pieceAt is the piece at an offset, or nil for a hole, and where that ends.
func pieceAt(list []piece, off, size int64) (*piece, int64) {
	i, found := slices.BinarySearchFunc(list, off, func(p piece, off int64) int {
		switch {
		case p.End() <= off:
			return -1
		case p.Offset > off:
			return 1
		}
		return 0
	})
	if found {
		return &list[i], min(size, list[i].End())
	}
	if i < len(list) {
		return nil, min(size, list[i].Offset)
	}
	return nil, size
}
