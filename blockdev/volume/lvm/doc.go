// Package lvm reads LVM2: physical volumes, the metadata of their volume group, and the
// logical volumes that need no more than a map of extents.
//
//	disks or partitions (physical volumes) → volume group → logical volumes → filesystem
//
// [ReadPV] reads the label and the newest metadata of one physical volume, [Assemble]
// makes volume groups of those that were found:
//
//	pv, err := lvm.ReadPV(r, size)            // lvm.ErrNotPV: it is none
//	for _, vg := range lvm.Assemble(pvs) {
//		for _, lv := range vg.LVs {          // lv.Err says why one cannot be read
//			lv.ReadAt(p, off)
//		}
//	}
//
// Read are linear, striped, raid0, raid1 and mirror volumes, and zero segments. What
// else there is (snapshots, thin, cache, raid4/5/6/10, VDO, ...) is listed with an error
// that names it. A volume of which a part is missing is listed with the name of the
// missing physical volume, never cut short and never filled with zeros.
//
// The image may be damaged or hostile: sizes and the nesting of the text are bounded,
// checksums are verified, and the map of a volume is checked against the physical
// volumes before anything is read. FORMAT.md says what is read of the format.
//
// Everything here may be used from any number of goroutines once it is made.
package lvm
