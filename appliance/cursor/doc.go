// Package cursor tells what changed on a live disk since a recovery point, and keeps
// named places in a disk's history for those who want to know again and again.
//
//	tracker (live map) ─┐
//	points (change sets,├→ Since → api (disk map), dirtybitmap (NBD contexts)
//	trees)  ────────────┘
//
// A [Cursor] is a consumer's own place: "I have everything up to this point". It names a
// point and pins it, so that the point is not purged. Any number of consumers of a disk
// have one each; none disturbs another, nor the backups.
//
// # What changed
//
// [Set.Since] joins two lists: what differs between the point and the base of the disk's
// map, from the change sets of the points between (to the grain, where they are kept;
// else in blocks, from the trees), and what the map lists since its base. It may list too
// much and never too little. In doubt, after a power cut, it is what the next backup has
// to compare; when nothing is known it is the whole disk.
//
// Map and base are read together: if a backup commits in between, they are read again.
//
// # Durability
//
// Cursors live in the catalog. The Set exists before the catalog is open; until
// [Set.Attach] its methods are ErrUnavailable. A cursor that is lost with the catalog
// makes its consumer begin with a full copy. Set.mu is held over the catalog's write.
package cursor
