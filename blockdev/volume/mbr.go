package volume

import (
	"encoding/binary"
	"fmt"
)

const (
	sectorSize     = 512
	mbrSignature   = 0xAA55 // at byte 510
	mbrTableOffset = 446
	mbrEntrySize   = 16
	mbrDiskID      = 440 // the disk signature

	typeEmpty      = 0x00
	typeProtective = 0xEE
	// maxLogical bounds the chain of extended boot records.
	maxLogical = MaxPartitions
)

// mbrEntry is one of the four entries of a boot record.
type mbrEntry struct {
	status       byte
	code         byte
	first, count uint32 // sectors of 512 bytes
}

func (e mbrEntry) used() bool { return e.code != typeEmpty && e.count != 0 }

// extended: CHS, LBA and Linux's type of an extended partition.
func (e mbrEntry) extended() bool { return e.code == 0x05 || e.code == 0x0F || e.code == 0x85 }

type mbr struct {
	entries [4]mbrEntry
	diskID  uint32
}

// partUUID names a partition as the kernel does (block/partitions/msdos.c).
func (m mbr) partUUID(number int) string {
	if m.diskID == 0 {
		return ""
	}
	return fmt.Sprintf("%08x-%02x", m.diskID, number)
}

// parseMBR reads a master boot record. ok is false for what is not one: the boot
// sectors of FAT, exFAT and NTFS bear the same signature, but hold code where the
// table would be. The rule is the kernel's (block/partitions/msdos.c) made
// narrower: every status byte is 0x00 or 0x80, no used entry begins at sector 0, and
// at least one begins inside the disk.
func parseMBR(sector []byte, size int64) (m mbr, ok bool) {
	if binary.LittleEndian.Uint16(sector[510:]) != mbrSignature {
		return m, false
	}
	m = mbr{parseEntries(sector), binary.LittleEndian.Uint32(sector[mbrDiskID:])}
	used := false
	for _, e := range m.entries {
		if e.status != 0 && e.status != 0x80 {
			return m, false
		}
		if !e.used() {
			continue
		}
		if e.first == 0 {
			return m, false
		}
		if int64(e.first)*sectorSize < size {
			used = true
		}
	}
	return m, used
}

func parseEntries(sector []byte) (m [4]mbrEntry) {
	for i := range m {
		p := sector[mbrTableOffset+i*mbrEntrySize:]
		m[i] = mbrEntry{
			status: p[0],
			code:   p[4],
			first:  binary.LittleEndian.Uint32(p[8:]),
			count:  binary.LittleEndian.Uint32(p[12:]),
		}
	}
	return m
}

// protective: one of the entries announces a GPT.
func (m mbr) protective() bool {
	for _, e := range m.entries {
		if e.code == typeProtective {
			return true
		}
	}
	return false
}

// onlyProtective: nothing but the announcement is in the table.
func (m mbr) onlyProtective() bool {
	for _, e := range m.entries {
		if e.used() && e.code != typeProtective {
			return false
		}
	}
	return true
}

func (d *disk) listMBR(m mbr) ([]Volume, error) {
	var out []Volume
	for i, e := range m.entries {
		if e.used() && !e.extended() && e.code != typeProtective {
			v := Volume{Number: i + 1, Scheme: SchemeMBR, TypeCode: e.code, UUID: m.partUUID(i + 1)}
			out = d.add(out, v, uint64(e.first), uint64(e.count), sectorSize)
		}
	}
	number := 5
	for i, e := range m.entries {
		if !e.used() || !e.extended() {
			continue
		}
		logical, err := d.listLogical(i+1, e, number)
		if err != nil {
			return nil, err
		}
		for _, v := range logical {
			v.UUID = m.partUUID(v.Number)
			if len(out) >= MaxPartitions {
				d.warn("partition %d is left out: more than %d partitions", v.Number, MaxPartitions)
				break
			}
			out = append(out, v)
			number = v.Number + 1
		}
	}
	return out, nil
}

// listLogical follows the chain of extended boot records of the extended partition
// ext. Each record describes one logical partition, relative to itself, and the
// next record, relative to the extended partition. A chain that comes back to a
// record, leaves the extended partition or has no signature ends there, with a
// warning: what was read before is good, nothing behind is believed.
func (d *disk) listLogical(extNumber int, ext mbrEntry, number int) ([]Volume, error) {
	start, count := uint64(ext.first), uint64(ext.count)
	seen := make(map[uint64]bool)
	var out []Volume
	for at := start; ; {
		switch {
		case seen[at]:
			d.warn("the chain of logical partitions in partition %d is cyclic at sector %d; it ends there", extNumber, at)
			return out, nil
		case len(seen) >= maxLogical:
			d.warn("partition %d has more than %d logical partitions; the rest is left out", extNumber, maxLogical)
			return out, nil
		}
		seen[at] = true
		sector, err := d.read(int64(at)*sectorSize, sectorSize)
		if err == errOutside {
			d.warn("the chain of logical partitions in partition %d leaves the disk at sector %d", extNumber, at)
			return out, nil
		}
		if err != nil {
			return nil, fmt.Errorf("read extended boot record at sector %d: %w", at, err)
		}
		if binary.LittleEndian.Uint16(sector[510:]) != mbrSignature {
			d.warn("the chain of logical partitions in partition %d has no signature at sector %d", extNumber, at)
			return out, nil
		}
		next, hasNext := uint64(0), false
		for _, e := range parseEntries(sector) {
			if !e.used() {
				continue
			}
			if e.extended() {
				if !hasNext {
					next, hasNext = uint64(e.first), true
				}
				continue
			}
			first := at + uint64(e.first)
			if first < start || first-start >= count || uint64(e.count) > count-(first-start) {
				d.warn("logical partition %d is left out: it is not inside partition %d", number, extNumber)
			} else {
				v := Volume{Number: number, Scheme: SchemeMBR, TypeCode: e.code}
				out = d.add(out, v, first, uint64(e.count), sectorSize)
			}
			number++
		}
		if !hasNext {
			return out, nil
		}
		if next >= count {
			d.warn("the chain of logical partitions leaves partition %d", extNumber)
			return out, nil
		}
		at = start + next
	}
}
