// Package hostdev attaches an export to an nbd device of the host's own kernel: the
// disk appears as /dev/nbdN and can be partitioned, mounted, or given to a hypervisor
// that knows only block devices.
//
//	file system → /dev/nbdN → kernel → socketpair → nbd/server → Device
//
// Everything happens in the process that serves: an [Attachment] makes socketpairs, has
// one end of each served, negotiates on the other and hands that to the kernel by generic
// netlink (linux/nbd-netlink.h, family "nbd"). The kernel gets the export's true size
// and transmission flags; without FLUSH it would take the disk for write-through and no
// fsync would reach us.
//
// # When the process dies
//
// The kernel keeps the device. Requests wait for new connections up to
// [Options.DeadTimeout]; an Attachment of a later process with the same
// [Options.Backend], which the kernel has kept as well, hands it fresh sockets.
// Requests that were under way are sent again [Options.Timeout] after they were first
// sent, the others at once. Nothing above the device sees an error. A process that stops
// in order answers first what the kernel has sent (Server.ServeConn), so that mostly
// nothing is under way.
//
// A connection that ends while the process lives is replaced by [Attachment.Run].
//
// # Traps
//
// The kernel answers RECONFIGURE with success even when no socket of it was dead and the
// new one was dropped. That shows only by the dropped one's end of file, so each
// connection is watched, and one that ends at once is offered again.
//
// A request that takes longer than Options.Timeout is repeated on another connection
// while the first may still be under way. Timeout is therefore long compared with a
// slow disk, and must not be made short.
//
// The logical block size is always 512: partition tables count in it, and a disk must
// look the same here as in a virtual machine.
//
// A process that serves a disk of its own host may be asked to write while the kernel
// waits for it to free memory. [FlushIO] tells the kernel so.
package hostdev
