// Package snapshot cuts sets of disks: it hands out the slots in which a backup
// works, freezes all disks of a slot at one instant and holds what was frozen until
// the backup has committed it or given it up.
//
// # Place in the data path
//
//	Tracker (package cbt) → Cut → one Snapshot per disk → ingest
//
// A disk has one slot. A backup acquires the slots of all disks of its machine or
// group, all of them or none, and holds them until it is done:
//
//	slots, err := coordinator.Acquire(ctx, disks)
//	defer slots.Release()
//	cut, err := slots.Cut(ctx)               // the instant; writers do not notice
//	for _, s := range cut.Disks {
//		s.Capture(ctx, ingest)               // the changed grains, as they were
//	}
//	cut.Prepare(points)                      // before the vault's commit
//	cut.Commit()                             // after it
//
// A first backup, and one that compares, calls [Slots.Baseline] first, reads the live
// disks, and then cuts: otherwise every grain of the disk would have to be preserved
// for as long as the read takes.
//
// # What a failure does
//
// A cut either commits or aborts, on all its disks. An abort lists the changes again
// for the next cut. A full spill, a failing disk, a lost vault abort the cut; the
// guest's writes go on in every case. A cut that aborts by itself says so in
// [Cut.Err] and by ErrAborted from [Snapshot.Capture]; its owner still calls
// [Cut.Abort], which does the work.
//
// Nothing here is durable; package cbt keeps the list of changes across a kill.
//
// # Locks
//
// Coordinator.mu, Slots.mu and Cut.mu are never held together with one another, nor
// over a call that waits for I/O, with one exception: Cut.mu is held over commit and
// abort, which happen once.
package snapshot
