// Package machine keeps the protected machines: which disks make a machine, and
// what else a point of it must hold.
//
// A [Set] stands on a collection of the catalog and tells package disks which
// machine has which disk, so that a disk belongs to one machine and is not deleted
// under it. The Set exists before the catalog is open; until [Set.Attach] its
// methods are ErrUnavailable.
//
// Deleting a machine deletes none of its points. A machine that is made again with a
// name that has points goes on with their ids, so its history is one.
//
// Set.mu is held over the catalog's write: machines change one at a time.
package machine
