// Package disks keeps the live disks of an appliance and serves them on NBD.
//
//	guest → nbd/server → cbt.Tracker → localdisk      (this package joins them)
//	backup → Disk.Tracker → snapshot                  (and hands them to the backup)
//
// A [Registry] owns the list of disks, their trackers, and the names on nbd.sock:
// a disk and a named export of a point can never have the same one.
//
// # Disks come first
//
// The list is a plain checksummed file (package statefile has its format), so disks
// are opened and served before any database is, and when none can be. A disk that
// cannot be opened is listed as offline with the reason and takes no other down. On a
// file system that is full to the last byte, where not even the tracker's note can be
// written, a disk is served untracked: its guest goes on, it cannot be backed up, and
// after the next start its map is in doubt.
//
// # Making and deleting
//
// The list is the commit point. A new disk is built as NAME.raw.partial, entered
// in the list, then renamed; a disk is deleted by renaming it, taking it off the
// list, then removing the file. A start finishes or forgets what a kill left: an
// entry is made good, a file without an entry is removed. So a restore that is killed
// half-way leaves no half disk.
//
// # Devices of the host
//
// A disk can be attached to an nbd device of the host's kernel (package hostdev). The
// list remembers it: while the daemon is away the kernel keeps the device and its
// requests wait, and KeepAttached takes it over at the next start.
//
// # Locks
//
// Registry.change is held over a whole mutation, I/O included: disks come and go
// one at a time. Registry.mu guards the tables and is never held over I/O. change
// is taken before mu.
package disks
