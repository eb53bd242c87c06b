package md_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/keelblock/keelblock/blockdev/volume/md"
)

const (
	sector = 512
	kib    = 1024
)

// member describes a member with a superblock of version 1.
type member struct {
	size       int // bytes
	minor      int
	level      int32
	layout     uint32
	features   uint32
	chunk      int // bytes
	disks      int
	number     int
	roles      []uint16 // nil: 0, 1, 2, ...
	events     uint64
	resync     uint64
	recovery   uint64
	dataOffset int // bytes
	used       int // bytes, of RAID1
	bad        []uint64
}

func (m member) place() int {
	return []int{(m.size - 8*kib) &^ 4095, 0, 4096}[m.minor]
}

// room is the size of the data.
func (m member) room() int {
	if m.minor == 0 {
		return m.place()
	}
	return m.size - m.dataOffset
}

// make builds the member, its data filled by the generator of its number.
func (m member) make() []byte {
	p := make([]byte, m.size)
	rnd := rand.NewChaCha8([32]byte{byte(m.number) + 1})
	rnd.Read(p[m.dataOffset : m.dataOffset+m.room()])
	le := binary.LittleEndian
	s := p[m.place():]
	clear(s[:4096])
	le.PutUint32(s, 0xa92b4efc)
	le.PutUint32(s[4:], 1)
	le.PutUint32(s[8:], m.features)
	copy(s[16:], "0123456789abcdef")
	copy(s[32:], "host:data")
	le.PutUint32(s[72:], uint32(m.level))
	le.PutUint32(s[76:], m.layout)
	le.PutUint64(s[80:], uint64(m.used/sector))
	le.PutUint32(s[88:], uint32(m.chunk/sector))
	le.PutUint32(s[92:], uint32(m.disks))
	le.PutUint64(s[128:], uint64(m.dataOffset/sector))
	le.PutUint64(s[136:], uint64(m.room()/sector))
	le.PutUint64(s[144:], uint64(m.place()/sector))
	le.PutUint64(s[152:], m.recovery)
	le.PutUint32(s[160:], uint32(m.number))
	le.PutUint64(s[200:], m.events)
	le.PutUint64(s[208:], m.resync)
	if m.bad != nil {
		le.PutUint16(s[186:], 1)
		le.PutUint32(s[188:], 8)
		for i := range 64 {
			le.PutUint64(s[8*sector+8*i:], math.MaxUint64)
		}
		for i, v := range m.bad {
			le.PutUint64(s[8*sector+8*i:], v)
		}
	}
	roles := m.roles
	if roles == nil {
		for i := range m.disks {
			roles = append(roles, uint16(i))
		}
	}
	le.PutUint32(s[220:], uint32(len(roles)))
	for i, r := range roles {
		le.PutUint16(s[256+2*i:], r)
	}
	seal1(s)
	return p
}

// seal1 makes the checksum right, as far as the number of roles can be.
func seal1(s []byte) {
	le := binary.LittleEndian
	n := min(int(le.Uint32(s[220:])), 1920)
	le.PutUint32(s[216:], 0)
	var sum uint64
	for i := 0; i+1 < 256+2*n; i += 2 { // by halves: another way than the package's
		sum += uint64(le.Uint16(s[i:])) << (16 * (i / 2 % 2))
	}
	le.PutUint32(s[216:], uint32(sum+sum>>32))
}

func assemble(t *testing.T, members ...[]byte) *md.Array {
	t.Helper()
	var list []*md.Member
	for i, p := range members {
		m, err := md.ReadMember(bytes.NewReader(p), int64(len(p)))
		if err != nil {
			t.Fatalf("member %d: %v", i, err)
		}
		list = append(list, m)
	}
	arrays := md.Assemble(list)
	if len(arrays) != 1 {
		t.Fatalf("%d arrays", len(arrays))
	}
	return arrays[0]
}

func content(t *testing.T, a *md.Array) []byte {
	t.Helper()
	if a.Err != nil {
		t.Fatal(a.Err)
	}
	p := make([]byte, a.Size)
	if n, err := a.ReadAt(p, 0); n != len(p) || err != nil {
		t.Fatalf("%d of %d bytes, %v", n, len(p), err)
	}
	for off := int64(0); off < a.Size; off += 3000 {
		q := make([]byte, min(5000, a.Size-off))
		if _, err := a.ReadAt(q, off); err != nil || !bytes.Equal(q, p[off:off+int64(len(q))]) {
			t.Fatalf("at %d: %v", off, err)
		}
	}
	if n, err := a.ReadAt(make([]byte, 10), a.Size-4); n != 4 || err != io.EOF {
		t.Errorf("%d bytes behind the end, %v", n, err)
	}
	return p
}

const done = math.MaxUint64

// The model deals chunks out one by one, to the next member that has room.
func TestRaid0DealsChunksToAllThatHaveRoom(t *testing.T) {
	const chunk = 4 * kib
	for _, layout := range []uint32{1, 2} {
		sizes := []int{12 * chunk, 8 * chunk, 20*chunk + 1000/sector*sector, 8 * chunk}
		var disks [][]byte
		for i, n := range sizes {
			disks = append(disks, member{size: 64*kib + n, minor: 2, chunk: chunk, layout: layout, features: 4096, disks: len(sizes), number: i, events: 3, resync: done, dataOffset: 64 * kib}.make())
		}
		var want []byte
		used := make([]int, len(sizes))
		for row := 0; ; row++ {
			var with []int // members that have a chunk in this row
			for i, n := range sizes {
				if row < n/chunk {
					with = append(with, i)
				}
			}
			if len(with) == 0 {
				break
			}
			first := len(want) / chunk
			for k := range with {
				turn := k
				if layout == 1 { // counted from the start of the array
					turn = (first + k) % len(with)
				}
				i := with[turn]
				want = append(want, disks[i][64*kib+row*chunk:][:chunk]...)
				used[i]++
			}
		}
		a := assemble(t, disks[2], disks[0], disks[3], disks[1])
		if got := content(t, a); !bytes.Equal(got, want) {
			t.Errorf("layout %d: %d bytes differ from the model's %d", layout, len(got), len(want))
		}
		if a.Name != "data" || a.Level != 0 || a.Version != "1.2" || !a.Complete() {
			t.Errorf("%+v", a)
		}
	}
}

func TestRaid0IsRefusedWhenUncertain(t *testing.T) {
	make3 := func(change func(i int, m *member)) [][]byte {
		var out [][]byte
		for i := range 3 {
			m := member{size: 256*kib + i*64*kib, minor: 1, chunk: 4 * kib, layout: 2, features: 4096, disks: 3, number: i, events: 1, resync: done, dataOffset: 16 * kib}
			change(i, &m)
			out = append(out, m.make())
		}
		return out
	}
	for name, c := range map[string]struct {
		members [][]byte
		want    error
	}{
		"a member is missing": {make3(func(int, *member) {})[:2], md.ErrMissing},
		"no layout":           {make3(func(_ int, m *member) { m.features = 0 }), md.ErrUnsupported},
		"layout 3":            {make3(func(_ int, m *member) { m.layout = 3 }), md.ErrUnsupported},
		"RAID5":               {make3(func(_ int, m *member) { m.level = 5 }), md.ErrUnsupported},
		"linear":              {make3(func(_ int, m *member) { m.level = -1 }), md.ErrUnsupported},
		"reshape":             {make3(func(_ int, m *member) { m.features |= 4 }), md.ErrUnsupported},
		"unknown feature":     {make3(func(_ int, m *member) { m.features |= 1 << 20 }), md.ErrUnsupported},
		"chunks differ":       {make3(func(i int, m *member) { m.chunk = (4 + 4*(i/2)) * kib }), md.ErrCorrupt},
		"no chunk":            {make3(func(_ int, m *member) { m.chunk = 0 }), md.ErrCorrupt},
		"one member twice":    {append(make3(func(int, *member) {}), make3(func(int, *member) {})[0]), md.ErrCorrupt},
	} {
		a := assemble(t, c.members...)
		if !errors.Is(a.Err, c.want) {
			t.Errorf("%s: %v", name, a.Err)
		}
		if n, err := a.ReadAt(make([]byte, 512), 0); n != 0 || err == nil {
			t.Errorf("%s: %d bytes were read, %v", name, n, err)
		}
	}
	// Equal members need no layout.
	if a := assemble(t, make3(func(i int, m *member) { m.features, m.size = 0, 256*kib })...); a.Err != nil {
		t.Errorf("equal members: %v", a.Err)
	}
	cut := make3(func(int, *member) {})
	m, err := md.ReadMember(bytes.NewReader(cut[2][:300*kib]), 300*kib)
	if err != nil {
		t.Fatal(err)
	}
	rest := []*md.Member{m}
	for _, p := range cut[:2] {
		m, err := md.ReadMember(bytes.NewReader(p), int64(len(p)))
		if err != nil {
			t.Fatal(err)
		}
		rest = append(rest, m)
	}
	if a := md.Assemble(rest)[0]; !errors.Is(a.Err, md.ErrMissing) {
		t.Errorf("a member that was cut: %v", a.Err)
	}
}

func TestRaid1ReadsTheNewestMember(t *testing.T) {
	for name, c := range map[string]struct {
		change func(i int, m *member)
		only   int // this member alone is there; -1: both
		want   int // the one that is read; -1: none
		note   string
	}{
		"both":                 {func(int, *member) {}, -1, 0, ""},
		"the first is old":     {func(i int, m *member) { m.events = uint64(10 + i) }, -1, 1, "older event count"},
		"the first had failed": {func(i int, m *member) { m.events = uint64(10 + 5*i); m.roles = [][]uint16{{0, 1}, {0xfffe, 1}}[i] }, -1, 1, ""},
		"the first is rebuilt": {func(i int, m *member) { m.features = uint32(2 - 2*i) }, -1, 1, "being rebuilt"},
		"in use":               {func(_ int, m *member) { m.resync = 0 }, -1, 0, "in use"},
		"the second alone":     {func(int, *member) {}, 1, 1, "what is shown is older"},
		"a spare alone":        {func(_ int, m *member) { m.roles = []uint16{0, 0xffff} }, 1, -1, ""},
	} {
		for minor := range 3 {
			var disks [][]byte
			for i := range 2 {
				m := member{size: 300 * kib, minor: minor, level: 1, disks: 2, number: i, events: 10, resync: done, dataOffset: 32 * kib, used: 200 * kib}
				if minor == 0 {
					m.dataOffset = 0
				}
				c.change(i, &m)
				disks = append(disks, m.make())
			}
			there := disks
			if c.only >= 0 {
				there = disks[c.only : c.only+1]
			}
			a := assemble(t, there...)
			if c.want < 0 {
				if !errors.Is(a.Err, md.ErrMissing) {
					t.Errorf("%s, 1.%d: %v", name, minor, a.Err)
				}
				continue
			}
			offset := 32 * kib
			if minor == 0 {
				offset = 0
			}
			if !bytes.Equal(content(t, a), disks[c.want][offset:offset+200*kib]) {
				t.Errorf("%s, 1.%d: the wrong member is read", name, minor)
			}
			if notes := strings.Join(a.Notes, "; "); (c.note == "") != (notes == "") || !strings.Contains(notes, c.note) {
				t.Errorf("%s, 1.%d: notes %q", name, minor, notes)
			}
		}
	}
}

// Where a member has lost a range, the other one is read.
func TestBadBlocksAreReadElsewhere(t *testing.T) {
	var disks [][]byte
	for i := range 2 {
		bad := []uint64{uint64(32*kib+40*kib)/sector<<10 | 8}
		if i == 1 {
			bad = []uint64{uint64(32*kib+80*kib)/sector<<10 | 2}
		}
		disks = append(disks, member{size: 300 * kib, minor: 2, level: 1, features: 8, disks: 2, number: i, events: 10, resync: done, dataOffset: 32 * kib, used: 200 * kib, bad: bad}.make())
	}
	a := assemble(t, disks...)
	p := make([]byte, 4*kib)
	for at, want := range map[int]int{0: 0, 36 * kib: 0, 38 * kib: 1, 40 * kib: 1, 42 * kib: 1, 44 * kib: 0, 80 * kib: 0} {
		if _, err := a.ReadAt(p, int64(at)); err != nil || !bytes.Equal(p, disks[want][32*kib+at:][:len(p)]) {
			t.Errorf("at %d: not member %d, %v", at, want, err)
		}
	}
	alone := assemble(t, disks[1])
	if n, err := alone.ReadAt(p, 79*kib); n != 0 || !errors.Is(err, md.ErrCorrupt) {
		t.Errorf("a range that is lost: %d bytes, %v", n, err)
	}
}

func TestDamagedSuperblocksAreRefused(t *testing.T) {
	base := member{size: 256 * kib, minor: 2, level: 1, disks: 2, events: 1, resync: done, dataOffset: 16 * kib, used: 200 * kib}
	for name, damage := range map[string]func(s []byte){
		"one bit":              func(s []byte) { s[90] ^= 1 },
		"too many roles":       func(s []byte) { s[222] = 0xff },
		"too many members":     func(s []byte) { s[94] = 0xff; seal1(s) },
		"data far outside":     func(s []byte) { s[135] = 0xff; seal1(s) },
		"a list of bad blocks": func(s []byte) { s[8] = 8; s[186] = 1; s[191] = 0x7f; seal1(s) },
	} {
		p := base.make()
		damage(p[4096:])
		if _, err := md.ReadMember(bytes.NewReader(p), int64(len(p))); !errors.Is(err, md.ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, n := range []int{0, 100, 5000, 64 * kib, 100 * kib} {
		if _, err := md.ReadMember(bytes.NewReader(make([]byte, n)), int64(n)); !errors.Is(err, md.ErrNotMember) {
			t.Errorf("%d zeros: %v", n, err)
		}
	}
	// The superblock of a smaller device, found at the end of a larger one.
	p := append(make([]byte, 64*kib), member{size: 256 * kib, minor: 0, level: 1, disks: 2}.make()...)
	if _, err := md.ReadMember(bytes.NewReader(p), int64(len(p))); !errors.Is(err, md.ErrNotMember) {
		t.Errorf("a superblock of another place: %v", err)
	}
}
