// Package ntfs reads NTFS file systems, versions 3.0 and 3.1 (Windows 2000 and later).
//
//	volume (a partition) → ntfs.FS (a filesystem.FS) → FUSE, download, tests
//
//	fs, err := ntfs.Open(volume, size)
//	ino, err := fs.Lookup(fs.Root(), []byte("Users"))
//
// # What is shown
//
// What ntfs-3g shows by default to root; FORMAT.md has the tables.
//
//   - Names: UTF-16 as UTF-8, lone surrogates as WTF-8 (package wtf8). Each hard link is
//     listed under each of its names; DOS names beside longer ones are hidden, and so are
//     the format's own files ($MFT and so on). [FS.Lookup] finds exact bytes: case is not
//     folded.
//   - Inode numbers are those of the MFT records; the root's is 5.
//   - Permissions: 0777, owner and group 0: access lists of Windows are not translated.
//     Directories have one link. Times have 100 ns.
//   - Symbolic links and junctions are links; [FS.Readlink] gives the text that Windows
//     shows: relative ones with '/', absolute ones as they are (C:\Users), which lead
//     nowhere on Linux. Links, devices, fifos and sockets of WSL and Interix are what they
//     are there.
//   - An alternate data stream NAME is the extended attribute user.NAME, of directories,
//     too; one over 64 KiB is listed, but cannot be read as an attribute.
//   - Compressed files (LZNT1) are unpacked; sparse ones have their holes; what lies behind
//     the initialized size is zeros.
//
// What cannot be read is [filesystem.ErrUnsupported] with the reason: files encrypted by
// EFS; compressed by CompactOS (WOF); deduplicated; whose contents are in the cloud; with
// another reparse tag that is not known. Their names and attributes can be seen.
//
// # State
//
// The log ($LogFile) is not replayed. Whether it would have to be is read from its restart
// pages; that, a Windows that is hibernated or was shut down with fast start-up
// (hiberfil.sys), and the volume's flag for chkdsk are told in State.
//
// # A damaged or hostile image
//
// MFT records and index blocks are protected by their update sequences, which are checked:
// one that was written in part is [filesystem.ErrCorrupt]. The first four records are
// taken from their mirror when they are damaged. An entry whose file reference has another
// sequence number than the record leads to [filesystem.ErrCorrupt] and not to the file that
// took its place. Runs, lengths and the depth of an index are bounded by the volume.
//
// # Why no library
//
// go-ntfs v0.2.1 (www.velocidex.com/golang/go-ntfs) was tried for MFT, runs and plain
// streams. Its accessors turn an error of reading into the number 0, and reads over the end
// of the image into zeros, so a failing or cut disk would be shown as other contents; it
// reads field by field. Parsing here is about as much code as holding it in check.
//
// # Goroutines
//
// All methods may be called from any number of goroutines. The lock is that of package
// pagecache.
package ntfs
