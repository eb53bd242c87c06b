// Package readers hands points out as read-only NBD exports.
//
//	recoverypoint.Device → points.sock   one reader, under a one-time name
//	recoverypoint.Device → nbd.sock      a named export, until it is taken back
//
// A reader ([Set.Open]) is what mount and file recovery use: a random name on
// points.sock that only the user who asked may open (SO_PEERCRED), so whoever may read
// a point can not write a live disk. It ends by [Set.Close], or when no
// connection has used it for its time to live. A named export ([Set.Export]) is for
// qemu-img and the like. Both pin the point and last no longer than the daemon.
//
// Set.mu is not held over I/O.
package readers
