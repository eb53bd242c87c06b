package xfs

import "encoding/binary"

// maxGroupsCounted bounds how many allocation groups are read for the counts that
// statfs(2) shows.
const maxGroupsCounted = 1 << 10

// countFree takes the counts of blocks and inodes from the headers of the allocation
// groups. Those in the superblock are brought up to date by an unmount only
// (xfs_initialize_perag_data). Where a header is damaged they stay as they are:
// nothing that is read depends on them.
func (f *FS) countFree() {
	s := f.super
	if s.agCount > maxGroupsCounted {
		return
	}
	be := binary.BigEndian
	var free, inodes, inodesFree uint64
	for ag := range uint64(s.agCount) {
		p := make([]byte, 2*s.sectorSize)
		off := int64(ag*uint64(s.agBlocks)<<s.blockBits) + int64(s.sectorSize)
		if f.readFull(p, off) != nil {
			return
		}
		agf, agi := p[:s.sectorSize], p[s.sectorSize:]
		if string(agf[:4]) != "XAGF" || string(agi[:4]) != "XAGI" {
			return
		}
		free += uint64(be.Uint32(agf[52:])) + uint64(be.Uint32(agf[48:])) + uint64(be.Uint32(agf[60:]))
		inodes += uint64(be.Uint32(agi[16:]))
		inodesFree += uint64(be.Uint32(agi[28:]))
	}
	s.blocksFree, s.inodes, s.inodesFree = free, inodes, inodesFree
}
