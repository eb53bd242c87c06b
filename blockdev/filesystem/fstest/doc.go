// Package fstest holds readers of guest file systems against a judge: the kernel.
//
// An image is made by the real mkfs ([Image]), mounted through a loop device
// ([Mount]), filled ([Populate]) and unmounted. Then it is mounted read-only, and
// [Conform] requires that the reader shows what the kernel shows: every name,
// attribute, link, extended attribute and byte, in any order of reading.
//
//	path := fstest.Image(t, 256<<20, "mkfs.ext4", "-q", "-F")
//	dir, unmount := fstest.Mount(t, path, fstest.MountOptions{Type: "ext4"})
//	fstest.Populate(t, dir, fstest.Content{})
//	unmount()
//	dir, _ = fstest.Mount(t, path, fstest.MountOptions{Type: "ext4", ReadOnly: true})
//	fstest.Conform(t, dir, reader, fstest.Plan{})
//
// The parts can be used apart: a [Manifest] is made from a directory tree of any
// kind ([FromDir], for instance below a FUSE mount) or from a reader ([FromFS]), and
// two of them are compared by [Diff].
//
// Mounting needs root and a kernel that knows the file system; the helpers skip the
// test with the reason where they lack something.
package fstest
