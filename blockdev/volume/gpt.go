package volume

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"strings"
	"unicode/utf16"
)

// UEFI specification 2.10, section 5.3: GUID Partition Table.
const (
	gptSignature     = "EFI PART"
	gptHeaderMinSize = 92
	gptEntryMinSize  = 128
	gptEntryMaxSize  = 4096
	gptNameUnits     = 36
)

// gpt is a header whose checksum, and that of its entries, is right.
type gpt struct {
	sector      int64 // bytes per logical block
	lba         uint64
	alternate   uint64
	firstUsable uint64
	lastUsable  uint64
	diskGUID    [16]byte
	entrySize   int
	entries     []byte
}

// findGPT reads the primary GPT, and the backup where the primary is damaged. It
// looks for sectors of 512 and of 4096 bytes. announced: the MBR has type 0xEE.
// Without that, a backup alone is believed only when the start of the disk was
// wiped, as otherwise it may be the rest of a former use of the disk.
func (d *disk) findGPT(announced bool) (*gpt, bool, error) {
	for _, sector := range []int64{512, 4096} {
		primary, why, err := d.readGPT(1, sector)
		if err != nil {
			return nil, false, err
		}
		last := uint64(d.size/sector) - 1
		if primary != nil {
			return primary, true, d.checkBackup(primary, last)
		}
		if !announced {
			wiped, err := d.startIsBlank()
			if err != nil {
				return nil, false, err
			}
			if !wiped {
				continue
			}
		}
		backup, _, err := d.readGPT(last, sector)
		if err != nil {
			return nil, false, err
		}
		if backup != nil {
			d.warn("the primary GPT is damaged (%s); the backup at the end of the disk is used", why)
			return backup, true, nil
		}
	}
	return nil, false, nil
}

// checkBackup warns when the backup of a good primary is missing or differs.
func (d *disk) checkBackup(primary *gpt, last uint64) error {
	backup, why, err := d.readGPT(primary.alternate, primary.sector)
	if err != nil {
		return err
	}
	switch {
	case backup == nil:
		d.warn("the backup GPT is damaged (%s); the primary is used", why)
	case !bytes.Equal(backup.entries, primary.entries) || backup.diskGUID != primary.diskGUID:
		d.warn("the backup GPT differs from the primary, which is used")
	case primary.alternate != last:
		d.warn("the backup GPT is not at the end of the disk: the disk was resized")
	}
	return nil
}

// readGPT reads the table whose header is in logical block lba. A table that is not
// right is (nil, why, nil); an error is one of reading.
func (d *disk) readGPT(lba uint64, sector int64) (*gpt, string, error) {
	sectors := uint64(d.size / sector)
	if lba == 0 || lba >= sectors {
		return nil, "header outside the disk", nil
	}
	h, err := d.read(int64(lba)*sector, sector)
	if err != nil {
		return nil, "", fmt.Errorf("read GPT header: %w", err)
	}
	if string(h[:8]) != gptSignature {
		return nil, "no signature", nil
	}
	le := binary.LittleEndian
	size := int64(le.Uint32(h[12:]))
	if size < gptHeaderMinSize || size > sector {
		return nil, "header size is wrong", nil
	}
	sum := le.Uint32(h[16:])
	le.PutUint32(h[16:], 0)
	if crc32.ChecksumIEEE(h[:size]) != sum {
		return nil, "header checksum is wrong", nil
	}
	if rev := le.Uint32(h[8:]); rev>>16 != 1 {
		return nil, fmt.Sprintf("revision %#x is not known", rev), nil
	}
	t := &gpt{
		sector:      sector,
		lba:         le.Uint64(h[24:]),
		alternate:   le.Uint64(h[32:]),
		firstUsable: le.Uint64(h[40:]),
		lastUsable:  le.Uint64(h[48:]),
	}
	copy(t.diskGUID[:], h[56:72])
	entriesLBA := le.Uint64(h[72:])
	count, entrySize := uint64(le.Uint32(h[80:])), uint64(le.Uint32(h[84:]))
	switch {
	case t.lba != lba:
		return nil, "header is a copy of another block", nil
	case t.firstUsable > t.lastUsable || t.lastUsable >= sectors:
		return nil, "usable range is outside the disk", nil
	case entrySize < gptEntryMinSize || entrySize > gptEntryMaxSize || entrySize%8 != 0:
		return nil, "entry size is wrong", nil
	case count*entrySize > maxTableBytes:
		return nil, "table is too large", nil
	case entriesLBA < 2 || entriesLBA >= sectors:
		return nil, "entries are outside the disk", nil
	}
	t.entrySize = int(entrySize)
	t.entries, err = d.read(int64(entriesLBA)*sector, int64(count*entrySize))
	if err == errOutside {
		return nil, "entries are outside the disk", nil
	}
	if err != nil {
		return nil, "", fmt.Errorf("read GPT entries: %w", err)
	}
	if crc32.ChecksumIEEE(t.entries) != le.Uint32(h[88:]) {
		return nil, "checksum of the entries is wrong", nil
	}
	return t, "", nil
}

func (t *gpt) volumes(d *disk) []Volume {
	le := binary.LittleEndian
	var out []Volume
	for i := 0; (i+1)*t.entrySize <= len(t.entries); i++ {
		e := t.entries[i*t.entrySize:]
		typeGUID := [16]byte(e[:16])
		if typeGUID == [16]byte{} {
			continue
		}
		first, last := le.Uint64(e[32:]), le.Uint64(e[40:])
		v := Volume{Number: i + 1, Scheme: SchemeGPT, Name: gptName(e[56:]), TypeGUID: guidString(typeGUID),
			UUID: strings.ToLower(guidString([16]byte(e[16:32])))}
		if last < first || first < t.firstUsable || last > t.lastUsable {
			d.warn("partition %d is left out: blocks %d to %d are outside the usable range", v.Number, first, last)
			continue
		}
		out = d.add(out, v, first, last-first+1, t.sector)
	}
	return out
}

// gptName decodes UTF-16LE up to the first NUL; a lone surrogate becomes U+FFFD.
func gptName(p []byte) string {
	var units []uint16
	for i := range gptNameUnits {
		u := binary.LittleEndian.Uint16(p[2*i:])
		if u == 0 {
			break
		}
		units = append(units, u)
	}
	return string(utf16.Decode(units))
}

// guidString prints a GUID as the UEFI specification does (appendix A): the first
// three fields are little endian.
func guidString(g [16]byte) string {
	le := binary.LittleEndian
	return fmt.Sprintf("%08X-%04X-%04X-%X-%X", le.Uint32(g[0:]), le.Uint16(g[4:]), le.Uint16(g[6:]), g[8:10], g[10:16])
}

// startIsBlank: the first 68 KiB, where every file system we know has something,
// are zero.
func (d *disk) startIsBlank() (bool, error) {
	p, err := d.read(0, min(d.size, 68<<10))
	if err != nil {
		return false, fmt.Errorf("read start of disk: %w", err)
	}
	return len(bytes.TrimLeft(p, "\x00")) == 0, nil
}
