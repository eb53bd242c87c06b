package ext

import (
	"encoding/binary"
	"hash/crc32"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// crc32c is the kernel's crc32c(seed, p): unlike hash/crc32 it inverts neither
// before nor after.
func crc32c(seed uint32, p []byte) uint32 {
	return ^crc32.Update(^seed, castagnoli, p)
}

// crc32cUint32 adds a little-endian number.
func crc32cUint32(seed, v uint32) uint32 {
	var p [4]byte
	binary.LittleEndian.PutUint32(p[:], v)
	return crc32c(seed, p[:])
}

// crc32cZeros adds n zero bytes, n <= 8: a checksum field counts as zeros.
func crc32cZeros(seed uint32, n int) uint32 {
	var p [8]byte
	return crc32c(seed, p[:n])
}

// crc16 is the kernel's crc16 (polynomial 0x8005, reflected), which uninit_bg uses.
func crc16(crc uint16, p []byte) uint16 {
	for _, b := range p {
		crc ^= uint16(b)
		for range 8 {
			if crc&1 != 0 {
				crc = crc>>1 ^ 0xA001
			} else {
				crc >>= 1
			}
		}
	}
	return crc
}
