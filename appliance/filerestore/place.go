package filerestore

import "github.com/keelblock/keelblock/blockdev"

// Place is the disk's name and the range of it that the volume is. It is only for a volume
// that is one range of one disk, byte for byte: whoever compares points takes blocks that
// did not change there for contents that did not. Volumes that span disks or are encrypted
// have no place.
func (v *vol) Place() (disk string, at blockdev.Extent, ok bool) {
	n := v.node
	if n.Disk < 0 || len(n.Layers) > 0 || n.Member != "" || n.Err != nil {
		return "", blockdev.Extent{}, false
	}
	return v.point.point.Disks[n.Disk].Name, blockdev.Extent{Offset: n.Volume.Offset, Length: n.Volume.Size}, true
}

// Place is the disk's name and the range of it that the raw image is.
func (i diskImage) Place() (disk string, at blockdev.Extent, ok bool) {
	return i.disk.key.name, blockdev.Extent{Offset: i.offset, Length: i.size}, true
}
