// Package fusemount serves a tree of recovery points through FUSE, read-only. It is
// the one package that imports go-fuse.
//
//	filerestore (the tree: machines, points, disks, volumes) → fusemount → kernel
//
// The caller gives a tree of an [Entry] each: a [Directory], a [Text] (the STATUS
// file), an [Image] (a raw disk) or a [Volume] (a guest's file system). [Start]
// mounts it.
//
// # Rules
//
// Inode numbers. One FUSE mount has one device number, so each volume gets an index,
// and inode i of volume v is (v << 40) | i: hard links keep one number within their
// volume, and no two files of different volumes share one. Nothing has to be
// remembered per guest file, so a mount of millions of files needs no memory for
// them. A directory that can be reached by two paths (TIME and latest) carries a
// view bit in its number, because the kernel wants one parent for a directory; files
// have the same number in both, and share the page cache.
//
// Errors. What cannot be read is EIO, never zeros and never a short read before the
// end of the file (the kernel would fill that with zeros). Errors become errno in
// errno.go and nowhere else; what ends as EIO is reported to the volume, whose owner
// shows it in STATUS.
//
// Bounds. A reader of guest file systems works on hostile images: each operation has
// a deadline, a panic ends that volume and nothing else, and a volume whose reader
// hangs is answered with EIO at once until it comes back.
//
// Caching. Points do not change, so names, attributes, pages and directories of
// guests are cached by the kernel for as long as it has room. A moving name (latest) is
// asked for at every lookup. A file that was read is read again from the page cache, as
// fast as from any file system.
//
// The cost of a first read is copies: from the pack to the daemon's buffer, into and out
// of the socket, by FUSE into the page cache, to the reader; and the digest of every
// block. A file of 192 MiB took 0.23 CPU seconds of the daemon, 0.11 of this process and
// 0.06 of cat (two cores, 2026-11-22), where a loop mount of the raw image has two copies
// and nothing else: 0.36 of its speed with all in memory, 0.74 from the disk (make
// bench-mount, on a loaded machine). In this process four tenths of the time go to
// write(2) on /dev/fuse, a fifth to copying from the socket. More read-ahead of the
// kernel than 1 MiB, and more of GOMAXPROCS, changed nothing: all cores are busy.
//
// Concurrency: everything given to this package is called from any number of
// goroutines.
package fusemount
