// Package dirtybitmap serves lists of changes as qemu:dirty-bitmap metadata contexts of
// NBD exports.
//
//	cursor (a live disk since a point), readers (a point since a point) → Bitmap → nbd/server
//
// A [Bitmap] is fixed when it is made: flag 1 says that a range changed, or may have, up to
// that moment. What is written later is not in it. A range that it knows nothing of counts
// as changed.
package dirtybitmap
