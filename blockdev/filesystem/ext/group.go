package ext

import (
	"encoding/binary"

	"github.com/keelblock/keelblock/blockdev/filesystem/lru"
)

// descriptor is the descriptor of a group, verified.
func (f *FS) descriptor(group uint32) ([]byte, error) {
	s := f.super
	perBlock := uint32(s.blockSize / s.descSize)
	block := f.descBlock(group / perBlock)
	key := lru.Key{Class: classGroup, A: block}
	p, ok := lru.Get[[]byte](f.cache, key)
	if !ok {
		if block >= s.blocks {
			return nil, corruptf("group %d: descriptor in block %d of %d", group, block, s.blocks)
		}
		var err error
		if p, err = f.readBlock(block); err != nil {
			return nil, err
		}
		f.cache.Put(key, p, len(p))
	}
	d := p[int64(group%perBlock)*s.descSize:][:s.descSize]
	if !f.descChecksumOK(group, d) {
		return nil, corruptf("group %d: checksum of the descriptor is wrong", group)
	}
	return d, nil
}

// inodeTable is the first block of a group's inode table.
func (f *FS) inodeTable(group uint32) (uint64, error) {
	s := f.super
	d, err := f.descriptor(group)
	if err != nil {
		return 0, err
	}
	table := uint64(binary.LittleEndian.Uint32(d[0x8:]))
	if s.descSize >= 64 {
		table |= uint64(binary.LittleEndian.Uint32(d[0x28:])) << 32
	}
	n := (uint64(s.inodesPerGroup)*uint64(s.inodeSize) + uint64(s.blockSize) - 1) >> s.blockBits
	if !s.validRange(table, n) {
		return 0, corruptf("group %d: inode table in block %d", group, table)
	}
	return table, nil
}

// descBlock is where block i of the group descriptors is (descriptor_loc).
func (f *FS) descBlock(i uint32) uint64 {
	s := f.super
	if !s.has(incompatMetaBG) || i < s.firstMetaBG {
		return uint64(superOffset>>s.blockBits) + uint64(i) + 1
	}
	group := uint64(i) * uint64(s.blockSize/s.descSize)
	block := uint64(s.firstData) + group*uint64(s.blocksPerGroup)
	if s.hasSuper(group) {
		block++
	}
	if s.blockSize == 1024 && i == 0 && s.firstData == 0 {
		block++ // bigalloc with 1 KiB blocks: block 0 stands before the superblock
	}
	return block
}

// hasSuper: the group begins with a copy of the superblock (ext4_bg_has_super).
func (s *superblock) hasSuper(group uint64) bool {
	switch {
	case group == 0:
		return true
	case s.compat&compatSparse2 != 0:
		return group == uint64(s.backupGroups[0]) || group == uint64(s.backupGroups[1])
	case group == 1 || s.roCompat&roCompatSparseSuper == 0:
		return true
	}
	for _, base := range []uint64{3, 5, 7} {
		n := base
		for n < group {
			n *= base
		}
		if n == group {
			return true
		}
	}
	return false
}

// descChecksumOK follows ext4_group_desc_csum.
func (f *FS) descChecksumOK(group uint32, d []byte) bool {
	s := f.super
	const at = 0x1E
	want := binary.LittleEndian.Uint16(d[at:])
	switch {
	case s.metadataCsum():
		crc := crc32cUint32(s.seed, group)
		crc = crc32c(crc, d[:at])
		crc = crc32cZeros(crc, 2)
		crc = crc32c(crc, d[at+2:])
		return uint16(crc) == want
	case s.roCompat&roCompatGDTCsum != 0:
		var g [4]byte
		binary.LittleEndian.PutUint32(g[:], group)
		crc := crc16(^uint16(0), s.uuid[:])
		crc = crc16(crc, g[:])
		crc = crc16(crc, d[:at])
		if s.has(incompat64bit) {
			crc = crc16(crc, d[at+2:])
		}
		return crc == want
	}
	return true
}
