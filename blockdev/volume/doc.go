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
// The disk may be damaged or hostile. Tables are bounded, checksums are verified,
// the backup GPT stands in for a damaged primary one, and a partition that does
// not lie inside the disk is left out with a warning rather than cut short. What
// is read of the formats, and from which documents, stands in FORMAT.md.
//
// Nothing is cached and nothing is written: List may be called from any number of
// goroutines.
package volume
