// Package volume finds the volumes of a disk: the partitions of a GUID partition
// table (GPT) or of a master boot record (MBR) with its logical partitions, or the
// whole disk when it carries no partition table.
//
//	recovery point (a Device) → volume → filesystem → FUSE
//
// [List] gives the volumes, [Volume.Section] gives the bytes of one:
//
//	volumes, warnings, err := volume.List(disk, disk.Size())
//	for _, v := range volumes {
//		fs, err := detect.Open(v.Section(disk), v.Size)
//	}
//
// Volumes that span disks or lie in each other are found by [Assemble], of all disks of
// a machine together: md arrays (package md), LVM groups (package lvm), and LUKS
// (package luks), nested in any order.
//
//	set := volume.Assemble([]volume.Disk{{"web0", disk, disk.Size()}}, volume.Options{Unlock: unlock})
//	for _, n := range set.Nodes {
//		fs, err := detect.Open(n.Content, n.Size)     // unless n.Err says why not
//	}
//
// The disk may be damaged or hostile. Tables are bounded, checksums are verified,
// the backup GPT stands in for a damaged primary one, and a partition that does
// not lie inside the disk is left out with a warning rather than cut short. What
// is read of the formats, and from which documents, stands in FORMAT.md.
//
// Nothing is cached and nothing is written: List may be called from any number of
// goroutines.
package volume
