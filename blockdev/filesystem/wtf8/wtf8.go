// Package wtf8 writes names of UTF-16, as FAT, exFAT and NTFS have them, as bytes, and
// loses nothing: no two names become the same bytes.
//
// What is well-formed becomes UTF-8, as Linux shows it. A surrogate without its
// partner, which Windows allows in names, becomes the three bytes that UTF-8 would
// have for its number (ED A0 80 .. ED BF BF): this is WTF-8. The kernel's vfat and
// exfat leave such units out or show "?", by which two names may become one.
package wtf8

import (
	"encoding/binary"
	"unicode/utf16"
	"unicode/utf8"
)

const (
	surrogateFirst = 0xD800
	lowFirst       = 0xDC00
	surrogateLast  = 0xDFFF
)

// Append appends the name of units to dst.
func Append(dst []byte, units []uint16) []byte {
	for i := 0; i < len(units); i++ {
		u := units[i]
		switch {
		case u < surrogateFirst || u > surrogateLast:
			dst = utf8.AppendRune(dst, rune(u))
		case u < lowFirst && i+1 < len(units) && units[i+1] >= lowFirst && units[i+1] <= surrogateLast:
			dst = utf8.AppendRune(dst, utf16.DecodeRune(rune(u), rune(units[i+1])))
			i++
		default:
			dst = append(dst, 0xE0|byte(u>>12), 0x80|byte(u>>6)&0xBF, 0x80|byte(u)&0xBF)
		}
	}
	return dst
}

// Units are the 16-bit units of p, little endian; an odd byte at the end is left out.
func Units(p []byte) []uint16 {
	units := make([]uint16, len(p)/2)
	for i := range units {
		units[i] = binary.LittleEndian.Uint16(p[2*i:])
	}
	return units
}
