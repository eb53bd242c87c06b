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

var crc32beTable = func() (t [256]uint32) {
	for i := range t {
		crc := uint32(i) << 24
		for range 8 {
			if crc>>31 != 0 {
				crc = crc<<1 ^ 0x04C11DB7
			} else {
				crc <<= 1
			}
		}
		t[i] = crc
	}
	return t
}()

// crc32be is the kernel's crc32_be, which the oldest checksum of journals uses.
func crc32be(crc uint32, p []byte) uint32 {
	for _, b := range p {
		crc = crc<<8 ^ crc32beTable[byte(crc>>24)^b]
	}
	return crc
}
