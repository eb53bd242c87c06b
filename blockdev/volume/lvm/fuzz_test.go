package lvm_test

import (
	"bytes"
	"testing"

	"github.com/keelblock/keelblock/blockdev/volume/lvm"
)

// FuzzText: whatever a volume group's text says, reading it ends, and a volume that can be
// read lies inside its physical volumes.
func FuzzText(f *testing.F) {
	f.Add([]byte(group(1, 2, 8, lv("a", segment(0, 2, "type = \"striped\"\nstripe_count = 2\nstripe_size = 2\nstripes = [\"pv0\", 0, \"pv1\", 3]")))))
	f.Add([]byte(group(1, 2, 8, hidden("m", segment(0, 1, `type = "zero"`)), lv("r", segment(0, 1, "type = \"raid1\"\nraids = [\"m\", \"m\", \"m\", \"m\"]")))))
	f.Add([]byte(group(9, 1, 8, lv("m", segment(0, 3, "type = \"mirror\"\nmirrors = [\"m\", 0]")), hidden("s", segment(0, 1, "type = \"snapshot\"\norigin = \"m\"\ncow_store = \"m\"")))))
	f.Add([]byte("vg {\nid = \"x\"\n# comment\nseqno = -1.5\nextent_size = 0\n}\ncontents = \"Text Format Volume Group\"\nversion = 1\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		if len(text) > areaBytes-sector-1 {
			return
		}
		check(t, newPV(0, 8, string(text), sector), newPV(1, 8, string(text), areaBytes-10))
	})
}

// FuzzPV: patches of the first 16 KiB (where, how many bytes, the bytes), with the
// checksums of label and area made right.
func FuzzPV(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{2, 104, 8, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f})
	f.Add([]byte{16, 40, 8, 0, 0x10, 0, 0, 0, 0, 0, 0})
	f.Add([]byte{16, 32, 16, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0})
	text := group(1, 2, 8, lv("a", segment(0, 2, "type = \"striped\"\nstripe_count = 1\nstripes = [\"pv1\", 3]")))
	f.Fuzz(func(t *testing.T, in []byte) {
		p := newPV(0, 8, text, sector)
		for len(in) > 3 {
			at := int(in[0])*256%peStart + int(in[1])
			n := min(int(in[2]), len(in)-3)
			copy(p[at:], in[3:3+n])
			in = in[3+n:]
		}
		seal(p)
		check(t, p, newPV(1, 8, text, sector))
	})
}

// check assembles what can be read and reads all of it.
func check(t *testing.T, disks ...[]byte) {
	var pvs []*lvm.PV
	for _, d := range disks {
		if pv, err := lvm.ReadPV(bytes.NewReader(d), int64(len(d))); err == nil {
			pvs = append(pvs, pv)
		}
	}
	for _, vg := range lvm.Assemble(pvs) {
		for _, lv := range vg.LVs {
			if lv.Err != nil {
				continue
			}
			p := make([]byte, min(lv.Size, 1<<20))
			if n, err := lv.ReadAt(p, 0); err != nil || n != len(p) {
				t.Fatalf("%s of %d bytes: %d, %v", lv.Name, lv.Size, n, err)
			}
			if _, err := lv.ReadAt(p[:min(len(p), 512)], lv.Size-int64(min(len(p), 512))); err != nil {
				t.Fatalf("end of %s of %d bytes: %v", lv.Name, lv.Size, err)
			}
		}
	}
}
