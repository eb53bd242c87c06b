package volume_test

import (
	"encoding/binary"
	"hash/crc32"
	"maps"
	"slices"
	"testing"

	"github.com/keelblock/keelblock/blockdev/volume"
)

// fuzzDisks are what the fuzzer patches.
func fuzzDisks() []*image {
	g, g4k, m := newImage(4*mib), newImage(4*mib), newImage(4*mib)
	g.gpt(512, gptPart{"root", 40, 50}, gptPart{"data", 60, 100})
	g4k.gpt(4096, gptPart{"root", 40, 50})
	m.bootRecord(0, entry{0x83, 2, 4}, entry{0x0F, 8, 5000})
	m.bootRecord(8, entry{0x83, 2, 4}, entry{0x05, 10, 20})
	m.bootRecord(18, entry{0x83, 2, 4}, entry{0x05, 0, 20})
	return []*image{g, g4k, m}
}

// seal makes the checksums of all GPT headers right, as far as they can be.
func (m *image) seal() {
	le := binary.LittleEndian
	for _, ss := range []int64{512, 4096} {
		for _, lba := range []int64{1, m.size/ss - 1} {
			h := make([]byte, ss)
			m.ReadAt(h, lba*ss)
			size, n := le.Uint32(h[12:]), uint64(le.Uint32(h[80:]))*uint64(le.Uint32(h[84:]))
			at := le.Uint64(h[72:])
			if size < 92 || int64(size) > ss || n > 1<<20 || at >= uint64(m.size/ss) {
				continue
			}
			entries := make([]byte, n)
			m.ReadAt(entries, int64(at)*ss)
			le.PutUint32(h[88:], crc32.ChecksumIEEE(entries))
			le.PutUint32(h[16:], 0)
			le.PutUint32(h[16:], crc32.ChecksumIEEE(h[:size]))
			m.write(lba*ss, h[:size])
		}
	}
}

// FuzzList: whatever the table says, every volume lies inside the disk, the number
// of volumes and warnings is bounded, and so is the number of reads. The input is the number of a
// disk, whether its checksums are made right afterwards, and patches: which used
// sector, where in it (2 bytes), how many bytes, the bytes.
func FuzzList(f *testing.F) {
	for i, d := range fuzzDisks() {
		sectors := slices.Sorted(maps.Keys(d.data))
		for s, n := range sectors {
			for _, at := range []int{0, 0x40, 446} {
				patch := []byte{byte(i), 1, byte(s), byte(at), byte(at >> 8), 60}
				f.Add(append(patch, d.data[n][at:at+60]...))
			}
		}
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) < 2 || len(in) > 4096 {
			return
		}
		d := fuzzDisks()[int(in[0])%3]
		sectors := slices.Sorted(maps.Keys(d.data))
		sealed := in[1]&1 != 0
		for in = in[2:]; len(in) > 4; {
			at := sectors[int(in[0])%len(sectors)]*512 + int64(binary.LittleEndian.Uint16(in[1:])%512)
			n := min(int(in[3]), len(in)-4, int(d.size-at))
			d.write(at, in[4:4+n])
			in = in[4+n:]
		}
		if sealed {
			d.seal()
		}
		d.reads = 0
		volumes, warnings, err := volume.List(d, d.size)
		if d.reads > 600 { // 256 extended boot records and a few headers and tables
			t.Fatalf("%d reads", d.reads)
		}
		if err != nil {
			t.Fatal(err) // nothing but the reader gives errors
		}
		if len(volumes) > volume.MaxPartitions || len(warnings) > 100 {
			t.Fatalf("%d volumes, %d warnings", len(volumes), len(warnings))
		}
		for _, v := range volumes {
			if v.Offset < 0 || v.Size <= 0 || v.Offset > d.size || v.Size > d.size-v.Offset {
				t.Fatalf("%+v is outside %d bytes", v, d.size)
			}
		}
	})
}
