package fat

import (
	"bytes"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/keelblock/keelblock/blockdev/filesystem/wtf8"
)

const (
	// unitsPerSlot is how much of a long name an entry has.
	unitsPerSlot = 13
	maxSlots     = 20
	// maxNameLen is that of 255 units of UTF-16 as bytes.
	maxNameLen = 255 * 3
)

// Attributes of an entry.
const (
	attrReadOnly  = 0x01
	attrVolume    = 0x08
	attrDirectory = 0x10
	attrLongName  = 0x0F
)

// Flags of Windows NT in byte 12: a part of the 8.3 name is lower-case.
const (
	lowerBase      = 0x08
	lowerExtension = 0x10
)

// cp437 are the characters 0x80 to 0xFF of code page 437.
var cp437 = []rune("ÇüéâäàåçêëèïîìÄÅÉæÆôöòûùÿÖÜ¢£¥₧ƒáíóúñÑªº¿⌐¬½¼¡«»░▒▓│┤╡╢╖╕╣║╗╝╜╛┐└┴┬├─┼╞╟╚╔╩╦╠═╬╧" +
	"╨╤╥╙╘╒╓╫╪┘┌█▄▌▐▀αßΓπΣσµτΦΘΩδ∞φε∩≡±≥≤⌠⌡÷≈°∙·√ⁿ²■\u00a0")

// lower437 are their lower-case forms, where code page 437 has them.
var lower437 = lowerTable()

func lowerTable() []rune {
	out := make([]rune, len(cp437))
	for i, r := range cp437 {
		out[i] = r
		if l := unicode.ToLower(r); strings.ContainsRune(string(cp437), l) {
			out[i] = l
		}
	}
	return out
}

// appendPart appends a part of an 8.3 name without the spaces at its end. A zero byte
// ends it, as for the kernel (fat_parse_short).
func appendPart(dst, part []byte, lower bool) []byte {
	if i := bytes.IndexByte(part, 0); i >= 0 {
		part = part[:i]
	}
	for _, c := range bytes.TrimRight(part, " ") {
		switch {
		case c >= 0x80 && lower:
			dst = utf8.AppendRune(dst, lower437[c-0x80])
		case c >= 0x80:
			dst = utf8.AppendRune(dst, cp437[c-0x80])
		case lower && c >= 'A' && c <= 'Z':
			dst = append(dst, c+'a'-'A')
		default:
			dst = append(dst, c)
		}
	}
	return dst
}

// shortName is the 8.3 name of an entry.
func shortName(entry []byte) []byte {
	var base [8]byte
	copy(base[:], entry)
	if base[0] == 0x05 { // stands for E5, which marks a deleted entry
		base[0] = 0xE5
	}
	flags := entry[12]
	name := appendPart(make([]byte, 0, 12), base[:], flags&lowerBase != 0)
	dot := len(name)
	name = appendPart(append(name, '.'), entry[8:11], flags&lowerExtension != 0)
	if len(name) == dot+1 {
		name = name[:dot]
	}
	return name
}

// shortChecksum is that of the 8.3 name, which every part of the long name repeats.
func shortChecksum(entry []byte) (sum byte) {
	for _, c := range entry[:11] {
		sum = sum>>1 | sum<<7
		sum += c
	}
	return sum
}

// longName collects the parts of a long name: they stand before the entry, the last
// part first.
type longName struct {
	units    [maxSlots * unitsPerSlot]uint16
	slots    int // of the name; 0: none is under way
	left     int // parts still to come
	checksum byte
}

// add takes an entry with attrLongName.
func (l *longName) add(entry []byte) {
	const last = 0x40
	number := int(entry[0] &^ last)
	switch {
	case entry[0]&last != 0 && number >= 1 && number <= maxSlots:
		l.slots, l.checksum = number, entry[13]
	case entry[0]&last != 0 || l.slots == 0 || number != l.left || number == 0 || entry[13] != l.checksum:
		l.slots = 0
		return
	}
	l.left = number - 1
	part := l.units[l.left*unitsPerSlot:][:0]
	part = append(part, wtf8.Units(entry[1:11])...)
	part = append(part, wtf8.Units(entry[14:26])...)
	_ = append(part, wtf8.Units(entry[28:32])...) // it lies in l.units
}

// take returns the name for the entry that follows it, nil when there is none that
// belongs to it, and begins anew.
func (l *longName) take(entry []byte) []byte {
	slots := l.slots
	l.slots = 0
	if slots == 0 || l.left != 0 || l.checksum != shortChecksum(entry) {
		return nil
	}
	units := l.units[:slots*unitsPerSlot]
	for i, u := range units {
		if u == 0 {
			units = units[:i]
			break
		}
	}
	if len(units) > 255 {
		return nil
	}
	name := wtf8.Append(nil, units)
	if !validName(name) {
		return nil
	}
	return name
}

// validName: a name that no caller who joins names can be led astray by.
func validName(name []byte) bool {
	return len(name) > 0 && bytes.IndexByte(name, '/') < 0 && string(name) != "." && string(name) != ".."
}
