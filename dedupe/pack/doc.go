// Package pack is the file format of the vault: the record of one block, node,
// manifest, note or publication; the append-only pack that holds many records; and
// the superblock of a vault. FORMAT.md beside this file has the byte tables.
//
// # Place in the data path
//
//	blockstore → Writer → pack file
//	pack file → ReadRecord (one record, by offset) → blockstore
//	pack file → ReadFooter (sealed) or Scan (not sealed) → a rebuilt index
//
// A pack describes itself. Each record's header carries all that is needed to read
// the record without an index, with one CRC-32C over the header and one over the
// payload; the footer of a sealed pack repeats what a rebuild of the index needs.
// A pack that was being written when the machine stopped has no footer, and is
// read from its start up to the first byte that does not verify.
//
// A [Bundle] is the one record that holds several blocks: each as the grains in which it
// differs from another block. Its directory stands in clear at the start of its payload,
// so that a scan, a footer and a site without the key know its patches; an [Entry] of a
// bundle lists them.
//
// # Durability and locking
//
// A [Writer] may be used by many goroutines: a record's place is reserved under a
// short lock, and the record is then written without it. What was appended before
// [Writer.Sync] returned nil is durable. A write or sync that failed stays as the
// Writer's error: nothing that was appended since the last good Sync may be
// believed.
package pack
