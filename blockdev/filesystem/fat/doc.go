// Package fat reads FAT12, FAT16 and FAT32 file systems (vfat).
//
//	volume (a partition) → fat.FS (a filesystem.FS) → FUSE, download, tests
//
//	fs, err := fat.Open(volume, size)
//	ino, err := fs.Lookup(fs.Root(), []byte("EFI"))
//
// # What is shown
//
// What Linux shows by default (options shortname=mixed, utf8, codepage=437,
// umask=0022, owner root), FORMAT.md has the tables:
//
//   - Names: the long one, UTF-16 as UTF-8; a surrogate without its partner stays as
//     WTF-8 (package wtf8), so nothing is lost, where the kernel drops it. Without a
//     long name, or with one whose checksum does not fit or that holds a '/', the 8.3
//     name in code page 437, its parts lower-case where the flags of Windows NT say so.
//     [FS.Lookup] finds exact bytes; case is not folded, and 8.3 aliases of long
//     names are not found.
//   - Permissions: 0755 for all; without write permission for a read-only file.
//   - Times are local times of an unknown zone and are shown as UTC. The root has none:
//     1970.
//   - Inode numbers: the place of the directory entry in the volume, in units of 32
//     bytes, so they are the same at each mount. The root's is 1.
//   - No file has holes: a file is data up to its size.
//
// # A damaged or hostile image
//
// The format has checksums only for long names. So everything else is held against
// each other: cluster numbers against the volume, a chain's length against the file's
// size, and the copies of the FAT. A chain that ends early, is cyclic, or meets a free
// or bad cluster is [filesystem.ErrCorrupt], never zeros. Directories have at most
// 2 MiB, as the format says.
//
// Where the two copies of the FAT differ, State says so, and each chain is taken from
// the copy by which it is whole, the first one first, as the kernel takes it. A FAT of
// up to 1 MiB is compared when the volume is opened, a larger one as far as it is read.
//
// A volume that was not unmounted (the dirty bits of the boot sector and of the FAT's
// second entry) is shown as it is and labelled in State: FAT has no journal.
//
// # Goroutines
//
// All methods may be called from any number of goroutines. The lock is that of
// package pagecache.
package fat
