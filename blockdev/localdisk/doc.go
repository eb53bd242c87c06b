// Package localdisk opens raw image files and host block devices as Devices.
//
// It is the bottom of a live disk:
//
//	guest → nbd/server → cbt → localdisk → page cache → file or block device
//
// [Create] makes a sparse file, [Open] returns a [Disk], which is a
// blockdev.Device with every optional ability: Trimmer, Zeroer, ExtentLister,
// NowaitReader, FileBacked and Resizer.
//
//	if err := localdisk.Create(path, 8<<30); err != nil { … }
//	d, err := localdisk.Open(path, localdisk.Options{})
//
// A disk that is larger than a file may be on its file system (ext4 ends at 16 TiB)
// is a folder of files of 2 TiB, one after the other; FileBacked and Resizer are then
// missing.
//
// # Durability
//
// Reads and writes go through the page cache. Flush calls fdatasync directly:
// the kernel merges concurrent calls, and a group commit of our own measured
// 0.48–1.15 of its speed. A write that returned survives the death of the
// process; a write that was flushed survives a power cut.
//
// Linux reports a failed write-back once and then calls the pages clean. So the
// first failure of Flush is kept, and every later Flush of this Disk fails with
// it: a success would promise data that is gone.
//
// # Space
//
// Files stay sparse. Trim punches holes; WriteZeroes punches them too, or keeps
// the range allocated where it must. With Options.ReserveBytes a Disk refuses
// writes that need new space before the file system is full to the last byte, so
// that the vault, the catalog and the spill beside it can still work; writes to
// space that the file owns already go on.
//
// # Locking
//
// Disk.mu is held shared for the length of every request and exclusively by
// Close and by the moment of Resize, so that no request ever uses a descriptor number
// that the kernel has given to another file, or writes past an end that moved. It
// orders nothing else. Do not call a Disk from the function given to Extents.
//
// The file carries an flock(2): exclusive for writers, shared for readers. A
// block device is also opened with O_EXCL, which refuses mounted ones.
package localdisk
