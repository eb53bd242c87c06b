// Package blockstore is the vault's store: packs hold the payload, a Badger index
// says where. It implements dedupe.Store and dedupe.Batch.
//
// # Place in the data path
//
//	ingest → Batch.PutBlock → digest → held? → compress → seal → pack (append)
//	recovery point, verify → Store.Get → index → pack (read) → open → checked bytes
//
// Badger holds only digests and places: an LSM tree is the wrong home for payload,
// and Badger's value log loses it (tools/decisions has the tests). The index is a
// cache of what the packs say: [RebuildIndex] makes it anew from them.
//
// # What a commit is
//
// A commit ends with a publication, a record that lists its manifests and notes.
// Everything it reaches was made durable before it was written, so once it is durable
// itself the commit has happened; the transaction of the index that follows only
// shows it. After an unclean stop [Open] reads the packs that were not sealed,
// indexes what verifies, and applies publications that the index does not know; only then
// the index has those packs as sealed, so that one that is cut off begins anew. A
// commit that returns an error after its publication was written cancels it by
// another one. No serial is used twice: a commit that is tried again and cancelled before
// would else be the same record.
//
// # Encryption
//
// A vault that is made with [Options.Keys] is encrypted: ids of blocks and notes are
// keyed, their payloads sealed (package keyring). Nodes, manifests and publications stand
// in clear. The key is needed to put, and to read a block or a note; to recover, to
// rebuild the index, to walk trees and to compare a record with the hash of its
// ciphertext it is not. A record says by which key of which domain it was sealed, so the
// blocks of several domains can lie in one vault; as their ids differ, nothing is shared
// between domains.
//
// What it costs, of new blocks of 64 KiB on two cores and of blocks read by one goroutine
// from the page cache (BenchmarkEncryption, medians of five, 2026-11-22): content that
// does not compress is put at 219 MB/s beside 368 in a plain vault and read at 639 beside
// 1016; text is put at 45 beside 41, where compression takes nearly all the time and the
// difference is noise, and read at 206 beside 283. Sealing such a block takes 75 µs, opening it
// 25 (BenchmarkSeal of package keyring): the difference is the hash of the ciphertext.
//
// # What held means
//
// PutBlock answers "have it" only for a record of the same batch, or for one that is
// synced and either was written since the last unclean stop or is read back and
// verified now, once. The number of unclean stops, the epoch, is part of each index
// entry; an entry of an older epoch is verified before it is believed, and rewritten
// with the present one. An entry whose record does not verify is not held: the block
// is stored again, and that heals it.
//
// # Patches
//
// A block that differs from another one, its base, in at most a quarter of its grains
// of 4 KiB is kept as a patch: the grains alone. Patches come together in a bundle, one
// record of some 128 KiB of grains from neighbouring blocks, which are compressed and
// sealed together: alone a grain hardly compresses, and a database's increment took
// twice as much. Until its bundle is written a patch is read from the batch's memory.
//
// In a key domain where the digest of a block is that of the list of its grains' digests
// the list stands in the block's record, sealed apart from the content: [Batch.Patches]
// makes a patch then from the grains that were written and the base's list, without the
// base's content.
//
// A read follows the bases to a whole block and lays the grains of each patch over it;
// the outcome is compared with the block's digest, which speaks for all of them. If it
// is wrong, the first of the bases that does not verify is named, and not believed any
// more; a patch is held only when its base is.
//
// Patches lie at most two deep, and lay at most a quarter of a block over a whole one.
// Where one more would be too much, the block becomes a patch over the whole block
// itself, if that is a quarter or less, and otherwise a whole block. So a page that changes
// again and again costs a grain each time and stays near its base.
//
// What bounds them is reading: sequential reads of a disk whose blocks all are patches,
// in processor time, as a part of what whole blocks take (BenchmarkReadPatched of package
// ingest, cpu-ratio, 128 MiB, two cores of a busy machine, 2026-11-22; the bar is 0.8):
//
//	grains x patches    1x1   4x1   1x2   2x2   1x4
//	compresses by half  0.98  0.81  0.81  0.83  0.76
//	random              0.91  0.80  0.78  0.80  0.69
//
// With half a block it was 0.5 to 0.7: what the grains cover is read in vain.
//
// No block ever lies over itself, whatever is lost, stored again, or found twice when
// an index is made anew. Whoever becomes a patch is not in the index, in any form, so
// nothing can be made of it yet; a block that is in the index and not held is stored
// whole. A patch never replaces an entry of the index, so an entry only ever gets
// closer to a whole block. A patch whose base came into the index later, and as deep as it or
// deeper, is not held. [RebuildIndex] enters whole blocks first and then patches by
// depth, each only over a base that the index has, and counts it as deeper than that; a
// whole block that is damaged gives way to a patch of the same block, before anything is
// laid over it. Readers bound what they follow all the same.
//
// # Collection
//
// An entry that a collection moves names the same content elsewhere: a record copied as it
// stands, a patch in a new bundle, over the same base, or the whole block that a patch made.
//
// [Store.BeginCollection] is the store's part of a collection: it marks, sweeps entries
// and rewrites packs; package collection drives it and has the essay. All answers of
// "held" go through Batch.claim, which a collection sees; whoever makes something
// reachable in another way must claim it there. A pack goes in three steps, each
// durable before the next: its row says that it is dropped, its file is removed, its row
// is removed; a start after an unclean stop goes on with it. A reader that has the vault open read-only beside a process that collects
// may miss packs that were dropped since it opened; it opens again.
//
// # Memory and space
//
// A batch keeps places of what is not in the index yet: those of its unfinished
// packs and of at most two that are being sealed, and the open bundle of each of its
// runs of patches. Packs are preallocated, so that a
// full disk is an error of one call, not of a sync later; free space is read before
// each of them and before each write of the index, because Badger dies of SIGBUS on
// a full file system.
//
// Below Options.ReserveBytes nothing new is stored. What lets space be freed may use the
// reserve: a commit of notes alone, which allocates what it needs and no whole pack, and what
// a collection writes. When not even the index's room is left, Options.Relieve is asked first.
//
// # Copies
//
// Packs stand at one to three locations (package packdir), written all at once. A record
// that does not verify where it is read first is read from another copy, and written
// again where it was damaged. After an unclean stop the copies of a pack that was open
// may differ behind what was acknowledged: the one whose records verify farthest is
// sealed, the others are made equal to it, all are synced, also those that were equal
// already, and only then the index knows the pack as sealed. A rebuild does so, too, where
// nothing but zeros is behind the last record, and syncs every pack before its index is the
// vault's. [Store.VerifyCopies] composes each damaged pack from what verifies in any
// copy; [Store.RepairLocations] completes a location that was lost. What verifies
// nowhere goes into quarantine, a key of the index, until it is stored again.
//
// # Locks
//
// In this order: a batch's digest shard; Store.gate; Store.publishing; a batch's stream of metadata;
// mu, then flight, of its patches; its stream of data; index.mu; Store.mu; a shard's map, the file cache or
// the bundle cache. A digest shard is
// held from the question "held?" until the record is in its pack, over the read of a
// record to be verified and over compression, so that two puts of one block store it
// once; there are 256. A stream is held while a pack is made, synced or waited for:
// only puts that need the next pack wait. Store.repairing is
// before all of them; Store.healing, which is held over the reading and copying of one
// pack, comes after a digest shard: a read that wants to heal only tries it.
package blockstore
