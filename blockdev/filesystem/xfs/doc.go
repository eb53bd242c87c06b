// Package xfs reads XFS file systems, version 4 and 5.
//
//	volume (a partition) → xfs.FS (a filesystem.FS) → FUSE, download, tests
//
// [Open] takes any io.ReaderAt and returns an [FS]; nothing is ever written. A log
// that waits for recovery is replayed in memory, so what is shown is what the kernel
// would show after it mounted the volume. Where that is not possible, what stands in
// its place is shown, and [filesystem.Info] says so and why in its State.
//
//	fs, err := xfs.Open(volume, size)
//	ino, err := fs.Lookup(fs.Root(), []byte("etc"))
//
// # What it reads
//
// Files whose map is in the inode or a tree, with 32-bit and 64-bit counts of
// extents (nrext64); shared (reflink), unwritten and preallocated extents; sparse
// inode chunks; directories inside the inode, of one block, with one block of hashes
// and with a tree of them, in directory blocks up to 64 KiB that may lie in pieces;
// links inside and outside the inode; attributes inside the inode, in blocks and
// trees, with values in blocks of their own; POSIX ACLs in the form in which the
// kernel shows them; times with and without bigtime.
//
// What cannot be read is [filesystem.ErrUnsupported] with the name of the feature:
// an unknown incompatible feature for the whole file system; the data of a file on
// a realtime device by itself. In case-insensitive file systems a name is found by
// its exact bytes only.
//
// # A damaged or hostile image
//
// In version 5 every metadata block has a CRC32c and says which sector, inode and
// file system it is for; all of it is verified when a block is read. Version 4 has
// magic numbers only. Every block number is checked against its allocation group,
// every length against its container, the levels of trees fall at each step. What
// does not fit is [filesystem.ErrCorrupt], never zeros. Each call reads a bounded
// number of blocks. Memory is a cache of [cacheBytes], what the log changes up to
// [maxOverlayBytes], and a few blocks for each call under way.
//
// Directories that contain themselves are not detected here: whoever walks a tree
// remembers the inodes on the way.
//
// # Goroutines
//
// All methods may be called from any number of goroutines. The only lock is the
// cache's; it is not held while a disk is read.
//
// FORMAT.md says what is read and where it is described.
package xfs
