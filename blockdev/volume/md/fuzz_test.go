package md_test

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/keelblock/keelblock/blockdev/volume/md"
)

// version0 makes a member of a RAID1 with superblock 0.90.
func version0(size, number int, events uint32) []byte {
	p := make([]byte, size)
	for i := range p {
		p[i] = byte(i>>9 + number)
	}
	s := p[size&^(64*kib-1)-64*kib:]
	clear(s[:4096])
	for word, v := range map[int]uint32{0: 0xa92b4efc, 2: 90, 5: 77, 7: 1, 8: 64, 9: 2, 10: 2, 11: 3, 13: 1, 33: 1, 39: events,
		128: 0, 128 + 4: 6, 160: 1, 160 + 3: 1, 160 + 4: 6, 992: uint32(number), 992 + 3: uint32(number), 992 + 4: 6} {
		binary.LittleEndian.PutUint32(s[4*word:], v)
	}
	seal0(s)
	return p
}

func seal0(s []byte) {
	binary.LittleEndian.PutUint32(s[4*38:], 0)
	var sum uint64
	for i := 0; i < 4096; i += 4 {
		sum += uint64(binary.LittleEndian.Uint32(s[i:]))
	}
	binary.LittleEndian.PutUint32(s[4*38:], uint32(sum+sum>>32))
}

func TestVersion0(t *testing.T) {
	a := assemble(t, version0(150*kib, 0, 4), version0(150*kib, 1, 5))
	if a.Err != nil || a.Name != "3" || a.Version != "0.90" || a.Size != 64*kib {
		t.Fatalf("%+v", a)
	}
	if got := content(t, a); got[0] != 1 || got[sector] != 2 {
		t.Error("the older member is read")
	}
}

// FuzzMember: whatever superblocks say, an array that can be read lies inside its members.
// The input is which kind of members, and patches: where, how many bytes, the bytes.
func FuzzMember(f *testing.F) {
	for kind := range byte(4) {
		f.Add([]byte{kind})
		f.Add([]byte{kind, 0, 128, 8, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x3f, 0})
		f.Add([]byte{kind, 0, 88, 4, 3, 0, 0, 0})
		f.Add([]byte{kind, 0, 8, 4, 8, 0, 0, 0, 0, 184, 8, 0, 1, 1, 0, 8, 0, 0, 0})
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) == 0 {
			return
		}
		kind := in[0] % 4
		var disks [][]byte
		place := 4096
		for i := range 2 {
			if kind == 3 {
				disks = append(disks, version0(150*kib, i, 4))
				place = 64 * kib
				continue
			}
			m := member{size: 150*kib + i*16*kib, minor: 2, level: int32(kind % 2), chunk: 4 * kib, layout: 2, features: 4096, disks: 2, number: i, events: 1, resync: done, dataOffset: 16 * kib, used: 100 * kib}
			disks = append(disks, m.make())
		}
		s := disks[0][place:]
		for in = in[1:]; len(in) > 3; {
			at := (int(in[0])<<8 + int(in[1])) % 4096
			n := min(int(in[2]), len(in)-3, 4096-at)
			copy(s[at:], in[3:3+n])
			in = in[3+n:]
		}
		if kind == 3 {
			seal0(s)
		} else {
			seal1(s)
		}
		var members []*md.Member
		for _, d := range disks {
			if m, err := md.ReadMember(bytes.NewReader(d), int64(len(d))); err == nil {
				members = append(members, m)
			}
		}
		for _, a := range md.Assemble(members) {
			if a.Err != nil {
				continue
			}
			a.Complete()
			p := make([]byte, min(a.Size, 1<<20))
			if n, err := a.ReadAt(p, 0); n != len(p) && err == nil || n > len(p) {
				t.Fatalf("%d of %d bytes, %v", n, a.Size, err)
			}
			if a.Size > 1<<20 {
				t.Fatalf("an array of %d bytes of members of 316 KiB", a.Size)
			}
		}
	})
}
