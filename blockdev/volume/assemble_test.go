package volume_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"testing"

	"github.com/keelblock/keelblock/blockdev/volume"
	"github.com/keelblock/keelblock/blockdev/volume/luks"
	"github.com/keelblock/keelblock/blockdev/volume/md"
)

// mdMember writes a superblock 1.2 of a RAID1 over p, whose data begin at 64 KiB.
func mdMember(p []byte, uuid byte, name string, number int, events uint64, disks int) []byte {
	le := binary.LittleEndian
	s := p[4096:]
	clear(s[:4096])
	le.PutUint32(s, 0xa92b4efc)
	le.PutUint32(s[4:], 1)
	s[16] = uuid
	copy(s[32:], name)
	le.PutUint32(s[72:], 1)
	le.PutUint64(s[80:], uint64(len(p)-64<<10)/512)
	le.PutUint32(s[92:], uint32(disks))
	le.PutUint64(s[128:], 128)
	le.PutUint64(s[136:], uint64(len(p)-64<<10)/512)
	le.PutUint64(s[144:], 8)
	le.PutUint32(s[160:], uint32(number))
	le.PutUint64(s[200:], events)
	le.PutUint64(s[208:], ^uint64(0))
	le.PutUint32(s[220:], uint32(disks))
	for i := range disks {
		le.PutUint16(s[256+2*i:], uint16(i))
	}
	var sum uint64
	for i := 0; i < 256+2*disks; i += 2 {
		sum += uint64(le.Uint16(s[i:])) << (16 * (i / 2 % 2))
	}
	le.PutUint32(s[216:], uint32(sum+sum>>32))
	return p
}

func disks(contents ...[]byte) []volume.Disk {
	var out []volume.Disk
	for i, p := range contents {
		out = append(out, volume.Disk{Name: string(rune('a' + i)), Reader: bytes.NewReader(p), Size: int64(len(p))})
	}
	return out
}

func byName(set *volume.Set) map[string]*volume.Node {
	out := map[string]*volume.Node{}
	for _, n := range set.Nodes {
		out[n.Name] = n
	}
	return out
}

// An array in an array, and a table of partitions in that: each has its name, and the
// layers below are members.
func TestArraysNest(t *testing.T) {
	table := newImage(3 * mib)
	table.bootRecord(0, entry{0x83, 2, 100}, entry{0x83, 200, 100})
	inner := make([]byte, 3*mib)
	if _, err := table.ReadAt(inner, 0); err != nil {
		t.Fatal(err)
	}
	copy(inner[200*512:], "second partition")
	middle := mdMember(append(make([]byte, 64<<10), inner...), 2, "host:inner", 0, 1, 1)
	outer := append(make([]byte, 64<<10), middle...)
	set := volume.Assemble(disks(mdMember(bytes.Clone(outer), 1, "outer", 0, 5, 2), mdMember(bytes.Clone(outer), 1, "outer", 1, 5, 2)), volume.Options{})
	nodes := byName(set)
	if len(nodes) != 5 || set.Unread {
		t.Errorf("%d nodes, unread %v", len(nodes), set.Unread)
	}
	for name, member := range map[string]string{"a-0": "member of md array outer", "b-0": "member of md array outer", "md-outer": "member of md array inner", "md-inner-1": "", "md-inner-2": ""} {
		if n := nodes[name]; n == nil || n.Member != member || n.Err != nil || (n.Content == nil) != (member != "") {
			t.Errorf("%s: %+v", name, n)
		}
	}
	p := make([]byte, 16)
	if _, err := nodes["md-inner-2"].Content.ReadAt(p, 0); err != nil || string(p) != "second partition" {
		t.Errorf("%q, %v", p, err)
	}
}

// Arrays that contain themselves without end stop at a depth.
func TestNestingIsBounded(t *testing.T) {
	p := make([]byte, 4*mib)
	for level := 20; level >= 0; level-- {
		at := level * 64 << 10
		mdMember(p[at:], byte(level+1), "deep", 0, 1, 1)
	}
	set := volume.Assemble(disks(p), volume.Options{})
	refused := 0
	for _, n := range set.Nodes {
		if n.Err != nil {
			refused++
		}
	}
	if len(set.Nodes) > 12 || refused != 1 {
		t.Errorf("%d nodes, %d refused", len(set.Nodes), refused)
	}
}

func TestNamesAreUnique(t *testing.T) {
	one := func(uuid byte) []byte { return mdMember(make([]byte, mib), uuid, "host:0", 0, 1, 1) }
	nodes := byName(volume.Assemble(disks(one(1), one(2), one(3)), volume.Options{}))
	for _, name := range []string{"a-0", "b-0", "c-0", "md-0", "md-0+2", "md-0+3"} {
		if nodes[name] == nil {
			t.Errorf("%s is not listed", name)
		}
	}
}

// failing is a disk that cannot be read from some place on.
type failing struct {
	r    io.ReaderAt
	from int64
}

var errMedium = errors.New("medium error")

func (f failing) ReadAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > f.from {
		return 0, errMedium
	}
	return f.r.ReadAt(p, off)
}

func TestDiskThatCannotBeReadTakesNothingFromOthers(t *testing.T) {
	member := func(n int) []byte { return mdMember(make([]byte, mib), 1, "x", n, 1, 2) }
	list := disks(member(0), member(1), make([]byte, mib))
	list[0].Reader = failing{list[0].Reader, 0}
	set := volume.Assemble(list, volume.Options{})
	if !errors.Is(set.Failed[0], errMedium) || set.Failed[1] != nil || !set.Unread {
		t.Errorf("%v, unread %v", set.Failed, set.Unread)
	}
	if n := byName(set)["md-x"]; n == nil || n.Err != nil || len(n.Notes) != 1 {
		t.Errorf("the other half of a mirror: %+v", n)
	}
	if n := byName(set)["c-0"]; n == nil || n.Content == nil {
		t.Errorf("another disk: %+v", n)
	}
}

// A superblock at the end of the last partition is that partition's, not the disk's.
func TestSuperblockOfAPartitionIsNotTheDisks(t *testing.T) {
	img := newImage(4 * mib)
	img.bootRecord(0, entry{0x83, 2048, 6144})
	p := make([]byte, 4*mib)
	if _, err := img.ReadAt(p, 0); err != nil {
		t.Fatal(err)
	}
	s := p[4*mib-64<<10:]
	le := binary.LittleEndian
	for word, v := range map[int]uint32{0: 0xa92b4efc, 2: 90, 7: 1, 8: 2 << 10, 10: 1, 33: 1, 128 + 4: 6, 992 + 4: 6} {
		le.PutUint32(s[4*word:], v)
	}
	var sum uint64
	for i := 0; i < 4096; i += 4 {
		sum += uint64(le.Uint32(s[i:]))
	}
	le.PutUint32(s[4*38:], uint32(sum+sum>>32))
	if m, err := md.ReadMember(bytes.NewReader(p), int64(len(p))); err != nil || m.Version != "0.90" {
		t.Fatalf("%+v, %v", m, err)
	}
	nodes := byName(volume.Assemble(disks(p), volume.Options{}))
	if n := nodes["a-1"]; n == nil || n.Member != "member of md array 0" || nodes["a-0"] != nil {
		t.Errorf("%+v", nodes)
	}
	if n := nodes["md-0"]; n == nil || n.Err != nil || n.Size != 2*mib {
		t.Errorf("%+v", n)
	}
}

// FuzzAssemble: patches of two disks that hold members, a table and a volume (which disk,
// where, how many bytes, the bytes) never make volumes without bounds.
func FuzzAssemble(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{0, 0x10, 0, 4, 0xfc, 0x4e, 0x2b, 0xa9})
	f.Add([]byte{1, 0, 0, 8, 'L', 'U', 'K', 'S', 0xba, 0xbe, 0, 2})
	f.Add([]byte{1, 2, 0, 8, 'L', 'A', 'B', 'E', 'L', 'O', 'N', 'E'})
	f.Add([]byte{1, 1, 0xfe, 2, 0x55, 0xaa, 1, 1, 0xbe, 16, 0x80, 0, 0, 0, 0x83, 0, 0, 0, 8, 0, 0, 0, 0xff, 0, 0, 0})
	base := [2][]byte{mdMember(make([]byte, 256<<10), 1, "x", 0, 1, 2), make([]byte, 256<<10)}
	f.Fuzz(func(t *testing.T, in []byte) {
		list := [2][]byte{bytes.Clone(base[0]), bytes.Clone(base[1])}
		for len(in) > 4 {
			at := int(in[1])<<8 + int(in[2])
			n := min(int(in[3]), len(in)-4)
			copy(list[in[0]%2][at:], in[4:4+n])
			in = in[4+n:]
		}
		set := volume.Assemble(disks(list[:]...), volume.Options{Unlock: func(*luks.Header) (luks.Key, error) { return nil, luks.ErrPassphrase }})
		names := map[string]bool{}
		for _, n := range set.Nodes {
			if names[n.Name] || n.Name == "" {
				t.Fatalf("name %q", n.Name)
			}
			names[n.Name] = true
			if (n.Content == nil) != (n.Err != nil || n.Member != "") || n.Size > 1<<20 {
				t.Fatalf("%+v", n)
			}
			if n.Content != nil {
				if got, err := n.Content.ReadAt(make([]byte, n.Size), 0); err != nil || int64(got) != n.Size {
					t.Fatalf("%s: %d of %d bytes, %v", n.Name, got, n.Size, err)
				}
			}
		}
	})
}
