// Package guestfiles gets files out of recovery points without a mount: it finds,
// lists, copies, archives and compares them, in the caller's own process and with the
// caller's rights.
//
//	filerestore (the tree of points) → guestfiles → folders and archives of the caller
//
// A [Tree] stands on the tree that a mount shows. [Tree.Find] resolves a path below a
// point to a [Node], which is a file of a guest or one of the tree's own (a raw disk,
// STATUS). [Copy] writes nodes below a folder, [Archive] and [Zip] write them as an archive,
// [Compare] tells how two nodes differ, and [Versions] follows one path through points.
//
//	tree := guestfiles.New(filerestore.New(source, filerestore.Options{}), guestfiles.Options{})
//	node, err := tree.Find(ctx, guestfiles.Point{Machine: "web", ID: id}, "web0-1/etc/hostname")
//
// # Rules
//
// What is read is hostile. Each operation on a guest's file system runs in a goroutine
// of its own with a deadline, and a panic there ends that volume and nothing else. A
// directory is entered once; one that is met again is damage.
//
// Names are bytes, never cleaned. A name that is no name ("..", with a slash) is
// reported and not used. Symbolic links within a path are resolved inside their volume,
// whose root is the root of absolute targets, and never anywhere else.
//
// Nothing is written outside of the target folder: each file is made relative to an
// open folder, by a name without slashes, and no symbolic link is followed below the
// target, whoever put it there. A file gets its name when it is whole.
//
// One file that cannot be read or written is reported and does not keep the others
// from being copied.
//
// Concurrency: a Tree may be used from any number of goroutines.
package guestfiles
