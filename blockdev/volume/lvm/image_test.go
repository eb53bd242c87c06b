package lvm_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"strings"
)

const (
	sector      = 512
	areaOffset  = 4096
	areaBytes   = 8192
	extentBytes = 4096
	peStart     = 16384
)

// checksum is LVM's, written another way than in the package.
func checksum(p []byte) uint32 {
	sum := uint32(0xf597a6cf)
	for _, b := range p {
		sum = crc32.IEEETable[byte(sum)^b] ^ sum>>8
	}
	return sum
}

// pvUUID is a UUID of 32 characters.
func pvUUID(n int) string { return fmt.Sprintf("pv%030d", n) }

func dashed(u string) string {
	return strings.Join([]string{u[:6], u[6:10], u[10:14], u[14:18], u[18:22], u[22:26], u[26:]}, "-")
}

// newPV makes a physical volume of so many extents, whose text begins at offset at in
// the ring. Each extent is filled by its number and that of the volume.
func newPV(n, extents int, text string, at int) []byte {
	p := make([]byte, peStart+extents*extentBytes)
	for e := range extents {
		fill := p[peStart+e*extentBytes:][:extentBytes]
		for i := range fill {
			fill[i] = byte(n*31 + e*7 + i/sector)
		}
	}
	le := binary.LittleEndian
	label := p[sector : 2*sector]
	copy(label, "LABELONE")
	le.PutUint64(label[8:], 1)
	le.PutUint32(label[20:], 32)
	copy(label[24:], "LVM2 001")
	copy(label[32:], pvUUID(n))
	le.PutUint64(label[64:], uint64(len(p)))
	le.PutUint64(label[72:], peStart)
	le.PutUint64(label[104:], areaOffset)
	le.PutUint64(label[112:], areaBytes)
	h := p[areaOffset:]
	copy(h[4:], " LVM2 x[5A%r0N*>")
	le.PutUint32(h[20:], 1)
	le.PutUint64(h[24:], areaOffset)
	le.PutUint64(h[32:], areaBytes)
	if text != "" {
		text += "\x00"
		le.PutUint64(h[40:], uint64(at))
		le.PutUint64(h[48:], uint64(len(text)))
		le.PutUint32(h[56:], checksum([]byte(text)))
		n := copy(h[at:areaBytes], text)
		copy(h[sector:], text[n:])
	}
	seal(p)
	return p
}

// seal makes the checksums of label and area right.
func seal(p []byte) {
	le := binary.LittleEndian
	le.PutUint32(p[sector+16:], checksum(p[sector+20:2*sector]))
	le.PutUint32(p[areaOffset:], checksum(p[areaOffset+4:areaOffset+sector]))
}

// group writes the text of a volume group.
func group(seqno, pvs, extents int, volumes ...string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "vg {\nid = \"group-id\"\nseqno = %d\nformat = \"lvm2\" # informational\nstatus = [\"RESIZEABLE\", \"READ\"]\nflags = []\nextent_size = %d\nphysical_volumes {\n",
		seqno, extentBytes/sector)
	for i := range pvs {
		fmt.Fprintf(&b, "pv%d {\nid = %q\ndevice = \"/dev/\\\"quoted\\\"%d\"\nstatus = [\"ALLOCATABLE\"]\nflags = []\npe_start = %d\npe_count = %d\n}\n",
			i, dashed(pvUUID(i)), i, peStart/sector, extents)
	}
	fmt.Fprintf(&b, "}\nlogical_volumes {\n%s}\n}\ncontents = \"Text Format Volume Group\"\nversion = 1\ndescription = \"\"\ncreation_time = 1700000000\n", strings.Join(volumes, ""))
	return b.String()
}

// lv writes the text of a visible logical volume.
func lv(name string, segments ...string) string {
	return volumeText(name, `"READ", "VISIBLE"`, segments...)
}

func hidden(name string, segments ...string) string { return volumeText(name, `"READ"`, segments...) }

func volumeText(name, status string, segments ...string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s {\nid = \"lv-%s\"\nstatus = [%s]\nsegment_count = %d\n", name, name, status, len(segments))
	for i, s := range segments {
		fmt.Fprintf(&b, "segment%d {\n%s}\n", i+1, s)
	}
	return b.String() + "}\n"
}

func segment(start, count int, rest string) string {
	return fmt.Sprintf("start_extent = %d\nextent_count = %d\n%s\n", start, count, rest)
}

// extents is what the given extents of physical volumes hold, in pieces of n bytes.
func extents(disks [][]byte, n int, places ...[2]int) []byte {
	var out []byte
	for _, p := range places {
		out = append(out, disks[p[0]][peStart+p[1]*n:][:n]...)
	}
	return out
}

func readers(disks [][]byte) []*bytes.Reader {
	var out []*bytes.Reader
	for _, d := range disks {
		out = append(out, bytes.NewReader(d))
	}
	return out
}
