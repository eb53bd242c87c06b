package btrfs

import (
	"encoding/binary"
	"fmt"
	"sort"
)

// Bits of a chunk's type (BTRFS_BLOCK_GROUP_*).
const (
	groupRAID0   = 1 << 3
	groupRAID1   = 1 << 4
	groupDup     = 1 << 5
	groupRAID10  = 1 << 6
	groupRAID5   = 1 << 7
	groupRAID6   = 1 << 8
	groupRAID1C3 = 1 << 9
	groupRAID1C4 = 1 << 10

	groupKinds    = 1<<0 | 1<<1 | 1<<2 // data, system, metadata
	groupProfiles = groupRAID0 | groupRAID1 | groupDup | groupRAID10 | groupRAID5 | groupRAID6 | groupRAID1C3 | groupRAID1C4
)

var profileNames = map[uint64]string{
	0: "single", groupRAID0: "RAID0", groupRAID1: "RAID1", groupDup: "DUP", groupRAID10: "RAID10",
	groupRAID5: "RAID5", groupRAID6: "RAID6", groupRAID1C3: "RAID1C3", groupRAID1C4: "RAID1C4",
}

const (
	chunkItemSize = 48 // without stripes
	stripeSize    = 32
	// maxChunks bounds how many are kept: 512 Ki of 1 GiB are 512 TiB.
	maxChunks = 1 << 19
)

// chunk is a range of logical addresses and where its copies lie on this device.
type chunk struct {
	logical, length uint64
	copies          []int64 // offsets on the volume
	// missing tells why there is no copy here.
	missing string
}

// parseChunk reads struct btrfs_chunk at the front of p and gives its size.
func (f *FS) parseChunk(logical uint64, p []byte) (chunk, int, error) {
	le := binary.LittleEndian
	c := chunk{logical: logical}
	if len(p) < chunkItemSize+stripeSize {
		return c, 0, corruptf("chunk at %d: item of %d bytes", logical, len(p))
	}
	c.length = le.Uint64(p)
	kind, stripes := le.Uint64(p[24:]), int(le.Uint16(p[44:]))
	size := chunkItemSize + stripes*stripeSize
	if stripes == 0 || size > len(p) {
		return c, 0, corruptf("chunk at %d: %d stripes in %d bytes", logical, stripes, len(p))
	}
	if c.length == 0 || c.length > 1<<62 || logical > 1<<63-1 || logical%uint64(f.super.sectorSize) != 0 {
		return c, 0, corruptf("chunk at %d has %d bytes", logical, c.length)
	}
	profile := kind & groupProfiles
	name, known := profileNames[profile]
	switch {
	case kind&^uint64(groupKinds|groupProfiles) != 0 || !known:
		c.missing = fmt.Sprintf("block group of type %#x", kind)
		return c, size, nil
	case profile&(groupRAID5|groupRAID6) != 0:
		c.missing = name
		return c, size, nil
	case profile&(groupRAID0|groupRAID10) != 0 && stripes > 1:
		c.missing = fmt.Sprintf("%s over %d devices, of which this is one", name, stripes)
		return c, size, nil
	case profile == 0 && stripes > 1:
		return c, 0, corruptf("chunk at %d: %d stripes of a single copy", logical, stripes)
	}
	for i := range stripes {
		s := p[chunkItemSize+i*stripeSize:]
		if le.Uint64(s) != f.super.deviceID || [16]byte(s[16:]) != f.super.deviceUUID {
			continue
		}
		at := le.Uint64(s[8:])
		if at > f.super.deviceBytes || c.length > f.super.deviceBytes-at {
			return c, 0, corruptf("chunk at %d lies at %d of a device of %d bytes", logical, at, f.super.deviceBytes)
		}
		c.copies = append(c.copies, int64(at))
	}
	if c.copies == nil {
		c.missing = fmt.Sprintf("%s on another device of %d", name, f.super.devices)
	}
	return c, size, nil
}

// systemChunks reads the array of chunks in the superblock, which hold the chunk tree.
func (f *FS) systemChunks() error {
	for p := f.super.sysChunks; len(p) > 0; {
		if len(p) < keySize {
			return corruptf("array of system chunks is cut short")
		}
		k := parseKey(p)
		if k.kind != typeChunk {
			return corruptf("array of system chunks has an item of type %d", k.kind)
		}
		c, n, err := f.parseChunk(k.offset, p[keySize:])
		if err != nil {
			return err
		}
		f.chunks = append(f.chunks, c)
		p = p[keySize+n:]
	}
	return f.sortChunks()
}

// readChunks reads the chunk tree, which knows the system chunks, too.
func (f *FS) readChunks() error {
	t := &tree{id: treeChunk, root: f.super.chunkRoot}
	var all []chunk
	err := f.scan(t, key{objectFirstChunk, typeChunk, 0}, func(it item) (bool, error) {
		if it.key.object != objectFirstChunk || it.key.kind != typeChunk {
			return false, nil
		}
		c, n, err := f.parseChunk(it.key.offset, it.data)
		if err == nil && n != len(it.data) {
			err = corruptf("chunk at %d: item of %d bytes instead of %d", it.key.offset, len(it.data), n)
		}
		if err == nil && len(all) == maxChunks {
			err = unsupportedf("over %d chunks", maxChunks)
		}
		all = append(all, c)
		return err == nil, err
	})
	if err != nil {
		return fmt.Errorf("chunk tree: %w", err)
	}
	f.chunks = all
	return f.sortChunks()
}

func (f *FS) sortChunks() error {
	sort.Slice(f.chunks, func(i, j int) bool { return f.chunks[i].logical < f.chunks[j].logical })
	for i := 1; i < len(f.chunks); i++ {
		if before := f.chunks[i-1]; before.logical+before.length > f.chunks[i].logical {
			return corruptf("chunks at %d and %d overlap", before.logical, f.chunks[i].logical)
		}
	}
	return nil
}

// locate gives the places of the copies of n bytes from a logical address on, which
// lie in one chunk.
func (f *FS) locate(logical, n uint64) ([]int64, error) {
	i := sort.Search(len(f.chunks), func(i int) bool { return f.chunks[i].logical > logical }) - 1
	if i < 0 {
		return nil, corruptf("no chunk holds address %d", logical)
	}
	c := &f.chunks[i]
	within := logical - c.logical
	if within >= c.length || n > c.length-within {
		return nil, corruptf("no chunk holds the %d bytes at address %d", n, logical)
	}
	if c.missing != "" {
		return nil, unsupportedf("address %d is in %s", logical, c.missing)
	}
	places := make([]int64, len(c.copies))
	for i, at := range c.copies {
		places[i] = at + int64(within)
	}
	return places, nil
}
