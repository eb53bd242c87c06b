// Package restore brings a disk of a recovery point back as a live disk.
//
//	vault → recoverypoint.Device → localdisk file → disks.Registry
//
// [Engine.Start] checks everything that can be checked before a byte is written: the
// point, the disk, the new name, and the space, with the number. The copy runs in
// parallel over the extents of the point's tree. Holes stay holes, and so do grains
// of zeros.
//
// # Why the result is right
//
// Each block is verified against its digest when it is read from the vault, and each
// piece is read back from the new file and compared with what was verified; the tree
// names every block of the disk. So the new disk has the root of the point by
// construction, and its change map begins empty with the point as base: its first
// backup reads only what its guest changed.
//
// A worker decodes, writes and reads back a MiB at a time, all on its own thread
// (recoverypoint.Device.Copying), which stands behind those that serve guests
// (job.Background). It took 4.2 s and 7.6 s of processor time for 1.5 GB before, 3.6 s
// and 6.6 s so, on two cores (2026-11-22).
//
// [Engine.ToFile] writes to a file that a client has handed over instead, without reading it
// back: whoever opened it syncs it, and removes it after an error.
//
// A block that does not verify fails the restore with its place. The disk appears
// only when it is complete and durable; a failure or a kill leaves nothing.
package restore
