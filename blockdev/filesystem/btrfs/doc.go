// Package btrfs reads btrfs file systems of one device.
//
//	volume (a partition) → btrfs.FS (a filesystem.FS) → FUSE, download, tests
//
// [Open] takes any io.ReaderAt and returns an [FS]; nothing is ever written. A log,
// which holds what was synced since the last commit, is replayed in memory, so what is
// shown is what the kernel would show after it mounted the volume. Where that is not
// possible, the last commit is shown, and [filesystem.Info] says so and why in its
// State. logtree.go tells how a replay goes.
//
//	fs, err := btrfs.Open(volume, size)
//	ino, err := fs.Lookup(fs.Root(), []byte("etc"))
//
// # What it reads
//
// Data and metadata that are single or DUP, mixed too, and of RAID1 what this device
// has; files inline, in extents, shared, preallocated and with holes, with and
// without the feature no-holes; compression by zlib, LZO and zstd; directories, hard
// links with both forms of references, attributes, ACLs, device nodes; times in
// nanoseconds.
//
// The tree that is shown is that of a mount without options: the default subvolume.
// Subvolumes and snapshots in it are crossed as the kernel crosses them; one that was
// deleted, or that is not in the snapshot of what held it, is an empty directory.
// When the default subvolume is another one than the top level, the name ".btrfs" in
// the root directory leads to the top level, from which all are reached; it is found
// but not listed.
//
// All subvolumes have one space of inode numbers here; subvolume.go says how.
//
// What cannot be read is [filesystem.ErrUnsupported] with the name of the feature: an
// unknown incompatible feature, RAID5 and 6, zones, and what lies on other devices
// (RAID0, RAID10 and single data of several).
//
// # A damaged or hostile image
//
// Every node and every sector of data has a checksum (CRC32c, xxHash64, SHA-256 or
// BLAKE2b), data of files without copy on write apart; all of it is verified when it
// is read, and where there is a second copy that is good, it is used. A node must be
// of the level, the generation, the tree and the keys that the pointer to it says, so
// that no walk can meet one twice; lengths are checked against what holds them. What
// does not fit is [filesystem.ErrCorrupt], never zeros. Memory is a cache of
// [cacheBytes] and [dataBytes], the list of chunks, what the log changes up to
// [maxChangedBytes], and a few nodes for each call under way.
//
// # Goroutines
//
// All methods may be called from any number of goroutines. The locks are those of the
// caches and of a small table; none is held while a disk is read.
//
// FORMAT.md says what is read and where it is described.
package btrfs
