// Package filerestore shows recovery points as a tree of files: raw disks, and the
// files of the guests' volumes.
//
//	Source (points of the daemon) → disk → volume → file system → tree → fusemount
//
// A [Tree] is a [fusemount.Directory]:
//
//	MACHINE/2026-11-21T19:30:00Z/DISK.raw            the disk, sparse
//	MACHINE/2026-11-21T19:30:00Z/volumes/DISK-N/…    the files of partition N, 0 for a whole disk
//	MACHINE/2026-11-21T19:30:00Z/volumes/VG-LV/…     the files of a logical volume of LVM
//	MACHINE/2026-11-21T19:30:00Z/volumes/md-NAME/…   the files of an md array
//	MACHINE/2026-11-21T19:30:00Z/STATUS              what could not be read, and why
//	MACHINE/2026-11-21T19:30:00Z/as-mounted/…        the guest's own tree, if it is asked for
//	MACHINE/latest/…                                 the same for the newest point
//
// A volume for which there is no reader is a file volumes/DISK-N.raw instead, and
// STATUS says what it holds. latest is a directory and not a symbolic link, so that
// cp -a and find take it by its name.
//
// All disks of a point are looked at together, as LVM groups and md arrays may span them
// (blockdev/volume). A volume that is known by its name and cannot be read, since a part
// of it is missing for instance, is a directory whose use gives an I/O error; STATUS
// says why. LUKS volumes are opened with [Options.Keys]; the key is kept for the other
// points of the machine, and never leaves this process.
//
// With [Options.AsMounted] there is the tree that the guest saw, too: its /etc/fstab says
// what was mounted where (blockdev/filesystem/namespace), its /etc/crypttab which encrypted
// volume has which name, and the kernel's names of disks follow the machine's order. A line
// that names no volume, or several, is in STATUS. Where the roots of several guests are
// found, each has a tree, as-mounted-VOLUME.
//
// # Life of a disk
//
// Nothing is opened until somebody looks inside. A disk is opened through the source
// at its first use, opened again when its connection breaks (the point is the same
// for ever, so nothing changes for who reads it), and closed when it was idle for a
// while; [Tree.Run] does that. While it is open the daemon keeps its point.
//
// # Bounds
//
// The extents of a disk are kept as at most a million ranges, problems as fifty lines
// per disk, and all disks together share one cache of blocks for the small reads that
// file systems make.
//
// Concurrency: everything may be used from any number of goroutines. Lock order:
// pointVolumes.treesMu, pointVolumes.findMu, then Keyring.mu, then Tree.mu, then disk.mu and pointVolumes.mu.
package filerestore
