// Package md reads Linux software RAID of the levels 0 and 1.
//
//	disks or partitions (members) → array → filesystem
//
// [ReadMember] reads the superblock of one member, [Assemble] makes arrays of those that
// were found:
//
//	m, err := md.ReadMember(r, size)      // md.ErrNotMember: it is none
//	for _, a := range md.Assemble(members) {
//		a.ReadAt(p, off)                  // a.Err says why one cannot be read
//	}
//
// Superblocks 0.90, 1.0, 1.1 and 1.2 are read. Of a RAID1 only a member with the highest
// event count is read, one that was not being rebuilt, and always the same one, since
// the members of a running array differ where it is being written. What is uncertain
// (a member that is not there, a resync under way) is in [Array.Notes]. Other levels, a
// reshape under way and unknown features are refused by name.
//
// The image may be damaged or hostile: counts are bounded, checksums verified, and the
// map of an array is checked against its members before anything is read. FORMAT.md
// says what is read of the format.
//
// Everything here may be used from any number of goroutines once it is made.
package md
