// Package packdir keeps the pack files of a vault in one to three folders, its
// locations, which should be on different disks. FORMAT.md beside this file has the
// bytes of the record that stands in each of them.
//
//	blockstore → Set.Create → File (written and synced at every location)
//	blockstore → Set.OpenRead, Set.Copies, Set.Replace, Set.Remove
//
// # One write, all copies
//
// A [File] is a pack.File whose operations happen at every location at once, and have
// happened when all are done. What Sync acknowledges is durable at every location that
// is in.
//
// # In and out
//
// A location where an operation fails, while it succeeds at another one, is out: that
// is durable in the list of locations before the operation returns, and from then on
// nothing is written there. When an operation fails everywhere, it has failed, and
// nothing is known about a location. So at least one is always in.
//
// A full location is out like one that fails: a backup with two copies and an alarm is
// better than none, and with space the location is repaired by itself. The first
// location is different. Index and state are in its folder, so that it being full, or
// gone, stops the vault, and another one becomes the first by a rebuild of the index.
//
// The list stands in every location that is in, with a serial. The newest list that can
// be read is the true one; a location whose own list is older missed something and is
// out. A folder with the list of another vault is refused by name, and so is one where
// nothing is mounted any more.
//
// # Coming back
//
// BeginRepair prepares a location that is out; its user makes each pack there equal to
// a whole copy ([Set.Replace]). Join then gives every pack that is being written a copy
// there, and new packs too; what was sealed meanwhile is compared once more, and
// Complete makes the location in. A kill anywhere before leaves it out.
//
// # Locks
//
// File.mu before Set.mu. Set.mu is held while the list of locations is written: whoever
// acknowledges a write without a location waits until the list says so. Set.copying is
// held while one pack is copied, and by Remove.
package packdir
