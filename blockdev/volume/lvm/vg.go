package lvm

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Bounds of a volume group.
const (
	maxPVs        = 4096
	maxLVs        = 1 << 14
	maxSegments   = 1 << 18 // of all volumes together
	maxStripes    = 128     // MAX_STRIPES of lib/metadata
	maxNesting    = 8       // volumes that are made of volumes
	maxExtentSize = 1 << 32 // sectors
	maxExtents    = 1 << 32
)

// VG is a volume group.
type VG struct {
	Name string
	// UUID is as the metadata have it, with dashes.
	UUID  string
	Seqno int64
	// LVs are the visible logical volumes, in the order of the metadata.
	LVs []*LV
	// Missing are the physical volumes that are not there, each as words for a message.
	Missing []string
	// Warnings say what was found beside the metadata that are used.
	Warnings []string
	// PVs are those that belong to the group and were found.
	PVs []*PV

	extentBytes int64
	pvs         map[string]*groupPV
	lvs         *section
	built       map[string]*LV
	building    map[string]bool
	snapshots   map[string]bool // volumes that hold the changes of a snapshot
	merging     map[string]bool // volumes into which one is merged
	segments    int
}

// groupPV is a physical volume as the group's metadata see it. pv is nil when it is
// missing, for the reason err.
type groupPV struct {
	name       string
	pv         *PV
	start      int64 // of extent 0, in bytes
	extents    int64
	err        error
	identifier string
}

// Complete: every physical volume of the groups of pvs is there, so that a later find
// can add nothing.
func Complete(pvs []*PV) bool {
	for _, vg := range Assemble(pvs) {
		if len(vg.Missing) > 0 {
			return false
		}
	}
	return !slices.ContainsFunc(pvs, func(pv *PV) bool { return pv.meta == nil })
}

// Assemble makes the volume groups that the physical volumes belong to, in the order
// in which they were first met. Of several metadata of one group those with the highest
// sequence number count, as LVM has it.
func Assemble(pvs []*PV) []*VG {
	newest := map[string]*metadata{}
	var order []string
	for _, pv := range pvs {
		m := pv.meta
		if m == nil {
			continue
		}
		if newest[m.id] == nil {
			order = append(order, m.id)
		}
		if old := newest[m.id]; old == nil || m.seqno > old.seqno {
			newest[m.id] = m
		}
	}
	var out []*VG
	for _, id := range order {
		out = append(out, newVG(newest[id], pvs))
	}
	return out
}

// newVG makes a group. What is wrong with the metadata as a whole becomes the error of
// one volume without a name, as there is nothing else to show.
func newVG(m *metadata, pvs []*PV) *VG {
	vg := &VG{Name: m.name, UUID: m.id, Seqno: m.seqno, pvs: map[string]*groupPV{}, built: map[string]*LV{}, building: map[string]bool{}}
	_, root, err := parseMetadata(m.text)
	if err == nil {
		err = vg.load(root, pvs)
	}
	if err != nil {
		vg.LVs = []*LV{{Err: fmt.Errorf("volume group %s: %w", m.name, err)}}
	}
	return vg
}

func (vg *VG) load(root *section, pvs []*PV) error {
	sectors, err := root.number("extent_size", maxExtentSize)
	if err != nil {
		return err
	}
	if sectors == 0 {
		return fmt.Errorf("extents of no size: %w", ErrCorrupt)
	}
	vg.extentBytes = sectors * sectorSize
	list := root.sections["physical_volumes"]
	if list == nil || len(list.order) > maxPVs {
		return fmt.Errorf("metadata list no physical volumes, or more than %d: %w", maxPVs, ErrCorrupt)
	}
	for _, name := range list.order {
		g, err := vg.loadPV(name, list.sections[name], pvs)
		if err != nil {
			return err
		}
		vg.pvs[name] = g
		if g.err != nil {
			vg.Missing = append(vg.Missing, g.identifier)
		} else {
			vg.PVs = append(vg.PVs, g.pv)
			if g.pv.meta != nil && g.pv.meta.seqno < vg.Seqno {
				vg.Warnings = append(vg.Warnings, fmt.Sprintf("%s has older metadata (%d, the newest are %d)", g.identifier, g.pv.meta.seqno, vg.Seqno))
			}
		}
	}
	vg.lvs = root.sections["logical_volumes"]
	if vg.lvs == nil {
		return nil // none was made yet
	}
	if len(vg.lvs.order) > maxLVs {
		return fmt.Errorf("more than %d logical volumes: %w", maxLVs, ErrCorrupt)
	}
	vg.findSnapshots()
	for _, name := range vg.lvs.order {
		// A snapshot is not visible by LVM's flag; it is listed by the name it was given.
		if vg.lvs.sections[name].has("status", "VISIBLE") && !vg.isSnapshotSegment(name) || vg.snapshots[name] {
			vg.LVs = append(vg.LVs, vg.volume(name, 0))
		}
	}
	return nil
}

func (vg *VG) loadPV(name string, s *section, pvs []*PV) (*groupPV, error) {
	start, err := s.number("pe_start", 1<<52)
	if err != nil {
		return nil, err
	}
	extents, err := s.number("pe_count", maxExtents)
	if err != nil {
		return nil, err
	}
	id := strings.ReplaceAll(s.text("id"), "-", "")
	g := &groupPV{name: name, start: start * sectorSize, extents: extents, identifier: fmt.Sprintf("%s (%s, once %s)", name, s.text("id"), s.text("device"))}
	for _, pv := range pvs {
		if pv.UUID != id {
			continue
		}
		if g.pv != nil {
			g.err = fmt.Errorf("physical volume %s is there twice, and which is right is not known: %w", g.identifier, ErrCorrupt)
			return g, nil
		}
		g.pv = pv
	}
	switch {
	case g.pv == nil:
		g.err = fmt.Errorf("%s: %w", g.identifier, ErrMissing)
	case s.has("flags", "MISSING") || s.has("status", "MISSING"):
		// It was away while the group went on: what it holds may be old.
		g.err = fmt.Errorf("%s: the group has marked it as missing, so it may hold old data: %w", g.identifier, ErrMissing)
	}
	return g, nil
}

// findSnapshots notes which volumes hold the changes of a snapshot, and into which one
// is being merged, so that their content is in two places.
func (vg *VG) findSnapshots() {
	vg.snapshots, vg.merging = map[string]bool{}, map[string]bool{}
	for _, s := range vg.lvs.sections {
		seg := s.sections["segment1"]
		if seg == nil || seg.text("type") != "snapshot" {
			continue
		}
		vg.snapshots[seg.text("cow_store")] = true
		if store := seg.text("merging_store"); store != "" {
			vg.snapshots[store], vg.merging[seg.text("origin")] = true, true
		}
	}
}

// isSnapshotSegment: the volume only ties a snapshot to its origin.
func (vg *VG) isSnapshotSegment(name string) bool {
	seg := vg.lvs.sections[name].sections["segment1"]
	return seg != nil && seg.text("type") == "snapshot"
}

// volume gives a logical volume, made once. An error is in it.
func (vg *VG) volume(name string, depth int) *LV {
	if lv := vg.built[name]; lv != nil {
		return lv
	}
	s := vg.lvs.sections[name]
	switch {
	case s == nil:
		return &LV{Name: name, Err: fmt.Errorf("logical volume %q is used and not described: %w", name, ErrCorrupt)}
	case vg.building[name] || depth > maxNesting:
		return &LV{Name: name, Err: fmt.Errorf("logical volume %q is made of itself, or lies too deep: %w", name, ErrCorrupt)}
	}
	vg.building[name] = true
	lv := &LV{Name: name, UUID: s.text("id")}
	lv.Err = vg.build(lv, s, depth)
	if lv.Err != nil {
		lv.segments = nil
	}
	delete(vg.building, name)
	vg.built[name] = lv
	return lv
}

func (vg *VG) build(lv *LV, s *section, depth int) error {
	count, err := s.number("segment_count", maxSegments)
	if err != nil {
		return err
	}
	if vg.segments += int(count); vg.segments > maxSegments {
		return fmt.Errorf("more than %d segments: %w", maxSegments, ErrCorrupt)
	}
	var types []string
	var failed []error // all of them, but the size is known in any case
	for i := range count {
		seg := s.sections[fmt.Sprintf("segment%d", i+1)]
		if seg == nil {
			return fmt.Errorf("segment %d of %s is not described: %w", i+1, lv.Name, ErrCorrupt)
		}
		start, err1 := seg.number("start_extent", maxExtents)
		extents, err2 := seg.number("extent_count", maxExtents)
		if err := errors.Join(err1, err2); err != nil {
			return err
		}
		if start*vg.extentBytes != lv.Size || extents == 0 || extents > (1<<62-lv.Size)/vg.extentBytes {
			return fmt.Errorf("segment %d of %s begins at extent %d: %w", i+1, lv.Name, start, ErrCorrupt)
		}
		length := extents * vg.extentBytes
		kind := seg.text("type")
		g, err := vg.segment(lv, seg, kind, length, depth)
		if err != nil {
			failed = append(failed, err)
		}
		if g.kind != "" {
			kind = g.kind
		}
		if !slices.Contains(types, kind) {
			types = append(types, kind)
		}
		g.start, g.length = lv.Size, length
		lv.segments = append(lv.segments, g)
		lv.Size += length
	}
	lv.Type = strings.Join(types, "+")
	switch {
	case vg.snapshots[lv.Name]:
		lv.Type = "snapshot"
		return fmt.Errorf("an LVM snapshot is %w", ErrUnsupported)
	case vg.merging[lv.Name]:
		return fmt.Errorf("a snapshot is being merged into it, which is %w", ErrUnsupported)
	case len(failed) > 0:
		return failed[0]
	}
	return nil
}
