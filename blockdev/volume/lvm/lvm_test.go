package lvm_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"strings"
	"testing"

	"github.com/keelblock/keelblock/blockdev/volume/lvm"
)

// assemble reads the physical volumes and gives the logical volumes by name.
func assemble(t *testing.T, disks ...[]byte) (*lvm.VG, map[string]*lvm.LV) {
	t.Helper()
	var pvs []*lvm.PV
	for i, r := range readers(disks) {
		pv, err := lvm.ReadPV(r, r.Size())
		if err != nil {
			t.Fatalf("physical volume %d: %v", i, err)
		}
		pvs = append(pvs, pv)
	}
	vgs := lvm.Assemble(pvs)
	if len(vgs) != 1 {
		t.Fatalf("%d volume groups", len(vgs))
	}
	lvs := map[string]*lvm.LV{}
	for _, lv := range vgs[0].LVs {
		lvs[lv.Name] = lv
	}
	return vgs[0], lvs
}

func content(t *testing.T, lv *lvm.LV) []byte {
	t.Helper()
	if lv == nil || lv.Err != nil {
		t.Fatalf("%+v", lv)
	}
	p := make([]byte, lv.Size)
	if n, err := lv.ReadAt(p, 0); n != len(p) || err != nil {
		t.Fatalf("%s: %d bytes, %v", lv.Name, n, err)
	}
	// Odd pieces give the same.
	for off := int64(0); off < lv.Size; off += 1000 {
		q := make([]byte, min(1700, lv.Size-off))
		if _, err := lv.ReadAt(q, off); err != nil || !bytes.Equal(q, p[off:off+int64(len(q))]) {
			t.Fatalf("%s at %d: %v", lv.Name, off, err)
		}
	}
	if n, err := lv.ReadAt(make([]byte, 10), lv.Size-4); n != 4 || err != io.EOF {
		t.Errorf("%s: %d bytes behind the end, %v", lv.Name, n, err)
	}
	return p
}

func threeDisks(seqno int, at int, volumes ...string) [][]byte {
	var disks [][]byte
	for i := range 3 {
		disks = append(disks, newPV(i, 8, group(seqno, 3, 8, volumes...), at))
	}
	return disks
}

func TestVolumesAreReadFromTheirExtents(t *testing.T) {
	// The text begins near the end of the area and goes on at its start.
	disks := threeDisks(3, areaBytes-700,
		lv("linear", segment(0, 2, `type = "striped"
			stripe_count = 1
			stripes = ["pv1", 3]`), segment(2, 1, `type = "striped"
			stripe_count = 1
			stripes = ["pv0", 7]`)),
		lv("striped", segment(0, 6, `type = "striped"
			stripe_count = 3
			stripe_size = 2
			stripes = ["pv2", 0, "pv0", 2, "pv1", 0]`)),
		hidden("raid0_rimage_0", segment(0, 1, "type = \"striped\"\nstripe_count = 1\nstripes = [\"pv0\", 0]")),
		hidden("raid0_rimage_1", segment(0, 1, "type = \"striped\"\nstripe_count = 1\nstripes = [\"pv1\", 5]")),
		lv("raid0", segment(0, 2, `type = "raid0"
			stripe_count = 2
			stripe_size = 8
			raid0_lvs = ["raid0_rimage_0", "raid0_rimage_1"]`)),
		lv("zeros", segment(0, 1, `type = "zero"`)),
	)
	vg, lvs := assemble(t, disks[2], disks[0], disks[1])
	if vg.Name != "vg" || vg.Seqno != 3 || len(vg.Missing) != 0 || len(vg.Warnings) != 0 || len(lvs) != 4 {
		t.Errorf("%+v, %d volumes", vg, len(lvs))
	}
	if got, want := content(t, lvs["linear"]), extents(disks, extentBytes, [2]int{1, 3}, [2]int{1, 4}, [2]int{0, 7}); !bytes.Equal(got, want) || lvs["linear"].Type != "linear" {
		t.Errorf("linear (%s) differs", lvs["linear"].Type)
	}
	// Stripes of 1 KiB: two extents on each disk are eight stripes.
	var places [][2]int
	for i := range 8 {
		places = append(places, [2]int{2, i}, [2]int{0, 8 + i}, [2]int{1, i})
	}
	if !bytes.Equal(content(t, lvs["striped"]), extents(disks, 1024, places...)) || lvs["striped"].Type != "striped" {
		t.Error("striped differs")
	}
	if !bytes.Equal(content(t, lvs["raid0"]), extents(disks, extentBytes, [2]int{0, 0}, [2]int{1, 5})) {
		t.Error("raid0 differs")
	}
	if !bytes.Equal(content(t, lvs["zeros"]), make([]byte, extentBytes)) {
		t.Error("zeros differ")
	}
}

func TestWhatCannotBeReadIsNamed(t *testing.T) {
	disks := threeDisks(1, sector,
		lv("whole", segment(0, 1, "type = \"striped\"\nstripe_count = 1\nstripes = [\"pv0\", 0]")),
		lv("torn", segment(0, 1, "type = \"striped\"\nstripe_count = 1\nstripes = [\"pv0\", 1]"), segment(1, 1, "type = \"striped\"\nstripe_count = 1\nstripes = [\"pv2\", 1]")),
		lv("thin", segment(0, 1, "type = \"thin\"\nthin_pool = \"pool\"")),
		lv("raid5", segment(0, 1, "type = \"raid5\"")),
		lv("outside", segment(0, 1, "type = \"striped\"\nstripe_count = 1\nstripes = [\"pv0\", 8]")),
		lv("itself", segment(0, 1, "type = \"striped\"\nstripe_count = 1\nstripes = [\"itself\", 0]")),
		lv("nowhere", segment(0, 1, "type = \"striped\"\nstripe_count = 1\nstripes = [\"pv9\", 0]")),
		lv("gap", segment(1, 1, `type = "zero"`)),
		lv("origin", segment(0, 1, "type = \"striped\"\nstripe_count = 1\nstripes = [\"pv0\", 2]")),
		hidden("cow", segment(0, 1, "type = \"striped\"\nstripe_count = 1\nstripes = [\"pv0\", 3]")),
		hidden("snapshot0", segment(0, 1, "type = \"snapshot\"\nchunk_size = 8\norigin = \"origin\"\ncow_store = \"cow\"")),
	)
	vg, lvs := assemble(t, disks[0], disks[1])
	if len(vg.Missing) != 1 || !strings.Contains(vg.Missing[0], dashed(pvUUID(2))) || !strings.Contains(vg.Missing[0], `once /dev/"quoted"2`) {
		t.Errorf("missing: %q", vg.Missing)
	}
	for name, want := range map[string]error{"torn": lvm.ErrMissing, "thin": lvm.ErrUnsupported, "raid5": lvm.ErrUnsupported, "outside": lvm.ErrCorrupt,
		"itself": lvm.ErrCorrupt, "nowhere": lvm.ErrCorrupt, "gap": lvm.ErrCorrupt, "cow": lvm.ErrUnsupported} {
		lv := lvs[name]
		if lv == nil || !errors.Is(lv.Err, want) {
			t.Errorf("%s: %+v", name, lv)
			continue
		}
		if n, err := lv.ReadAt(make([]byte, 512), 0); n != 0 || !errors.Is(err, want) {
			t.Errorf("read %s: %d bytes, %v", name, n, err)
		}
	}
	if lvs["torn"].Size != 2*extentBytes || !strings.Contains(lvs["torn"].Err.Error(), dashed(pvUUID(2))) {
		t.Errorf("torn: %d bytes, %v", lvs["torn"].Size, lvs["torn"].Err)
	}
	if !strings.Contains(lvs["thin"].Err.Error(), `"thin"`) || !strings.Contains(lvs["cow"].Err.Error(), "snapshot") {
		t.Errorf("%v; %v", lvs["thin"].Err, lvs["cow"].Err)
	}
	content(t, lvs["whole"])
	content(t, lvs["origin"])
	if lvs["snapshot0"] != nil {
		t.Error("what only ties a snapshot to its origin is listed")
	}
}

// Metadata that missed a change do not count, and neither does a physical volume that
// the group went on without.
func TestNewestMetadataCount(t *testing.T) {
	old := threeDisks(4, sector, lv("old", segment(0, 1, `type = "zero"`)))
	text := group(5, 3, 8, lv("new", segment(0, 1, "type = \"striped\"\nstripe_count = 1\nstripes = [\"pv1\", 0]")), lv("other", segment(0, 1, `type = "zero"`)))
	text = strings.Replace(text, "status = [\"ALLOCATABLE\"]\nflags = []\npe_start = 32\npe_count = 8\n}\npv2", "status = [\"ALLOCATABLE\"]\nflags = [\"MISSING\"]\npe_start = 32\npe_count = 8\n}\npv2", 1)
	vg, lvs := assemble(t, old[0], old[1], newPV(2, 8, text, sector))
	if vg.Seqno != 5 || lvs["old"] != nil || lvs["other"] == nil || len(vg.Warnings) != 1 {
		t.Errorf("%+v", vg)
	}
	if err := lvs["new"].Err; !errors.Is(err, lvm.ErrMissing) || !strings.Contains(err.Error(), "may hold old data") {
		t.Errorf("on a physical volume that was away: %v", err)
	}
	vg, lvs = assemble(t, newPV(2, 8, text, sector), newPV(2, 8, text, sector))
	if err := lvs["new"].Err; !errors.Is(err, lvm.ErrMissing) || len(vg.Missing) != 3 {
		t.Errorf("a physical volume twice: %v, %q", err, vg.Missing)
	}
}

// raidMeta is a volume of metadata in an extent of a disk.
func raidMeta(disk []byte, extent, position int, events, failed, recovery, resync uint64) {
	p := disk[peStart+extent*extentBytes:]
	le := binary.LittleEndian
	le.PutUint32(p, 0x64526D44)
	le.PutUint32(p[12:], uint32(position))
	le.PutUint64(p[16:], events)
	le.PutUint64(p[24:], failed)
	le.PutUint64(p[32:], recovery)
	le.PutUint64(p[40:], resync)
}

func TestRaid1ReadsAnImageThatIsUpToDate(t *testing.T) {
	const done = math.MaxUint64
	at := func(pv string, extent string) string {
		return segment(0, 1, "type = \"striped\"\nstripe_count = 1\nstripes = [\""+pv+"\", "+extent+"]")
	}
	volumes := []string{hidden("m0", at("pv0", "0")), hidden("d0", at("pv0", "1")), hidden("m1", at("pv1", "0")), hidden("d1", at("pv1", "1")),
		lv("mirrored", segment(0, 1, "type = \"raid1\"\ndevice_count = 2\nregion_size = 1024\nraids = [\"m0\", \"d0\", \"m1\", \"d1\"]"))}
	for name, c := range map[string]struct {
		set  func(disks [][]byte)
		want int // number of the disk that is read, -1: none
		note string
	}{
		"both are whole":       {func(d [][]byte) { raidMeta(d[0], 0, 0, 7, 0, done, done); raidMeta(d[1], 0, 1, 7, 0, done, done) }, 0, ""},
		"the first is stale":   {func(d [][]byte) { raidMeta(d[0], 0, 0, 6, 0, done, done); raidMeta(d[1], 0, 1, 7, 1, done, done) }, 1, ""},
		"the first failed":     {func(d [][]byte) { raidMeta(d[0], 0, 0, 7, 0, done, done); raidMeta(d[1], 0, 1, 7, 1, done, done) }, 1, ""},
		"the first is rebuilt": {func(d [][]byte) { raidMeta(d[0], 0, 0, 7, 0, 100, done); raidMeta(d[1], 0, 1, 7, 0, done, done) }, 1, ""},
		"not in step":          {func(d [][]byte) { raidMeta(d[0], 0, 0, 7, 0, done, 0); raidMeta(d[1], 0, 1, 7, 0, done, 0) }, 0, "not all in step"},
		"no superblock":        {func(d [][]byte) { raidMeta(d[1], 0, 1, 7, 0, done, done) }, 1, "what is shown is older"},
		"swapped":              {func(d [][]byte) { raidMeta(d[0], 0, 1, 7, 0, done, done); raidMeta(d[1], 0, 0, 7, 0, done, done) }, -1, ""},
	} {
		disks := threeDisks(1, sector, volumes...)
		c.set(disks)
		_, lvs := assemble(t, disks...)
		m := lvs["mirrored"]
		if c.want < 0 {
			if m.Err == nil {
				t.Errorf("%s: it is read", name)
			}
			continue
		}
		if !bytes.Equal(content(t, m), extents(disks, extentBytes, [2]int{c.want, 1})) {
			t.Errorf("%s: the wrong image is read", name)
		}
		notes := strings.Join(m.Notes, "; ")
		if (c.note == "") != (notes == "") || c.note != "" && !strings.Contains(notes, c.note) {
			t.Errorf("%s: notes %q", name, notes)
		}
	}
}

func TestDamagedMetadataAreRefused(t *testing.T) {
	text := group(1, 1, 8, lv("a", segment(0, 1, `type = "zero"`)))
	for name, damage := range map[string]func(p []byte){
		"label":          func(p []byte) { p[sector+40] ^= 1 },
		"area's header":  func(p []byte) { p[areaOffset+50] ^= 1 },
		"text":           func(p []byte) { p[areaOffset+sector+30] ^= 1 },
		"text outside":   func(p []byte) { p[areaOffset+42] = 0xff; seal(p) },
		"text too long":  func(p []byte) { p[areaOffset+51] = 0xff; seal(p) },
		"header outside": func(p []byte) { p[sector+21] = 0xff; seal(p) },
		"area's version": func(p []byte) { p[areaOffset+20] = 2; seal(p) },
		"endless area list": func(p []byte) {
			for i := sector + 72; i < 2*sector; i++ {
				p[i] = 1
			}
			seal(p)
		},
	} {
		p := newPV(0, 8, text, sector)
		damage(p)
		if _, err := lvm.ReadPV(bytes.NewReader(p), int64(len(p))); !errors.Is(err, lvm.ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, bad := range []string{"vg {", "vg { a = }", "vg { a = [1, 2 }", "vg { a = \"x }", "vg { a = 99999999999999999999 }", strings.Repeat("a {", 100), "vg }", "= 3", "vg { id = 1 id = 2 }", "vg = [[1]]"} {
		p := newPV(0, 8, bad, sector)
		if _, err := lvm.ReadPV(bytes.NewReader(p), int64(len(p))); !errors.Is(err, lvm.ErrCorrupt) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if _, err := lvm.ReadPV(bytes.NewReader(make([]byte, 1<<16)), 1<<16); !errors.Is(err, lvm.ErrNotPV) {
		t.Errorf("zeros: %v", err)
	}
	// A physical volume without a group is one.
	p := newPV(0, 8, "", sector)
	if pv, err := lvm.ReadPV(bytes.NewReader(p), int64(len(p))); err != nil || pv.Group() != "" || pv.UUID != pvUUID(0) {
		t.Errorf("without a group: %+v, %v", pv, err)
	}
}
