// Package namespace joins the file systems of a guest to the one tree that it saw: the
// mounts of its own /etc/fstab, put together as its kernel did.
//
//	readers of file systems → namespace → mount, files
//
// [Parse] reads an fstab, [Order] puts its lines into the order in which they can be
// mounted, and a [Namespace] is a [filesystem.FS] that changes from one file system to
// the other at the mount points:
//
//	ns := namespace.New(openRoot, 0)
//	err := ns.Mount("/home", openHome, nil)
//	err = ns.Bind("/srv/www", "/home/www", false)
//
// Which volume a line means is not known here: who knows the machine's disks resolves
// UUID=, LABEL= and names of devices (appliance/filerestore).
//
// # Rules
//
// What is read is hostile. The paths of an fstab are walked inside of the namespace, as
// after chroot(2): an absolute symbolic link begins at its root, ".." stops there, and
// nothing of the host is ever looked at. The number of mounts, links and lines is bounded.
//
// A file system that cannot be opened is mounted all the same, and each use of it is its
// error: what lies below the mount point on the other one is not what the guest saw.
//
// Concurrency: mounts are made first, by one goroutine. Then everything may be used from
// any number of goroutines.
package namespace
