package pack

import (
	"encoding/binary"
	"hash/crc32"
)

// FixRecordCRC makes a changed record header verify again.
func FixRecordCRC(h []byte) {
	binary.LittleEndian.PutUint32(h[188:], crc32.Checksum(h[:188], castagnoli))
}
