// Package ext reads ext2, ext3 and ext4 file systems.
//
//	volume (a partition) → ext.FS (a filesystem.FS) → FUSE, download, tests
//
// [Open] takes any io.ReaderAt and returns an [FS]; nothing is ever written. A
// journal that waits for its replay is replayed in memory, so what is shown is what
// the kernel shows after a mount; [filesystem.Info] says so in its State.
//
//	fs, err := ext.Open(volume, size)
//	ino, err := fs.Lookup(fs.Root(), []byte("etc"))
//
// # What it reads
//
// Extents and indirect block maps; inline data, also continued in an attribute;
// bigalloc, meta_bg, 64bit, flex_bg, sparse_super2; hashed directories of all hash
// versions, three levels deep (large_dir); attributes in the inode, in a block and
// in inodes of their own (ea_inode); POSIX ACLs in the form in which the kernel
// shows them; times from 1901 to 2446 with nanoseconds.
//
// What cannot be read is [filesystem.ErrUnsupported] with the name of the feature:
// an unknown incompatible feature for the whole file system; an encrypted file or
// directory by itself (its attributes can be read). In case-insensitive
// directories a name is found by its exact bytes only. The data of fs-verity
// files is read, but not checked against its hash tree.
//
// # The journal
//
// The log is judged as the kernel does: it ends at an interrupted commit, and where
// the kernel refuses a damaged one, so does Open. The replay copies nothing: it is a
// sorted list, block of the volume to block of the journal ([overlay], 16 bytes for
// each), under everything else. Fast commits change inodes, maps and directories in
// memory ([fastCommits]); where that cannot be done exactly, the state is that of the
// last full commit and is labelled. FORMAT.md has the rules, what is done about orphans,
// and where a fast commit shows otherwise than after the kernel's replay.
//
//	superblock → journal.go (where it is) → recovery.go (scan, revoke, verify)
//	           → overlay.go (the volume after it) → fastcommit.go, fcreplay.go → FS
//
// # A damaged or hostile image
//
// Every checksum that the format has is verified when a structure is read: of the
// superblock, group descriptors, inodes, directory blocks, hash-tree nodes, extent
// blocks, attribute blocks and attribute inodes (metadata_csum, or crc16 of group
// descriptors with uninit_bg). Every block number is checked against the file
// system, every length against its container, the depth of trees against the
// format. What does not fit is [filesystem.ErrCorrupt], never zeros. Each call
// reads a bounded number of blocks. Memory is a cache of [cacheBytes] and a few
// blocks for each call under way, and what a replay noted.
//
// Directories that contain themselves are not detected here: whoever walks a tree
// remembers the inodes on the way.
//
// # Goroutines
//
// All methods may be called from any number of goroutines. The only lock is the
// cache's; it is not held while a disk is read.
//
// The format is that of the kernel's Documentation/filesystems/ext4 and
// fs/ext4/ext4.h (Linux 6.12); where they say nothing, the kernel's code is
// followed, and the function is named in a comment.
package ext
