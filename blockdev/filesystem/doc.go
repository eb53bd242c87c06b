// Package filesystem is the read-only, inode-addressed interface to guest file
// systems, through which FUSE, downloads and tests share one reader.
//
//	recovery point (a Device) → volume (a partition) → filesystem/ext → FUSE
//
// Guest images are never mounted by the host's kernel: a hostile image would be an
// attack on the host. Readers are ours, in Go, over io.ReaderAt, and each lives in
// a package below this one. They bound every length by the image, check every
// checksum the format has, and return an error where they cannot be sure.
package filesystem
