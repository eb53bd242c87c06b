// Package collection frees what no recovery point needs any more: mark and sweep over a
// vault that is in use.
//
//	appliance, job Collect → Run → blockstore.Collection → index entries, packs
//	rebuild-index → Run with IndexOnly → what aborted backups left leaves the index
//
// There are no reference counts. A mark goes from the points down their trees; what it
// does not reach goes. Nobody is locked out meanwhile, so this is about what others do
// between the mark and the sweep.
//
// # What is needed
//
// Needed is what a root reaches: a point that is not purged, a soft-deleted one
// included, or a purged one that somebody has pinned; its manifest, its notes, its
// trees, its definition and change sets. The list of points is read after the collection
// has begun. A point that appears later consists of what the following rules keep. One
// that is purged later goes the next time.
//
// Needed is, too, what an open batch was told it need not store. This is the hard
// part: a backup puts a block, hears "held", and will name it in a node, and the node in
// a point, hours later; at this moment nothing reaches the block.
//
//   - Packs that an open batch has written to when the collection begins, and all that
//     are begun later, are left alone. So what a batch stores itself is safe.
//   - All that a batch was told to be held is in its window, from its first put on, and
//     all that it stores: two batches may store the same block, and the index names only
//     the record of the one that came last, which may be purged before the other commits.
//     A collection that begins while a batch is open keeps its window.
//   - From the beginning of a collection to its end each answer "held" is a claim: what
//     is claimed is live. A claimed node is followed down to its blocks.
//   - Of a tree that a batch takes over from an earlier point it puts nothing. That point
//     must stay, so who ingests over a point pins it first (vault.Vault.Pin).
//
// The answer and the claim happen under the store's gate, held for reading; the sweep
// holds it for writing while it chooses a few thousand entries. So each entry is either
// claimed before, and stays, or chosen before: then it is not held from that moment on,
// though it is still in the index, and the batch stores its block again, elsewhere. The
// removal is conditional: only an entry that still names the old record goes.
//
// Windows, claims and the mark of blocks are Bloom filters over digests, two bytes for a
// block. A filter errs on one side: what it keeps by mistake, a quarter of a percent at
// worst, goes the next time, since each filter has its own salt. Keyed by digest and
// not by pack and record, the mark needs no lookup for a block, which is ten times as
// fast, and nobody cares when a record moves between mark and sweep. Nodes are kept
// exactly: a node wrongly taken for marked would not be gone through, and what is below
// it would go.
//
// # Top-down
//
// Nodes go before blocks, and parents before children, each level durably before the
// next. So at every instant, and after a crash at any, a node in the index has all its
// children there; a hit on a node can be followed. Nodes in packs that are not sealed are
// read again after a crash, so their children are kept though nothing needs them; the
// store seals idle packs when a collection begins. Of a batch that was not committed a crash
// may leave nodes without their children all the same: nothing is concluded from a node that
// nobody published but that it is stored.
//
// A patch needs its base as a node its children: as long as a patch is in the index its
// base stays, and the sweep of blocks is repeated while patches go. Who stores a patch
// claims its base.
//
// # Packs
//
// A pack that no entry names is dropped. One that would shrink by 15 % or more is
// written again: each live record is read, verified by its digest, and appended as it
// stands to a pack of the collection's own; that is synced, then the entries move,
// durably and conditionally, then the old pack goes: its row in the index says so first,
// then the file, then the row. A reader who finds the pack gone looks the digest up
// again. So disk is at most 1.18 times what is live, plus open packs.
//
// Live is what is needed, as above, and the bases that its patches lie over: the records
// of live blocks, nodes, manifests and notes, and of a patch its share of its bundle, by
// its grains. The shares of a bundle's patches are its record's size, so the accounts of
// all entries are what their records take, once no bundle has dead patches.
//
// Of a bundle with dead patches those that live are taken out, verified by the blocks that
// they make, and put together with their neighbours as new bundles, compressed and sealed
// anew; their entries move as others do. So a pack of half-dead bundles shrinks like any
// other. Without the key, and in a vault with records of several key domains, bundles are
// copied whole, and count as live as long as one of their patches does.
//
// A patch that alone keeps the bases below it is stored as a whole block when that takes
// less than 85 % of what it and they take; then they are swept. With several patches over
// it a base is the cheaper way to keep them. How deep patches lie and how much they lay
// over a whole block never grows.
//
// A live record that does not verify keeps its pack: it is retired and reported, never
// dropped, until nothing in it is needed. A node that cannot be read ends the
// collection before anything is swept: what is below is needed and not known. The way
// out is to heal it, or to purge the points it is in.
//
// # Points
//
// What is published stands in publications, in packs that go like others. Before any
// metadata pack goes the store writes a checkpoint: one list of all that is published,
// in two packs, after which no older publication counts. Dead manifests are not in it.
// Then their entries go, then the entries of their notes, of which one says that they
// are purged; then packs, in any order. An index that is built from the packs at any
// moment shows no purged point and misses none: before the checkpoint all is there, and
// after it the dead is not listed.
//
// # Crash, full disk, resumption
//
// A collection that was cut off begins anew: a mark that is resumed would have to know
// every claim since it began, also those before the crash, and marking 1 TiB takes
// seconds. What it had removed stays removed, what it had copied and not moved is
// garbage for the next one. After a crash no batch is open. What a peer had sent by
// then is in no window; a vault that receives sets MinAge to 24 h, and packs written to
// less than that ago are spared, and all below nodes in them.
//
// On a full disk dead packs are dropped first. Copies may use the reserve that
// ingest leaves free, and a pack as small as there is room for. What has no room is left
// and reported.
package collection
