// Package backup makes a recovery point of a machine, or of each machine of a group,
// while their guests run.
//
//	disks.Registry → trackers → snapshot.Slots → Cut → ingest.Pass → Manifest → vault
//
// [Engine.Start] returns a job at once. What it does:
//
//  1. takes the slots of all disks of all machines, or waits for them;
//  2. decides for each disk ([plan]): with a trusted map and its base in the vault
//     only the changes are read; in doubt the whole disk is read and compared with
//     the base's tree, or the newest point's; with neither it is read in full;
//  3. disks that are read whole are read before the freeze, so that almost nothing is
//     left to preserve: a baseline empties their map, the live disk goes into
//     an unpublished tree, and what was torn by a guest's write is listed since;
//  4. cuts all disks at one instant and captures what the maps list into the trees,
//     disks in parallel;
//  5. encodes a manifest for each machine, with the same cut id, notes their ids in the
//     maps (Prepare), publishes them in the vault, all or none, and only then retires
//     the frozen maps (Commit).
//
// # When something fails
//
// Any error before the publication aborts the cut: the changes are listed again, no
// point appears, the guest noticed nothing. A group has no half: what one machine
// cannot do ends the cut of all. A base whose blocks do not verify, or
// that was purged, is never a failure: the disk is compared, or read in full,
// at once. A kill between publication and retirement leaves base and candidate
// in the map: the next backup takes the candidate if the vault holds it.
//
// # Joining
//
// A point answers a request only if its cut came after it. So a request joins the
// job of the same object and wish that has not frozen yet, else it becomes a job of
// its own that waits for the slots. The jobs of a machine and of its group wait for each
// other: slots are taken all or none, in the order in which they were asked for.
package backup
