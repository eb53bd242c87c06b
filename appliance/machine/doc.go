// Package machine keeps the protected machines: which disks make a machine, what
// else a point of it must hold, and which machines are a group, cut at one instant.
//
// A [Set] stands on two collections of the catalog and tells package disks which
// machine has which disk, so that a disk belongs to one machine and is not deleted
// under it. The Set exists before the catalog is open; until [Set.Attach] its
// methods are ErrUnavailable.
//
// Deleting a machine deletes none of its points. A machine that is made again with a
// name that has points goes on with their ids, so its history is one. A machine is in
// at most one [Group] and is not deleted while it is in one; machines and groups share
// one space of names, since both are what a backup is asked for.
//
// Set.mu is held over the catalog's write: machines and groups change one at a
// time.
package machine
