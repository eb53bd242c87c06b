// Package dedupe is the contract of the vault: how a disk at one instant becomes a
// recovery point that is kept once, verified, and never overwritten.
//
// # Place in the data path
//
//	snapshot → ingest → hash tree + blocks → Store (packs, indexed by Badger)
//	Store → hash tree → recovery point, a read-only blockdev.Device → readers
//
// # Words
//
//	block           the unit of the store: Store.BlockSize bytes of a disk, aligned
//	digest          the id of a block, node or manifest; that of a block is made of
//	                those of its grains of 4 KiB, see [Digester]
//	node            up to [FanOut] child digests of the hash tree; level 0 nodes
//	                point to blocks, level n nodes to nodes of level n-1
//	hole            an absent child: all of the range below it reads as zeros
//	root            what describes one disk at one instant, in a few dozen bytes
//	manifest        one machine at one cut: the roots of its disks and the rest
//	recovery point  a committed manifest; its id is the digest of the manifest
//	note            a small record about a point: deletion, hold, signature, sizes
//	pack            an append-only, self-describing file of many records
//	vault           what a user sees: a store, its points, its rules
//
// # Rules of the whole folder
//
// A block is verified against its digest whenever it is read. A commit publishes
// last: blocks, then nodes, then manifests are made durable, and only then does
// one transaction of the index make the point appear. An all-zero block is an
// absent child and is never stored. A node that exists proves nothing about what
// lies below it, so a subtree is taken over only when it is reached from a
// committed point of the same store.
//
// The contract has two sides: [Store] for readers, [Batch] for the writer of new
// points. Packages pack and blockstore implement it, hashtree, recoverypoint,
// ingest and verify stand on it. It imports nothing of ours.
package dedupe
