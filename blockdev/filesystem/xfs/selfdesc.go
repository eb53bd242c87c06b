package xfs

import "encoding/binary"

// header says where a kind of metadata block of version 5 keeps what describes it.
type header struct {
	size                    int
	crc, blkno, uuid, owner int
}

// The headers, fs/xfs/libxfs/xfs_da_format.h and xfs_btree.h.
var (
	headerData   = header{64, 4, 8, 24, 40}   // struct xfs_dir3_data_hdr
	headerDA     = header{64, 12, 16, 32, 48} // struct xfs_da3_blkinfo and counts
	headerBtree  = header{72, 64, 24, 40, 56} // struct xfs_btree_block, long form
	headerRemote = header{56, 12, 40, 16, 32} // struct xfs_dsymlink_hdr, xfs_attr3_rmt_hdr
)

// verify checks the checksum and the self-description of a block of version 5 that
// stands at block at of the volume and belongs to inode owner. What the log put
// there has no checksum of its own: that of its log record was right.
func (f *FS) verify(p []byte, h header, at, owner uint64, believed bool) error {
	be := binary.BigEndian
	switch {
	case len(p) < h.size:
		return corruptf("block of %d bytes", len(p))
	case !believed && !crcOK(p, h.crc):
		return corruptf("checksum is wrong")
	case be.Uint64(p[h.blkno:]) != at<<(f.super.blockBits-9):
		return corruptf("block says that it is sector %d, not %d", be.Uint64(p[h.blkno:]), at<<(f.super.blockBits-9))
	case [16]byte(p[h.uuid:h.uuid+16]) != f.super.metaUUID:
		return corruptf("block belongs to another file system")
	case be.Uint64(p[h.owner:]) != owner:
		return corruptf("block belongs to inode %d, not %d", be.Uint64(p[h.owner:]), owner)
	}
	return nil
}
