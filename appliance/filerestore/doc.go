// Package filerestore shows recovery points as a tree of files: raw disks, and the
// files of the guests' volumes.
//
//	Source (points of the daemon) → disk → volume → file system → tree → fusemount
//
// A [Tree] is a [fusemount.Directory]:
//
//	MACHINE/2026-11-21T19:30:00Z/DISK.raw            the disk, sparse
//	MACHINE/2026-11-21T19:30:00Z/volumes/DISK-N/…    the files of partition N, 0 for a whole disk
//	MACHINE/2026-11-21T19:30:00Z/STATUS              what could not be read, and why
//	MACHINE/latest/…                                 the same for the newest point
//
// A volume for which there is no reader is a file volumes/DISK-N.raw instead, and
// STATUS says what it holds. latest is a directory and not a symbolic link, so that
// cp -a and find take it by its name.
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
// Tree.mu, then disk.mu.
package filerestore
