// Package recoverypoint is what a backup leaves behind: a manifest that says what a
// machine was at one cut, the index of all manifests of a store, and the disk of a
// point as a read-only blockdev.Device.
//
// # Place in the data path
//
//	ingest → roots of disks → Manifest → Index.Publish → Store
//	Index.Resolve → Manifest → OpenDisk → restore, nbd/server, volume → filesystem
//
// # The types
//
// [Manifest] is encoded canonically; the id of the point is the digest of the bytes.
// [Index] holds all points of a store in memory and replays the notes that say what
// became of them: deletion, hold, signatures, sizes. [Device], from [OpenDisk], reads
// blocks through a [Cache] that all readers share.
//
//	x, err := recoverypoint.OpenIndex(ctx, store)
//	p, rest, err := x.Resolve("web@latest:web0")
//	d, err := recoverypoint.OpenDisk(ctx, store, cache, p.Manifest, rest)
//	n, err := d.ReadAt(buf, 0)
//
// # What a read costs
//
// Reading is bound by the processor. 1.2 GiB of a machine's files took 3.0 to 3.6 CPU
// seconds of the daemon (restore file, two cores, 2026-11-22): six tenths zstd, under a
// fifth digests, the rest copying, index and socket. Where content does not compress a
// third is digests. Hence a block is decoded once, straight into the
// reader's buffer; in groups of eight, whose digests cost 0.6 of eight alone
// (dedupe.SumAll); and not ahead of a client who keeps all cores busy with what he has
// asked for. A block that came from the cache was verified when it went there.
//
// # What stands in clear
//
// In an encrypted store the manifest itself can be read without the key, so that points
// can be listed, compared and collected. Its texts (names, reasons, the user's note) are
// sealed blocks to which it refers ([Manifest.PutPrivate]); it shows neutral ones in their
// place. OpenIndex reads them back, one block for all points with the same texts.
//
// # Rules
//
// A note is durable before its effect can be seen. A manifest is never changed; what
// is learnt about a point later is a note. A block or node that does not verify is
// an error that names disk, offset and digest, and is never read as other bytes.
//
// Points of one machine are ordered by (generation, sequence), never by the clock,
// which may be set back; the clock is for display and for naming a time.
//
// Locks: Index.publishing and Index.counting are taken before Index.mu; mu and the
// mutexes of Cache and Device are held alone and never over I/O. Formats are in
// FORMAT.md, with files of every released version in testdata.
package recoverypoint
