// Package exfat reads exFAT file systems, revision 1.
//
//	volume (a partition) → exfat.FS (a filesystem.FS) → FUSE, download, tests
//
//	fs, err := exfat.Open(volume, size)
//	ino, err := fs.Lookup(fs.Root(), []byte("DCIM"))
//
// # What is shown
//
// What Linux shows by default (umask 0022, owner root); FORMAT.md has the tables.
//
//   - Names: UTF-16 as UTF-8, lone surrogates as WTF-8 (package wtf8). [FS.Lookup] finds
//     exact bytes: case is not folded.
//   - Permissions: 0755; without write permission for a read-only file.
//   - Times with 10 ms (accesses: 2 s), by their zone; without one they are taken as UTC.
//     The root has none: 1970.
//   - Inode numbers: the place of a file's first entry in the volume, in units of 32
//     bytes, so they are the same at each mount. The root's is 1.
//   - The size is the data length. What lies behind the valid data length is zeros, as
//     Windows and Linux since 6.8 show it; older kernels show the valid data only.
//   - No file has holes: a file is data up to its size.
//   - The format does not know a directory's parent: [FS.Parent] knows it of what was
//     listed or looked up.
//
// # A damaged or hostile image
//
// All checksums are verified: of the boot region (its copy is used when it is damaged, and
// State says so), of the up-case table, of the entries of each file. The first cluster of
// a file must be marked in the allocation bitmap, unless the volume was not unmounted. A
// chain that ends early or is cyclic is [filesystem.ErrCorrupt]. An entry of a critical
// type that is not known makes its directory [filesystem.ErrUnsupported], and so does a
// size of more than 48 MiB.
//
// A volume that was not unmounted is shown as it is and labelled in State: exFAT has no
// journal. TexFAT's second FAT and bitmap are used when they are the active ones.
//
// # Goroutines
//
// All methods may be called from any number of goroutines. FS.mu guards the parents; it is
// not held over I/O.
package exfat
