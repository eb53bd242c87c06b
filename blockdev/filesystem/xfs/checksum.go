package xfs

import (
	"encoding/binary"
	"hash/crc32"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// crcOK: the little-endian CRC32c at p[at:] is that of p, the field itself taken as
// zeros (xfs_verify_cksum). Everything else on the disk is big-endian.
func crcOK(p []byte, at int) bool {
	return binary.LittleEndian.Uint32(p[at:]) == crcOf(p, at)
}

func crcOf(p []byte, at int) uint32 {
	var zero [4]byte
	crc := crc32.Update(0, castagnoli, p[:at])
	crc = crc32.Update(crc, castagnoli, zero[:])
	return crc32.Update(crc, castagnoli, p[at+4:])
}
