// Package ingest turns the changed grains of a disk into blocks and a hash tree: the
// writing half of a backup.
//
// # Place in the data path
//
//	snapshot, or the live disk → Pass → blocks and nodes in a dedupe.Batch → hashtree.Root
//
// A [Pass] takes ascending ranges of one disk, as they come from a capture, and puts
// them over a base tree. Ranges that it is not given keep the base's subtrees as they
// are, so that time and memory follow what changed and not the size of the disk:
//
//	p, err := ingest.NewPass(store, batch, base, sizeBytes, ingest.Options{})
//	defer p.Abort()
//	err = p.Write(ctx, off, data) // whole grains
//	err = p.Zero(ctx, off, n)     // a hole, of any size
//	root, stats, err := p.Finish(ctx)
//
// The root may be the base of another pass of the same batch; a first backup reads
// the live disk so, and then what was written meanwhile.
//
// # Pipeline
//
// Blocks go through zero test, digest, lookup, compression and append on all cores
// at once (the last four are Batch.PutBlock), and their digests enter the tree in
// order at the end. At most a few blocks per core are under way; Write waits when
// they are. Results do not depend on the number of cores.
//
// # Patches
//
// A block that is much like the base's is put as a patch over it where the Batch makes
// patches, so that scattered changes cost about their own bytes and not a block each.
// The comparison is the Batch's; here it is only known which block was there before.
// It matters for a block of which some grains are given, and for a full compare
// ([Options.Trim]); a block that is given in full otherwise is put as it is. Where the
// Batch knows the digests of the base's grains (dedupe.GrainPatches) those decide, and the
// base's content is read only for a block that becomes no patch.
//
// # Rules
//
// Of a block of which only some grains are given, the others come from the base
// tree, never from the disk, where they may have changed since the freeze. If the
// base's block cannot be read the pass fails with a [*BaseError] that says what to
// read from the disk instead; there is no guess.
//
// A Pass has one owner; it is not safe for concurrent use. Its goroutines end with
// Finish or Abort.
package ingest
